"""
Tests for L{helix_revdial.revdial.table} and the values it is made of.
"""

from __future__ import annotations

from random import Random

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.deadlines import Deadlines
from helix_revdial.revdial.errors import (
    DialTimeout,
    HeldByAnother,
    NotAllowed,
    NotConnected,
    ReconnectTimeout,
    TargetRefused,
    TooManyPendingDials,
    UnknownDial,
)
from helix_revdial.revdial.features import ALL
from helix_revdial.revdial.messages import ConnReady, PickupFailed, dialIds
from helix_revdial.revdial.table import (
    Claimed,
    Close,
    ConnectionTable,
    Contested,
    Dial,
    DialState,
    Effect,
    Failed,
    Gone,
    TooManyRunners,
)

OLD: frozenset[str] = frozenset()
KEY = "sandbox-1"


class TableCase(SynchronousTestCase):
    """A table with a clock, and short ways to say things."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.table = ConnectionTable(self.clock)
        self.generation = 0

    def connect(
        self,
        key: str = KEY,
        owner: str = "family:a",
        credential: str = "cred-a",
        features: frozenset[str] = ALL,
    ) -> int:
        """Register, and take it as given that nothing is in the way."""
        self.generation += 1
        outcome = self.table.claim(key, owner, credential, self.generation, features)
        self.assertIsInstance(outcome, Claimed)
        return self.generation

    def claim(
        self, owner: str = "family:a", features: frozenset[str] = ALL, answered: bool | None = None
    ) -> Claimed | Contested:
        self.generation += 1
        return self.table.claim(KEY, owner, "cred-a", self.generation, features, answered=answered)

    def assertFailed(self, effect: Effect, dial: Dial, error: type[Exception]) -> None:
        self.assertIsInstance(effect, Failed)
        assert isinstance(effect, Failed)
        self.assertIs(effect.dial, dial)
        self.assertIs(type(effect.error), error)
        self.assertIs(dial.state, DialState.OVER)

    def assertNothingLeft(self, table: ConnectionTable | None = None) -> None:
        """No dial, no way to pick one up, no time to wait for."""
        table = self.table if table is None else table
        self.assertEqual(table.stats().pendingDials, 0)
        self.assertEqual(len(table._askings), 0)
        self.assertIsNone(table.nextDeadline())
        self.assertEqual(len(table._deadlines), 0)

    def pickUpOld(self, dial: Dial, credential: str = "cred-a") -> Dial:
        return self.table.pickUp(credential, dialer=dial.dialer, request=dial.request)


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


class DialTests(TableCase):
    """What a dial is, and how it ends."""

    def test_notConnected(self) -> None:
        """Nobody there is told at once."""
        with self.assertRaises(NotConnected):
            self.table.dial(KEY)

    def test_oldWire(self) -> None:
        """Row 12: two dials have one dialer and two requests; no word that is not the old one."""
        self.connect(features=OLD)
        one, two = self.table.dial(KEY), self.table.dial(KEY)
        self.assertEqual(
            one.connReady(),
            ConnReady(f"/revdial?revdial.dialer={one.dialer}&revdial.req={one.request}"),
        )
        self.assertEqual(one.dialer, two.dialer)
        self.assertNotEqual(one.request, two.request)
        for text in (one.dialer, one.request, one.id):
            self.assertRegex(text or "", "^[0-9a-f]{32}$")
        self.assertIsNone(one.ticket)

    def test_ticket(self) -> None:
        """With tickets nothing that picks the dial up stands in the path."""
        self.connect()
        dial = self.table.dial(KEY, "api")
        self.assertEqual(dial.connReady(), ConnReady("/revdial", dial.id, dial.ticket, "api"))
        self.assertGreaterEqual(len(dial.ticket or ""), 32)

    def test_targetsWithoutTickets(self) -> None:
        """The dial's id goes along, and the ids of the old wire."""
        self.connect(features=frozenset({"targets"}))
        message = self.table.dial(KEY, "api").connReady()
        self.assertIsNotNone(message.dial)
        self.assertEqual(message.target, "api")
        self.assertNotIn(None, dialIds(message.connPath))

    def test_namedTargetNeedsTargets(self) -> None:
        """A named dial to an agent without names fails; it never reaches the sole target."""
        self.connect(features=ALL - {"targets"})
        with self.assertRaises(TargetRefused):
            self.table.dial(KEY, "api")
        self.assertNothingLeft()

    def test_onlyWhatIsAskedForCanBeSent(self) -> None:
        """A waiting dial has nothing to send."""
        self.table.lost(KEY, self.connect())
        with self.assertRaises(ValueError):
            self.table.dial(KEY).connReady()

    def test_reprHidesSecrets(self) -> None:
        """F1: no repr shows what picks the dial up."""
        self.connect()
        self.connect("old", features=OLD)
        new, old = self.table.dial(KEY), self.table.dial("old")
        for secret in (new.ticket, old.dialer, old.request):
            assert secret is not None
            self.assertNotIn(secret, repr(new) + repr(old))

    def test_dialTimesOutThoughTheAgentStaysConnected(self) -> None:
        """C9: an agent that never dials back fails the dial, and only the dial."""
        self.connect()
        dial = self.table.dial(KEY, timeout=100)
        self.clock.advance(19.9)
        self.assertEqual(self.table.expire(), [])
        self.clock.advance(0.1)
        (failed,) = self.table.expire()
        self.assertFailed(failed, dial, DialTimeout)
        self.assertEqual(self.table.status(KEY), "connected")
        self.assertNothingLeft()

    def test_callersTimeIsShorter(self) -> None:
        """C9: a caller with less time is told earlier."""
        self.connect()
        dial = self.table.dial(KEY, timeout=3)
        self.assertEqual(self.table.nextDeadline(), 3)
        self.clock.advance(3)
        self.assertFailed(self.table.expire()[0], dial, DialTimeout)

    def test_limitOfWaitingDials(self) -> None:
        """Upstream bug 6: a hundred wait, connected or not; the next is told so."""
        generation = self.connect()
        self.connect("other")
        dials = [self.table.dial(KEY) for _ in range(60)]
        self.table.lost(KEY, generation)
        dials += [self.table.dial(KEY) for _ in range(40)]
        for _ in range(3):
            with self.assertRaises(TooManyPendingDials) as caught:
                self.table.dial(KEY)
        self.assertIsNotNone(caught.exception.retryAfter)
        self.table.dial("other")
        self.table.cancel(dials[0])
        self.table.dial(KEY)
        self.assertEqual(self.table.stats().pendingDials, 101)
        self.connect()
        with self.assertRaises(TooManyPendingDials):
            self.table.dial(KEY)

    def test_pickedUpDialsDoNotCount(self) -> None:
        """The limit is on what waits, not on what is open."""
        self.connect()
        for _ in range(500):
            self.table.pickUp("cred-a", ticket=self.table.dial(KEY).ticket)
        self.assertNothingLeft()

    def test_cancelStorm(self) -> None:
        """C12: a thousand dials, cancelled at random points, leave nothing."""
        random = Random(12)
        self.table = ConnectionTable(self.clock, maxPending=1000)
        generation = self.connect()
        dials: list[Dial] = []
        for number in range(1000):
            dials.append(self.table.dial(KEY, timeout=random.choice([None, 15, 45])))
            if number % 100 == 50:
                self.table.lost(KEY, generation)
            if number % 100 == 70:
                generation = self.connect()
            if random.random() < 0.5:
                self.table.cancel(dials.pop(random.randrange(len(dials))))
            self.clock.advance(0.001)
        random.shuffle(dials)
        for dial in dials:
            self.assertTrue(self.table.cancel(dial))
        self.assertNothingLeft()
        self.assertLess(self.table._deadlines.held, 100)
        self.clock.advance(1000)
        self.assertEqual(self.table.expire(), [])

    def test_cancelTwice(self) -> None:
        """C12: what is over cannot be cancelled, nor can it be again."""
        self.connect()
        dial = self.table.dial(KEY)
        self.assertTrue(self.table.cancel(dial))
        self.assertFalse(self.table.cancel(dial))
        used = self.table.dial(KEY)
        self.table.pickUp("cred-a", ticket=used.ticket)
        self.assertFalse(self.table.cancel(used))
        self.assertIs(used.state, DialState.PICKED_UP)
        waits = self.table.dial(KEY)
        self.table.revoke(key=KEY)
        self.assertFalse(self.table.cancel(waits))


