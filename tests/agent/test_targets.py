"""Tests for L{helix_revdial.agent.targets}."""

from __future__ import annotations

import errno
from typing import Any, cast

from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import CancelledError
from twisted.internet.error import (
    ConnectError,
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
    getConnectError,
)
from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.agent.targets import (
    CONNECT_TIMEOUT,
    MAX_SOCKET_PATH,
    HostPort,
    LocalTarget,
    SocketPath,
    parseTarget,
)
from helix_revdial.revdial.errors import TargetRefused, TargetTimeout


class ParseTargetTests(SynchronousTestCase):
    def test_addresses(self) -> None:
        """Each way to write an address, and how it is shown."""
        for text, address, shown in (
            ("localhost:9876", HostPort("localhost", 9876), "localhost:9876"),
            ("127.0.0.1:1", HostPort("127.0.0.1", 1), "127.0.0.1:1"),
            (":65535", HostPort("localhost", 65535), "localhost:65535"),
            ("[::1]:22", HostPort("::1", 22), "[::1]:22"),
            ("[0:0::1]:22", HostPort("::1", 22), "[::1]:22"),
            ("unix:///run/x.sock", SocketPath("/run/x.sock"), "unix:///run/x.sock"),
            ("unix:/run/x.sock", SocketPath("/run/x.sock"), "unix:///run/x.sock"),
        ):
            self.assertEqual(parseTarget(text), address)
            self.assertEqual(str(parseTarget(text)), shown)

    def test_refused(self) -> None:
        """What is no address is refused, saying what to write."""
        for text, words in (
            ("", "write host:port"),
            ("localhost", "write host:port"),
            ("localhost:", "the port is a number"),
            ("localhost:0", "the port is a number"),
            ("localhost:65536", "the port is a number"),
            ("localhost:1" + "0" * 5000, "the port is a number"),
            ("localhost:http", "the port is a number"),
            ("localhost:\u0661", "the port is a number"),
            ("::1:22", "in brackets"),
            ("[::g]:22", "no IPv6 address"),
            ("http://localhost:80", "not a URL"),
            ("user@host:22", "write host:port"),
            ("a b:22", "write host:port"),
            ("unix://run/x.sock", "unix:///absolute/path"),
            ("unix:", "unix:///absolute/path"),
            ("unix:///" + "x" * MAX_SOCKET_PATH, "at most 107 bytes"),
            ("unix:///a\0b", "at most 107 bytes"),
        ):
            error = self.assertRaises(ValueError, parseTarget, text)
            self.assertIn(words, str(error), text[:40])

    def test_longestSocketPath(self) -> None:
        """A path that just fits is taken."""
        path = "/" + "x" * (MAX_SOCKET_PATH - 1)
        self.assertEqual(parseTarget(f"unix://{path}"), SocketPath(path))


