"""Tests for L{helix_revdial.agent.proxy}."""

from __future__ import annotations

import base64
from typing import Any, cast

from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from helix_revdial.agent.failures import connectReason
from helix_revdial.agent.proxy import PROXY_TIMEOUT, ProxyEndpoint, ProxyFailed

OK = b"HTTP/1.1 200 Connection established\r\n\r\n"


class Wire(StringTransport):
    """A connection to the proxy."""

    def abortConnection(self) -> None:
        self.disconnecting = True


@implementer(IStreamClientEndpoint)
class Proxy:
    """An endpoint whose connections a test makes."""

    def __init__(self) -> None:
        self.waiting: Deferred[IProtocol] | None = None
        self.factory: IProtocolFactory | None = None
        self.cancelled = False
        self.wire = Wire()

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        self.factory = protocolFactory

        def cancel(_: object) -> None:
            self.cancelled = True

        self.waiting = Deferred(cancel)
        return self.waiting

    def accept(self) -> IProtocol:
        """The proxy takes the connection."""
        assert self.factory is not None
        assert self.waiting is not None
        protocol = self.factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 3128))
        assert protocol is not None
        protocol.makeConnection(self.wire)
        self.waiting.callback(protocol)
        return protocol


class Server(Protocol):
    """What talks with the server behind the proxy."""

    def __init__(self) -> None:
        self.data = b""
        self.ended: Failure | None = None
        self.whenMade = b""

    def connectionMade(self) -> None:
        cast(Any, self.transport).write(b"hello")

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended = reason


@implementer(IHalfCloseableProtocol)
class HalfCloseable(Server):
    """One that hears the end of a direction."""

    heard = ""

    def readConnectionLost(self) -> None:
        self.heard += "r"

    def writeConnectionLost(self) -> None:
        self.heard += "w"


class ProxyEndpointTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.begin()

    def begin(self, **options: Any) -> Deferred[IProtocol]:
        """A new attempt."""
        self.clock, self.proxy = Clock(), Proxy()
        self.server: Server = options.pop("server", None) or Server()
        endpoint = ProxyEndpoint(
            self.clock,
            self.proxy,
            "http://proxy:3128",
            options.pop("host", "cp.example"),
            443,
            explain=connectReason,
            **options,
        )
        self.connecting = endpoint.connect(Factory.forProtocol(lambda: self.server))
        return self.connecting

    def failed(self) -> str:
        """Why the attempt failed, at the proxy; nothing is left of it."""
        error = self.failureResultOf(self.connecting, ProxyFailed).value
        self.assertEqual(self.clock.getDelayedCalls(), [])
        return str(error)

    def answer(self, data: bytes) -> str:
        """Why the attempt fails when the proxy says C{data}."""
        self.begin()
        self.proxy.accept().dataReceived(data)
        self.assertTrue(self.proxy.wire.disconnecting)
        return self.failed()

    def test_everySplit(self) -> None:
        """C5: bytes behind the answer are not lost, wherever the segments end."""
        stream = b"HTTP/1.0 200 OK\r\nContent-Length: 7\r\nVia: x\r\n\r\nbanner\r\n"
        for first in range(len(stream) + 1):
            for second in (first, min(first + 1, len(stream)), len(stream)):
                self.begin()
                exchange = self.proxy.accept()
                head = self.proxy.wire.value()
                for part in (stream[:first], stream[first:second], stream[second:]):
                    if part:
                        exchange.dataReceived(part)
                self.assertIs(self.successResultOf(self.connecting), self.server)
                self.assertEqual(self.server.data, b"banner\r\n")
                self.assertEqual(self.proxy.wire.value(), head + b"hello")
                self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_request(self) -> None:
        """RFC 9110, 9.3.6: the server's host and port, and nothing more about it."""
        for host, authority in (("cp.example", b"cp.example:443"), ("fd12::1", b"[fd12::1]:443")):
            self.begin(host=host)
            self.proxy.accept()
            lines = self.proxy.wire.value().split(b"\r\n")
            self.assertEqual(lines[0], b"CONNECT " + authority + b" HTTP/1.1")
            self.assertIn(b"Host: " + authority, lines)
            self.assertNotIn(b"authorization", self.proxy.wire.value().lower())

    def test_credentials(self) -> None:
        """They go to the proxy, read at the attempt."""
        self.begin(credentials=lambda: b"user:pass")
        self.proxy.accept()
        encoded = base64.b64encode(b"user:pass")
        self.assertIn(b"Proxy-Authorization: Basic " + encoded + b"\r\n", self.proxy.wire.value())

    def test_loginWanted(self) -> None:
        """407: what to do, by what was given and what the proxy takes."""
        basic = b'HTTP/1.1 407 Auth\r\nProxy-Authenticate: Basic realm="x"\r\n\r\n'
        self.assertIn("--proxy-credentials", self.answer(basic.replace(b"\r\n\r\n", CLOSE)))
        ntlm = b"HTTP/1.1 407 Auth\r\nProxy-Authenticate: NTLM\r\nProxy-Authenticate: Negotiate abc"
        self.assertIn("(NTLM, Negotiate; only Basic is)", self.answer(ntlm + CLOSE))
        self.begin(credentials=lambda: b"user:hidden")
        self.proxy.accept().dataReceived(basic.replace(b"\r\n\r\n", CLOSE))
        said = self.failed()
        self.assertIn("does not accept the user and password", said)
        self.assertNotIn("hidden", said)

    def test_refused(self) -> None:
        """Another refusal is repeated, with the proxy's own words if they are for people."""
        said = self.answer(
            b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nContent-Length: 12\r\n\r\n"
            b"not\x1b allowed"
        )
        self.assertEqual(
            said,
            "the proxy http://proxy:3128 answered 403 Forbidden when asked for cp.example:443: "
            "not  allowed",
        )
        said = self.answer(b"HTTP/1.1 503 No\r\nX-Squid-Error: ERR_DNS_FAIL 0" + CLOSE)
        self.assertIn("503 No when asked for cp.example:443: ERR_DNS_FAIL 0", said)

    def test_noHTTP(self) -> None:
        """Whatever else listens there, and an endless head, is no proxy."""
        for data in (b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 5000):
            self.assertEqual(self.answer(data), "the proxy http://proxy:3128 does not speak HTTP")

    def test_closed(self) -> None:
        """A proxy that closes in place of an answer."""
        self.proxy.accept().connectionLost(Failure(ConnectionDone()))
        self.assertIn("closed, when asked for cp.example:443", self.failed())
        self.begin()
        self.proxy.accept().connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.failed(), "the proxy http://proxy:3128: the connection was closed")

    def test_unreachable(self) -> None:
        """That nothing listens is said of the proxy, not of the server."""
        assert self.proxy.waiting is not None
        self.proxy.waiting.errback(Failure(ConnectError(111)))
        self.assertEqual(self.failed(), "the proxy http://proxy:3128: connection refused")

    def test_slow(self) -> None:
        """E4: the connection and the answer have one limit; a half answer counts for its head."""
        self.clock.advance(PROXY_TIMEOUT)
        self.assertTrue(self.proxy.cancelled)
        self.assertIn("no connection within 8 s", self.failed())
        self.begin()
        self.clock.advance(PROXY_TIMEOUT - 1)
        self.proxy.accept()
        self.clock.advance(1)
        self.assertTrue(self.proxy.wire.disconnecting)
        self.assertIn("no answer about cp.example:443 within 8 s", self.failed())
        self.begin()
        self.proxy.accept().dataReceived(b"HTTP/1.1 403 No\r\nContent-Length: 9\r\n\r\nx")
        self.clock.advance(PROXY_TIMEOUT)
        self.assertIn("answered 403 No", self.failed())

    def test_cancelled(self) -> None:
        """Being cancelled drops the connection, before and after it was made."""
        self.connecting.cancel()
        self.failureResultOf(self.connecting, CancelledError)
        self.assertTrue(self.proxy.cancelled)
        self.begin()
        self.proxy.accept()
        self.connecting.cancel()
        self.failureResultOf(self.connecting, CancelledError)
        self.assertTrue(self.proxy.wire.disconnecting)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_end(self) -> None:
        """After the answer the connection's events are those of the server's protocol."""
        exchange = self.proxy.accept()
        exchange.dataReceived(OK)
        reason = Failure(ConnectionDone())
        exchange.connectionLost(reason)
        self.assertIs(self.server.ended, reason)

    def test_halfClose(self) -> None:
        """
        The end of a direction is forwarded to a protocol that hears it; for another
        one, as on a socket, it is the end.
        """
        server = HalfCloseable()
        self.begin(server=server)
        exchange = self.proxy.accept()
        exchange.dataReceived(OK)
        heard = IHalfCloseableProtocol(exchange)
        heard.readConnectionLost()
        heard.writeConnectionLost()
        self.assertEqual(server.heard, "rw")
        self.begin()
        exchange = self.proxy.accept()
        exchange.dataReceived(OK)
        heard = IHalfCloseableProtocol(exchange)
        heard.writeConnectionLost()
        heard.readConnectionLost()
        assert self.server.ended is not None
        self.server.ended.trap(ConnectionDone)
        self.assertTrue(self.proxy.wire.disconnecting)
        self.server.ended = None
        exchange.connectionLost(Failure(ConnectionLost()))
        self.assertIsNone(self.server.ended)


CLOSE = b"\r\nContent-Length: 0\r\n\r\n"