class PickUpTests(TableCase):
    """Who may pick up."""

    def test_lateDialBackIsNeverGivenToTheNextCaller(self) -> None:
        """C1, rows 11 and 12: after a cancel the dial-back is unknown; the next caller waits on."""
        for features in (ALL, OLD):
            self.connect(features=features)
            first = self.table.dial(KEY)
            ticket, dialer, request = first.ticket, first.dialer, first.request
            self.table.cancel(first)
            second = self.table.dial(KEY)
            with self.assertRaises(UnknownDial):
                self.table.pickUp("cred-a", ticket=ticket, dialer=dialer, request=request)
            self.assertIs(second.state, DialState.ASKED)
            self.table.cancel(second)

    def test_dialBackAfterTheDeadline(self) -> None:
        """C1: even before the timer has fired, a dial whose time is up is not picked up."""
        self.connect()
        dial = self.table.dial(KEY)
        self.clock.advance(20)
        with self.assertRaises(UnknownDial):
            self.table.pickUp("cred-a", ticket=dial.ticket)
        self.assertFailed(self.table.expire()[0], dial, DialTimeout)

    def test_shuffledArrivals(self) -> None:
        """C2: of a hundred concurrent dials each gets its own, whatever the order."""
        for features in (ALL, OLD):
            self.connect(features=features)
            dials = [self.table.dial(KEY) for _ in range(100)]
            presented = [(d, d.ticket, d.dialer, d.request) for d in dials]
            Random(7).shuffle(presented)
            for dial, ticket, dialer, request in presented:
                found = self.table.pickUp("cred-a", ticket=ticket, dialer=dialer, request=request)
                self.assertIs(found, dial)
                self.assertIs(found.state, DialState.PICKED_UP)
            self.assertNothingLeft()

    def test_answeredTwice(self) -> None:
        """C4, F7: a ticket, and a pair of ids, picks up once."""
        self.connect()
        self.connect("old", features=OLD)
        new, old = self.table.dial(KEY), self.table.dial("old")
        ticket, dialer, request = new.ticket, old.dialer, old.request
        self.table.pickUp("cred-a", ticket=ticket)
        self.table.pickUp("cred-a", dialer=dialer, request=request)
        with self.assertRaises(UnknownDial):
            self.table.pickUp("cred-a", ticket=ticket)
        with self.assertRaises(UnknownDial):
            self.table.pickUp("cred-a", dialer=dialer, request=request)

    def test_unknown(self) -> None:
        """C4: what was never given out is unknown, and so is nothing at all."""
        self.connect()
        self.connect("old", features=OLD)
        self.table.dial(KEY)
        old = self.table.dial("old")
        for ticket, dialer, request in (
            ("x" * 32, None, None),
            ("", None, None),
            (None, "0" * 32, "0" * 32),
            (None, old.dialer, "0" * 32),
            (None, "0" * 32, old.request),
            (None, old.dialer, None),
            (None, None, old.request),
            (None, None, None),
            ("\ud800", None, None),
            (None, "\ud800", "ä"),
        ):
            with self.assertRaises(UnknownDial):
                self.table.pickUp("cred-a", ticket=ticket, dialer=dialer, request=request)
        self.assertEqual(self.table.stats().pendingDials, 2)

    def test_ticketForAnotherAgent(self) -> None:
        """C4, F7: another agent's ticket does not work, and is not used up."""
        self.connect()
        self.connect("other", "family:b", "cred-b")
        dial = self.table.dial(KEY)
        with self.assertRaises(NotAllowed):
            self.table.pickUp("cred-b", ticket=dial.ticket)
        self.assertIs(self.table.pickUp("cred-a", ticket=dial.ticket), dial)

    def test_idsForAnotherAgent(self) -> None:
        """C4: the ids of the old wire need the token that registered; nothing is used up."""
        self.connect(features=OLD)
        dial = self.table.dial(KEY)
        for credential in ("cred-b", "", "cred-ä"):
            with self.assertRaises(NotAllowed):
                self.pickUpOld(dial, credential)
        self.assertIs(self.pickUpOld(dial), dial)

    def test_ticketsAcceptNothingElse(self) -> None:
        """A generation that agreed on tickets has no ids to guess."""
        self.connect()
        dial = self.table.dial(KEY)
        self.assertIsNone(dial.dialer)
        self.assertIsNone(dial.request)
        for dialer, request in ((dial.id, dial.id), (self.table._runners[KEY].dialer, dial.id)):
            with self.assertRaises(UnknownDial):
                self.table.pickUp("cred-a", dialer=dialer, request=request)
        with self.assertRaises(UnknownDial):
            self.table.pickUp("cred-a", ticket=dial.id)

    def test_ticketIsNotAPairOfIds(self) -> None:
        """The two ways do not stand for each other, whatever is put into them."""
        self.connect(features=OLD)
        dial = self.table.dial(KEY)
        with self.assertRaises(UnknownDial):
            self.table.pickUp("cred-a", ticket=f"{dial.dialer} {dial.request}")

    def test_wrongTicketBesideRightIds(self) -> None:
        """A ticket decides alone where there is one."""
        self.connect(features=OLD)
        dial = self.table.dial(KEY)
        with self.assertRaises(UnknownDial):
            self.table.pickUp("cred-a", ticket="", dialer=dial.dialer, request=dial.request)
        self.assertIs(self.pickUpOld(dial), dial)

    def test_rotatedCredential(self) -> None:
        """After a takeover with another token, the new token picks up and the old one does not."""
        self.connect(owner="session:1", credential="cred-a", features=OLD)
        dial = self.table.dial(KEY)
        self.connect(owner="session:1", credential="cred-b", features=OLD)
        with self.assertRaises(NotAllowed):
            self.pickUpOld(dial, "cred-a")
        self.assertIs(self.pickUpOld(dial, "cred-b"), dial)

    def test_comparisonIsConstantTime(self) -> None:
        """F7: secrets are found by digest and compared by L{hmac.compare_digest}."""
        from helix_revdial.revdial import dials, table

        compared: list[tuple[bytes, bytes]] = []

        class Spy:
            @staticmethod
            def compare_digest(a: bytes, b: bytes) -> bool:
                compared.append((a, b))
                return a == b

        self.patch(dials, "hmac", Spy)
        self.patch(table, "hmac", Spy)
        self.connect()
        dial = self.table.dial(KEY)
        ticket = dial.ticket or ""
        for stored in self.table._askings._dials:
            self.assertNotIn(ticket.encode(), stored)
        self.table.pickUp("cred-a", ticket=ticket)
        self.assertEqual(
            compared,
            [(b"ticket " + ticket.encode(),) * 2, (b"cred-a", b"cred-a")],
        )


