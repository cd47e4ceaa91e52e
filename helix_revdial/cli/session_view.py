# -*- test-case-name: tests.cli.test_session_view -*-
"""
How a session's events are shown: as JSON, as lines, or as a picture that changes.

Each view is given the session as it is when it begins, then each event, then told how
it ended.  A picture is for a terminal that can redraw; anywhere else there are lines.
What a task says cannot drive the terminal: it is made harmless, except where lines go into
a file or a pipe, which get it as it is.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from helix_revdial.cli.edge import plain
from helix_revdial.cli.output import Output, duration, harmless, moment, size

if TYPE_CHECKING:
    from rich.console import RenderableType

    from helix_revdial.cli.client import Record
    from helix_revdial.cli.event_reader import SessionEvent

LEVELS = ("debug", "info", "warn", "error")

KEPT_LINES = 200
"""Lines of the log that a picture keeps; it shows as many as there is room for."""

KEPT_MOMENTS = 3
"""Moments that a picture shows, the newest."""

REDRAW = 0.1
"""Seconds between two drawings, at least."""

MAX_LINE = 4000
"""Characters of a line of the log that a terminal is given."""

_STYLES = {
    "completed": "green",
    "failed": "red",
    "cancelled": "yellow",
    "stopped": "yellow",
    "paused": "cyan",
    "running": "bold green",
}

_LEVEL_STYLES = {"error": "red", "warn": "yellow", "debug": "dim"}


class View(Protocol):
    """Shows one session."""

    def begin(self, session: Record) -> None:
        """What is known of the session at first."""

    def event(self, event: SessionEvent) -> None:
        """Something has happened."""

    def trouble(self, text: str) -> None:
        """There is no connection to the server."""

    def back(self) -> None:
        """There is one again."""

    def tick(self) -> None:
        """Time has passed."""

    def end(self) -> None:
        """Nothing more is shown."""


class JSONView:
    """Each event as one line: the server's own JSON."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def begin(self, session: Record) -> None:
        """Nothing: the events tell."""

    def event(self, event: SessionEvent) -> None:
        """One line."""
        self._output.json(event.raw, indent=None)

    def trouble(self, text: str) -> None:
        """One line, not among the events."""
        self._output.notice(f"helix: {text}; trying again")

    def back(self) -> None:
        """One line, not among the events."""
        self._output.notice("helix: connected again")

    def tick(self) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


class JSONLogView(JSONView):
    """Each line of the log as one line of JSON, as the log has it."""

    def __init__(self, output: Output, level: str | None) -> None:
        """
        @param level: of this level or worse; L{None}, of any.
        """
        super().__init__(output)
        self._level = level

    def log(self, line: Record) -> None:
        """One line."""
        self._output.json(line, indent=None)

    def event(self, event: SessionEvent) -> None:
        """A line that the log has got meanwhile."""
        if event.type == "log" and reaches(event.raw, self._level):
            names = ("level", "message", "ts", "seq", "stream")
            self.log({name: event.raw[name] for name in names if name in event.raw})


class LineView(JSONView):
    """
    Each event as a line; a log's message may have more.

    @param prefix: Before each line, where several sessions are shown.
    @param logsOnly: Whether nothing but the log is shown.
    @param level: The least level of the log that is shown.
    @param raw: Whether of the log nothing but the messages is shown.
    """

    def __init__(
        self,
        output: Output,
        *,
        prefix: str = "",
        logsOnly: bool = False,
        level: str | None = None,
        raw: bool = False,
    ) -> None:
        super().__init__(output)
        self._prefix = prefix
        self._logsOnly = logsOnly
        self._level = level
        self._raw = raw

    def event(self, event: SessionEvent) -> None:
        """The lines of one event, if it is to be shown."""
        if event.type == "log":
            if reaches(event.raw, self._level):
                self.log(event.raw)
        elif not self._logsOnly:
            self._output.line(f"{self._prefix}{_time(event.raw)} {told(event)}")

    def log(self, line: Mapping[str, Any]) -> None:
        """One line of the log."""
        text = str(line.get("message", ""))
        safe = self._output.isTerminal
        if self._raw:
            self._output.line(_cut(harmless(text)) if safe else text)
            return
        start = f"{self._prefix}{_time(line)} {plain(line.get('level', 'info'), 20):5} "
        for part in _cut(harmless(text)).split("\n") if safe else [text]:
            self._output.line(start + part)


