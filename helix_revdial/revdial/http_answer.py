# -*- test-case-name: tests.revdial.test_exchange -*-
"""
Reading the answer to one request, without a socket.

L{AnswerReader} takes bytes and gives the answer that counts, past those of class 1xx;
what follows its head, or its body, is the caller's.  What an answer means is
L{helix_revdial.revdial.exchange}'s.

Invariants:

  - Head, body and the answers before it are limited; what is beyond is a
    L{MalformedAnswer}, or, of a body, not kept.
  - No error text repeats a header's value.
"""

from __future__ import annotations

from dataclasses import dataclass

import h11

MAX_HEAD = 16 * 1024
"""Bytes of an answer's head; a longer one is no answer."""

MAX_BODY = 4096
"""Bytes of a refusal's body that are kept."""

MAX_INFORMATIONAL = 8
"""Answers of class 1xx that may come before the one that counts."""

DIRECT = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: revdial\r\nConnection: Upgrade\r\n"
"""
How our server begins its consent to a raw upgrade.  Whatever forwards HTTP writes
heads of its own: fields in another order, other letters, fields of its own.
"""

Headers = tuple[tuple[bytes, bytes], ...]


class MalformedAnswer(Exception):
    """What came back is not an answer to the request: not HTTP, or a wrong switch."""


def firstHeader(headers: Headers, name: bytes) -> bytes | None:
    """The first value of the field C{name} (in lower case), or C{None}."""
    for key, value in headers:
        if key == name:
            return value
    return None


@dataclass(frozen=True, slots=True)
class Answer:
    """
    The head of an answer.

    @ivar headers: Field names in lower case.
    @ivar rest: The bytes that came after the head; of a refusal, none.
    @ivar direct: Whether the head is as our server wrote it: nothing that forwards
        HTTP is in between.
    """

    status: int
    reason: str
    headers: Headers
    rest: bytes
    direct: bool = False

    def head(self) -> bytes:
        """This head as bytes again, for a carrier that reads it itself."""
        lines = [b"HTTP/1.1 %d %s" % (self.status, self.reason.encode("latin-1"))]
        lines.extend(name + b": " + value for name, value in self.headers)
        return b"\r\n".join(lines) + b"\r\n\r\n"


class AnswerReader:
    """
    Reads one answer, sans-I/O.

    @ivar head: The request's bytes.
    @ivar answer: The answer's head once it is there.
    @ivar body: What there is of a refusal's body.
    @ivar complete: Whether C{body} is whole, or as long as it may be.
    """

    def __init__(self, request: h11.Request) -> None:
        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        self.head = self._connection.send(request) or b""
        self._connection.send(h11.EndOfMessage())
        self.answer: Answer | None = None
        self.body = b""
        self.complete = False
        self._begin = b""

    def feed(self, data: bytes) -> None:
        """
        Take bytes of the answer; none, for the end of the connection.

        @raise MalformedAnswer: It is not HTTP.
        """
        try:
            self._begin += data[: len(DIRECT) - len(self._begin)]
            self._connection.receive_data(data)
            if self.answer is None:
                self._readHead()
        except h11.RemoteProtocolError:
            raise MalformedAnswer("the answer to the upgrade is not HTTP/1.1") from None

    def _readHead(self) -> None:
        for _ in range(MAX_INFORMATIONAL + 1):
            event = self._connection.next_event()
            if isinstance(event, h11.InformationalResponse) and event.status_code != 101:
                continue
            if isinstance(event, h11.InformationalResponse | h11.Response):
                self.answer = Answer(
                    event.status_code,
                    bytes(event.reason).decode("latin-1"),
                    tuple((bytes(name), bytes(value)) for name, value in event.headers),
                    self._connection.trailing_data[0],
                    self._begin == DIRECT,
                )
            return
        raise MalformedAnswer("the server answered 1xx again and again")

    def readBody(self) -> None:
        """
        Read what there is of a refusal's body; a faulty body ends where its fault is.
        """
        try:
            while not self.complete:
                event = self._connection.next_event()
                if isinstance(event, h11.Data):
                    self.body = (self.body + bytes(event.data))[:MAX_BODY]
                    self.complete = len(self.body) == MAX_BODY
                elif event is h11.NEED_DATA:
                    return
                else:
                    self.complete = True
        except h11.RemoteProtocolError:
            self.complete = True


__all__ = [
    "DIRECT",
    "MAX_BODY",
    "Answer",
    "AnswerReader",
    "Headers",
    "MalformedAnswer",
    "firstHeader",
]
