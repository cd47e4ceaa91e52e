"""Tests for L{helix_revdial.revdial.keepalive}."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import ProtocolWrapper
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial import keepalive
from helix_revdial.revdial.features import ECHO
from helix_revdial.revdial.keepalive import (
    CONTROL_WATCH,
    DATA_WATCH,
    KernelWatch,
    Liveness,
    silenceOf,
    socketBeneath,
    watchPath,
)
from helix_revdial.revdial.messages import ConnReady, Echo, KeepAlive, decode, encode
from helix_revdial.revdial.streams import StreamProtocol, TargetAddress
from helix_revdial.revdial.upgrade import RawTransport
from tests.revdial.test_dialer import DialerCase


class SocketTransport(StringTransport):
    """A transport in memory that has a real socket, as Twisted's have."""

    def __init__(self, handle: object) -> None:
        super().__init__()
        self.handle = handle

    def getHandle(self) -> object:
        return self.handle

    def setTcpNoDelay(self, on: bool) -> None:
        pass

    def abortConnection(self) -> None:
        self.loseConnection()


class Wrapper(ProtocolWrapper):
    """As TLS and PROXY do: has its transport beneath it, and another handle."""

    def getHandle(self) -> object:
        return object()


class KeepAliveCase(DialerCase):
    def setUp(self) -> None:
        super().setUp()
        self.socket = socket.socket()
        self.addCleanup(self.socket.close)

    def option(self, name: str, level: int = socket.IPPROTO_TCP) -> int:
        return self.socket.getsockopt(level, getattr(socket, name))

    def carrier(self, protocol: Any, wrapped: bool = True) -> RawTransport:
        """C{protocol} on a raw carrier over, as it were, TLS over TCP."""
        transport: Any = SocketTransport(self.socket)
        if wrapped:
            wrapper = Wrapper(Factory(), Protocol())  # type: ignore[arg-type]
            wrapper.transport = transport
            transport = wrapper
        return RawTransport(protocol, transport, Clock(), "raw")


class WatchPathTests(KeepAliveCase):
    def test_controlConnections(self) -> None:
        """The kernel probes, and limits what is unacknowledged, within ten seconds."""
        carrier = self.carrier(self.dialer(ECHO))
        carrier.start()
        self.assertEqual(self.option("SO_KEEPALIVE", socket.SOL_SOCKET), 1)
        self.assertEqual(self.option("TCP_KEEPIDLE"), CONTROL_WATCH.idle)
        self.assertEqual(self.option("TCP_KEEPINTVL"), CONTROL_WATCH.interval)
        self.assertEqual(self.option("TCP_USER_TIMEOUT"), 10_000)
        watch = CONTROL_WATCH
        self.assertLessEqual(watch.idle + watch.count * watch.interval, 10)

    def test_dataConnections(self) -> None:
        """Probes only: a reader that stops is not cut."""
        carrier = self.carrier(StreamProtocol(Factory.forProtocol(Protocol), TargetAddress("x")))
        carrier.start()
        self.assertEqual(self.option("SO_KEEPALIVE", socket.SOL_SOCKET), 1)
        self.assertEqual(self.option("TCP_KEEPIDLE"), DATA_WATCH.idle)
        self.assertEqual(self.option("TCP_KEEPCNT"), DATA_WATCH.count)
        self.assertEqual(self.option("TCP_USER_TIMEOUT"), 0)

    def test_socketBeneath(self) -> None:
        """A carrier, a wrapper, and both have the socket at their bottom."""
        protocol = Protocol()
        for wrapped in (False, True):
            self.assertIs(socketBeneath(self.carrier(protocol, wrapped)), self.socket)

    def test_otherTransportsAreLeftAlone(self) -> None:
        """Unix sockets, closed ones, and what is no socket at all."""
        local, other = socket.socketpair()
        self.addCleanup(local.close)
        self.addCleanup(other.close)
        closed = socket.socket()
        closed.close()
        for transport in (
            SocketTransport(local),
            SocketTransport(closed),
            SocketTransport(None),
            StringTransport(),
            None,
        ):
            self.assertFalse(watchPath(transport, CONTROL_WATCH), transport)

    def test_platformsWithoutTheOptions(self) -> None:
        """Where the platform has no such option, what there is must do."""
        for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT"):
            self.patch(socket, name, None)
        self.assertTrue(watchPath(SocketTransport(self.socket), CONTROL_WATCH))
        self.assertEqual(self.option("SO_KEEPALIVE", socket.SOL_SOCKET), 1)

    def test_optionsThatTheKernelRefuses(self) -> None:
        """An option that fails costs nothing but itself."""
        self.assertTrue(watchPath(SocketTransport(self.socket), KernelWatch(10**6, 5, 3, 10)))
        self.assertEqual(self.option("TCP_USER_TIMEOUT"), 10_000)


