# -*- test-case-name: tests.http.test_connection -*-
"""
The HTTP/1.1 server connection.

L{HTTPConnection} serves requests on one transport, from the moment it is accepted
until it is closed or handed over.  It reads one head at a time
(L{helix_revdial.http.head}), gives the request to the dispatch, lets its body in
(L{helix_revdial.http.intake}), writes the answer (L{helix_revdial.http.answer}), and
goes on with the next request.  How the connection begins and closes, whatever is
served on it, is L{ConnectionLife <helix_revdial.http.lifecycle.ConnectionLife>}'s.  It
knows no routes, no users and no tunnels.

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
  - A connection that was handed over, which may live for months, keeps nothing of
    HTTP: no request, no parser, no buffer.

A dispatch is a coroutine, and runs through whatever stands before its operations.  Where
one kind of request is many times as frequent as all others, the factory's C{firstLook}
is asked before: it may hand the connection over itself, or leave the request, untouched,
to the dispatch.

Half-close: a peer that ends its direction after its request still gets the answer,
unless the request says that it ends with its caller.
Where the connection has a successor, that decides.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, cast

import h11
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    INegotiated,
    IProtocol,
    IReactorTime,
    ISSLTransport,
)
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from helix_revdial.http.answer import (
    BUSY,
    answerHead,
    closeBody,
    newRequestId,
    refusal,
    requestIdOf,
    writeAnswer,
)
from helix_revdial.http.body import BodyUnavailable
from helix_revdial.http.eager import writeEagerly
from helix_revdial.http.head import BadRequest, Head, HeadReader
from helix_revdial.http.intake import Intake
from helix_revdial.http.lifecycle import ConnectionLife, Phase
from helix_revdial.http.limits import addressKey
from helix_revdial.http.problem import Problem
from helix_revdial.http.request import ConnectionGone, Request
from helix_revdial.http.response import BrokenOff, HandedOver, Response

if TYPE_CHECKING:
    from helix_revdial.http.factory import HTTPFactory

Dispatch = Callable[[Request], Awaitable[Response | HandedOver]]

REQUESTS_PER_TURN = 16
"""Pipelined requests served before other connections have their turn."""


@implementer(IHalfCloseableProtocol)
class HTTPConnection(ConnectionLife):
    """
    One connection.  See the module's docstring.
    """

    __slots__ = (
        "_advancing",
        "_answered",
        "_authenticated",
        "_begun",
        "_drainLeft",
        "_endsWithCaller",
        "_head",
        "_headBegun",
        "_heads",
        "_intake",
        "_logged",
        "_request",
        "_servedOne",
        "_successor",
        "_task",
        "_whenLost",
        "_wholeWithCaller",
        "purpose",
    )

    _log = Logger()

    def __init__(self, factory: HTTPFactory) -> None:
        super().__init__(factory)
        self._heads = HeadReader(
            maxBytes=factory.limits.headBytes, maxFields=factory.limits.headFields
        )
        self._headBegun = True
        """Whether the deadline that runs is a head's: at first it is, from the start."""
        self._advancing = False
        self._whenLost: tuple[Callable[[], None], ...] = ()
        self._servedOne = False
        self._authenticated = False
        self._head: Head | None = None
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

    @property
    def _clock(self) -> IReactorTime:
        return self.factory.clock

    @property
    def _h11(self) -> h11.Connection:
        """What frames the answer to the request that is being served."""
        return cast(Head, self._head).connection

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
        self._deadline.clear()
        if phase is not Phase.HANDED_OVER and phase is not Phase.LOST:
            self._stall.clear()
            self._turn.clear()
        if self._intake is not None:
            self._intake.stop()
        self._releaseAdmission()
        self.factory.disconnected(self)
        whenLost, self._whenLost = self._whenLost, ()
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

    def authenticated(self) -> None:
        """The peer is no stranger any more."""
        self._authenticated = True
        self._releaseAdmission()

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
        self._head = head
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
            method=head.method.decode("ascii"),
            rawTarget=head.rawTarget,
            path=head.target.path,
            rawQuery=head.target.rawQuery,
            headers=head.headers,
            httpVersion=head.httpVersion,
            body=intake.body,
            peer=self._peer(),
            secure=self._secure,
            certificate=self._peerCertificate(),
            requestId=requestIdOf(head.headers),
            owner=self,
        )
        if intake.open:
            self._heads.feed(self._feedBody(self._heads.take()))
        elif self._lookedAt(request):
            return
        task = Deferred.fromCoroutine(self._serve(request))
        if self._request is request and not task.called:
            self._task = task
        task.addErrback(self._served, request)

    def _lookedAt(self, request: Request) -> bool:
        """
        @return: Whether the connection is somebody else's after a first look.
        """
        look = self.factory.firstLook
        if look is None or self.factory.stopping:
            return False
        try:
            look(request)
        except ConnectionGone:
            pass
        except Exception:
            self._log.failure("at first look at {requestId}", requestId=request.requestId)
        return self.phase is not Phase.SERVING

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
        if failure.check(BrokenOff, ConnectionGone) is None:
            self._log.failure("answering {requestId}", failure, requestId=request.requestId)
        if self._request is request and self.phase is Phase.SERVING:
            self._logOnce(request, "broken off")
            self._breakOff()

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
            empty = request.method == "HEAD" or answer.status in (204, 304)
            await writeAnswer(
                self._h11,
                head,
                b"" if empty else answer.body,
                write=self._write,
                writable=self._writable,
                pieceBytes=self._limits.pieceBytes,
            )
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

    def _write(self, pieces: list[bytes]) -> None:
        if self.phase is not Phase.SERVING:
            raise ConnectionGone
        writeEagerly(self.transport, pieces)

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
        self._whenLost += (call,)

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
        self.transport.writeSequence(
            refusal(problem, requestId, date=self.factory.date(), server=self.factory.serverHeader)
        )
        self.factory.logRefused(self._peer(), problem.status, problem.detail, requestId)
        self._lingeringClose()

    # Closing

    def _dropInput(self) -> None:
        self._heads.take()
        if self._intake is not None:
            self._intake.stop()

    def stop(self) -> None:
        """Close if nothing is being done; otherwise after what is."""
        if self.phase is Phase.READING and not self._turn.running and not len(self._heads):
            self._close()

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
        self._request = self._head = self._intake = self._task = None
        for deadline in (self._deadline, self._stall, self._turn):
            deadline.clear()
        self._freeProducerSlot()
        del self._stall, self._turn
        transport = self.transport
        if self._readsPaused and not self._inputEnded:
            transport.resumeProducing()
        self._readsPaused = False
        self.factory.handedOver(self)
        self._logOnce(request, "handed over")
        data = (request.head if replayHead else b"") + self._heads.take()
        del self._heads
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
