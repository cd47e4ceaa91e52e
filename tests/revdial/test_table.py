"""Tests for L{helix_revdial.revdial.table}: grace, revocation, limits and views."""

from __future__ import annotations

from helix_revdial.revdial.errors import (
    NotConnected,
    ReconnectTimeout,
    TargetRefused,
    TooManyPendingDials,
    UnknownDial,
)
from helix_revdial.revdial.table import (
    Claimed,
    Close,
    ConnectionTable,
    DialState,
    Effect,
    Failed,
    Gone,
    TooManyRunners,
)
from tests.revdial.tables import KEY, OLD, TableCase


class GraceTests(TableCase):
    """A runner that loses its control connection keeps its name."""

    def test_dialsWaitAndAreAnsweredOnReturn(self) -> None:
        """Row 16: dials made in grace are asked of the new connection, in order."""
        generation = self.connect()
        self.table.lost(KEY, generation)
        first, second = self.table.dial(KEY), self.table.dial(KEY)
        self.assertIs(first.state, DialState.WAITING)
        self.assertIsNone(first.ticket)
        self.clock.advance(29.9)
        self.assertEqual(self.table.expire(), [])
        outcome = self.claim()
        self.assertEqual(outcome, Claimed(None, [first, second], []))
        self.assertEqual(first.generation, self.generation)
        self.assertIs(self.table.pickUp("cred-a", ticket=first.ticket), first)

    def test_dialUnderWayGoesBackToWaiting(self) -> None:
        """Upstream bug 5: a dial that was asked for waits when the connection ends."""
        generation = self.connect()
        dial = self.table.dial(KEY)
        ticket = dial.ticket
        self.table.lost(KEY, generation)
        self.assertIs(dial.state, DialState.WAITING)
        with self.assertRaises(UnknownDial):
            self.table.pickUp("cred-a", ticket=ticket)
        self.assertEqual(self.claim(), Claimed(None, [dial], []))
        self.assertNotEqual(dial.ticket, ticket)
        with self.assertRaises(UnknownDial):
            self.table.pickUp("cred-a", ticket=ticket)
        self.assertIs(self.table.pickUp("cred-a", ticket=dial.ticket), dial)

    def test_dialUnderWayHasTheGracePeriod(self) -> None:
        """Row 16: once it waits, the agent's time to dial back does not end it."""
        generation = self.connect()
        dial = self.table.dial(KEY)
        self.clock.advance(10)
        self.table.lost(KEY, generation)
        self.clock.advance(25)
        self.assertEqual(self.table.expire(), [])
        self.assertEqual(self.claim(), Claimed(None, [dial], []))

    def test_dialUnderWayIsAskedOfTheConnectionThatTookOver(self) -> None:
        """A1: a dial that the half-open connection never heard of is answered by the new one."""
        self.connect(features=OLD)
        dial = self.table.dial(KEY)
        before = (dial.dialer, dial.request)
        self.assertEqual(self.claim(features=OLD), Claimed(1, [dial], []))
        with self.assertRaises(UnknownDial):
            self.table.pickUp("cred-a", dialer=before[0], request=before[1])
        self.assertIs(self.pickUpOld(dial), dial)

    def test_endOfGrace(self) -> None:
        """Row 16: what waits fails with a reconnect timeout, exactly when grace ends."""
        generation = self.connect()
        self.table.lost(KEY, generation)
        dial = self.table.dial(KEY)
        self.assertEqual(self.table.nextDeadline(), 30)
        self.clock.advance(30)
        failed, gone = self.table.expire()
        self.assertFailed(failed, dial, ReconnectTimeout)
        self.assertEqual(gone, Gone(KEY, generation))
        self.assertIsNone(self.table.status(KEY))
        with self.assertRaises(NotConnected):
            self.table.dial(KEY)
        self.assertEqual(self.table.expire(), [])
        self.assertNothingLeft()

    def test_returnEndsGrace(self) -> None:
        """A2: the timer of a grace that ended by return does nothing later."""
        self.table.lost(KEY, self.connect())
        self.connect()
        self.clock.advance(100)
        self.assertEqual(self.table.expire(), [])
        self.assertEqual(self.table.status(KEY), "connected")

    def test_dialsOwnTimeInGrace(self) -> None:
        """A caller with less time than the grace period is told when its time is up."""
        self.table.lost(KEY, self.connect())
        dial = self.table.dial(KEY, timeout=5)
        self.clock.advance(5)
        (failed,) = self.table.expire()
        self.assertFailed(failed, dial, ReconnectTimeout)
        self.assertEqual(self.table.status(KEY), "grace")

    def test_overdueDialIsNotResumed(self) -> None:
        """A dial whose time is up at the return is failed, not asked for."""
        self.table.lost(KEY, self.connect())
        dial = self.table.dial(KEY, timeout=5)
        self.clock.advance(5)
        self.assertEqual(self.claim(), Claimed(None, [], []))
        (failed,) = self.table.expire()
        self.assertFailed(failed, dial, ReconnectTimeout)

    def test_goodbyeHasNoGrace(self) -> None:
        """What leaves with a goodbye is not awaited, and all its callers are told."""
        generation = self.connect()
        dials = [self.table.dial(KEY) for _ in range(3)]
        *failures, gone = self.table.left(KEY, generation)
        for failed, dial in zip(failures, dials, strict=True):
            self.assertFailed(failed, dial, NotConnected)
        self.assertEqual(gone, Gone(KEY, generation))
        self.assertNothingLeft()

    def test_noGrace(self) -> None:
        """With a grace period of nothing a lost runner is gone at the next turn."""
        self.table = ConnectionTable(self.clock, gracePeriod=0)
        generation = self.connect()
        self.table.lost(KEY, generation)
        self.assertEqual(self.table.nextDeadline(), 0)
        self.assertEqual(self.table.expire(), [Gone(KEY, generation)])

    def test_flappingLinkDoesNotKeepADialForEver(self) -> None:
        """C9: a dial that is asked for again and again still ends."""
        generation = self.connect()
        dial = self.table.dial(KEY)
        effects: list[Effect] = []
        for _ in range(20):
            self.clock.advance(9)
            effects += self.table.expire()
            self.table.lost(KEY, generation)
            generation = self.connect()
        (failed,) = effects
        self.assertIsInstance(failed, Failed)
        self.assertIs(dial.state, DialState.OVER)

    def test_noTargetsOnReturn(self) -> None:
        """A named dial fails when the agent comes back as a version without names."""
        self.table.lost(KEY, self.connect())
        named, sole = self.table.dial(KEY, "api"), self.table.dial(KEY)
        outcome = self.claim(features=OLD)
        assert isinstance(outcome, Claimed)
        (failed,) = outcome.failed
        self.assertFailed(failed, named, TargetRefused)
        self.assertEqual(outcome.resumed, [sole])


