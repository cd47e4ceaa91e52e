"""Tests for L{helix_revdial.revdial.table}: who may hold a name."""

from __future__ import annotations

from helix_revdial.revdial.errors import (
    HeldByAnother,
)
from helix_revdial.revdial.features import ALL
from helix_revdial.revdial.table import (
    Claimed,
    ConnectionTable,
    Contested,
    Gone,
    TooManyRunners,
)
from tests.revdial.tables import KEY, TableCase


class ClaimTests(TableCase):
    """Who owns a name."""

    def test_free(self) -> None:
        """A free key is given to whoever claims it."""
        self.assertEqual(self.table.claim(KEY, "family:a", "cred", 7, ALL), Claimed(None, [], []))
        self.assertEqual(self.table.status(KEY), "connected")
        holder = self.table.holder(KEY)
        assert holder is not None
        self.assertEqual((holder.generation, holder.owner, holder.features), (7, "family:a", ALL))

    def test_newConnectionServesWhileTheOldOneIsHalfOpen(self) -> None:
        """A1: the same owner takes over at once, and the old connection is to be closed."""
        first = self.connect()
        outcome = self.claim()
        self.assertEqual(outcome, Claimed(first, [], []))
        self.assertEqual(self.table.dial(KEY).generation, self.generation)

    def test_replacedTunnelIsReportedForClosing(self) -> None:
        """Upstream bug 2: each replaced generation is named once, none is forgotten."""
        closed = []
        for _ in range(3):
            outcome = self.claim()
            if isinstance(outcome, Contested):
                outcome = self.table.claim(
                    KEY, "family:a", "cred-a", self.generation, ALL, answered=False
                )
            assert isinstance(outcome, Claimed)
            closed.append(outcome.superseded)
        self.assertEqual(closed, [None, 1, 2])

    def test_oldSessionEndingLateLeavesTheNewOne(self) -> None:
        """A2, upstream bug 1 (TOCTOU): the end of a replaced connection changes nothing."""
        old = self.connect()
        new = self.connect()
        self.assertFalse(self.table.lost(KEY, old))
        self.assertEqual(self.table.left(KEY, old), [])
        self.assertEqual(self.table.status(KEY), "connected")
        holder = self.table.holder(KEY)
        assert holder is not None
        self.assertEqual(holder.generation, new)

    def test_endInGraceIsNotANewEnd(self) -> None:
        """A connection that is reported lost twice does not get a longer grace."""
        generation = self.connect()
        self.assertTrue(self.table.lost(KEY, generation))
        self.clock.advance(10)
        self.assertFalse(self.table.lost(KEY, generation))
        self.assertEqual(self.table.nextDeadline(), 30)

    def test_threeGenerationsInFlight(self) -> None:
        """A3: claims that arrive out of order have one winner, the latest."""
        self.assertEqual(self.table.claim(KEY, "o", "c", 2, ALL), Claimed(None, [], []))
        self.assertEqual(self.table.claim(KEY, "o", "c", 3, ALL), Claimed(2, [], []))
        for late in (1, 2, 3):
            with self.assertRaises(HeldByAnother):
                self.table.claim(KEY, "o", "c", late, ALL)
        for ended in (1, 2):
            self.assertFalse(self.table.lost(KEY, ended))
        self.assertEqual(self.table.stats().connected, 1)
        self.assertTrue(self.table.lost(KEY, 3))
        self.assertEqual((self.table.stats().connected, self.table.stats().grace), (0, 1))

    def test_anOlderGenerationLosesAfterTheEnd(self) -> None:
        """A3: a claim that was delayed does not revive a key whose later holder is gone."""
        self.table.claim(KEY, "o", "c", 5, ALL)
        self.table.left(KEY, 5)
        with self.assertRaises(HeldByAnother):
            self.table.claim(KEY, "o", "c", 4, ALL)
        self.assertEqual(self.table.claim(KEY, "other", "c", 6, ALL), Claimed(None, [], []))

    def test_anotherOwnerIsRefused(self) -> None:
        """A4: a live name cannot be had by another owner, who leaves no trace."""
        generation = self.connect()
        dial = self.table.dial(KEY)
        for answered in (None, False, True):
            with self.assertRaises(HeldByAnother) as caught:
                self.claim("family:b", answered=answered)
            self.assertIsNone(caught.exception.retryAfter)
        holder = self.table.holder(KEY)
        assert holder is not None
        self.assertEqual((holder.generation, holder.owner), (generation, "family:a"))
        self.assertIs(self.table.pickUp("cred-a", ticket=dial.ticket), dial)

    def test_anotherOwnerIsRefusedInGrace(self) -> None:
        """A4: nor during the grace period; then it is told when that ends."""
        self.table.lost(KEY, self.connect())
        self.clock.advance(12)
        with self.assertRaises(HeldByAnother) as caught:
            self.claim("family:b")
        self.assertEqual(caught.exception.retryAfter, 18)
        self.clock.advance(18)
        self.table.expire()
        self.assertIsInstance(self.claim("family:b"), Claimed)

    def test_oneLeavesTheOtherStays(self) -> None:
        """A6: of two agents on one name, the goodbye of the replaced one counts nothing down."""
        first = self.connect()
        second = self.connect()
        self.assertEqual(self.table.left(KEY, first), [])
        self.assertEqual(self.table.left(KEY, first), [])
        self.assertEqual(self.table.stats().connected, 1)
        self.assertEqual(self.table.left(KEY, second), [Gone(KEY, second)])
        self.assertEqual(self.table.left(KEY, second), [])
        self.assertEqual(self.table.stats().connected, 0)

    def test_restartsInOneSecondLeaveBoundedState(self) -> None:
        """A8: a thousand restarts leave one entry, and no history beyond the limit."""
        for _ in range(1000):
            outcome = self.claim()
            if isinstance(outcome, Contested):
                outcome = self.table.claim(
                    KEY, "family:a", "cred-a", self.generation, ALL, answered=False
                )
            self.assertIsInstance(outcome, Claimed)
            self.clock.advance(0.001)
        self.assertEqual(self.table.stats().connected, 1)
        self.assertEqual(len(self.table._runners[KEY].takeovers), 3)
        self.assertNothingLeft()

    def test_restartsWithGraceLeaveBoundedState(self) -> None:
        """A8: the same when each connection is seen to end."""
        for _ in range(1000):
            self.table.lost(KEY, self.connect())
        self.assertEqual(self.table.stats().grace, 1)
        self.assertEqual(len(self.table._deadlines), 1)
        self.assertLess(self.table._deadlines.held, 100)

    def test_tableIsFull(self) -> None:
        """A new key is refused when the table is full; a known one never is."""
        self.table = ConnectionTable(self.clock, maxRunners=2)
        self.connect("a")
        self.table.lost("b", self.connect("b"))
        with self.assertRaises(TooManyRunners) as caught:
            self.connect("c")
        self.assertEqual(caught.exception.status, 503)
        self.connect("a")
        self.connect("b")
        self.table.revoke(key="a")
        self.connect("c")

    def test_memoryOfTheGoneIsBounded(self) -> None:
        """What is remembered of keys that are gone is no more than the table's size."""
        self.table = ConnectionTable(self.clock, maxRunners=5)
        for number in range(50):
            key = f"k{number}"
            self.table.left(key, self.connect(key))
        self.assertEqual(len(self.table._memory), 5)
        self.assertEqual(self.table.stats().connected, 0)


