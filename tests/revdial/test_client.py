"""Tests for L{helix_revdial.revdial.client}."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha1
from typing import Any

import txaio
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import (
    ConnectError,
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
)
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from helix_revdial.revdial.client import (
    RAW_AGAIN,
    ControlSession,
    Refused,
    ServerPath,
    ServerURL,
)
from helix_revdial.revdial.errors import NotAllowed, UnknownDial
from helix_revdial.revdial.exchange import UpgradeRefused
from helix_revdial.revdial.features import ALL, POOL
from helix_revdial.revdial.listener import Listener
from helix_revdial.revdial.messages import Closing, ConnReady, Goodbye, KeepAlive, encode

TOKEN = "s3cret-token"
RAW_101 = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: revdial\r\nConnection: Upgrade\r\n"
    b"Revdial-Features: echo, eof, goodbye, pool, raw, targets, tickets\r\n\r\n"
)
HIJACK = (
    b"HTTP/1.1 200 OK\r\nDate: Mon, 24 Nov 2025 10:00:00 GMT\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def answer(status: str, body: bytes = b"", media: str = "", extra: bytes = b"") -> bytes:
    """A whole answer."""
    kind = f"Content-Type: {media}\r\n".encode() if media else b""
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n%s%s\r\n%s" % (
        status.encode(),
        len(body),
        kind,
        extra,
        body,
    )


def problem(status: str, detail: str, extra: bytes = b"") -> bytes:
    """A refusal in our server's own words."""
    body = b'{"title": "x", "detail": "%s"}' % detail.encode()
    return answer(status, body, "application/problem+json", extra)