class Wire(StringTransport):
    """A connection that remembers how it was ended."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True
        super().abortConnection()

    def loseWriteConnection(self) -> None:
        self.disconnecting = True


class LocalTargetTests(SynchronousTestCase):
    """
    A target over a reactor in memory: the connections are ours to make or fail.
    """

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()

    def target(self, text: str = "127.0.0.1:9876") -> LocalTarget:
        return LocalTarget(self.reactor, parseTarget(text))

    def accept(self) -> tuple[Any, Wire]:
        """The service accepts the oldest connection: its local protocol and transport."""
        factory: Any = self.reactor.tcpClients.pop(0)[2]
        protocol = factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 9876))
        wire = Wire()
        protocol.makeConnection(wire)
        return protocol, wire

    def test_tcp(self) -> None:
        """A TCP service is connected at the address given."""
        opened = self.target().open()
        host, port, _, _, _ = self.reactor.tcpClients[0]
        self.assertEqual((host, port), ("127.0.0.1", 9876))
        self.assertNoResult(opened)
        self.accept()
        protocol = self.successResultOf(opened)
        self.assertTrue(IHalfCloseableProtocol.providedBy(protocol))
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_unix(self) -> None:
        """A unix service is connected at its path, whatever process holds it."""
        opened = self.target("unix:///run/x.sock").open()
        address, factory, _, checkPID = self.reactor.unixClients[0]
        self.assertEqual(address, "/run/x.sock")
        self.assertFalse(checkPID)
        factory.buildProtocol(UNIXAddress(b"/run/x.sock")).makeConnection(Wire())
        self.successResultOf(opened)

    def test_serverSpeaksFirst(self) -> None:
        """
        C6: the service's side is paused until the data connection is joined, and
        what came with the connection reaches it first.
        """
        opened = self.target().open()
        local, wire = self.accept()
        outward = self.successResultOf(opened)
        self.assertEqual(wire.producerState, "paused")
        local.dataReceived(b"SSH-2.0-x\r\n")
        carrier = Wire()
        outward.makeConnection(carrier)
        self.assertEqual(carrier.value(), b"SSH-2.0-x\r\n")
        self.assertEqual(wire.producerState, "producing")
        outward.dataReceived(b"hello")
        self.assertEqual(wire.value(), b"hello")

    def test_refused(self) -> None:
        """D21: what is said names the service and why."""
        for text, error, words in (
            (
                "127.0.0.1:9876",
                getConnectError((errno.ECONNREFUSED, "x")),
                "127.0.0.1:9876: connection refused",
            ),
            (
                "unix:///run/x.sock",
                getConnectError((errno.ENOENT, "x")),
                "unix:///run/x.sock: no such file or directory",
            ),
            (
                "unix:///run/x.sock",
                getConnectError((errno.EACCES, "x")),
                "unix:///run/x.sock: permission denied",
            ),
            ("[::1]:1", getConnectError((errno.EHOSTUNREACH, "x")), "[::1]:1: no route to host"),
        ):
            opened = self.target(text).open()
            clients = self.reactor.unixClients if text[0] == "u" else self.reactor.tcpClients
            factory: Any = clients.pop(0)[1 if text[0] == "u" else 2]
            factory.clientConnectionFailed(None, Failure(error))
            self.assertEqual(str(self.failureResultOf(opened, TargetRefused).value), words)
            self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_hangs(self) -> None:
        """C8: a service that does not accept has 5 s, then its connection is given up."""
        opened = self.target().open()
        self.reactor.advance(CONNECT_TIMEOUT - 0.1)
        self.assertNoResult(opened)
        self.reactor.advance(0.1)
        error = self.failureResultOf(opened, TargetTimeout).value
        self.assertEqual(str(error), "127.0.0.1:9876: no answer within 5 s")
        self.assertTrue(self.reactor.connectors[0].stoppedConnecting)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_kernelGivesUp(self) -> None:
        """The system's own time limit is told apart from a refusal too."""
        opened = self.target().open()
        self.reactor.tcpClients[0][2].clientConnectionFailed(
            cast(Any, None), Failure(getConnectError((errno.ETIMEDOUT, "x")))
        )
        error = self.failureResultOf(opened, TargetTimeout).value
        self.assertEqual(str(error), "127.0.0.1:9876: connection timed out")

    def test_cancel(self) -> None:
        """Cancelling releases the connection under way, and leaves no timer."""
        opened = self.target().open()
        opened.cancel()
        failure = self.failureResultOf(opened)
        self.assertFalse(failure.check(TargetRefused, TargetTimeout), failure)
        self.assertTrue(self.reactor.connectors[0].stoppedConnecting)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_neverJoined(self) -> None:
        """C12: a service whose dial is given up after it accepted is let go at once."""
        opened = self.target().open()
        local, wire = self.accept()
        outward: IProtocol = self.successResultOf(opened)
        outward.connectionLost(Failure(ConnectionLost()))
        self.assertTrue(wire.aborted)
        local.connectionLost(Failure(ConnectionAborted()))
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_goneBeforeJoined(self) -> None:
        """A service that hangs up before the data connection is there ends the stream."""
        opened = self.target().open()
        local, _ = self.accept()
        outward = self.successResultOf(opened)
        local.connectionLost(Failure(ConnectionDone()))
        carrier = Wire()
        outward.makeConnection(carrier)
        self.assertTrue(carrier.disconnecting or carrier.aborted)

    def test_everyDialItsOwn(self) -> None:
        """Two dials are two connections; the failure of one leaves the other alone."""
        target = self.target()
        first, second = target.open(), target.open()
        self.reactor.tcpClients.pop(0)[2].clientConnectionFailed(
            cast(Any, None), Failure(getConnectError((errno.ECONNREFUSED, "x")))
        )
        self.failureResultOf(first, TargetRefused)
        self.assertNoResult(second)
        self.accept()
        self.successResultOf(second)

    def test_busySocket(self) -> None:
        """
        A unix service whose queue is full is waited for, as connect(2) would: Twisted
        reports that case as a connection lost before it was made.
        """
        opened = self.target("unix:///run/x.sock").open()
        full = ConnectError(string=str(Failure(ConnectionDone())))
        for _ in range(3):
            self.reactor.unixClients.pop(0)[1].clientConnectionFailed(
                cast(Any, None), Failure(full)
            )
            self.assertNoResult(opened)
            self.assertEqual(self.reactor.unixClients, [])
            self.reactor.advance(0.02)
        self.reactor.unixClients[0][1].buildProtocol(UNIXAddress(None)).makeConnection(Wire())
        self.successResultOf(opened)

    def test_busySocketForEver(self) -> None:
        """Waiting for a full queue ends with the same 5 s."""
        opened = self.target("unix:///run/x.sock").open()
        full = ConnectError(string="x")
        while self.reactor.unixClients:
            self.reactor.unixClients.pop(0)[1].clientConnectionFailed(
                cast(Any, None), Failure(full)
            )
            self.reactor.advance(0.02)
            self.assertLess(self.reactor.seconds(), 6.0, "still trying")
        self.assertIn("no answer within 5 s", str(self.failureResultOf(opened).value))
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_faultOfOurs(self) -> None:
        """What is no failure of a connection is logged, and the caller gets a sentence."""
        opened = self.target().open()
        self.reactor.tcpClients[0][2].clientConnectionFailed(
            cast(Any, None), Failure(ZeroDivisionError("x"))
        )
        error = self.failureResultOf(opened, TargetRefused).value
        self.assertEqual(str(error), "127.0.0.1:9876: the connection could not be opened")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_cancelledError(self) -> None:
        """Cancelling while a full queue is waited for leaves nothing behind."""
        opened = self.target("unix:///run/x.sock").open()
        self.reactor.unixClients.pop(0)[1].clientConnectionFailed(
            cast(Any, None), Failure(ConnectError(string="x"))
        )
        opened.cancel()
        self.failureResultOf(opened, CancelledError)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
