# -*- test-case-name: tests.gateways.test_proxy -*-
"""
One request through the reverse proxy, from its head to the last byte of its answer.

An L{Exchange} takes what it needs of its L{HTTPProxy
<helix_revdial.gateways.proxy.HTTPProxy>}, and gives it back exactly once, whatever ends
it: the end of the answer, the caller, the service, a deadline, the end of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import h11
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from helix_revdial.gateways.backend import Backend, fieldsOf
from helix_revdial.gateways.forwarding import (
    SANDBOX,
    BadAnswer,
    Caller,
    answerFields,
    asksUpgrade,
    checkSwitch,
    requestFields,
    switchHead,
)
from helix_revdial.http.deadline import Deadline
from helix_revdial.http.request import Request
from helix_revdial.http.response import BrokenOff, HandedOver, Response
from helix_revdial.revdial.errors import (
    DialTimeout,
    ReconnectTimeout,
    TargetTimeout,
    TunnelBroke,
)
from helix_revdial.revdial.offered import Expose
from helix_revdial.revdial.relay import RelayProtocol, relayPair

if TYPE_CHECKING:
    from helix_revdial.gateways.proxy import HTTPProxy

CONTINUE_WAIT = 1.0
"""Seconds that a service has to say C{100 Continue} before the body is sent anyway."""

REPEATABLE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""Methods that do the same twice as once (RFC 9110, 9.2.2)."""


class Ended(Exception):
    """What the caller asked with has ended while its exchange was under way."""


@dataclass(frozen=True)
class Errand:
    """
    Where a request goes, and on whose behalf.

    @ivar caller: Who has the limit.
    @ivar family: The token family that ends the exchange with itself.
    @ivar runner: The runner's key.
    @ivar target: The service; C{None} for the agent's default.
    @ivar path: The request target for the service, in origin form.
    @ivar allow: Whether the caller may have a target that is for these.
    @ivar about: For the record of the stream.
    @ivar who: The caller, as the service is told.
    @ivar wait: Seconds that the caller waits for the answer's head; C{None}: as long
        as is usual.
    @ivar passAuthorization: Whether C{Authorization} is for the service.
    @ivar written: Further fields for the service.
    """

    caller: str
    family: str
    runner: str
    target: str | None
    path: bytes
    allow: Callable[[Expose], bool]
    about: Mapping[str, str]
    who: Caller
    wait: float | None = None
    passAuthorization: bool = False
    written: tuple[tuple[bytes, bytes], ...] = ()


