# -*- test-case-name: tests.revdial.test_listener -*-
"""
The end that answers: the agent's.

L{Listener} lives as long as the agent, over many control connections.  It owns
the targets, the dial-backs under way and the streams that came of them.
L{AgentControl} is the protocol of one control connection.

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

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol as TypingProtocol
from typing import cast

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.error import CannotListenError, ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IListeningPort,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from .carrier import ClosedByPeer
from .control import CLOSE_CODES, ControlConnection
from .errors import DialError, NotAllowed, TargetRefused, TargetTimeout, UnknownDial
from .features import ALL, FEATURES_HEADER, GOODBYE, parseFeatures
from .interfaces import ITarget
from .messages import Closing, ConnReady, Goodbye, Message, PickupFailed
from .streams import StreamProtocol, TargetAddress

MAX_DIALS = 1000
"""Dial-backs under way at a time."""

MAX_STREAMS = 10_000
"""Streams open at a time."""

DIAL_BACK = 20.0
"""Seconds from C{conn-ready} to the stream."""

SILENCE = 60.0
"""Seconds without a byte of the server after which it is given up."""

PING = 15.0
"""Seconds between our signs of life."""

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


class AgentControl(ControlConnection):
    """
    The agent's end of a control connection.

    @ivar leaving: Whether no dial is to be taken any more.
    """

    def __init__(self, listener: Listener, clock: IReactorTime, offered: frozenset[str]) -> None:
        super().__init__(clock, frozenset())
        self._listener = listener
        self._offered = offered
        self._since = clock.seconds()
        self._verdict: tuple[str, float | None] | None = None
        self._closed: Closed | None = None
        self._waiters: list[Deferred[Closed]] = []
        self._departure: IDelayedCall | None = None
        self.leaving = False

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

    def leave(self) -> None:
        """Close, from our side."""
        self._verdict = self._verdict or ("left", None)
        self.close("left")

    def started(self) -> None:
        self._since = self._clock.seconds()
        name = FEATURES_HEADER.lower()
        answered = [value for key, value in self._carrier().responseHeaders if key == name]
        self.features = self._offered & parseFeatures(answered)
        self._listener.controlMade(self)
        self.every(self._listener.pingInterval, self.askForLife, now=False)
        self.watchSilence(self._listener.silence)

    def messageReceived(self, message: Message) -> None:
        match message:
            case ConnReady():
                self._listener.asked(self, message)
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
        self._listener.controlLost(self)
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


class Listener:
    """
    Answers the dials of a server with local targets.

    @ivar pingInterval: Seconds between our signs of life.
    @ivar silence: Seconds of silence after which a server is given up.
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
    ) -> None:
        """
        @param clock: Tells the time and calls later.
        @param dialBack: Opens data connections.
        @param targets: The local services by name.
        @param default: The one for a dial that names none; the first if not given.
        @param maxDials: Dial-backs under way at a time.
        @param maxStreams: Streams open at a time.
        @param dialBackTimeout: Seconds from C{conn-ready} to the stream.
        @param silence: Seconds of silence after which a server is given up.
        @param pingInterval: Seconds between our signs of life.
        @raise ValueError: C{default} is no target.
        """
        if default is not None and default not in targets:
            raise ValueError(f"the default target {default!r} is not among the targets")
        self.pingInterval = pingInterval
        self.silence = silence
        self._clock = clock
        self._dialBack = dialBack
        self._targets: dict[str, ITarget] = dict(targets)
        self._default = default
        self._maxDials = maxDials
        self._maxStreams = maxStreams
        self._dialBackTimeout = dialBackTimeout
        self._answers: set[_Answer] = set()
        self._streams: set[StreamProtocol] = set()
        self._control: AgentControl | None = None
        self._waiters: list[Deferred[Closed]] = []
        self._idle: list[Deferred[None]] = []

    @property
    def control(self) -> AgentControl | None:
        """The control connection that is up, or C{None}."""
        return self._control

    @property
    def dialsUnderWay(self) -> int:
        """Dial-backs that are neither a stream nor over."""
        return len(self._answers)

    @property
    def openStreams(self) -> int:
        """Streams that are up."""
        return len(self._streams)

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
        control = self._control
        if control is not None:
            control.goodbye()
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
        if self._control is not None:
            closed = self._control.whenClosed()
            self._control.leave()
            await closed

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
        for answer in list(self._answers):
            if answer.control is control:
                answer.cancel()

    def asked(self, control: AgentControl, ready: ConnReady) -> None:
        """The server wants a stream."""
        if control.leaving:
            _refuse(control, ready, "the agent is leaving", "busy")
            return
        if len(self._answers) >= self._maxDials or len(self._streams) >= self._maxStreams:
            _refuse(control, ready, "the agent has too many dials under way", "busy")
            return
        name = ready.target
        if name is None:
            name = self._default or next(iter(self._targets), None)
        target = None if name is None else self._targets.get(name)
        if target is None:
            what = "the agent has no target" if name is None else f"no target is named {name}"
            _refuse(control, ready, what, "unknown-target")
            return
        answer = _Answer(self._clock, control, ready, target, self._streams, self._answered)
        self._answers.add(answer)
        answer.start(self._dialBack, self._dialBackTimeout)

    def _answered(self, answer: _Answer | None) -> None:
        if answer is not None:
            self._answers.discard(answer)
        if not self._answers and not self._streams:
            for idle in list(self._idle):
                if not idle.called:
                    idle.callback(None)


