"""Tests for L{helix_revdial.revdial.exchange}: asking, and what may come back."""

from __future__ import annotations

from typing import Any
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.exchange import (
    BODY_TIMEOUT,
    MAX_BODY,
    AnswerReader,
    CarrierURL,
    MalformedAnswer,
    UpgradeRefused,
    addressEndpoint,
    endpointFor,
)
from helix_revdial.revdial.upgrade import RawUpgradeEndpoint
from tests.revdial.wire import Recorder, WireEndpoint

URL = CarrierURL("cp.example", 80, False, "/api/v1/revdial")
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: revdial\r\nConnection: Upgrade\r\n\r\n"


class ExchangeCase(SynchronousTestCase):
    """One request, over a connection in memory."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.client = Recorder()

    def ask(self, **more: Any) -> None:
        """Send the request."""
        self.endpoint = WireEndpoint(Recorder)
        self.connected = RawUpgradeEndpoint(self.clock, self.endpoint, URL, **more).connect(
            Factory.forProtocol(lambda: self.client)
        )
        self.wire = self.endpoint.wires[0]
        self.wire.settle()

    def answer(self, data: bytes, size: int = 65536) -> None:
        """Let the server answer."""
        self.wire.right.write(data)
        self.wire.settle(size, self.clock)

    def failed(self, kind: type[Exception]) -> Any:
        """The error; nothing is left of the exchange."""
        failure: Failure = self.failureResultOf(self.connected, kind)
        self.assertFalse(self.wire.left.connected)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.client.heard, [])
        return failure.value


class RefusalTests(ExchangeCase):
    """Answers that are a no."""

    def test_theServersWordsArePassedOn(self) -> None:
        """Status, reason, fields and body of a refusal, at every split."""
        answer = (
            b"HTTP/1.1 409 Conflict\r\nContent-Type: application/problem+json\r\n"
            b"Retry-After: 30\r\nTransfer-Encoding: chunked\r\n\r\n"
            b'5\r\n{"a":\r\n3\r\n1}\n\r\n0\r\n\r\n'
        )
        for size in range(1, len(answer), 5):
            self.ask()
            self.answer(answer, size)
            refusal = self.failed(UpgradeRefused)
            self.assertEqual((refusal.status, refusal.reason), (409, "Conflict"))
            self.assertEqual(refusal.header(b"retry-after"), b"30")
            self.assertIsNone(refusal.header(b"location"))
            self.assertEqual(refusal.body, b'{"a":1}\n')
            self.assertEqual(str(refusal), "the server answered 409 Conflict")

    def test_redirectsAreNotFollowed(self) -> None:
        """F4: The credential goes to the server it was meant for, and nowhere else."""
        for status in (301, 302, 303, 307, 308):
            self.ask()
            self.answer(
                b"HTTP/1.1 %d Moved\r\nLocation: http://evil.example/\r\nContent-Length: 0\r\n\r\n"
                % status
            )
            self.assertEqual(self.failed(UpgradeRefused).status, status)
            self.assertEqual(len(self.endpoint.wires), 1)

    def test_aLongBodyIsCut(self) -> None:
        """No more than its limit is kept, however much is announced."""
        self.ask()
        self.answer(b"HTTP/1.1 500 Oops\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 100_000)
        self.assertEqual(self.failed(UpgradeRefused).body, b"x" * MAX_BODY)

    def test_aSlowBodyIsNotWaitedFor(self) -> None:
        """What came by then is kept."""
        self.ask()
        self.answer(b"HTTP/1.1 503 Busy\r\nContent-Length: 100\r\n\r\nsome")
        self.assertNoResult(self.connected)
        self.clock.advance(BODY_TIMEOUT)
        self.assertEqual(self.failed(UpgradeRefused).body, b"some")

    def test_aBodyThatEndsWithTheConnection(self) -> None:
        """Without a length the end of the connection ends it; so does a cut."""
        for head in (b"", b"Content-Length: 100\r\n"):
            self.ask()
            self.answer(b"HTTP/1.1 401 Unauthorized\r\n" + head + b"\r\nno")
            self.wire.right.loseConnection()
            self.wire.settle(clock=self.clock)
            self.assertEqual(self.failed(UpgradeRefused).body, b"no")

    def test_anotherProtocolIsNotTaken(self) -> None:
        """A 101 to something else is wrong, not a refusal."""
        self.ask()
        self.answer(SWITCH.replace(b"revdial", b"h2c"))
        self.failed(MalformedAnswer)


def _readWhole(data: bytes, sizes: list[int], ended: bool) -> object:
    """What the reader makes of bytes that come in pieces."""
    reader = AnswerReader(b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: revdial\r\n\r\n")
    rest = data
    try:
        for size in [*sizes, len(data)]:
            piece, rest = rest[:size], rest[size:]
            if piece and reader.answer is None:
                reader.feed(piece)
            elif piece:
                rest = piece + rest
                break
        if ended and reader.answer is None:
            reader.feed(b"")
    except MalformedAnswer:
        return "malformed"
    found = reader.answer
    if found is None:
        return None
    return found.status, found.reason, found.headers, found.rest + rest, found.direct


class DifferentialTests(SynchronousTestCase):
    """Heads that are read without h11 are read as h11 reads them."""

    lines = st.sampled_from(
        [
            b"Upgrade: revdial",
            b"Connection: Upgrade",
            b"connection:upgrade, keep-alive",
            b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
            b"Revdial-Features: raw, eof",
            b"X: a:b  c",
            b"X:  two blanks",
            b"X: at the end ",
            b"X:",
            b"X: ",
            b" folded",
            b"No colon",
            b"Na me: x",
            b"Content-Length: 5",
            b"Transfer-Encoding: chunked",
            b"X: \xe4",
            b"X: a\0b",
            b"X: " + b"y" * 300,
        ]
    )

    @given(
        first=st.sampled_from(
            [
                b"HTTP/1.1 101 Switching Protocols",
                b"HTTP/1.1 101 ",
                b"HTTP/1.1 101",
                b"HTTP/1.0 101 Switching Protocols",
                b"HTTP/1.1 1010 Odd",
                b"HTTP/1.1 101 \xe4",
                b"HTTP/1.1 200 OK",
                b"HTTP/1.1 100 Continue",
            ]
        ),
        fields=st.lists(lines, max_size=6),
        rest=st.binary(max_size=6),
        sizes=st.lists(st.integers(1, 40), max_size=8),
        ended=st.booleans(),
        end=st.sampled_from([b"\r\n\r\n", b"\r\n", b"\n\n", b""]),
    )
    @settings(deadline=None, max_examples=400)
    def test_asH11(
        self,
        first: bytes,
        fields: list[bytes],
        rest: bytes,
        sizes: list[int],
        ended: bool,
        end: bytes,
    ) -> None:
        """The same answer, the same bytes after it, at any split."""
        data = b"\r\n".join([first, *fields]) + end + rest
        quick = _readWhole(data, sizes, ended)
        with mock.patch.object(AnswerReader, "_readSwitch", return_value=False):
            whole = _readWhole(data, sizes, ended)
        self.assertEqual(quick, whole)


class MalformedTests(ExchangeCase):
    """What is not an answer."""

    def test_garbageIsTold(self) -> None:
        """F10: Another protocol's bytes, a head without end, 1xx without end."""
        for garbage in (
            b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n\r\n",
            b"\x15\x03\x01\x00\x02\x02\x46" * 3 + b"\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX: " + b"y" * 20_000,
            b"HTTP/1.1 100 Continue\r\n\r\n" * 10,
        ):
            self.ask()
            self.answer(garbage)
            self.failed(MalformedAnswer)

    def test_informationalAnswersArePassedOver(self) -> None:
        """A 100 or 103 before the answer means nothing."""
        self.ask()
        self.answer(b"HTTP/1.1 103 Early Hints\r\n\r\n" + SWITCH + b"hi")
        self.assertIs(self.successResultOf(self.connected), self.client)
        self.assertEqual(bytes(self.client.received), b"hi")

    def test_aServerThatSpeaksBeforeItIsAsked(self) -> None:
        """While the request waits for its target, the server has nothing to say."""
        self.ask(ready=Deferred())
        self.answer(SWITCH)
        self.failed(MalformedAnswer)

    @settings(deadline=None, max_examples=60)
    @given(st.binary(max_size=200), st.integers(1, 50))
    def test_noBytesRaise(self, noise: bytes, size: int) -> None:
        """F10: Whatever comes, the caller gets one answer."""
        self.setUp()
        self.ask()
        self.answer(b"HTTP/1.1 " + noise, size)
        self.wire.right.loseConnection()
        self.wire.settle(clock=self.clock)
        self.failureResultOf(self.connected)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class EndTests(ExchangeCase):
    """Exchanges that do not come to an answer."""

    def test_aConnectionClosedBeforeAnAnswer(self) -> None:
        """No answer is a lost connection, not a refusal."""
        for partial in (b"", b"HTTP/1.1 10"):
            self.ask()
            self.answer(partial)
            self.wire.right.loseConnection()
            self.wire.settle(clock=self.clock)
            self.failed(error.ConnectionLost)

    def test_noAnswerInTime(self) -> None:
        """A silent server is left after the limit."""
        self.ask(timeout=7.0)
        self.clock.advance(6.9)
        self.assertNoResult(self.connected)
        self.clock.advance(0.2)
        self.failed(error.TimeoutError)

    def test_noConnectionInTime(self) -> None:
        """The connection itself has the same limit."""

        class Never:
            cancelled = 0

            def connect(self, factory: Any) -> Deferred[Any]:
                def cancel(connecting: Deferred[Any]) -> None:
                    self.cancelled += 1

                return Deferred(cancel)

        never: Any = Never()
        connected = RawUpgradeEndpoint(self.clock, never, URL, timeout=7.0).connect(
            Factory.forProtocol(Recorder)
        )
        self.clock.advance(7.1)
        self.failureResultOf(connected, error.TimeoutError)
        self.assertEqual(never.cancelled, 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancellingDropsTheConnection(self) -> None:
        """C12: At any moment, nothing is left."""
        for ready in (None, Deferred[None]()):
            self.ask(ready=ready)
            self.connected.cancel()
            self.failed(CancelledError)
            if ready is not None:
                ready.callback(None)

    def test_aTargetThatFails(self) -> None:
        """The failure of C{ready} is connect's, and the socket is closed unused."""
        ready: Deferred[None] = Deferred()
        self.ask(ready=ready)
        ready.errback(Failure(error.ConnectionRefusedError()))
        self.failed(error.ConnectionRefusedError)
        self.assertEqual(bytes(self.wire.right.protocol.received), b"")

    def test_aConnectionLostWhileTheTargetIsAwaited(self) -> None:
        """It is told at once; the target's later success changes nothing."""
        ready: Deferred[None] = Deferred()
        self.ask(ready=ready)
        self.wire.right.loseConnection()
        self.wire.settle(clock=self.clock)
        self.failed(error.ConnectionLost)
        ready.callback(None)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_aFactoryThatWantsNoConnection(self) -> None:
        """A factory that builds nothing drops the connection."""

        class Unwilling(Factory):
            def buildProtocol(self, addr: Any) -> None:
                return None

        self.endpoint = WireEndpoint(Recorder)
        self.connected = RawUpgradeEndpoint(self.clock, self.endpoint, URL).connect(Unwilling())
        self.wire = self.endpoint.wires[0]
        self.answer(SWITCH)
        self.failed(error.NoProtocol)


class URLTests(SynchronousTestCase):
    """Where to, and how."""

    def test_hostHeader(self) -> None:
        """Default ports are left out, IPv6 is bracketed."""
        for host, port, secure, header in (
            ("cp.example", 80, False, b"cp.example"),
            ("cp.example", 443, True, b"cp.example"),
            ("cp.example", 443, False, b"cp.example:443"),
            ("::1", 8080, False, b"[::1]:8080"),
            ("fe80::1%eth0", 8080, False, b"[fe80::1]:8080"),
        ):
            self.assertEqual(CarrierURL(host, port, secure, "/").hostHeader(), header)

    def test_onlyWhatFitsInAHead(self) -> None:
        """Nothing that would break a request line, and no secrets in the error."""
        for host, port, path in (
            ("cp example", 80, "/"),
            ("cp.example\r\nX: y", 80, "/"),
            ("user@cp.example", 80, "/"),
            ("", 80, "/"),
            ("cp.example", 0, "/"),
            ("cp.example", 65536, "/"),
            ("cp.example", 80, "api"),
            ("cp.example", 80, "/a b"),
            ("cp.example", 80, "/a\r\nX: secret"),
            ("cp.example", 80, "/a#secret"),
            ("cp.example", 80, "/\N{LATIN SMALL LETTER E WITH ACUTE}"),
        ):
            caught = self.assertRaises(ValueError, CarrierURL, host, port, False, path)
            self.assertNotIn("secret", str(caught))


class AddressTests(SynchronousTestCase):
    """The endpoint for a server's name or address."""

    def test_aLiteralIsNotResolvedAtEachDial(self) -> None:
        """Only a name needs a resolver and its thread; an address is connected to at once."""
        reactor = MemoryReactorClock()
        for host, kind in (
            ("192.0.2.1", TCP4ClientEndpoint),
            ("2001:db8::1", TCP6ClientEndpoint),
            ("cp.example", HostnameEndpoint),
        ):
            self.assertIs(type(addressEndpoint(reactor, host, 80)), kind, host)
        for host in ("192.0.2.1", "2001:db8::1"):
            endpointFor(reactor, host, 80, False).connect(Factory.forProtocol(Protocol))
            self.assertEqual(reactor.tcpClients.pop()[:2], (host, 80))
