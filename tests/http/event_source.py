"""A conforming parser of server-sent events, for tests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Received:
    """One event, as C{EventSource} dispatches it."""

    type: str
    data: str
    id: str


class EventSource:
    """
    The parser of the WHATWG HTML standard, section 9.2.6, for bytes as they come.

    @ivar events: What was dispatched.
    @ivar comments: The text of each comment.
    @ivar retry: The reconnection time that was last told, milliseconds.
    """

    def __init__(self) -> None:
        self.events: list[Received] = []
        self.comments: list[str] = []
        self.retry: int | None = None
        self.lastId = ""
        self._bytes = b""
        self._begun = False
        self._data: list[str] = []
        self._type = ""
        self._id = ""

    def feed(self, data: bytes) -> None:
        self._bytes += data
        while True:
            # A CR at the very end may be half of a CRLF.
            found = next(
                (
                    (at, 2 if self._bytes[at : at + 2] == b"\r\n" else 1)
                    for at, byte in enumerate(self._bytes)
                    if byte == 10 or (byte == 13 and at + 1 < len(self._bytes))
                ),
                None,
            )
            if found is None:
                return
            line, self._bytes = self._bytes[: found[0]], self._bytes[sum(found) :]
            if not self._begun:
                self._begun = True
                line = line.removeprefix(b"\xef\xbb\xbf")
            self._line(line.decode("utf-8", "replace"))

    def _line(self, line: str) -> None:
        if not line:
            self._dispatch()
        elif line.startswith(":"):
            self.comments.append(line[1:].removeprefix(" "))
        else:
            name, colon, value = line.partition(":")
            value = value.removeprefix(" ") if colon else ""
            if name == "event":
                self._type = value
            elif name == "data":
                self._data.append(value)
            elif name == "id" and "\0" not in value:
                self._id = value
            elif name == "retry" and value.isascii() and value.isdigit():
                self.retry = int(value)

    def _dispatch(self) -> None:
        self.lastId = self._id
        data, self._data = self._data, []
        type_, self._type = self._type, ""
        if data:
            self.events.append(Received(type_ or "message", "\n".join(data), self.lastId))
