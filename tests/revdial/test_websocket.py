"""Tests for L{helix_revdial.revdial.websocket}: the handshake, and what Autobahn is told."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import txaio
from autobahn.websocket import protocol as autobahnProtocol
from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial import websocket
from helix_revdial.revdial.exchange import MalformedAnswer, UpgradeRefused
from helix_revdial.revdial.websocket import WebSocketEndpoint, requireNVX, webSocketServer
from tests.revdial.pairs import REQUEST, URL, PairCase, acceptOf, answerTo, frame, same, serverHead
from tests.revdial.wire import Recorder, Wire, WireEndpoint


class HandshakeTests(PairCase):
    """Requests and answers that are not as they should be."""

    def test_theRequestSaysWhoWeAre(self) -> None:
        """Path, host, agent and the caller's fields; neither compression nor subprotocol."""
        self.pair(headers=[(b"Authorization", b"Bearer T"), (b"X-A", b"1"), (b"X-A", b"2")])
        request = self.wire.right.protocol.head
        self.assertTrue(request.startswith(b"GET /api/v1/revdial?runnerid=wolf-1 HTTP/1.1\r\n"))
        self.assertIn(b"\r\nHost: cp.example:8080\r\n", request)
        self.assertIn(b"\r\nUser-Agent: helix-revdial/", request)
        self.assertIn(b"\r\nAuthorization: Bearer T\r\n", request)
        self.assertIn(b"\r\nX-A: 1, 2\r\n", request)
        self.assertNotIn(b"Extensions", request)
        self.assertNotIn(b"Protocol", request)

    def test_headersCannotBeInjected(self) -> None:
        """A value with a line break is refused; the error does not repeat it."""
        for header in (
            (b"Authorization", b"Bearer secret\r\nX: y"),
            (b"Authorization", b"Bearer secret\n"),
            (b"Authorization", b"Bearer secret\0"),
            (b"Authorization", b"Bearer s\xe9cret"),
            (b"X:secret", b"y"),
            (b"X secret", b"y"),
            (b"Host", b"secret"),
            (b"Sec-WebSocket-Key", b"secret"),
        ):
            caught = self.assertRaises(
                ValueError, WebSocketEndpoint, self.clock, None, URL, [header], eof=True
            )
            self.assertNotIn("Bearer", str(caught))
        self.assertRaises(
            ValueError,
            webSocketServer,
            Recorder(),
            eof=True,
            clock=self.clock,
            responseHeaders=[(b"Revdial-Features", b"raw\r\n\r\nHTTP/1.1 200 OK")],
        )

    def test_compressionIsNotAccepted(self) -> None:
        """F11: A client that offers permessage-deflate gets a 101 without it."""
        server = Recorder()
        wire = Wire(Recorder(), serverHead(server, self.clock)).connect()
        wire.left.write(REQUEST[:-2] + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n")
        wire.settle()
        self.assertNotIn(b"Extensions", wire.left.protocol.received)
        self.assertEqual(server.heard, ["made"])

    def test_aBadRequestIsTold(self) -> None:
        """A handshake that fails reaches C{onFailure}, never the protocol."""
        for bad in (
            REQUEST.replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"short"),
            REQUEST.replace(b"Version: 13", b"Version: 8"),
            REQUEST.replace(b"Host: cp.example\r\n", b""),
        ):
            server = Recorder()
            failures: list[Failure] = []
            wire = Wire(
                Recorder(), serverHead(server, self.clock, onFailure=failures.append)
            ).connect()
            wire.left.write(bad)
            wire.settle()
            self.assertTrue(wire.left.protocol.received.startswith(b"HTTP/1.1 400 "))
            self.assertEqual(server.heard, [])
            self.assertEqual(len(failures), 1)
            self.assertTrue(failures[0].check(error.ConnectionLost))
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_aHeadThatIsNeverReplayedIsTold(self) -> None:
        """The opening has a limit, in time and in size."""
        for late in (True, False):
            server = Recorder()
            failures: list[Failure] = []
            protocol = webSocketServer(
                server, eof=False, clock=self.clock, openTimeout=3.0, onFailure=failures.append
            )
            wire = Wire(Recorder(), protocol).connect()
            wire.left.write(b"GET / HTTP/1.1\r\nX: " + bytes(10 if late else 70_000))
            wire.settle()
            self.clock.advance(3.0)
            self.assertEqual(len(failures), 1)
            self.assertEqual(self.clock.getDelayedCalls(), [])
            self.assertFalse(wire.right.connected)

    def test_aLossDuringTheHandshakeIsTold(self) -> None:
        """The connection may end before the head is whole."""
        server = Recorder()
        failures: list[Failure] = []
        protocol = webSocketServer(server, eof=False, clock=self.clock, onFailure=failures.append)
        wire = Wire(Recorder(), protocol).connect()
        wire.left.loseConnection()
        wire.settle()
        self.assertEqual(server.heard, [])
        self.assertEqual(len(failures), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def answered(self, answer: bytes) -> Failure:
        """Our client's failure, for a server that answers C{answer}."""
        endpoint = WireEndpoint(Recorder)
        connected = WebSocketEndpoint(self.clock, endpoint, URL, eof=True).connect(
            Factory.forProtocol(Recorder)
        )
        wire = endpoint.wires[0]
        accept = acceptOf(answerTo(bytes(wire.left.out)))
        wire.right.write(answer.replace(b"ACCEPT", accept))
        wire.settle(clock=self.clock)
        failure: Failure = self.failureResultOf(connected)
        self.assertFalse(wire.left.connected)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        return failure

    def test_aWrongAcceptIsRefused(self) -> None:
        """A 101 has to prove that it read our key, and switch to what we asked for."""
        right = (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: ACCEPT\r\n"
        )
        for wrong in (
            right.replace(b"ACCEPT", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") + b"\r\n",
            right.replace(b"Sec-WebSocket-Accept: ACCEPT\r\n", b"") + b"\r\n",
            right.replace(b"Upgrade: websocket", b"Upgrade: revdial") + b"\r\n",
            right + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
            right + b"Sec-WebSocket-Protocol: chat\r\n\r\n",
            right + b"Sec-WebSocket-Protocol: \xff\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        ):
            self.answered(wrong).trap(MalformedAnswer)

    def test_aRefusalIsTold(self) -> None:
        """Any other status is the server's word; redirects are not followed (F4)."""
        for status in (301, 401, 404, 426, 500, 200):
            failure = self.answered(
                b"HTTP/1.1 %d Because\r\nLocation: http://evil.example/\r\n"
                b"Content-Length: 4\r\n\r\nbody" % status
            )
            failure.trap(UpgradeRefused)
            refusal: Any = failure.value
            self.assertEqual((refusal.status, refusal.body), (status, b"body"))

    def test_itWaitsUntilItMayAsk(self) -> None:
        """C{ready} holds the request back, not the connection."""
        ready: Deferred[None] = Deferred()
        endpoint = WireEndpoint(lambda: serverHead(Recorder(), self.clock))
        connected = WebSocketEndpoint(self.clock, endpoint, URL, eof=False, ready=ready).connect(
            Factory.forProtocol(Recorder)
        )
        wire = endpoint.wires[0]
        self.clock.advance(3600)
        self.assertEqual(bytes(wire.left.out), b"")
        ready.callback(None)
        wire.settle(clock=self.clock)
        self.assertIsNotNone(self.successResultOf(connected))
        wire.left.abortConnection()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class AutobahnTests(SynchronousTestCase):
    """What is set in Autobahn, in one place."""

    def test_nothingOfTheHandshakeIsKept(self) -> None:
        """F1: A WebSocket that is open holds neither its request nor the token in it."""
        clock, server = Clock(), Recorder()
        endpoint = WireEndpoint(lambda: serverHead(server, clock))
        headers = [(b"Authorization", b"Bearer very-secret")]
        WebSocketEndpoint(clock, endpoint, URL, headers, eof=False).connect(
            Factory.forProtocol(Recorder)
        )
        wire = endpoint.wires[0]
        wire.settle(clock=clock)
        carrier: Any = server.transport
        self.assertNotIn("very-secret", repr(vars(carrier._frames)))
        wire.left.abortConnection()

    def test_masksComeFromTheOperatingSystem(self) -> None:
        """RFC 6455 section 5.3: strong randomness, whatever seeds the random module."""
        self.assertIsInstance(vars(autobahnProtocol)["random"], random.SystemRandom)
        keys = []
        for _ in range(2):
            random.seed(1)
            endpoint = WireEndpoint(lambda: serverHead(Recorder(), Clock()))
            client = Recorder()
            connected = WebSocketEndpoint(Clock(), endpoint, URL, eof=True).connect(
                Factory.forProtocol(partial(same, client))
            )
            wire = endpoint.wires[0]
            wire.settle()
            self.successResultOf(connected)
            client.wire.write(bytes(4))
            keys.append(bytes(wire.left.out[2:6]))
        self.assertNotEqual(keys[0], keys[1])

    def test_nvxIsRequired(self) -> None:
        """Without native masking nothing starts, and the error says what to do."""
        requireNVX()
        self.patch(websocket, "USES_NVX", False)
        caught = self.assertRaises(RuntimeError, requireNVX)
        self.assertIn("AUTOBAHN_USE_NVX", str(caught))
        self.assertRaises(RuntimeError, webSocketServer, None, eof=True, clock=Clock())

    def test_noReactorIsNeeded(self) -> None:
        """None of Autobahn's timers runs: its loop is never asked for."""
        self.patch(vars(txaio)["config"], "loop", object())
        clock = Clock()
        server = Recorder()
        wire = Wire(Recorder(), serverHead(server, clock)).connect()
        wire.left.write(REQUEST + frame(2, b"x") + frame(8))
        wire.settle(clock=clock)
        self.assertEqual(server.heard, ["made", "data", "lost"])
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_credentialsAreNotLogged(self) -> None:
        """F1: Autobahn's debug messages, which hold whole heads, go nowhere."""
        from twisted.logger import globalLogPublisher

        events: list[Any] = []
        observer: Any = events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        setLevel = vars(txaio)["set_global_log_level"]
        setLevel("debug")
        self.addCleanup(setLevel, "info")
        wire = Wire(Recorder(), serverHead(Recorder(), Clock())).connect()
        wire.left.write(REQUEST[:-2] + b"Authorization: Bearer SECRET\r\n\r\n")
        wire.settle()
        self.assertNotIn("SECRET", repr(events))
