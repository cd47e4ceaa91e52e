"""HTTP to services beside agents: who may, what each path and name leads to, what is left."""

from __future__ import annotations

import re
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.api.authority import Authority
from helix_revdial.api.proxy import ByName
from helix_revdial.config import GatewaysSection, ServerConfig
from helix_revdial.http.factory import HTTPFactory
from tests.api.harness import Server, request
from tests.api.test_external_agents import Pending, Sandbox
from tests.http.test_head import REFUSED

TARGETS = "api;expose=operator;default, desk;expose=owner, wolf;expose=internal"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class ProxyTestCase(SynchronousTestCase):
    """A server with a machine."""

    gateways = GatewaysSection(trustedProxies=("192.0.2.7",), baseDomain="apps.example")

    def setUp(self) -> None:
        self.server = Server(ServerConfig(gateways=self.gateways))
        self.operator = self.server.user("ann")
        server = self.server
        authority = Authority(server.tokens, server.sessions, server.audit)
        self.byName = ByName(server.services, authority, self.baseDomain)
        table = self.server.table

        async def dispatch(asked: Any) -> Any:
            return await (self.byName if self.byName.isFor(asked) else table)(asked)

        self.server.factory = HTTPFactory(dispatch, self.server.clock)
        self.agent = Sandbox(
            self.server, "wolf-1", self.server.runner("wolf-*"), Revdial_Targets=TARGETS
        )

    def baseDomain(self) -> str | None:
        return self.server.services.config.gateways.baseDomain

    def ask(
        self, path: str, token: str | None = None, method: str = "GET", **headers: str
    ) -> Pending:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return Pending(self.server, request(method, path, token or self.operator, headers=fields))

    def served(self, pending: Pending) -> bytes:
        """Let the dial succeed and the service answer; returns what it was asked."""
        self.agent.pickUp()
        assert self.agent.wire is not None
        _, _, asked = self.agent.wire.value().partition(b"\r\n\r\n")
        self.agent.data.dataReceived(OK)
        self.assertEqual(pending.answer().status, 200)
        return bytes(asked)


FOLLOW = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"

CHUNKS = {
    "size with a sign": b"+1\r\nx\r\n0\r\n\r\n",
    "size in 0x": b"0x1\r\nx\r\n0\r\n\r\n",
    "size with a blank": b" 1\r\nx\r\n0\r\n\r\n",
    "size empty": b"\r\nx\r\n0\r\n\r\n",
    "size negative": b"-1\r\nx\r\n0\r\n\r\n",
    "size underscore": b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n",
    "size beyond 64 bits": b"10000000000000001\r\nx\r\n0\r\n\r\n",
    "size line with LF": b"1\nx\r\n0\r\n\r\n",
    "size line with CR": b"1\rx\r\n0\r\n\r\n",
    "extension with LF": b"1;a\nb\r\nx\r\n0\r\n\r\n",
    "extension with CR": b"1;a\rb\r\nx\r\n0\r\n\r\n",
    "data longer than said": b"1\r\nxyz\r\n0\r\n\r\n",
    "data shorter than said": b"5\r\nx\r\n0\r\n\r\n",
    "data ends with LF": b"1\r\nx\n0\r\n\r\n",
    "two chunks without an end between": b"1\r\nx1\r\ny\r\n0\r\n\r\n",
    "trailer with a length": b"0\r\nContent-Length : 5\r\n\r\n",
    "trailer fold": b"0\r\nX: a\r\n b\r\n\r\n",
}
"""Chunked bodies that two parties could read differently."""


