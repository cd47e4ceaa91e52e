# -*- test-case-name: tests.executor.test_output -*-
"""
A task's output as messages: whole lines, bounded, valid text.  Sans-I/O.

A line ends with LF; a CR before it goes with it, and one within it stays, since what a
terminal would overwrite has been said all the same.  A line that is longer than a message
may be is cut between two characters.  Bytes that are no UTF-8 become U+FFFD.  NUL, which
databases do not take, becomes U+FFFD too.
"""

from __future__ import annotations

from helix_revdial.sessions.executor import MAX_MESSAGE


class OutputLines:
    """
    One stream.

    @ivar waiting: Whether there is a line that has not ended.
    """

    def __init__(self, limit: int = MAX_MESSAGE) -> None:
        """
        @param limit: Bytes of a message at most.
        """
        self._limit = limit
        self._buffer = b""

    @property
    def waiting(self) -> bool:
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[str]:
        """
        Take output.

        @return: The messages that are complete.
        """
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        found = [message for line in lines for message in self._cut(line, whole=True)]
        if len(self._buffer) > self._limit:
            found += self._cut(self._buffer, whole=False)
        return found

    def flush(self) -> list[str]:
        """What there is of a line that does not end: for now, or for ever."""
        line, self._buffer = self._buffer, b""
        return self._cut(line, whole=True) if line else []

    def _cut(self, line: bytes, *, whole: bool) -> list[str]:
        if whole:
            line = line.removesuffix(b"\r")
        found = []
        while len(line) > self._limit:
            end = self._limit
            # Not through a character: its later bytes begin with the bits 10.
            while end > self._limit - 4 and line[end] & 0xC0 == 0x80:
                end -= 1
            found.append(_text(line[:end]))
            line = line[end:]
        if whole:
            found.append(_text(line))
        else:
            self._buffer = line
        # What is no UTF-8 grows by becoming U+FFFD: three bytes for one.
        return [piece for message in found for piece in _bounded(message, self._limit)]


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").replace("\0", "�")


def _bounded(message: str, limit: int) -> list[str]:
    if len(message.encode("utf-8")) <= limit:
        return [message]
    half = len(message) // 2
    return _bounded(message[:half], limit) + _bounded(message[half:], limit)
