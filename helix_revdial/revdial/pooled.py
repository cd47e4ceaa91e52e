# -*- test-case-name: tests.integration.test_pool -*-
"""
The agent's parked connections.

The server asks for each, decides when it ends, and says which dial it is for; see
L{Pool <helix_revdial.revdial.pool.Pool>}.  L{Pooled} opens what is asked for, as long
as there is room, and knows which dials are answered.

Invariants:

  - A connection belongs to the control connection that asked for it.  When that ends
    or the agent leaves, it is closed at once, or after the stream that it carries.
  - B{A dial's target is connected once.}  A dial that was assigned may be asked for on
    the control connection as well, when its answer is slow or its connection was lost;
    the two may arrive in any order.  Where the target is not connected so far, what
    the server asked last counts, and the other way is given up; where it is, or was,
    the dial is not answered again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable
from typing import Protocol as Shape

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from .agent_control import AgentControl
from .assigned import Waiting
from .features import canPool
from .framed import FramedConnection, FrameUser
from .interfaces import ITarget
from .messages import Assign, ConnReady, Park, PickupFailed
from .streams import StreamProtocol
from .watching import ListenerWatching

MAX_IDS = 10_000
"""Dials that are remembered, so that none is answered twice."""


class Parking(Shape):
    """Where parked connections come from; L{ServerPath
    <helix_revdial.revdial.client.ServerPath>} is one."""

    def park(
        self, ticket: str, features: frozenset[str], user: FrameUser
    ) -> Awaitable[FramedConnection]:
        """Open a data connection that waits for a dial."""


class Agent(Shape):
    """What the parked connections need of the L{Listener
    <helix_revdial.revdial.listener.Listener>}."""

    @property
    def isFull(self) -> bool:
        """Whether no dial can be taken."""

    def targetOf(self, name: str | None) -> ITarget | str:
        """The target of a dial, or why there is none."""

    def streamEnded(self) -> None:
        """Nothing is left of a stream."""


class Pooled:
    """
    See the module; for parked connections it is the L{Assigning
    <helix_revdial.revdial.assigned.Assigning>}.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        agent: Agent,
        streams: set[StreamProtocol],
        parking: Parking | None,
        most: int,
        limit: float,
        watching: ListenerWatching,
    ) -> None:
        """
        @param streams: Where a stream is entered while it is up.
        @param parking: Opens the connections; C{None} for none.
        @param most: Connections at a time, those with a stream not counted.
        @param limit: Seconds that a target may take.
        """
        self._clock = clock
        self._agent = agent
        self._streams = streams
        self._parking = parking
        self._most = most
        self._limit = limit
        self._watching = watching
        self._opening: dict[Deferred[FramedConnection], AgentControl] = {}
        self._parked: set[Waiting] = set()
        self._busy: set[Waiting] = set()
        self._answering: dict[str, Waiting] = {}
        self._connected: OrderedDict[str, bool] = OrderedDict()
        self._dialledBack: OrderedDict[str, bool] = OrderedDict()

    @property
    def parks(self) -> bool:
        """Whether there is a way to open connections, and room for one."""
        return self._parking is not None and self._most > 0

    @property
    def waiting(self) -> int:
        """Connections that wait for a dial."""
        return len(self._parked) - len(self._busy)

    @property
    def dialsUnderWay(self) -> int:
        """Dials without a stream so far."""
        return len(self._answering)

    def park(self, control: AgentControl, park: Park) -> None:
        """Open a connection, if there is room."""
        if self._parking is None or control.leaving:
            return
        if self.waiting + len(self._opening) >= self._most:
            self._log.debug("No room for one more parked connection.")
            return
        waiting = Waiting(self._clock, control, self, self._watching, self._limit)
        opening: Deferred[FramedConnection] = Deferred.fromCoroutine(
            _opened(self._parking.park(park.ticket, control.features, waiting))
        )
        self._opening[opening] = control

        def done(connection: FramedConnection) -> None:
            del self._opening[opening]
            self._parked.add(waiting)
            waiting.parked(connection)

        def failed(failure: Failure) -> None:
            self._opening.pop(opening, None)
            # The server will do without, and ask again later.
            self._log.debug("No connection could be parked: {why}", why=failure.getErrorMessage())

        opening.addCallback(done).addErrback(failed)

    def end(self, control: AgentControl) -> None:
        """A control connection is gone: nothing of it waits any more."""
        for opening in [one for one, whose in self._opening.items() if whose is control]:
            opening.cancel()
        for waiting in [one for one in self._parked if one.control is control]:
            waiting.close()

    def stop(self) -> None:
        """The agent leaves."""
        for opening in list(self._opening):
            opening.cancel()
        for waiting in list(self._parked):
            if waiting.isIdle:
                waiting.close()

    def isAnswered(self, control: AgentControl, ready: ConnReady) -> bool:
        """
        A dial is asked for on the control connection: is it answered on a parked one
        already?  If not, from now on it will not be.
        """
        if ready.dial is None or not canPool(control.features):
            return False
        waiting = self._answering.pop(ready.dial, None)
        if waiting is not None:
            waiting.giveUp()
        elif ready.dial in self._connected:
            if not self._connected[ready.dial]:
                control.refuse(ready, "the stream of this dial has ended", "unreachable")
            return True
        _remember(self._dialledBack, ready.dial)
        return False

    # Assigning

    def mayAnswer(self, waiting: Waiting, assign: Assign) -> ITarget | PickupFailed | None:
        if (
            assign.dial in self._answering
            or assign.dial in self._connected
            or assign.dial in self._dialledBack
        ):
            return None
        self._busy.add(waiting)
        if waiting.control.leaving or self._agent.isFull:
            leaving = waiting.control.leaving
            text = "the agent is leaving" if leaving else "the agent has too many dials under way"
            return PickupFailed("", text, assign.dial, "busy")
        target = self._agent.targetOf(assign.target)
        if isinstance(target, str):
            return PickupFailed("", target, assign.dial, "unknown-target")
        self._answering[assign.dial] = waiting
        return target

    def notAnswered(self, waiting: Waiting, dial: str) -> None:
        if self._answering.get(dial) is waiting:
            del self._answering[dial]

    def streamBegan(self, waiting: Waiting, dial: str, stream: StreamProtocol) -> None:
        self.notAnswered(waiting, dial)
        _remember(self._connected, dial)
        self._streams.add(stream)

    def streamEnded(self, dial: str, stream: StreamProtocol) -> None:
        if dial in self._connected:
            self._connected[dial] = False
        self._streams.discard(stream)
        self._agent.streamEnded()

    def isWanted(self, waiting: Waiting) -> bool:
        self._busy.discard(waiting)
        control = waiting.control
        return not control.leaving and control.isUp and self.waiting <= self._most

    def gone(self, waiting: Waiting) -> None:
        self._parked.discard(waiting)
        self._busy.discard(waiting)


def _remember(dials: OrderedDict[str, bool], dial: str) -> None:
    dials[dial] = True
    if len(dials) > MAX_IDS:
        dials.popitem(last=False)


async def _opened(opening: Awaitable[FramedConnection]) -> FramedConnection:
    return await opening


__all__ = ["Parking", "Pooled"]
