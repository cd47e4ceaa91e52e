# -*- test-case-name: tests.revdial.test_connections -*-
"""
A caller who waits for a stream, and the data connection that is for him.

L{Call} is a dial as its caller sees it: the Deferred that C{connect()} gave,
the factory, the stream's record.  L{PickUp} is what the HTTP side gets when a
data connection names the dial: the protocol to put on the carrier, and where to
say that the hand-over failed.

Invariants:

  - The caller's Deferred fires exactly once, and the factory's C{doStop}
    follows its C{doStart} exactly once, whatever happens in which order.
  - A carrier that arrives when its caller is gone is closed.  It is never given
    to anybody else.
  - Between pick-up and carrier a call has one timer; otherwise none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol as Shape
from typing import cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IDelayedCall,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
)
from twisted.logger import Logger
from twisted.python.failure import Failure

from .dials import Dial
from .errors import (
    DialError,
    DialTimeout,
    TargetRefused,
    TargetTimeout,
    TooManyPendingDials,
    TunnelBroke,
    wordsOf,
)
from .interfaces import ICarrierTransport
from .messages import PickupFailed
from .offered import Expose
from .pool import EarlyBytes
from .streams import RunnerAddress, Stream, StreamOwner, StreamProtocol


class Calls(Shape):
    """Who is told what becomes of a call."""

    def callConnected(self, call: Call) -> None:
        """The caller is about to get his protocol."""

    def callCancelled(self, call: Call) -> None:
        """The caller gave up before he had a protocol."""

    def callOver(self, call: Call) -> None:
        """
        Nothing of the call is left, whether it failed, was cancelled, or its stream
        ended; called once.
        """


class Call(StreamOwner):
    """
    A caller's dial.

    @ivar dial: The table's dial.
    @ivar stream: The record, from the start of the dial.
    @ivar result: Fires with the caller's protocol; C{None} once it has.
    @ivar owner: Who owned the generation that answered, once one did.
    @ivar credential: What registered it.
    @ivar allow: Whether the caller may have a target that is for these; C{None}
        where he may have all.
    @ivar early: What the caller sends before he has a stream, where his factory has
        an attribute of that name; C{None} once he has.
    @ivar outcome: C{"connected"}, C{"cancelled"}, the word of the error that the
        caller got, or C{"failed"} for an error of his own; C{None} before that.
    """

    __slots__ = (
        "_calls",
        "_clock",
        "_factory",
        "_fired",
        "_over",
        "_protocol",
        "_timer",
        "allow",
        "credential",
        "dial",
        "early",
        "outcome",
        "owner",
        "result",
        "stream",
    )

    _log = Logger()

    def __init__(
        self, clock: IReactorTime, dial: Dial, factory: IProtocolFactory, calls: Calls
    ) -> None:
        """
        @param calls: Told what becomes of it.
        """
        self.dial = dial
        self.stream = Stream(clock, dial.id, dial.key, dial.target)
        self.result: Deferred[IProtocol] | None = Deferred(self._cancel)
        self.owner: str | None = None
        self.credential: str | None = None
        self.allow: Callable[[Expose], bool] | None = None
        self.outcome: str | None = None
        early: EarlyBytes | None = getattr(factory, "early", None)
        self.early = None if early is None else _Noted(early, self.stream)
        self._clock = clock
        self._factory = factory
        self._calls = calls
        self._fired = False
        self._over = False
        self._timer: IDelayedCall | None = None
        self._protocol: _PickedUp | None = None
        factory.doStart()

    @property
    def wanted(self) -> bool:
        """Whether the caller still waits."""
        return not self._fired

    def pickedUp(self, limit: float | None) -> StreamProtocol:
        """
        A data connection is for this call, and its carrier is on the way.

        @param limit: Seconds that the carrier has; C{None} if it is there.
        @return: What to put on the carrier.
        """
        if limit is not None:
            self._timer = self._clock.callLater(limit, self._noCarrier)
        self._protocol = _PickedUp(self, self._factory)
        return self._protocol

    def fail(self, failure: Failure) -> None:
        """The caller gets no stream."""
        if not self._fired:
            self._fired = True
            error = failure.value
            self.outcome = error.word if isinstance(error, DialError) else "failed"
            self.finish(wordsOf(failure))
            result, self.result = self.result, None
            assert result is not None
            result.errback(failure)

    def cut(self, failure: Failure) -> None:
        """End the call in whatever state it is."""
        self.fail(failure)
        if self._protocol is not None:
            self._protocol.cut(failure.getErrorMessage())

    def finish(self, reason: str) -> None:
        """Nothing of the call is left."""
        self._stopTimer()
        if self._over:
            return
        self._over = True
        self.stream.end(reason)
        try:
            self._factory.doStop()
        except Exception:
            self._log.failure("A factory failed in doStop.")
        self._calls.callOver(self)

    # The stream's events

    def streamConnected(self, protocol: IProtocol) -> None:
        """See L{StreamOwner <helix_revdial.revdial.streams.StreamOwner>}."""
        self._stopTimer()
        if self._fired:
            if self._protocol is not None:
                self._protocol.cut("cancelled")
            return
        self._fired = True
        self.outcome = "connected"
        # A stream may live for months: it keeps nothing of its dial.
        result, self.result = self.result, None
        self.early = self.allow = None
        assert result is not None
        self._calls.callConnected(self)
        result.callback(protocol)

    def streamFailed(self, failure: Failure) -> None:
        """See L{StreamOwner <helix_revdial.revdial.streams.StreamOwner>}."""
        self.fail(failure)

    def streamEnded(self, stream: StreamProtocol, reason: Failure) -> None:
        """See L{StreamOwner <helix_revdial.revdial.streams.StreamOwner>}."""
        if not self._fired:
            self.fail(Failure(TunnelBroke()))
        self._protocol = None
        self.finish(self.stream.reason or wordsOf(reason))

    def _cancel(self, _: Deferred[IProtocol]) -> None:
        self._fired = True
        self.outcome = "cancelled"
        if self._protocol is None:
            self._calls.callCancelled(self)
        else:
            # The caller's own protocol, if it is being connected just now, goes too.
            self._protocol.cut("cancelled")
        self.finish("cancelled")

    def _noCarrier(self) -> None:
        self._timer = None
        self.fail(Failure(DialTimeout("the data connection did not come up in time")))

    def _stopTimer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()


class _Noted:
    """What a caller sends early, noted in the record of his stream."""

    __slots__ = ("_early", "_stream")

    def __init__(self, early: EarlyBytes, stream: Stream) -> None:
        self._early = early
        self._stream = stream

    def sendEarly(self, write: Callable[[bytes], None]) -> None:
        """See L{EarlyBytes <helix_revdial.revdial.pool.EarlyBytes>}."""

        def noted(data: bytes) -> None:
            self._stream.mark("firstByteOut")
            write(data)

        self._early.sendEarly(noted)

    def keepEarly(self) -> None:
        """See L{EarlyBytes <helix_revdial.revdial.pool.EarlyBytes>}."""
        self._stream.phases.pop("firstByteOut", None)
        self._early.keepEarly()


class _PickedUp(StreamProtocol):
    """The stream of a L{Call}; it takes a carrier only while the caller waits."""

    def __init__(self, call: Call, factory: IProtocolFactory) -> None:
        super().__init__(
            factory,
            RunnerAddress(call.dial.key, call.dial.target),
            stream=call.stream,
            owner=call,
        )
        self._call = call

    def connectionMade(self) -> None:
        if self._call.wanted:
            super().connectionMade()
        else:
            cast(ICarrierTransport, self.transport).abortConnection()


class PickUp:
    """
    A data connection that is for a dial.

    @ivar protocol: What to put on its carrier.
    @ivar features: What the runner's control connection agreed on.
    @ivar dial: The dial's id.
    @ivar runner: The runner's key.
    """

    def __init__(self, call: Call, protocol: StreamProtocol) -> None:
        self.protocol: IProtocol = protocol
        self.features: frozenset[str] = call.dial.features
        self.dial = call.dial.id
        self.runner = call.dial.key
        self._call = call

    def failed(self, failure: Failure) -> None:
        """The hand-over failed: there will be no carrier."""
        message = wordsOf(failure)
        self._call.fail(Failure(TunnelBroke(f"the data connection failed: {message}")))


def errorFor(message: PickupFailed) -> DialError:
    """What a caller is told for an agent's C{pickup-failed}."""
    text = message.err[:512] or None
    match message.reason:
        case "target-refused" | "unknown-target":
            return TargetRefused(text)
        case "target-timed-out":
            return TargetTimeout(text)
        case "busy":
            return TooManyPendingDials(text, retryAfter=1.0)
        case _:
            # The Go agents say only that their dial-back failed.
            return TunnelBroke(text or "the agent could not dial back")


def targetSeconds(timing: bytes | None) -> float | None:
    """Read a C{Revdial-Timing} header: C{target=<seconds>}."""
    for part in (timing or b"")[:128].split(b","):
        name, _, value = part.strip().partition(b"=")
        if name == b"target":
            try:
                seconds = float(value)
            except ValueError:
                return None
            return seconds if 0 <= seconds < 3600 else None
    return None
