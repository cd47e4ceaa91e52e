# -*- test-case-name: tests.agent.test_compatibility -*-
"""
The commands C{revdial-client} and C{wolf-revdial-client}.

They take the flags of the two Go programs of these names, so that start
scripts that know nothing of Twisted go on working, and run the same agent as
C{twistd helix-revdial-agent}, in the foreground, with its log on standard
error.

Flags are read as Go's C{flag} package reads them: C{-name value},
C{-name=value}, one dash or two, up to C{--} or the first word that is no flag;
exit 2 on misuse, 0 for C{-help}.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn, TextIO

from twisted.internet.defer import Deferred
from twisted.internet.task import react
from twisted.logger import globalLogBeginner

from ..revdial.descriptors import raiseDescriptorLimit
from ..revdial.monotonic import useMonotonicTime
from ..telemetry.logs import observerFor
from .service import agentService
from .settings import AgentSettings, SettingsError, readSettings
from .token import Secret
from .vocabulary import HOST_LOCAL, SECRETS, SESSION_LOCAL, SETTINGS, Offered, Setting

USAGE = 2
"""Exit status of a command that was misused, as Go's C{flag} package has it."""


CONTAINER_DRAIN = 5.0
"""
Seconds that streams get at the end by default: these programs run in containers,
whose engines kill what has not ended 10 s after SIGTERM.
"""


class FlagError(Exception):
    """The command line is not as Go's C{flag} package wants it."""


class HelpWanted(Exception):
    """The command line asks for the usage text."""


_NETWORK = ("ca-file", "pin", "client-certificate", "client-key", "proxy", "no-proxy")
"""Flags about the network that both programs take."""


def _some(flags: Sequence[str], variables: Sequence[str]) -> tuple[Setting, ...]:
    """
    The rows of the table of settings that have these flags or these variables, and
    those about the network.  A flag of the Go programs that is given twice counts
    the second time.
    """
    return tuple(
        replace(row, repeatable=False) if row.about == "server" else row
        for row in SETTINGS
        if row.flag in (*flags, *_NETWORK) or row.variable in variables
    )


REVDIAL_CLIENT = Offered(
    settings=_some(
        ("server", "runner-id", "token", "token-file", "local", "target", "reconnect", "drain"),
        ("HELIX_SESSION_ID", "USER_API_TOKEN"),
    ),
    dashes="-",
    local=SESSION_LOCAL,
    drain=CONTAINER_DRAIN,
)
"""C{revdial-client}: the program of sandboxes, and of Wolf's side car."""

WOLF_REVDIAL_CLIENT = Offered(
    settings=_some(
        ("api-url", "wolf-id", "token", "token-file", "local", "target", "reconnect", "drain"),
        (),
    ),
    dashes="-",
    local=HOST_LOCAL,
    reconnect=5.0,
    drain=CONTAINER_DRAIN,
)
"""C{wolf-revdial-client}: the program of a host with Wolf."""


def parseGoFlags(arguments: Sequence[str], offered: Offered) -> dict[str, str | Secret | list[str]]:
    """
    Read a command line as Go's C{flag} package does.

    @param arguments: The words after the program's name.
    @param offered: Which flags there are; each takes a value.
    @return: Values by flag name; the last one wins, as in Go, but for flags that
        may be repeated.
    @raise FlagError: As Go would complain.
    @raise HelpWanted: C{-h} or C{-help}.
    """
    rows = {row.flag: row for row in offered.settings if row.flag}
    found: dict[str, str | Secret | list[str]] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            break
        if len(word) < 2 or not word.startswith("-"):
            rest.insert(0, word)
            break
        name, equals, value = word.removeprefix("-").removeprefix("-").partition("=")
        if not name or name.startswith("-"):
            raise FlagError(f"bad flag syntax: {word.partition('=')[0]}")
        row = rows.get(name)
        if row is None:
            if name in ("h", "help"):
                raise HelpWanted
            raise FlagError(f"flag provided but not defined: -{name}")
        if not equals:
            if not rest:
                raise FlagError(f"flag needs an argument: -{name}")
            value = rest.pop(0)
        if row.repeatable:
            known = found.setdefault(name, [])
            assert isinstance(known, list)
            known.append(value)
        else:
            found[name] = Secret(value) if name in SECRETS else value
    if rest:
        # Go's programs overlook such words, and with them every flag behind them.
        # The word itself is not repeated: it may be a token that lost its flag.
        raise FlagError("a word that is no flag stands among the flags")
    return found


def usageText(program: str, offered: Offered) -> str:
    """What C{-help} prints."""
    lines = [f"Usage of {program}:"]
    for row in offered.settings:
        also = f" (or {row.variable})" if row.variable else ""
        if row.flag:
            lines.append(f"  -{row.flag} {row.value}{also}\n    \t{row.meaning}")
        else:
            lines.append(f"  {row.variable} (environment)\n    \t{row.meaning}")
    return "\n".join(lines) + "\n"


def settingsOf(
    program: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    offered: Offered,
    errors: TextIO,
) -> AgentSettings:
    """
    Make settings, or leave with a message.

    @raise SystemExit: With status 2 for misuse, 0 when help was asked for.
    """
    try:
        return readSettings(parseGoFlags(arguments, offered), environment, offered)
    except HelpWanted:
        errors.write(usageText(program, offered))
        raise SystemExit(0) from None
    except FlagError as error:
        errors.write(f"{error}\n{usageText(program, offered)}")
        raise SystemExit(USAGE) from None
    except SettingsError as error:
        errors.write("".join(f"{program}: {line}\n" for line in str(error).splitlines()))
        raise SystemExit(USAGE) from None


def _foreground(reactor: Any, settings: AgentSettings) -> Deferred[None]:
    """Run the agent until the process is told to end."""
    useMonotonicTime(reactor)
    raiseDescriptorLimit()
    service = agentService(reactor, settings, os.environ)
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    service.startService()
    return Deferred()


def _run(program: str, offered: Offered) -> NoReturn:
    settings = settingsOf(program, sys.argv[1:], os.environ, offered, sys.stderr)
    observer = observerFor("text", descriptor=2)
    atexit.register(observer.writer.flush)
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
    react(_foreground, (settings,))


def revdialClient() -> NoReturn:
    """The console script C{revdial-client}."""
    _run("revdial-client", REVDIAL_CLIENT)


def wolfRevdialClient() -> NoReturn:
    """The console script C{wolf-revdial-client}."""
    _run("wolf-revdial-client", WOLF_REVDIAL_CLIENT)


__all__ = ["parseGoFlags", "revdialClient", "wolfRevdialClient"]