class RevokeTests(TableCase):
    """Revocation skips grace and fails what waits."""

    def test_live(self) -> None:
        """The connection is to be closed, and every caller is told."""
        generation = self.connect()
        dial = self.table.dial(KEY)
        close, failed, gone = self.table.revoke(credential="cred-a")
        self.assertEqual(close, Close(KEY, generation, "revoked"))
        self.assertFailed(failed, dial, NotConnected)
        self.assertEqual(gone, Gone(KEY, generation))
        self.assertIsNone(self.table.status(KEY))
        self.assertFalse(self.table.lost(KEY, generation))
        self.assertIsNone(self.table.status(KEY), "the end of what was revoked starts no grace")
        self.assertNothingLeft()

    def test_inGrace(self) -> None:
        """There is nothing to close, but what waits is told now, not in thirty seconds."""
        generation = self.connect()
        self.table.lost(KEY, generation)
        dial = self.table.dial(KEY)
        failed, gone = self.table.revoke(owner="family:a")
        self.assertFailed(failed, dial, NotConnected)
        self.assertEqual(gone, Gone(KEY, generation))
        self.assertNothingLeft()

    def test_whichOnes(self) -> None:
        """Every word that is given has to match."""
        self.connect("a", "session:1", "cred-1")
        self.connect("b", "session:1", "cred-2")
        self.connect("c", "session:2", "cred-2")
        self.assertEqual(self.table.revoke(owner="session:1", credential="cred-3"), [])
        self.assertEqual(self.table.revoke(key="nobody"), [])
        self.assertEqual(self.table.revoke(key="a", owner="session:2"), [])
        self.table.revoke(credential="cred-2", owner="session:1")
        self.assertEqual(self.table.stats().keys, ["a", "c"])
        self.table.revoke(credential="cred-2")
        self.assertEqual(self.table.stats().keys, ["a"])
        self.table.revoke(key="a")
        self.assertEqual(self.table.stats().keys, [])

    def test_nothingGiven(self) -> None:
        """A slip cannot cut everybody."""
        self.connect()
        with self.assertRaises(ValueError):
            self.table.revoke()
        self.assertEqual(self.table.stats().connected, 1)

    def test_agentEndsWhilePickUpsAreInFlight(self) -> None:
        """C7: whatever comes in afterwards is unknown; every caller is told once."""
        generation = self.connect()
        dials = [self.table.dial(KEY) for _ in range(20)]
        tickets = [dial.ticket for dial in dials]
        picked = self.table.pickUp("cred-a", ticket=tickets[0])
        told = [e.dial for e in self.table.left(KEY, generation) if isinstance(e, Failed)]
        self.assertEqual(told, dials[1:])
        self.assertIs(picked.state, DialState.PICKED_UP)
        for ticket in tickets:
            with self.assertRaises(UnknownDial):
                self.table.pickUp("cred-a", ticket=ticket)
        self.assertEqual(self.table.expire(), [])


