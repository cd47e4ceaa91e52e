"""Tests for L{helix_revdial.revdial.table}: dials and their pick-ups."""

from __future__ import annotations

from random import Random

from helix_revdial.revdial.errors import (
    DialTimeout,
    NotAllowed,
    NotConnected,
    TargetRefused,
    TooManyPendingDials,
    UnknownDial,
)
from helix_revdial.revdial.features import ALL
from helix_revdial.revdial.messages import ConnReady, PickupFailed, dialIds
from helix_revdial.revdial.table import (
    ConnectionTable,
    Dial,
    DialState,
)
from tests.revdial.tables import KEY, OLD, TableCase


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
