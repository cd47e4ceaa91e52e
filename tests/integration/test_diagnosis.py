"""
What C{helix diag} and C{--check} find: each kind of failure on real sockets, with a
peer that does what its kind does.
"""

from __future__ import annotations

import json
import socket
import time
from typing import Any, ClassVar

import trustme
from twisted.internet import reactor as realReactor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    PrivateCertificate,
    trustRootFromCertificates,
)
from twisted.trial.unittest import TestCase

from helix_revdial.agent import diagnosis
from helix_revdial.agent.diagnosis import Subject, diagnose
from helix_revdial.agent.findings import Finding
from helix_revdial.agent.settings import readWay
from helix_revdial.agent.targets import parseTarget
from helix_revdial.agent.token import Secret, TokenText
from helix_revdial.http.factory import HTTPFactory
from helix_revdial.http.problem import Problem
from helix_revdial.http.request import Request
from helix_revdial.http.response import Response
from helix_revdial.revdial.checks import CheckPeer
from helix_revdial.revdial.features import CHECK_HEADER, FEATURES_HEADER, formatFeatures
from helix_revdial.revdial.requests import RequestKind, classify
from helix_revdial.revdial.upgrade import rawServer
from helix_revdial.revdial.websocket import webSocketServer

reactor: Any = realReactor

TOKEN = "hl-very-secret-0123456789"

VITE = (
    b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    b'Blocked request. This host ("api") is not allowed.\n'
    b"To allow this host, add it to `server.allowedHosts` in vite.config.js."
)
PAGE = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n"
    b"<!doctype html><html><script src=/@vite/client></script></html>"
)


class API:
    """
    A server of ours as far as a check needs one.

    @ivar peers: The checks that are open.
    """

    def __init__(self) -> None:
        self.peers: list[CheckPeer] = []
        self.status: int | None = None
        self.refuses: set[RequestKind] = set()
        self.older = False
        self.cut: float | None = None
        self.skew = 0.0
        self.challenge = b'Bearer realm="helix", error="invalid_token"'
        self.seen: list[Request] = []
        self.factory = HTTPFactory(
            self.dispatch, reactor, wallClock=lambda: time.time() + self.skew
        )

    async def dispatch(self, request: Request) -> Any:
        self.seen.append(request)
        if request.path == "/api/v1/version":
            body = b'{"version": "1.2.3", "python": "3.11"}'
            return Response(200, [(b"Content-Type", b"application/json")], body)
        asked = classify(request.method, list(request.headers), request.query)
        if self.older:
            raise Problem(400, "A control connection names its runner: runnerid=KEY.")
        if self.status is not None:
            challenge = [(b"WWW-Authenticate", self.challenge)] if self.status == 401 else []
            raise Problem(self.status, "This is why.", headers=challenge)
        if asked.kind is RequestKind.UPGRADE_REQUIRED or asked.kind in self.refuses:
            raise Problem(426, "Upgrade.", headers=[(b"Upgrade", b"revdial, websocket")])
        peer = CheckPeer(reactor, asked.features, self.peers.remove)
        self.peers.append(peer)
        if self.cut is not None:
            reactor.callLater(self.cut, peer.drop, "cut")
        fields = [
            (FEATURES_HEADER, formatFeatures(asked.features)),
            (CHECK_HEADER, b"connected"),
        ]
        if asked.kind is RequestKind.CHECK_RAW:
            return request.handOver(rawServer(peer, responseHeaders=fields, clock=reactor))
        carrier = webSocketServer(peer, eof=False, responseHeaders=fields, clock=reactor)
        return request.handOver(carrier, replayHead=True)


class Answering(Protocol):
    """Answers whatever it gets with the same bytes, or not at all."""

    answer: bytes = b""
    closes = True

    def dataReceived(self, data: bytes) -> None:
        wire: Any = self.transport
        if self.answer:
            wire.write(self.answer)
        if self.closes:
            wire.loseConnection()