class CloneTests(TableCase):
    """A5: two hosts with one identity are noticed."""

    def contest(self) -> None:
        """Two takeovers, so that the next is the third within the minute."""
        self.connect()
        self.clock.advance(1)
        self.connect()
        self.clock.advance(1)
        self.connect()
        self.clock.advance(1)

    def test_thirdTakeoverIsContested(self) -> None:
        """A5: the third takeover in a minute names the holder, and changes nothing."""
        self.contest()
        holder = self.generation
        dial = self.table.dial(KEY)
        self.assertEqual(self.claim(), Contested(holder))
        self.assertEqual(self.claim(), Contested(holder))
        self.assertIs(self.table.pickUp("cred-a", ticket=dial.ticket), dial)

    def test_whoAnswersStays(self) -> None:
        """A5: the newcomer is refused, and told to wait for a minute."""
        self.contest()
        holder = self.generation
        self.claim()
        with self.assertRaises(HeldByAnother) as caught:
            self.claim(answered=True)
        self.assertEqual(caught.exception.retryAfter, 60)
        self.assertEqual(self.table.stats().keys, [KEY])
        self.assertTrue(self.table.lost(KEY, holder))

    def test_provenHolderIsAlwaysProbed(self) -> None:
        """A5: clones do not go on once a minute: who has proven alive is asked each time."""
        self.contest()
        holder = self.generation
        self.claim()
        with self.assertRaises(HeldByAnother):
            self.claim(answered=True)
        self.clock.advance(3600)
        self.assertEqual(self.claim(), Contested(holder))

    def test_silentHolderIsTakenOver(self) -> None:
        """A1: a holder that does not answer is taken over, however often that happens."""
        self.contest()
        holder = self.generation
        dial = self.table.dial(KEY)
        self.claim()
        self.assertEqual(self.claim(answered=False), Claimed(holder, [dial], []))
        self.assertEqual(self.claim(), Contested(self.generation - 1))

    def test_slowTakeoversAreNone(self) -> None:
        """Takeovers that are a minute apart in threes are not contested."""
        self.connect()
        for _ in range(10):
            self.clock.advance(30)
            self.assertIsInstance(self.claim(), Claimed)

    def test_returnsFromGraceAreNoTakeovers(self) -> None:
        """A bad link that is seen to break makes no clone."""
        for _ in range(10):
            self.table.lost(KEY, self.connect())

    def test_answerAboutAnotherHolderDoesNotCount(self) -> None:
        """A3: what a probe found counts only for the generation that was probed."""
        self.contest()
        self.claim()
        second = self.claim(answered=False)
        self.assertIsInstance(second, Claimed)
        holder = self.generation
        # Another newcomer had probed the generation that is gone now.
        self.assertEqual(self.claim(answered=False), Contested(holder))
        self.assertEqual(
            self.claim(answered=False), Claimed(holder, [], []), "now it has been probed"
        )

    def test_probedHolderEndsMeanwhile(self) -> None:
        """The holder's connection ends during the probe: the newcomer simply returns."""
        self.contest()
        holder = self.generation
        self.claim()
        self.table.lost(KEY, holder)
        self.assertEqual(self.claim(answered=False), Claimed(None, [], []))

    def test_keyIsFreedMeanwhile(self) -> None:
        """The key is revoked and given to another during the probe: no takeover."""
        self.contest()
        self.claim()
        self.table.revoke(key=KEY)
        self.connect(owner="family:b")
        with self.assertRaises(HeldByAnother):
            self.claim(answered=False)

    def test_goodbyeDoesNotForgetTakeovers(self) -> None:
        """A5: clones that say goodbye in between are still noticed."""
        self.contest()
        self.table.left(KEY, self.generation)
        self.connect()
        self.assertEqual(self.claim(), Contested(self.generation - 1))
