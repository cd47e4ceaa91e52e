"""TCP forwards: what may be one, who may connect, what the target is told."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import CannotListenError, ConnectionLost
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.gateways.proxy_header import proxyHeader
from helix_revdial.gateways.tcp_forward import Bounds, Forward, ForwardRefused, Forwards
from helix_revdial.gateways.tcp_forward import ForwardSettings as Settings
from helix_revdial.listening.proxy_header import ProxyHeaderReader
from helix_revdial.revdial.errors import NotConnected


class Wire(StringTransport):
    """A transport as the relay needs it."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True

    def setTcpNoDelay(self, on: bool) -> None:
        """Nothing."""

    def unregisterProducer(self) -> None:
        self.producer = None


class FakeConnections:
    """Gives endpoints that fail, or wait until C{connect} is called."""

    def __init__(self) -> None:
        self.fails = False
        self.dials: list[tuple[Any, Deferred[Any]]] = []
        self.cancelled = 0
        self.asked: list[tuple[str, str | None]] = []

    def endpoint(self, runner: str, target: str | None, **words: Any) -> Any:
        self.asked.append((runner, target))
        return self

    def connect(self, factory: Any) -> Deferred[Any]:
        if self.fails:
            return fail(NotConnected())

        def cancel(_: object) -> None:
            self.cancelled += 1

        waiting: Deferred[Any] = Deferred(cancel)
        self.dials.append((factory, waiting))
        return waiting

    def answer(self) -> Wire:
        """The target of the newest dial is connected."""
        factory, waiting = self.dials[-1]
        protocol = factory.buildProtocol(None)
        wire = Wire()
        protocol.makeConnection(wire)
        waiting.callback(protocol)
        return wire


async def everything() -> Any:
    return lambda expose: True