class SmugglingTests(ProxyTestCase):
    """Requests that could be read in two ways, to a service."""

    def ways(self) -> list[tuple[bytes, bytes]]:
        """The path and the host by which the service is reached."""
        return [
            (b"/api/v1/runners/wolf-1/http/api/", b"cp.example"),
            (b"/", b"api--wolf-1.apps.example"),
        ]

    def send(self, data: bytes) -> list[bytes]:
        """What is answered: the status of each answer."""
        protocol, wire = self.server.connect()
        protocol.dataReceived(data + FOLLOW)
        return re.findall(rb"^HTTP/1\.1 (\d+) ", wire.value(), re.MULTILINE)

    def test_heads(self) -> None:
        """F5: whichever way, each gets one answer, 4xx or 505, and no service is dialled."""
        authorization = b"Authorization: Bearer " + self.operator.encode() + b"\r\n"
        tried = 0
        for path, host in self.ways():
            for name, data in REFUSED.items():
                line, end, rest = data.partition(b"\r\n")
                if b" / HTTP/1" not in line or not rest.startswith(b"Host: a\r\n"):
                    continue
                line = line.replace(b" / ", b" " + path + b"x ")
                rest = rest.replace(b"Host: a\r\n", b"Host: " + host + b"\r\n" + authorization, 1)
                (status, *more) = self.send(line + end + rest)
                self.assertRegex(status, b"4..|505", (name, host))
                self.assertEqual(more, [], (name, host))
                tried += 1
        self.assertGreater(tried, 80)
        self.assertEqual(self.server.connections.dialsUnderWay, 0)
        self.assertEqual(self.agent.dials(), 0)

    def test_chunks(self) -> None:
        """
        A body that is no chunks ends its connection: the service hears of a request
        that broke off, never of a second one.
        """
        for path, host in self.ways():
            for name, body in CHUNKS.items():
                pending = Pending(
                    self.server,
                    b"POST %sx HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\n"
                    b"Transfer-Encoding: chunked\r\n\r\n" % (path, host, self.operator.encode()),
                )
                self.assertFalse(pending.answered(), (name, host, pending.wire.value()))
                asked = self.agent.pickUp()
                self.assertTrue(asked.startswith(b"POST /x HTTP/1.1\r\n"), asked)
                pending.protocol.dataReceived(body + FOLLOW)
                asked += self.agent.next()
                self.assertNotIn(b"smuggled", asked, (name, host))
                self.assertFalse(asked.endswith(b"0\r\n\r\n"), (name, host))
                self.assertEqual(pending.answer().status, 400, (name, host))
                assert self.agent.wire is not None
                self.assertTrue(self.agent.wire.aborted, (name, host))

    def test_otherForms(self) -> None:
        """Full URLs, authorities and C{//host}, in whatever letters: 400 and no dial."""
        fields = b"Authorization: Bearer " + self.operator.encode() + b"\r\n\r\n"
        for path, host in self.ways():
            for target in (
                b"http://" + host + path,
                b"HTTP://169.254.169.254" + path,
                b"https://" + host + b"@evil.example/",
                b"//evil.example" + path,
                b"///evil.example" + path,
                b"/\\evil.example" + path,
                host + b":80",
                b"*",
            ):
                data = b"GET " + target + b" HTTP/1.1\r\nHost: " + host + b"\r\n" + fields
                self.assertEqual(self.send(data), [b"400"], target)
        self.assertEqual(self.agent.dials(), 0)


