"""
What the stand-ins of the Go programs have in common: frames as gorilla/websocket
writes them, connections as Go closes them, lines as C{encoding/json} makes them.

The programs are in L{tests.integration.go_agent} and L{tests.integration.go_server}.
They do on the wire what the real ones do, faults included;
L{tests.integration.test_go_wire} holds them to recordings, byte by byte.  They share
no code with C{helix_revdial}.

What the eras differ in:

  - November 2025 (L{ERA_2025}): the agent's control connection is an HTTP request
    that the server answers with C{200}, then lines.  What comes in one read with
    the head is lost.  The server's dials carry no request id: whichever dial
    waits gets the connection, or the error, that comes.
  - August 2026 (L{ERA_2026}): the control connection is a WebSocket with pings;
    every dial has its request id.

Both write their data as gorilla/websocket does, and close TCP without a close
frame when a stream ends.
"""

from __future__ import annotations

import json
import os
from base64 import b64encode
from collections.abc import Callable, Iterator
from hashlib import sha1
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

ERA_2025 = "2025-11"
ERA_2026 = "2026-08"

TOKEN = "test-token"

COPY = 32 * 1024
"""What Go's C{io.Copy} reads at a time; each read becomes one message."""

CLIENT_BUFFER = 4096
"""Payload bytes of a frame that gorilla's client sends."""

SERVER_BUFFER = 4096 - 14
"""The same of its server, whose buffer holds the head too."""

UNBUFFERED = 2 * 4096
"""A server's write of more than so many bytes goes out as it is, in one frame."""

BINARY, CLOSE, PING, PONG = 2, 8, 9, 10


def frame(opcode: int, payload: bytes, *, final: bool = True, mask: bool) -> bytes:
    """One frame."""
    length = len(payload)
    second = 0x80 if mask else 0
    if length < 126:
        head = bytes([second | length])
    elif length < 65536:
        head = bytes([second | 126]) + length.to_bytes(2, "big")
    else:
        head = bytes([second | 127]) + length.to_bytes(8, "big")
    head = bytes([(0x80 if final else 0) | opcode]) + head
    if not mask:
        return head + payload
    key = os.urandom(4)
    return head + key + masked(payload, key)


def masked(payload: bytes, key: bytes) -> bytes:
    """C{payload} with the mask put on, or taken off."""
    length = len(payload)
    pad = int.from_bytes((key * (length // 4 + 1))[:length], "big")
    return (int.from_bytes(payload, "big") ^ pad).to_bytes(length, "big")


def message(data: bytes, *, mask: bool) -> bytes:
    """One write of gorilla's, in its frames."""
    if not mask and len(data) > UNBUFFERED:
        return frame(BINARY, data, final=False, mask=False) + frame(0, b"", mask=False)
    size = CLIENT_BUFFER if mask else SERVER_BUFFER
    pieces = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
    last = len(pieces) - 1
    return b"".join(
        frame(0 if number else BINARY, piece, final=number == last, mask=mask)
        for number, piece in enumerate(pieces)
    )


class FrameReader:
    """Takes a peer's frames apart: opcode, whether it is the last, payload."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bool, bytes]]:
        """The frames that are whole."""
        self._data += data
        while (size := self._size()) is not None:
            found, self._data = bytes(self._data[:size]), self._data[size:]
            yield _taken(found)

    def _size(self) -> int | None:
        if len(self._data) < 2:
            return None
        length, start = self._data[1] & 127, 2
        if length > 125:
            start = 4 if length == 126 else 10
            if len(self._data) < start:
                return None
            length = int.from_bytes(self._data[2:start], "big")
        size = start + (4 if self._data[1] & 128 else 0) + length
        return size if len(self._data) >= size else None


def _taken(found: bytes) -> tuple[int, bool, bytes]:
    start = {126: 4, 127: 10}.get(found[1] & 127, 2)
    payload = found[start:]
    if found[1] & 128:
        payload = masked(payload[4:], payload[:4])
    return found[0] & 15, bool(found[0] & 128), payload


def accept(key: str) -> str:
    """The answer to a WebSocket key (RFC 6455, section 4.2.2)."""
    told = (key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()
    return b64encode(sha1(told, usedforsecurity=False).digest()).decode()


class Peer(Protocol):
    """
    What every connection of either program is: a head, then frames or bytes.

    @ivar head: The peer's head, when it is here.
    @ivar lost: Fires when the connection is gone.
    """

    client = True
    framed = True

    def __init__(self) -> None:
        self.head: str | None = None
        self.lost: Deferred[None] = Deferred()
        self.closed = False
        self._early = b""
        self._frames = FrameReader()

    @property
    def wire(self) -> Any:
        return self.transport

    def connectionMade(self) -> None:
        self.wire.setTcpNoDelay(True)

    def dataReceived(self, data: bytes) -> None:
        if self.closed:
            return
        if self.head is None:
            self._early += data
            head, end, rest = self._early.partition(b"\r\n\r\n")
            if not end:
                return
            self.head = head.decode("latin-1")
            self.headReceived(self.head)
            if rest and not self.closed:
                self.afterHead(rest)
        elif self.framed:
            self._unframe(data)
        else:
            self.received(data)

    def afterHead(self, rest: bytes) -> None:
        """Bytes that came in one read with the head's end."""
        self.dataReceived(rest)

    def _unframe(self, data: bytes) -> None:
        for opcode, _, payload in self._frames.feed(data):
            if self.closed:
                return
            if opcode == PING:
                self.wire.write(frame(PONG, payload, mask=self.client))
            elif opcode == CLOSE:
                self.wire.write(frame(CLOSE, payload[:2], mask=self.client))
                self.close()
            elif opcode in (0, BINARY):
                if payload:
                    self.received(payload)
            elif opcode != PONG:
                self.close()  # the adapter takes binary messages only

    def send(self, data: bytes) -> None:
        """One write of the program."""
        if not self.closed:
            self.wire.write(message(data, mask=self.client) if self.framed else data)

    def close(self) -> None:
        """As Go closes: TCP, and no close frame."""
        if not self.closed:
            self.closed = True
            self.wire.loseConnection()
            self.ended()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.closed:
            self.closed = True
            self.ended()
        self.lost.callback(None)

    def headReceived(self, head: str) -> None:
        """The peer's head is here."""

    def received(self, data: bytes) -> None:
        """Payload."""

    def ended(self) -> None:
        """The connection is of no use any more; called once."""


class Lines:
    """Control messages out of bytes."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[dict[str, str]]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            yield json.loads(line)


def line(**fields: str) -> bytes:
    """A control message as Go's C{encoding/json} writes it."""
    text = json.dumps(fields, separators=(",", ":")).replace("&", "\\u0026")
    return text.encode() + b"\n"


Connect = Callable[[Protocol, Callable[[str], None]], None]
"""Opens a connection for a protocol, or says why not."""
