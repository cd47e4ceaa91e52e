"""Tests for L{helix_revdial.agent.servers}."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, ConnectingCancelledError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.agent.servers import SERVER_LIMIT, Servers
from helix_revdial.agent.token import TokenUnusable
from helix_revdial.revdial.client import Closed, ControlSession, Refused, ServerURL
from helix_revdial.revdial.exchange import MalformedAnswer, NoConnection
from helix_revdial.revdial.framed import FrameUser
from helix_revdial.revdial.listener import Listener
from helix_revdial.revdial.messages import ConnReady


class Way:
    """The way to one address, whose attempts a test ends."""

    def __init__(self, name: str, tried: list[str]) -> None:
        self.name = name
        self.tried = tried
        self.attempt: Deferred[ControlSession] | None = None
        self.dials = 0
        self.forgotten = 0

    async def connectControl(self, listener: Listener) -> ControlSession:
        self.tried.append(self.name)
        # Endpoints have errors of their own for being cancelled.
        self.attempt = Deferred(lambda d: d.errback(ConnectingCancelledError(cast(Any, None))))
        return await self.attempt

    def dataEndpoint(
        self, connReady: ConnReady, features: frozenset[str], ready: Deferred[float]
    ) -> IStreamClientEndpoint:
        self.dials += 1
        return cast(IStreamClientEndpoint, self)

    def park(self, ticket: str, features: frozenset[str], user: FrameUser) -> Any:
        self.dials += 1

    def forget(self) -> None:
        self.forgotten += 1

    def fail(self, error: Exception) -> None:
        assert self.attempt is not None
        self.attempt.errback(Failure(error))

    def accept(self, ended: str | None = None) -> None:
        """Connect, and end for the reason C{ended}."""
        assert self.attempt is not None
        closed: Deferred[Closed] = Deferred()
        self.attempt.callback(ControlSession(frozenset(), "raw", closed, cast(Any, None)))
        if ended is not None:
            closed.callback(Closed(ended, None, 1.0))


class ServersTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.tried: list[str] = []
        self.ways = [Way(name, self.tried) for name in "abc"]
        self.servers = Servers(
            self.clock, [(ServerURL.parse(f"https://{way.name}"), way) for way in self.ways]
        )

    def connect(self) -> Deferred[ControlSession]:
        del self.tried[:]
        return Deferred.fromCoroutine(self.servers.connectControl(cast(Any, None)))

    def test_inTurn(self) -> None:
        """The next address is tried as soon as one fails, whatever the failure."""
        connecting = self.connect()
        self.ways[0].fail(ConnectError(111))
        self.ways[1].fail(MalformedAnswer("x"))
        self.assertNoResult(connecting)
        self.ways[2].accept()
        self.successResultOf(connecting)
        self.assertEqual(self.tried, ["a", "b", "c"])
        self.assertEqual(str(self.servers.server), "https://c")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_allFail(self) -> None:
        """When none answers, the last one's failure is the attempt's."""
        connecting = self.connect()
        for way in self.ways:
            way.fail(ConnectError(111, way.name))
        error = self.failureResultOf(connecting, ConnectError).value
        self.assertIn("c", str(error))

    def test_beginsWithTheLastThatWorked(self) -> None:
        """After a connection the round begins where it was, and goes on from there."""
        self.connect()
        self.ways[0].fail(ConnectError(111))
        self.ways[1].accept("lost")
        connecting = self.connect()
        for way in (self.ways[1], self.ways[2], self.ways[0]):
            way.fail(ConnectError(111))
        self.failureResultOf(connecting, ConnectError)
        self.assertEqual(self.tried, ["b", "c", "a"])

    def test_serverThatGoesAway(self) -> None:
        """G1: one that said goodbye is the last to be tried."""
        for reason in ("goodbye", "shutdown"):
            connecting = self.connect()
            first = self.tried[0]
            self.ways["abc".index(first)].accept(reason)
            self.successResultOf(connecting)
            self.connect().addErrback(lambda _: None)
            for _ in range(3):
                self.ways["abc".index(self.tried[-1])].fail(ConnectError(111))
            self.assertEqual(self.tried[-1], first)

    def test_retryAfter(self) -> None:
        """E2: an address that names a time is left alone until then; the others are tried."""
        connecting = self.connect()
        self.ways[0].fail(Refused(503, "later", 30.0))
        self.ways[1].fail(Refused(503, "later", 10.0))
        self.ways[2].fail(ConnectError(111))
        self.failureResultOf(connecting, ConnectError)
        self.clock.advance(9)
        connecting = self.connect()
        self.ways[2].fail(Refused(503, "later", 5.0))
        refused = self.failureResultOf(connecting, Refused).value
        self.assertEqual(self.tried, ["c"])
        self.assertAlmostEqual(cast(float, refused.retryAfter), 1.0)
        self.clock.advance(0.5)
        self.connect().addErrback(lambda _: None)
        self.assertEqual(self.tried, ["b"], "when none may be tried, the first that may")

    def test_refusedByOne(self) -> None:
        """A refusal that names a time delays nobody else's next attempt."""
        connecting = self.connect()
        self.ways[0].fail(ConnectError(111))
        self.ways[1].fail(ConnectError(111))
        self.ways[2].fail(Refused(503, "later", 30.0))
        self.assertIsNone(self.failureResultOf(connecting, Refused).value.retryAfter)

    def test_noToken(self) -> None:
        """What is wrong with the agent is wrong at every address: the round ends."""
        connecting = self.connect()
        self.ways[0].fail(TokenUnusable("no token"))
        self.failureResultOf(connecting, TokenUnusable)
        self.assertEqual(self.tried, ["a"])

    def test_slow(self) -> None:
        """Each address has its own limit."""
        connecting = self.connect()
        for _ in range(2):
            self.clock.advance(SERVER_LIMIT)
        self.assertEqual(self.tried, ["a", "b", "c"])
        self.clock.advance(SERVER_LIMIT)
        self.failureResultOf(connecting, NoConnection)
        self.assertGreater(self.servers.attemptLimit, 3 * SERVER_LIMIT)

    def test_cancelled(self) -> None:
        """G3: who is told to stop tries no further address, whatever the error says."""
        connecting = self.connect()
        connecting.cancel()
        self.failureResultOf(connecting, CancelledError)
        self.assertEqual(self.tried, ["a"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_dials(self) -> None:
        """A dial is answered at the address whose control connection asked."""
        self.connect()
        self.ways[0].fail(ConnectError(111))
        self.ways[1].accept()
        self.servers.dataEndpoint(cast(Any, None), frozenset(), Deferred())
        self.assertEqual([way.dials for way in self.ways], [0, 1, 0])

    def test_forget(self) -> None:
        """B4: after a change of the network every address is looked at anew."""
        self.servers.forget()
        self.assertEqual([way.forgotten for way in self.ways], [1, 1, 1])

    def test_none(self) -> None:
        """There is at least one."""
        self.assertRaises(ValueError, Servers, self.clock, [])
