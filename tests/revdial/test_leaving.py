"""Tests for L{helix_revdial.revdial.leaving}."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from helix_revdial.revdial.departure import CLOSE_LIMIT, LEAVE_AFTER
from helix_revdial.revdial.errors import (
    NotConnected,
)
from helix_revdial.revdial.messages import (
    Closing,
    Goodbye,
)
from tests.revdial.callers import ConnectionsCase


class StopTests(ConnectionsCase):
    def test_stop(self) -> None:
        """G1: goodbye first, then what runs may finish, then closing, and nothing left."""
        agent = self.agent()
        old = self.agent("hijack", key="wolf-2", features=frozenset(), offered=False)
        connecting, waiting = self.dial(), self.dial()
        ready, _ = agent.read()
        carrier = agent.carry(ready)
        self.successResultOf(connecting)
        stopping = Deferred.fromCoroutine(self.connections.stop(10.0))
        agent.read()
        self.assertIn(Goodbye(LEAVE_AFTER), agent.other)
        refused = self.failureResultOf(self.dial(), NotConnected).value
        self.assertEqual(refused.retryAfter, 1.0)
        self.failureResultOf(self.registering(key="wolf-3"), NotConnected)
        self.assertFalse(carrier.ended)
        self.assertFalse(old.carrier.ended)
        self.clock.advance(10)
        self.successResultOf(stopping)
        agent.read()
        self.assertEqual(agent.other[-1], Closing("shutdown"))
        self.assertTrue(carrier.aborted)
        self.assertTrue(old.carrier.ended)
        self.failureResultOf(waiting, NotConnected)
        self.nothingLeft()

    def test_stopEndsEarlyWhenNothingRuns(self) -> None:
        """G2: agents that are connected and idle are not waited for."""
        agent = self.agent()
        stopping = Deferred.fromCoroutine(self.connections.stop(10.0))
        self.successResultOf(stopping)
        agent.read()
        self.assertEqual(agent.other[-2:], [Goodbye(LEAVE_AFTER), Closing("shutdown")])
        self.nothingLeft()

    def test_stopAtOnceAndAgain(self) -> None:
        """G2: a second stop without a delay does not wait for the first."""
        agent = self.agent()
        connecting = self.dial()
        carrier = agent.carry(agent.read()[0])
        self.successResultOf(connecting)
        first = Deferred.fromCoroutine(self.connections.stop(60.0))
        self.assertNoResult(first)
        second = Deferred.fromCoroutine(self.connections.stop())
        self.successResultOf(second)
        self.successResultOf(first)
        self.assertTrue(agent.carrier.ended)
        self.assertTrue(carrier.aborted)
        self.nothingLeft()

    def test_dialsUnderWayAreAnswered(self) -> None:
        """G1: what an agent was asked for before the stop is still picked up."""
        agent = self.agent()
        connecting = self.dial()
        [ready] = agent.read()
        self.connections.leave(30.0)
        settled = Deferred.fromCoroutine(self.connections.settled(20.0))
        drained = Deferred.fromCoroutine(self.connections.drained(30.0))
        self.assertNoResult(settled)
        carrier = agent.carry(ready)
        self.assertTrue(self.successResultOf(settled))
        self.successResultOf(connecting)
        self.assertNoResult(drained)
        carrier.lose()
        self.assertTrue(self.successResultOf(drained))
        self.successResultOf(Deferred.fromCoroutine(self.connections.stop()))
        self.nothingLeft()

    def test_whoCannotBeKeptIsToldBeforeTheWait(self) -> None:
        """G1: only who goes on with the next process is not told to leave, and only so many."""
        told = []
        for number in range(3):
            agent = self.agent(key=f"wolf-{number}")
            agent.carrier.isPlainSocket = number < 2  # type: ignore[attr-defined]
            told.append(agent)
        self.connections.leave(30.0, keeping=1)
        for agent in told:
            agent.read()
        self.assertEqual([Goodbye in map(type, agent.other) for agent in told], [False, True, True])
        self.successResultOf(Deferred.fromCoroutine(self.connections.stop()))
        self.nothingLeft()

    def test_dialsThatWaitAreToldToTryAgain(self) -> None:
        """G1: a dial that waits for a lost runner fails at once: it comes to another server."""
        agent = self.agent()
        agent.carrier.lose()
        waiting = self.dial()
        self.assertNoResult(waiting)
        self.connections.leave(30.0)
        self.assertEqual(self.failureResultOf(waiting, NotConnected).value.retryAfter, 1.0)
        self.successResultOf(Deferred.fromCoroutine(self.connections.stop()))
        self.nothingLeft()

    def test_agentThatLeavesIsNotAwaited(self) -> None:
        """G1: while the server stops there is no grace: the runner comes back to another."""
        agent = self.agent()
        asked = self.dial()
        agent.read()
        self.connections.leave(30.0)
        agent.carrier.lose()
        self.assertEqual(self.failureResultOf(asked, NotConnected).value.retryAfter, 1.0)
        self.assertIsNone(self.connections.status("wolf-1"))
        self.successResultOf(Deferred.fromCoroutine(self.connections.stop()))
        self.nothingLeft()

    def test_stopIsNotHeldByAPeer(self) -> None:
        """G2: an agent that does not close its side is dropped after two seconds."""
        agent = self.agent()
        agent.carrier.stuck = True
        stopping = Deferred.fromCoroutine(self.connections.stop())
        self.assertNoResult(stopping)
        self.clock.advance(CLOSE_LIMIT)
        self.successResultOf(stopping)
        self.assertTrue(agent.carrier.aborted)
        self.nothingLeft()
