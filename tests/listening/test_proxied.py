"""Connections behind a PROXY header."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol, ITCPTransport
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import EventLoggingObserver, StringTransport
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import alsoProvides, implementer

from helix_revdial.listening.proxied import (
    LINES_A_SECOND,
    ProxiedConnection,
    ProxiedFactory,
)
from helix_revdial.listening.sources import ProxySources

PROXY = IPv4Address("TCP", "10.0.0.1", 40000)
CALLER = IPv4Address("TCP", "192.0.2.7", 50000)
LINE = b"PROXY TCP4 192.0.2.7 198.51.100.1 50000 443\r\n"


class Served(Protocol):
    """Remembers what it hears."""

    def __init__(self, addr: IAddress | None) -> None:
        self.built = addr
        self.heard: list[object] = []

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.heard.append(self.transport.getPeer())

    def dataReceived(self, data: bytes) -> None:
        self.heard.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.heard.append(reason.type)


@implementer(IHalfCloseableProtocol)
class HalfServed(Served):
    """Hears half-closes, too."""

    def readConnectionLost(self) -> None:
        self.heard.append("read lost")

    def writeConnectionLost(self) -> None:
        self.heard.append("write lost")


class Places:
    """Places for strangers."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken: list[str] = []

    def admit(self, address: str) -> bool:
        if len(self.taken) >= self.limit:
            return False
        self.taken.append(address)
        return True

    def release(self, address: str) -> None:
        self.taken.remove(address)


class Wire(StringTransport):
    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True


