"""The rules of parked connections against a simple model, in any order of events."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.parked import (
    ASK_LIMIT,
    AskFor,
    CheckSlot,
    CloseSlot,
    Effect,
    Parked,
    PoolLimits,
    Slot,
    SlotState,
)

LIMITS = PoolLimits(spare=2, most=5, total=8, refresh=100.0)
GENERATIONS = st.integers(1, 4)


class Machine(RuleBasedStateMachine):
    """
    The model: which connections were given out as idle, lent or asked for, of which
    generation, and which generations there are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.scarce = False
        self.parked = Parked(self.clock, LIMITS, random=lambda: 0.5, scarce=lambda: self.scarce)
        self.live: set[int] = set()
        self.ever: set[int] = set()
        self.tickets: dict[str, tuple[int, float]] = {}
        self.idle: set[Slot] = set()
        self.lent: set[Slot] = set()
        self.born: dict[Slot, float] = {}

    def did(self, effects: list[Effect]) -> None:
        """Follow what the rules decided, as the sockets would."""
        for effect in effects:
            match effect:
                case AskFor(generation, ticket):
                    assert generation in self.live, "asked for a generation that is over"
                    assert not self.scarce, "asked while descriptors are scarce"
                    assert ticket not in self.tickets, "a ticket was given twice"
                    self.tickets[ticket] = (generation, self.clock.seconds())
                case CloseSlot(slot, _):
                    assert slot in self.idle or slot in self.lent, "closed what is not open"
                    self.idle.discard(slot)
                    self.lent.discard(slot)
                case CheckSlot(slot):
                    assert slot in self.idle, "checked what is not idle"

    def order(self, slot: Slot) -> int:
        """What a choice among slots goes by: the same in every run."""
        return list(self.born).index(slot)

    @rule(generation=GENERATIONS)
    def begin(self, generation: int) -> None:
        if generation not in self.ever:
            self.ever.add(generation)
            self.live.add(generation)
            self.parked.begin(generation)

    @rule(generation=GENERATIONS)
    def end(self, generation: int) -> None:
        self.did(self.parked.end(generation))
        self.live.discard(generation)
        assert not [slot for slot in self.idle if slot.generation == generation]

    @rule(generation=GENERATIONS)
    def take(self, generation: int) -> None:
        expected = {slot for slot in self.idle if slot.generation == generation}
        slot, effects = self.parked.take(generation)
        self.did(effects)
        if slot is None:
            assert not expected, "a dial missed, and one was idle"
            return
        assert slot in expected, "not idle, or another generation's"
        self.idle.remove(slot)
        self.lent.add(slot)

    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        if not self.tickets:
            assert self.parked.claim("unheard-of") is None
            return
        ticket = data.draw(st.sampled_from(list(self.tickets)))
        generation, asked = self.tickets.pop(ticket)
        slot = self.parked.claim(ticket)
        late = self.clock.seconds() >= asked + ASK_LIMIT
        if slot is None:
            assert generation not in self.live or late, "a good ticket was refused"
        else:
            assert generation in self.live
            assert not late
            assert slot.generation == generation
            self.lent.add(slot)
            self.born[slot] = self.clock.seconds()
        assert self.parked.claim(ticket) is None, "a ticket was good twice"

    @rule(data=st.data())
    def giveBack(self, data: st.DataObject) -> None:
        if not self.lent:
            return
        slot = data.draw(st.sampled_from(sorted(self.lent, key=self.order)))
        effects = self.parked.returned(slot)
        if not effects:
            assert slot.generation in self.live, "parked for a generation that is over"
            self.lent.remove(slot)
            self.idle.add(slot)
        self.did(effects)

    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        known = sorted(self.lent | self.idle, key=self.order)
        if not known:
            return
        slot = data.draw(st.sampled_from(known))
        self.lent.discard(slot)
        self.idle.discard(slot)
        self.did(self.parked.lost(slot))
        assert self.parked.lost(slot) == []

    @rule(seconds=st.floats(0.1, 60), answer=st.booleans())
    def wait(self, seconds: float, answer: bool) -> None:
        self.clock.advance(seconds)
        effects = self.parked.tick()
        self.did(effects)
        for effect in effects:
            if answer and isinstance(effect, CheckSlot):
                self.parked.alive(effect.slot)

    @rule(scarce=st.booleans())
    def descriptors(self, scarce: bool) -> None:
        self.scarce = scarce
        if scarce:
            self.did(self.parked.shed())
            assert not self.idle

    @invariant()
    def asModelled(self) -> None:
        assert self.parked.idle == len(self.idle)
        for generation in self.live:
            own = {slot for slot in self.idle if slot.generation == generation}
            assert self.parked.idleOf(generation) == len(own)
            lent = {
                slot
                for slot in self.lent
                if slot.generation == generation and slot.state is SlotState.LENT
            }
            assert len(own) + len(lent) <= LIMITS.most
        counted = [slot for slot in self.idle | self.lent if slot.generation in self.live]
        counted = [slot for slot in counted if slot.state is not SlotState.AWAY]
        assert len(counted) <= LIMITS.total

    @invariant()
    def noneIsIdleForTooLong(self) -> None:
        self.did(self.parked.tick())
        for slot in self.idle:
            assert self.clock.seconds() < self.born[slot] + LIMITS.refresh


class MachineTests(SynchronousTestCase):
    def test_anyOrder(self) -> None:
        """Whatever happens in whatever order, the rules hold and nothing is lost count of."""
        run_state_machine_as_test(
            Machine, settings=settings(deadline=None, max_examples=60, stateful_step_count=40)
        )