class Connection(StringTransport):
    """One connection to the scripted server."""

    protocol: Any

    def __init__(self) -> None:
        super().__init__()
        self.open = True
        self.options: list[str] = []

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.options.append(f"no delay {enabled}")

    def setTcpKeepAlive(self, enabled: bool) -> None:
        self.options.append(f"keep alive {enabled}")

    def lose(self, error: Exception | None = None) -> None:
        if self.open:
            self.open = False
            self.protocol.connectionLost(Failure(ConnectionDone() if error is None else error))

    def loseConnection(self) -> None:
        self.lose()

    def abortConnection(self) -> None:
        self.lose(ConnectionAborted())

    def unregisterProducer(self) -> None:
        self.producer = None

    def loseWriteConnection(self) -> None:
        pass

    @property
    def head(self) -> list[bytes]:
        """The lines of the request."""
        written: bytes = self.value()
        return written.partition(b"\r\n\r\n")[0].split(b"\r\n")

    def header(self, name: bytes) -> bytes | None:
        for line in self.head[1:]:
            key, _, value = line.partition(b":")
            if key.lower() == name.lower():
                return value.strip()
        return None

    @property
    def upgrade(self) -> bytes:
        """What the request would change to; the letter case means nothing."""
        return (self.header(b"Upgrade") or b"").lower()

    def answer(self, data: bytes) -> None:
        self.protocol.dataReceived(data)

    def webSocket(self, features: bytes = b"") -> None:
        """Accept as a WebSocket."""
        key = self.header(b"Sec-WebSocket-Key") or b""
        accept = b64encode(sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        offer = b"Revdial-Features: " + features + b"\r\n" if features else b""
        self.answer(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n" + offer + b"\r\n"
        )


@implementer(IStreamClientEndpoint)
class Server:
    """The way to the scripted server; every connection is kept."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self.failure: Exception | None = None
        self.hold: Deferred[None] | None = None

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> IProtocol:
        if self.failure is not None:
            raise self.failure
        connection = Connection()
        protocol = factory.buildProtocol(connection.getPeer())
        assert protocol is not None
        connection.protocol = protocol
        self.connections.append(connection)
        protocol.makeConnection(connection)
        return protocol

    @property
    def last(self) -> Connection:
        return self.connections[-1]


class ServerURLTests(SynchronousTestCase):
    def test_forms(self) -> None:
        """Every scheme, with and without a path, a port, brackets; upstream 2, 8, 9."""
        for text, host, port, secure, base in (
            ("http://cp.example", "cp.example", 80, False, ""),
            ("https://cp.example/", "cp.example", 443, True, ""),
            ("ws://cp.example:8080", "cp.example", 8080, False, ""),
            ("WSS://CP.example", "cp.example", 443, True, ""),
            ("http://cp.example/api/v1/revdial", "cp.example", 80, False, ""),
            ("http://cp.example/api/v1/revdial/", "cp.example", 80, False, ""),
            ("http://cp.example/revdial", "cp.example", 80, False, ""),
            ("http://cp.example/api/v1", "cp.example", 80, False, ""),
            ("https://cp.example/helix", "cp.example", 443, True, "/helix"),
            ("https://cp.example/helix/api/v1/revdial", "cp.example", 443, True, "/helix"),
            ("http://[2001:db8::1]", "2001:db8::1", 80, False, ""),
            ("http://[2001:db8::1]:8080/revdial", "2001:db8::1", 8080, False, ""),
            ("http://[fe80::1%25eth0]:8080", "fe80::1%eth0", 8080, False, ""),
            ("http://[fe80::1%eth0]:8080", "fe80::1%eth0", 8080, False, ""),
            (" http://127.0.0.1:18091\n", "127.0.0.1", 18091, False, ""),
            ("https://b\u00fccher.example", "xn--bcher-kva.example", 443, True, ""),
        ):
            self.assertEqual(ServerURL.parse(text), ServerURL(host, port, secure, base), text)

    def test_refused(self) -> None:
        """What is wrong is said."""
        for text, why in (
            ("cp.example", "http://"),
            ("cp.example:8080", "http://"),
            ("ftp://cp.example", "http://"),
            ("http:cp.example", "http://"),
            ("http://", "no host"),
            ("http://:80", "no host"),
            ("http://user:pw@cp.example", "token"),
            ("http://cp.example?x=1", "query"),
            ("http://cp.example#x", "fragment"),
            ("http://cp.example:99999", "URL"),
            ("http://cp.example:0", "port"),
            ("http://cp.example/a b", "path"),
            ("http://a b", "host"),
            ("http://[::1", "URL"),
            ("", "http://"),
        ):
            error = self.assertRaises(ValueError, ServerURL.parse, text)
            self.assertIn(why, str(error), text)
            self.assertNotIn("pw", str(error))

    def test_text(self) -> None:
        """C{str} gives back what leads there."""
        for text in (
            "https://cp.example/helix",
            "http://[2001:db8::1]:8080",
            "http://[fe80::1%25eth0]:8080",
            "http://cp.example",
        ):
            self.assertEqual(str(ServerURL.parse(text)), text)

    @settings(max_examples=200, deadline=None)
    @given(st.text(max_size=40) | st.text(max_size=30).map(lambda text: "http://" + text))
    def test_anyText(self, text: str) -> None:
        """Either a URL that can be said again, or a ValueError; never anything else."""
        try:
            url = ServerURL.parse(text)
        except ValueError:
            return
        self.assertEqual(ServerURL.parse(str(url)), url)

    def test_dataURL(self) -> None:
        """The server's path is put below the base path, once, its query verbatim."""
        url = ServerURL.parse("https://cp.example:8443/helix")
        for connPath, path in (
            ("/revdial", "/helix/api/v1/revdial"),
            ("/api/v1/revdial?a=b", "/helix/api/v1/revdial?a=b"),
            (
                "/revdial?revdial.dialer=ab&revdial.req=/revdial",
                "/helix/api/v1/revdial?revdial.dialer=ab&revdial.req=/revdial",
            ),
        ):
            found = url.dataURL(connPath)
            self.assertEqual(found.path, path)
            self.assertEqual((found.host, found.port, found.secure), ("cp.example", 8443, True))

    def test_aPathThatLeadsElsewhere(self) -> None:
        """F4: no scheme, no host, no other path, no header."""
        url = ServerURL.parse("https://cp.example")
        for connPath in (
            "",
            "revdial",
            "http://evil.example/revdial",
            "//evil.example/revdial",
            "/\\evil.example/revdial",
            "/revdial/../admin",
            "/revdialx",
            "/api/v1/sessions",
            "/revdial#x",
            "/revdial?x y",
            "/revdial?x\r\nX: y",
            "/revdial@evil.example",
            "?/revdial",
        ):
            self.assertRaises(ValueError, url.dataURL, connPath)


class PathCase(SynchronousTestCase):
    """A path to the scripted server."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.patch(txaio.config, "loop", self.clock)  # type: ignore[attr-defined]
        self.server = Server()
        self.tokens = 0
        self.path = self.make()

    def make(self, url: str = "http://cp.example/helix", **options: Any) -> ServerPath:
        def token() -> str:
            self.tokens += 1
            return TOKEN

        path = ServerPath(
            self.clock,
            ServerURL.parse(url),
            token,
            key="wolf-1",
            endpoint=lambda: self.server,
            **options,
        )
        self.listener = Listener(self.clock, path, {}, parking=path)
        return path

    def connect(self) -> Deferred[ControlSession]:
        return Deferred.fromCoroutine(self.path.connectControl(self.listener))


class ControlTests(PathCase):
    def test_zeroKey(self) -> None:
        """The zero key is offered by whoever chose it, and by nobody else."""
        for chosen in (False, True):
            self.path = self.make(zeroKey=chosen)
            self.connect()
            offered = self.server.last.header(b"Revdial-Features") or b""
            self.assertEqual(b"zero-key" in offered, chosen)

    def test_noPool(self) -> None:
        """Who has no room for parked connections, or no way to open one, offers no pool."""
        for words in ({"parking": self.path, "maxParked": 0}, {"parking": None}):
            self.listener = Listener(self.clock, self.path, {}, **words)
            connecting = self.connect()
            self.assertEqual(
                self.server.last.header(b"Revdial-Features"),
                b"echo, eof, goodbye, raw, targets, tickets",
            )
            self.server.last.answer(RAW_101)
            self.assertEqual(self.successResultOf(connecting).features, ALL - {POOL})

    def test_raw(self) -> None:
        """Raw first; the session has what both ends agreed on, and is under way."""
        connecting = self.connect()
        self.assertEqual(
            self.server.last.head[0], b"GET /helix/api/v1/revdial?runnerid=wolf-1 HTTP/1.1"
        )
        self.assertEqual(self.server.last.header(b"Host"), b"cp.example")
        self.assertEqual(self.server.last.upgrade, b"revdial")
        self.assertEqual(self.server.last.header(b"Authorization"), b"Bearer " + TOKEN.encode())
        self.assertEqual(
            self.server.last.header(b"Revdial-Features"),
            b"echo, eof, goodbye, pool, raw, targets, tickets",
        )
        self.assertEqual(
            sum(TOKEN.encode() in line for line in self.server.last.head), 1, "F1: one place"
        )
        self.server.last.answer(RAW_101 + encode(KeepAlive("x")))
        session = self.successResultOf(connecting)
        self.assertEqual((session.carrier, session.features), ("raw", ALL))
        self.assertTrue(self.server.last.value().endswith(b'{"command":"echo","echo":"x"}\n'))
        self.assertNoResult(session.closed)
        self.server.last.answer(encode(Closing("superseded", 60.0)))
        closed = self.successResultOf(session.closed)
        self.assertEqual((closed.reason, closed.retryAfter), ("superseded", 60.0))
        self.assertFalse(self.server.last.open)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_atEverySplit(self) -> None:
        """C5: lines that come with the answer are all read, wherever it is cut."""
        sent = RAW_101 + encode(KeepAlive("a")) + encode(KeepAlive("b"))
        for split in range(1, len(sent)):
            connecting = self.connect()
            self.server.last.answer(sent[:split])
            self.server.last.answer(sent[split:])
            self.successResultOf(connecting)
            self.assertEqual(self.server.last.value().count(b'"command":"echo"'), 2, split)
            self.server.last.lose()

    def test_anOldServersHijackIsKept(self) -> None:
        """The old wire: this very connection is the control connection; no proxy is meant."""
        connecting = self.connect()
        with capturedLogs() as logs:
            self.server.last.answer(HIJACK + b'{"command":"keep-alive"}\n')
        self.assertEqual(logs, [])
        session = self.successResultOf(connecting)
        self.assertEqual((session.carrier, session.features), ("hijack", frozenset()))
        self.assertEqual(len(self.server.connections), 1)
        session.close()
        self.assertEqual(self.successResultOf(session.closed).reason, "left")

    def test_fallBackToWebSocket(self) -> None:
        """What a proxy says to raw is followed by one WebSocket; it is remembered."""
        for reply in (
            answer("400 Bad Request", b"nope", "text/plain"),
            answer("426 Upgrade Required"),
            answer("200 OK", b"<html>", "text/html"),
            problem("426 Upgrade Required", "Upgrade needed."),
        ):
            self.path = self.make()
            connecting = self.connect()
            self.server.last.answer(reply)
            self.assertEqual(self.server.last.upgrade, b"websocket")
            self.server.last.webSocket(b"raw, echo")
            session = self.successResultOf(connecting)
            self.assertEqual(session.carrier, "websocket")
            self.assertEqual(session.features, frozenset({"raw", "echo"}))
            self.server.last.lose()
            self.assertFalse(self.path.wantsRawData(session.features))
            self.connect()
            self.assertEqual(self.server.last.upgrade, b"websocket")
            self.server.last.webSocket()
            self.server.last.lose()
            self.clock.advance(RAW_AGAIN)
            self.connect().addErrback(lambda _: None)
            self.assertEqual(self.server.last.upgrade, b"revdial")

    def test_whatSaysNothingAboutRawIsNotRemembered(self) -> None:
        """A proxy whose server is away, or no answer at all: raw is tried again."""
        for reply in (b"", answer("502 Bad Gateway", b"<html>", "text/html")):
            self.path = self.make()
            connecting = self.connect()
            if reply:
                self.server.last.answer(reply)
            else:
                self.server.last.lose()
            self.assertEqual(self.server.last.upgrade, b"websocket")
            self.server.last.webSocket()
            self.successResultOf(connecting)
            self.server.last.lose()
            self.connect().addErrback(lambda _: None)
            self.assertEqual(self.server.last.upgrade, b"revdial")

    def test_aSilentProxy(self) -> None:
        """An upgrade that is swallowed is given up in its time; then WebSocket."""
        connecting = self.connect()
        self.clock.advance(10)
        self.assertFalse(self.server.connections[0].open)
        self.server.last.webSocket()
        self.successResultOf(connecting)

    def test_refusedByTheServer(self) -> None:
        """The server's own words are final, without a second attempt."""
        for status, detail in (
            ("401 Unauthorized", "The token is not valid."),
            ("403 Forbidden", "Not yours."),
            ("409 Conflict", "Held by another owner."),
            ("503 Service Unavailable", "Too many runners."),
        ):
            known = len(self.server.connections)
            connecting = self.connect()
            self.server.last.answer(problem(status, detail, b"Retry-After: 30\r\n"))
            refused = self.failureResultOf(connecting, Refused).value
            self.assertEqual(len(self.server.connections), known + 1)
            self.assertEqual(str(refused), f"{status}: {detail}")
            self.assertEqual((refused.status, refused.retryAfter), (int(status[:3]), 30.0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_refusedByAnOldServer(self) -> None:
        """A plain 401 may be a proxy's; after the WebSocket says the same it is final."""
        connecting = self.connect()
        for _ in range(2):
            self.server.last.answer(answer("401 Unauthorized", b"Unauthorized\n", "text/plain"))
        refused = self.failureResultOf(connecting, Refused).value
        self.assertEqual(str(refused), "401 Unauthorized: Unauthorized")

    def test_aFrontendInTheAPIsPlace(self) -> None:
        """Upstream 1: a web page says that the URL is wrong, and we say so."""
        connecting = self.connect()
        for _ in range(2):
            self.server.last.answer(answer("200 OK", b"<html>", "text/html; charset=utf-8"))
        refused = self.failureResultOf(connecting, Refused).value
        self.assertIn("a frontend answered in the API's place", str(refused))

    def test_aRefusalInTheServersPlace(self) -> None:
        """A proxy's own 401 and 403 are no frontend that answers everything."""
        for status, more, words in (
            ("403 Forbidden", b"", "something before the server refuses this"),
            (
                "401 Unauthorized",
                b"WWW-Authenticate: Basic realm=x\r\n",
                "something before the server wants a login of its own (Basic)",
            ),
        ):
            connecting = self.connect()
            for _ in range(2):
                said = answer(status, b"<html>", "text/html")
                self.server.last.answer(said.replace(b"\r\n", b"\r\n" + more, 1))
            refused = self.failureResultOf(connecting, Refused).value
            self.assertIn(words, str(refused))

    def test_aRefusalNeverQuotesTheToken(self) -> None:
        """F1: not even when the server repeats our own header."""
        connecting = self.connect()
        for _ in range(2):
            self.server.last.answer(
                answer("400 Bad Request", f"bad: Bearer {TOKEN}\x1b[0m".encode(), "text/plain")
            )
        refused = self.failureResultOf(connecting, Refused).value
        self.assertNotIn(TOKEN, str(refused))
        self.assertNotIn("\x1b", str(refused))

    def test_anEndNeverQuotesTheToken(self) -> None:
        """F1: nor does what a server says when it ends a connection."""
        connecting = self.connect()
        self.server.last.answer(RAW_101)
        session = self.successResultOf(connecting)
        self.server.last.answer(encode(Closing(f"bad token {TOKEN}")))
        self.assertEqual(self.successResultOf(session.closed).reason, "bad token <hidden>")

    def test_retryAfterAsADate(self) -> None:
        """HTTP allows a date; it is taken against the server's own clock."""
        for value, seconds in (
            (b"Mon, 24 Nov 2025 10:00:40 GMT", 40.0),
            (b"soon", None),
            (b"-1", None),
        ):
            connecting = self.connect()
            self.server.last.answer(
                problem(
                    "503 Service Unavailable",
                    "x",
                    b"Date: Mon, 24 Nov 2025 10:00:00 GMT\r\nRetry-After: " + value + b"\r\n",
                )
            )
            self.assertEqual(self.failureResultOf(connecting, Refused).value.retryAfter, seconds)

    def test_noServer(self) -> None:
        """The connection's own error is passed on at once."""
        self.server.failure = ConnectError()
        self.failureResultOf(self.connect(), ConnectError)

    def test_aTokenThatNoHeaderCanCarry(self) -> None:
        """It is said before anything is sent, and not repeated."""
        self.path._token = lambda: "to\u00e9ken"
        error = self.failureResultOf(self.connect(), ValueError)
        self.assertNotIn("ken\u00e9", str(error.value))
        self.assertEqual(self.server.connections, [])

    def test_cancel(self) -> None:
        """A cancelled attempt leaves no socket and no timer."""
        connecting = self.connect()
        connecting.cancel()
        self.failureResultOf(connecting, CancelledError)
        self.assertFalse(self.server.last.open)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_goodbye(self) -> None:
        """The session can tell the server that we leave."""
        connecting = self.connect()
        self.server.last.answer(RAW_101)
        self.successResultOf(connecting).goodbye()
        self.assertTrue(self.server.last.value().endswith(encode(Goodbye())))

    def test_badKey(self) -> None:
        """A key that no server takes is refused here."""
        for key in ("", "-x", "a b", "x" * 129, "a/b"):
            self.assertRaises(
                ValueError, ServerPath, self.clock, ServerURL("h", 80, False), str, key=key
            )


class DataTests(PathCase):
    def pickUp(
        self,
        ready: ConnReady = ConnReady("/revdial", "d" * 32, "tick-et"),  # noqa: B008
        features: frozenset[str] = ALL,
    ) -> Deferred[IProtocol]:
        self.target: Deferred[float] = Deferred()
        endpoint = self.path.dataEndpoint(ready, features, self.target)
        factory = Factory.forProtocol(Protocol)
        factory.noisy = False
        return endpoint.connect(factory)

    def test_rawWithATicket(self) -> None:
        """The head goes out when the target is there, with ticket and timing."""
        connecting = self.pickUp()
        self.assertEqual(self.server.last.value(), b"", "nothing is sent before the target")
        self.target.callback(0.0125)
        self.assertEqual(self.server.last.head[0], b"GET /helix/api/v1/revdial HTTP/1.1")
        self.assertEqual(self.server.last.header(b"Revdial-Ticket"), b"tick-et")
        self.assertEqual(self.server.last.header(b"Revdial-Timing"), b"target=0.012500")
        self.assertEqual(self.server.last.header(b"Authorization"), b"Bearer " + TOKEN.encode())
        self.assertNoResult(connecting)
        self.server.last.answer(RAW_101)
        self.successResultOf(connecting)
        self.assertEqual(self.server.last.options, ["no delay True", "keep alive True"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_theTargetFirst(self) -> None:
        """The target may be there before the connection is."""
        target: Deferred[float] = Deferred()
        target.callback(0.5)
        endpoint = self.path.dataEndpoint(ConnReady("/revdial", None, "t"), ALL, target)
        endpoint.connect(Factory.forProtocol(Protocol)).addErrback(lambda _: None)
        self.assertEqual(self.server.last.header(b"Revdial-Timing"), b"target=0.500000")

    def test_theOldWire(self) -> None:
        """Old servers get a WebSocket on the path they gave, with the token."""
        connecting = self.pickUp(
            ConnReady("/revdial?revdial.dialer=ab&revdial.req=cd"), frozenset()
        )
        self.target.callback(0.25)
        self.assertEqual(
            self.server.last.head[0],
            b"GET /helix/api/v1/revdial?revdial.dialer=ab&revdial.req=cd HTTP/1.1",
        )
        self.assertEqual(self.server.last.upgrade, b"websocket")
        self.assertIsNone(self.server.last.header(b"Revdial-Ticket"))
        self.server.last.webSocket()
        self.successResultOf(connecting)

    def test_overTLSWebSocket(self) -> None:
        """Twisted's TLS has no half-close; a WebSocket with eof has."""
        self.path = self.make("https://cp.example")
        self.pickUp().addErrback(lambda _: None)
        self.target.callback(0.25)
        self.assertEqual(self.server.last.upgrade, b"websocket")
        self.assertEqual(self.server.last.header(b"Revdial-Timing"), b"target=0.250000")

    def test_rawRefusedInBetween(self) -> None:
        """A proxy's refusal of raw is followed by WebSocket, and remembered."""
        connecting = self.pickUp()
        self.target.callback(0.25)
        self.server.last.answer(answer("400 Bad Request", b"no", "text/plain"))
        self.assertEqual(self.server.last.upgrade, b"websocket")
        self.assertEqual(self.server.last.header(b"Revdial-Ticket"), b"tick-et")
        self.server.last.webSocket()
        self.successResultOf(connecting)
        self.assertFalse(self.path.wantsRawData(ALL))
        self.clock.advance(RAW_AGAIN)
        self.assertTrue(self.path.wantsRawData(ALL))

    def test_theDialIsOver(self) -> None:
        """C4: 404 and 403 are the server's own; no second attempt with the ticket."""
        for status, kind in (("404 Not Found", UnknownDial), ("403 Forbidden", NotAllowed)):
            known = len(self.server.connections)
            connecting = self.pickUp()
            self.target.callback(0.25)
            self.server.last.answer(problem(status, "no"))
            self.failureResultOf(connecting, kind)
            self.assertEqual(len(self.server.connections), known + 1)

    def test_anOldServersUnknownDialer(self) -> None:
        """The Go server says 500; it is a failure like another."""
        connecting = self.pickUp(ConnReady("/revdial?revdial.dialer=ab"), frozenset())
        self.target.callback(0.25)
        self.server.last.answer(
            answer("500 Internal Server Error", b'{"message":"unknown dialer"}', "application/json")
        )
        self.failureResultOf(connecting, UpgradeRefused)

    def test_theServerIsGone(self) -> None:
        """No second attempt when the connection just ends."""
        connecting = self.pickUp()
        self.target.callback(0.25)
        self.server.last.lose()
        self.failureResultOf(connecting, ConnectionLost)
        self.assertEqual(len(self.server.connections), 1)

    def test_cancel(self) -> None:
        """C12: a cancelled dial-back leaves no socket and no timer."""
        connecting = self.pickUp()
        connecting.cancel()
        self.failureResultOf(connecting, CancelledError)
        self.assertFalse(self.server.last.open)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_elsewhere(self) -> None:
        """F4: a path that is not the server's opens no connection."""
        self.assertRaises(
            ValueError,
            self.path.dataEndpoint,
            ConnReady("//evil.example/revdial"),
            ALL,
            Deferred(),
        )
        self.assertEqual(self.server.connections, [])
