# -*- test-case-name: tests.revdial.test_listener -*-
"""
One dial-back: from a C{conn-ready} to a stream, or to the reason why not.

Invariants:

  - The target and the data connection are opened side by side; the upgrade is
    sent when the target is connected, and only then.
  - Whichever half fails first, the other is given back at once: no socket and no
    timer outlives the dial-back.
  - It ends in exactly one of: a stream, one C{pickup-failed}, or silence, where
    the server itself said that the dial is over or is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol as TypingProtocol
from typing import cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IProtocol,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from .agent_control import AgentControl
from .errors import DialError, NotAllowed, TargetRefused, TargetTimeout, UnknownDial, wordsOf
from .interfaces import ICarrierTransport, ITarget
from .messages import ConnReady
from .streams import Prepared, StreamOwner, StreamProtocol, TargetAddress
from .watching import ListenerWatching


class DialBack(TypingProtocol):
    """Where data connections come from; L{ServerPath
    <helix_revdial.revdial.client.ServerPath>} is one."""

    def dataEndpoint(
        self, connReady: ConnReady, features: frozenset[str], ready: Deferred[float]
    ) -> IStreamClientEndpoint:
        """
        An endpoint that picks C{connReady} up.

        @param connReady: What the server asked.
        @param features: What the control connection agreed on.
        @param ready: Fires with the seconds that the target took, when it is
            connected; the upgrade request goes out only then.
        @raise ValueError: C{connReady} leads somewhere it must not.
        """


class Answer:
    """One dial-back, until it is a stream or over."""

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        control: AgentControl,
        ready: ConnReady,
        target: ITarget,
        streams: set[StreamProtocol],
        onOver: Callable[[Answer | None], None],
        watching: ListenerWatching | None = None,
    ) -> None:
        """
        @param streams: Where the stream is entered while it is up.
        @param onOver: Called with this when it is no dial-back any more, and with
            C{None} when its stream has ended.
        @param watching: Told how it came out, and when its stream ended.
        """
        self.control = control
        self._clock = clock
        self._ready = ready
        self._target = target
        self._streams = streams
        self._onOver = onOver
        self._watching = watching if watching is not None else ListenerWatching()
        self._word = "withdrawn"
        self._begun = clock.seconds()
        self._over = False
        self._protocol: IProtocol | None = None
        self._targetReady: Deferred[float] = Deferred()
        self._opening: Deferred[IProtocol] | None = None
        self._connecting: Deferred[IProtocol] | None = None

    def start(self, dialBack: DialBack, limit: float) -> None:
        """Open the data connection and the target, side by side."""
        self._timer = self._clock.callLater(limit, self._timedOut)
        try:
            endpoint = dialBack.dataEndpoint(self._ready, self.control.features, self._targetReady)
            self._connecting = endpoint.connect(_AnswerFactory(self._build))
            self._connecting.addCallbacks(self._connected, self._unreachable)
            self._connecting.addErrback(self._failed)
            if not self._over:
                self._opening = self._target.open()
                self._opening.addCallbacks(self._opened, self._notOpened)
                self._opening.addErrback(self._failed)
        except Exception:
            self._failed(Failure())

    def cancel(self) -> None:
        """Give the dial-back up, and say nothing."""
        self._end()

    def _opened(self, protocol: IProtocol) -> None:
        if self._over:
            _release(protocol)
            return
        self._protocol = protocol
        self._targetReady.callback(self._clock.seconds() - self._begun)

    def _notOpened(self, failure: Failure) -> None:
        if self._over:
            return
        if failure.check(TargetTimeout):
            self._refuse(failure.getErrorMessage(), "target-timed-out")
        elif failure.check(TargetRefused):
            self._refuse(failure.getErrorMessage(), "target-refused")
        else:
            self._failed(failure)

    def _build(self) -> IProtocol | None:
        protocol, self._protocol = self._protocol, None
        if protocol is None or self._over:
            return None
        address = TargetAddress(self._ready.target or "")
        owner = _Answered(self._ready.dial, self._streams, self._onOver, self._watching)
        stream = StreamProtocol(Prepared(protocol), address, owner=owner)
        self._streams.add(stream)
        return stream

    def _connected(self, _: IProtocol) -> None:
        if not self._over:
            self._word = "connected"
            self._end()

    def _unreachable(self, failure: Failure) -> None:
        if self._over:
            return
        if failure.check(UnknownDial, NotAllowed):
            self._log.info(
                "The server wants the dial {dial} no more: {reason}.",
                dial=self._ready.dial,
                reason=failure.getErrorMessage(),
            )
            self._end()
            return
        text = failure.getErrorMessage() or failure.value.__class__.__name__
        self._refuse(f"the agent cannot dial back: {text}", "unreachable")

    def _timedOut(self) -> None:
        if self._targetReady.called:
            self._refuse("the agent's dial-back timed out", "unreachable")
        else:
            self._refuse(TargetTimeout.text, "target-timed-out")

    def _failed(self, failure: Failure) -> None:
        if self._over and failure.check(CancelledError):
            return
        if failure.check(DialError, ValueError):
            self._log.warn("A dial-back failed: {why}", why=failure.getErrorMessage())
        else:
            self._log.failure("A dial-back failed.", failure)
        self._refuse(failure.getErrorMessage() or "the agent failed", "unreachable")

    def _refuse(self, text: str, reason: str) -> None:
        if self._over:
            return
        self._word = reason
        self._log.info(
            "Dial {dial} of {target} is not answered ({reason}): {why}",
            dial=self._ready.dial,
            target=self._ready.target or "the default target",
            reason=reason,
            why=text,
        )
        self._end()
        self.control.refuse(self._ready, text, reason)

    def _end(self) -> None:
        if self._over:
            return
        self._over = True
        if self._timer.active():
            self._timer.cancel()
        for waiting in (self._opening, self._connecting):
            if waiting is not None and not waiting.called:
                waiting.cancel()
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            _release(protocol)
        try:
            seconds = self._clock.seconds() - self._begun
            self._watching.answered(self._ready.dial, self._ready.target, self._word, seconds)
        except Exception:
            self._log.failure("A watcher failed.")
        self._onOver(self)


class _Answered(StreamOwner):
    """What is left of a dial-back once it is a stream."""

    __slots__ = ("_dial", "_onOver", "_streams", "_watching")

    def __init__(
        self,
        dial: str | None,
        streams: set[StreamProtocol],
        onOver: Callable[[Answer | None], None],
        watching: ListenerWatching,
    ) -> None:
        self._dial = dial
        self._streams = streams
        self._onOver = onOver
        self._watching = watching

    def streamEnded(self, stream: StreamProtocol, reason: Failure) -> None:
        self._streams.discard(stream)
        carrier = cast(ICarrierTransport, stream.transport)
        try:
            self._watching.streamEnded(
                self._dial, carrier.bytesReceived, carrier.bytesSent, _describe(reason)
            )
        except Exception:
            Answer._log.failure("A watcher failed.")
        self._onOver(None)


def _describe(reason: Failure) -> str:
    if reason.check(ConnectionDone):
        return "closed"
    return wordsOf(reason)


class _AnswerFactory(Factory):
    noisy = False

    def __init__(self, build: Callable[[], IProtocol | None]) -> None:
        self._build = build

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        return cast(Protocol | None, self._build())


def _release(protocol: IProtocol) -> None:
    """Let a target's protocol go that will have no data connection."""
    try:
        protocol.connectionLost(Failure(ConnectionAborted()))
    except Exception:
        Answer._log.failure("A target's protocol failed in connectionLost.")
