# -*- test-case-name: tests.revdial.test_dialer -*-
"""
The end that asks for streams: one L{Dialer} for one generation of one runner.

A dialer is the server's protocol on a control connection.  It writes
keep-alives, C{conn-ready}, C{goodbye} and C{closing}, and reports what the
agent says; it owns no table, and decides nothing about who may register.

Its liveness, by what the agent can do (L{Liveness} has the numbers):

  - C{echo} agreed: each keep-alive asks for an echo.
  - WebSocket without C{echo} (the Go agents of 2026): pings.
  - The hijacked connection of 2025: nothing comes from such an agent in its
    whole life but C{pickup-failed}.  The kernel notices when its machine or its
    path is gone; where the program is stuck, or something in between answers the
    kernel, L{UNANSWERED} dials that run out, one after the other, without a sign
    of the agent end the connection.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from .control import CLOSE_TIMEOUT, MAX_UNSENT, ControlConnection
from .features import ECHO, GOODBYE
from .keepalive import Liveness
from .messages import Closing, ConnReady, Goodbye, KeepAlive, Message, Park, PickupFailed

UNANSWERED = 2
"""Dials in a row that a speechless agent may leave without an answer."""

HAND_OVER = 15.0
"""Seconds from a registration to its carrier being up."""

PROBE = 3.0
"""Seconds that the holder of a contested name has to answer."""

_DEFAULT = Liveness()


class Dialer(ControlConnection):
    """
    The server's end of a control connection.

    @ivar generation: The registration that it stands for.
    @ivar offered: Whether the agent sent a features header: it then
        understands C{closing}.
    """

    __slots__ = (
        "_handOver",
        "_liveness",
        "_onGoodbye",
        "_onLost",
        "_onPickupFailed",
        "_onUp",
        "_unanswered",
        "_unansweredSince",
        "generation",
        "offered",
    )

    def __init__(
        self,
        clock: IReactorTime,
        features: frozenset[str],
        *,
        generation: int,
        offered: bool,
        onPickupFailed: Callable[[PickupFailed], None],
        onGoodbye: Callable[[], None],
        onLost: Callable[[Failure], None],
        onUp: Callable[[], None] | None = None,
        liveness: Liveness = _DEFAULT,
        handOver: float = HAND_OVER,
        maxUnsent: int = MAX_UNSENT,
        closeTimeout: float = CLOSE_TIMEOUT,
    ) -> None:
        """
        @param onPickupFailed: The agent could not answer a dial.
        @param onGoodbye: The agent is going away.
        @param onLost: The connection is gone, or never came; called once.
        @param onUp: The carrier is up.
        @param liveness: How the agent is watched.
        @param handOver: Seconds in which a carrier has to come.
        """
        super().__init__(
            clock,
            features,
            maxUnsent=maxUnsent,
            closeTimeout=closeTimeout,
            kernel=liveness.kernel,
        )
        self.generation = generation
        self.offered = offered
        self._onPickupFailed = onPickupFailed
        self._onGoodbye = onGoodbye
        self._onLost = onLost
        self._onUp = onUp
        self._liveness = liveness
        self._unanswered = 0
        self._unansweredSince = clock.seconds()
        self._handOver: IDelayedCall | None = clock.callLater(handOver, self._noCarrier)

    def ask(self, ready: ConnReady) -> None:
        """Ask the agent to dial back."""
        self.send(ready)

    def askToPark(self, park: Park) -> None:
        """Ask the agent for a connection that waits for a dial."""
        self.send(park)

    def goodbye(self, delay: float) -> None:
        """Tell the agent to leave after C{delay} seconds, if it understands."""
        if GOODBYE in self.features:
            self.send(Goodbye(delay))

    def lastWords(self, reason: str, retryAfter: float | None) -> None:
        if self.offered and self.transport is not None:
            self.send(Closing(reason, retryAfter))

    def abandon(self) -> None:
        """The carrier will not come."""
        if self.transport is None:
            self.close("abandoned")

    @property
    def speechless(self) -> bool:
        """Whether this agent answers neither echo nor ping."""
        return ECHO not in self.features and self.carrierName != "websocket"

    def dialRanOut(self, asked: float) -> None:
        """
        A dial that the agent had all its time for was not answered.

        Dials that ran out together say no more than one of them: the next one
        counts if the agent was asked after the last one that counted ran out.

        @param asked: When the agent was asked, on the clock.
        """
        if not self.speechless or asked < max(self._unansweredSince, self.lastHeard):
            return
        self._unanswered += 1
        self._unansweredSince = self._clock.seconds()
        if self._unanswered >= UNANSWERED:
            self._log.warn(
                "An agent left {count} dials in a row without an answer; "
                "the control connection is dropped.",
                count=self._unanswered,
                peer=self._peer(),
            )
            self.drop("unresponsive")

    def dialAnswered(self) -> None:
        """The agent picked a dial up: it is there."""
        self._unanswered = 0
        self._unansweredSince = self._clock.seconds()

    def dataReceived(self, data: bytes) -> None:
        self._unanswered = 0
        super().dataReceived(data)

    def probe(self, limit: float = PROBE) -> Deferred[bool]:
        """
        Ask whether the agent is there.

        An agent with neither echo nor ping (the hijacked connection of 2025)
        cannot answer.  It counts as there while TCP takes what we write to it;
        its clone is then refused, and told when to try again.

        @return: Fires, after C{limit} seconds at most, with whether it answered.
        """
        result: Deferred[bool] = Deferred()
        answer = self.signOfLife()
        if answer is None:
            self.send(KeepAlive())

        def over() -> None:
            result.callback(answer is None and not self._blocked and not self._lost)
            if answer is not None:
                answer.cancel()

        if self._lost or self.ended is not None:
            result.callback(False)
            if answer is not None:
                answer.addErrback(lambda _: None)
            return result
        timer = self._clock.callLater(limit, over)

        def settle(alive: bool) -> None:
            if timer.active():
                timer.cancel()
                result.callback(alive)

        if answer is not None:
            answer.addCallbacks(lambda _: settle(True), lambda _: settle(False))
        return result

    # The control connection's events

    def started(self) -> None:
        self._stopHandOver()
        self._unansweredSince = self._clock.seconds()
        live = self._liveness
        if ECHO in self.features:
            self.every(live.ask, self.askForLife, now=True)
            self.watchSilence(live.silence)
        else:
            self.every(live.keepAlive, lambda: self.send(KeepAlive()), now=True)
            if self._carrier().carrier == "websocket":
                self.every(live.ask, self.askForLife, now=False)
                self.watchSilence(live.silence)
        if self._onUp is not None:
            self._guarded(self._onUp)

    def messageReceived(self, message: Message) -> None:
        match message:
            case PickupFailed():
                self._onPickupFailed(message)
            case Goodbye():
                self._onGoodbye()
            case _:
                pass

    def lost(self, reason: Failure) -> None:
        self._stopHandOver()
        self._onLost(reason)

    def _noCarrier(self) -> None:
        self._handOver = None
        self.abandon()

    def _stopHandOver(self) -> None:
        call, self._handOver = self._handOver, None
        if call is not None and call.active():
            call.cancel()
