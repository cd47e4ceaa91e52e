# -*- test-case-name: tests.revdial.test_views -*-
"""
What can be seen of the connections, the dials and the streams.

L{Views} reads the L{Roster <helix_revdial.revdial.roster.Roster>} and changes nothing:
each answer is of the moment it is asked for.
"""

from __future__ import annotations

from collections import Counter

from .offered import Expose, exposeOf
from .pickups import Call
from .registrations import ConnectionDetail, GraceEntry, Stats
from .remembered import Known
from .roster import Roster


class Views:
    """
    Shows who is connected, and what is under way.
    """

    def __init__(self, roster: Roster) -> None:
        """
        @param roster: What is shown.
        """
        self._roster = roster

    def status(self, key: str) -> str | None:
        """C{"connected"}, C{"grace"}, or C{None}."""
        return self._roster.table.status(key)

    def known(self) -> list[Known]:
        """Who is connected or in grace, for whoever starts after us."""
        return [
            {
                "key": holder.key,
                "owner": holder.owner,
                "credential": holder.credential,
                "generation": holder.generation,
            }
            for holder in self._roster.table.holders()
        ]

    def leadsTo(self, key: str, target: str | None) -> tuple[int, Expose] | None:
        """
        Where a dial would lead now, for whoever would use a stream of before again.

        @return: The generation that is connected as C{key}, and whom its target is
            for; C{None} where none is.
        """
        holder = self._roster.table.holder(key)
        if holder is None or holder.graceEnds is not None:
            return None
        registration = self._roster.registrations.get(holder.generation)
        if registration is None:
            return None
        return holder.generation, exposeOf(registration.targets, target)

    def stats(self) -> Stats:
        """The counts of the moment."""
        counts = self._roster.table.stats()
        return Stats(counts.connected, counts.grace, counts.pendingDials, counts.keys)

    def details(self) -> list[ConnectionDetail]:
        """Every live control connection, by key."""
        found = (self.detail(key) for key in self._roster.table.stats().keys)
        return [detail for detail in found if detail is not None]

    def detail(self, key: str) -> ConnectionDetail | None:
        """The live control connection of C{key}."""
        holder = self._roster.table.holder(key)
        if holder is None or holder.graceEnds is not None:
            return None
        registration = self._roster.registrations.get(holder.generation)
        if registration is None:
            return None
        dialer = registration.protocol
        streams = self._roster.streams.get(key, {}).values()
        own = [call.stream for call in streams if call.dial.generation == holder.generation]
        return ConnectionDetail(
            key=key,
            generation=holder.generation,
            carrier=dialer.carrierName,
            features=registration.features,
            remoteAddress=registration.peer,
            connectedSince=registration.connectedSince,
            lastHeard=self._roster.clock.seconds() - dialer.lastHeard,
            roundTrip=dialer.roundTrip,
            openStreams=len(streams),
            bytesIn=registration.endedIn + sum(stream.bytesIn for stream in own),
            bytesOut=registration.endedOut + sum(stream.bytesOut for stream in own),
            pendingDials=holder.pendingDials,
            targets=registration.targets,
        )

    def graceEntries(self) -> list[GraceEntry]:
        """Every runner that was lost and is awaited, by key."""
        now = self._roster.clock.seconds()
        return [
            GraceEntry(
                holder.key, holder.generation, max(0.0, holder.graceEnds - now), holder.pendingDials
            )
            for holder in self._roster.table.holders()
            if holder.graceEnds is not None
        ]

    def living(self) -> list[Call]:
        """Every call that is not over: those that wait, and those with a stream."""
        streams = [call for calls in self._roster.streams.values() for call in calls.values()]
        return [*self._roster.calls.values(), *streams]

    @property
    def openStreams(self) -> int:
        """Streams that are open, to all runners."""
        return sum(len(streams) for streams in self._roster.streams.values())

    @property
    def dialsUnderWay(self) -> int:
        """Dials that wait, or were asked for and are not picked up."""
        return len(self._roster.calls)

    def carriers(self) -> dict[tuple[str, str], int]:
        """How many connections there are: C{"control"} or C{"data"}, by their carrier."""
        found: Counter[tuple[str, str]] = Counter(
            ("control", one.protocol.carrierName) for one in self._roster.registrations.values()
        )
        found.update(
            ("data", call.stream.carrier or "none")
            for calls in self._roster.streams.values()
            for call in calls.values()
        )
        return dict(found)

    def sizes(self) -> dict[str, int]:
        """How many entries there are in each table that is kept here."""
        table = self._roster.table.stats()
        return {
            "runners": table.connected + table.grace,
            "registrations": len(self._roster.registrations),
            "claims": len(self._roster.claims),
            "dials": len(self._roster.calls),
            "dials_in_turn": len(self._roster.turns),
            "parked": self._roster.pool.parked.idle,
            "streams": sum(len(calls) for calls in self._roster.streams.values()),
        }

    def poolEvents(self) -> dict[str, int]:
        """What happened to parked connections, how often, by word."""
        return dict(self._roster.pool.events)

    def unsentBytes(self) -> int:
        """Bytes of control lines that wait for agents that do not read."""
        return sum(one.protocol.unsentBytes for one in self._roster.registrations.values())


__all__ = ["Views"]