class ProxiedTests(SynchronousTestCase):
    """L{ProxiedFactory} and its connections."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.places = Places(2)
        self.made: list[Served] = []
        self.kind: type[Served] | None = Served
        self.inner = ServerFactory()
        self.inner.buildProtocol = self.build  # type: ignore[method-assign]
        self.factory = ProxiedFactory(
            self.inner, ProxySources(["10.0.0.0/8"]), self.clock, self.places, lambda: 5.0
        )
        self.log = EventLoggingObserver.createWithCleanup(cast(Any, self), globalLogPublisher)

    def build(self, addr: IAddress | None) -> Served | None:
        if self.kind is None:
            return None
        self.made.append(self.kind(addr))
        return self.made[-1]

    def connect(self, peer: Any = PROXY) -> tuple[ProxiedConnection, Wire]:
        protocol = self.factory.buildProtocol(peer)
        assert protocol is not None
        wire = Wire(peerAddress=peer)
        alsoProvides(wire, ITCPTransport)
        protocol.makeConnection(wire)
        return protocol, wire

    def refusals(self) -> list[str]:
        return [str(event["why"]) for event in self.log if "was refused" in event["log_format"]]

    def test_theCallersAddressFromTheFirstMoment(self) -> None:
        """What serves is built with, and sees, the caller's address; then every byte, once."""
        protocol, _ = self.connect()
        for byte in LINE[:-1]:
            protocol.dataReceived(bytes([byte]))
        self.assertEqual(self.made, [])
        protocol.dataReceived(LINE[-1:] + b"first")
        protocol.dataReceived(b"second")
        self.assertEqual(self.made[0].built, CALLER)
        self.assertEqual(self.made[0].heard, [CALLER, b"first", b"second"])

    def test_transport(self) -> None:
        """Its transport is the socket but for the addresses."""
        protocol, wire = self.connect()
        protocol.dataReceived(LINE)
        transport: Any = self.made[0].transport
        self.assertTrue(ITCPTransport.providedBy(transport))
        transport.write(b"a")
        transport.writeSequence([b"b", b"c"])
        self.assertEqual(wire.value(), b"abc")
        transport.pauseProducing()
        self.assertEqual(wire.producerState, "paused")
        transport.loseConnection()
        self.assertTrue(wire.disconnecting)
        self.assertTrue(transport.disconnecting)
        self.assertEqual(transport.getHost(), IPv4Address("TCP", "198.51.100.1", 443))

    def test_localConnection(self) -> None:
        """A proxy that speaks for itself is the peer, as the socket has it."""
        protocol, _ = self.connect()
        protocol.dataReceived(b"PROXY UNKNOWN\r\nx")
        self.assertEqual(self.made[0].heard, [PROXY, b"x"])
        self.assertEqual(self.made[0].built, PROXY)

    def test_forged(self) -> None:
        """A header from somebody who is no proxy is never read: refused at once."""
        stranger = IPv4Address("TCP", "203.0.113.9", 1)
        self.assertIsNone(self.factory.buildProtocol(stranger))
        self.assertIsNone(self.factory.buildProtocol(UNIXAddress(None)))
        self.assertEqual(self.places.taken, [])
        self.assertEqual(self.refusals(), ["not one of the proxies that this port is for"] * 2)

    def test_sourcesMayBeReplaced(self) -> None:
        """Whom it believes can be changed while it serves."""
        self.factory.sources = ProxySources(["203.0.113.0/24"])
        self.assertIsNone(self.factory.buildProtocol(PROXY))
        self.assertIsNotNone(self.factory.buildProtocol(IPv4Address("TCP", "203.0.113.9", 1)))

    def test_noHeader(self) -> None:
        """A proxy that sends something else is cut off; what serves hears nothing."""
        protocol, wire = self.connect()
        protocol.dataReceived(b"GET / HTTP/1.1\r\n\r\n")
        self.assertTrue(wire.aborted)
        protocol.dataReceived(LINE)
        protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual((self.made, self.places.taken), ([], []))
        self.assertEqual(self.refusals(), ["the connection does not begin with a PROXY header"])

    def test_stalledHeaderIsCut(self) -> None:
        """E4: a header that does not come in time, though bytes drip in, is waited for no more."""
        protocol, wire = self.connect()
        for byte in LINE[:4]:
            self.clock.advance(1.2)
            protocol.dataReceived(bytes([byte]))
        self.assertFalse(wire.aborted)
        self.clock.advance(0.2)
        self.assertTrue(wire.aborted)
        self.assertEqual(self.refusals(), ["no PROXY header within 5 s"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_countsAmongStrangers(self) -> None:
        """E5: who waits has a place, under no address; there are only so many."""
        first, _ = self.connect()
        second, _ = self.connect()
        self.assertEqual(self.places.taken, ["", ""])
        _, wire = self.connect()
        self.assertTrue(wire.aborted)
        first.dataReceived(LINE)
        self.assertEqual(self.places.taken, [""])
        second.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.places.taken, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_halfClose(self) -> None:
        """What can hear half-closes does; for what cannot, the socket closes."""
        protocol, _ = self.connect()
        protocol.dataReceived(LINE)
        self.assertFalse(IHalfCloseableProtocol.providedBy(protocol))
        self.kind = HalfServed
        protocol, _ = self.connect()
        protocol.dataReceived(LINE)
        self.assertTrue(IHalfCloseableProtocol.providedBy(protocol))
        protocol.readConnectionLost()
        protocol.writeConnectionLost()
        protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.made[1].heard[1:], ["read lost", "write lost", ConnectionDone])

    def test_nothingServes(self) -> None:
        """Where nothing is built, the connection is closed."""
        self.kind = None
        protocol, wire = self.connect()
        protocol.dataReceived(LINE + b"x")
        self.assertTrue(wire.aborted)
        self.assertEqual(self.places.taken, [])

    def test_logIsNotFlooded(self) -> None:
        """A flood of strangers is a few lines a second; the rest is counted."""
        stranger = IPv4Address("TCP", "203.0.113.9", 1)
        for _ in range(LINES_A_SECOND + 100):
            self.factory.buildProtocol(stranger)
        self.assertEqual(len(self.refusals()), LINES_A_SECOND)
        self.clock.advance(1)
        self.factory.buildProtocol(stranger)
        events = [event for event in self.log if "was refused" in event["log_format"]]
        self.assertEqual(events[-1]["notLogged"], 100)
