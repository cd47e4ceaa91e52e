# -*- test-case-name: tests.revdial.test_dialer,tests.revdial.test_listener -*-
"""
The control connection, as far as both ends have it in common.

L{ControlConnection} is the protocol on a control carrier.  It owns: writing
lines with a bound on what the peer has not read; reading messages, and closing
at the first fault; knowing when the peer was last heard; asking it for a sign
of life; closing in a way that the peer understands.  What a message means
belongs to its two subclasses, L{Dialer <helix_revdial.revdial.dialer.Dialer>}
and L{AgentControl <helix_revdial.revdial.agent_control.AgentControl>}.

Invariants:

  - What we write never counts as life: a connection whose path is cut takes
    writes for many minutes.  Where C{echo} is agreed, only the answer to a
    question of ours counts, by its token, which nobody but the peer has seen: what
    a middlebox says in the peer's place proves nothing, and neither do the peer's
    own bytes, which may come while ours are lost.  Elsewhere its bytes and pongs
    count.
  - Questions and answers overtake lines that wait for the peer to read, so that a
    congested connection is not taken for a dead one.
  - At most C{maxUnsent} bytes of lines wait for a peer that does not read;
    one more line drops this connection, and touches nothing else.
  - Behind L{close} and behind a fault nothing more of the peer is acted upon.
  - A closing connection is gone after C{closeTimeout}, whether its peer reads
    or not.
  - When C{connectionLost} has run no timer is left, and every Deferred that
    was given out has fired.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable
from typing import cast

from twisted.internet import tcp
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableProtocol,
    IPushProducer,
    IReactorTime,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from .features import ECHO
from .keepalive import CONTROL_WATCH, KernelWatch, hasten, isHeard, relax, watchPath
from .messages import ControlError, Echo, KeepAlive, Message, MessageReader, encode
from .streams import IStreamTransport

MAX_UNSENT = 256 * 1024
"""Bytes of lines that may wait for a peer that does not read."""

MAX_OUTSTANDING = 8
"""Echoes that are awaited at a time; one more gives the oldest up."""

ASKED_AFTER = 1.0
"""Seconds of silence that a question takes into account."""

CLOSE_TIMEOUT = 5.0
"""Seconds a peer has to read what stands before the end of the connection."""

CLOSE_CODES = {
    "superseded": 4000,
    "revoked": 4001,
    "protocol-error": 4002,
    "shutdown": 4003,
    "held": 4004,
}
"""The WebSocket close code for each reason of a closing line; 1000 for others."""


class _Loop:
    """
    Calls something at each interval from its start on.

    As Twisted's C{LoopingCall}, which makes four objects more; an idle agent is little
    else than its timers.
    """

    __slots__ = ("_begun", "_call", "_clock", "_guarded", "_interval", "_timer")

    def __init__(
        self,
        clock: IReactorTime,
        interval: float,
        guarded: Callable[[Callable[..., object]], None],
        call: Callable[[], object],
    ) -> None:
        self._clock = clock
        self._interval = interval
        self._guarded = guarded
        self._call = call
        self._begun = clock.seconds()
        self._timer: IDelayedCall | None = None

    def arm(self) -> None:
        """Call at the end of this interval."""
        left = self._interval - (self._clock.seconds() - self._begun) % self._interval
        self._timer = self._clock.callLater(left, self._run)

    def _run(self) -> None:
        # Before the call, which may stop it.
        self.arm()
        self._guarded(self._call)

    def stop(self) -> None:
        """Call no more."""
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()


@implementer(IPushProducer, IHalfCloseableProtocol)
class ControlConnection(Protocol):
    """
    Lines in, lines out, and whether the peer is alive.

    @ivar features: What both ends agreed on.
    @ivar lastHeard: When bytes of the peer last came, on the clock.
    @ivar lastProof: When it last proved, on the clock, that it is there.
    @ivar roundTrip: Seconds that the last sign of life took, or C{None}.
    @ivar ended: In a word or a few, why we closed; C{None} while we have not.
    """

    # There is one for each agent.
    __slots__ = (
        "_blocked",
        "_clock",
        "_closeCall",
        "_closeTimeout",
        "_echoes",
        "_hastened",
        "_kernel",
        "_loops",
        "_lost",
        "_maxUnsent",
        "_reader",
        "_silence",
        "_silenceLimit",
        "_unsent",
        "_unsentBytes",
        "connected",
        "ended",
        "features",
        "lastHeard",
        "lastProof",
        "roundTrip",
        "transport",
    )

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        features: frozenset[str],
        *,
        maxUnsent: int = MAX_UNSENT,
        closeTimeout: float = CLOSE_TIMEOUT,
        kernel: KernelWatch = CONTROL_WATCH,
    ) -> None:
        """
        @param clock: Tells the time and calls later; it must not jump when
            somebody sets the wall clock.
        @param features: What both ends agreed on.
        @param maxUnsent: Bytes of lines that may wait.
        @param closeTimeout: Seconds from L{close} to the abort.
        @param kernel: What the kernel is told about the connection.
        """
        self.transport = None
        self.connected = 0
        self.features = features
        self.lastHeard = clock.seconds()
        self.lastProof = self.lastHeard
        self.roundTrip: float | None = None
        self.ended: str | None = None
        self._clock = clock
        self._maxUnsent = maxUnsent
        self._closeTimeout = closeTimeout
        self._kernel = kernel
        self._hastened = False
        self._reader = MessageReader()
        # Most never wait for a peer to read: made with the first line that does.
        self._unsent: deque[bytes] | None = None
        self._unsentBytes = 0
        self._blocked = True
        self._lost = False
        self._echoes: dict[str, tuple[float, Deferred[float]]] = {}
        self._loops: tuple[_Loop, ...] = ()
        self._silenceLimit = 0.0
        self._silence: IDelayedCall | None = None
        self._closeCall: IDelayedCall | None = None

    # What the two ends fill in

    def started(self) -> None:
        """The carrier is up."""

    def messageReceived(self, message: Message) -> None:
        """
        The peer sent a message other than L{Echo} and L{KeepAlive}.
        """

    def lastWords(self, reason: str, retryAfter: float | None) -> None:
        """Write what the peer should read before L{close} ends the connection."""

    def lost(self, reason: Failure) -> None:
        """The carrier is gone, or never came; called once."""

    # The carrier's events

    def connectionMade(self) -> None:
        self.lastHeard = self.lastProof = self._clock.seconds()
        if self.ended is not None:
            self._carrier().abortConnection()
            return
        watchPath(self.transport, self._kernel)
        self._blocked = False
        self._carrier().registerProducer(self, True)
        self.started()
        self._flush()

    def dataReceived(self, data: bytes) -> None:
        self._hears()
        if ECHO not in self.features:
            self.lastProof = self.lastHeard
        if self.ended is not None:
            return
        try:
            for message in self._reader.feed(data):
                self._dispatch(message)
                if self.ended is not None:
                    return
        except ControlError as error:
            self._log.warn(
                "A control connection broke the rules: {error}.", error=error, peer=self._peer()
            )
            self.close("protocol-error", text=str(error))

    def readConnectionLost(self) -> None:
        """A control connection has no use for half of itself."""
        self._giveProducerBack()
        self._carrier().loseConnection()
        self._armAbort()

    def writeConnectionLost(self) -> None:
        """We never end our direction alone."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._lost:
            return
        self._lost = True
        self._blocked = True
        self._unsent = None
        self._unsentBytes = 0
        self._stopTimers()
        self._forgetEchoes()
        self._guarded(self.lost, reason)

    def _forgetEchoes(self) -> None:
        echoes, self._echoes = self._echoes, {}
        for _, waiting in echoes.values():
            waiting.errback(Failure(ConnectionLost("the control connection ended")))

    # Writing

    def send(self, message: Message) -> None:
        """
        Send C{message} when the peer reads; drop the connection when too much waits.

        @raise ValueError: C{message} does not fit into a line.
        """
        line = encode(message)
        if self._lost or self.ended is not None:
            return
        if not self._blocked:
            if not (isinstance(message, KeepAlive) and message.echo):
                # A peer that is there has answered a probe by then.
                self._hasten(self._kernel.idle + 1)
            self._carrier().write(line)
            return
        if self._unsentBytes + len(line) > self._maxUnsent:
            self._log.warn("A control connection does not read; it is dropped.", peer=self._peer())
            self.drop("the peer does not read")
            return
        if self._unsent is None:
            self._unsent = deque()
        if isinstance(message, (KeepAlive, Echo)):
            self._unsent.appendleft(line)
        else:
            self._unsent.append(line)
        self._unsentBytes += len(line)

    @property
    def carrierName(self) -> str:
        """C{"raw"}, C{"websocket"}, C{"hijack"}, or C{"none"} before there is a carrier."""
        return "none" if self.transport is None else self._carrier().carrier

    @property
    def unsentBytes(self) -> int:
        """Bytes of lines that wait here for the peer to read."""
        return self._unsentBytes

    def pauseProducing(self) -> None:
        self._blocked = True

    def resumeProducing(self) -> None:
        if not self._lost and self.ended is None:
            self._blocked = False
            self._flush()

    def stopProducing(self) -> None:
        self._blocked = True

    def _flush(self) -> None:
        while self._unsent and not self._blocked:
            line = self._unsent.popleft()
            self._unsentBytes -= len(line)
            self._carrier().write(line)
        if not self._unsent:
            self._unsent = None

    # Life

    def signOfLife(self) -> Deferred[float] | None:
        """
        Ask the peer to answer, by an echo or else by the carrier's ping.

        @return: Fires with the round trip in seconds, errbacks when the
            connection ends first; C{None} when neither is to be had.
        """
        if self._lost or self.transport is None or self.ended is not None:
            return None
        asked = self._clock.seconds()
        # It is answered at once, and then all is as before.
        self._hasten(ASKED_AFTER)
        if ECHO in self.features:
            while len(self._echoes) >= MAX_OUTSTANDING:
                _, oldest = self._echoes.pop(next(iter(self._echoes)))
                oldest.errback(Failure(ConnectionLost("no echo came")))
            token = secrets.token_hex(8)

            def forget(_: Deferred[float]) -> None:
                self._echoes.pop(token, None)

            answer: Deferred[float] = Deferred(forget)
            self._echoes[token] = (asked, answer)
            self.send(KeepAlive(token))
            return answer
        pong = self._carrier().ping()
        if pong is None:
            return None
        return pong.addCallback(self._heard)

    def every(self, interval: float, call: Callable[[], object], *, now: bool) -> None:
        """Run C{call} each C{interval} seconds, until the connection ends."""

        loop = _Loop(self._clock, interval, self._guarded, call)
        self._loops += (loop,)
        if now:
            self._guarded(call)
        if loop in self._loops:
            loop.arm()

    def watchSilence(self, limit: float) -> None:
        """
        Drop the connection, with C{"silence"}, when the peer has not proved to be
        there for more than C{limit} seconds.
        """
        self._silenceLimit = limit
        self._silence = self._clock.callLater(limit, self._checkSilence)

    def _checkSilence(self) -> None:
        self._silence = None
        limit = self._silenceLimit
        left = self.lastProof + limit - self._clock.seconds()
        if left <= 0:
            self._log.warn(
                "No sign of life for {limit:g} s; the control connection is dropped.",
                limit=limit,
                heard=self._clock.seconds() - self.lastHeard,
                peer=self._peer(),
            )
            self.drop("silence")
        else:
            self._silence = self._clock.callLater(left, self._checkSilence)

    def askForLife(self) -> None:
        """L{signOfLife}, for whoever wants L{lastProof} and L{roundTrip} kept fresh only."""
        answer = self.signOfLife()
        if answer is not None:
            answer.addErrback(lambda _: None)

    # To another process

    @property
    def isPlain(self) -> bool:
        """Whether the carrier is a socket and nothing else."""
        return bool(getattr(self.transport, "isPlainSocket", False))

    def release(self) -> tuple[tcp.Connection, bytes] | None:
        """
        Let go of the connection as it is: nothing more is read, written or closed,
        and L{lost} is not called.

        @return: The transport, out of the reactor, and the bytes of a line that is
            not whole yet; C{None} where the carrier is no plain socket, or has
            not sent everything.
        """
        if self._lost or self.ended is not None or self._unsent or not self.isPlain:
            return None
        give = getattr(self.transport, "socketStream", None)
        stream = None if give is None else give()
        if stream is None or stream.framing is not None:
            return None
        transport: tcp.Connection = stream.transport
        transport.stopReading()
        transport.stopWriting()
        self._lost = True
        self._blocked = True
        self._stopTimers()
        self._forgetEchoes()
        return transport, self._reader.pending + stream.early

    # The end

    def close(
        self, reason: str, *, retryAfter: float | None = None, text: str | None = None
    ) -> None:
        """
        End the connection after what is written, and within C{closeTimeout}.

        @param reason: A word; those of L{CLOSE_CODES} have a close code.
        @param retryAfter: Seconds before the peer's next attempt makes sense.
        @param text: What the carrier is to say, where it can; C{reason} if not given.
        """
        if self.ended is not None or self._lost:
            return
        self.lastWords(reason, retryAfter)
        if self.ended is not None:
            return
        self.ended = reason
        if self.transport is None:
            self.connectionLost()
            return
        for line in self._unsent or ():
            self._carrier().write(line)
        self._unsent = None
        self._unsentBytes = 0
        self._stopTimers()
        self._giveProducerBack()
        said = (text or reason).encode("utf-8")[:123].decode("utf-8", "ignore")
        self._carrier().closeWith(CLOSE_CODES.get(reason, 1000), said)
        self._armAbort()

    def drop(self, reason: str) -> None:
        """End the connection at once."""
        if self.ended is None:
            self.ended = reason
        self._stopTimers()
        if not self._lost and self.transport is not None:
            self._carrier().abortConnection()

    # Within

    def _carrier(self) -> IStreamTransport:
        return cast(IStreamTransport, self.transport)

    def _peer(self) -> object:
        return None if self.transport is None else self.transport.getPeer()

    def _dispatch(self, message: Message) -> None:
        match message:
            case Echo(token):
                found = self._echoes.pop(token, None)
                if found is not None:
                    asked, answer = found
                    self.lastProof = self._clock.seconds()
                    self.roundTrip = self.lastProof - asked
                    answer.callback(self.roundTrip)
            case KeepAlive(echo):
                # A question of our own that comes back was reflected on the way. Its answer
                # would come back as well, and prove a peer that is not there.
                if echo is not None and ECHO in self.features and echo not in self._echoes:
                    self.send(Echo(echo))
            case _:
                self._guarded(self.messageReceived, message)

    def _heard(self, roundTrip: float) -> float:
        self._hears()
        self.lastProof = self.lastHeard
        self.roundTrip = roundTrip
        return roundTrip

    def _hears(self) -> None:
        self.lastHeard = self._clock.seconds()
        if self._hastened:
            self._hastened = False
            relax(self.transport, self._kernel)

    def _hasten(self, least: float) -> None:
        """About to write, after C{least} seconds of silence: see L{hasten}."""
        if self._hastened:
            # An old agent says nothing of its own: only its kernel is heard.
            if isHeard(self.transport, self._kernel.idle + 1):
                self._hastened = False
                relax(self.transport, self._kernel)
        elif self._clock.seconds() - self.lastHeard > least:
            self._hastened = hasten(self.transport, self._kernel, least)

    def _guarded(self, call: Callable[..., object], *arguments: object) -> None:
        try:
            call(*arguments)
        except Exception:
            self._log.failure("A control connection's own code failed.")

    def _giveProducerBack(self) -> None:
        # Over TLS a registered producer keeps loseConnection waiting for ever.
        self._blocked = True
        self._carrier().unregisterProducer()

    def _armAbort(self) -> None:
        if self._closeCall is None and not self._lost:
            self._closeCall = self._clock.callLater(self._closeTimeout, self._abortNow)

    def _abortNow(self) -> None:
        self._closeCall = None
        if not self._lost:
            self._carrier().abortConnection()

    def _stopTimers(self) -> None:
        loops, self._loops = self._loops, ()
        for loop in loops:
            loop.stop()
        calls = (self._silence, self._closeCall)
        self._silence = self._closeCall = None
        for call in calls:
            if call is not None and call.active():
                call.cancel()
