"""One HTTP exchange: what is sent, and what each way of failing becomes."""

from __future__ import annotations

from typing import Any

from OpenSSL.SSL import Error as TLSError
from treq.client import HTTPClient
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.error import (
    ConnectError,
    ConnectingCancelledError,
    ConnectionDone,
    ConnectionLost,
    DNSLookupError,
)
from twisted.internet.error import ConnectionRefusedError as NothingListens
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web._newclient import ParseError, RequestTransmissionFailed
from twisted.web.client import ResponseDone, ResponseFailed, ResponseNeverReceived
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from helix_revdial.cli.edge import CommandError
from helix_revdial.cli.exchange import MAX_PROBLEM, Answer, Exchange
from helix_revdial.cli.failures import BadAnswer, Refused, TimedOut, Unreachable
from helix_revdial.cli.profile import ServerURL, Settings
from tests.cli.fake import HANG, KEY, CommandTestCase, Given, problem


class FakeResponse:
    """A response whose body the test delivers."""

    def __init__(self, code: int = 200, contentType: str = "application/json") -> None:
        self.code = code
        self.headers = Headers({"content-type": [contentType]})
        self.transport = StringTransport()
        self.protocol: Any = None

    def deliverBody(self, protocol: Any) -> None:
        """Take the collector."""
        self.protocol = protocol
        protocol.makeConnection(self.transport)


class FakeHTTP:
    """A client whose next result the test gives."""

    def __init__(self, result: Any, onCancel: Any = None) -> None:
        self.result = result
        self.onCancel = onCancel
        self.kwargs: dict[str, Any] = {}

    def request(self, method: str, url: Any, **kwargs: Any) -> Deferred[Any]:
        """Answer with what was given."""
        self.kwargs = kwargs
        self.url = url
        if isinstance(self.result, Exception):
            return fail(self.result)
        answer: Deferred[Any] = Deferred(self.onCancel)
        if self.result is not None:
            answer.callback(self.result)
        return answer


class ExchangeTestCase(SynchronousTestCase):
    """Exchanges whose client is the test's own."""

    url = "http://cp.example/prefix"

    def start(self, result: Any, **kwargs: Any) -> Deferred[Answer]:
        """Begin an exchange that gets this result."""
        self.clock = Clock()
        self.http = FakeHTTP(result)
        settings = Settings(ServerURL.parse(self.url), KEY)
        http: Any = self.http
        exchange = Exchange(self.clock, http, settings, self.clock.seconds)
        return Deferred.fromCoroutine(exchange.request("GET", "/api/v1/x", **kwargs))

    def error(self, result: Any, kind: type[CommandError]) -> str:
        """What an exchange with this result fails with."""
        failure = self.failureResultOf(self.start(result), kind)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertNotIn(KEY, str(failure.value))
        return str(failure.value)


