# -*- test-case-name: tests.revdial.test_assigned -*-
"""
A parked connection at the agent's end, and the dials that it is assigned to.

L{Waiting} is the user of a L{FramedConnection
<helix_revdial.revdial.framed.FramedConnection>} between two streams.  It reads the
server's C{dial} line, has the target opened, and answers in one line (C{docs/wire.md},
section 7.3).

Invariants:

  - Each C{dial} ends in exactly one of: a stream, a C{pickup-failed}, or the end of
    the connection.
  - Nothing that the server sent behind its line reaches a target that is not
    connected; at most L{MAX_EARLY} bytes and one read of it are kept.
  - No dial's id has its target connected twice; see L{Pooled
    <helix_revdial.revdial.pooled.Pooled>}.
  - However a dial ends, no socket and no timer of it is left.
"""

from __future__ import annotations

from typing import Any
from typing import Protocol as Shape

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IDelayedCall, IProtocol, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from .agent_control import AgentControl
from .errors import DialError, TargetRefused, TargetTimeout, wordsOf
from .framed import FramedConnection
from .framed_stream import FramedTransport
from .interfaces import ITarget
from .keepalive import DATA_WATCH, watchPath
from .messages import (
    MAX_LINE,
    Assign,
    Connected,
    ControlError,
    PickupFailed,
    decode,
    encode,
)
from .streams import Prepared, StreamOwner, StreamProtocol, TargetAddress
from .watching import ListenerWatching

MAX_EARLY = 64 * 1024
"""Bytes behind a C{dial} that are kept until its target is connected."""


class Assigning(Shape):
    """What a parked connection needs of the agent."""

    def mayAnswer(self, waiting: Waiting, assign: Assign) -> ITarget | PickupFailed | None:
        """
        A dial has come.

        @return: The target; or why there is none; or C{None} for a dial that is
            answered already, whose connection ends.
        """

    def notAnswered(self, waiting: Waiting, dial: str) -> None:
        """A dial that L{mayAnswer} gave a target for has no stream."""

    def streamBegan(self, waiting: Waiting, dial: str, stream: StreamProtocol) -> None:
        """A target is connected."""

    def streamEnded(self, dial: str, stream: StreamProtocol) -> None:
        """Its stream is over."""

    def isWanted(self, waiting: Waiting) -> bool:
        """Whether the connection may wait for another dial."""

    def gone(self, waiting: Waiting) -> None:
        """The connection has ended."""


