# -*- test-case-name: tests.http.test_framing -*-
"""
Where a request's body ends: sans-I/O readers for the two framings of HTTP/1.1.

h11 reads chunked bodies leniently (a bare LF may end the trailer section, blanks
may follow a size).  Whatever a frontend reads otherwise than we do is a way to
smuggle a request, so these readers take exactly the grammar of RFC 9112, 7.1.
"""

from __future__ import annotations

import re
from typing import Protocol as Structural

MAX_CHUNK_LINE = 256
"""Bytes of a chunk-size line, extensions included."""

MAX_TRAILERS = 8 * 1024
"""Bytes of the trailer section, which is checked and dropped."""

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
_CHUNK_LINE = re.compile(
    rb"([0-9A-Fa-f]{1,15})((?:;" + _TOKEN + rb"(?:=(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?)*)"
)
_TRAILER = re.compile(_TOKEN + rb":[\t \x21-\x7e\x80-\xff]*")


class MalformedBody(Exception):
    """The bytes are no body of this framing; nothing after them means anything."""


class BodyFraming(Structural):
    """Finds the end of one body."""

    complete: bool
    """Whether the body has ended."""

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """
        @return: The payload in C{data}, and what follows the body.
        @raise MalformedBody: at the first byte that cannot be.
        """
        ...


class LengthFraming:
    """A body of as many bytes as C{Content-Length} says."""

    def __init__(self, length: int) -> None:
        self.remaining = length
        self.complete = length == 0

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """See L{BodyFraming.feed}."""
        piece, rest = data[: self.remaining], data[self.remaining :]
        self.remaining -= len(piece)
        self.complete = self.remaining == 0
        return ([piece] if piece else []), rest


class ChunkedFraming:
    """A body in chunks."""

    def __init__(self) -> None:
        self.complete = False
        self._line = bytearray()
        self._inChunk = 0
        self._footer = b""
        self._trailers: int | None = None

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """See L{BodyFraming.feed}."""
        pieces: list[bytes] = []
        position = 0
        while position < len(data) and not self.complete:
            if self._inChunk:
                piece = data[position : position + self._inChunk]
                pieces.append(piece)
                position += len(piece)
                self._inChunk -= len(piece)
                if not self._inChunk:
                    self._footer = b"\r\n"
            elif self._footer:
                if data[position] != self._footer[0]:
                    raise MalformedBody("a chunk is longer than its size says")
                self._footer = self._footer[1:]
                position += 1
            else:
                position = self._readLine(data, position)
        return pieces, data[position:]

    def _readLine(self, data: bytes, position: int) -> int:
        """Take bytes up to and with the next CRLF; act on the line once it is whole."""
        limit = MAX_CHUNK_LINE if self._trailers is None else MAX_TRAILERS - self._trailers
        end = data.find(b"\n", position)
        stop = len(data) if end < 0 else end + 1
        self._line += data[position:stop]
        if len(self._line) > limit:
            raise MalformedBody("a chunk's line or the trailers are too long")
        if end < 0:
            if b"\r" in self._line[:-1]:
                raise MalformedBody("a carriage return within a line")
            return stop
        if not self._line.endswith(b"\r\n"):
            raise MalformedBody("a line ends without a carriage return")
        line = bytes(self._line[:-2])
        self._line.clear()
        if self._trailers is None:
            matched = _CHUNK_LINE.fullmatch(line)
            if matched is None:
                raise MalformedBody("not a chunk size")
            self._inChunk = int(matched[1], 16)
            if not self._inChunk:
                self._trailers = 0
        elif not line:
            self.complete = True
        else:
            if _TRAILER.fullmatch(line) is None:
                raise MalformedBody("not a trailer field")
            self._trailers += len(line) + 2
        return stop