class PathTests(ProxyTestCase):
    """By path."""

    def test_pathIsAsSent(self) -> None:
        """The rest of the path and the query reach the service byte for byte."""
        for rest, target in (
            ("", b"/"),
            ("a/b%2Fc/?x=%20&y=//z", b"/a/b%2Fc/?x=%20&y=//z"),
            ("%61", b"/%61"),
            ("x" * 2000, b"/" + b"x" * 2000),
        ):
            asked = self.served(self.ask(f"/api/v1/runners/wolf-1/http/api/{rest}", method="POST"))
            self.assertTrue(asked.startswith(b"POST " + target + b" HTTP/1.1\r\n"), asked[:80])

    def test_anyMethod(self) -> None:
        """Methods that nobody here knows cross too."""
        asked = self.served(self.ask("/api/v1/runners/wolf-1/http/api/x", method="PROPFIND"))
        self.assertTrue(asked.startswith(b"PROPFIND /x "), asked)

    def test_defaultTarget(self) -> None:
        """C{default} is the agent's default target."""
        pending = self.ask("/api/v1/runners/wolf-1/http/default/x")
        self.assertNotIn("target", self.agent.asked())
        self.served(pending)

    def test_fields(self) -> None:
        """The token stays here; the trace and the request's id go on; a proxy is believed."""
        trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        asked = self.served(
            self.ask(
                "/api/v1/runners/wolf-1/http/api/x",
                X_Request_Id="abc",
                traceparent=trace,
                X_Forwarded_For="203.0.113.9",
            )
        )
        self.assertNotIn(b"Authorization", asked)
        self.assertIn(b"\r\nX-Request-Id: abc\r\n", asked)
        self.assertIn(b"\r\ntraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-", asked)
        self.assertIn(b"\r\nX-Forwarded-For: 203.0.113.9, 192.0.2.7\r\n", asked)
        self.assertIn(b"\r\nX-Forwarded-Prefix: /api/v1/runners/wolf-1/http/api\r\n", asked)

    def test_credentialsOfTheService(self) -> None:
        """With our token in a field of its own, Authorization is the service's."""
        data = request(
            "GET",
            "/api/v1/runners/wolf-1/http/api/x",
            headers={
                "Authorization": "Basic dTpw",
                "X-Helix-Authorization": f"Bearer {self.operator}",
            },
        )
        asked = self.served(Pending(self.server, data))
        self.assertIn(b"\r\nAuthorization: Basic dTpw\r\n", asked)
        self.assertNotIn(self.operator.encode(), asked)

    def test_otherHosts(self) -> None:
        """F5: no form of the target leads anywhere else."""
        for path in (
            "http://evil.example/",
            "//evil.example/",
            "/api/v1/runners/wolf-1/http/api//evil.example/",
            "/api/v1/runners/wolf-1/http/api/../../../sessions",
            "/api/v1/runners/wolf-1/http/api/%2e%2e/x",
            "/api/v1/runners/wolf-1/http/a%2Fb/x",
        ):
            self.assertIn(self.ask(path).answer().status, (400, 404), path)
        self.assertEqual(self.server.connections.dialsUnderWay, 0)

    def test_whoMay(self) -> None:
        """F2: the table of targets decides, and refusals are on record."""
        viewer, runner = self.server.user("vera", "viewer"), self.server.runner("wolf-*")
        path = "/api/v1/runners/wolf-1/http/{}/x"
        for target, token, status in (
            ("wolf", self.operator, 403),
            ("nothing", self.operator, 403),
            ("api", viewer, 403),
            ("api", runner, 403),
            ("api", "hlx_no", 401),
        ):
            answer = self.ask(path.format(target), token).answer()
            self.assertEqual(answer.status, status, (target, token))
        nobody = Pending(self.server, request("GET", path.format("api"))).answer()
        self.assertEqual(nobody.status, 401)
        events = [entry.event for entry in self.server.events()]
        self.assertEqual(events.count("http-refused"), 3)

    def test_session(self) -> None:
        """A session's owner reaches what is for owners; others do not."""
        session = self.server.session()
        sandbox = Sandbox(
            self.server,
            f"desktop-{session.id}",
            self.server.sessionToken(session),
            Revdial_Targets=TARGETS,
        )
        path = f"/api/v1/sessions/{session.id}/http/desk/x"
        pending = self.ask(path)
        self.assertEqual(sandbox.asked()["target"], "desk")
        self.agent = sandbox
        self.served(pending)
        self.assertEqual(self.ask(path, self.server.user("bob", "viewer")).answer().status, 403)
        other = self.server.user("eve", tenant="other")
        self.assertEqual(self.ask(path, other).answer().status, 404)

    def test_notConnected(self) -> None:
        """D21: what is not there is said with its status and its word."""
        answer = self.ask("/api/v1/runners/wolf-9/http/api/x").answer()
        self.assertEqual((answer.status, answer.json()["code"]), (503, "not-connected"))
        pending = self.ask("/api/v1/runners/wolf-1/http/api/x")
        self.agent.refuse("target-refused", "connection refused")
        answer = pending.answer()
        self.assertEqual((answer.status, answer.json()["code"]), (502, "target-refused"))