class _Answer:
    """One dial-back, until it is a stream or over."""

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        control: AgentControl,
        ready: ConnReady,
        target: ITarget,
        streams: set[StreamProtocol],
        onOver: Callable[[_Answer | None], None],
    ) -> None:
        self.control = control
        self._clock = clock
        self._ready = ready
        self._target = target
        self._streams = streams
        self._onOver = onOver
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
        stream = StreamProtocol(
            _Prepared(protocol), address, onEnded=lambda reason: self._streamEnded(stream)
        )
        self._streams.add(stream)
        return stream

    def _connected(self, _: IProtocol) -> None:
        if not self._over:
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
        self._end()
        _refuse(self.control, self._ready, text, reason)

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
        self._onOver(self)

    def _streamEnded(self, stream: StreamProtocol) -> None:
        self._streams.discard(stream)
        self._onOver(None)


@implementer(IStreamServerEndpoint)
class ListenerEndpoint:
    """
    Offers a protocol as a target of the agent: every dial of its name is a
    connection.
    """

    def __init__(self, listener: Listener, name: str) -> None:
        self._listener = listener
        self._name = name

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """
        @return: Fires with a port whose C{stopListening} withdraws the target.
        """
        try:
            self._listener.addTarget(self._name, _FactoryTarget(protocolFactory, self._name))
        except ValueError as error:
            return fail(CannotListenError("revdial", self._name, error))
        port: IListeningPort = _TargetPort(self._listener, self._name, protocolFactory)
        port.startListening()
        return succeed(port)


@implementer(IListeningPort)
class _TargetPort:
    def __init__(self, listener: Listener, name: str, factory: IProtocolFactory) -> None:
        self._listener = listener
        self._name = name
        self._factory = factory
        self._listening = False

    def startListening(self) -> None:
        if not self._listening:
            self._listening = True
            self._factory.doStart()

    def stopListening(self) -> Deferred[None] | None:
        if self._listening:
            self._listening = False
            self._listener.removeTarget(self._name)
            self._factory.doStop()
        return succeed(None)

    def getHost(self) -> IAddress:
        return TargetAddress(self._name)


@implementer(ITarget)
class _FactoryTarget:
    """A target that is a protocol in this process."""

    def __init__(self, factory: IProtocolFactory, name: str) -> None:
        self._factory = factory
        self._address = TargetAddress(name)

    def open(self) -> Deferred[IProtocol]:
        protocol = self._factory.buildProtocol(self._address)
        if protocol is None:
            return fail(TargetRefused(f"{self._address.target} takes no connection"))
        return succeed(StreamProtocol(_Prepared(protocol), self._address))


class _ControlFactory(Factory):
    noisy = False

    def __init__(self, listener: Listener, clock: IReactorTime, offered: frozenset[str]) -> None:
        self._listener = listener
        self._clock = clock
        self._offered = offered

    def buildProtocol(self, addr: IAddress | None) -> AgentControl:
        return AgentControl(self._listener, self._clock, self._offered)


class _AnswerFactory(Factory):
    noisy = False

    def __init__(self, build: Callable[[], IProtocol | None]) -> None:
        self._build = build

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        return cast(Protocol | None, self._build())


class _Prepared(Factory):
    """A factory for the one protocol that is there already."""

    noisy = False

    def __init__(self, prepared: IProtocol) -> None:
        self._prepared = prepared

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return cast(Protocol, self._prepared)


def _release(protocol: IProtocol) -> None:
    """Let a target's protocol go that will have no data connection."""
    try:
        protocol.connectionLost(Failure(ConnectionAborted()))
    except Exception:
        Listener._log.failure("A target's protocol failed in connectionLost.")


def _refuse(control: AgentControl, ready: ConnReady, text: str, reason: str) -> None:
    """Tell the server that a dial cannot be answered."""
    try:
        control.send(PickupFailed(ready.connPath, text, ready.dial, reason))
    except ValueError:
        Listener._log.warn("A dial's path is too long to be answered.", dial=ready.dial)
