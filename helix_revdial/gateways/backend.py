# -*- test-case-name: tests.gateways.test_proxy -*-
"""
One HTTP/1.1 connection to a service, by a dialled stream.

A L{Backend} is the client's end: h11 reads what comes and frames what goes, so that
what was understood is what is passed on.  Bodies go through it in pieces, both ways
at once: it holds no more than one buffer of an answer that nobody has taken (then the
stream is paused), and says when the stream takes more of a request.

After an answer that leaves the connection in order it can be used again.  After a
C{101} it is given to another protocol, with every byte that came behind the head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import h11
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocol, IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from helix_revdial.gateways.forwarding import BadAnswer
from helix_revdial.http.request import Headers
from helix_revdial.revdial.errors import TunnelBroke
from helix_revdial.revdial.streams import Stream

MAX_HEAD = 64 * 1024
"""Bytes of an answer's head, or of its trailers."""

MAX_INFORMATIONAL = 16
"""Answers of class 1xx that may come before the one that counts."""

HIGH_WATER = 64 * 1024
"""Bytes of an answer that wait for their reader before the stream is paused."""


@implementer(IHalfCloseableProtocol, IPushProducer)
class Backend(Protocol):
    """
    The connection; see the module's docstring.

    @ivar served: Exchanges that went by it and left it in order.
    @ivar silent: Whether nothing has come since the request began.
    @ivar onIdleEnd: Told when it ends, or may not be used any more, while it is idle.
    """

    transport: Any

    def __init__(self) -> None:
        self.served = 0
        self.silent = True
        self.lost = False
        self.onIdleEnd: Callable[[], None] | None = None
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        self._busy = False
        self._head: h11.Response | h11.InformationalResponse | None = None
        self._awaitingHead: Deferred[h11.Response | h11.InformationalResponse] | None = None
        self._informed = 0
        self._continued: Deferred[None] | None = None
        self._mayContinue = False
        self._pieces: list[bytes] = []
        self._held = 0
        self._awaitingPiece: Deferred[bytes] | None = None
        self._complete = False
        self._failure: Exception | None = None
        self._readsPaused = False
        self._writesPaused = False
        self._drained: Deferred[None] | None = None
        self._inputEnded = False
        self._switched = False
        self._successor: IProtocol | None = None

    @property
    def generation(self) -> int | None:
        """The registration that the stream leads through."""
        stream = self._stream
        return None if stream is None else stream.generation

    @property
    def phases(self) -> Mapping[str, float]:
        """What is known of the dial: see L{Stream <helix_revdial.revdial.streams.Stream>}."""
        stream = self._stream
        return {} if stream is None else dict(stream.phases)

    @property
    def _stream(self) -> Stream | None:
        stream = getattr(self.transport, "stream", None)
        return stream if isinstance(stream, Stream) else None

    # The request

    def begin(self, request: h11.Request) -> None:
        """
        Send the head of a request.

        @raise h11.LocalProtocolError: It is none.
        """
        data = self._h11.send(request)
        self._busy = self.silent = True
        self._head = None
        self._complete = False
        self._informed = 0
        self._mayContinue = False
        self.transport.write(data)

    def write(self, piece: bytes) -> None:
        """
        Send a piece of the body.

        @raise h11.LocalProtocolError: It is more than the head announced.
        """
        if self._takesMore:
            self.transport.writeSequence(
                self._h11.send_with_data_passthrough(h11.Data(data=piece)) or []
            )

    def end(self) -> None:
        """The request is whole."""
        if self._takesMore:
            data = self._h11.send(h11.EndOfMessage())
            if data:
                self.transport.write(data)

    @property
    def _takesMore(self) -> bool:
        return not self.lost and not self._inputEnded and self._failure is None

    def writable(self) -> Deferred[None]:
        """Fires when the stream takes more; at once where it is lost."""
        if not self._writesPaused or self.lost:
            return succeed(None)
        self._drained = Deferred()
        return self._drained

    def continued(self) -> Deferred[None]:
        """Fires when the service wants the body (C{100 Continue})."""
        if self._mayContinue:
            return succeed(None)
        self._continued = Deferred()
        return self._continued

    # The answer

    def answer(self) -> Deferred[h11.Response | h11.InformationalResponse]:
        """
        Fires with the head of the answer; an informational one is a C{101}.

        It errbacks with L{TunnelBroke}, L{BadAnswer} or what L{fail} was given.
        """
        if self._head is not None:
            return succeed(self._head)
        if self._failure is not None:
            return fail(self._failure)
        self._awaitingHead = Deferred()
        return self._awaitingHead

    def piece(self) -> Deferred[bytes]:
        """
        Fires with the next bytes of the answer's body; with none at its end.

        It errbacks as L{answer} does, after what had come.
        """
        if self._pieces:
            return succeed(self._take())
        if self._complete:
            return succeed(b"")
        if self._failure is not None:
            return fail(self._failure)
        self._awaitingPiece = Deferred()
        return self._awaitingPiece

    def _take(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        self._held = 0
        self._regulate()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _regulate(self) -> None:
        full = self._held >= HIGH_WATER or self._switched
        if full == self._readsPaused or self.lost or self._inputEnded:
            return
        self._readsPaused = full
        if full:
            self.transport.pauseProducing()
        else:
            self.transport.resumeProducing()

    # Again

    @property
    def inOrder(self) -> bool:
        """Whether the exchange is over, and another may follow on the connection."""
        return (
            not self.lost
            and not self._inputEnded
            and self._failure is None
            and self._complete
            and not self._pieces
            and self._h11.our_state is h11.DONE
            and self._h11.their_state is h11.DONE
            and not self._h11.trailing_data[0]
        )

    @property
    def endedSilently(self) -> bool:
        """Whether it ended before a byte of an answer came."""
        return self.silent and (self.lost or self._inputEnded)

    @property
    def whole(self) -> bool:
        """Whether request and answer were both complete."""
        return self._complete and self._h11.our_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED)

    def rest(self, onIdleEnd: Callable[[], None]) -> None:
        """Be idle; only where all is L{inOrder}."""
        self.served += 1
        self._h11.start_next_cycle()
        self._busy = False
        self.onIdleEnd = onIdleEnd

    def wake(self) -> None:
        """Be idle no more."""
        self.onIdleEnd = None

    # The end

    def fail(self, error: Exception) -> None:
        """Break the exchange off, for that reason; the connection with it."""
        if self._failure is None and self._successor is None:
            self._failure = error
            if not self.lost:
                self.transport.abortConnection()
            self._tellFailure()

    def close(self) -> None:
        """No more is wanted: flush and close after a whole exchange, else abort."""
        if self.lost or self._successor is not None:
            return
        if (self.whole or not self._busy) and self._failure is None:
            if self._readsPaused and not self._inputEnded:
                self._readsPaused = False
                self.transport.resumeProducing()
            self.transport.unregisterProducer()
            self.transport.loseConnection()
        else:
            self.transport.abortConnection()

    def _tellFailure(self) -> None:
        error = self._failure or TunnelBroke()
        head, self._awaitingHead = self._awaitingHead, None
        piece, self._awaitingPiece = self._awaitingPiece, None
        for waiting in (head, piece):
            if waiting is not None and not waiting.called:
                waiting.errback(Failure(error))
        self._release()

    def _release(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None and not drained.called:
            drained.callback(None)

    # The stream's events

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, True)

    def dataReceived(self, data: bytes) -> None:
        if self._successor is not None:
            self._successor.dataReceived(data)
            return
        if self._failure is not None:
            return
        if not self._busy:
            # Nobody asked: whatever follows could be taken for an answer.
            self._idleEnd()
            self.transport.abortConnection()
            return
        self.silent = False
        self._h11.receive_data(data)
        self._read()

    def readConnectionLost(self) -> None:
        if self._successor is not None:
            successor = IHalfCloseableProtocol(self._successor, None)
            if successor is not None:
                successor.readConnectionLost()
            return
        self._ended(None)
        if not self._switched:
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        if self._successor is not None:
            successor = IHalfCloseableProtocol(self._successor, None)
            if successor is not None:
                successor.writeConnectionLost()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = True
        if self._successor is not None:
            self._successor.connectionLost(reason)
            return
        self._ended(None if reason.check(ConnectionDone) else reason)
        self._release()

    def _ended(self, reason: Failure | None) -> None:
        """Nothing more comes; C{reason} where it did not end in good order."""
        if self._inputEnded:
            return
        self._inputEnded = True
        if not self._busy:
            self._idleEnd()
        elif self._failure is None and not self._complete and not self._switched:
            if reason is None:
                self._h11.receive_data(b"")
                self._read()
            else:
                self._failure = TunnelBroke(f"the tunnel broke: {_text(reason)}")
                self._tellFailure()

    def _idleEnd(self) -> None:
        tell, self.onIdleEnd = self.onIdleEnd, None
        if tell is not None:
            tell()

    def _read(self) -> None:
        try:
            while self._failure is None:
                event = self._h11.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED:
                    break
                if isinstance(event, h11.Data):
                    self._pieces.append(bytes(event.data))
                    self._held += len(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    self._complete = True
                    break
                elif isinstance(event, h11.InformationalResponse):
                    self._inform(event)
                elif isinstance(event, h11.Response):
                    self._head = event
                else:
                    break
        except h11.RemoteProtocolError as error:
            if self._inputEnded:
                self.fail(TunnelBroke("the service closed the connection before it had answered"))
            else:
                # h11 may quote what came: that is the service's, not for the caller.
                self.fail(BadAnswer(f"it is not HTTP/1.1 ({type(error).__name__})"))
        # Told last, when all of this read is known: who waits goes on from here.
        head, awaitingHead = self._head, self._awaitingHead
        if head is not None and awaitingHead is not None:
            self._awaitingHead = None
            if not awaitingHead.called:
                awaitingHead.callback(head)
        awaitingPiece = self._awaitingPiece
        if awaitingPiece is not None and (self._pieces or self._complete):
            self._awaitingPiece = None
            if not awaitingPiece.called:
                awaitingPiece.callback(self._take() if self._pieces else b"")
        if self._successor is None:
            self._regulate()

    def _inform(self, event: h11.InformationalResponse) -> None:
        if event.status_code == 101:
            self._switched = True
            self._head = event
            return
        self._informed += 1
        if self._informed > MAX_INFORMATIONAL:
            self.fail(BadAnswer("there are too many informational answers"))
        elif event.status_code == 100:
            self._mayContinue = True
            continued, self._continued = self._continued, None
            if continued is not None and not continued.called:
                continued.callback(None)

    # The request's backpressure (the transport's IPushProducer)

    def pauseProducing(self) -> None:
        """The stream has enough."""
        self._writesPaused = True

    def resumeProducing(self) -> None:
        """The stream takes more."""
        self._writesPaused = False
        self._release()

    def stopProducing(self) -> None:
        """The stream is gone; connectionLost says how."""

    # Afterwards

    def handTo(self, successor: IProtocol) -> None:
        """
        Give the connection to another protocol, after a C{101}, with each byte that
        followed it.
        """
        self._successor = successor
        rest = self._h11.trailing_data[0]
        if self.lost:
            successor.connectionLost(Failure(ConnectionDone()))
            return
        self.transport.unregisterProducer()
        successor.makeConnection(self.transport)
        if rest:
            successor.dataReceived(rest)
        if self._inputEnded:
            self.readConnectionLost()


def fieldsOf(answer: h11.Response | h11.InformationalResponse) -> Headers:
    """The fields of an answer, with their names in the letters that came."""
    return Headers(answer.headers.raw_items())


def _text(reason: Failure) -> str:
    return reason.getErrorMessage().rstrip(".").lower() or type(reason.value).__name__


__all__ = ["Backend", "fieldsOf"]
