"""Two ends of a TLS connection over real sockets, each by one of two ways."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path
from typing import Any, cast

from OpenSSL import SSL
from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    wrapClientTLS,
    wrapServerTLS,
)
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from helix_revdial.agent.trust import Trust, TrustPolicy
from helix_revdial.listening.tls import ServerTLS, TLSSettings, load
from helix_revdial.revdial.tls_endpoints import TLSClientEndpoint, TLSServerEndpoint
from tests.directories import shortDirectory
from tests.listening.pems import authorityFile, leaf, whole, write

reactor: Any = installed

WAYS = ("socket", "memory")
"""TLS on the socket itself, and Twisted's, between two buffers in memory."""


class Talker(Protocol):
    """
    Keeps what it hears.

    @ivar lost: Fires with the reason of the end, in a tuple: it is no failure of the test's.
    @ivar keep: Whether to keep the bytes, and not only their hash.
    """

    def __init__(self, keep: bool = True) -> None:
        self.data = bytearray()
        self.keep = keep
        self.hash = hashlib.sha256()
        self.size = 0
        self.lost: Deferred[tuple[Failure]] = Deferred()
        self.isLost = False

    @property
    def wire(self) -> Any:
        return self.transport

    def dataReceived(self, data: bytes) -> None:
        self.size += len(data)
        self.hash.update(data)
        if self.keep:
            self.data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.isLost = True
        self.lost.callback((reason,))


class Source:
    """
    Writes so many bytes as fast as they are taken.

    @ivar most: Bytes that the transport held at most.
    """

    def __init__(self, wire: Any, size: int) -> None:
        self.wire = wire
        self.left = size
        self.hash = hashlib.sha256()
        self.paused = False
        self.pauses = 0
        self.most = 0

    def begin(self) -> None:
        self.wire.registerProducer(self, True)
        self.resumeProducing()

    def pauseProducing(self) -> None:
        self.paused = True
        self.pauses += 1

    def resumeProducing(self) -> None:
        self.paused = False
        while self.left and not self.paused:
            data = os.urandom(min(self.left, 50_000))
            self.left -= len(data)
            self.hash.update(data)
            self.wire.write(data)
            self.most = max(self.most, getattr(self.wire, "_held", 0))
        if not self.left:
            self.wire.unregisterProducer()

    def stopProducing(self) -> None:
        self.left = 0


class TLSEndsCase(TestCase):
    """Makes both ends."""

    timeout = 30

    def setUp(self) -> None:
        self.directory = shortDirectory(self)
        path = write(Path(self.directory) / "one.pem", whole(leaf("localhost")))
        self.serverTLS = ServerTLS(load(TLSSettings(str(path))))
        self.ca = str(authorityFile(Path(self.directory) / "ca.pem"))
        self.clientTLS: Any = Trust(TrustPolicy(caFile=self.ca)).towards("localhost")
        self.served: list[Talker] = []

    def build(self) -> Talker:
        """What serves the next connection."""
        return Talker()

    async def listen(self, way: str = "socket") -> int:
        """
        @return: The port.
        """

        def build() -> Talker:
            self.served.append(self.build())
            return self.served[-1]

        plain = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        endpoint: Any
        if way == "socket":
            endpoint = TLSServerEndpoint(reactor, self.serverTLS, plain)
        else:
            endpoint = wrapServerTLS(self.serverTLS, plain, reactor)
        port = await endpoint.listen(cast(IProtocolFactory, Factory.forProtocol(build)))
        self.addCleanup(port.stopListening)
        return int(port.getHost().port)

    async def connect(self, port: int, way: str = "socket", talker: Talker | None = None) -> Talker:
        made = talker or Talker()
        self.addCleanup(self.drop, made)
        plain = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
        endpoint: Any
        if way == "socket":
            endpoint = TLSClientEndpoint(reactor, self.clientTLS, plain)
        else:
            endpoint = wrapClientTLS(self.clientTLS, plain, reactor)
        await endpoint.connect(Factory.forProtocol(lambda: made))
        return made

    async def drop(self, talker: Talker) -> None:
        """End what a test has left."""
        if talker.transport is not None and not talker.isLost:
            talker.wire.abortConnection()
            await self.until(lambda: talker.isLost, "the end of a connection")

    async def until(self, condition: Any, what: str, limit: float = 15.0) -> None:
        end = reactor.seconds() + limit
        while not condition():
            if reactor.seconds() > end:
                raise AssertionError(f"after {limit} s still not: {what}")
            await deferLater(reactor, 0.005)

    def raw(self, port: int) -> socket.socket:
        """A connection without TLS to a port that wants it."""
        made = socket.create_connection(("127.0.0.1", port), timeout=5)
        made.setblocking(False)
        self.addCleanup(made.close)
        return made


class ByHand:
    """
    A TLS client whose every byte on the wire is the test's to send.
    """

    def __init__(self, case: TLSEndsCase, plain: socket.socket) -> None:
        self.case = case
        self.plain = plain
        context = SSL.Context(SSL.TLS_METHOD)
        self.session = SSL.Connection(context, None)
        self.session.set_connect_state()
        self.heard = b""
        self.over = False

    def outgoing(self) -> bytes:
        """What the session wants sent."""
        try:
            return self.session.bio_read(1 << 20)
        except SSL.WantReadError:
            return b""

    async def send(self, data: bytes, piece: int) -> None:
        """Send so many bytes at a time, each piece in a turn of its own."""
        for start in range(0, len(data), piece):
            self.plain.sendall(data[start : start + piece])
            await deferLater(reactor, 0)

    def receive(self) -> None:
        """Take what is here."""
        try:
            data = self.plain.recv(1 << 16)
        except BlockingIOError:
            return
        if not data:
            self.over = True
            return
        self.session.bio_write(data)

    async def shake(self, piece: int = 1 << 20) -> None:
        """The handshake."""
        while True:
            try:
                self.session.do_handshake()
            except SSL.WantReadError:
                await self.send(self.outgoing(), piece)
                self.receive()
                await deferLater(reactor, 0)
            else:
                await self.send(self.outgoing(), piece)
                return

    def records(self, data: bytes) -> bytes:
        """C{data} as one record or more."""
        self.session.send(data)
        return self.outgoing()

    async def hear(self, size: int) -> bytes:
        """Receive until so much has come."""

        def more() -> bool:
            self.receive()
            try:
                while True:
                    self.heard += self.session.recv(1 << 16)
            except (SSL.WantReadError, SSL.ZeroReturnError):
                pass
            return len(self.heard) >= size

        await self.case.until(more, f"{size} bytes, after {len(self.heard)}")
        return self.heard