class FailureTests(ExchangeTestCase):
    """No answer, or none that can be used."""

    def test_noConnection(self) -> None:
        """Each way of not reaching the server says what to check."""
        for error, parts in (
            (NothingListens(), ("nothing listens at", "is the server running", "--url")),
            (DNSLookupError("x"), ("has no address (DNS)", "HELIX_URL")),
            (ConnectTimeout(), ("does not accept the connection (timed out)",)),
            (ConnectError(string="No route to host"), ("cannot connect to", "No route to host")),
            (ResponseNeverReceived([Failure(ConnectionDone())]), ("closed the connection before",)),
            (ResponseNeverReceived([Failure(ConnectionLost())]), ("closed the connection before",)),
            (ResponseFailed([Failure(ParseError("x", b"SSH-2.0"))]), ("does not speak HTTP",)),
            (
                ResponseNeverReceived(
                    [Failure(TLSError([("SSL routines", "", "certificate verify failed")]))]
                ),
                ("is not trusted (certificate verify failed)", "SSL_CERT_FILE"),
            ),
            (
                ResponseNeverReceived(
                    [Failure(TLSError([("SSL routines", "", "wrong version number")]))]
                ),
                ("TLS with", "does it speak https?"),
            ),
            (RuntimeError("odd\nthing"), ("no answer from", "odd thing")),
        ):
            text = self.error(error, Unreachable)
            for part in (self.url, *parts):
                self.assertIn(part, text)
            self.assertNotIn("\n", text)

    def test_deadlineBeforeTheAnswer(self) -> None:
        """A server that says nothing is given up when the time is up."""
        running = self.start(None, deadline=5)
        self.clock.advance(4.9)
        self.assertNoResult(running)
        self.clock.advance(0.1)
        text = str(self.failureResultOf(running, TimedOut).value)
        self.assertIn("no whole answer from http://cp.example/prefix within 5 s", text)
        self.assertIn("the server, or the service that it asked", text)

    def test_deadlineWithinTheBody(self) -> None:
        """A body that drips is bounded by the same deadline; its connection is closed."""
        response = FakeResponse()
        running = self.start(response, deadline=5)
        for _ in range(4):
            self.clock.advance(1)
            response.protocol.dataReceived(b"x")
        self.assertNoResult(running)
        self.clock.advance(1)
        self.failureResultOf(running, TimedOut)
        self.assertTrue(response.transport.disconnecting)
        response.protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancelClosesTheConnection(self) -> None:
        """An interrupted exchange leaves neither connection nor timer."""
        response = FakeResponse()
        running = self.start(response)
        running.cancel()
        self.failureResultOf(running, CancelledError)
        self.assertTrue(response.transport.disconnecting)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancelledIsCancelled(self) -> None:
        """Whatever the client calls a request that was given up, the server did not fail."""
        for error in (
            ResponseNeverReceived([Failure(CancelledError())]),
            ConnectingCancelledError(IPv4Address("TCP", "127.0.0.1", 80)),
            RequestTransmissionFailed([Failure(CancelledError())]),
        ):
            self.clock = Clock()
            http: Any = FakeHTTP(None, lambda deferred, error=error: deferred.errback(error))
            settings = Settings(ServerURL.parse(self.url), KEY)
            exchange = Exchange(self.clock, http, settings, self.clock.seconds)
            for work in (exchange.request("GET", "/x"), exchange.open("/x")):
                running: Deferred[Any] = Deferred.fromCoroutine(work)
                running.cancel()
                self.failureResultOf(running, CancelledError)
                self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_tooLarge(self) -> None:
        """The limit is on the bytes that come, at any split; the connection is closed."""
        for chunk in (1, 7, 20):
            response = FakeResponse()
            running = self.start(response, limit=10)
            response.protocol.dataReceived(b"x" * 10)
            self.assertNoResult(running)
            response.protocol.dataReceived(b"x" * chunk)
            self.failureResultOf(running, BadAnswer)
            self.assertTrue(response.transport.disconnecting)

    def test_exactlyTheLimit(self) -> None:
        """An answer as large as the limit is taken."""
        response = FakeResponse()
        running = self.start(response, limit=10)
        response.protocol.dataReceived(b"x" * 10)
        response.protocol.connectionLost(Failure(ResponseDone()))
        self.assertEqual(self.successResultOf(running).body, b"x" * 10)

    def test_cutAnswerIsNeverWhole(self) -> None:
        """A body that breaks off, or does not say where it ends, is an error."""
        for reason, kind in (
            (ResponseFailed([Failure(ConnectionLost())]), Unreachable),
            (PotentialDataLoss(), BadAnswer),
        ):
            response = FakeResponse()
            running = self.start(response)
            response.protocol.dataReceived(b"{}")
            response.protocol.connectionLost(Failure(reason))
            self.failureResultOf(running, kind)

    def test_longErrorBodyIsNotWaitedFor(self) -> None:
        """Of an error's body a bounded part is read, and the status still counts."""
        response = FakeResponse(500, "text/plain")
        running = self.start(response)
        response.protocol.dataReceived(b"no\n" * MAX_PROBLEM)
        error = self.failureResultOf(running, Refused).value
        self.assertTrue(error.short.startswith("500 - no no no"), error.short)
        self.assertLess(len(str(error)), 600)
        self.assertTrue(response.transport.disconnecting)


class RequestTests(ExchangeTestCase):
    """What is sent."""

    def test_credentialInTheHeaderOnly(self) -> None:
        """The key stands in Authorization and nowhere else; redirects are off."""
        self.start(None, query=[("a", "b c")])
        self.assertEqual(str(self.http.url), "http://cp.example/prefix/api/v1/x?a=b%20c")
        headers = self.http.kwargs["headers"]
        self.assertEqual(headers.getRawHeaders("authorization"), [f"Bearer {KEY}"])
        self.assertIs(self.http.kwargs["allow_redirects"], False)

    def test_everyKindOfHost(self) -> None:
        """An IPv6 address reaches the agent as it is; treq takes it for no domain name."""
        for given, sent in (
            ("http://[::1]:8080", b"http://[::1]:8080/x?a=b%20c"),
            ("https://[2001:db8::7]/prefix", b"https://[2001:db8::7]/prefix/x?a=b%20c"),
            ("http://192.0.2.1:81", b"http://192.0.2.1:81/x?a=b%20c"),
            ("https://b\u00fccher.example", b"https://xn--bcher-kva.example/x?a=b%20c"),
        ):
            asked: list[bytes] = []
            http = HTTPClient(RecordingAgent(asked))
            settings = Settings(ServerURL.parse(given), KEY)
            clock = Clock()
            exchange = Exchange(clock, http, settings, clock.seconds)
            made = Deferred.fromCoroutine(exchange.request("GET", "/x", query=[("a", "b c")]))
            self.failureResultOf(made, Unreachable)
            self.assertEqual(asked, [sent])


@implementer(IAgent)
class RecordingAgent:
    """Notes the URLs that it is asked for, and reaches none of them."""

    def __init__(self, asked: list[bytes]) -> None:
        self.asked = asked

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """Note the URL."""
        self.asked.append(uri)
        return fail(NothingListens())


