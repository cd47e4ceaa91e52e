"""Local targets over real sockets: what the system does that a reactor in memory does not."""

from __future__ import annotations

import os
import socket
from typing import Any, ClassVar

from twisted.internet import reactor as realReactor
from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from helix_revdial.agent.targets import HostPort, LocalTarget, SocketPath
from helix_revdial.revdial.errors import TargetRefused, TargetTimeout
from tests.directories import shortDirectory

reactor: Any = realReactor


class Accepted(Protocol):
    """A connection at the service."""

    def connectionMade(self) -> None:
        assert isinstance(self.factory, Service)
        self.factory.accepted.append(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        assert isinstance(self.factory, Service)
        self.factory.accepted.remove(self)


class Service(Factory):
    """A service that knows its connections."""

    noisy = False
    protocol = Accepted

    def __init__(self) -> None:
        self.accepted: list[Accepted] = []


class LocalTargetTests(TestCase):
    """Targets beside this process."""

    timeout: ClassVar[float] = 30

    def setUp(self) -> None:
        self.service = Service()

    async def until(self, holds: Any, what: str) -> None:
        """Wait for the system to do what it does."""
        for _ in range(500):
            if holds():
                return
            await deferLater(reactor, 0.01)
        self.fail(f"never: {what}")

    async def letGo(self, protocol: IProtocol) -> None:
        """Give a connection back as for a dial that is over, and see it closed."""
        protocol.connectionLost(Failure(ConnectionError()))
        await self.until(lambda: not self.service.accepted, "the service's connection closed")

    async def test_namedHost(self) -> None:
        """
        C{localhost} is reached whichever of its addresses the service is on, by one
        connection that is kept.
        """
        resolved = socket.getaddrinfo("localhost", None, type=socket.SOCK_STREAM)
        for interface in sorted({str(each[4][0]) for each in resolved}):
            port = reactor.listenTCP(0, self.service, interface=interface)
            self.addCleanup(port.stopListening)
            target = LocalTarget(reactor, HostPort("localhost", port.getHost().port))
            protocol = await target.open()
            await self.until(lambda: len(self.service.accepted) == 1, "one connection")
            await self.letGo(protocol)
            await port.stopListening()

    async def test_refused(self) -> None:
        """D21: what real sockets say: nothing listens, no file, a file that is no socket."""
        port = reactor.listenTCP(0, self.service, interface="127.0.0.1")
        number = port.getHost().port
        await port.stopListening()
        plain = self.path("plain")
        with os.fdopen(os.open(plain, os.O_CREAT | os.O_WRONLY), "w"):
            pass
        for address, words in (
            (HostPort("127.0.0.1", number), f"127.0.0.1:{number}: connection refused"),
            (HostPort("localhost", number), f"localhost:{number}: connection refused"),
            (SocketPath("/none/x"), "unix:///none/x: no such file or directory"),
            (SocketPath(plain), f"unix://{plain}: connection refused"),
            (
                HostPort("nosuch.invalid", 1),
                "nosuch.invalid:1: the host name does not resolve",
            ),
        ):
            failure = await self.failing(LocalTarget(reactor, address))
            self.assertIsInstance(failure, TargetRefused)
            self.assertEqual(str(failure), words)

    def path(self, name: str) -> str:
        """A path that is short enough for a unix socket."""
        return str(shortDirectory(self) / name)

    async def failing(self, target: LocalTarget) -> Exception:
        try:
            await target.open()
        except Exception as error:
            return error
        raise AssertionError(f"{target} opened")

    def full(self) -> tuple[socket.socket, SocketPath]:
        """A listening unix socket whose queue is full."""
        path = self.path("full")
        listening = socket.socket(socket.AF_UNIX)
        self.addCleanup(listening.close)
        listening.bind(path)
        listening.listen(0)
        waiting = socket.socket(socket.AF_UNIX)
        self.addCleanup(waiting.close)
        waiting.connect(path)
        return listening, SocketPath(path)

    async def test_busySocket(self) -> None:
        """A unix service whose queue is full is connected once it accepts."""
        listening, address = self.full()
        opening = LocalTarget(reactor, address).open()
        await deferLater(reactor, 0.1)
        self.assertFalse(opening.called, "the queue was not full")
        listening.accept()[0].close()
        protocol = await opening
        protocol.connectionLost(Failure(ConnectionError()))

    async def test_busySocketForEver(self) -> None:
        """If it never does, the dial fails in time."""
        _, address = self.full()
        failure = await self.failing(LocalTarget(reactor, address, timeout=0.3))
        self.assertIsInstance(failure, TargetTimeout)
        self.assertIn("no answer within 0.3 s", str(failure))
