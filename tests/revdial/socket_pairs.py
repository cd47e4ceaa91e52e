"""
Streams on real sockets through L{SocketRelays}, with peers that do what they are told.

The relay's sides are Twisted transports in a reactor of the test's own; the peers are
bare sockets, so that each write, read and end happens when the test says so, and no
reactor of theirs is in between.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from helix_revdial.revdial.frames import (
    CLOSE,
    Control,
    EndMark,
    FrameReader,
    closePayload,
    frame,
    frameHead,
)
from helix_revdial.revdial.masks import newMasker
from helix_revdial.revdial.pipes import Pipe, Pipes
from helix_revdial.revdial.socket_streams import Framing, plainStream
from helix_revdial.revdial.sockets import SocketRelay, SocketRelays
from helix_revdial.revdial.splices import Bulk

LIMIT = 20.0

TINY = Bulk(large=1, reads=1, small=1, atOnce=24 * 1024, quantum=48 * 1024)
"""Everything is bulk."""

_SMALL_BUFFER = 16 * 1024
_LATER = (errno.EAGAIN, errno.EWOULDBLOCK)


class Parked(Protocol):
    """On top of a relay's side; hears only the end."""

    lost: Failure | None = None

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason


class Peer:
    """
    One end of a stream.

    @ivar role: C{None} for raw bytes, C{"client"} or C{"server"} for what this peer is
        in a WebSocket with C{eof} agreed.
    @ivar isUnix: Whether it is on a unix socket.
    @ivar sent: Payload that was written.
    @ivar got: Payload that came.
    @ivar ended: Whether the other direction has ended in good order.
    @ivar broke: Whether the connection was lost otherwise.
    """

    def __init__(self, connection: socket.socket, role: str | None, key: bytes) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.isUnix = connection.family == socket.AF_UNIX
        self.role = role
        self.sent = bytearray()
        self.got = bytearray()
        self.ended = False
        self.broke = False
        self.saidEnd = False
        self.closed = False
        self._key = key if role == "client" else None
        self._out = bytearray()
        self._endWaits = False
        self._reader = FrameReader(masked=role == "server")

    def write(self, data: bytes) -> None:
        """Send this, as far as the socket takes it; the rest at the next L{push}."""
        self.sent += data
        if self.role is None:
            self._out += data
        elif data:
            body = bytearray(data)
            if self._key:
                newMasker(self._key).apply(memoryview(body))
            self._out += frameHead(len(data), self._key) + body
        self.push()

    def end(self) -> None:
        """End this peer's direction, behind what was written."""
        self.saidEnd = True
        if self.role is not None:
            self._out += frame(b"", self._key)
        self._endWaits = True
        self.push()

    def reset(self) -> None:
        """
        Break the connection.

        A unix socket knows no reset: what was sent may look like all.
        """
        if not self.closed:
            self.closed = True
            if self.isUnix:
                self.saidEnd = True
                del self.sent[len(self.sent) - len(self._out) :]
            linger = struct.pack("ii", 1, 0)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.socket.close()

    def leave(self) -> None:
        """
        End the connection without having said so: the end of a WebSocket's connection is
        none of its stream.
        """
        if not self.closed:
            self._out.clear()
            self.close()

    def close(self) -> None:
        """Leave."""
        if not self.closed:
            self.closed = True
            self.socket.close()

    def push(self) -> None:
        """Send more of what was written."""
        while self._out and not self.closed:
            try:
                sent = self.socket.send(self._out)
            except OSError as failed:
                if failed.errno not in _LATER:
                    self.broke = True
                    self._out.clear()
                return
            del self._out[:sent]
        if self._endWaits and not self.closed:
            self._endWaits = False
            if self.role is None:
                try:
                    self.socket.shutdown(socket.SHUT_WR)
                except OSError:
                    self.broke = True

    def pull(self, most: int = 1 << 20) -> None:
        """Receive at most so many bytes of what is there."""
        while most > 0 and not (self.closed or self.broke):
            try:
                data = bytearray(self.socket.recv(min(most, 65536)))
            except OSError as failed:
                if failed.errno not in _LATER:
                    self.broke = True
                return
            if not data:
                if self.role is None:
                    self.ended = True
                elif not self.ended:
                    self.broke = True
                return
            most -= len(data)
            self._received(data)

    def _received(self, data: bytearray) -> None:
        if self.role is None:
            self.got += data
            return
        for one in self._reader.read(memoryview(data)):
            if isinstance(one, memoryview):
                self.got += one
            elif isinstance(one, EndMark):
                self.ended = True
            elif isinstance(one, Control) and one.opcode == CLOSE:
                self._out += frame(closePayload(1000, ""), self._key, CLOSE)
                self.push()


