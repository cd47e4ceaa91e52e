# -*- test-case-name: tests.cli.test_main -*-
"""
One run of C{helix}: its global flags, where it writes, and how a command asks the server.

A command's coroutine gets the reactor and a L{Client}; the settings are read
when the first command needs them, so that what needs no server (help,
C{version}, C{completion}) works with none and starts fast.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from helix_revdial.cli.edge import runCommand
from helix_revdial.cli.output import Output
from helix_revdial.cli.profile import Flags, Settings, resolve

if TYPE_CHECKING:
    from helix_revdial.cli.client import Client

CLOSE_TIMEOUT = 1.0
"""Seconds for closing kept connections; the process ends after that in any case."""

SERVER_META = "helix.server."
"""Where a context keeps which server the flags behind a command's name give."""

F = TypeVar("F", bound=Callable[..., Any])

Asking = Callable[[Any, "Client"], Coroutine[Any, Any, int]]
"""Takes the reactor and the client; returns the exit code."""

Serving = Callable[[Any, Settings], Coroutine[Any, Any, int]]
"""Takes the reactor and the settings; returns the exit code."""


@dataclass
class Invocation:
    """
    What the global flags say, for every command below them.

    @ivar output: Where results and notices go.
    @ivar asJSON: Whether results are wanted as JSON.
    @ivar nonInteractive: Whether nobody may be asked anything.
    """

    flags: Flags = field(default_factory=Flags)
    output: Output = field(default_factory=Output)
    asJSON: bool = False
    nonInteractive: bool = False

    def ask(self, command: Asking) -> int:
        """
        Run a command that asks the server.

        @return: The command's exit code.

        @raise SettingsError: The settings cannot be used.
        """
        settings = resolve(self.flags, os.environ)

        async def main(reactor: Any) -> int:
            from helix_revdial.cli.client import connect

            client, pool = connect(reactor, settings)
            try:
                return await command(reactor, client)
            finally:
                closing = pool.closeCachedConnections()
                closing.addTimeout(CLOSE_TIMEOUT, reactor)
                closing.addErrback(lambda failure: None)
                await closing

        return runCommand(main)

    def withSettings(self, command: Serving) -> int:
        """
        Run a command that reaches the server in its own way.

        @return: The command's exit code.

        @raise SettingsError: The settings cannot be used.
        """
        settings = resolve(self.flags, os.environ)
        return runCommand(lambda reactor: command(reactor, settings))


passInvocation = click.make_pass_decorator(Invocation, ensure=True)
"""Gives a command the L{Invocation} as its first argument."""


class Identifier(click.ParamType[Any]):
    """An id as it may stand in a URL's path: letters, digits, C{.}, C{_} and C{-}."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", text):
            self.fail("expected letters, digits, '.', '_' and '-', at most 128", param, ctx)
        return text


class Duration(click.ParamType[Any]):
    """A length of time: seconds, or a number with C{s}, C{m}, C{h} or C{d} behind it."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, int | float):
            return float(value)
        match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhd]?)", str(value))
        if match is None:
            self.fail("expected seconds, or a number such as 90s, 15m, 12h, 30d", param, ctx)
        unit = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}[match.group(2)]
        return float(match.group(1)) * unit


class Timeout(Duration):
    """
    A length of time that is not nothing.

    @param limit: The longest, in seconds; L{None} for any.
    """

    def __init__(self, limit: float | None = 86_400) -> None:
        self._limit = limit

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        seconds = super().convert(value, param, ctx)
        if seconds < 0.01 or (self._limit is not None and seconds > self._limit):
            self.fail("expected at least 0.01 seconds, and not more than makes sense", param, ctx)
        return seconds


def _keepServer(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Remember which server a flag behind a command names; it goes before the global flags."""
    if value is None:
        return
    assert parameter.name is not None
    context.meta[f"{SERVER_META}{parameter.name}"] = value
    invocation = context.find_object(Invocation)
    if invocation is not None:
        given = {
            name: context.meta.get(f"{SERVER_META}{name}")
            for name in ("url", "restBase", "remoteServer")
        }
        invocation.flags = replace(invocation.flags, **given)


def _present(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Take up a flag of L{presentationFlags}, wherever it stands."""
    invocation = context.ensure_object(Invocation)
    match parameter.name if value else None:
        case "quiet":
            invocation.output.quiet = True
        case "noColor":
            invocation.output.noColor = True
        case "nonInteractive":
            invocation.nonInteractive = True


def presentationFlags(command: F, hidden: bool = False) -> F:
    """The flags for how C{helix} speaks to whoever called it."""
    for flags, name, text in (
        (("--non-interactive",), "nonInteractive", "Ask nothing: fail instead."),
        (("--no-color",), "noColor", "No colours, and no pictures that are redrawn."),
        (("--quiet", "-q"), "quiet", "Results and errors only."),
    ):
        command = click.option(
            *flags,
            name,
            is_flag=True,
            expose_value=False,
            hidden=hidden,
            callback=_present,
            help=text,
        )(command)
    return command


def commonFlags(command: F) -> F:
    """The global flags that C{task}, C{session} and C{remote} take behind their names, too."""
    command = presentationFlags(command, hidden=True)
    for flag, name, metavar in (
        ("--remote-server", "remoteServer", "NAME|URL"),
        ("--rest-base", "restBase", "URL"),
        ("--url", "url", "URL"),
    ):
        command = click.option(
            flag,
            name,
            metavar=metavar,
            expose_value=False,
            hidden=flag != "--remote-server",
            callback=_keepServer,
            help="The server; as before the command.",
        )(command)
    return command


def _json(context: click.Context, parameter: click.Parameter, value: bool) -> bool:
    return value or context.ensure_object(Invocation).asJSON


jsonFlag = click.option(
    "--json", "asJSON", is_flag=True, callback=_json, help="Print JSON, for programs."
)
"""The C{--json} of every command that prints a result."""


__all__ = [
    "SERVER_META",
    "Asking",
    "Duration",
    "Identifier",
    "Invocation",
    "Serving",
    "Timeout",
    "commonFlags",
    "jsonFlag",
    "passInvocation",
    "presentationFlags",
]