class PickupFailedTests(TableCase):
    """C3: what an agent says it cannot answer."""

    def failed(self, dial: Dial, key: str = KEY, generation: int | None = None) -> Dial | None:
        message = dial.connReady()
        return self.table.pickupFailed(
            key,
            self.generation if generation is None else generation,
            PickupFailed(message.connPath, "no", message.dial),
        )

    def test_onlyTheOneMeant(self) -> None:
        """C3, row 12: the failure of A leaves B as it was, on either wire."""
        for features in (ALL, frozenset({"targets"}), OLD):
            self.connect(features=features)
            a, b = self.table.dial(KEY), self.table.dial(KEY)
            self.assertIs(self.failed(a), a)
            self.assertIs(a.state, DialState.OVER)
            self.assertIs(b.state, DialState.ASKED)
            self.table.cancel(b)
            self.assertNothingLeft()

    def test_nobodyWaits(self) -> None:
        """C3: a failure nobody waits for is nothing."""
        self.connect()
        dial = self.table.dial(KEY)
        message = PickupFailed("/revdial", "no", dial.id)
        self.table.cancel(dial)
        self.assertIsNone(self.table.pickupFailed(KEY, self.generation, message))
        self.assertIsNone(self.table.pickupFailed("nobody", self.generation, message))
        for path in (
            "",
            "/revdial",
            "/revdial?revdial.dialer=1",
            "/revdial?revdial.dialer=1&revdial.req=2",
        ):
            message = PickupFailed(path, "no")
            self.assertIsNone(self.table.pickupFailed(KEY, self.generation, message))

    def test_anotherAgentsDial(self) -> None:
        """C4: an agent cannot fail a dial of another, whatever ids it sends."""
        for features in (ALL, OLD):
            self.connect(features=features)
            dial = self.table.dial(KEY)
            self.connect("other", "family:b", "cred-b", features)
            self.assertIsNone(self.failed(dial, "other"))
            self.assertIs(dial.state, DialState.ASKED)
            self.table.cancel(dial)

    def test_anotherGeneration(self) -> None:
        """A2: what a replaced connection still says does not reach the new one's dials."""
        old = self.connect(features=OLD)
        dial = self.table.dial(KEY)
        self.connect(features=OLD)
        self.assertIsNone(self.failed(dial, generation=old))
        self.assertIs(dial.state, DialState.ASKED)

    def test_waitingDial(self) -> None:
        """A dial that waits for the agent's return cannot be failed by the agent."""
        generation = self.connect()
        dial = self.table.dial(KEY)
        self.table.lost(KEY, generation)
        message = PickupFailed("/revdial", "no", dial.id)
        self.assertIsNone(self.table.pickupFailed(KEY, generation, message))
        self.assertEqual(self.table.stats().pendingDials, 1)

    def test_thenTheDialBack(self) -> None:
        """C4: a dial-back after its own failure is unknown."""
        self.connect()
        dial = self.table.dial(KEY)
        ticket = dial.ticket
        self.failed(dial)
        with self.assertRaises(UnknownDial):
            self.table.pickUp("cred-a", ticket=ticket)


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


