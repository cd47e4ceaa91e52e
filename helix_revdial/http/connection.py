# -*- test-case-name: tests.http.test_connection -*-
"""
The HTTP/1.1 server connection.

L{HTTPConnection} owns a transport from the moment it is accepted until it is closed
or handed over.  It reads one head at a time (L{helix_revdial.http.head}), gives the
request to the dispatch, lets its body in (L{helix_revdial.http.intake}), writes the
answer that h11 frames, and goes on with the next request.  It knows no routes, no
users and no tunnels.

Invariants:

  - One request at a time.  What follows it is held back: up to a limit in memory,
    beyond that in the peer's own buffers.
  - Each byte received goes to exactly one place: a head, a body, the successor, or,
    once the connection is closing, nowhere.
  - A refused head gets one answer, then the connection closes; the dispatch never
    hears of it.
  - Whatever a peer does or leaves undone, a deadline ends it; only a running
    dispatch has none, since the caller's own deadlines rule there.  Every deadline
    belongs to one connection, so a stalled peer delays nobody else.
  - The transport's producer slot is ours until the connection is handed over or
    closes, then free.  (A TLS transport with a live producer never closes.)

Half-close: a peer that ends its direction after its request still gets the answer,
unless the request says that it ends with its caller.
Where the connection has a successor, that decides.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

import h11
from cryptography.hazmat.primitives.serialization import Encoding
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableProtocol,
    INegotiated,
    IProtocol,
    IPushProducer,
    ISSLTransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from helix_revdial.http.answer import BUSY, answerHead, closeBody, newRequestId, requestIdOf
from helix_revdial.http.body import BodyUnavailable
from helix_revdial.http.deadline import Deadline
from helix_revdial.http.head import BadRequest, Head, HeadReader
from helix_revdial.http.intake import Intake
from helix_revdial.http.limits import addressKey
from helix_revdial.http.problem import Problem
from helix_revdial.http.request import ConnectionGone, Request
from helix_revdial.http.response import BrokenOff, HandedOver, Response

if TYPE_CHECKING:
    from helix_revdial.http.factory import HTTPFactory

Dispatch = Callable[[Request], Awaitable[Response | HandedOver]]

REQUESTS_PER_TURN = 16
"""Pipelined requests served before other connections have their turn."""


class Phase(enum.Enum):
    """What a connection is doing."""

    READING = "waiting for a head"
    SERVING = "a request is being answered"
    DRAINING = "the answer is out, the rest of the request's body is not in"
    CLOSING = "closed by us; what comes is dropped"
    HANDED_OVER = "another protocol's"
    LOST = "gone"


@implementer(IHalfCloseableProtocol, IPushProducer)
class HTTPConnection(Protocol):
    """
    One connection.  See the module's docstring.

    @ivar identifies: Whether the peer's TLS certificate, where there is one, has
        been verified and says who asks.
    """

    identifies = False
    factory: HTTPFactory
    transport: Any
    _log = Logger()

    def __init__(self, factory: HTTPFactory) -> None:
        self.factory = factory
        self.phase = Phase.READING
        self._clock = factory.clock
        self._limits = factory.limits
        self._heads = HeadReader(
            maxBytes=factory.limits.headBytes, maxFields=factory.limits.headFields
        )
        self._deadline = Deadline(factory.clock)
        """Of the head, of idleness, of closing."""
        self._stall = Deadline(factory.clock)
        """Of a peer that does not take our bytes."""
        self._turn = Deadline(factory.clock)
        """The next turn of a connection with many pipelined requests."""
        self._headBegun = True
        """Whether the deadline that runs is a head's: at first it is, from the start."""
        self._advancing = False
        self._readsPaused = False
        self._inputEnded = False
        self._writesPaused = False
        self._drained: Deferred[None] | None = None
        self._producing = False
        self._admittedAs: str | None = None
        self.countedAs: str | None = None
        """The address as whose connection this one is counted."""
        self._whenLost: list[Callable[[], None]] = []
        self._servedOne = False
        self._addressChecked = False
        self._authenticated = False
        self._h11 = h11.Connection(h11.SERVER)
        self._request: Request | None = None
        self._intake: Intake | None = None
        self._answered = False
        self._endsWithCaller = False
        self._wholeWithCaller = False
        self._logged = False
        self._drainLeft = 0
        self._begun = 0.0
        self._task: Deferred[None] | None = None
        self._successor: IProtocol | None = None
        self.purpose = "http"
        """What the connection is for, to those who count."""

    # Beginning and end

    def connectionMade(self) -> None:
        """Take a place among the strangers, or turn the peer away."""
        transport = self.transport
        for option in ("setTcpNoDelay", "setTcpKeepAlive"):
            # TLS says that it has them, whatever is beneath; a unix socket has neither.
            set_ = getattr(transport, option, None)
            if set_ is not None:
                set_(True)
        self._secure = INegotiated.providedBy(transport) or ISSLTransport.providedBy(transport)
        address = addressKey(self._peer())
        if not self.factory.admit(self, address):
            self.transport.write(BUSY)
            self._lingeringClose()
            if self._secure:
                # Our answer waits for the end of a handshake that may never come.
                self._deadline.set(self._limits.lingerTimeout, self._abort)
            return
        self._admittedAs = address
        transport.registerProducer(self, True)
        self._producing = True
        self._deadline.set(self._limits.headTimeout, self._headTooSlow)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Release everything; tell the successor, the dispatch or the body's reader."""
        phase, self.phase = self.phase, Phase.LOST
        self._producing = False
        for deadline in (self._deadline, self._stall, self._turn):
            deadline.clear()
        if self._intake is not None:
            self._intake.stop()
        self._releaseAdmission()
        self.factory.disconnected(self)
        whenLost, self._whenLost = self._whenLost, []
        for call in whenLost:
            call()
        if phase is Phase.HANDED_OVER:
            successor = self._successor
            if successor is not None:
                successor.connectionLost(reason)
            return
        request, self._request = self._request, None
        if request is not None:
            self._logOnce(request, "aborted")
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        if request is not None:
            request.body.fail(BodyUnavailable("the connection was lost"))

    def _peer(self) -> IAddress | None:
        return cast("IAddress | None", self.transport.getPeer())

    def _peerCertificate(self) -> bytes | None:
        if not self.identifies or not self._secure:
            return None
        certificate = self.transport.getPeerCertificate()
        if certificate is None:
            return None
        encoded: bytes = certificate.to_cryptography().public_bytes(Encoding.DER)
        return encoded

    def _releaseAdmission(self) -> None:
        address, self._admittedAs = self._admittedAs, None
        if address is not None:
            self.factory.admission.release(address)

    def authenticated(self) -> None:
        """The peer is no stranger any more."""
        self._authenticated = True
        self._releaseAdmission()

    def _countByRealAddress(self) -> bool:
        """
        Behind a PROXY header the peer's own address shows only once bytes arrive.

        @return: Whether there is a place for it.
        """
        if self._admittedAs is None or self._addressChecked:
            return True
        self._addressChecked = True
        address = addressKey(self._peer())
        if address == self._admittedAs:
            return True
        admission = self.factory.admission
        self._releaseAdmission()
        if self.countedAs is not None:
            admission.leave(self.countedAs)
            self.countedAs = None
        if not admission.enter(address):
            return False
        self.countedAs = address
        if not admission.admit(address):
            return False
        self._admittedAs = address
        return True

    # Input

    def dataReceived(self, data: bytes) -> None:
        """Bytes go to the head, the body, the successor or nowhere."""
        phase = self.phase
        if phase is Phase.HANDED_OVER:
            cast(IProtocol, self._successor).dataReceived(data)
        elif phase is Phase.READING:
            self._heads.feed(data)
            self._advance()
        elif phase is Phase.SERVING or phase is Phase.DRAINING:
            data = self._feedBody(data)
            if self.phase is Phase.READING:
                # The body's end made way for the next request.
                self._heads.feed(data)
                self._advance()
            elif self.phase is Phase.SERVING:
                self._heads.feed(data)
                self._regulate()
            elif self.phase is Phase.HANDED_OVER and data:
                # The body's end made the dispatch hand over.
                cast(IProtocol, self._successor).dataReceived(data)

    def readConnectionLost(self) -> None:
        """The peer has ended its direction."""
        if self._inputEnded:
            # Twisted reports it anew whenever somebody resumes the transport.
            return
        self._inputEnded = True
        if self.phase is Phase.HANDED_OVER:
            self._endSuccessorInput()
        elif self.phase is Phase.CLOSING:
            self.transport.loseConnection()
        elif self.phase is Phase.READING:
            self._advance()
        elif self._intake is not None and self._intake.open:
            self._intake.breakOff(Problem(400, "The connection ended before the request body did."))
        elif self.phase is Phase.SERVING and self._callerGone():
            self._abort()

    def writeConnectionLost(self) -> None:
        """Our direction has ended: what we had to say is out."""
        if self.phase is Phase.HANDED_OVER:
            halfCloseable = IHalfCloseableProtocol(self._successor, None)
            if halfCloseable is not None:
                halfCloseable.writeConnectionLost()
        elif self.phase is Phase.CLOSING and self._inputEnded:
            self.transport.loseConnection()

    def _regulate(self) -> None:
        """Pause the peer where more of its bytes would only pile up; resume it after."""
        if self.phase in (Phase.CLOSING, Phase.HANDED_OVER, Phase.LOST):
            return
        if self.phase is Phase.READING:
            full = (self._writesPaused or self._turn.running) and self._holdsEnough()
        elif self.phase is not Phase.SERVING:
            full = False
        elif self._intake is not None and self._intake.open:
            full = self._intake.body.full
        else:
            full = self._holdsEnough()
        if full == self._readsPaused or self._inputEnded:
            return
        self._readsPaused = full
        if full:
            self.transport.pauseProducing()
        else:
            self.transport.resumeProducing()
        if self._intake is not None:
            self._intake.setPaused(full)

    def _holdsEnough(self) -> bool:
        return len(self._heads) >= self._limits.holdBuffer

    # Heads

    def _advance(self) -> None:
        """Serve the requests that are here, one after another."""
        if self._advancing:
            return
        self._advancing = True
        try:
            for _ in range(REQUESTS_PER_TURN):
                if self.phase is not Phase.READING or self._writesPaused:
                    break
                if not self._readHead():
                    break
            else:
                if self.phase is Phase.READING and not self._turn.running:
                    self._turn.set(0, self._advance)
        finally:
            self._advancing = False
        if self.phase is Phase.READING:
            self._awaitHead()
        self._regulate()

    def _readHead(self) -> bool:
        """
        @return: Whether a request was begun.
        """
        try:
            head = self._heads.next()
            if head is not None and not self._countByRealAddress():
                raise BadRequest(
                    "Too many connections from this address.",
                    status=503,
                    headers=[(b"Retry-After", b"1")],
                )
        except BadRequest as refusal:
            self._refuse(refusal)
            return False
        if head is None:
            return False
        self._begin(head)
        return True

    def _awaitHead(self) -> None:
        """Nothing to serve for now: how long may it stay so?"""
        if self._turn.running or self._writesPaused:
            return
        if self._inputEnded:
            if len(self._heads):
                self._refuse(BadRequest("The connection ended within a request head."))
            else:
                self._close()
        elif self.factory.stopping and not len(self._heads):
            self._close()
        elif len(self._heads) and not self._headBegun:
            self._headBegun = True
            self._deadline.set(self._limits.headTimeout, self._headTooSlow)

    def _headTooSlow(self) -> None:
        if len(self._heads):
            self._refuse(BadRequest("The request head took too long.", status=408))
        else:
            self._close()

    def _begin(self, head: Head) -> None:
        """Dispatch a request."""
        self._deadline.clear()
        self._headBegun = False
        self.phase = Phase.SERVING
        self._h11 = head.connection
        self._answered = self._logged = False
        self._endsWithCaller = self._wholeWithCaller = False
        self._begun = self._clock.seconds()
        intake = self._intake = Intake(
            head.length,
            head.expectsContinue,
            self._limits,
            self._clock,
            sayContinue=self._sayContinue,
            regulate=self._regulate,
            broken=self._bodyBroken,
        )
        intake.setPaused(self._readsPaused)
        request = self._request = Request(
            method=head.event.method.decode("ascii"),
            rawTarget=head.event.target,
            path=head.target.path,
            rawQuery=head.target.rawQuery,
            headers=head.headers,
            httpVersion=head.event.http_version,
            body=intake.body,
            peer=self._peer(),
            secure=self._secure,
            certificate=self._peerCertificate(),
            requestId=requestIdOf(head.headers),
            owner=self,
        )
        self._heads.feed(self._feedBody(self._heads.take()))
        task = Deferred.fromCoroutine(self._serve(request))
        if self._request is request and not task.called:
            self._task = task
        task.addErrback(self._served, request)

    def _served(self, failure: Failure, request: Request) -> None:
        """A request ended in a way that left no answer, or half of one."""
        if self.phase is Phase.LOST:
            if failure.check(CancelledError, ConnectionGone) is None:
                self._log.failure(
                    "after the connection of {requestId} was lost",
                    failure,
                    requestId=request.requestId,
                )
            return
        if failure.check(BrokenOff) is None:
            self._log.failure("answering {requestId}", failure, requestId=request.requestId)
        if self._request is request and self.phase is Phase.SERVING:
            self._logOnce(request, "broken off")
            self._abort()

    # Bodies

    def _sayContinue(self) -> None:
        if not self._answered:
            informed = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
            self.transport.write(self._h11.send(informed))

    def _feedBody(self, data: bytes) -> bytes:
        """
        @return: What follows the body.
        """
        intake = self._intake
        if intake is None or not intake.open:
            return data
        before = intake.body.received
        rest = intake.feed(data)
        if self.phase is Phase.DRAINING:
            self._drainLeft -= intake.body.received - before
            if not intake.open:
                self._next()
            elif self._drainLeft < 0:
                self._lingeringClose()
        else:
            self._regulate()
        return rest

    def _bodyBroken(self) -> None:
        if self.phase is Phase.DRAINING:
            self._lingeringClose()

    # Answers

    async def _serve(self, request: Request) -> None:
        try:
            answer = await self.factory.dispatch(request)
        except Problem as problem:
            answer = problem.response(request.requestId)
        except CancelledError:
            if self.phase is Phase.LOST:
                raise
            answer = self._failed(request)
        except Exception:
            if self.phase is Phase.LOST:
                raise
            answer = self._failed(request)
        if isinstance(answer, HandedOver) or self.phase is not Phase.SERVING:
            if isinstance(answer, Response):
                await closeBody(answer.body)
            elif self.phase is Phase.SERVING and self._request is request:
                raise RuntimeError("the dispatch says handed over, but handOver was not called")
            return
        await self._respond(request, answer)
        self._finish(request, answer.status)

    def _logOnce(self, request: Request, status: int | str) -> None:
        if not self._logged:
            self._logged = True
            self.factory.logAccess(request, status, self._begun)

    def _failed(self, request: Request) -> Response:
        self._log.failure(
            "{method} {path} failed, {requestId}",
            method=request.method,
            path=request.path,
            requestId=request.requestId,
        )
        detail = "The server failed to answer this request. Its log says why, under this id."
        return Problem(500, detail).response(request.requestId)

    async def _respond(self, request: Request, answer: Response) -> None:
        body = answer.body
        try:
            try:
                head = self._answerHead(request, answer)
            except (h11.LocalProtocolError, ValueError):
                # A header field that is none: the operation's fault, not the caller's.
                answer = self._failed(request)
                head = self._answerHead(request, answer)
            self._answered = True
            if not request.body.wanted:
                cast(Intake, self._intake).discard()
            start = self._h11.send(head)
            pieces = answer.body
            if request.method == "HEAD" or answer.status in (204, 304):
                self._write([start])
            elif isinstance(pieces, bytes):
                size = self._limits.pieceBytes
                self._write([start, *self._framed(pieces[:size])])
                for offset in range(size, len(pieces), size):
                    await self._writable()
                    self._write(self._framed(pieces[offset : offset + size]))
            else:
                self._write([start])
                await self._writable()
                async for piece in pieces:
                    size = self._limits.pieceBytes
                    for offset in range(0, len(piece), size):
                        self._write(self._framed(piece[offset : offset + size]))
                        await self._writable()
            end = self._h11.send(h11.EndOfMessage())
            if end:
                self._write([end])
        finally:
            await closeBody(body)
        await self._writable()

    def _answerHead(self, request: Request, answer: Response) -> h11.Response:
        return answerHead(
            answer,
            date=self.factory.date(),
            server=self.factory.serverHeader,
            requestId=request.requestId,
            close=self._mustClose(),
        )

    def _mustClose(self) -> bool:
        """Whether the connection is of no use after this request."""
        intake = self._intake
        return self.factory.stopping or (intake is not None and intake.hopeless)

    def _framed(self, piece: bytes) -> list[bytes]:
        if not piece:
            return []
        return self._h11.send_with_data_passthrough(h11.Data(data=piece)) or []

    def _write(self, pieces: list[bytes]) -> None:
        if self.phase is not Phase.SERVING:
            raise ConnectionGone
        self.transport.writeSequence(pieces)

    def _finish(self, request: Request, status: int) -> None:
        """The answer is written."""
        if self.phase is not Phase.SERVING:
            return
        self._logOnce(request, status)
        self._task = None
        intake = cast(Intake, self._intake)
        intake.discard()
        if self._h11.our_state is h11.DONE and not self._mustClose():
            if not intake.open:
                self._next()
            else:
                self.phase = Phase.DRAINING
                self._drainLeft = self._limits.drainBytes
                self._regulate()
        elif intake.open or intake.fault is not None:
            self._lingeringClose()
        else:
            self._close()

    def whenLost(self, call: Callable[[], None]) -> None:
        """See L{Request.whenLost}."""
        self._whenLost.append(call)

    def endWithCaller(self, *, whole: bool = False) -> None:
        """See L{Request.endWithCaller}."""
        self._endsWithCaller = True
        self._wholeWithCaller = whole
        if self._inputEnded and self.phase is Phase.SERVING and self._callerGone():
            self._abort()

    def _callerGone(self) -> bool:
        """Whether a caller that has ended its direction counts as gone."""
        return self._wholeWithCaller or (self._endsWithCaller and not self._answered)

    def closeIdle(self) -> None:
        """Close if all that is done is to wait for another request than the first."""
        if self._servedOne:
            self.stop()

    def _next(self) -> None:
        """Ready for another request."""
        self._servedOne = True
        self.phase = Phase.READING
        self._request = None
        self._task = None
        self._headBegun = False
        pressed = not self._authenticated and self.factory.admission.pressed
        self._deadline.set(
            self._limits.headTimeout if pressed else self._limits.idleTimeout, self._headTooSlow
        )
        self._advance()

    def _refuse(self, problem: Problem) -> None:
        """Answer what is no request, and close."""
        requestId = newRequestId()
        answer = problem.response(requestId)
        head = answerHead(
            answer,
            date=self.factory.date(),
            server=self.factory.serverHeader,
            requestId=requestId,
            close=True,
        )
        framed = h11.Connection(h11.SERVER)
        data = [framed.send(head), framed.send(h11.Data(data=cast(bytes, answer.body)))]
        self.transport.writeSequence([piece for piece in data if piece])
        self.factory.logRefused(self._peer(), answer.status, problem.detail, requestId)
        self._lingeringClose()

    # Output's backpressure (the transport's IPushProducer)

    def pauseProducing(self) -> None:
        """The transport has enough: the peer is not taking it."""
        self._writesPaused = True
        self._stall.set(self._limits.stallTimeout, self._abort)

    def resumeProducing(self) -> None:
        """The transport has written everything."""
        self._writesPaused = False
        self._stall.clear()
        drained, self._drained = self._drained, None
        if drained is not None:
            drained.callback(None)
        if self.phase is Phase.READING:
            self._advance()

    def stopProducing(self) -> None:
        """The transport is gone; connectionLost follows."""

    def _writable(self) -> Deferred[None]:
        """Fires when the transport takes more."""
        if not self._writesPaused:
            return succeed(None)
        self._drained = Deferred()
        return self._drained

    # Closing

    def _close(self) -> None:
        """Flush and close."""
        self._beginClosing()
        self._deadline.set(self._limits.stallTimeout, self._abort)
        self.transport.loseConnection()

    def _lingeringClose(self) -> None:
        """
        Flush and close, although the peer may be sending still.

        Closing a TCP socket with unread input resets it, and the reset overtakes
        our answer (RFC 9112, 9.6): so end our direction, and drop what comes until
        the peer ends its own or the time is up.  TLS has its own exchange for that.
        The time runs from here, not from writeConnectionLost, which a wrapper
        between the socket and us (PROXY) does not pass on.
        """
        transport = self.transport
        if self._inputEnded or self._secure or not hasattr(transport, "loseWriteConnection"):
            self._close()
            return
        self._beginClosing()
        self._deadline.set(self._limits.lingerTimeout, self._endLinger)
        transport.loseWriteConnection()

    def _endLinger(self) -> None:
        self._deadline.set(self._limits.stallTimeout, self._abort)
        self.transport.loseConnection()

    def _beginClosing(self) -> None:
        self.phase = Phase.CLOSING
        self._heads.take()
        for deadline in (self._stall, self._turn):
            deadline.clear()
        if self._intake is not None:
            self._intake.stop()
        transport = self.transport
        self._freeProducerSlot()
        if self._readsPaused and not self._inputEnded:
            self._readsPaused = False
            transport.resumeProducing()

    def _freeProducerSlot(self) -> None:
        if self._producing:
            self._producing = False
            self.transport.unregisterProducer()

    def _abort(self) -> None:
        """Drop the connection: the peer sees that it is not a clean end."""
        if self.phase is not Phase.LOST:
            if self.phase is not Phase.HANDED_OVER:
                self._beginClosing()
            self.transport.abortConnection()

    def stop(self) -> None:
        """Close if nothing is being done; otherwise after what is."""
        if self.phase is Phase.READING and not self._turn.running and not len(self._heads):
            self._close()

    def abort(self) -> None:
        """Close at once."""
        self._abort()

    # Handing over

    def handOver(self, request: Request, build: Callable[[], IProtocol], replayHead: bool) -> None:
        """See L{Request.handOver}."""
        if self.phase is not Phase.SERVING or self._request is not request:
            raise ConnectionGone("the connection has ended")
        if self._answered:
            raise RuntimeError("the request has been answered already")
        intake = self._intake
        if intake is not None and (intake.open or intake.fault is not None):
            raise Problem(400, "A request that changes the protocol carries no body.")
        successor = build()
        self._successor = successor
        self.purpose = request.purpose
        self.phase = Phase.HANDED_OVER
        self._request = None
        for deadline in (self._deadline, self._stall, self._turn):
            deadline.clear()
        self._freeProducerSlot()
        transport = self.transport
        if self._readsPaused and not self._inputEnded:
            transport.resumeProducing()
        self._readsPaused = False
        self.factory.handedOver(self)
        self._logOnce(request, "handed over")
        data = (request.head if replayHead else b"") + self._heads.take()
        try:
            successor.makeConnection(transport)
            if data and self.phase is Phase.HANDED_OVER:
                successor.dataReceived(data)
            if self._inputEnded and self.phase is Phase.HANDED_OVER:
                self._endSuccessorInput()
        except Exception:
            self._log.failure("the successor of {requestId} failed", requestId=request.requestId)
            self._abort()

    def _endSuccessorInput(self) -> None:
        halfCloseable = IHalfCloseableProtocol(self._successor, None)
        if halfCloseable is not None:
            halfCloseable.readConnectionLost()
            return
        # As Twisted does for such a protocol, but what it wrote is flushed.
        self.transport.unregisterProducer()
        self._deadline.set(self._limits.stallTimeout, self._abort)
        self.transport.loseConnection()
