# -*- test-case-name: tests.revdial.test_listener -*-
"""
The agent's end of one control connection.

L{AgentControl} knows what the lines of a server mean; who answers its dials is
behind L{Answering}, which outlives it.

Invariants:

  - What both ends agreed on is what the server answered, as far as we offered it.
  - The connection leaves once: however it ends, L{AgentControl.whenClosed} says
    why in the first word that was spoken (the server's, else ours).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol as TypingProtocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from .carrier import ClosedByPeer
from .control import CLOSE_CODES, ControlConnection
from .features import FEATURES_HEADER, GOODBYE, canPool, parseFeatures
from .keepalive import KernelWatch
from .messages import Closing, ConnReady, Goodbye, Message, Park, PickupFailed

_REASONS = {code: word for word, code in CLOSE_CODES.items()}


@dataclass(frozen=True)
class Closed:
    """
    How a control connection ended.

    @ivar reason: The server's word (C{superseded}, C{revoked}, C{shutdown},
        C{held}, C{protocol-error}), or C{goodbye} (it asked us to leave),
        C{silent server}, C{left} (we left), C{closed}, C{lost}, or our own words
        for a fault of the server's.
    @ivar retryAfter: Seconds that the server wants us to wait; C{None} if it did
        not say.
    @ivar held: Seconds that the connection was up.
    """

    reason: str
    retryAfter: float | None
    held: float


class Answering(TypingProtocol):
    """
    Who answers a server's dials.

    @ivar pingInterval: Seconds between our signs of life.
    @ivar silence: Seconds without a sign of life after which a server is given up.
    @ivar kernel: What the kernel is told about a control connection.
    """

    pingInterval: float
    silence: float
    kernel: KernelWatch

    def controlMade(self, control: AgentControl) -> None:
        """A control connection is up."""

    def controlLost(self, control: AgentControl) -> None:
        """A control connection is gone."""

    def asked(self, control: AgentControl, ready: ConnReady) -> None:
        """The server wants a stream."""

    def askedToPark(self, control: AgentControl, park: Park) -> None:
        """The server wants a data connection that waits for a dial."""


class AgentControl(ControlConnection):
    """
    The agent's end of a control connection.

    @ivar leaving: Whether no dial is to be taken any more.
    """

    def __init__(self, answering: Answering, clock: IReactorTime, offered: frozenset[str]) -> None:
        super().__init__(clock, frozenset(), kernel=answering.kernel)
        self._answering = answering
        self._offered = offered
        self._since = clock.seconds()
        self._verdict: tuple[str, float | None] | None = None
        self._closed: Closed | None = None
        self._waiters: list[Deferred[Closed]] = []
        self._departure: IDelayedCall | None = None
        self.leaving = False

    @property
    def isUp(self) -> bool:
        """Whether the connection is neither gone nor closing."""
        return self._closed is None and self.ended is None

    def whenClosed(self) -> Deferred[Closed]:
        """Fires when the connection is gone, with how it ended."""
        if self._closed is not None:
            return succeed(self._closed)
        waiter: Deferred[Closed] = Deferred(self._forget)
        self._waiters.append(waiter)
        return waiter

    def goodbye(self) -> None:
        """Tell the server that we are leaving; it sends no more dials."""
        self.leaving = True
        if GOODBYE in self.features:
            self.send(Goodbye())

    def refuse(self, ready: ConnReady, text: str, reason: str) -> None:
        """
        Tell the server that a dial cannot be answered.

        @param text: Why, for people.
        @param reason: Why, for programs: one of L{REASONS
            <helix_revdial.revdial.messages.REASONS>}.
        """
        try:
            self.send(PickupFailed(ready.connPath, text, ready.dial, reason))
        except ValueError:
            self._log.warn("A dial's path is too long to be answered.", dial=ready.dial)

    def leave(self) -> None:
        """Close, from our side."""
        self._verdict = self._verdict or ("left", None)
        self.close("left")

    def started(self) -> None:
        self._since = self._clock.seconds()
        name = FEATURES_HEADER.lower()
        answered = [value for key, value in self._carrier().responseHeaders if key == name]
        self.features = self._offered & parseFeatures(answered)
        self._answering.controlMade(self)
        self.every(self._answering.pingInterval, self.askForLife, now=False)
        self.watchSilence(self._answering.silence)

    def messageReceived(self, message: Message) -> None:
        match message:
            case ConnReady():
                self._answering.asked(self, message)
            case Park() if canPool(self.features):
                self._answering.askedToPark(self, message)
            case Goodbye(delay):
                self._depart(delay or 0.0)
            case Closing(err, retryAfter):
                self._verdict = (err, retryAfter)
                self.close(err)
            case _:
                pass

    def lost(self, reason: Failure) -> None:
        departure, self._departure = self._departure, None
        if departure is not None and departure.active():
            departure.cancel()
        word, retryAfter = self._why(reason)
        closed = self._closed = Closed(word, retryAfter, self._clock.seconds() - self._since)
        self._answering.controlLost(self)
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(closed)

    def _depart(self, delay: float) -> None:
        """The server drains: it stays ours, dials included, until the delay is over."""
        self._verdict = self._verdict or ("goodbye", 0.0)
        if self._departure is None and self.ended is None:
            self._departure = self._clock.callLater(delay, self.close, "goodbye")

    def _why(self, reason: Failure) -> tuple[str, float | None]:
        if self._verdict is not None:
            return self._verdict
        if self.ended is not None:
            return ("silent server" if self.ended == "silence" else self.ended), None
        if isinstance(reason.value, ClosedByPeer) and reason.value.code in _REASONS:
            return _REASONS[reason.value.code], None
        return ("closed" if reason.check(ConnectionDone) else "lost"), None

    def _forget(self, waiter: Deferred[Closed]) -> None:
        self._waiters.remove(waiter)