class Waiting:
    """
    One parked connection; see the module.

    @ivar control: The control connection that asked for it.
    @ivar dial: The dial that is being answered, without a stream so far.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        control: AgentControl,
        agent: Assigning,
        watching: ListenerWatching,
        limit: float,
    ) -> None:
        """
        @param limit: Seconds that a target may take.
        """
        self.control = control
        self.dial: str | None = None
        self.connection: FramedConnection
        self._clock = clock
        self._agent = agent
        self._watching = watching
        self._limit = limit
        self._line = b""
        self._early: list[bytes] = []
        self._earlySize = 0
        self._assign: Assign | None = None
        self._dropping = False
        self._begun = 0.0
        self._opening: Deferred[IProtocol] | None = None
        self._timer: IDelayedCall | None = None
        self._stream: StreamProtocol | None = None
        self._isGone = False

    def parked(self, connection: FramedConnection) -> None:
        """The connection is there."""
        self.connection = connection
        watchPath(connection.transport, DATA_WATCH)
        if not self._agent.isWanted(self):
            connection.close()

    @property
    def isIdle(self) -> bool:
        """Whether it waits for a dial."""
        return self._stream is None and self._assign is None

    def close(self) -> None:
        """End the connection, if no stream is on it: that goes on."""
        if self._stream is None and not self._isGone:
            self._giveUp("withdrawn")
            self.connection.close()

    def giveUp(self) -> None:
        """The dial is answered in another way: nothing of it is left here."""
        self._giveUp("withdrawn")
        self.connection.abort()

    # A dial

    def _assigned(self, assign: Assign) -> None:
        self._assign = assign
        self._begun = self._clock.seconds()
        found = self._agent.mayAnswer(self, assign)
        if found is None:
            self._assign = None
            self.connection.abort()
        elif isinstance(found, PickupFailed):
            self._refuse(found.err, found.reason or "unreachable")
        else:
            self.dial = assign.dial
            try:
                opening = self._opening = found.open()
                if not opening.called:
                    # What is on this host has answered.
                    self._timer = self._clock.callLater(self._limit, self._timedOut)
                opening.addCallbacks(self._opened, self._notOpened)
                opening.addErrback(self._failed)
            except Exception:
                self._failed(Failure())

    def _opened(self, target: IProtocol) -> None:
        assign = self._assign
        if assign is None or self.dial is None or not self.connection.isOpen:
            _release(target)
            return
        self._stopTimer()
        self.dial = None
        seconds = self._clock.seconds() - self._begun
        address = TargetAddress(assign.target or "")
        owner = _Answered(self, assign.dial)
        stream = StreamProtocol(Prepared(target), address, owner=owner)
        self._stream = stream
        self._agent.streamBegan(self, assign.dial, stream)
        self._answered("connected")
        connection = self.connection
        connection.send(encode(Connected(assign.dial, round(seconds, 6))))
        carrier = FramedTransport(stream, connection, self._free, self._connectionGone)
        early, self._early = self._early, []
        self._earlySize = 0
        carrier.begin()
        for data in early:
            carrier.payload(data)
        if connection.endReceived:
            carrier.ended()
        if connection.isStalled:
            connection.goOn()
        carrier.delivered()

    def _notOpened(self, failure: Failure) -> None:
        if self._assign is None or self.dial is None:
            return
        if failure.check(TargetTimeout):
            self._refuse(failure.getErrorMessage(), "target-timed-out")
        elif failure.check(TargetRefused):
            self._refuse(failure.getErrorMessage(), "target-refused")
        else:
            self._failed(failure)

    def _timedOut(self) -> None:
        self._timer = None
        opening = self._opening
        self._refuse(TargetTimeout.text, "target-timed-out")
        if opening is not None and not opening.called:
            opening.cancel()

    def _failed(self, failure: Failure) -> None:
        if self._assign is None and failure.check(CancelledError):
            return
        if failure.check(DialError, ValueError, CancelledError):
            self._log.warn("A dial was not answered: {why}", why=failure.getErrorMessage())
        else:
            self._log.failure("A dial was not answered.", failure)
        self._refuse(failure.getErrorMessage() or "the agent failed", "unreachable")

    def _refuse(self, text: str, reason: str) -> None:
        """Say why not; what the server sends for this dial is dropped."""
        assign = self._assign
        if assign is None:
            return
        self._log.info(
            "Dial {dial} of {target} is not answered ({reason}): {why}",
            dial=assign.dial,
            target=assign.target or "the default target",
            reason=reason,
            why=text,
        )
        self._stopTimer()
        self.dial = None
        self._dropping = True
        self._early.clear()
        self._earlySize = 0
        self._answered(reason)
        self.connection.send(encode(PickupFailed("", text, assign.dial, reason)))
        self.connection.sendEnd()
        if self.connection.endReceived:
            self._afterRefusal()
        else:
            self.connection.goOn()

    def _afterRefusal(self) -> None:
        self.connection.forgetEnds()
        self._free()
        self.connection.goOn()

    def _free(self) -> None:
        """Nothing of the dial is left: wait for the next."""
        self._assign = None
        self._dropping = False
        self._stream = None
        self.connection.user = self
        if not self._agent.isWanted(self):
            self.connection.close()

    def _giveUp(self, word: str) -> None:
        if self.dial is not None:
            self._answered(word)
        self.dial = self._assign = None
        self._stopTimer()
        opening, self._opening = self._opening, None
        if opening is not None and not opening.called:
            opening.cancel()

    def _stopTimer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _answered(self, word: str) -> None:
        assign = self._assign
        if assign is None:
            return
        if word != "connected":
            self._agent.notAnswered(self, assign.dial)
        try:
            seconds = self._clock.seconds() - self._begun
            self._watching.answered(assign.dial, assign.target, word, seconds)
        except Exception:
            self._log.failure("A watcher failed.")

    def streamEnded(self, stream: StreamProtocol, dial: str, reason: Failure) -> None:
        """A stream on the connection is over."""
        carrier: Any = stream.transport
        self._agent.streamEnded(dial, stream)
        try:
            self._watching.streamEnded(
                dial,
                carrier.bytesReceived,
                carrier.bytesSent,
                "closed" if isinstance(reason.value, ConnectionDone) else wordsOf(reason),
            )
        except Exception:
            self._log.failure("A watcher failed.")

    def _connectionGone(self) -> None:
        self._isGone = True
        self._agent.gone(self)

    # FrameUser

    def payload(self, data: bytes) -> None:
        if self._dropping:
            return
        if self._assign is not None:
            self._keep(data)
            return
        self._line += data
        line, newline, rest = self._line.partition(b"\n")
        if not newline:
            if len(line) >= MAX_LINE:
                self.connection.refuse(f"a line is longer than {MAX_LINE} bytes")
            return
        self._line = b""
        try:
            message = decode(line)
        except ControlError as broken:
            self.connection.refuse(str(broken))
            return
        if not isinstance(message, Assign):
            self.connection.refuse("no dial on a parked connection")
            return
        if rest:
            self._keep(rest)
        self._assigned(message)

    def _keep(self, data: bytes) -> None:
        self._early.append(data)
        self._earlySize += len(data)
        if self._earlySize > MAX_EARLY:
            self.connection.stall()

    def ended(self) -> None:
        if self._dropping:
            self._afterRefusal()
        elif self._assign is None:
            self.connection.refuse("an end without a stream")

    def ponged(self) -> None:
        """The server asks; we do not."""

    def lost(self, reason: Failure) -> None:
        self._giveUp("withdrawn")
        self._early.clear()
        self._connectionGone()


class _Answered(StreamOwner):
    """A dial that is a stream now."""

    __slots__ = ("_dial", "_waiting")

    def __init__(self, waiting: Waiting, dial: str) -> None:
        self._waiting = waiting
        self._dial = dial

    def streamEnded(self, stream: StreamProtocol, reason: Failure) -> None:
        self._waiting.streamEnded(stream, self._dial, reason)


def _release(target: IProtocol) -> None:
    """Let a target's protocol go that will have no stream."""
    try:
        target.connectionLost(Failure(ConnectionAborted()))
    except Exception:
        Waiting._log.failure("A target's protocol failed in connectionLost.")


__all__ = ["Assigning", "Waiting"]