class AnswerTests(CommandTestCase):
    """Errors that the server answers with."""

    def fails(self, answer: object, kind: type[CommandError]) -> CommandError:
        """What C{version} fails with when the API answers so."""
        self.api.on("GET", "/version", answer)
        with self.assertRaises(kind) as raised:
            self.settle(Deferred.fromCoroutine(self.client.version()))
        assert isinstance(raised.exception, CommandError)
        return raised.exception

    def test_problem(self) -> None:
        """Problem+JSON: status, detail, word, and when to try again."""
        answer = problem(503, "too many waiting", "busy", **{"retry-after": "7"})
        error = self.fails(answer, Refused)
        assert isinstance(error, Refused)
        self.assertEqual(
            (error.status, error.code, error.retryAfter, error.short, str(error)),
            (
                503,
                "busy",
                7.0,
                "503 - too many waiting",
                "503 - too many waiting; try again in 7 s",
            ),
        )

    def test_odderErrors(self) -> None:
        """Plain text, nothing, broken JSON, a list, a proxy's page."""
        for given, kind, text in (
            (Given(b"no luck\n", 500, "text/plain"), Refused, "500 - no luck"),
            (Given(b"", 502, None), Refused, "502 - Bad Gateway"),
            (Given(b"{", 500), Refused, "500 - Internal Server Error"),
            (Given([1], 500), Refused, "500 - Internal Server Error"),
            (Given({"title": "T"}, 500), Refused, "500 - T"),
            (Given({"detail": 5}, 599), Refused, "599 - 5"),
            (Given(b"{", 599), Refused, "599 - unknown error"),
            (Given(b"[" * 60_000, 500), Refused, "500 - Internal Server Error"),
            (
                Given(b"<html>", 502, "text/html; charset=x"),
                BadAnswer,
                "502 - a web page answered in the API's place; "
                "is http://api.example:8080 the server's address?",
            ),
            (
                Given(b"<html>", 200, "text/html"),
                BadAnswer,
                "a web page answered in the API's place; "
                "is http://api.example:8080 the server's address?",
            ),
        ):
            self.assertEqual(str(self.fails(given, kind)), text)

    def test_redirectIsNotFollowed(self) -> None:
        """A redirect is an error that shows where to, without what a URL may hide."""
        answer = Given(b"", 302, None, {"location": "https://u:p@login.example/in?token=secret"})
        text = str(self.fails(answer, BadAnswer))
        self.assertIn("302, a redirect to https://login.example/in; it is not followed", text)
        self.assertNotIn("secret", text)
        self.assertEqual(self.api.paths(), ["GET /version"])

    def test_unauthorised(self) -> None:
        """401 says how to give a key, or that the one given is no good."""
        url = ServerURL.parse("http://api.example:8080")
        for settings, part in (
            (Settings(url), "; no key was sent: set HELIX_API_KEY or give --token-file"),
            (Settings(url, "wrong"), "; check HELIX_API_KEY, --token-file or the profile"),
            (Settings(url, None, "the key in X is for Y"), "; the key in X is for Y: set HELIX_"),
        ):
            self.client = self.clientWith(settings)
            self.assertIn(part, str(self.fails(Given({}), Refused)))

    def test_hang(self) -> None:
        """Every operation has a deadline."""
        self.assertIn("within 30 s", str(self.fails(HANG, TimedOut)))


class OpenTests(ExchangeTestCase):
    """An answer whose body is still to come."""

    def test_opened(self) -> None:
        """It is there with its head."""
        http: Any = FakeHTTP(FakeResponse(contentType="text/event-stream; charset=utf-8"))
        settings = Settings(ServerURL.parse(self.url), KEY)
        clock = Clock()
        exchange = Exchange(clock, http, settings, clock.seconds)
        opened = self.successResultOf(Deferred.fromCoroutine(exchange.open("/x")))
        self.assertEqual((opened.status, opened.contentType), (200, "text/event-stream"))
        opened.pieces.dataReceived(b"a")
        piece = Deferred.fromCoroutine(opened.pieces.next(60))
        self.assertEqual(self.successResultOf(piece), b"a")
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_refused(self) -> None:
        """An error is told with the fields that are wrong."""
        response = FakeResponse(400, "application/problem+json")
        http: Any = FakeHTTP(response)
        settings = Settings(ServerURL.parse(self.url), KEY)
        exchange = Exchange(Clock(), http, settings, lambda: 0.0)
        opening = Deferred.fromCoroutine(exchange.open("/x"))
        response.protocol.dataReceived(b'{"detail":"no","errors":{"repo.url":["is required"]}}')
        response.protocol.connectionLost(Failure(ResponseDone()))
        error = self.failureResultOf(opening, Refused).value
        self.assertEqual(error.fields, ("repo.url",))
        self.assertEqual(str(error), "400 - no (repo.url: is required)")