def tcpPair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection on the loopback, with small buffers."""
    listening = socket.socket()
    with listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER)
        listening.bind(("127.0.0.1", 0))
        listening.listen(1)
        one = socket.create_connection(listening.getsockname())
        other, _ = listening.accept()
    for each in (one, other):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SMALL_BUFFER)
    return one, other


def pair(form: str) -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection: a peer's, and the relay's."""
    return socket.socketpair() if form == "unix" else tcpPair()


FORMS = ("tcp", "unix", "server", "client")
"""A plain connection; or a WebSocket of which the relay's side is server, or client."""


class Stream:
    """One relay, with a peer at each end."""

    def __init__(self, room: Room, left: str, right: str, key: bytes, linger: float) -> None:
        self.peers: list[Peer] = []
        self.parked: list[Parked] = []
        self.ended: list[SocketRelay] = []
        streams = []
        for form in (left, right):
            ours, theirs = pair(form)
            role = {"server": "client", "client": "server"}.get(form)
            self.peers.append(Peer(theirs, role, key))
            top = Parked()
            self.parked.append(top)
            room.adopt(ours, top)
            stream = plainStream(top.transport)
            assert stream is not None
            if role is not None:
                reader = FrameReader(masked=form == "server")
                zero = not any(key)
                stream.framing = Framing(reader, client=form == "client", eof=True, zeroKey=zero)
            streams.append(stream)
        self._streams = streams
        self.relay = room.relays.join(
            streams[0], streams[1], linger=linger, onEnd=self.ended.append
        )

    @property
    def counted(self) -> list[int]:
        """Payload bytes that came from each peer."""
        return [stream.received for stream in self._streams]

    @property
    def over(self) -> bool:
        """Whether the relay has ended, and has told both transports."""
        return bool(self.ended) and all(each.lost is not None for each in self.parked)

    @property
    def heard(self) -> bool:
        """Whether both peers have learnt that it is over."""
        return all(each.ended or each.broke or each.closed for each in self.peers)

    def state(self) -> str:
        """For a test that fails."""
        peers = ", ".join(
            f"{len(each.sent)} sent, {len(each.got)} got, "
            f"ended={each.ended} broke={each.broke} closed={each.closed}"
            for each in self.peers
        )
        return f"{peers}; relay {[each.why for each in self.ended]}, counted {self.counted}"


class Room:
    """A reactor that is turned by hand, relays, and their streams."""

    def __init__(
        self,
        *,
        bulk: Bulk = TINY,
        size: int = 32 * 1024,
        limit: int = 64,
        make: Callable[[], Pipe | None] | None = None,
        splice: bool = True,
    ) -> None:
        self.reactor = EPollReactor()
        self.pipes = Pipes(self.reactor, limit=limit, **({} if make is None else {"make": make}))
        self.relays = SocketRelays(
            self.reactor, size=size, splice=splice, pipes=self.pipes, bulk=bulk
        )
        self.streams: list[Stream] = []

    def adopt(self, connection: socket.socket, protocol: Parked) -> None:
        """Give a connection to the reactor."""
        connection.setblocking(False)
        factory: Any = Factory.forProtocol(lambda: protocol)
        factory.noisy = False
        self.reactor.adoptStreamConnection(connection.fileno(), connection.family, factory)
        connection.close()

    def stream(
        self, left: str = "tcp", right: str = "tcp", *, key: bytes = b"abcd", linger: float = 60.0
    ) -> Stream:
        """
        One stream more.

        @param key: What clients mask with; a zero key is agreed.
        """
        stream = Stream(self, left, right, key, linger)
        self.streams.append(stream)
        return stream

    def turn(self, delay: float = 0.0) -> None:
        """One turn of the reactor."""
        self.reactor.runUntilCurrent()
        self.reactor.doIteration(delay)

    def spin(self, until: Callable[[], bool], what: str) -> None:
        """Turn, with all peers sending and receiving, until something holds."""
        end = time.monotonic() + LIMIT
        while not until():
            if time.monotonic() > end:
                states = "; ".join(stream.state() for stream in self.streams)
                raise AssertionError(f"waited {LIMIT} s for {what}: {states}")
            for stream in self.streams:
                for peer in stream.peers:
                    peer.push()
                    peer.pull()
            self.turn(0.001)

    def clean(self) -> None:
        """End everything."""
        for stream in self.streams:
            stream.relay.abort()
            for peer in stream.peers:
                peer.close()
        for call in self.reactor.getDelayedCalls():
            call.cancel()
        self.reactor.removeAll()
        self.reactor._poller.close()
        for descriptor in self.reactor._internalReaders:
            descriptor.connectionLost(connectionDone)


def descriptors() -> int:
    """How many are open."""
    return len(os.listdir("/proc/self/fd"))
