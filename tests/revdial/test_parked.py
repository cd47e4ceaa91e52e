"""Which data connections are parked, for whom, and for how long."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.parked import (
    ASK_LIMIT,
    BACK_OFF,
    CHECK_AFTER,
    CHECK_LIMIT,
    INTEREST,
    LOAN,
    WINDOW,
    AskFor,
    CheckSlot,
    CloseSlot,
    Effect,
    Parked,
    PoolLimits,
    Slot,
)


class ParkedTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.scarce = False
        self.make(PoolLimits(spare=2, most=6, total=8, refresh=100.0))

    def make(self, limits: PoolLimits) -> None:
        self.parked = Parked(self.clock, limits, random=lambda: 0.5, scarce=lambda: self.scarce)
        for generation in (1, 2):
            self.parked.begin(generation)

    def open(self, effects: list[Effect]) -> list[Slot]:
        """Open what is asked for."""
        slots = []
        for effect in effects:
            assert isinstance(effect, AskFor), effect
            slot = self.parked.claim(effect.ticket)
            assert slot is not None
            self.assertEqual(self.parked.returned(slot), [])
            slots.append(slot)
        return slots

    def miss(self, generation: int = 1) -> list[Effect]:
        slot, effects = self.parked.take(generation)
        self.assertIsNone(slot)
        return effects

    def closed(self, effects: list[Effect]) -> list[str]:
        return [effect.why for effect in effects if isinstance(effect, CloseSlot)]

    def test_nothingBeforeTheFirstDial(self) -> None:
        """A runner that nobody dials has nothing parked."""
        self.clock.advance(1)
        self.assertEqual(self.parked.tick(), [])
        self.assertTrue(self.parked.isEmpty)

    def test_theFirstDialAsksForTheSpareOnes(self) -> None:
        """The first dial misses, and the spare ones are asked for."""
        self.open(self.miss())
        self.assertEqual((self.parked.idleOf(1), self.parked.idleOf(2)), (2, 0))

    def test_eachMissAsksForOneMore(self) -> None:
        """C10: a burst asks for one at each dial, up to the most for a runner, no more."""
        asked = [effect for _ in range(100) for effect in self.miss()]
        self.assertEqual(len(asked), 6)
        self.open(asked)
        self.assertEqual(self.parked.idleOf(1), 6)

    def test_total(self) -> None:
        """All runners together have at most the total."""
        asked = [effect for _ in range(9) for number in (1, 2) for effect in self.miss(number)]
        self.assertEqual(len(asked), 8)

    def test_unneeded(self) -> None:
        """What nobody needed for a whole window is closed, but for the spare ones."""
        self.open([effect for _ in range(6) for effect in self.miss()])
        for _ in range(2):
            self.clock.advance(WINDOW)
            effects = self.parked.tick()
            for effect in effects:
                if isinstance(effect, CheckSlot):
                    self.parked.alive(effect.slot)
        self.assertEqual(self.closed(effects), ["unneeded"] * 4)
        self.assertEqual(self.parked.idleOf(1), 2)

    def test_interestEnds(self) -> None:
        """Long after the last dial nothing is kept."""
        self.open(self.miss())
        for _ in range(int(INTEREST / 10) + int(2 * WINDOW)):
            self.clock.advance(10)
            for effect in self.parked.tick():
                if isinstance(effect, CheckSlot):
                    self.parked.alive(effect.slot)
                elif isinstance(effect, AskFor):
                    self.open([effect])
        self.assertEqual(self.parked.idle, 0)

    def test_refreshed(self) -> None:
        """An idle one is replaced before its time is over, each at a time of its own."""
        [slot, _] = self.open(self.miss())
        self.assertEqual(slot.dies, 90.0)
        self.clock.advance(90)
        effects = self.parked.tick()
        self.assertEqual(self.closed(effects), ["refreshed", "refreshed"])
        self.assertEqual(len([one for one in effects if isinstance(one, AskFor)]), 2)

    def test_checked(self) -> None:
        """B6: what is idle is asked for a sign of life, and closed where none comes."""
        quiet, lively = self.open(self.miss())
        self.clock.advance(CHECK_AFTER)
        self.assertEqual(self.parked.tick(), [CheckSlot(quiet), CheckSlot(lively)])
        self.parked.alive(lively)
        self.clock.advance(CHECK_LIMIT)
        effects = self.parked.tick()
        self.assertEqual(effects[0], CloseSlot(quiet, "reaped"))
        self.assertIsInstance(effects[1], AskFor)

    def test_tickets(self) -> None:
        """A ticket is good once, for its generation, and not for long."""
        first, second = self.miss()
        assert isinstance(first, AskFor)
        assert isinstance(second, AskFor)
        self.assertEqual(self.parked.peek(first.ticket), 1)
        self.assertIsNotNone(self.parked.claim(first.ticket))
        self.assertIsNone(self.parked.claim(first.ticket))
        self.clock.advance(ASK_LIMIT)
        self.assertIsNone(self.parked.claim(second.ticket))
        self.assertIsNone(self.parked.peek(second.ticket))

    def test_backOff(self) -> None:
        """An agent that opens none is not asked again for a while, longer each time."""
        self.miss()
        for pause in (BACK_OFF, 2 * BACK_OFF, 4 * BACK_OFF):
            self.clock.advance(ASK_LIMIT)
            self.assertEqual(self.parked.tick(), [])
            self.assertEqual(self.miss(), [])
            self.clock.advance(pause)
            self.assertNotEqual(self.miss(), [])

    def test_generationEnds(self) -> None:
        """With its generation what is idle is closed, and tickets are worth nothing."""
        self.open(self.miss())
        lent, effects = self.parked.take(1)
        assert lent is not None
        [asked] = effects
        assert isinstance(asked, AskFor)
        self.assertEqual(self.closed(self.parked.end(1)), ["over"])
        self.assertIsNone(self.parked.claim(asked.ticket))
        self.assertEqual(self.parked.take(1), (None, []))
        self.assertEqual(self.parked.returned(lent), [CloseSlot(lent, "over")])
        self.assertTrue(self.parked.isEmpty)

    def test_longStreams(self) -> None:
        """A stream that goes on for long takes no room, and its connection ends with it."""
        self.open(self.miss())
        lent, _ = self.parked.take(1)
        assert lent is not None
        self.clock.advance(LOAN)
        self.parked.tick()
        self.assertEqual(self.closed(self.parked.returned(lent)), ["limit"])

    def test_scarce(self) -> None:
        """Where descriptors are scarce nothing is asked for, and what is idle goes."""
        self.open(self.miss())
        self.scarce = True
        self.assertEqual(self.closed(self.parked.tick()), ["shed", "shed"])
        self.assertEqual(self.miss(), [])

    def test_otherLimits(self) -> None:
        """Lower limits close what is idle above them; none at all parks nothing."""
        self.open(self.miss())
        self.assertEqual(self.closed(self.parked.setLimits(PoolLimits(most=0))), ["limit", "limit"])
        self.assertEqual(self.miss(), [])
