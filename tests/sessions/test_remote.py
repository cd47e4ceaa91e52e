"""A runner host's executor over an endpoint: breaks, refusals, slow readers."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionLost
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.sessions.executor import (
    AgentSpec,
    ExecutorRefused,
    ExecutorUnreachable,
    LaunchSpec,
    Prompt,
    Report,
    RepoSpec,
    RuntimeSpec,
)
from helix_revdial.sessions.remote import BUFFER, PATIENCE, REOPEN, SILENCE, RemoteExecutor

SPEC = LaunchSpec(
    "ses_1", "a prompt", AgentSpec("a", command=["a"]), RepoSpec("none"), RuntimeSpec("local")
)


class Host:
    """
    A host: keeps the connections that come, for the test to answer.

    @ivar refuses: Whether it refuses them.
    """

    def __init__(self) -> None:
        self.connections: list[tuple[Any, StringTransport]] = []
        self.refuses = False

    def connect(self, factory: Any) -> Deferred[Any]:
        if self.refuses:
            return fail(Refused("nobody there"))
        protocol = factory.buildProtocol(None)
        transport = StringTransport()
        protocol.makeConnection(transport)
        self.connections.append((protocol, transport))
        return succeed(protocol)

    def asked(self, index: int = -1) -> bytes:
        """The request of a connection."""
        found: bytes = self.connections[index][1].value()
        return found

    def say(self, data: bytes) -> None:
        """More of an answer."""
        self.connections[-1][0].dataReceived(data)

    def answer(self, status: int, body: bytes = b"", headers: bytes = b"") -> None:
        """A whole answer."""
        self.say(
            b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n%s\r\n%s" % (status, len(body), headers, body)
        )

    def stream(self) -> None:
        """The head of a stream, which ends with the connection."""
        self.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")

    def chunk(self, data: bytes) -> None:
        self.say(b"%x\r\n%s\r\n" % (len(data), data))

    def lose(self) -> None:
        """The connection breaks."""
        self.connections[-1][0].connectionLost(Failure(ConnectionLost()))


def line(seq: int, kind: str = "log", **more: Any) -> bytes:
    return msgspec.json.encode(Report(seq, 1.0, kind, **more)) + b"\n"  # type: ignore[arg-type]


class RemoteTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.host = Host()
        self.executor = RemoteExecutor(self.reactor, self.host)  # type: ignore[arg-type]
        self.found: list[Any] = []

    def call(self, coroutine: Any) -> Deferred[Any]:
        done = Deferred.fromCoroutine(coroutine)
        self.addCleanup(self.cancel, done)
        return done

    @staticmethod
    def cancel(done: Deferred[Any]) -> None:
        """Leave nothing that waits behind."""
        done.addErrback(lambda failure: None)
        done.cancel()

    def read(self, reports: Any, most: int = 1000) -> Deferred[None]:
        """Take reports as they come."""

        async def take() -> None:
            async for report in reports:
                self.found.append(report.seq)
                if len(self.found) == most:
                    return

        return self.call(take())

    def test_everySession(self) -> None:
        """All that a host has is one list."""
        done = self.call(self.executor.sessions())
        self.assertTrue(self.host.asked().startswith(b"GET /v1/sessions HTTP/1.1\r\n"))
        self.host.answer(200, b'{"items":[{"session":"ses_1","state":"ended","lastSeq":4}]}')
        [found] = self.successResultOf(done)
        self.assertEqual((found.session, found.state, found.lastSeq), ("ses_1", "ended", 4))

    def test_acknowledge(self) -> None:
        """What is stored is said by asking for what follows; the answer is not waited for."""
        done = self.call(self.executor.acknowledge("ses_1", 4))
        self.assertIn(b"GET /v1/sessions/ses_1/reports?after=4 ", self.host.asked())
        self.host.stream()
        self.successResultOf(done)
        self.assertTrue(self.host.connections[-1][1].disconnecting)

    def test_launch(self) -> None:
        """A launch is one PUT of the specification, to the session's path."""
        done = self.call(self.executor.launch("ses_1", SPEC))
        head, _, body = self.host.asked().partition(b"\r\n\r\n")
        self.assertTrue(head.startswith(b"PUT /v1/sessions/ses_1 HTTP/1.1\r\n"), head)
        self.assertEqual(msgspec.json.decode(body, type=LaunchSpec), SPEC)
        self.host.answer(201, b'{"session":"ses_1","state":"provisioning","lastSeq":0}')
        self.assertIsNone(self.successResultOf(done))

    def test_failures(self) -> None:
        """A refusal is final; what the host cannot do now, or does not answer, may be tried."""
        for status, kind in (
            (400, ExecutorRefused),
            (409, ExecutorRefused),
            (500, ExecutorUnreachable),
            (503, ExecutorUnreachable),
        ):
            done = self.call(self.executor.launch("ses_1", SPEC))
            self.host.answer(status, b'{"title":"T","detail":"In words.","status":1,"type":"x"}')
            self.assertIn("In words.", str(self.failureResultOf(done, kind).value))
        done = self.call(self.executor.host())
        self.host.answer(200, b"no json")
        self.failureResultOf(done, ExecutorUnreachable)
        done = self.call(self.executor.host())
        self.host.lose()
        self.failureResultOf(done, ExecutorUnreachable)
        done = self.call(self.executor.host())
        self.host.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        self.host.lose()
        self.failureResultOf(done, ExecutorUnreachable)
        done = self.call(self.executor.host())
        self.reactor.advance(31)
        self.failureResultOf(done, ExecutorUnreachable)
        self.host.refuses = True
        done = self.call(self.executor.host())
        self.assertIn("nobody there", str(self.failureResultOf(done, ExecutorUnreachable).value))

    def test_describe(self) -> None:
        """A session that the host does not know is C{None}; a path that is not there is not."""
        done = self.call(self.executor.describe("ses_1"))
        self.host.answer(404, b'{"title":"T","code":"no-session"}')
        self.assertIsNone(self.successResultOf(done))
        done = self.call(self.executor.describe("ses_1"))
        self.host.answer(404, b"<html>")
        self.failureResultOf(done, ExecutorRefused)

    def test_names(self) -> None:
        """No session's name leads to another path."""
        self.call(self.executor.forget("../host?x")).addErrback(lambda _: None)
        self.assertTrue(self.host.asked().startswith(b"DELETE /v1/sessions/..%2Fhost%3Fx HTTP"))

    def test_reports(self) -> None:
        """Reports come as they are sent, split anywhere; the last one ends it."""
        done = self.read(self.executor.reports("ses_1", 4))
        self.assertIn(b"/reports?after=4 ", self.host.asked())
        self.host.stream()
        data = line(5) + b"\n" + line(6, message="ü") + line(7, "exit", exitCode=0)
        for index in range(len(data)):
            self.host.chunk(data[index : index + 1])
        self.successResultOf(done)
        self.assertEqual(self.found, [5, 6, 7])
        self.assertTrue(self.host.connections[0][1].disconnecting)

    def test_broken(self) -> None:
        """A stream that breaks is opened again where it was: nothing lost, nothing twice."""
        done = self.read(self.executor.reports("ses_1", 0))
        self.host.stream()
        self.host.chunk(line(1) + line(2) + line(3)[:10])
        self.host.lose()
        self.reactor.advance(0.2)
        self.assertIn(b"/reports?after=2 ", self.host.asked())
        self.host.stream()
        self.host.chunk(line(3))
        self.reactor.pump([SILENCE / 2] * 3)
        self.reactor.advance(0.2)
        self.assertIn(b"/reports?after=3 ", self.host.asked(), "silence is a break too")
        self.host.stream()
        self.host.chunk(line(4, "exit"))
        self.successResultOf(done)
        self.assertEqual(self.found, [1, 2, 3, 4])

    def test_gap(self) -> None:
        """A report that is left out is asked for again."""
        done = self.read(self.executor.reports("ses_1", 0))
        self.host.stream()
        self.host.chunk(line(1) + line(3))
        self.reactor.advance(0.2)
        self.assertIn(b"/reports?after=1 ", self.host.asked())
        self.assertEqual(self.found, [1])
        self.assertNoResult(done)

    def test_patience(self) -> None:
        """A host that stays away is told to be after a while, not at once."""
        self.host.refuses = True
        done = self.read(self.executor.reports("ses_1", 0))
        self.reactor.pump([1.0] * int(PATIENCE - 5))
        self.assertNoResult(done)
        self.reactor.pump([1.0] * 15)
        self.failureResultOf(done, ExecutorUnreachable)

    def test_refusedReports(self) -> None:
        """Reports that are no longer kept, or of no session, are not asked for for ever."""
        for status in (404, 410):
            done = self.read(self.executor.reports("ses_1", 0))
            self.host.answer(status, b'{"detail":"Gone."}')
            self.failureResultOf(done, ExecutorRefused)

    def test_reopened(self) -> None:
        """After so many bytes the stream is opened anew, which says what is here for good."""
        done = self.read(self.executor.reports("ses_1", 0))
        self.host.stream()
        text = "x" * 60_000
        seq = 0
        while len(self.host.connections) == 1:
            seq += 1
            self.host.chunk(line(seq, message=text))
            self.assertLess(seq * 60_000, REOPEN + 200_000)
        self.assertIn(b"/reports?after=%d " % seq, self.host.asked())
        self.assertNoResult(done)

    def test_slowReader(self) -> None:
        """A reader that takes its time holds the host back, at a bounded buffer."""
        waiting: list[Deferred[None]] = []

        async def take() -> None:
            async for report in self.executor.reports("ses_1", 0):
                self.found.append(report.seq)
                waiting.append(Deferred())
                await waiting[-1]

        done = self.call(take())
        self.host.stream()
        transport = self.host.connections[-1][1]
        for seq in range(1, 100):
            self.host.chunk(line(seq, message="x" * 30_000))
            if transport.producerState == "paused":
                break
        self.assertEqual(transport.producerState, "paused")
        self.assertLess(seq * 30_000, BUFFER + 100_000)
        for _ in range(seq):
            waiting[-1].callback(None)
        self.assertEqual(transport.producerState, "producing")
        self.assertEqual(self.found, list(range(1, seq + 1)))
        self.assertNoResult(done)

    def test_patch(self) -> None:
        """A patch comes in pieces; one that is not what was sent is no patch."""
        for digest, well in ((hashlib.sha256(b"diff").hexdigest(), True), ("0" * 64, False)):
            pieces: list[bytes] = []

            async def take(pieces: list[bytes] = pieces) -> None:
                async for piece in self.executor.patch("ses_1"):
                    pieces.append(piece)

            done = self.call(take())
            self.host.answer(200, b"diff", b"Digest: sha-256=%s\r\n" % digest.encode())
            if well:
                self.successResultOf(done)
            else:
                self.failureResultOf(done, ExecutorUnreachable)
            self.assertEqual(b"".join(pieces), b"diff")

    def test_control(self) -> None:
        """A verb says its deadline, and its prompt where it has one."""
        done = self.call(self.executor.control("ses_1", "stop", deadline=3.0))
        self.assertIn(b"POST /v1/sessions/ses_1/stop ", self.host.asked())
        self.assertTrue(self.host.asked().endswith(b'{"deadline":3.0}'))
        self.host.answer(202)
        self.successResultOf(done)
        done = self.call(
            self.executor.control("ses_1", "prompt", deadline=3.0, prompt=Prompt(2, "more"))
        )
        self.assertTrue(self.host.asked().endswith(b'"prompt":"more","number":2}'))
        self.host.answer(409, b'{"detail":"No."}')
        self.failureResultOf(done, ExecutorRefused)
