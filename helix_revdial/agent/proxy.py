# -*- test-case-name: tests.agent.test_proxy -*-
"""
Through an HTTP proxy: a tunnel by C{CONNECT} (RFC 9110, 9.3.6).

L{ProxyEndpoint} is an endpoint like any other: what is connected through it, TLS
included, sees the server's bytes and nothing of the proxy.  Servers without TLS
are reached by C{CONNECT} as well, since an upgrade does not survive a proxy that
forwards requests.

Invariants:

  - Bytes behind the proxy's answer reach the protocol, at every split, after it
    was connected.
  - The whole way, the connection to the proxy and its answer, has one limit;
    the head of the answer has a limit in bytes.
  - What fails at the proxy says so, and says which proxy.  The user and the
    password are in no such text, and go to the proxy only.
  - An attempt that ends, however it ends, leaves no socket and no timer.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from ..revdial.exchange import (
    USER_AGENT,
    Answer,
    AnswerReader,
    MalformedAnswer,
    firstHeader,
    requestHead,
)

PROXY_TIMEOUT = 8.0
"""
Seconds for the connection to a proxy, its TLS and its answer: a little less than
an upgrade has for its connection, so that what is said is about the proxy.
"""

MAX_SAID = 200
"""Characters of a proxy's own words that are repeated."""


class ProxyFailed(Exception):
    """
    The proxy does not lead to the server; C{str} says which one and why.

    @ivar status: What it answered; 0 where it did not in HTTP.
    @ivar late: Whether it had not answered when its time was over.
    """

    def __init__(self, said: str, status: int = 0, *, late: bool = False) -> None:
        super().__init__(said)
        self.status = status
        self.late = late


@implementer(IStreamClientEndpoint)
class ProxyEndpoint:
    """
    Connects to a server through a proxy.
    """

    def __init__(
        self,
        clock: IReactorTime,
        proxy: IStreamClientEndpoint,
        name: str,
        host: str,
        port: int,
        *,
        credentials: Callable[[], bytes] | None = None,
        explain: Callable[[BaseException], str | None] = lambda failed: None,
        timeout: float = PROXY_TIMEOUT,
    ) -> None:
        """
        @param clock: Calls later.
        @param proxy: Leads to the proxy, with TLS if the proxy wants that.
        @param name: What the proxy is called in texts.
        @param host: The server's name, which the proxy resolves, or address.
        @param port: The server's port.
        @param credentials: Gives C{USER:PASSWORD} at each attempt.
        @param explain: Words for why a connection failed.
        @param timeout: Seconds for everything.
        """
        self._clock = clock
        self._proxy = proxy
        self._name = name
        self._authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._credentials = credentials
        self._explain = explain
        self._timeout = timeout

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> IProtocol:
        exchange = _ConnectExchange(self._request(), self._authority, factory, self._login)
        attempt = Deferred.fromCoroutine(self._attempt(exchange))
        late = False

        def expire() -> None:
            nonlocal late
            late = not exchange.settleForHead()
            if late:
                attempt.cancel()

        timer = self._clock.callLater(self._timeout, expire)
        try:
            return await attempt
        except _Refused as refused:
            raise ProxyFailed(f"the proxy {self._name} {refused}", refused.status) from None
        except MalformedAnswer:
            raise ProxyFailed(f"the proxy {self._name} does not speak HTTP") from None
        except Exception as failed:
            if late:
                what = f"no answer about {self._authority}" if exchange.asked else "no connection"
                raise ProxyFailed(
                    f"the proxy {self._name}: {what} within {self._timeout:g} s", late=True
                ) from None
            reason = None if isinstance(failed, CancelledError) else self._explain(failed)
            if reason is None:
                raise
            raise ProxyFailed(f"the proxy {self._name}: {reason}") from None
        finally:
            if timer.active():
                timer.cancel()

    async def _attempt(self, exchange: _ConnectExchange) -> IProtocol:
        await self._proxy.connect(_only(exchange))
        return await exchange.done

    def _request(self) -> bytes:
        authority = self._authority.encode("ascii")
        headers = [(b"Host", authority), (b"User-Agent", USER_AGENT)]
        if self._credentials is not None:
            encoded = base64.b64encode(self._credentials())
            headers.append((b"Proxy-Authorization", b"Basic " + encoded))
        return requestHead(b"CONNECT", self._authority, headers)

    def _login(self, answer: Answer) -> str:
        """What to do about a 407."""
        offered = [
            value.split(b" ", 1)[0].decode("latin-1")
            for name, value in answer.headers
            if name == b"proxy-authenticate"
        ]
        if offered and not any(each.lower() == "basic" for each in offered):
            kinds = ", ".join(offered)[:MAX_SAID]
            return f"wants a login of a kind that is not spoken here ({kinds}; only Basic is)"
        if self._credentials is not None:
            return "does not accept the user and password that were given for it"
        return (
            "wants a login: give the user and password in a file (--proxy-credentials), or "
            "in the proxy's URL"
        )