class DeadlinesTests(SynchronousTestCase):
    """L{Deadlines}."""

    def test_order(self) -> None:
        """What is due comes out in order of time, then of scheduling; the rest stays."""
        deadlines: Deadlines[str] = Deadlines()
        for thing, when in (("c", 3.0), ("a", 1.0), ("b", 1.0), ("d", 4.0)):
            deadlines.schedule(thing, when)
        self.assertEqual(list(deadlines.due(3.0)), ["a", "b", "c"])
        self.assertEqual((deadlines.next(), len(deadlines)), (4.0, 1))

    def test_scheduledAgain(self) -> None:
        """The last time given counts, earlier or later."""
        deadlines: Deadlines[str] = Deadlines()
        deadlines.schedule("a", 1.0)
        deadlines.schedule("a", 5.0)
        self.assertEqual(deadlines.next(), 5.0)
        self.assertEqual(deadlines.when("a"), 5.0)
        deadlines.schedule("a", 2.0)
        self.assertEqual(list(deadlines.due(10.0)), ["a"])
        self.assertIsNone(deadlines.next())
        self.assertIsNone(deadlines.when("a"))

    def test_dropped(self) -> None:
        """What is dropped falls due no more; dropping it again is nothing."""
        deadlines: Deadlines[str] = Deadlines()
        deadlines.schedule("a", 1.0)
        deadlines.drop("a")
        deadlines.drop("a")
        self.assertEqual(list(deadlines.due(10.0)), [])

    def test_droppedWhileOthersFallDue(self) -> None:
        """Handling one thing may drop the next, and may schedule another."""
        deadlines: Deadlines[str] = Deadlines()
        for thing in "abc":
            deadlines.schedule(thing, 1.0)
        seen = []
        for thing in deadlines.due(1.0):
            seen.append(thing)
            if thing == "a":
                deadlines.drop("b")
                deadlines.schedule("d", 1.0)
        self.assertEqual(seen, ["a", "c", "d"])

    def test_bounded(self) -> None:
        """However often a thing is scheduled again, memory stays small."""
        deadlines: Deadlines[int] = Deadlines()
        for number in range(10_000):
            deadlines.schedule(number % 10, float(number))
        self.assertLessEqual(deadlines.held, 2 * 10 + 65)
