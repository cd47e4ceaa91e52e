# -*- test-case-name: tests.cli.test_main -*-
"""
The C{helix} command: its groups, its global flags, and the edge where errors end.

Every error becomes one line on standard error that begins with C{helix: } and
says what to do; the exit codes are those of L{helix_revdial.cli.edge}.

A family of commands is imported when it is named, so that what is not asked
for costs nothing: C{helix --help} needs no network library.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn, TextIO

import click

from helix_revdial import __version__
from helix_revdial.cli.completion import VARIABLE
from helix_revdial.cli.edge import (
    BROKEN_PIPE,
    FAILED,
    INTERRUPTED,
    PASSED,
    USAGE,
    CannotWrite,
    CommandError,
    Interrupted,
    ReaderGone,
    plain,
)
from helix_revdial.cli.invocation import (
    Invocation,
    jsonFlag,
    passInvocation,
    presentationFlags,
)
from helix_revdial.cli.not_offered import GLOBAL, notOffered
from helix_revdial.cli.profile import Flags

DEBUG_VARIABLE = "HELIX_DEBUG"
"""Where it is set, an error that nobody foresaw comes with its traceback."""

FAMILIES = {
    "completion": ("completion:completion", "Completion for bash, zsh and fish."),
    "connect": ("connecting:connect", "Standard input and output as a stream to a target."),
    "db": ("database:database", "The server's database: migrations."),
    "diag": ("diag:diag", "Why an agent on this host does not reach its server, or that it would."),
    "desktop": ("desktop:desktop", "The service inside a sandbox: screenshot, clipboard."),
    "forward": ("forward:forward", "Ports of this machine that lead to targets of a runner."),
    "forwards": ("forwards:forwards", "Ports of the server that lead to targets (for admins)."),
    "remote": ("remote:remote", "What a task can ask for: agents, runtimes, runners, ..."),
    "revdial": ("status:revdial", "The server's connections to runners (for administrators)."),
    "serve": ("serve:serve", "Run a server here; with --mock one that only pretends to work."),
    "server": ("server:server", "The server itself: reload its settings (for administrators)."),
    "session": ("session:session", "Tasks' sessions: watch, pause, resume, stop, ..."),
    "sessions": ("sessions:sessions", "Sessions of sandboxes: create, list, delete."),
    "spectask": ("spectask:spectask", "Sessions and their sandboxes: self-test, screenshot, list."),
    "task": ("task:task", "Have an agent do something, in a session of its own."),
    "tokens": ("tokens:tokens", "Tokens: create, rotate, list, revoke, import."),
    "version": ("main:version", "This program's version, and the server's."),
    "why": ("why:why", "What happened to a runner, a session's runners, or a dial."),
}
"""Each command's module and attribute, and what its line in the help says."""

ALIASES = {"st": "spectask"}
"""Short names that are understood and not listed."""


class Families(click.Group):
    """The commands of L{FAMILIES}, imported when they are named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(FAMILIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place, _ = FAMILIES.get(ALIASES.get(cmd_name, cmd_name), (None, None))
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        command = getattr(import_module(f"helix_revdial.cli.{module}"), attribute)
        assert isinstance(command, click.Command), place
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in sorted(FAMILIES.items())])


_EPILOG = """\
Settings: flags win over HELIX_URL (or AW_REST_BASE), HELIX_API_KEY and HELIX_PROFILE,
and these over ~/.config/helix/profile.toml (url, api_key or token_file; mode 0600).

