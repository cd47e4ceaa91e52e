# -*- test-case-name: tests.cli.test_spectask -*-
"""
C{helix spectask}: what a session's owner asks of its sandbox.

C{revdial} (does the tunnel work), C{screenshot} (a picture through it) and
C{list} (which sessions are connected).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from helix_revdial.cli import selftest
from helix_revdial.cli.edge import FAILED, PASSED, CommandError, plain
from helix_revdial.cli.files import WholeFile
from helix_revdial.cli.images import SUFFIXES
from helix_revdial.cli.invocation import (
    Identifier,
    Invocation,
    Timeout,
    jsonFlag,
    passInvocation,
)
from helix_revdial.cli.output import Output, field, moment

if TYPE_CHECKING:
    from helix_revdial.cli.client import Client, Record, Screenshot

AT_ONCE = 8
"""Sessions whose connection is asked for at the same time."""


@click.group()
def spectask() -> None:
    """Sessions and their sandboxes: self-test, screenshot, list."""


@spectask.command("revdial")
@click.argument("session", type=Identifier())
@jsonFlag
@click.option(
    "--timeout",
    type=Timeout(),
    default=selftest.DEFAULT_TIMEOUT,
    show_default=True,
    help="Seconds for the whole test, a wait for a reconnect included.",
)
@click.option("--verbose", "-v", is_flag=True, help="Show the phases of the dial.")
@passInvocation
def revdialCommand(
    invocation: Invocation, session: str, asJSON: bool, timeout: float, verbose: bool
) -> int:
    """Test the tunnel to SESSION's sandbox, end to end.

    Exit codes: 0 passed, 1 failed, 2 usage, 3 the runner was in its grace
    period and did not return in time.
    """
    kind = selftest.JSONReport if asJSON else selftest.TextReport
    report = kind(invocation.output, verbose=verbose)

    async def command(reactor: Any, client: Client) -> int:
        return (await selftest.selfTest(client, reactor, session, timeout, report)).exitCode

    return invocation.ask(command)


@spectask.command("screenshot")
@click.argument("session", type=Identifier())
@click.option(
    "-o",
    "--output",
    "target",
    metavar="FILE",
    help="Where it goes; - is standard output.  [default: screenshot-YYYYmmdd-HHMMSS.png]",
)
@click.option("--timeout", type=Timeout(), default=30.0, show_default=True, help="Seconds.")
@passInvocation
def screenshotCommand(
    invocation: Invocation, session: str, target: str | None, timeout: float
) -> int:
    """Save a picture of SESSION's screen, taken through the tunnel."""

    async def command(reactor: Any, client: Client) -> int:
        return await screenshot(client, invocation.output, session, target, timeout)

    return invocation.ask(command)


async def screenshot(
    client: Client, output: Output, session: str, target: str | None, deadline: float
) -> int:
    """
    Save a screenshot.

    @param target: The file, C{-} for standard output, or L{None} for a name
        made of the local time.
    @param deadline: Seconds for the exchange.

    @raise CommandError: No picture came, or it cannot be written; whatever
        stood in its place still does.
    """
    if target == "-":
        output.notice(f"Testing screenshot for session {session}...")
        picture = await _picture(client, session, deadline)
        output.bytes(picture.data)
        return PASSED
    output.line(f"Testing screenshot for session {session}...")
    if target is None:
        picture = await _picture(client, session, deadline)
        path = _freeName(SUFFIXES[picture.kind])
        with WholeFile(path, replace=False) as file:
            file.commit(picture.data)
    else:
        path = Path(target)
        with WholeFile(path) as file:
            picture = await _picture(client, session, deadline)
            file.commit(picture.data)
    output.line(f"✅ Screenshot saved: {path} ({len(picture.data)} bytes)")
    return PASSED


async def _picture(client: Client, session: str, deadline: float) -> Screenshot:
    try:
        return await client.screenshot(session, deadline=deadline)
    except CommandError as error:
        raise CommandError(f"screenshot request failed: {error}") from None


def _freeName(suffix: str) -> Path:
    """A name made of the local time that no file here has yet."""
    stem = time.strftime("screenshot-%Y%m%d-%H%M%S")
    path = Path(stem + suffix)
    count = 1
    while path.exists():
        count += 1
        path = Path(f"{stem}-{count}{suffix}")
    return path


@spectask.command("list")
@jsonFlag
@passInvocation
def listCommand(invocation: Invocation, asJSON: bool) -> int:
    """List your sessions, and whether each one's sandbox is connected."""

    async def command(reactor: Any, client: Client) -> int:
        return await listSessions(client, invocation.output, asJSON)

    return invocation.ask(command)


async def listSessions(client: Client, output: Output, asJSON: bool) -> int:
    """
    List sessions with the state of their connections.

    A session that ends while it is listed is shown as such; any other error
    of one is shown in its line, and makes the exit code 1.
    """
    from twisted.internet.defer import DeferredSemaphore, gatherResults

    sessions = await client.sessions()
    atOnce = DeferredSemaphore(AT_ONCE)
    asked = [atOnce.run(_stateCoroutine, client, session) for session in sessions]
    states: list[Record] = await gatherResults(asked, consumeErrors=True)
    if asJSON:
        output.json(
            [
                {**session, "connection": state}
                for session, state in zip(sessions, states, strict=True)
            ]
        )
    elif sessions:
        output.table(
            ("SESSION", "NAME", "STATUS", "CONNECTION", "RUNNER", "CREATED"),
            [
                (
                    session.get("id"),
                    session.get("name"),
                    session.get("status"),
                    _words(state),
                    state.get("runner"),
                    moment(field(session, "created", "createdAt")),
                )
                for session, state in zip(sessions, states, strict=True)
            ],
        )
        output.line()
    connected = sum(state.get("status") == "connected" for state in states)
    if not asJSON:
        tail = f", {connected} connected" if sessions else ""
        output.line(f"Found {len(sessions)} session(s){tail}")
    return FAILED if any("error" in state for state in states) else PASSED


def _stateCoroutine(client: Client, session: Record) -> Any:
    from twisted.internet.defer import Deferred

    return Deferred.fromCoroutine(_state(client, session))


async def _state(client: Client, session: Record) -> Record:
    """The state of one session's connection, or why it is not known."""
    from helix_revdial.cli.failures import Refused

    try:
        return (await client.connection(str(session.get("id", "")))).raw
    except Refused as error:
        if error.status == 404:
            return {"status": "gone"}
        return {"status": "unknown", "error": error.short}
    except CommandError as error:
        return {"status": "unknown", "error": str(error)}


def _words(state: Record) -> str:
    status = plain(state.get("status"))
    if "error" in state:
        return f"⚠️ unknown: {plain(state['error'], 80)}"
    if status == "connected":
        return "✅ connected"
    if status == "grace":
        left = state.get("grace_seconds_left")
        return "⚠️ grace" + (f" ({left:.0f} s left)" if isinstance(left, int | float) else "")
    return "❌ not connected" if status == "none" else status


__all__ = ["listSessions", "screenshot", "spectask"]