class Exchange:
    """
    One request and its answer.
    """

    def __init__(self, proxy: HTTPProxy, request: Request, errand: Errand) -> None:
        self.errand = errand
        self._proxy = proxy
        self._request = request
        self._upgrade: bytes | None = None
        if request.body.length == 0:
            # A request that changes the protocol carries no body (see handOver).
            self._upgrade = asksUpgrade(request.headers, request.httpVersion)
        self._backend: Backend | None = None
        self._asking: Deferred[h11.Response | h11.InformationalResponse] | None = None
        self._pump: Deferred[None] | None = None
        self._deadline = Deadline(proxy.clock)
        self._half: RelayProtocol | None = None
        self._isCut = False
        self._isOver = False

    async def run(self) -> Response | HandedOver:
        """Up to the head of the answer."""
        request, errand, clock = self._request, self.errand, self._proxy.clock
        request.body.allowSlow()
        # Who waits for events that never come has to be noticed when it goes away.
        request.endWithCaller(whole=True)
        asking = self._asking = Deferred.fromCoroutine(self._ask())
        if errand.wait is not None:
            asking.addTimeout(errand.wait, clock, onTimeoutCancel=self._timedOut)
        try:
            answer = await asking
        except CancelledError:
            if self._isCut:
                raise Ended from None
            raise
        finally:
            self._asking = None
            self._deadline.clear()
        backend = self._backend
        assert backend is not None
        if self._isCut:
            raise Ended
        if isinstance(answer, h11.InformationalResponse):
            return self._switch(backend, answer)
        fields = answerFields(
            answer.status_code,
            fieldsOf(answer),
            version=answer.http_version,
            prefix=errand.who.prefix,
            host=request.headers.get(b"host") or b"",
        )
        return Response(answer.status_code, fields, _AnswerBody(self, backend))

    def _timedOut(self, result: object, timeout: float) -> Failure:
        if self._backend is not None and not self._backend.endedSilently:
            return Failure(TargetTimeout())
        connected = self._proxy.connections.status(self.errand.runner) == "connected"
        return Failure(DialTimeout() if connected else ReconnectTimeout())

    async def _ask(self) -> h11.Response | h11.InformationalResponse:
        request = self._request
        repeatable = (
            request.method in REPEATABLE and request.body.length == 0 and self._upgrade is None
        )
        return await self._proxy.backends.ask(
            self.errand, self._answered, repeatable=repeatable, patient=True
        )

    async def _answered(self, backend: Backend) -> h11.Response | h11.InformationalResponse:
        self._backend = backend
        request = self._request
        body = request.body
        backend.begin(self._head())
        if body.length == 0:
            backend.end()
            self._expectAnswer()
        else:
            self._pump = Deferred.fromCoroutine(self._sendBody(backend))
            self._pump.addErrback(self._bodyBroke, backend)
        return await backend.answer()

    def _head(self) -> h11.Request:
        request, errand = self._request, self.errand
        headers = request.headers
        fields = requestFields(
            headers,
            errand.who,
            passAuthorization=errand.passAuthorization,
            upgrade=self._upgrade,
            written=errand.written,
        )
        if request.body.length is None:
            fields.append((b"Transfer-Encoding", b"chunked"))
        elif request.body.length or b"content-length" in headers:
            fields.append((b"Content-Length", b"%d" % request.body.length))
        if self._expects:
            fields.append((b"Expect", b"100-continue"))
        return h11.Request(method=request.method, target=errand.path, headers=fields)

    @property
    def _expects(self) -> bool:
        request = self._request
        return (
            request.httpVersion != b"1.0"
            and request.body.length != 0
            and b"100-continue" in request.headers.tokens(b"expect")
        )

    def _expectAnswer(self) -> None:
        """The request is whole: from now on the service is waited for."""
        backend = self._backend
        if self._asking is not None and self.errand.wait is None and backend is not None:
            timeout = self._proxy.limits.answerTimeout
            self._deadline.set(timeout, lambda: backend.fail(TargetTimeout()))

    async def _sendBody(self, backend: Backend) -> None:
        if self._expects and not self._request.body.received:
            # Reading the body is what makes the caller send it.
            await backend.continued().addTimeout(
                CONTINUE_WAIT, self._proxy.clock, onTimeoutCancel=lambda result, timeout: None
            )
            if self._answerBegun:
                return
        async with aclosing(self._request.body.pieces()) as pieces:
            async for piece in pieces:
                await backend.writable()
                backend.write(piece)
        backend.end()
        self._expectAnswer()

    @property
    def _answerBegun(self) -> bool:
        return self._asking is None

    def _bodyBroke(self, failure: Failure, backend: Backend) -> None:
        if failure.check(CancelledError) is None:
            error = failure.value
            assert isinstance(error, Exception)
            backend.fail(error)

    def _switch(self, backend: Backend, answer: h11.InformationalResponse) -> HandedOver:
        if self._upgrade is None:
            raise BadAnswer("it switched protocols, which nobody asked for")
        fields = fieldsOf(answer)
        chosen = checkSwitch(self._upgrade, fields)
        passed = answerFields(200, fields, version=b"1.1", prefix=self.errand.who.prefix)
        # Neither a length nor the sandbox of pages means anything here.
        passed = [
            field for field in passed if field != SANDBOX and field[0].lower() != b"content-length"
        ]
        passed.append((b"X-Request-Id", self._request.requestId.encode("ascii")))
        left, right = relayPair(
            self._proxy.clock,
            linger=self._proxy.limits.linger,
            onEnd=lambda end: self.over(),
            sockets=self._proxy.sockets,
        )
        self._request.purpose = "stream"
        handed = self._request.handOver(_Switched(switchHead(passed, chosen), left))
        self._half = left
        backend.handTo(right)
        return handed

    def cut(self) -> None:
        """End it at once: what it was asked with has ended."""
        self._isCut = True
        if self._half is not None:
            self._half.abandon()
        elif self._asking is not None:
            self._asking.cancel()
        elif self._backend is not None:
            self._backend.fail(TunnelBroke("the token has been revoked"))

    def over(self) -> None:
        """Nothing of it is wanted any more."""
        if self._isOver:
            return
        self._isOver = True
        self._deadline.clear()
        pump, self._pump = self._pump, None
        if pump is not None:
            pump.cancel()
        backend, self._backend = self._backend, None
        if backend is not None:
            if self._half is None and not self._isCut:
                self._proxy.backends.over(self.errand, backend)
            else:
                backend.close()
        self._proxy.over(self)


class _AnswerBody:
    """
    The body of an answer as it comes.
    """

    def __init__(self, exchange: Exchange, backend: Backend) -> None:
        self._exchange = exchange
        self._backend = backend

    def __aiter__(self) -> _AnswerBody:
        return self

    async def __anext__(self) -> bytes:
        try:
            piece = await self._backend.piece()
        except CancelledError:
            raise
        except Exception as error:
            raise BrokenOff(str(error)) from error
        if not piece:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """Whoever asked has all, or wants no more."""
        self._exchange.over()


@implementer(IHalfCloseableProtocol)
class _Switched(Protocol):
    """The caller's connection after the upgrade: the answer's head, then the relay's."""

    def __init__(self, head: bytes, half: RelayProtocol) -> None:
        self._head = head
        self._half = half

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(self._head)
        self._half.makeConnection(self.transport)

    def dataReceived(self, data: bytes) -> None:
        self._half.dataReceived(data)

    def readConnectionLost(self) -> None:
        self._half.readConnectionLost()

    def writeConnectionLost(self) -> None:
        self._half.writeConnectionLost()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._half.connectionLost(reason)


__all__ = ["Ended", "Errand", "Exchange"]
