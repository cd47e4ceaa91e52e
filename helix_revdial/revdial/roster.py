# -*- test-case-name: tests.revdial.test_connections,tests.revdial.test_registering -*-
"""
Who is connected, what is dialled and what is open; and what follows from the table.

L{Roster} is the state that the parts of L{Connections
<helix_revdial.revdial.connections.Connections>} have in common: the rules (the
L{ConnectionTable <helix_revdial.revdial.table.ConnectionTable>}), the
L{Registration}s by generation, the L{Call}s that wait by dial, and those with a
stream by runner.  It carries out what the table decides, and owns the one timer that
asks the table.  It registers nobody and begins no dial.

Invariants:

  - A call is in C{calls} until it is picked up or over, then in C{streams} until
    nothing of it is left.
  - The timer runs if and only if the table has a deadline.
  - An exception in the code of who is told (audit, watchers) is logged, and changes
    nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from .checks import CheckPeer
from .departure import Quiet
from .dials import Dial
from .errors import DialTimeout, NotConnected
from .pickups import Call
from .pool import Pool
from .registrations import Claim, Registration
from .table import Close, ConnectionTable, Effect, Failed, Gone
from .turns import Turns
from .watching import Watching


class Roster:
    """
    What is connected, dialled and open.

    @ivar clock: Tells the time and calls later.
    @ivar table: The rules; see there.
    @ivar registrations: Every control connection, by generation.
    @ivar calls: Every call that is not picked up, by dial.
    @ivar streams: Every call with a stream, by runner and by dial.
    @ivar claims: Every registration that waits.
    @ivar checks: Every check that is open.
    @ivar watching: Told what cannot be seen by looking later.
    @ivar pool: The data connections that are parked.
    @ivar turns: Whose patient dial is next.
    @ivar dialTimeout: Seconds an agent has to dial back.
    @ivar stopping: Whether no more is taken.
    @ivar settled: Until no call waits.
    @ivar drained: Until there is no call.
    @ivar empty: Until there is neither a control connection nor a stream.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        table: ConnectionTable,
        *,
        dialTimeout: float,
        watching: Watching,
        audit: Callable[[str, dict[str, Any]], None] | None,
        onGone: Callable[[str, int], None] | None,
        onEnded: Callable[[Call], None] | None,
    ) -> None:
        """
        @param audit: Told an event's name, with what is known of it.
        @param onGone: Told key and generation when a runner is awaited no more.
        @param onEnded: Told each call when nothing of it is left.
        """
        self.clock = clock
        self.table = table
        self.registrations: dict[int, Registration] = {}
        self.calls: dict[str, Call] = {}
        self.streams: dict[str, dict[str, Call]] = {}
        self.claims: set[Claim] = set()
        self.checks: set[CheckPeer] = set()
        self.watching = watching
        self.pool: Pool
        self.turns: Turns
        self.dialTimeout = dialTimeout
        self.stopping = False
        self.settled = Quiet(clock, lambda: not self.calls)
        self.drained = Quiet(clock, lambda: not self.calls and not self.streams)
        self.empty = Quiet(clock, lambda: not self.registrations and not self.streams)
        self._audit = audit
        self._onGone = onGone
        self._onEnded = onEnded
        self._timer: IDelayedCall | None = None

    # What follows

    def carryOut(self, effects: Iterable[Effect], reason: str | None = None) -> None:
        """
        Do what the table decided.

        @param reason: Why control connections close, where it is not the table's own.
        """
        for effect in effects:
            match effect:
                case Failed(dial, error):
                    call = self.calls.pop(dial.id, None)
                    if call is not None:
                        call.fail(Failure(error))
                case Close(_, generation, why):
                    self.pool.end(generation)
                    registration = self.registrations.get(generation)
                    if registration is not None:
                        registration.protocol.close(reason or why)
                case Gone(key, generation):
                    self.pool.end(generation)
                    if self._onGone is not None:
                        self.guarded(self._onGone, key, generation)
                    self.guarded(self.watching.gone, key, generation)

    def end(self, effects: Iterable[Effect]) -> None:
        """Carry out what follows from the server's own end: a caller can try again soon."""
        for effect in effects:
            if isinstance(effect, Failed):
                effect = Failed(effect.dial, shuttingDown())
            self.carryOut([effect], "shutdown")

    def callConnected(self, call: Call) -> None:
        """A caller has his stream."""
        self.guarded(self.watching.connected, call)

    def callCancelled(self, call: Call) -> None:
        """A caller gave up before his dial was picked up."""
        self.table.cancel(call.dial)
        self.schedule()

    def callOver(self, call: Call) -> None:
        """Nothing is left of a call."""
        dial = call.dial
        self.pool.withdraw(dial)
        self.calls.pop(dial.id, None)
        streams = self.streams.get(dial.key)
        if streams is not None and streams.pop(dial.id, None) is not None:
            if not streams:
                del self.streams[dial.key]
            registration = self.registrations.get(dial.generation or 0)
            if registration is not None:
                registration.endedIn += call.stream.bytesIn
                registration.endedOut += call.stream.bytesOut
        if self._onEnded is not None:
            self.guarded(self._onEnded, call)
        self.guarded(self.watching.ended, call)
        self.look()

    def look(self) -> None:
        """Something has ended: whoever waits for that is told."""
        for quiet in (self.settled, self.drained, self.empty):
            quiet.look()

    # The timer

    def schedule(self) -> None:
        """The table may have another deadline now."""
        when = self.table.nextDeadline()
        timer = self._timer
        if timer is not None and timer.active():
            # A timer that is too early costs one look at the table; one that is
            # moved at every dial costs more.
            if when is not None and timer.getTime() <= when:
                return
            timer.cancel()
        self._timer = None
        if when is not None:
            delay = max(0.0, when - self.clock.seconds())
            self._timer = self.clock.callLater(delay, self._expire)

    def _expire(self) -> None:
        self._timer = None
        try:
            effects = self.table.expire()
            for effect in effects:
                if isinstance(effect, Failed) and isinstance(effect.error, DialTimeout):
                    self._ranOut(effect.dial)
            self.carryOut(effects)
        finally:
            self.schedule()

    def _ranOut(self, dial: Dial) -> None:
        """An agent did not dial back; it had all the time that it is given?"""
        registration = self.registrations.get(dial.generation or 0)
        call = self.calls.get(dial.id)
        asked = None if call is None else call.stream.phases.get("asked")
        if registration is None or call is None or asked is None:
            return
        when = call.stream.started + asked
        # The table took the time a moment before it was noted as a phase.
        if self.clock.seconds() - when >= self.dialTimeout * 0.95:
            registration.protocol.dialRanOut(when)

    # Who is told

    def tell(self, event: str, **fields: Any) -> None:
        """Have the audit log note an event."""
        self._log.info("For the audit: {event} {fields}", event=event, fields=fields)
        if self._audit is not None:
            self.guarded(self._audit, event, fields)

    def guarded(self, call: Callable[..., object], *arguments: object) -> None:
        """Call code that is not ours: its exceptions are logged and change nothing."""
        try:
            call(*arguments)
        except Exception:
            self._log.failure("A callback of the connections failed.")


def shuttingDown() -> NotConnected:
    """Why a server that is about to end takes no more: another one will, soon."""
    return NotConnected("the server is shutting down", retryAfter=1.0)


__all__ = ["Roster", "shuttingDown"]
