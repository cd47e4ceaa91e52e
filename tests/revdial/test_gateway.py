"""The caller's end of the stream gateway: what is asked, and what each answer means."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import txaio
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from helix_revdial.revdial.errors import (
    DialTimeout,
    NotAllowed,
    NotConnected,
    TargetRefused,
    TooManyPendingDials,
)
from helix_revdial.revdial.exchange import MalformedAnswer, NoConnection
from helix_revdial.revdial.gateway import GatewayEndpoint, GatewayRefused
from helix_revdial.revdial.server_url import ServerURL


class Wire(StringTransport):
    """A transport that can be dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def abortConnection(self) -> None:
        self.aborted = True


@implementer(IStreamClientEndpoint)
class Memory:
    """Connects to a L{Wire}, or never."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.protocol: Any = None
        self.never = False
        self.cancelled = False

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        def cancel(_: object) -> None:
            self.cancelled = True

        connecting: Deferred[Any] = Deferred(cancel)
        if not self.never:
            self.protocol = protocolFactory.buildProtocol(None)
            self.protocol.makeConnection(self.wire)
            connecting.callback(self.protocol)
        return connecting


class GatewayTests(SynchronousTestCase):
    """L{GatewayEndpoint}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.patch(txaio.config, "loop", self.clock)  # type: ignore[attr-defined]
        self.memory = Memory()

    def dial(self, runner: str = "wolf-1", target: str | None = "api") -> Deferred[Any]:
        endpoint = GatewayEndpoint(
            self.clock,
            ServerURL.parse("http://cp.example/base"),
            lambda: "hlx_secret",
            runner,
            target,
            timeout=7,
            endpoint=self.memory,
        )
        self.assertNotIn("hlx_secret", repr(endpoint))
        return endpoint.connect(Factory.forProtocol(Protocol))

    def asked(self) -> tuple[str, dict[str, str]]:
        """The request line and the fields, names in lower case."""
        line, *fields = self.memory.wire.value().decode().strip().split("\r\n")
        pairs = (field.split(": ", 1) for field in fields)
        return line, {name.lower(): value for name, value in pairs}

    def accept(self, features: str = "\r\nRevdial-Features: eof") -> None:
        """A 101."""
        key = self.asked()[1]["sec-websocket-key"]
        # What the handshake prescribes (RFC 6455, 4.2.2).
        digest = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
        accept = base64.b64encode(digest).decode()
        self.memory.protocol.dataReceived(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}{features}\r\n\r\n".encode()
        )

    def refuse(self, status: int, *fields: str, **problem: object) -> None:
        """An answer that is none."""
        body = json.dumps(problem)
        lines = [
            f"HTTP/1.1 {status} No",
            "Content-Type: application/problem+json",
            f"Content-Length: {len(body)}",
            *fields,
        ]
        self.memory.protocol.dataReceived("\r\n".join([*lines, "", body]).encode())

    def test_whatIsAsked(self) -> None:
        """The path below the server's own, the token in its field, C{eof}, the deadline."""
        dialling = self.dial()
        line, fields = self.asked()
        self.assertEqual(line, "GET /base/api/v1/runners/wolf-1/stream?target=api HTTP/1.1")
        self.assertEqual(fields["authorization"], "Bearer hlx_secret")
        self.assertEqual(fields["revdial-features"], "eof")
        self.assertEqual(fields["prefer"], "wait=7")
        self.assertEqual(fields["upgrade"].lower(), "websocket")
        self.assertNoResult(dialling)
        self.accept()
        protocol = self.successResultOf(dialling)
        self.assertTrue(protocol.transport.halfClose)

    def test_sessions(self) -> None:
        """A session's id has its own path; without a target there is no query."""
        self.dial("ses_01ARZ3NDEKTSV4RRFFQ69G5FAV", None)
        line = self.asked()[0]
        self.assertEqual(
            line, "GET /base/api/v1/sessions/ses_01ARZ3NDEKTSV4RRFFQ69G5FAV/stream HTTP/1.1"
        )

    def test_aServerWithoutEnds(self) -> None:
        """A stream whose ends would be lost is refused."""
        dialling = self.dial()
        self.accept(features="")
        self.failureResultOf(dialling, MalformedAnswer)
        self.assertTrue(self.memory.wire.aborted)

    def test_refusals(self) -> None:
        """Each word is the error that the server's own caller gets, with the server's sentence."""
        for status, code, kind in (
            (503, "not-connected", NotConnected),
            (502, "target-refused", TargetRefused),
            (504, "timed-out", DialTimeout),
            (403, "not-allowed", NotAllowed),
            (401, "unauthenticated", GatewayRefused),
            (404, "unknown-session", GatewayRefused),
            (500, None, GatewayRefused),
            (503, ["odd"], GatewayRefused),
        ):
            self.memory = Memory()
            dialling = self.dial()
            self.refuse(status, detail="A sentence.", code=code)
            error = self.failureResultOf(dialling, kind).value
            self.assertEqual((str(error), error.status), ("A sentence.", status), code)

    def test_retryAfter(self) -> None:
        """When another try makes sense is told."""
        dialling = self.dial()
        self.refuse(503, "Retry-After: 5", detail="Full.", code="busy")
        self.assertEqual(self.failureResultOf(dialling, TooManyPendingDials).value.retryAfter, 5)

    def test_somethingElseAnswers(self) -> None:
        """A page, a redirect, an upgrade that a proxy took away: not our server's word."""
        for head in (
            "HTTP/1.1 200 OK\r\nContent-Type: text/html",
            "HTTP/1.1 302 Found\r\nLocation: https://elsewhere/",
            "HTTP/1.1 426 Upgrade Required",
        ):
            self.memory = Memory()
            dialling = self.dial()
            self.memory.protocol.dataReceived(f"{head}\r\nContent-Length: 0\r\n\r\n".encode())
            self.failureResultOf(dialling, MalformedAnswer)
        self.memory = Memory()
        dialling = self.dial()
        self.memory.protocol.dataReceived(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
        self.failureResultOf(dialling, GatewayRefused)

    def test_noAnswer(self) -> None:
        """A server that says nothing in its time, and a little more, is a dial that timed out."""
        dialling = self.dial()
        self.clock.advance(11.9)
        self.assertNoResult(dialling)
        self.clock.advance(0.2)
        self.failureResultOf(dialling, DialTimeout)
        self.assertTrue(self.memory.wire.aborted)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_noConnection(self) -> None:
        """A server that cannot be reached is given up after 10 s."""
        self.memory.never = True
        dialling = self.dial()
        self.clock.advance(10.1)
        self.failureResultOf(dialling, NoConnection)
        self.assertTrue(self.memory.cancelled)

    def test_theConnectionBreaks(self) -> None:
        """The connection's own error is told."""
        dialling = self.dial()
        self.memory.protocol.connectionLost(Failure(ConnectionLost()))
        self.failureResultOf(dialling, ConnectionLost)

    def test_cancelled(self) -> None:
        """Who gives up leaves no connection and no timer."""
        dialling = self.dial()
        dialling.cancel()
        self.failureResultOf(dialling, CancelledError)
        self.assertTrue(self.memory.wire.aborted)
        self.assertEqual(self.clock.getDelayedCalls(), [])
