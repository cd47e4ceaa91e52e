# -*- test-case-name: tests.cli.test_event_stream -*-
"""
Server-sent events, read from bytes.

The rules are those of the HTML standard's "Interpreting an event stream", with one
difference: what is larger than L{MAX_EVENT} is an error and not memory.  No socket,
no clock: whatever the bytes are cut into, the events are the same.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass

MAX_EVENT = 4 * 1024 * 1024
"""Characters of one event, its field names included; a server's have 256 KiB as JSON."""

_BOM = "\ufeff"


class EventTooLarge(ValueError):
    """An event, or a line of one, has more than L{MAX_EVENT} characters."""


@dataclass(frozen=True)
class ServerEvent:
    """
    One event.

    @ivar type: C{message} where the server gave none.
    @ivar id: The last id that the server gave, with this event or before it.
    """

    type: str
    data: str
    id: str


class EventParser:
    """
    Makes events of the bytes of one answer.

    @ivar retry: Milliseconds after which the server wants its client back; L{None}
        where it did not say.
    """

    def __init__(self, lastId: str = "") -> None:
        """
        @param lastId: What the last answer left as the last id.
        """
        self.retry: int | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._scanned = 0
        self._begun = False
        self._id = lastId
        self._type = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, data: bytes) -> list[ServerEvent]:
        """
        Take more bytes.

        @return: The events that they complete.  What the end of the answer leaves
            incomplete is none.
        @raise EventTooLarge: The answer cannot be read any further.
        """
        text = self._decoder.decode(data)
        if not self._begun and text:
            self._begun = True
            text = text.removeprefix(_BOM)
        self._text += text
        events: list[ServerEvent] = []
        start = 0
        while (end := self._lineEnd(max(start, self._scanned))) is not None:
            line, after = self._text[start : end[0]], end[1]
            start = after
            self._line(line, events)
        self._text = self._text[start:]
        # A carriage return at the end waits for what may be its line feed.
        self._scanned = max(0, len(self._text) - 1)
        if self._size + len(self._text) > MAX_EVENT:
            raise EventTooLarge(f"an event has more than {MAX_EVENT:,} characters")
        return events

    def _lineEnd(self, start: int) -> tuple[int, int] | None:
        """Where the next line ends, and where the one after it begins."""
        text = self._text
        feed = text.find("\n", start)
        carriage = text.find("\r", start, None if feed < 0 else feed)
        if carriage < 0:
            return None if feed < 0 else (feed, feed + 1)
        if carriage + 1 == len(text):
            return None
        return carriage, carriage + (2 if text[carriage + 1] == "\n" else 1)

    def _line(self, line: str, events: list[ServerEvent]) -> None:
        if not line:
            if self._data:
                kind = self._type or "message"
                events.append(ServerEvent(kind, "\n".join(self._data), self._id))
            self._type, self._data, self._size = "", [], 0
            return
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
            self._size += len(value) + 1
            if self._size > MAX_EVENT:
                raise EventTooLarge(f"an event has more than {MAX_EVENT:,} characters")
        elif name == "event":
            self._type = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit() and len(value) < 10:
            self.retry = int(value)


__all__ = ["MAX_EVENT", "EventParser", "EventTooLarge", "ServerEvent"]
