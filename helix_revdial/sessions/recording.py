# -*- test-case-name: tests.sessions.test_recording -*-
"""
A session's output as a recording of a terminal: asciicast, version 2.

One line of JSON each: the head, then what was printed and when, in seconds since the
begin (C{"o"}), and markers (C{"m"}) for the moments.  Made of the session's events, so
that it is ordered as they are, and has no secret that they have not; the time never
goes back, although clocks do.  Sans I/O: L{Recording} is given events, and gives bytes.

Format: docs.asciinema.org, "asciicast v2".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from helix_revdial.sessions.events import Event

COLUMNS: Final = 120

ROWS: Final = 40

TYPES: Final = ("log", "timeline.sessionMoment")
"""The events that a recording is made of."""

_CUT: Final = (
    "\r\n\x1b[7m the recording is longer than may be shown: the rest is left out \x1b[0m\r\n"
)


class Recording:
    """
    One recording.

    @ivar full: whether nothing more goes into it.
    """

    def __init__(self, title: str, begin: float, *, maxBytes: int) -> None:
        """
        @param begin: seconds since the epoch.
        @param maxBytes: how long it may be, but for one last line.
        """
        self.full = False
        self._title = title
        self._begin = begin
        self._left = maxBytes
        self._last = 0.0

    def head(self) -> bytes:
        """The first line."""
        head = {
            "version": 2,
            "width": COLUMNS,
            "height": ROWS,
            "timestamp": int(self._begin),
            "title": self._title,
        }
        return msgspec.json.encode(head) + b"\n"

    def add(self, events: Iterable[Event]) -> bytes:
        """
        What comes next.

        @param events: of the types L{TYPES}, in order.
        """
        lines: list[bytes] = []
        for event in events:
            if self.full:
                break
            kind, text = _shown(event)
            self._last = max(self._last, round(event.at - self._begin, 3))
            line = msgspec.json.encode([self._last, kind, text]) + b"\n"
            self._left -= len(line)
            if self._left < 0:
                self.full = True
                line = msgspec.json.encode([self._last, "o", _CUT]) + b"\n"
            lines.append(line)
        return b"".join(lines)


def _shown(event: Event) -> tuple[str, str]:
    """The code of a line, and its text."""
    if event.type != "log":
        return "m", str(event.data.get("label", ""))
    text = str(event.data.get("message", "")).replace("\r\n", "\n").replace("\n", "\r\n")
    if event.data.get("stream") == "system":
        # The host speaks, not the program.
        text = f"\x1b[2m{text}\x1b[0m"
    return "o", text + "\r\n"


__all__ = ["TYPES", "Recording"]
