# -*- test-case-name: tests.cli.test_status -*-
"""
C{helix revdial status}: every connection of the server, once or watched.

On a terminal C{--watch} redraws one table in place; anywhere else each look is
written as plain lines, each with its time and its kind first, so that a log or
C{grep} can follow.  A server that goes away while it is watched is reported
and asked again; one that refuses ends the command.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from helix_revdial.cli.edge import PASSED, CommandError, plain
from helix_revdial.cli.invocation import Invocation, Timeout, jsonFlag, passInvocation
from helix_revdial.cli.output import Output, cell, columnLines, duration, richTable, size

if TYPE_CHECKING:
    from rich.console import RenderableType

    from helix_revdial.cli.client import Client, Reply, RunnerTarget, Status

INTERVAL = 2.0
"""Seconds between two looks."""

COLUMNS = (
    "RUNNER",
    "CARRIER",
    "ADDRESS",
    "CONNECTED",
    "HEARD",
    "RTT ms",
    "STREAMS",
    "IN",
    "OUT",
    "PENDING",
    "GENERATION",
    "TARGETS",
    "FEATURES",
)
GRACE_COLUMNS = ("IN GRACE", "SECONDS LEFT", "PENDING", "GENERATION")


@click.group()
def revdial() -> None:
    """The server's connections to runners (for administrators)."""


@revdial.command("status")
@click.option("--watch", "-w", is_flag=True, help="Look again and again until Ctrl-C.")
@click.option(
    "--interval", type=Timeout(), default=INTERVAL, show_default=True, help="Seconds, for --watch."
)
@jsonFlag
@passInvocation
def statusCommand(invocation: Invocation, watch: bool, interval: float, asJSON: bool) -> int:
    """Show every connected runner, and those in their grace period."""

    async def command(reactor: Any, client: Client) -> int:
        if watch:
            return await watchStatus(client, reactor, invocation.output, interval, asJSON)
        return await showStatus(client, invocation.output, asJSON)

    return invocation.ask(command)


async def showStatus(client: Client, output: Output, asJSON: bool) -> int:
    """One look, as tables or as the server's own JSON."""
    reply = await client.status()
    if asJSON:
        output.json(reply.raw)
        return PASSED
    status = reply.value
    now = datetime.now(UTC).timestamp()
    if output.isTerminal:
        output.show(_rendered(status, now, output.console().width))
    else:
        for line in _lines(status, now):
            output.line(line)
    return PASSED


async def watchStatus(
    client: Client, clock: Any, output: Output, interval: float, asJSON: bool
) -> int:
    """
    Look every C{interval} seconds, until cancelled.

    @raise CommandError: The first look failed, or the server refuses; that it
        is away for a while does not end the watch.
    """
    from helix_revdial.cli.failures import Refused

    live = output.redraws and not asJSON
    with _Live(output) if live else nullcontext() as screen:
        seen = False
        async for _ in _ticks(clock, interval):
            moment = datetime.now(UTC)
            stamp = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
            try:
                reply = await client.status()
            except CommandError as error:
                if not seen or (isinstance(error, Refused) and error.status < 500):
                    raise
                if screen is not None:
                    screen.trouble(f"{stamp}  {plain(error)}")
                elif asJSON:
                    output.notice(f"helix: {plain(error)}")
                else:
                    output.line(f"{stamp} error {plain(error)}")
                continue
            seen = True
            if screen is not None:
                screen.show(_rendered(reply.value, moment.timestamp(), output.console().width))
            elif asJSON:
                output.json({"time": stamp, **reply.raw}, indent=None)
            else:
                for line in _watched(reply, stamp):
                    output.line(line)
    return PASSED


async def _ticks(clock: Any, interval: float) -> AsyncIterator[None]:
    from twisted.internet.task import deferLater

    while True:
        yield
        await deferLater(clock, interval)


