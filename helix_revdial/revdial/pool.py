# -*- test-case-name: tests.revdial.test_pool -*-
"""
The server's parked data connections: a dial that needs no dial-back.

Which are kept, and which is taken, is L{Parked <helix_revdial.revdial.parked.Parked>}'s
say.  L{Pool} asks agents for connections, takes those that come, and assigns them.
The way of a dial over one of them (C{docs/wire.md}, section 7.3):

  1. The server writes one line, C{dial}, and behind it what the caller has sent so far.
  2. The agent connects its target, and answers with one line: C{connected}, and then
     the target's bytes; or C{pickup-failed} with the same reasons as on a control
     connection.
  3. When both directions have ended by their marks the connection is parked again.

So a dial costs one round trip, no connection and no HTTP; over loopback that is a
fifth of the processor time of a dial-back.

Invariants:

  - An assigned dial stays outstanding in the L{table
    <helix_revdial.revdial.table.ConnectionTable>}: its deadline, its cancellation, its
    generation's end are those of any dial.  Whoever takes it from there first has it.
  - A connection that breaks before the answer was reaped: the dial goes to another
    one, or is asked for on the control connection, unseen by its caller.  Where the
    answer does not come within L{RACE}, the dial is asked for as well, with the same
    id: the agent connects one target for an id at most, and the other way is given up.
  - What the caller sent before the answer is kept by the caller's end until the answer
    is there, so that it can be sent once more by another way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol as Shape
from typing import cast

from twisted.internet.interfaces import IDelayedCall, IProtocol, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from .dials import Dial
from .framed import FramedConnection
from .framed_stream import FramedTransport
from .keepalive import DATA_WATCH, watchPath
from .masks import Keys
from .messages import MAX_LINE, Assign, Connected, ControlError, Park, PickupFailed, decode, encode
from .parked import AskFor, CheckSlot, CloseSlot, Effect, Parked, PoolLimits, Slot

RACE = 1.0
"""Seconds without an answer after which a dial is asked for in the other way too."""

TICK = 5.0
"""Seconds between two looks at what is parked."""

RETRIES = 3
"""Parked connections that are tried for one dial."""


class EarlyBytes(Shape):
    """What a caller sends before its stream is up; L{RelayProtocol
    <helix_revdial.revdial.relay.RelayProtocol>} has some."""

    def sendEarly(self, write: Callable[[bytes], None]) -> None:
        """Give C{write} what has come, and what comes until the stream is up."""

    def keepEarly(self) -> None:
        """What was written is lost: it all goes to the stream when that is up."""


class Dialling(Shape):
    """What the pool needs of those who dial."""

    def ask(self, generation: int, park: Park) -> None:
        """Send C{park} on the control connection of C{generation}."""

    def askAgain(self, dial: Dial) -> None:
        """Ask for C{dial} anew, if it is still outstanding: here, or for a dial-back."""

    def askForDialBack(self, dial: Dial) -> None:
        """Ask for C{dial} on the control connection, if it is still outstanding."""

    def answered(self, dial: Dial, seconds: float | None) -> IProtocol | None:
        """
        The target of C{dial} is connected.

        @return: What to put on the carrier; C{None} if nobody wants it any more.
        """

    def failed(self, dial: Dial, message: PickupFailed) -> None:
        """The agent cannot answer C{dial}."""


class Pool:
    """
    See the module.

    @ivar parked: The rules.
    @ivar events: How often what happened, by word: C{opened}, C{taken}, C{missed},
        C{failed-over}, C{raced}, and why connections were closed (C{refreshed},
        C{reaped}, C{lost}, C{unneeded}, C{limit}, C{shed}, C{over}).
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, parked: Parked, dialling: Dialling) -> None:
        self.parked = parked
        self.events: dict[str, int] = {}
        self.keys = Keys()
        self._clock = clock
        self._dialling = dialling
        self._assigned: dict[str, ParkedConnection] = {}
        self._since: dict[str, float] = {}
        self._tries: dict[str, int] = {}
        self._timer: IDelayedCall | None = None
        self._race: IDelayedCall | None = None

    def count(self, word: str) -> None:
        """Something happened."""
        self.events[word] = self.events.get(word, 0) + 1

    # Generations

    def begin(self, generation: int) -> None:
        """A generation that agreed on C{pool} is there."""
        self.parked.begin(generation)

    def end(self, generation: int) -> None:
        """A generation is over: nothing of it is parked any more."""
        self.carryOut(self.parked.end(generation))
        self._lookIdle()

    def stop(self) -> None:
        """Nothing is parked any more."""
        self.carryOut(self.parked.endAll())
        self._lookIdle()

    def setLimits(self, limits: PoolLimits) -> None:
        """From now on, others."""
        self.carryOut(self.parked.setLimits(limits))

    def _lookIdle(self) -> None:
        """Have no timer where there is nothing to look at."""
        if self._timer is not None and self.parked.isEmpty:
            self._timer.cancel()
            self._timer = None
        if self._race is not None and not self._since:
            self._race.cancel()
            self._race = None

    def shed(self) -> None:
        """Close what is idle: the descriptors are needed."""
        self.carryOut(self.parked.shed())

    # A dial

    def assign(self, dial: Dial, early: EarlyBytes | None) -> bool:
        """
        Give C{dial}, which is to be asked for, to a parked connection.

        @return: Whether there was one; if not, the agent is to be asked to dial back.
        """
        while self._tries.get(dial.id, 0) < RETRIES:
            slot, effects = self.parked.take(dial.generation or 0)
            self.carryOut(effects)
            if slot is None:
                if dial.id not in self._tries:
                    self.count("missed")
                return False
            connection = cast(ParkedConnection, slot.holder)
            if not connection.connection.isOpen:
                self.parked.lost(slot)
                continue
            self.count("taken")
            self._begin(dial, connection)
            connection.assign(dial, early)
            return True
        return False

    def _begin(self, dial: Dial, connection: ParkedConnection) -> None:
        self._assigned[dial.id] = connection
        self._since[dial.id] = self._clock.seconds()
        if self._race is None:
            self._race = self._clock.callLater(RACE, self._lookAtRaces)

    def withdraw(self, dial: Dial) -> None:
        """C{dial} is answered in another way, or wanted no more."""
        if dial.id in self._assigned:
            connection = self._forget(dial)
            if connection is not None:
                connection.giveUp()

    def answered(self, dial: Dial, seconds: float | None) -> IProtocol | None:
        """See L{Dialling}."""
        self._forget(dial)
        return self._dialling.answered(dial, seconds)

    def failed(self, dial: Dial, message: PickupFailed) -> None:
        """See L{Dialling}."""
        self._forget(dial)
        self._dialling.failed(dial, message)

    def reaped(self, dial: Dial) -> None:
        """The connection of C{dial} ended before the answer."""
        tries = self._tries.get(dial.id, 0) + 1
        raced = dial.id not in self._since
        self._forget(dial)
        if raced:
            # It has been asked for in the other way already.
            return
        self.count("failed-over")
        self._tries[dial.id] = tries
        self._dialling.askAgain(dial)
        if dial.id not in self._assigned:
            self._tries.pop(dial.id, None)

    def _forget(self, dial: Dial) -> ParkedConnection | None:
        self._since.pop(dial.id, None)
        self._tries.pop(dial.id, None)
        return self._assigned.pop(dial.id, None)

    def _lookAtRaces(self) -> None:
        self._race = None
        now = self._clock.seconds()
        late = [name for name, since in self._since.items() if now >= since + RACE]
        for name in late:
            del self._since[name]
            dial = self._assigned[name].dial
            if dial is not None:
                self.count("raced")
                self._dialling.askForDialBack(dial)
        if self._since:
            oldest = next(iter(self._since.values()))
            self._race = self._clock.callLater(max(0.0, oldest + RACE - now), self._lookAtRaces)

    # Connections

    def generationOf(self, ticket: str) -> int | None:
        """Whose connection C{ticket} is for; C{None} where it is for none."""
        return self.parked.peek(ticket)

    def accept(self, ticket: str, *, webSocket: bool, head: bytes) -> FramedConnection | None:
        """
        A connection presents C{ticket}, and may.

        @param head: The answer to its upgrade.
        @return: The protocol for it.
        """
        slot = self.parked.claim(ticket)
        if slot is None:
            return None
        self._look()
        return ParkedConnection(self, slot, self._clock, webSocket, head).connection

    def _look(self) -> None:
        if self._timer is None and not self.parked.isEmpty:
            self._timer = self._clock.callLater(TICK, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.carryOut(self.parked.tick())
        self._look()

    def carryOut(self, effects: Iterable[Effect]) -> None:
        """Do what the rules decided."""
        for effect in effects:
            match effect:
                case AskFor(generation, ticket):
                    self._dialling.ask(generation, Park(ticket))
                    self._look()
                case CloseSlot(slot, why):
                    self.count(why)
                    if slot.holder is not None:
                        cast(ParkedConnection, slot.holder).connection.close()
                case CheckSlot(slot):
                    cast(ParkedConnection, slot.holder).connection.ping()


class ParkedConnection:
    """
    One parked connection; the L{FrameUser <helix_revdial.revdial.framed.FrameUser>}
    of a L{FramedConnection} between two streams.

    @ivar dial: What it is assigned to and has no answer for.
    """

    _log = Logger()

    def __init__(
        self, pool: Pool, slot: Slot, clock: IReactorTime, webSocket: bool, head: bytes
    ) -> None:
        self.dial: Dial | None = None
        self._pool = pool
        self._slot = slot
        self._line = b""
        self._early: EarlyBytes | None = None
        self._earlySent = 0
        self._first: list[bytes] | None = None
        self._ending = False
        slot.holder = self
        self.connection = FramedConnection(
            clock,
            self,
            pool.keys,
            webSocket=webSocket,
            client=False,
            head=head,
            onUp=self._up,
        )

    def _up(self) -> None:
        watchPath(self.connection.transport, DATA_WATCH)
        self._pool.count("opened")
        self._free()

    def _free(self) -> None:
        """It can be assigned."""
        self.connection.user = self
        self._line = b""
        self._ending = False
        self._pool.carryOut(self._pool.parked.returned(self._slot))

    # A dial

    def assign(self, dial: Dial, early: EarlyBytes | None) -> None:
        """Write the assignment."""
        self.dial = dial
        self._early = early
        self._earlySent = 0
        first = self._first = [encode(Assign(dial.id, dial.target))]
        if early is not None:
            early.sendEarly(self._sendEarly)
        self._first = None
        self.connection.send(b"".join(first))

    def _sendEarly(self, data: bytes) -> None:
        self._earlySent += len(data)
        if self._first is not None:
            # It goes in one frame with the line.
            self._first.append(data)
        else:
            self.connection.send(data)

    def giveUp(self) -> None:
        """The dial is not ours any more: nor can the connection be used for another."""
        self._takeDial(lost=True)
        self.connection.abort()

    def _takeDial(self, *, lost: bool) -> Dial | None:
        """Nothing is to be answered any more; what was sent early is C{lost} or not."""
        dial, self.dial = self.dial, None
        early, self._early = self._early, None
        if lost and early is not None:
            early.keepEarly()
        return dial

    def _answer(self, line: bytes, rest: bytes) -> None:
        try:
            message = decode(line)
        except ControlError as broken:
            self.connection.refuse(str(broken))
            return
        dial = self.dial
        assert dial is not None
        if isinstance(message, Connected) and message.dial == dial.id:
            self._takeDial(lost=False)
            protocol = self._pool.answered(dial, message.seconds)
            if protocol is None:
                self.connection.abort()
                return
            stream = FramedTransport(protocol, self.connection, self._free, self._streamLost)
            stream.sentBefore(self._earlySent)
            stream.begin()
            if rest:
                stream.payload(rest)
            stream.delivered()
        elif isinstance(message, PickupFailed) and message.dial == dial.id and not rest:
            self._takeDial(lost=True)
            self._ending = True
            self.connection.sendEnd()
            self._pool.failed(dial, message)
        else:
            self.connection.refuse("no answer to the dial that was assigned")

    # FrameUser

    def payload(self, data: bytes) -> None:
        if self.dial is None:
            self.connection.refuse("bytes on a parked connection")
            return
        self._line += data
        line, newline, rest = self._line.partition(b"\n")
        if newline:
            self._line = b""
            self._answer(line, rest)
        elif len(line) >= MAX_LINE:
            self.connection.refuse(f"an answer is longer than {MAX_LINE} bytes")

    def ended(self) -> None:
        if not self._ending:
            self.connection.refuse("an end without a stream")
            return
        self.connection.forgetEnds()
        self._free()

    def ponged(self) -> None:
        self._pool.parked.alive(self._slot)

    def lost(self, reason: Failure) -> None:
        self._streamLost()
        dial = self._takeDial(lost=True)
        if dial is not None:
            self._pool.reaped(dial)

    def _streamLost(self) -> None:
        self._pool.carryOut(self._pool.parked.lost(self._slot))


__all__ = ["Dialling", "EarlyBytes", "ParkedConnection", "Pool"]
