"""Tests for L{helix_revdial.revdial.server_peer}."""

from __future__ import annotations

from typing import Any

from twisted.internet import error
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from helix_revdial.revdial.server_peer import PEER_TIMEOUT, KnownPeer, PeerFirst


@implementer(IStreamClientEndpoint)
class Attempts:
    """
    Notes the attempts of all.

    @ivar made: Where each went, with what is to come of it.
    """

    def __init__(self, made: list[tuple[str, Deferred[IProtocol]]], where: str) -> None:
        self._made = made
        self._where = where

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        result: Deferred[IProtocol] = Deferred()
        self._made.append((self._where, result))
        return result


class PeerFirstTests(SynchronousTestCase):
    """Where a data connection goes."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.peer = KnownPeer()
        self.made: list[tuple[str, Deferred[IProtocol]]] = []
        clock: Any = self.clock
        self.endpoint = PeerFirst(
            clock, self.peer, lambda host: Attempts(self.made, host), Attempts(self.made, "name")
        )

    def connect(self) -> Deferred[IProtocol]:
        return self.endpoint.connect(Factory.forProtocol(Protocol))

    @property
    def went(self) -> list[str]:
        return [where for where, _ in self.made]

    def test_toTheNameWhileNothingIsKnown(self) -> None:
        """The control connection itself asks the resolver."""
        self.connect()
        self.assertEqual(self.went, ["name"])

    def test_toTheControlConnectionsPeer(self) -> None:
        """Data connections go where the control connection led, and ask nobody."""
        self.peer.learn(IPv4Address("TCP", "192.0.2.1", 8080))
        for _ in range(3):
            connecting = self.connect()
            protocol: Any = Protocol()
            self.made[-1][1].callback(protocol)
            self.assertIs(self.successResultOf(connecting), protocol)
        self.assertEqual(self.went, ["192.0.2.1"] * 3)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_toTheNameWhereNothingAccepts(self) -> None:
        """A fresh resolution follows, at once, and for those that come after."""
        self.peer.learn(IPv6Address("TCP", "2001:db8::1", 8080))
        connecting = self.connect()
        self.made[0][1].errback(error.ConnectionRefusedError())
        self.assertEqual(self.went, ["2001:db8::1", "name"])
        protocol: Any = Protocol()
        self.made[1][1].callback(protocol)
        self.assertIs(self.successResultOf(connecting), protocol)
        self.connect()
        self.assertEqual(self.went[2:], ["name"])

    def test_toTheNameWhereNobodyAnswers(self) -> None:
        """An address from which nothing comes back costs three seconds, not the dial."""
        self.peer.learn(IPv4Address("TCP", "192.0.2.1", 8080))
        connecting = self.connect()
        self.clock.advance(PEER_TIMEOUT)
        self.assertEqual(self.went, ["192.0.2.1", "name"])
        self.assertNoResult(connecting)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_otherFailuresAreTold(self) -> None:
        """What is not the connection's (a certificate, a cancellation) asks for no name."""
        self.peer.learn(IPv4Address("TCP", "192.0.2.1", 8080))
        connecting = self.connect()
        self.made[0][1].errback(ValueError("a certificate"))
        self.failureResultOf(connecting, ValueError)
        cancelled = self.connect()
        cancelled.cancel()
        self.failureResultOf(cancelled, CancelledError)
        self.assertEqual(self.went, ["192.0.2.1"] * 2)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_aNewerAddressStays(self) -> None:
        """An old attempt that fails does not undo what a newer control connection taught."""
        self.peer.learn(IPv4Address("TCP", "192.0.2.1", 8080))
        self.connect()
        self.peer.learn(IPv4Address("TCP", "192.0.2.2", 8080))
        self.made[0][1].errback(error.ConnectionRefusedError())
        self.assertEqual(self.peer.host, "192.0.2.2")

    def test_onlyLiteralsAreLearned(self) -> None:
        """Unix sockets, names and scoped addresses are no addresses to go to."""
        for address in (
            UNIXAddress("/run/x"),
            IPv6Address("TCP", "fe80::1%eth0", 1),
            IPv4Address("TCP", "cp.example", 1),
        ):
            self.peer.learn(address)
            self.assertIsNone(self.peer.host)