class ForwardsTests(SynchronousTestCase):
    """L{Forwards}."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.connections = FakeConnections()
        self.refused: list[str] = []
        made = iter(range(100))
        connections: Any = self.connections
        self.forwards = Forwards(
            self.reactor,
            connections,
            lambda: f"fwd_{next(made)}",
            onRefused=lambda forward, peer: self.refused.append(peer),
        )
        self.forwards.bounds = Bounds(20000, 20002, ("127.0.0.1", "192.0.2.1"), 3, 2)

    def create(self, listen: str = "tcp:20001", **words: Any) -> Forward:
        settings = Settings.parse(listen, "wolf-1", "db", **words)
        return self.forwards.create(settings, everything, family="f")

    def connect(self, host: str = "127.0.0.1") -> tuple[Any, Wire]:
        """Connect to the newest port."""
        factory = self.reactor.tcpServers[-1][1]
        protocol = factory.buildProtocol(IPv4Address("TCP", host, 4000))
        wire = Wire(hostAddress=IPv4Address("TCP", "127.0.0.1", 20001))
        if protocol is not None:
            protocol.makeConnection(wire)
        return protocol, wire

    def test_bytesBothWays(self) -> None:
        """A connection is a dial to the target, read when that is connected."""
        forward = self.create()
        protocol, wire = self.connect()
        self.assertEqual(self.connections.asked, [("wolf-1", "db")])
        self.assertEqual(wire.producerState, "paused", "read before the target is connected")
        target = self.connections.answer()
        protocol.dataReceived(b"ping")
        self.assertEqual(target.value(), b"ping")
        self.assertEqual((forward.accepted, len(forward.connections)), (1, 1))

    def test_whoMayConnect(self) -> None:
        """Who is not on the list is closed at once, and nothing is dialled."""
        forward = self.create(allow=["10.0.0.0/8", "::1"])
        for host in ("192.0.2.1", "::2", "11.0.0.0"):
            self.assertIsNone(self.connect(host)[0], host)
        for host in ("10.1.2.3", "::1", "::ffff:10.0.0.1"):
            self.assertIsNotNone(self.connect(host)[0], host)
            forward.connections.pop()
        self.assertEqual(self.refused, ["192.0.2.1", "::2", "11.0.0.0"])
        self.assertEqual((forward.accepted, forward.refused), (6, 3))
        self.assertEqual(len(self.connections.asked), 3)

    def test_tooMany(self) -> None:
        """Beyond its limit a forward takes no more, until one has gone."""
        forward = self.create()
        protocol, _ = self.connect()
        self.connect()
        self.assertIsNone(self.connect()[0])
        protocol.connectionLost(Failure(ConnectionLost()))
        self.assertEqual((len(forward.connections), self.connections.cancelled), (1, 1))
        self.assertIsNotNone(self.connect()[0])

    def test_aDialThatFails(self) -> None:
        """The connection is closed, counted, and nothing is left of it."""
        self.connections.fails = True
        forward = self.create()
        _, wire = self.connect()
        self.assertTrue(wire.aborted)
        self.assertEqual((forward.failed, forward.lastError), (1, "no connection"))
        self.assertEqual(forward.connections, set())

    def test_delete(self) -> None:
        """A7: the port is closed, connections and dials are cut, whoever ends it."""
        forward = self.create()
        _, wire = self.connect()
        self.connections.answer()
        self.connect()
        self.successResultOf(Deferred.fromCoroutine(self.forwards.delete(forward)))
        self.assertTrue(wire.aborted)
        self.assertEqual(self.connections.cancelled, 1)
        self.assertEqual(self.forwards.list(), [])
        self.create()
        self.forwards.end("another")
        self.assertEqual(len(self.forwards.list()), 1)
        self.forwards.end("f")
        self.assertEqual(self.forwards.list(), [])

    def test_bounds(self) -> None:
        """Ports, interfaces and how many there may be."""
        for listen, words in (
            ("tcp:19999", "the port is not within 20000-20002"),
            ("tcp:20001:interface=127.0.0.2", "the interface is none of 127.0.0.1, 192.0.2.1"),
        ):
            with self.assertRaises(ForwardRefused) as caught:
                self.create(listen)
            self.assertEqual((caught.exception.field, str(caught.exception)), ("listen", words))
        for _ in range(3):
            self.create()
        with self.assertRaises(ForwardRefused):
            self.create()
        self.forwards.bounds = Bounds()
        with self.assertRaises(ForwardRefused) as caught:
            self.create()
        self.assertIn("forwards.ports", str(caught.exception))

    def test_anyFreePort(self) -> None:
        """Port 0 is the first of the range that can be had."""
        listen = self.reactor.listenTCP

        def taken(port: int, *args: Any, **words: Any) -> Any:
            if port < 20002:
                raise CannotListenError("127.0.0.1", port, OSError(98, "Address in use"))
            return listen(port, *args, **words)

        self.patch(self.reactor, "listenTCP", taken)
        self.create("tcp:0")
        self.assertEqual(self.reactor.tcpServers[-1][0], 20002)
        with self.assertRaises(ForwardRefused) as caught:
            self.create("tcp:20001")
        self.assertEqual(str(caught.exception), "port 20001 cannot be had: Address in use")

    def test_proxyProtocol(self) -> None:
        """The target is told who connected, before the first byte."""
        self.create(proxyProtocol=True)
        protocol, _ = self.connect("127.0.0.9")
        target = self.connections.answer()
        protocol.dataReceived(b"ping")
        found = ProxyHeaderReader().feed(target.value())
        assert found is not None
        header, rest = found
        self.assertEqual(header.source, IPv4Address("TCP", "127.0.0.9", 4000))
        self.assertEqual(rest, b"ping")


class SettingsTests(SynchronousTestCase):
    """What a forward is told."""

    def test_understood(self) -> None:
        """A port, an interface, also one with colons."""
        self.assertEqual(Settings.parse("tcp:1", "w", None).interface, "127.0.0.1")
        found = Settings.parse(r"tcp:1:interface=\:\:1", "w", None)
        self.assertEqual((found.interface, found.listen), ("::1", r"tcp:1:interface=\:\:1"))

    def test_refused(self) -> None:
        """Each with the field that is wrong."""
        for field, listen, runner, target, allow in (
            ("listen", "unix:/x", "w", None, ()),
            ("listen", "tcp:70000", "w", None, ()),
            ("listen", "tcp:1:interface=localhost", "w", None, ()),
            ("runner", "tcp:1", "-", None, ()),
            ("target", "tcp:1", "w", "a b", ()),
            ("allow", "tcp:1", "w", None, ("10.0.0.1/8",)),
            ("allow", "tcp:1", "w", None, ("x",)),
            ("allow", "tcp:1:interface=0.0.0.0", "w", None, ()),
            ("allow", "tcp:1", "w", None, ("10.0.0.0/8",) * 257),
        ):
            with self.assertRaises(ForwardRefused) as caught:
                Settings.parse(listen, runner, target, allow)
            self.assertEqual(caught.exception.field, field, str(caught.exception))

    def test_ports(self) -> None:
        """A range, one port, or none."""
        self.assertEqual(Bounds.parsePorts("20000-20100"), (20000, 20100))
        self.assertEqual(Bounds.parsePorts("20000"), (20000, 20000))
        self.assertEqual(Bounds.parsePorts(None), (1, 0))
        for text in ("", "x", "2-1", "0-1", "1-65536"):
            with self.assertRaises(ValueError):
                Bounds.parsePorts(text)


class ProxyHeaderTests(SynchronousTestCase):
    """The header that a target gets, read by the server's own reader."""

    def read(self, data: bytes) -> Any:
        found = ProxyHeaderReader().feed(data)
        assert found is not None
        self.assertEqual(found[1], b"")
        return found[0]

    def test_addresses(self) -> None:
        """IPv4, IPv6, the two mixed, and none."""
        four, six = IPv4Address("TCP", "192.0.2.7", 1), IPv6Address("TCP", "2001:db8::7", 65535)
        self.assertEqual(self.read(proxyHeader(four, four)).source, four)
        self.assertEqual(self.read(proxyHeader(six, six)).source, six)
        mixed = proxyHeader(four, six)
        self.assertIn(b"\xff\xff" + bytes([192, 0, 2, 7]), mixed)
        self.assertIsNone(self.read(proxyHeader(UNIXAddress(None), four)).source)