class NameTests(ProxyTestCase):
    """By name."""

    def named(self, host: str, path: str = "/x", **headers: str) -> Pending:
        return self.ask(path, Host=host, **headers)

    def test_name(self) -> None:
        """TARGET--RUNNER.BASE is the target's own origin."""
        for host in ("api--wolf-1.apps.example", "API--Wolf-1.apps.example.:8443"):
            pending = self.named(host, "/api/v1/sessions?x")
            asked = self.served(pending)
            self.assertTrue(asked.startswith(b"GET /api/v1/sessions?x HTTP/1.1\r\n"), asked)
            self.assertIn(f"\r\nHost: {host}\r\n".encode(), asked)
            self.assertNotIn(b"X-Forwarded-Prefix", asked)
            self.assertNotIn("content-security-policy", pending.answer().headers)
            self.server.clock.advance(20)

    def test_dotsBehind(self) -> None:
        """However many dots stand behind a name, it is that name's."""
        pending = self.named("api--wolf-1.apps.example..", "/api/v1/sessions?x")
        asked = self.served(pending)
        self.assertTrue(asked.startswith(b"GET /api/v1/sessions?x HTTP/1.1\r\n"), asked)
        self.assertIn(b"\r\nHost: api--wolf-1.apps.example..\r\n", asked)

    def test_neverTheAPI(self) -> None:
        """F9: on such hosts the API does not answer, whatever the host is."""
        for host in (
            "x.apps.example",
            "a.b--c.apps.example",
            "--wolf-1.apps.example",
            "api--.apps.example",
            "api--wolf-1.x.apps.example",
        ):
            answer = self.named(host, "/api/v1/sessions").answer()
            self.assertEqual(answer.status, 404, host)
            self.assertNotIn("items", answer.json())
        self.assertEqual(self.named("apps.example", "/api/v1/sessions").answer().status, 200)
        self.assertEqual(self.named("xapps.example", "/api/v1/sessions").answer().status, 200)

    def test_otherWordsForAHost(self) -> None:
        """F9: only Host names the target."""
        answer = self.named(
            "cp.example", "/nothing", X_Forwarded_Host="api--wolf-1.apps.example"
        ).answer()
        self.assertEqual(answer.status, 404)
        self.assertEqual(self.server.connections.dialsUnderWay, 0)

    def test_whoMay(self) -> None:
        """The same who may by path; a cookie is no token."""
        data = request("GET", "/", headers={"Host": "api--wolf-1.apps.example", "Cookie": "t=x"})
        self.assertEqual(Pending(self.server, data).answer().status, 401)
        self.assertEqual(self.named("wolf--wolf-1.apps.example").answer().status, 403)

    def test_session(self) -> None:
        """A session is called by its id in lower case."""
        session = self.server.session()
        sandbox = Sandbox(
            self.server,
            f"desktop-{session.id}",
            self.server.sessionToken(session),
            Revdial_Targets=TARGETS,
        )
        slug = session.id.lower().replace("_", "-")
        pending = self.named(f"desk--{slug}.apps.example")
        self.assertEqual(sandbox.asked()["target"], "desk")
        self.agent = sandbox
        self.served(pending)

    def test_off(self) -> None:
        """Without a base domain there are no names."""
        self.server.services.config = ServerConfig()
        self.assertEqual(self.named("api--wolf-1.apps.example").answer().status, 404)
        path = "/api/v1/sessions"
        self.assertEqual(self.named("api--wolf-1.apps.example", path).answer().status, 200)