class HastenTests(KeepAliveCase):
    """
    B1: what is written over a path that has gone gives it no more time: while bytes are
    unacknowledged the kernel does not probe.
    """

    def setUp(self) -> None:
        super().setUp()
        self.silence: float | None = 0.0
        self.patch(keepalive, "silenceOf", lambda found: self.silence)
        self.control = self.dialer(ECHO)
        self.wire = self.carrier(self.control, wrapped=False)
        self.wire.start()

    def question(self) -> str:
        """The token of the next question."""
        transport: Any = self.wire.beneath
        transport.clear()
        self.pass_(15)
        asked = [decode(line) for line in transport.value().splitlines()]
        (token,) = (one.echo for one in asked if isinstance(one, KeepAlive) and one.echo)
        return token

    def test_aQuestion(self) -> None:
        """Its time counts from when the peer was last heard, until the peer is heard."""
        self.silence = 3.0
        token = self.question()
        self.assertEqual(self.option("TCP_USER_TIMEOUT"), 7_000)
        self.control.dataReceived(encode(Echo(token)))
        self.assertEqual(self.option("TCP_USER_TIMEOUT"), 10_000)

    def test_whatIsLeftIsNeverNothing(self) -> None:
        """An answer has the time between two probes to come."""
        self.silence = 60.0
        self.question()
        self.assertEqual(self.option("TCP_USER_TIMEOUT"), CONTROL_WATCH.interval * 1000)

    def test_anotherLine(self) -> None:
        """Nothing answers it here, so it is changed only where a probe was not answered."""
        line = ConnReady("/", dial="d" * 32)
        for silence, limit in ((CONTROL_WATCH.idle, 10_000), (7.0, 3_000)):
            self.clock.advance(silence)
            self.silence = silence
            self.control.send(line)
            self.assertEqual(self.option("TCP_USER_TIMEOUT"), limit)

    def test_anAgentThatSaysNothing(self) -> None:
        """An old agent whose kernel has answered since has the whole limit at the next line."""
        self.control.connectionLost()
        self.carrier(self.dialer(offered=False), wrapped=False).start()
        for silence, limit in ((7.0, 3_000), (None, 3_000), (1.0, 10_000), (7.0, 3_000)):
            self.silence = silence
            self.clock.advance(18)
            self.assertEqual(self.option("TCP_USER_TIMEOUT"), limit)

    def test_bytesOnTheWay(self) -> None:
        """Their own time runs already."""
        self.silence = None
        self.question()
        self.assertEqual(self.option("TCP_USER_TIMEOUT"), 10_000)


class SilenceTests(SynchronousTestCase):
    def test_silenceOf(self) -> None:
        """The kernel tells of a connection whose bytes are acknowledged."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            one = socket.create_connection(server.getsockname())
            other, _ = server.accept()
            with one, other:
                other.sendall(b"x")
                self.assertEqual(one.recv(1), b"x")
                silence = silenceOf(one)
                assert silence is not None
                self.assertTrue(0 <= silence < 60, silence)

    def test_otherSockets(self) -> None:
        """What is no TCP connection tells nothing."""
        local, other = socket.socketpair()
        with local, other:
            self.assertIsNone(silenceOf(local))


class NumberTests(SynchronousTestCase):
    def test_deathIsKnownWithin45Seconds(self) -> None:
        """Silence is shorter, and two questions fit into it."""
        live = Liveness()
        self.assertLess(live.silence, 45)
        self.assertGreater(live.silence, 2 * live.ask)

    def test_within(self) -> None:
        """Scaled down, the numbers stay whole seconds, and within the limit where they can."""
        self.assertEqual(KernelWatch.within(10), KernelWatch(4, 2, 3, 10))
        for seconds in (1, 2, 3, 5, 60):
            watch = KernelWatch.within(seconds)
            self.assertGreaterEqual(min(watch.idle, watch.interval), 1)
            self.assertEqual(watch.unacknowledged, seconds)
            self.assertLessEqual(watch.idle, seconds)