class _Refused(Exception):
    """The proxy said no; what follows "the proxy such-and-such"."""

    def __init__(self, said: str, status: int = 0) -> None:
        super().__init__(said)
        self.status = status


def _only(exchange: _ConnectExchange) -> IProtocolFactory:
    factory: Factory = Factory.forProtocol(lambda: exchange)
    factory.noisy = False
    return factory


@implementer(IHalfCloseableProtocol)
class _ConnectExchange(Protocol):
    """
    The exchange with the proxy, and then the way to the protocol behind it.

    @ivar done: Fires with the protocol, connected; cancelling it drops the
        connection.
    @ivar asked: Whether the request was sent.
    """

    def __init__(
        self,
        request: bytes,
        authority: str,
        factory: IProtocolFactory,
        login: Callable[[Answer], str],
    ) -> None:
        self.done: Deferred[IProtocol] = Deferred(lambda _: self._end())
        self._reader = AnswerReader(request, b"CONNECT")
        self._authority = authority
        self._factory = factory
        self._login = login
        self._over = False
        self._successor: IProtocol | None = None
        self._lost = False
        self.asked = False

    @property
    def _wire(self) -> Any:
        return self.transport

    def connectionMade(self) -> None:
        if self._over:
            self._wire.abortConnection()
        else:
            self.asked = True
            self._wire.write(self._reader.head)

    def dataReceived(self, data: bytes) -> None:
        if self._successor is not None:
            self._successor.dataReceived(data)
        elif not self._over:
            self._read(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._lost:
            return
        if self._successor is not None:
            self._successor.connectionLost(reason)
        elif self._over:
            return
        elif self._reader.answer is not None:
            self._refuse(self._reader.answer)
        elif reason.check(ConnectionDone):
            self._fail(Failure(_Refused(f"closed, when asked for {self._authority}")))
        else:
            self._fail(reason)

    # Whether a connection can be closed by halves is asked once, before there is a
    # successor (by Twisted's endpoints): so it can, and what follows for a successor
    # that cannot is what a socket would do.

    def readConnectionLost(self) -> None:
        successor = IHalfCloseableProtocol(self._successor, None)
        if successor is not None:
            successor.readConnectionLost()
        else:
            self.connectionLost(Failure(ConnectionDone()))
            self._lost = True
            self._wire.abortConnection()

    def writeConnectionLost(self) -> None:
        successor = IHalfCloseableProtocol(self._successor, None)
        if successor is not None:
            successor.writeConnectionLost()

    def settleForHead(self) -> bool:
        """
        Refuse with the head of a refusal alone, if there is one: the rest is late.

        @return: Whether there was.
        """
        if self._over or self._reader.answer is None:
            return False
        self._refuse(self._reader.answer)
        return True

    def _end(self) -> None:
        self._over = True
        if self.transport is not None:
            self._wire.abortConnection()

    def _read(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
        except MalformedAnswer:
            self._fail(Failure())
            return
        answer = self._reader.answer
        if answer is None:
            return
        if 200 <= answer.status < 300:
            self._open(answer)
            return
        self._reader.readBody()
        if self._reader.complete:
            self._refuse(answer)

    def _open(self, answer: Answer) -> None:
        protocol = self._factory.buildProtocol(self._wire.getPeer())
        if protocol is None:
            self._fail(Failure(_Refused("was not needed any more")))
            return
        self._over = True
        self._successor = protocol
        protocol.makeConnection(self._wire)
        self.done.callback(protocol)
        if answer.rest:
            protocol.dataReceived(answer.rest)

    def _refuse(self, answer: Answer) -> None:
        if answer.status == 407:
            said = self._login(answer)
        else:
            said = f"answered {answer.status} {answer.reason}".rstrip()
            said = f"{said} when asked for {self._authority}{self._words(answer)}"
        self._fail(Failure(_Refused(said, answer.status)))

    def _words(self, answer: Answer) -> str:
        """The proxy's own words, where it has some for people."""
        media = firstHeader(answer.headers, b"content-type") or b""
        squid = firstHeader(answer.headers, b"x-squid-error") or b""
        said = self._reader.body if media.startswith(b"text/plain") else squid
        text = "".join(c if c.isprintable() else " " for c in said.decode("utf-8", "replace"))
        return f": {text.strip()[:MAX_SAID]}" if text.strip() else ""

    def _fail(self, failure: Failure) -> None:
        if not self._over:
            self._end()
            self.done.errback(failure)


__all__ = ["PROXY_TIMEOUT", "ProxyEndpoint", "ProxyFailed"]