Exit codes: 0 done or passed, 1 failed, 2 usage or settings, 3 still in the
grace period (spectask revdial), 130 interrupted; task, session and remote have
a code for each reason (helix task --help).
"""


@click.group(cls=Families, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--url", metavar="URL", help="The server.  [default: http://localhost:8080]")
@click.option("--rest-base", "restBase", metavar="URL", help="The same as --url.")
@click.option(
    "--remote-server",
    "remoteServer",
    metavar="NAME|URL",
    help="The server by its URL, or by its name in the profile.",
)
@click.option(
    "--token-file",
    "tokenFile",
    metavar="FILE",
    help="A file that holds the API key; - is standard input.",
)
@click.option("--profile", metavar="FILE", help="Another profile file.")
@click.option("--json", "asJSON", is_flag=True, help="JSON, of every command that has it.")
@presentationFlags
@notOffered(GLOBAL)
@click.version_option(__version__, "--version", prog_name="helix", message="%(prog)s %(version)s")
@click.pass_context
def helix(
    context: click.Context,
    url: str | None,
    restBase: str | None,
    remoteServer: str | None,
    tokenFile: str | None,
    profile: str | None,
    asJSON: bool,
) -> None:
    """Reach and check sandboxes through their reverse-dial tunnels."""
    invocation = context.ensure_object(Invocation)
    invocation.asJSON = asJSON
    invocation.flags = Flags(url, tokenFile, profile, restBase, remoteServer)


@click.command("version")
@click.option("--server", is_flag=True, help="Ask the server for its version, too.")
@jsonFlag
@passInvocation
def version(invocation: Invocation, server: bool, asJSON: bool) -> int:
    """Print this program's version, and with --server the server's."""
    output = invocation.output

    async def command(reactor: Any, client: Any) -> int:
        answer = await client.version()
        if asJSON:
            output.json({"helix": __version__, "server": answer})
        else:
            output.line(f"helix {__version__}")
            output.line(f"server {plain(answer.get('version'))}")
        return PASSED

    if server:
        return invocation.ask(command)
    if asJSON:
        output.json({"helix": __version__})
    else:
        output.line(f"helix {__version__}")
    return PASSED


def run(arguments: Sequence[str] | None = None) -> int:
    """
    Run one command line.

    @param arguments: Without the program's name; L{None} takes the process's.

    @return: The exit code.  Whatever goes wrong has been said on standard error.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a check mark shows "?" and goes on.
            stream.reconfigure(errors="replace")
    try:
        code = helix.main(arguments, "helix", VARIABLE, standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return USAGE
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f"; see: {context.command_path} --help" if context is not None else ""
        return _failed(f"{plain(error.format_message()).rstrip('.')}{hint}", error.exit_code)
    except CommandError as error:
        return _failed(plain(error), error.exitCode)
    except Interrupted as error:
        return error.exitCode
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except (ReaderGone, BrokenPipeError):
        return _deaf()
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _UNWRITTEN:
            # Of click's own writing: help, versions, completions.
            return _failed(plain(CannotWrite(error)), FAILED)
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()
        return _failed(
            f"unforeseen error ({type(error).__name__}: {plain(error)}): this is a fault of helix; "
            f"{DEBUG_VARIABLE}=1 shows where",
            FAILED,
        )
    return code if isinstance(code, int) else PASSED


_UNWRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
"""What a write to standard output fails with."""


def _failed(text: str, code: int) -> int:
    try:
        sys.stderr.write(f"helix: {text}\n")
        sys.stderr.flush()
    except BrokenPipeError:
        return _deaf()
    except OSError:
        _abandon(sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:
        _abandon(sys.stdout)
    return code


def _deaf() -> int:
    """Nobody reads."""
    _abandon(sys.stdout)
    _abandon(sys.stderr)
    return BROKEN_PIPE


def _abandon(stream: TextIO) -> None:
    """Have the interpreter's last flush of what could not be written go nowhere, quietly."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, stream.fileno())
    except (OSError, ValueError):
        return
    finally:
        os.close(nowhere)


def _standardStreams() -> None:
    """
    Give a process that was started without some of its standard streams the ones missing.

    They lead nowhere.  Without them the first socket would take their descriptors.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115


def main() -> NoReturn:
    """The console script C{helix}."""
    _standardStreams()
    sys.exit(run())


__all__ = ["helix", "main", "run"]
