# -*- test-case-name: tests.cli.test_session -*-
"""
C{helix session logs}, C{events} and C{attach}: what a session says, and what happens to it.
"""

from __future__ import annotations

import re
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from helix_revdial.cli.edge import PASSED
from helix_revdial.cli.invocation import (
    Duration,
    Invocation,
    commonFlags,
    jsonFlag,
    passInvocation,
)
from helix_revdial.cli.session_group import (
    following,
    oneSession,
    withSession,
)

if TYPE_CHECKING:
    from helix_revdial.cli.task_api import TaskAPI

_LEVELS = ("debug", "info", "warn", "error")


@click.command("logs")
@oneSession
@click.option("--follow", "-f", is_flag=True, help="Go on until the session has ended.")
@click.option("--tail", type=click.IntRange(1, 10_000), metavar="N", help="The last N lines.")
@click.option("--since", metavar="TIME|DURATION", help="Such as 2026-01-02T03:04:05Z, or 10m.")
@click.option("--level", type=click.Choice(_LEVELS), help="This level and what is worse.")
@click.option("--raw", is_flag=True, help="Messages only.")
@following
@commonFlags
@jsonFlag
@passInvocation
def logsCommand(
    invocation: Invocation,
    name: str | None,
    follow: bool,
    tail: int | None,
    since: str | None,
    level: str | None,
    raw: bool,
    patience: float,
    cancelOnInterrupt: bool,
    asJSON: bool,
) -> int:
    """Print what a session's agent has said.

    With --json a line is an object; with --follow the exit code is the
    session's end.
    """
    query = [("since", _since(since))] if since else []
    query += [("level", level)] if level else []

    async def doing(reactor: Any, api: TaskAPI, found: str) -> int:
        from helix_revdial.cli.following import follow as followSession
        from helix_revdial.cli.session_view import JSONLogView, LineView

        output = invocation.output
        view = (
            JSONLogView(output, level)
            if asJSON
            else LineView(output, logsOnly=True, level=level, raw=raw)
        )
        last = (await api.session(found)).get("lastSeq") if follow else None
        # What had happened before the log was asked for is in it, or was not wanted.
        after = last if isinstance(last, int) else 0
        async with aclosing(api.logs(found, query, tail)) as pages:
            async for page in pages:
                for line in page:
                    view.log(line)
                    after = max(after, line["seq"] if isinstance(line.get("seq"), int) else 0)
        if not follow:
            return PASSED
        return await followSession(
            reactor,
            api,
            output,
            found,
            view,
            after=after,
            patience=patience,
            cancelOnInterrupt=cancelOnInterrupt,
        )

    return withSession(invocation, name, doing)


@click.command("events")
@oneSession
@click.option("--follow", "-f", is_flag=True, help="Go on until the session has ended.")
@click.option(
    "--since",
    "after",
    type=click.IntRange(0, 2**53),
    default=0,
    metavar="N",
    help="Only what comes after the event with this number.",
)
@following
@commonFlags
@jsonFlag
@passInvocation
def eventsCommand(
    invocation: Invocation,
    name: str | None,
    follow: bool,
    after: int,
    patience: float,
    cancelOnInterrupt: bool,
    asJSON: bool,
) -> int:
    """Print a session's events, each on a line.

    With --json a line is the server's own object. A stream that breaks off is
    resumed where it did: each event comes once. With --follow the exit code is
    the session's end.
    """

    async def doing(reactor: Any, api: TaskAPI, found: str) -> int:
        from helix_revdial.cli.following import follow as followSession
        from helix_revdial.cli.session_view import JSONView, LineView

        output = invocation.output
        view = JSONView(output) if asJSON else LineView(output)
        if follow:
            return await followSession(
                reactor,
                api,
                output,
                found,
                view,
                after=after,
                patience=patience,
                cancelOnInterrupt=cancelOnInterrupt,
            )
        await _soFar(api, found, after, patience, view)
        return PASSED

    return withSession(invocation, name, doing)


@click.command("attach")
@oneSession
@following
@commonFlags
@jsonFlag
@passInvocation
def attachCommand(
    invocation: Invocation,
    name: str | None,
    patience: float,
    cancelOnInterrupt: bool,
    asJSON: bool,
) -> int:
    """Watch a session until it has ended.

    At a terminal as a picture, anywhere else as lines. Ctrl-C leaves the
    session running.
    """

    async def doing(reactor: Any, api: TaskAPI, found: str) -> int:
        from helix_revdial.cli.following import follow as followSession
        from helix_revdial.cli.session_view import viewFor

        output = invocation.output
        view = viewFor(output, reactor, asJSON=asJSON)
        return await followSession(
            reactor,
            api,
            output,
            found,
            view,
            patience=patience,
            cancelOnInterrupt=cancelOnInterrupt,
        )

    return withSession(invocation, name, doing)


async def _soFar(api: TaskAPI, session: str, after: int, patience: float, view: Any) -> None:
    """Show the events that there are now."""
    from helix_revdial.cli.event_reader import EventReader

    last = (await api.session(session)).get("lastSeq")
    if not isinstance(last, int) or last <= after:
        return
    reader = EventReader(
        api.client,
        session,
        after=after,
        patience=patience,
        onTrouble=view.trouble,
        onBack=view.back,
    )
    async with aclosing(reader.events()) as events:
        async for event in events:
            view.event(event)
            if event.seq >= last:
                return


def _since(text: str) -> str:
    """A moment, or how long ago it was, as the server takes it."""
    if re.fullmatch(r"[0-9.]+[smhd]?", text):
        seconds = Duration().convert(text, None, None)
        return datetime.fromtimestamp(datetime.now(UTC).timestamp() - seconds, UTC).isoformat()
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(
            "--since: expected a time such as 2026-01-02T03:04:05Z, or 10m"
        ) from None
    return found.astimezone(UTC).isoformat()


__all__ = ["attachCommand", "eventsCommand", "logsCommand"]
