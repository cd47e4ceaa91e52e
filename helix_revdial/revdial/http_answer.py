# -*- test-case-name: tests.revdial.test_exchange -*-
"""
Reading the answer to one request, without a socket.

L{AnswerReader} takes bytes and gives the answer that counts, past those of class 1xx;
what follows its head, or its body, is the caller's.  What an answer means is
L{helix_revdial.revdial.exchange}'s.

An answer that switches protocols, written as any server writes it, is read without
h11 (L{_SWITCH}): there is one for each dial, and h11 costs more than all the rest of
the exchange.  Everything else is h11's, which then gets all the bytes from the first on.

Invariants:

  - What is read without h11 is read as h11 would.
  - Head, body and the answers before it are limited; what is beyond is a
    L{MalformedAnswer}, or, of a body, not kept.
  - No error text repeats a header's value.
"""

from __future__ import annotations

import re
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

_SWITCHES = b"HTTP/1.1 101 "

_SWITCH = re.compile(
    rb"HTTP/1\.1 101 ([\x20-\x7e]*)\r\n"
    rb"((?:[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}: ?[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?\r\n){1,64})"
    rb"\r\n"
)
"""A head that needs no h11: no folded lines, no empty values, no blanks at the ends."""

_SETTINGS = b"\x04\0\0\0\0\0"
"""What follows the length of the frame with which HTTP/2 begins (RFC 9113, 3.4 and 6.5)."""

_BARE_LF = re.compile(rb"(?<!\r)\n")

_FRAMING = frozenset({b"content-length", b"transfer-encoding"})

Headers = tuple[tuple[bytes, bytes], ...]


def requestHead(method: bytes, target: str, headers: Headers | list[tuple[bytes, bytes]]) -> bytes:
    """
    A request's head.

    @param target: What stands between the method and the version, checked already.
    @param headers: Its fields, checked already.
    """
    lines = [b"%s %s HTTP/1.1" % (method, target.encode("ascii"))]
    lines.extend(b"%s: %s" % field for field in headers)
    return b"\r\n".join(lines) + b"\r\n\r\n"


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

    def __init__(self, head: bytes, method: bytes = b"GET") -> None:
        """
        @param head: The request's head.
        @param method: Its method, which decides where an answer ends.
        """
        self.head = head
        self.answer: Answer | None = None
        self.body = b""
        self.complete = False
        self._method = method
        self._begin = b""
        self._connection: h11.Connection | None = None

    def feed(self, data: bytes) -> None:
        """
        Take bytes of the answer; none, for the end of the connection.

        @raise MalformedAnswer: It is not HTTP.
        """
        connection = self._connection
        if connection is not None:
            self._begin += data[: len(DIRECT) - len(self._begin)]
            self._give(connection, data)
            return
        if self.answer is not None:
            return
        self._begin += data
        if data and self._readSwitch():
            return
        begin, self._begin = self._begin, self._begin[: len(DIRECT)]
        connection = self._connection = self._asked()
        if begin:
            self._give(connection, begin)
        if not data:
            self._give(connection, b"")

    def _readSwitch(self) -> bool:
        """
        Read a head that switches, without h11.

        @return: Whether it is read, or may yet come.
        """
        begin = self._begin
        if not begin.startswith(_SWITCHES[: len(begin)]):
            return False
        end = begin.find(b"\r\n\r\n")
        if end < 0:
            # Where lines end in LF alone, the head may be whole, to h11.
            return len(begin) < MAX_HEAD and _BARE_LF.search(begin) is None
        matched = _SWITCH.match(begin)
        if matched is None or b"\r\nupgrade:" not in self.head.lower():
            return False
        headers = tuple(_field(line) for line in matched[2].split(b"\r\n")[:-1])
        if any(name in _FRAMING for name, _ in headers):
            return False
        reason, rest = matched[1].decode("ascii"), begin[end + 4 :]
        self.answer = Answer(101, reason, headers, rest, begin.startswith(DIRECT))
        return True

    def _give(self, connection: h11.Connection, data: bytes) -> None:
        try:
            connection.receive_data(data)
            if self.answer is None:
                self._readHead(connection)
        except h11.RemoteProtocolError:
            if data[3:9] == _SETTINGS:
                raise MalformedAnswer(
                    "what answers speaks HTTP/2 alone, and upgrades need HTTP/1.1"
                ) from None
            raise MalformedAnswer("the answer to the upgrade is not HTTP/1.1") from None

    def _asked(self) -> h11.Connection:
        """An h11 connection that has sent such a request as ours."""
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        fields = [(b"Host", b"host")]
        if b"\r\nupgrade:" in self.head.lower():
            fields += [(b"Connection", b"Upgrade"), (b"Upgrade", b"any")]
        connection.send(h11.Request(method=self._method, target=b"/", headers=fields))
        connection.send(h11.EndOfMessage())
        return connection

    def _readHead(self, connection: h11.Connection) -> None:
        for _ in range(MAX_INFORMATIONAL + 1):
            event = connection.next_event()
            if isinstance(event, h11.InformationalResponse) and event.status_code != 101:
                continue
            if isinstance(event, h11.InformationalResponse | h11.Response):
                self.answer = Answer(
                    event.status_code,
                    bytes(event.reason).decode("latin-1"),
                    tuple((bytes(name), bytes(value)) for name, value in event.headers),
                    connection.trailing_data[0],
                    self._begin == DIRECT,
                )
            return
        raise MalformedAnswer("the server answered 1xx again and again")

    def readBody(self) -> None:
        """
        Read what there is of a refusal's body; a faulty body ends where its fault is.
        """
        connection = self._connection
        if connection is None:
            self.complete = True
            return
        try:
            while not self.complete:
                event = connection.next_event()
                if isinstance(event, h11.Data):
                    self.body = (self.body + bytes(event.data))[:MAX_BODY]
                    self.complete = len(self.body) == MAX_BODY
                elif event is h11.NEED_DATA:
                    return
                else:
                    self.complete = True
        except h11.RemoteProtocolError:
            self.complete = True


def _field(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return name.lower(), value.strip(b" ")


__all__ = [
    "DIRECT",
    "MAX_BODY",
    "Answer",
    "AnswerReader",
    "Headers",
    "MalformedAnswer",
    "firstHeader",
    "requestHead",
]
