"""Checks: both ends of an upgrade that registers nobody."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.test.iosim import FakeTransport, connect
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.checks import CHECK_LIFE, MAX_CHECKS, Check, CheckPeer
from helix_revdial.revdial.connections import Connections
from helix_revdial.revdial.errors import HeldByAnother, NotConnected, TooManyPendingDials
from helix_revdial.revdial.features import ALL, CHECK_HEADER, FEATURES_HEADER, formatFeatures
from helix_revdial.revdial.upgrade import RawCarrier, rawServer


class CheckTests(SynchronousTestCase):
    """The two ends, joined."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.over: list[CheckPeer] = []

    def open(self, features: frozenset[str] = ALL) -> tuple[CheckPeer, Check, Any]:
        peer = CheckPeer(self.clock, features, self.over.append)
        check = Check(self.clock, ALL)
        answered = (
            (FEATURES_HEADER.lower(), formatFeatures(features)),
            (CHECK_HEADER.lower(), b"connected"),
        )
        client = RawCarrier(check, self.clock, "raw", None, answered)
        server = RawCarrier(peer, self.clock, "raw", None, ())
        pump = connect(server, FakeTransport(server, True), client, FakeTransport(client, False))
        return peer, check, pump

    def test_answersAndSaysNothingElse(self) -> None:
        """The server answers each question and is silent otherwise."""
        _, check, pump = self.open()
        self.assertTrue(check.isCheck)
        self.assertEqual((check.state, check.features), ("connected", ALL))
        heard = check.lastHeard
        self.clock.advance(100)
        pump.flush()
        self.assertEqual(check.lastHeard, heard, "the server spoke unasked")
        answer = check.ask()
        self.clock.advance(0.25)
        pump.flush()
        self.assertEqual(self.successResultOf(answer), 0.25)

    def test_leaves(self) -> None:
        """When the asking end leaves, nothing stays on either side."""
        peer, check, pump = self.open()
        leaving = check.leave()
        pump.flush()
        self.successResultOf(leaving)
        self.assertEqual(self.over, [peer])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.failureResultOf(check.ask(), ConnectionLost)

    def test_ends(self) -> None:
        """A check that is left open ends by itself."""
        peer, check, pump = self.open()
        lost = check.whenLost()
        self.clock.advance(CHECK_LIFE)
        pump.flush()
        self.failureResultOf(lost)
        self.failureResultOf(check.whenLost())
        self.assertEqual(self.over, [peer])

    def test_carrierThatNeverComes(self) -> None:
        """A server's end whose carrier fails is forgotten at once."""
        peer = CheckPeer(self.clock, ALL, self.over.append)
        carrier = rawServer(peer, clock=self.clock, onFailure=lambda failure: peer.abandon())
        self.assertIsNotNone(carrier)
        peer.abandon()
        self.assertEqual(self.over, [peer])
        self.assertEqual(self.clock.getDelayedCalls(), [])


class ConnectionsTests(SynchronousTestCase):
    """What a server's connections make of checks."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.number = 0

        async def generation() -> int:
            self.number += 1
            return self.number

        self.connections = Connections(self.clock, generation, wallClock=self.clock.seconds)

    def register(self, owner: str) -> None:
        self.successResultOf(
            Deferred.fromCoroutine(
                self.connections.register(
                    "wolf-1", owner, owner, features=ALL, offered=True, peer=""
                )
            )
        )

    def test_disturbsNobody(self) -> None:
        """A check of a key that is held claims nothing, the owner's as little as another's."""
        self.register("a")
        peer = self.connections.check("wolf-1", "a", ALL)
        self.assertEqual(self.connections.stats().connections, ["wolf-1"])
        self.assertRaises(HeldByAnother, self.connections.check, "wolf-1", "b", ALL)
        self.connections.check(None, None, ALL).abandon()
        self.assertEqual(self.number, 1, "a check took a generation")
        peer.abandon()

    def test_limit(self) -> None:
        """So many checks and no more; one that ends makes room."""
        peers = [self.connections.check(None, None, ALL) for _ in range(MAX_CHECKS)]
        error = self.assertRaises(TooManyPendingDials, self.connections.check, None, None, ALL)
        self.assertIsNotNone(error.retryAfter)
        peers[0].abandon()
        self.connections.check(None, None, ALL)

    def test_stop(self) -> None:
        """A server that stops ends its checks, and takes no more."""
        peer = self.connections.check(None, None, ALL)
        over = CheckTransport(self.clock)
        over.carry(peer)
        self.successResultOf(Deferred.fromCoroutine(self.connections.stop()))
        self.assertTrue(over.closed)
        self.assertRaises(NotConnected, self.connections.check, None, None, ALL)


class CheckTransport:
    """A raw carrier for one end, over a transport that is only looked at."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._wire: Any = None

    @property
    def closed(self) -> bool:
        return bool(self._wire.disconnecting)

    def carry(self, protocol: Protocol) -> None:
        carrier = RawCarrier(protocol, self._clock, "raw", None, ())
        self._wire = FakeTransport(carrier, True)
        carrier.makeConnection(self._wire)