class LiveView:
    """
    A picture that is redrawn in place: the session's state, how long it runs, the end
    of its log, its newest moments and what it has delivered.

    It draws when it is told something, at most every L{REDRAW} seconds, and has no
    thread of its own.

    @param clock: For the time between two drawings.
    """

    def __init__(self, output: Output, clock: Any) -> None:
        from rich.live import Live

        self._console = output.console()
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )
        self._clock = clock
        self._session: Record = {}
        self._status = "?"
        self._detail = ""
        self._since: datetime | None = None
        self._until: datetime | None = None
        self._lines: deque[tuple[str, str, str]] = deque(maxlen=KEPT_LINES)
        self._moments: deque[str] = deque(maxlen=KEPT_MOMENTS)
        self._deliveries: deque[str] = deque(maxlen=KEPT_MOMENTS)
        self._trouble = ""
        self._started = False
        self._drawing: Any = None

    def begin(self, session: Record) -> None:
        """Take the terminal."""
        self._session = session
        self._status = plain(session.get("status") or "?", 40)
        self._live.start()
        self._started = True
        self._draw()

    def event(self, event: SessionEvent) -> None:
        """Take it up into the picture."""
        raw = event.raw
        at = _moment(raw)
        if self._since is None:
            self._since = at
        if event.type == "log":
            level = plain(raw.get("level", "info"), 20)
            for part in _cut(harmless(str(raw.get("message", "")))).split("\n"):
                self._lines.append((_clock(raw), level, part))
        elif event.status is not None:
            self._status = plain(event.status, 40)
            self._detail = _ending(raw)
            self._until = at if event.status in _ENDED else None
        elif event.type in _TOLD_TWICE:
            return
        elif event.type == "delivery":
            self._deliveries.append(told(event))
        else:
            self._moments.append(f"{_clock(raw)} {told(event)}")
        self._soon()

    def trouble(self, text: str) -> None:
        """Say so below the picture."""
        self._trouble = f"{text}; trying again"
        self._soon()

    def back(self) -> None:
        """Say so no more."""
        self._trouble = ""
        self._soon()

    def tick(self) -> None:
        """Draw how long it has been running."""
        self._soon()

    def end(self) -> None:
        """Give the terminal back; the last picture stays."""
        if self._drawing is not None:
            self._drawing.cancel()
            self._drawing = None
        if self._started:
            self._started = False
            self._draw()
            self._live.stop()

    def _soon(self) -> None:
        if self._drawing is None and self._started:
            self._drawing = self._clock.callLater(REDRAW, self._due)

    def _due(self) -> None:
        self._drawing = None
        self._draw()

    def _draw(self) -> None:
        self._live.update(self._picture(), refresh=True)

    def _picture(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        head = Text(no_wrap=True, overflow="ellipsis")
        head.append(plain(self._session.get("id") or "", 64), "bold")
        head.append("  ")
        head.append(self._status, _STYLES.get(self._status, "bold"))
        head.append(f"{self._detail}  {self._elapsed()}")
        agent = self._session.get("agent")
        if isinstance(agent, dict):
            head.append(f"  {plain(agent.get('type') or '', 64)}", "dim")
        below = [Text(line, no_wrap=True, overflow="ellipsis") for line in self._moments]
        below += [
            Text(line, "bold", no_wrap=True, overflow="ellipsis") for line in self._deliveries
        ]
        if self._trouble:
            below.append(Text(self._trouble, "yellow", no_wrap=True, overflow="ellipsis"))
        room = max(1, self._console.size.height - len(below) - 3)
        lines = []
        for at, level, message in list(self._lines)[-room:]:
            line = Text(no_wrap=True, overflow="ellipsis")
            line.append(f"  {at} ", "dim")
            line.append(message, _LEVEL_STYLES.get(level, ""))
            lines.append(line)
        return Group(head, *lines, *below)

    def _elapsed(self) -> str:
        if self._since is None:
            return ""
        until = self._until or datetime.now(UTC)
        return duration((until - self._since).total_seconds()) or ""


def viewFor(output: Output, clock: Any, *, asJSON: bool) -> View:
    """The view that fits where it is shown."""
    if asJSON:
        return JSONView(output)
    return LiveView(output, clock) if output.redraws else LineView(output)


def reaches(line: Mapping[str, Any], level: str | None) -> bool:
    """Whether a line of the log is at least of that level."""
    if level is None:
        return True
    found = line.get("level")
    return found not in LEVELS or LEVELS.index(str(found)) >= LEVELS.index(level)


def told(event: SessionEvent) -> str:
    """An event as one harmless line, without its time."""
    raw = event.raw
    if event.status is not None:
        return f"status {plain(event.status, 40)}{_ending(raw)}"
    match event.type:
        case "moment":
            note = plain(raw.get("note") or raw.get("label") or "", 200)
            snapshot = plain(raw.get("snapshotId") or "", 64)
            return f"moment {note}" + (f" (snapshot {snapshot})" if snapshot else "")
        case "delivery":
            how = plain(raw.get("mode") or "", 20)
            count = raw.get("size")
            large = f" ({size(count)})" if isinstance(count, int) else ""
            where = plain(raw.get("url") or "", 300)
            if how == "patch":
                where = f"helix session patch {plain(raw.get('sessionId') or '', 64)}"
            return f"delivery {how}{large} {where}".rstrip()
        case "timeline.sessionMoment":
            return f"timeline {plain(raw.get('label') or raw.get('note') or '', 200)}"
        case "timeline.fsSnapshot.created":
            label = plain(raw.get("label") or "", 200)
            return f"snapshot {label} ({plain(raw.get('provider') or '', 20)})"
        case "resync":
            first = plain(raw.get("firstAvailable"), 20)
            return f"resync: the events before number {first} are not kept any more"
        case _:
            rest = {k: v for k, v in raw.items() if k not in ("type", "ts", "seq", "sessionId")}
            return plain(f"{event.type} {json.dumps(rest, ensure_ascii=False)}", 500)


_TOLD_TWICE = ("timeline.sessionMoment", "timeline.fsSnapshot.created")
"""What a picture leaves out: the moment that comes with it says so."""

_ENDED = ("stopped", "completed", "failed", "cancelled")


def _ending(raw: Mapping[str, Any]) -> str:
    parts = []
    if raw.get("exitCode") is not None:
        parts.append(f"exit code {plain(raw['exitCode'], 20)}")
    for name in ("signal", "error", "reason"):
        if raw.get(name):
            parts.append(plain(raw[name], 200))
    return f" ({'; '.join(parts)})" if parts else ""


def _cut(text: str) -> str:
    return text if len(text) <= MAX_LINE else text[: MAX_LINE - 1] + "…"


def _time(raw: Mapping[str, Any]) -> str:
    return plain(moment(raw.get("ts")) or "-", 40).replace(" ", "T")


def _clock(raw: Mapping[str, Any]) -> str:
    found = _moment(raw)
    try:
        return "--:--:--" if found is None else found.astimezone().strftime("%H:%M:%S")
    except (ValueError, OverflowError):
        return "--:--:--"


def _moment(raw: Mapping[str, Any]) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(raw.get("ts")))
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


__all__ = ["LEVELS", "JSONView", "LineView", "LiveView", "View", "reaches", "told", "viewFor"]
