# -*- test-case-name: tests.revdial.test_leaving -*-
"""
The server's end in good order: who is told, who is kept, what is waited for.

L{Leaving} takes nothing more, lets go of the connections that outlive the process,
tells the others when to come again (L{helix_revdial.revdial.departure}), and ends
what is left when the time is up.  What is connected is the L{Roster
<helix_revdial.revdial.roster.Roster>}'s.

Invariants:

  - From the first call of L{Leaving.leave} or L{Leaving.stop} on, the server takes no
    registration and no dial.
  - A caller whose dial the end meets is told that it can try again soon.
  - L{Leaving.stop} returns when no control connection and no stream is left.
"""

from __future__ import annotations

from twisted.internet import tcp
from twisted.python.failure import Failure

from .departure import CLOSE_LIMIT, LEAVE_RATE, departures
from .errors import TunnelBroke
from .registrations import Registration
from .roster import Roster


class Leaving:
    """
    Ends what the server has, in order.
    """

    def __init__(self, roster: Roster) -> None:
        """
        @param roster: What is connected.
        """
        self._roster = roster

    def release(self, most: int) -> list[tuple[Registration, tcp.Connection, bytes]]:
        """See L{Connections.release}."""
        released: list[tuple[Registration, tcp.Connection, bytes]] = []
        for registration in list(self._roster.registrations.values()):
            if len(released) >= most:
                break
            found = registration.protocol.release()
            if found is None:
                continue
            released.append((registration, *found))
            del self._roster.registrations[registration.generation]
            self._roster.pool.end(registration.generation)
            self._roster.end(self._roster.table.revoke(key=registration.key))
        self._roster.schedule()
        self._roster.look()
        return released

    def leave(self, limit: float, *, keeping: int = 0) -> None:
        """See L{Connections.leave}."""
        self._roster.stopping = True
        self._roster.pool.stop()
        registrations = []
        for registration in self._roster.registrations.values():
            if keeping > 0 and registration.protocol.isPlain:
                keeping -= 1
            else:
                registrations.append(registration)
        for registration, delay in zip(
            registrations, departures(len(registrations), limit), strict=True
        ):
            registration.protocol.goodbye(delay)
        for holder in self._roster.table.holders():
            if holder.graceEnds is not None:
                self._roster.end(self._roster.table.revoke(key=holder.key))
        self._roster.schedule()

    async def stop(self, delay: float = 0.0) -> None:
        """See L{Connections.stop}."""
        if delay > 0:
            self.leave(delay)
            await self._roster.drained.within(delay)
        self._roster.stopping = True
        self._roster.pool.stop()
        for place, registration in enumerate(list(self._roster.registrations.values())):
            registration.protocol.close("shutdown", retryAfter=round(place / LEAVE_RATE, 3) or None)
        for check in list(self._roster.checks):
            check.close("shutdown")
        for holder in self._roster.table.holders():
            self._roster.end(self._roster.table.revoke(key=holder.key))
        for streams in list(self._roster.streams.values()):
            for call in list(streams.values()):
                call.cut(Failure(TunnelBroke("the server is shutting down")))
        self._roster.schedule()
        if not await self._roster.empty.within(CLOSE_LIMIT):
            for registration in list(self._roster.registrations.values()):
                registration.protocol.drop("shutdown")
            await self._roster.empty.within(None)


__all__ = ["Leaving"]
