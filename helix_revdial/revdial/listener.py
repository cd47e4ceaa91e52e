# -*- test-case-name: tests.revdial.test_listener -*-
"""
The end that answers: the agent's.

L{Listener} lives as long as the agent, over many control connections.  It owns
the targets, the dial-backs under way and the streams that came of them.
L{AgentControl <helix_revdial.revdial.agent_control.AgentControl>} is one
control connection, L{Answer <helix_revdial.revdial.answers.Answer>} one dial-back.

Invariants:

  - A C{conn-ready} never waits for another: each dial-back opens its target and
    its data connection at the same time, within its own limit, and beside the
    control connection.
  - Each C{conn-ready} ends in exactly one of: a stream, a C{pickup-failed}, or
    the server's own word that the dial is over.
  - A named dial reaches the target of that name or fails.
  - When the control connection ends, dial-backs under way are given up (the
    server asks anew on return); streams go on.
  - At most C{maxDials} dial-backs and C{maxStreams} streams; beyond, the
    answer is C{busy}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IProtocolFactory, IReactorTime
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from .agent_control import AgentControl, Closed
from .answers import Answer, DialBack
from .endpoints import ListenerEndpoint
from .features import ALL
from .interfaces import ICarrierTransport, ITarget
from .keepalive import CONTROL_WATCH, KernelWatch
from .messages import ConnReady, Park
from .pooled import Parking, Pooled
from .streams import StreamProtocol
from .watching import ListenerWatching

MAX_DIALS = 1000
"""Dial-backs under way at a time."""

MAX_STREAMS = 10_000
"""Streams open at a time."""

MAX_PARKED = 128
"""Data connections that wait for dials, at a time."""

DIAL_BACK = 20.0
"""Seconds from C{conn-ready} to the stream."""

SILENCE = 40.0
"""Seconds without a sign of life of the server after which it is given up."""

PING = 15.0
"""Seconds between our signs of life."""


class Listener:
    """
    Answers the dials of a server with local targets.

    @ivar pingInterval: Seconds between our signs of life.
    @ivar silence: Seconds without a sign of life after which a server is given up.
    @ivar kernel: What the kernel is told about a control connection.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        dialBack: DialBack,
        targets: Mapping[str, ITarget],
        *,
        default: str | None = None,
        maxDials: int = MAX_DIALS,
        maxStreams: int = MAX_STREAMS,
        dialBackTimeout: float = DIAL_BACK,
        silence: float = SILENCE,
        pingInterval: float = PING,
        kernel: KernelWatch = CONTROL_WATCH,
        watching: ListenerWatching | None = None,
        parking: Parking | None = None,
        maxParked: int = MAX_PARKED,
    ) -> None:
        """
        @param clock: Tells the time and calls later.
        @param dialBack: Opens data connections.
        @param targets: The local services by name.
        @param default: The one for a dial that names none; the first if not given.
        @param maxDials: Dial-backs under way at a time.
        @param maxStreams: Streams open at a time.
        @param dialBackTimeout: Seconds from C{conn-ready} to the stream.
        @param silence: Seconds without a sign of life after which a server is given up.
        @param pingInterval: Seconds between our questions for one.
        @param kernel: What the kernel is told about a control connection.
        @param watching: Told what cannot be seen by looking later.
        @param parking: Opens the connections that wait for dials; C{None} for none.
        @param maxParked: Connections that wait for dials, at a time; with 0 there are none.
        @raise ValueError: C{default} is no target.
        """
        if default is not None and default not in targets:
            raise ValueError(f"the default target {default!r} is not among the targets")
        self.pingInterval = pingInterval
        self.silence = silence
        self.kernel = kernel
        self._clock = clock
        self._dialBack = dialBack
        self._targets: dict[str, ITarget] = dict(targets)
        self._default = default
        self._maxDials = maxDials
        self._maxStreams = maxStreams
        self._dialBackTimeout = dialBackTimeout
        self._answers: set[Answer] = set()
        self._streams: set[StreamProtocol] = set()
        self._control: AgentControl | None = None
        self._waiters: list[Deferred[Closed]] = []
        self._idle: list[Deferred[None]] = []
        self._hurried = False
        self._watching = watching if watching is not None else ListenerWatching()
        self._pooled = Pooled(
            clock, self, self._streams, parking, maxParked, dialBackTimeout, self._watching
        )

    @property
    def parks(self) -> bool:
        """Whether connections may wait for dials here; if not, C{pool} is not to be offered."""
        return self._pooled.parks

    @property
    def control(self) -> AgentControl | None:
        """The control connection that is up, or C{None}."""
        return self._control

    @property
    def dialsUnderWay(self) -> int:
        """Dial-backs that are neither a stream nor over."""
        return len(self._answers) + self._pooled.dialsUnderWay

    @property
    def parked(self) -> int:
        """Data connections that wait for a dial."""
        return self._pooled.waiting

    @property
    def openStreams(self) -> int:
        """Streams that are up."""
        return len(self._streams)

    def traffic(self) -> tuple[int, int]:
        """Payload bytes from and to the server, over the streams that are up."""
        carriers = [cast(ICarrierTransport, one.transport) for one in self._streams]
        return (
            sum(carrier.bytesReceived for carrier in carriers),
            sum(carrier.bytesSent for carrier in carriers),
        )

    @property
    def targets(self) -> frozenset[str]:
        """The names of the targets."""
        return frozenset(self._targets)

    def controlFactory(self, offered: frozenset[str] = ALL) -> IProtocolFactory:
        """
        Builds the protocol for a control carrier.

        @param offered: The features in the request's header.
        """
        return _ControlFactory(self, self._clock, offered)

    def whenClosed(self) -> Deferred[Closed]:
        """Fires when the control connection, this one or the next, is gone."""
        if self._control is not None:
            return self._control.whenClosed()
        waiter: Deferred[Closed] = Deferred(lambda d: self._waiters.remove(d))
        self._waiters.append(waiter)
        return waiter

    def endpoint(self, name: str) -> ListenerEndpoint:
        """
        A server endpoint whose connections are dials of the target C{name}.
        """
        return ListenerEndpoint(self, name)

    def addTarget(self, name: str, target: ITarget) -> None:
        """
        Offer one more target.

        @raise ValueError: There is one of that name.
        """
        if name in self._targets:
            raise ValueError(f"there is a target {name!r} already")
        self._targets[name] = target

    def removeTarget(self, name: str) -> None:
        """Offer a target no more; its streams go on."""
        self._targets.pop(name, None)
        if self._default == name:
            self._default = None

    async def stop(self, delay: float = 0.0) -> None:
        """
        Leave: say goodbye, let streams finish for C{delay} seconds, cut the rest,
        and close.
        """
        self._hurried = False
        control = self._control
        if control is not None:
            control.goodbye()
        self._pooled.stop()
        if delay > 0 and (self._streams or self._answers):
            idle: Deferred[None] = Deferred()
            self._idle.append(idle)
            timer = self._clock.callLater(delay, idle.callback, None)
            try:
                await idle
            finally:
                self._idle.remove(idle)
                if timer.active():
                    timer.cancel()
        for answer in list(self._answers):
            answer.cancel()
        for stream in list(self._streams):
            stream.cut("the agent leaves")
        control = self._control
        if control is not None:
            closed = control.whenClosed()
            control.leave()
            if self._hurried:
                control.drop("left")
            await closed

    def hurry(self) -> None:
        """Let L{stop}, which is under way, wait for nothing and nobody any more."""
        self._hurried = True
        self._wakeIdle()
        if self._control is not None and self._control.ended is not None:
            self._control.drop("left")

    # The control connection's events

    def controlMade(self, control: AgentControl) -> None:
        """A control connection is up."""
        self._control = control
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            control.whenClosed().chainDeferred(waiter)

    def controlLost(self, control: AgentControl) -> None:
        """A control connection is gone."""
        if self._control is control:
            self._control = None
        self._pooled.end(control)
        for answer in list(self._answers):
            if answer.control is control:
                answer.cancel()

    def asked(self, control: AgentControl, ready: ConnReady) -> None:
        """The server wants a stream."""
        if self._pooled.isAnswered(control, ready):
            return
        if control.leaving:
            self._refuse(control, ready, "the agent is leaving", "busy")
            return
        if self.isFull:
            self._refuse(control, ready, "the agent has too many dials under way", "busy")
            return
        target = self.targetOf(ready.target)
        if isinstance(target, str):
            self._refuse(control, ready, target, "unknown-target")
            return
        answer = Answer(
            self._clock, control, ready, target, self._streams, self._answered, self._watching
        )
        self._answers.add(answer)
        answer.start(self._dialBack, self._dialBackTimeout)

    def askedToPark(self, control: AgentControl, park: Park) -> None:
        """The server wants a data connection that waits for a dial."""
        self._pooled.park(control, park)

    @property
    def isFull(self) -> bool:
        """Whether no dial can be taken."""
        return self.dialsUnderWay >= self._maxDials or len(self._streams) >= self._maxStreams

    def targetOf(self, name: str | None) -> ITarget | str:
        """
        The target of a dial.

        @return: Why not, for people, where there is none.
        """
        if name is None:
            name = self._default or next(iter(self._targets), None)
        target = None if name is None else self._targets.get(name)
        if target is None:
            return "the agent has no target" if name is None else f"no target is named {name}"
        return target

    def streamEnded(self) -> None:
        """Nothing is left of a stream on a parked connection."""
        self._answered(None)

    def _refuse(self, control: AgentControl, ready: ConnReady, text: str, reason: str) -> None:
        try:
            self._watching.answered(ready.dial, ready.target, reason, 0.0)
        except Exception:
            self._log.failure("A watcher failed.")
        control.refuse(ready, text, reason)

    def _answered(self, answer: Answer | None) -> None:
        if answer is not None:
            self._answers.discard(answer)
        if not self._answers and not self._streams:
            self._wakeIdle()

    def _wakeIdle(self) -> None:
        for idle in list(self._idle):
            if not idle.called:
                idle.callback(None)


class _ControlFactory(Factory):
    noisy = False

    def __init__(self, listener: Listener, clock: IReactorTime, offered: frozenset[str]) -> None:
        self._listener = listener
        self._clock = clock
        self._offered = offered

    def buildProtocol(self, addr: IAddress | None) -> AgentControl:
        return AgentControl(self._listener, self._clock, self._offered)


__all__ = ["AgentControl", "Closed", "DialBack", "Listener", "ListenerEndpoint"]
