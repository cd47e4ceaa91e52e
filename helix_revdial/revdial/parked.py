# -*- test-case-name: tests.revdial.test_parked,tests.revdial.test_parked_machine -*-
"""
Which data connections are parked, for whom, and for how long.

L{Parked} is the rules alone: it knows no socket and no Deferred; time comes from
the clock it is given, chance from the function it is given.  A connection is a
L{Slot} here.  What is to be done outside (close a connection, ask an agent for one,
see whether one is still there) is returned as L{Effect}s, and L{Pool
<helix_revdial.revdial.pool.Pool>} does it.

How many are kept follows from what is dialled.  A dial that finds none is a B{miss},
and asks for one; a runner that was dialled within L{INTEREST} keeps C{spare} idle
ones; those that nobody needed for a whole L{WINDOW} are closed.  So a runner that is
never dialled has none, one that is looked at once a second has two, and one with
thirty dials under way has about thirty.

Invariants:

  - A slot belongs to one generation for its whole life, and is taken for a dial of
    that generation only.  When a generation is over its idle slots are closed, its
    tickets are worth nothing, and what carries a stream is closed after it.
  - A slot is asked for, idle, lent or gone; an idle one is given to one dial.
  - At most C{most} slots of a runner, and C{total} of the server, are asked for, idle
    or lent for less than L{LOAN}.  What carries a stream for longer is a stream
    like any other: it is not expected back, and closed at its end.
  - No slot is idle for longer than C{refresh} seconds after it was made; each has a
    time of its own, so that they do not end together.
  - Nothing is asked for while descriptors are scarce, and idle ones go first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from hashlib import sha256
from secrets import token_urlsafe

from twisted.internet.interfaces import IReactorTime

ASK_LIMIT = 20.0
"""Seconds that an agent has to open a connection that it was asked for."""

INTEREST = 600.0
"""Seconds for which a dial keeps idle connections wanted."""

WINDOW = 30.0
"""Seconds in which an idle connection has to be needed once."""

LOAN = 30.0
"""Seconds for which a connection that carries a stream is expected back."""

CHECK_AFTER = 20.0
"""Seconds without a sign of life after which an idle connection is asked for one."""

CHECK_LIMIT = 5.0
"""Seconds for that sign of life."""

BACK_OFF = 10.0
"""Seconds without asking after an agent has not answered; doubled each time."""

MAX_BACK_OFF = 300.0

OLDEST = 0.8
"""A connection lives for this part of C{refresh} at least."""


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """
    @ivar spare: Idle connections to a runner that was dialled lately.
    @ivar most: Connections to one runner; 0 for no pool.
    @ivar total: Connections of the server.
    @ivar refresh: Seconds after which an idle connection is replaced.
    """

    spare: int = 2
    most: int = 128
    total: int = 2000
    refresh: float = 240.0


class SlotState(Enum):
    """Where a connection is."""

    ASKED = auto()
    IDLE = auto()

    LENT = auto()
    """It carries a stream, and is expected back."""

    AWAY = auto()
    """It carries a stream, and is not expected back."""

    GONE = auto()


class Slot:
    """
    One connection, for whoever holds the socket to inherit from or to point at.

    @ivar generation: Whose it is.
    @ivar state: Where it is.
    @ivar heard: When it last gave a sign of life, by the clock.
    """

    __slots__ = ("asked", "checking", "dies", "generation", "heard", "holder", "since", "state")

    def __init__(self, generation: int, now: float) -> None:
        self.generation = generation
        self.state = SlotState.ASKED
        self.since = self.asked = self.heard = now
        self.dies = now
        self.checking: float | None = None
        self.holder: object = None

    def __repr__(self) -> str:
        return f"<Slot of generation {self.generation} {self.state.name}>"


@dataclass(frozen=True, slots=True)
class AskFor:
    """Ask the agent of this generation for a connection, by this ticket."""

    generation: int
    ticket: str


@dataclass(frozen=True, slots=True)
class CloseSlot:
    """Close a connection that is gone from here; C{why} is a word for the metrics."""

    slot: Slot
    why: str


@dataclass(frozen=True, slots=True)
class CheckSlot:
    """See whether a connection is there; say L{Parked.alive} if it is."""

    slot: Slot


Effect = AskFor | CloseSlot | CheckSlot


class _Generation:
    """What one generation has."""

    __slots__ = ("asked", "away", "backOff", "idle", "lent", "lowest", "notBefore", "wanted")

    def __init__(self) -> None:
        self.asked: dict[bytes, Slot] = {}
        # A list, which is small where it is empty.
        self.idle: list[Slot] = []
        self.lent: dict[Slot, None] = {}
        self.away: set[Slot] = set()
        self.wanted: float | None = None
        self.lowest = 0
        self.notBefore = 0.0
        self.backOff = BACK_OFF

    @property
    def count(self) -> int:
        return len(self.asked) + len(self.idle) + len(self.lent)


class Parked:
    """
    The rules; see the module.

    Whoever owns it calls L{tick} every few seconds while L{isEmpty} is false.
    """

    def __init__(
        self,
        clock: IReactorTime,
        limits: PoolLimits,
        *,
        random: Callable[[], float],
        scarce: Callable[[], bool] = lambda: False,
    ) -> None:
        """
        @param clock: Tells the time.
        @param limits: How many, for how long; see L{setLimits}.
        @param random: Gives numbers from 0 up to 1.
        @param scarce: Whether descriptors are running out.
        """
        self._clock = clock
        self._limits = limits
        self._random = random
        self._scarce = scarce
        self._generations: dict[int, _Generation] = {}
        self._tickets: dict[bytes, Slot] = {}
        self._count = 0
        self._idle = 0
        self._windowEnds = clock.seconds() + WINDOW

    def setLimits(self, limits: PoolLimits) -> list[Effect]:
        """From now on, others; what is idle above them is closed."""
        self._limits = limits
        effects: list[Effect] = []
        for own in self._generations.values():
            while own.idle and (own.count > limits.most or self._count > limits.total):
                effects.append(self._close(own, own.idle[0], "limit"))
        return effects

    # What is

    @property
    def isEmpty(self) -> bool:
        """Whether nothing is asked for, idle or expected back."""
        return not self._count

    @property
    def idle(self) -> int:
        """Connections that wait."""
        return self._idle

    def idleOf(self, generation: int) -> int:
        """Connections of one generation that wait."""
        own = self._generations.get(generation)
        return 0 if own is None else len(own.idle)

    # Generations

    def begin(self, generation: int) -> None:
        """A generation that can pool is there."""
        self._generations[generation] = _Generation()

    def end(self, generation: int) -> list[Effect]:
        """
        A generation is over: superseded, lost, left or revoked.

        @return: A L{CloseSlot} for each of its connections that is idle.
        """
        own = self._generations.get(generation)
        if own is None:
            return []
        effects: list[Effect] = [self._close(own, slot, "over") for slot in list(own.idle)]
        for name in list(own.asked):
            self._forgetAsked(own, name)
        self._count -= len(own.lent)
        del self._generations[generation]
        return effects

    def endAll(self) -> list[Effect]:
        """Nothing is parked any more; for a server that leaves."""
        return [effect for each in list(self._generations) for effect in self.end(each)]

    # A dial

    def take(self, generation: int) -> tuple[Slot | None, list[Effect]]:
        """
        A dial of this generation begins.

        @return: The connection to assign, the one that was used last; C{None} on a
            miss.
        """
        own = self._generations.get(generation)
        if own is None or not self._limits.most:
            return None, []
        own.wanted = now = self._clock.seconds()
        if not own.idle:
            missing = self._limits.spare - len(own.asked)
            return None, self._ask(own, generation, max(1, missing))
        slot = own.idle.pop()
        self._idle -= 1
        own.lowest = min(own.lowest, len(own.idle))
        slot.state = SlotState.LENT
        slot.since = now
        slot.checking = None
        own.lent[slot] = None
        missing = self._limits.spare - len(own.idle) - len(own.asked)
        return slot, self._ask(own, generation, missing) if missing > 0 else []

    def returned(self, slot: Slot) -> list[Effect]:
        """
        A stream has ended in good order, and its connection could carry another.

        @return: A L{CloseSlot} if it is not wanted; nothing if it is idle now.
        """
        own = self._forgetLent(slot)
        if own is None or slot.state is SlotState.AWAY or not self._fits(own):
            slot.state = SlotState.GONE
            return [CloseSlot(slot, "over" if own is None else "limit")]
        if self._clock.seconds() >= slot.dies:
            slot.state = SlotState.GONE
            return [CloseSlot(slot, "refreshed")]
        self._count += 1
        self._park(own, slot)
        return []

    def lost(self, slot: Slot) -> list[Effect]:
        """
        A connection is gone, idle or not.

        @return: Where it was idle, what is to replace it.
        """
        if slot.state is SlotState.GONE:
            return []
        own = self._generations.get(slot.generation)
        if slot.state is not SlotState.IDLE or own is None:
            self._forgetLent(slot)
            slot.state = SlotState.GONE
            return []
        self._close(own, slot, "lost")
        return self._fill(own, slot.generation)

    # An agent's connections

    def claim(self, ticket: str) -> Slot | None:
        """
        A connection presents a ticket: it is the slot's from now on, and the
        ticket is used up.

        @return: C{None} where nobody was asked by that ticket, or too long ago.
        """
        # Found by a digest, so that how long the search takes tells nothing.
        name = _nameOf(ticket)
        slot = self._tickets.get(name)
        if slot is None or self._clock.seconds() >= slot.asked + ASK_LIMIT:
            return None
        own = self._generations[slot.generation]
        self._forgetAsked(own, name)
        own.backOff = BACK_OFF
        slot.state = SlotState.LENT
        slot.since = self._clock.seconds()
        own.lent[slot] = None
        self._count += 1
        slot.dies = slot.since + self._limits.refresh * (OLDEST + (1 - OLDEST) * self._random())
        return slot

    def peek(self, ticket: str) -> int | None:
        """The generation that C{ticket} was given to, if it can be L{claim}ed."""
        slot = self._tickets.get(_nameOf(ticket))
        if slot is None or self._clock.seconds() >= slot.asked + ASK_LIMIT:
            return None
        return slot.generation

    # Time

    def alive(self, slot: Slot) -> None:
        """A connection gave a sign of life."""
        slot.heard = self._clock.seconds()
        slot.checking = None

    def tick(self) -> list[Effect]:
        """Let everything happen whose time has come."""
        now = self._clock.seconds()
        effects: list[Effect] = []
        if self._scarce():
            effects += self.shed()
        windowOver = now >= self._windowEnds
        if windowOver:
            self._windowEnds = now + WINDOW
        for generation, own in self._generations.items():
            self._lateAnswers(own, now)
            for slot in [slot for slot in own.lent if now >= slot.since + LOAN]:
                del own.lent[slot]
                self._count -= 1
                slot.state = SlotState.AWAY
                own.away.add(slot)
            effects += self._checks(own, now)
            if windowOver:
                for _ in range(min(len(own.idle), own.lowest - self._spare(own, now))):
                    effects.append(self._close(own, own.idle[0], "unneeded"))
                own.lowest = len(own.idle)
            effects += self._fill(own, generation)
        return effects

    def shed(self) -> list[Effect]:
        """Close everything that is idle: something else needs the descriptors."""
        return [
            self._close(own, slot, "shed")
            for own in self._generations.values()
            for slot in list(own.idle)
        ]

    def _lateAnswers(self, own: _Generation, now: float) -> None:
        late = [name for name, slot in own.asked.items() if now >= slot.asked + ASK_LIMIT]
        for name in late:
            self._forgetAsked(own, name)
        if late:
            own.notBefore = now + own.backOff
            own.backOff = min(MAX_BACK_OFF, own.backOff * 2)

    def _checks(self, own: _Generation, now: float) -> Iterable[Effect]:
        effects: list[Effect] = []
        for slot in list(own.idle):
            if now >= slot.dies:
                effects.append(self._close(own, slot, "refreshed"))
            elif slot.checking is not None:
                if now >= slot.checking + CHECK_LIMIT:
                    effects.append(self._close(own, slot, "reaped"))
            elif now >= slot.heard + CHECK_AFTER:
                slot.checking = now
                effects.append(CheckSlot(slot))
        return effects

    # Within

    def _spare(self, own: _Generation, now: float) -> int:
        if own.wanted is None or now >= own.wanted + INTEREST:
            return 0
        return self._limits.spare

    def _fits(self, own: _Generation) -> bool:
        limits = self._limits
        return own.count < limits.most and self._count < limits.total and not self._scarce()

    def _fill(self, own: _Generation, generation: int) -> list[Effect]:
        have = len(own.idle) + len(own.asked)
        missing = self._spare(own, self._clock.seconds()) - have
        return self._ask(own, generation, missing) if missing > 0 else []

    def _ask(self, own: _Generation, generation: int, number: int) -> list[Effect]:
        now = self._clock.seconds()
        effects: list[Effect] = []
        if now < own.notBefore:
            return effects
        while len(effects) < number and self._fits(own):
            slot = Slot(generation, now)
            ticket = token_urlsafe(24)
            name = _nameOf(ticket)
            own.asked[name] = self._tickets[name] = slot
            self._count += 1
            effects.append(AskFor(generation, ticket))
        return effects

    def _forgetAsked(self, own: _Generation, name: bytes) -> None:
        del own.asked[name]
        del self._tickets[name]
        self._count -= 1

    def _forgetLent(self, slot: Slot) -> _Generation | None:
        own = self._generations.get(slot.generation)
        if own is not None:
            if slot in own.lent:
                del own.lent[slot]
                self._count -= 1
            own.away.discard(slot)
        return own

    def _park(self, own: _Generation, slot: Slot) -> None:
        slot.state = SlotState.IDLE
        slot.heard = self._clock.seconds()
        own.idle.append(slot)
        self._idle += 1

    def _close(self, own: _Generation, slot: Slot, why: str) -> CloseSlot:
        own.idle.remove(slot)
        own.lowest = min(own.lowest, len(own.idle))
        self._idle -= 1
        self._count -= 1
        slot.state = SlotState.GONE
        return CloseSlot(slot, why)


def _nameOf(ticket: str) -> bytes:
    return sha256(ticket.encode("utf-8", "replace")).digest()


__all__ = [
    "AskFor",
    "CheckSlot",
    "CloseSlot",
    "Effect",
    "Parked",
    "PoolLimits",
    "Slot",
    "SlotState",
]