class LimitTests(TableCase):
    """Limits that change while it runs."""

    def test_newLimits(self) -> None:
        """They hold for what comes after; what is under way keeps the time that it had."""
        self.table.lost("c", self.connect("c"))
        self.connect("b")
        self.connect()
        before = self.table.dial(KEY)
        self.table.setLimits(gracePeriod=5, maxPending=1, dialTimeout=3, maxRunners=1)
        with self.assertRaises(TooManyPendingDials):
            self.table.dial(KEY)
        self.table.dial("b")
        with self.assertRaises(TooManyRunners):
            self.connect("d")
        self.clock.advance(3)
        self.assertEqual(len(self.table.expire()), 1, "the new dial, not the one from before")
        self.assertIs(before.state, DialState.ASKED)
        self.table.lost("b", 2)
        shown = {holder.key: holder.graceEnds for holder in self.table.holders()}
        self.assertEqual((shown["c"], shown["b"]), (30, 8))


class ViewTests(TableCase):
    """What the table tells about itself."""

    def test_stats(self) -> None:
        """Connected and in grace are counted apart; keys are sorted."""
        self.connect("b")
        self.connect("a")
        self.table.lost("c", self.connect("c"))
        self.table.dial("a")
        self.table.dial("c")
        stats = self.table.stats()
        self.assertEqual((stats.connected, stats.grace, stats.pendingDials), (2, 1, 2))
        self.assertEqual(stats.keys, ["a", "b"])

    def test_holders(self) -> None:
        """Each key with its owner, and the end of its grace."""
        self.connect("b")
        self.table.lost("a", self.connect("a"))
        self.table.dial("a")
        shown = [(h.key, h.graceEnds, h.pendingDials) for h in self.table.holders()]
        self.assertEqual(shown, [("a", 30, 1), ("b", None, 0)])
        self.assertIsNone(self.table.holder("c"))