class _Live:
    """
    A table that is redrawn in place.

    It draws when told to and has no thread of its own.
    """

    def __init__(self, output: Output) -> None:
        from rich.live import Live

        self._live = Live(
            console=output.console(),
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="ellipsis",
        )
        self._last: RenderableType = ""

    def __enter__(self) -> _Live:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def show(self, view: RenderableType) -> None:
        """Draw this in place of what was there."""
        self._last = view
        self._live.update(view, refresh=True)

    def trouble(self, text: str) -> None:
        """Keep what was there, and say below it what is wrong now."""
        from rich.console import Group
        from rich.text import Text

        self._live.update(Group(self._last, Text(f"\n⚠️ {text}; trying again")), refresh=True)


def _totals(status: Status) -> str:
    return (
        f"Connections: {status.activeConnections:,} active, {status.gracePeriodEntries:,} "
        f"in grace period, {status.pendingDialsTotal:,} dials waiting"
    )


def _rows(status: Status, now: float) -> list[tuple[object, ...]]:
    """One row per connection; a server that gives no details gives names at least."""
    if not status.details:
        return [(key, *([None] * (len(COLUMNS) - 1))) for key in status.connections]
    return [
        (
            detail.key,
            detail.carrier,
            detail.remoteAddress,
            duration(_age(detail.connectedSince, now)),
            duration(detail.lastHeardSeconds),
            detail.roundTripMs,
            detail.openStreams,
            size(detail.bytesIn),
            size(detail.bytesOut),
            detail.pendingDials,
            detail.generation,
            None if detail.targets is None else [_target(each) for each in detail.targets],
            detail.features,
        )
        for detail in status.details
    ]


def _target(target: RunnerTarget) -> str:
    """A target, C{*} at the default one, and whom it is for where that is not its owner."""
    text = target.name + ("*" if target.default else "")
    return text if target.expose in (None, "owner") else f"{text}({target.expose})"


def _age(since: str | float | None, now: float) -> float | None:
    """Seconds since a time; the two clocks need not agree, so never less than 0."""
    if since is None:
        return None
    if isinstance(since, str):
        try:
            when = datetime.fromisoformat(since)
            since = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            return None
    return max(0.0, now - since)


def _graceRows(status: Status) -> list[tuple[object, ...]]:
    return [
        (entry.key, entry.secondsLeft, entry.pendingDials, entry.generation)
        for entry in status.grace
    ]


def _lines(status: Status, now: float) -> list[str]:
    """The tables as plain lines."""
    lines: list[str] = []
    for columns, rows in ((COLUMNS, _rows(status, now)), (GRACE_COLUMNS, _graceRows(status))):
        if rows:
            lines += [*columnLines(columns, rows), ""]
    return [*lines, _totals(status)]


def _rendered(status: Status, now: float, width: int) -> RenderableType:
    """The tables for a terminal of that many columns."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for columns, rows in ((COLUMNS, _rows(status, now)), (GRACE_COLUMNS, _graceRows(status))):
        if rows:
            parts += [richTable(columns, rows, width), Text("")]
    return Group(*parts, Text(_totals(status)))


def _watched(reply: Reply[Status], stamp: str) -> list[str]:
    """One look as lines for a log: the totals, then each connection, then each in grace."""
    status = reply.value
    lines = [
        f"{stamp} total active={status.activeConnections} grace={status.gracePeriodEntries} "
        f"pending={status.pendingDialsTotal}"
    ]
    known = {detail.key for detail in status.details}
    for detail in status.details:
        lines.append(
            f"{stamp} connected {plain(detail.key)} carrier={cell(detail.carrier)} "
            f"address={cell(detail.remoteAddress)} heard={cell(duration(detail.lastHeardSeconds))} "
            f"rtt_ms={cell(detail.roundTripMs)} streams={detail.openStreams} "
            f"in={detail.bytesIn} out={detail.bytesOut} pending={detail.pendingDials} "
            f"generation={'-' if detail.generation is None else detail.generation}"
        )
    lines += [f"{stamp} connected {plain(key)}" for key in status.connections if key not in known]
    lines += [
        f"{stamp} grace {plain(entry.key)} left={cell(entry.secondsLeft)} "
        f"pending={entry.pendingDials}"
        for entry in status.grace
    ]
    return lines


__all__ = ["revdial", "showStatus", "watchStatus"]