class DiagnosisTests(TestCase):
    """L{diagnose}, against each kind of peer."""

    timeout: ClassVar[float] = 30

    def setUp(self) -> None:
        self.api = API()
        self.addCleanup(self.api.factory.stop, 0.1)
        self.patch(diagnosis, "STEP", 1.0)
        self.patch(diagnosis, "ANSWER", 0.5)

    def listen(
        self,
        factory: Any = None,
        certificate: trustme.LeafCert | None = None,
        clients: trustme.CA | None = None,
    ) -> int:
        factory = factory or self.api.factory
        factory.noisy = False
        if certificate is None:
            port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        else:
            both = certificate.private_key_pem.bytes() + certificate.cert_chain_pems[0].bytes()
            own = PrivateCertificate.loadPEM(both)
            trusted = None
            if clients is not None:
                trusted = trustRootFromCertificates([Certificate.loadPEM(clients.cert_pem.bytes())])
            options = CertificateOptions(
                privateKey=own.privateKey.original,
                certificate=own.original,
                trustRoot=trusted,
            )
            port = reactor.listenSSL(0, factory, options, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        number: int = port.getHost().port
        return number

    def answering(self, answer: bytes, *, closes: bool = True) -> int:
        """The port of a peer that always says the same."""

        def build() -> Answering:
            protocol = Answering()
            protocol.answer, protocol.closes = answer, closes
            return protocol

        return self.listen(Factory.forProtocol(build))

    async def look(
        self, url: str, *, key: str = "wolf-1", idle: float = 0.0, target: str = "", **flags: Any
    ) -> dict[str, Finding]:
        """The findings by what was looked at; none of them may hold the token."""
        way = readWay({"server": [url], **flags}, {})
        targets = {"api": parseTarget(target)} if target else {}
        subject = Subject(way, key, TokenText("a test", Secret(TOKEN)), targets)
        found: dict[str, Finding] = {}
        async for finding in diagnose(reactor, subject, wallClock=time.time, idle=idle):
            self.assertNotIn(finding.check, found)
            found[finding.check] = finding
            self.assertNotIn(TOKEN, repr(finding))
            if finding.outcome == "failed":
                self.assertTrue(finding.advice, finding)
            self.assertLessEqual(len(finding.lines()), 2)
        return found

    def outcomes(self, found: dict[str, Finding]) -> dict[str, str]:
        return {name: finding.outcome for name, finding in found.items()}

    def said(self, found: dict[str, Finding], check: str, outcome: str, *words: str) -> None:
        finding = found.get(check)
        assert finding is not None, f"nothing about {check}: {found}"
        self.assertEqual(finding.outcome, outcome, finding)
        for each in words:
            self.assertIn(each, finding.seen + " " + finding.advice)

    async def test_allWell(self) -> None:
        """A way without faults: every step is well, and nothing stays open."""
        port, service = self.listen(), self.answering(b"x")
        found = await self.look(f"http://localhost:{port}", idle=0.3, target=f"127.0.0.1:{service}")
        self.assertEqual(set(self.outcomes(found).values()), {"ok"}, found)
        self.assertEqual(
            list(found),
            ["name", "connect", "proxy", "tls", "http", "clock", "token", "upgrade raw",
             "upgrade websocket", "idle kept alive", "idle silent", "target api"],
        )  # fmt: skip
        self.said(found, "http", "ok", "version 1.2.3")
        self.said(found, "token", "ok", "may register wolf-1, which is connected now")
        self.assertEqual(self.api.peers, [])
        for request in self.api.seen[1:]:
            self.assertEqual(request.query, [("revdial.check", "wolf-1")])

    async def test_name(self) -> None:
        """A name that does not resolve; nothing else is tried."""
        found = await self.look("http://nobody.invalid:1")
        self.assertEqual(list(found), ["name"])
        self.said(found, "name", "failed", "nobody.invalid")

    async def test_refusedAndBlocked(self) -> None:
        """A port where nothing listens is told apart from one whose packets are lost."""
        closed = reactor.listenTCP(0, self.api.factory, interface="127.0.0.1")
        number = closed.getHost().port
        await closed.stopListening()
        found = await self.look(f"http://127.0.0.1:{number}")
        self.said(found, "connect", "failed", "connection refused", "nothing listens")
        self.assertNotIn("http", found)
        # Where no packet comes back: a listener whose queue is full drops them.
        with socket.socket() as full:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            clients = [socket.socket() for _ in range(4)]
            for client in clients:
                client.setblocking(False)
                client.connect_ex(full.getsockname())
            try:
                found = await self.look(f"http://127.0.0.1:{full.getsockname()[1]}")
            finally:
                for client in clients:
                    client.close()
        self.said(found, "connect", "failed", "no answer within 1 s", "firewall")

    async def test_frontend(self) -> None:
        """
        Seed 002: a frontend that answers in the API's place is named as such, be it a
        page, Vite's refusal of a strange host, or a proxy whose API is away.
        """
        for answer, words in (
            (PAGE, "a frontend answered in the API's place (200 OK, text/html"),
            (VITE, "a frontend answered in the API's place (403 Forbidden, text/plain"),
            (b"HTTP/1.1 502 Bad Gateway\r\nServer: nginx\r\nContent-Length: 0\r\n\r\n",
             "what is behind it is away (502 Bad Gateway, server: nginx)"),
        ):  # fmt: skip
            found = await self.look(f"http://127.0.0.1:{self.answering(answer)}/")
            self.said(found, "http", "failed", words, "the server URL leads to a web frontend")
            self.assertNotIn("token", found, "the token was sent to a frontend")

    async def test_otherAnswers(self) -> None:
        """A proxy's login, a redirect, TLS on the port, no HTTP, no answer, a hang-up."""
        for answer, words in (
            (b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n", "wants a login"),
            (b"HTTP/1.1 301 Moved\r\nLocation: https://x/\r\nContent-Length: 0\r\n\r\n",
             "redirect to https://x/"),
            (b"HTTP/1.1 400 Bad\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n"
             b"The plain HTTP request was sent to HTTPS port", "write https://"),
            (b"SSH-2.0-OpenSSH\r\n\r\n", "does not speak HTTP"),
            (b"\0\0\x12\x04\0\0\0\0\0" + bytes(18), "HTTP/2 alone"),
            (b"HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm=x\r\nContent-Length: 0\r\n\r\n",
             "wants a login of its own, Basic"),
            (b"HTTP/1.1 403 No\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n",
             "proxy_intercept_errors"),
            (b"", "closes the connection"),
        ):  # fmt: skip
            found = await self.look(f"http://127.0.0.1:{self.answering(answer)}")
            self.said(found, "http", "failed", words)
        found = await self.look(f"http://127.0.0.1:{self.answering(b'', closes=False)}")
        self.said(found, "http", "failed", "no answer within")

    async def test_upgradeTakenAway(self) -> None:
        """A proxy that strips the upgrade: the server's 426 says so; one form may still pass."""
        url = f"http://127.0.0.1:{self.listen()}"
        self.api.refuses = {RequestKind.CHECK_RAW}
        found = await self.look(url)
        self.said(found, "upgrade raw", "warning", "took it away", "agents use WebSocket")
        self.said(found, "upgrade websocket", "ok")
        self.api.refuses.add(RequestKind.CHECK_WEBSOCKET)
        found = await self.look(url, idle=0.1)
        self.said(found, "upgrade raw", "failed", "took it away", "proxy_http_version 1.1")
        self.said(found, "upgrade websocket", "failed", "took it away")
        self.said(found, "idle", "skipped")

    async def test_olderServer(self) -> None:
        """A server without checks refuses one: what cannot be known is said to be so."""
        self.api.older = True
        found = await self.look(f"http://127.0.0.1:{self.listen()}")
        self.said(found, "upgrade raw", "skipped", "knows no checks")
        self.said(found, "token", "skipped")
        self.assertNotIn("failed", self.outcomes(found).values())

    async def test_token(self) -> None:
        """A token that is unknown, may not, or whose name is another's; none at all."""
        url = f"http://127.0.0.1:{self.listen()}"
        for status, outcome, words in (
            (401, "failed", "the server does not know it: This is why."),
            (403, "failed", "may register wolf-1"),
            (409, "failed", "another token holds this name"),
            (503, "warning", "no room"),
        ):
            self.api.status = status
            found = await self.look(url)
            self.said(found, "token", outcome, words)
            self.said(found, "upgrade raw", "skipped", str(status))
        async for finding in diagnose(
            reactor, Subject(readWay({"server": [url]}, {})), wallClock=time.time
        ):
            self.assertNotEqual(finding.outcome, "failed", finding)

    async def test_tokenTakenAway(self) -> None:
        """A proxy that strips Authorization: the token is not blamed, nor is a new one advised."""
        url = f"http://127.0.0.1:{self.listen()}"
        self.api.status, self.api.challenge = 401, b'Bearer realm="helix"'
        found = await self.look(url)
        self.said(found, "token", "failed", "did not arrive", "takes Authorization out")

    async def test_clock(self) -> None:
        """A clock that is minutes off."""
        self.api.skew = -300
        found = await self.look(f"http://127.0.0.1:{self.listen()}")
        self.said(found, "clock", "warning", "s ahead of the server", "NTP")

    async def test_idle(self) -> None:
        """A path that cuts idle connections: after how long, and what to raise."""
        self.api.cut = 0.4
        found = await self.look(f"http://127.0.0.1:{self.listen()}", idle=2.0)
        self.said(found, "idle silent", "warning", "cut after", "proxy_read_timeout")
        self.said(found, "idle kept alive", "failed", "cut after")

    async def test_tls(self) -> None:
        """Whom the server says it is: trusted, unknown, another, expired, pinned, not at all."""
        authority = trustme.CA()
        path = self.mktemp()
        authority.cert_pem.write_to_path(path)
        right = self.listen(certificate=authority.issue_cert("localhost"))
        wrong = self.listen(certificate=authority.issue_cert("other.example"))
        url = f"https://localhost:{right}"
        found = await self.look(url, **{"ca-file": path})
        self.assertNotIn("failed", self.outcomes(found).values(), found)
        self.said(found, "tls", "ok", "TLSv1.3", "localhost", "trusted")
        before = len(self.api.seen)
        found = await self.look(url)
        self.said(found, "tls", "failed", "not trusted", "--ca-file", "--pin sha256/")
        found = await self.look(f"https://localhost:{wrong}", **{"ca-file": path})
        self.said(found, "tls", "failed", "another name", "other.example")
        found = await self.look(url, pin=["sha256/" + "A" * 43 + "="])
        self.said(found, "tls", "failed", "not a pinned one")
        self.assertEqual(len(self.api.seen), before, "something was sent to a stranger")
        found = await self.look(url, insecure="1")
        self.said(found, "tls", "warning", "NOT verified")
        self.flushLoggedErrors()
        found = await self.look(f"https://localhost:{self.listen()}")
        self.said(found, "tls", "failed", "speak TLS")
        found = await self.look(f"http://localhost:{right}")
        self.said(found, "http", "failed", "https://")

    async def test_clientCertificate(self) -> None:
        """A server that wants one: that is said, whatever the client's TLS calls a success."""
        authority = trustme.CA()
        path = self.mktemp()
        authority.cert_pem.write_to_path(path)
        port = self.listen(certificate=authority.issue_cert("localhost"), clients=authority)
        found = await self.look(f"https://localhost:{port}", **{"ca-file": path})
        self.said(found, "http", "failed", "--client-certificate")
        self.flushLoggedErrors()

    async def test_handshakeThatHangs(self) -> None:
        """An open port from which no handshake comes: another service, or lost packets."""
        port = self.answering(b"", closes=False)
        found = await self.look(f"https://127.0.0.1:{port}")
        self.said(found, "tls", "failed", "no handshake", "MTU")

    async def test_proxy(self) -> None:
        """A proxy on the way: its login, its refusal, and one that leads there."""
        server = self.listen()
        basic = b"HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=x\r\n\r\n"
        for answer, words, advice in (
            (basic, "wants a login", "--proxy-credentials"),
            (basic.replace(b"Basic", b"NTLM"), "only Basic", "without a login"),
            (b"HTTP/1.1 302 No\r\nLocation: /login\r\n\r\n", "answered 302", "a login page"),
            (b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n", "answered 403", "allow CONNECT"),
            (b"HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n", "answered 502", "does not reach"),
            (b"SSH-2.0-OpenSSH\r\n\r\n", "does not speak HTTP", "is that an HTTP proxy's"),
        ):
            proxy = self.answering(answer)
            found = await self.look(
                f"http://cp.example:{server}", proxy=f"http://127.0.0.1:{proxy}"
            )
            self.said(found, "proxy", "failed", words, advice, "NO_PROXY")
            self.assertNotIn("http", found)

    async def test_target(self) -> None:
        """A local service that is down, over TCP and over a unix socket."""
        url = f"http://127.0.0.1:{self.listen()}"
        found = await self.look(url, target="unix:///nonexistent.sock")
        self.said(found, "target api", "failed", "no such file", "start the service")
        found = await self.look(url, target="127.0.0.1:1")
        self.said(found, "target api", "failed", "connection refused")

    async def test_json(self) -> None:
        """For programs, a finding is an object."""
        found = await self.look(f"http://127.0.0.1:{self.listen()}")
        said = json.loads(json.dumps(found["http"].asJSON()))
        self.assertEqual((said["check"], said["outcome"], said["advice"]), ("http", "ok", None))
