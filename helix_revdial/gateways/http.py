# -*- test-case-name: tests.gateways.test_http -*-
"""
One HTTP exchange with a service beside an agent.

This is for exchanges whose answer is small enough to hold and is held: the
answer's size is capped, the caller's deadline bounds the whole exchange (the
dial, the request, the last byte of the answer), and whichever ends it, the
tunnel's connection is gone afterwards.  One data connection carries one
exchange.

It knows streams only as client endpoints, and errors only as
L{DialError <helix_revdial.revdial.errors.DialError>}s: what went wrong is
either the dial (whose error passes through), the time, or the tunnel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer, IProtocol, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import (
    URI,
    Agent,
    HTTPConnectionPool,
    ResponseDone,
    ResponseFailed,
)
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from helix_revdial.revdial.errors import DialError, TargetTimeout, TunnelBroke
from helix_revdial.revdial.streams import IStreamTransport, Stream


class AnswerTooLarge(Exception):
    """The service's answer is larger than the caller takes."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the answer is larger than {limit:,} bytes")
        self.limit = limit


@dataclass(frozen=True)
class Answer:
    """
    A whole answer.

    @ivar phases: What is known of the dial that it came by: seconds since it
        began, by the names of L{Stream.phases
        <helix_revdial.revdial.streams.Stream>}.
    """

    status: int
    headers: Headers
    body: bytes
    phases: Mapping[str, float]

    def contentType(self) -> str:
        """The media type without parameters, in lower case; empty if none is given."""
        (first, *_) = self.headers.getRawHeaders("content-type", [""])
        return first.partition(";")[0].strip().lower()


@implementer(IAgentEndpointFactory)
class _Tunnel:
    """Every URL leads to the one endpoint, and it is noticed when that is connected."""

    def __init__(self, endpoint: IStreamClientEndpoint) -> None:
        self._endpoint = endpoint
        self.connected = False
        self.stream: Stream | None = None

    def endpointForURI(self, uri: URI) -> _Tunnel:
        return self

    def connect(self, factory: Factory) -> Deferred[IProtocol]:
        factory.noisy = False  # two log lines for each exchange say nothing
        connecting: Deferred[IProtocol] = self._endpoint.connect(factory)
        return connecting.addCallback(self._noted)

    def _noted(self, protocol: IProtocol) -> IProtocol:
        self.connected = True
        transport = getattr(protocol, "transport", None)
        if IStreamTransport.providedBy(transport):
            self.stream = transport.stream
        return protocol


@implementer(IBodyProducer)
class _WholeBody:
    """A request body that is held anyway, handed over at once and bounded by whoever held it."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = len(body)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """Everything is with the consumer."""

    def resumeProducing(self) -> None:
        """Everything is with the consumer."""

    def stopProducing(self) -> None:
        """Everything is with the consumer."""


class _Body(Protocol):
    """
    Collects a body up to a limit.

    @ivar finished: Fires once with the body, or with why there is none.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # One block: thousands of small ones would leave the process with holes that
        # it cannot give back.
        self._content = bytearray()
        self._over = False
        self.finished: Deferred[bytes] = Deferred(lambda _: self._end(Failure(TunnelBroke())))

    def dataReceived(self, data: bytes) -> None:
        if self._over:
            return
        self._content += data
        if len(self._content) > self._limit:
            self._end(Failure(AnswerTooLarge(self._limit)))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        # An answer delimited by the end of the connection is how HTTP/1.0
        # servers answer: the tunnel says by its kind of end whether it is whole.
        if reason.check(ResponseDone, PotentialDataLoss):
            self._end(bytes(self._content))
        else:
            self._end(reason)

    def _end(self, result: bytes | Failure) -> None:
        if self._over:
            return
        self._over = True
        self._content = bytearray()
        if isinstance(result, Failure):
            assert self.transport is not None
            self.transport.loseConnection()
            self.finished.errback(result)
        else:
            self.finished.callback(result)


async def fetch(
    clock: IReactorTime,
    endpoint: IStreamClientEndpoint,
    method: bytes,
    path: bytes,
    *,
    deadline: float,
    maxBody: int,
    headers: Sequence[tuple[bytes, bytes]] = (),
    body: bytes | None = None,
    dialTimedOut: Callable[[], DialError],
) -> Answer:
    """
    Ask a service beside an agent, and take its whole answer.

    @param endpoint: Leads to the service.
    @param path: The request target in origin form, query included.
    @param deadline: Seconds for the whole exchange.
    @param maxBody: Bytes of the answer's body that are taken.
    @param headers: Further header fields of the request.
    @param body: The request's body, if it has one.
    @param dialTimedOut: Makes the error for a deadline that passes before the
        service is connected: only the caller knows what was waited for.

    @raise DialError: The dial failed, the time was up, or the tunnel broke.
    @raise AnswerTooLarge: The answer is larger than C{maxBody}.
    """
    tunnel = _Tunnel(endpoint)

    async def exchange() -> Answer:
        agent = Agent.usingEndpointFactory(
            clock, tunnel, pool=HTTPConnectionPool(clock, persistent=False)
        )
        fields = Headers()
        for name, value in headers:
            fields.addRawHeader(name, value)
        producer = None if body is None else _WholeBody(body)
        response: IResponse = await agent.request(
            method, b"http://localhost" + path, fields, producer
        )
        collector = _Body(maxBody)
        response.deliverBody(collector)
        content = await collector.finished
        phases = {} if tunnel.stream is None else dict(tunnel.stream.phases)
        return Answer(response.code, response.headers, content, phases)

    def timedOut(result: Answer | Failure, timeout: float) -> Answer | Failure:
        return Failure(TargetTimeout() if tunnel.connected else dialTimedOut())

    try:
        return await Deferred.fromCoroutine(exchange()).addTimeout(
            deadline, clock, onTimeoutCancel=timedOut
        )
    except (DialError, AnswerTooLarge):
        raise
    except ResponseFailed as error:
        raise TunnelBroke(f"the tunnel broke: {_reason(error)}") from None
    except Exception as error:
        if tunnel.connected:
            raise TunnelBroke(f"the tunnel broke: {_reason(error)}") from None
        raise


def _reason(error: Exception) -> str:
    """What ended an exchange, in words: the innermost of the reasons that HTTP clients nest."""
    reasons = getattr(error, "reasons", None)
    while reasons:
        error = reasons[0].value
        reasons = getattr(error, "reasons", None)
    return str(error).rstrip(".").lower() or type(error).__name__


__all__ = ["Answer", "AnswerTooLarge", "fetch"]
