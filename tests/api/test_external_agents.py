"""Screenshots and clipboards of sessions: what passes, and what each failure is."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.config import DesktopSection, ServerConfig
from tests.api.harness import Answer, Server, Wire, parse, request
from tests.api.test_tunnel import lines, rawUpgrade

PNG = b"\x89PNG\r\n\x1a\n" + b"pixels"


class Sandbox:
    """An agent of ours with a desktop beside it, as bytes on the port."""

    def __init__(self, server: Server, key: str, token: str, **headers: str) -> None:
        self.server = server
        self.token = token
        self.protocol, self.control = server.connect()
        self.protocol.dataReceived(rawUpgrade(f"/api/v1/revdial?runnerid={key}", token, **headers))
        self.data: Any = None
        self.wire: Wire | None = None
        self._read = 0

    def asked(self) -> dict[str, Any]:
        """The newest conn-ready."""
        ready = [one for one in lines(self.control) if one["command"] == "conn-ready"]
        return ready[-1]

    def pickUp(self) -> bytes:
        """Answer the newest dial; the request that came to the desktop."""
        self.data, self.wire = self.server.connect()
        self.data.dataReceived(
            rawUpgrade("/api/v1/revdial", self.token, Revdial_Ticket=self.asked()["ticket"])
        )
        self._read = len(self.wire.value().partition(b"\r\n\r\n")[0]) + 4
        return self.next()

    def next(self) -> bytes:
        """What has come to the desktop since, on the same connection."""
        assert self.wire is not None
        come: bytes = self.wire.value()[self._read :]
        self._read += len(come)
        return come

    def dials(self) -> int:
        """How often the agent was asked."""
        return len([one for one in lines(self.control) if one["command"] == "conn-ready"])

    def answer(self, body: bytes, status: str = "200 OK", kind: str = "image/png") -> None:
        """What the desktop says."""
        self.data.dataReceived(
            f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nX-Secret: s\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )

    def refuse(self, reason: str, err: str) -> None:
        """The dial-back failed."""
        ready = self.asked()
        report = {"command": "pickup-failed", "connPath": ready["connPath"], "dial": ready["dial"]}
        self.protocol.dataReceived(
            json.dumps({**report, "reason": reason, "err": err}).encode() + b"\n"
        )


class Pending:
    """A request that is under way."""

    def __init__(self, server: Server, raw: bytes) -> None:
        self.protocol, self.wire = server.connect()
        self.protocol.dataReceived(raw)

    def answer(self) -> Answer:
        return parse(self.wire.value())

    def answered(self) -> bool:
        return bool(self.wire.value())


class DesktopTests(SynchronousTestCase):
    """C{/api/v1/external-agents/{session}}."""

    def setUp(self) -> None:
        self.server = Server(
            ServerConfig(
                desktop=DesktopSection(
                    requestTimeout=10, maxScreenshotBytes=10_000, maxClipboardBytes=1000
                )
            )
        )
        self.ann = self.server.user("ann")
        self.session = self.server.session("ann")
        self.path = f"/api/v1/external-agents/{self.session.id}"

    def sandbox(self, prefix: str = "sandbox-") -> Sandbox:
        token = self.server.sessionToken(self.session)
        return Sandbox(self.server, prefix + self.session.id, token)

    def ask(self, what: str = "/screenshot", method: str = "GET", body: object = None) -> Pending:
        return Pending(self.server, request(method, self.path + what, self.ann, body))

    def test_screenshot(self) -> None:
        """The query is passed on; the picture comes back with nosniff and nothing else of it."""
        sandbox = self.sandbox()
        pending = self.ask("/screenshot?format=png&quality=40")
        asked = sandbox.pickUp()
        self.assertTrue(asked.startswith(b"GET /screenshot?format=png&quality=40 HTTP/1.1\r\n"))
        self.assertNotIn(b"Authorization", asked, "the caller's token went to the sandbox")
        sandbox.answer(PNG)
        answer = pending.answer()
        self.assertEqual((answer.status, answer.body), (200, PNG))
        self.assertEqual(answer.headers["content-type"], "image/png")
        self.assertEqual(answer.headers["x-content-type-options"], "nosniff")
        self.assertEqual(answer.headers["cache-control"], "no-store")
        self.assertNotIn("x-secret", answer.headers)
        phases = [part.split(";")[0] for part in answer.headers["server-timing"].split(", ")]
        self.assertEqual(phases, ["asked", "dialback", "firstbyte", "total"])
        assert sandbox.wire is not None
        self.assertFalse(sandbox.wire.disconnecting)
        self.server.clock.advance(20)
        self.assertTrue(sandbox.wire.disconnecting, "the data connection was left open")

    def test_pictureASecond(self) -> None:
        """One dial is enough for as long as somebody looks, whoever it is."""
        sandbox = self.sandbox()
        for number in range(10):
            pending = self.ask()
            asked = sandbox.next() if number else sandbox.pickUp()
            self.assertTrue(asked.startswith(b"GET /screenshot HTTP/1.1\r\n"), asked)
            sandbox.answer(PNG)
            answer = pending.answer()
            self.assertEqual((answer.status, answer.body), (200, PNG))
            timing = answer.headers["server-timing"]
            self.assertTrue(timing.startswith("reused, total" if number else "asked"), timing)
            self.server.clock.advance(1)
        self.assertEqual(sandbox.dials(), 1)
        counted = dict(self.server.observation.metrics.backends.items())
        self.assertEqual(counted, {"dialled": 1, "reused": 9, "replaced": 0})
        self.assertEqual(self.server.observation.tables()["http_backends_idle"], 1)

    def test_webPAndJPEG(self) -> None:
        """The two other kinds of picture pass too."""
        sandbox = self.sandbox()
        for kind, body in (
            ("image/jpeg", b"\xff\xd8\xff\xe0..."),
            ("image/webp", b"RIFF\0\0\0\0WEBP..."),
        ):
            pending = self.ask()
            if sandbox.wire is None:
                sandbox.pickUp()
            sandbox.answer(body, kind=kind)
            self.assertEqual(pending.answer().headers["content-type"], kind)

    def test_otherContentIsNotPassedOn(self) -> None:
        """HTML, SVG, and what only says that it is a picture, are refused."""
        sandbox = self.sandbox()
        for kind, body in (
            ("text/html", b"<script>alert(1)</script>"),
            ("image/svg+xml", b"<svg onload='x'/>"),
            ("image/png", b"<html>not a picture</html>"),
        ):
            pending = self.ask()
            if sandbox.wire is None:
                sandbox.pickUp()
            sandbox.answer(body, kind=kind)
            answer = pending.answer()
            self.assertEqual(answer.status, 502)
            self.assertNotIn(body, answer.raw)

    def test_pictureOverTheLimit(self) -> None:
        """A picture over the cap is a clean error."""
        sandbox = self.sandbox()
        pending = self.ask()
        sandbox.pickUp()
        sandbox.answer(PNG + b"x" * 10_000)
        self.assertEqual(pending.answer().status, 502)
        self.assertIn("too large", pending.answer().detail)

    def test_notConnected(self) -> None:
        """503 in the words that the command line shows."""
        answer = self.ask().answer()
        self.assertEqual(
            (answer.status, answer.detail, answer.json()["code"]),
            (503, "Sandbox not connected: no connection", "not-connected"),
        )

    def test_targetRefused(self) -> None:
        """502 when the agent is there and the desktop is not, in the agent's words."""
        sandbox = self.sandbox()
        pending = self.ask()
        sandbox.refuse("target-refused", "127.0.0.1:9876: connection refused")
        answer = pending.answer()
        self.assertEqual((answer.status, answer.json()["code"]), (502, "target-refused"))
        self.assertIn("127.0.0.1:9876: connection refused", answer.detail)

    def test_dialTimedOut(self) -> None:
        """504 when the agent does not dial back in the caller's time."""
        self.sandbox()
        pending = self.ask()
        self.server.clock.advance(9.9)
        self.assertFalse(pending.answered())
        self.server.clock.advance(0.2)
        answer = pending.answer()
        self.assertEqual((answer.status, answer.json()["code"]), (504, "timed-out"))

    def test_callersDeadline(self) -> None:
        """D14: a caller that says how long it waits is answered by then."""
        self.sandbox()
        raw = request("GET", self.path + "/screenshot", self.ann, headers={"Prefer": "wait=3"})
        pending = Pending(self.server, raw)
        self.server.clock.advance(2.9)
        self.assertFalse(pending.answered())
        self.server.clock.advance(0.2)
        self.assertEqual(pending.answer().json()["code"], "timed-out")

    def test_desktopStalls(self) -> None:
        """D14: 504 when the desktop accepts and says nothing: the deadline bounds it all."""
        sandbox = self.sandbox()
        pending = self.ask()
        sandbox.pickUp()
        self.server.clock.advance(10.1)
        answer = pending.answer()
        self.assertEqual((answer.status, answer.json()["code"]), (504, "target-timed-out"))
        assert sandbox.wire is not None
        self.assertTrue(sandbox.wire.disconnecting or sandbox.wire.aborted)

    def test_broken(self) -> None:
        """502 when the stream breaks off in the middle of the picture."""
        sandbox = self.sandbox()
        pending = self.ask()
        sandbox.pickUp()
        sandbox.data.dataReceived(
            b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 99\r\n\r\n" + PNG
        )
        sandbox.data.connectionLost(Failure(ConnectionLost()))
        answer = pending.answer()
        self.assertEqual((answer.status, answer.json()["code"]), (502, "broken"))

    def test_inGrace(self) -> None:
        """A dial waits for a runner in grace, and is answered when that returns."""
        sandbox = self.sandbox()
        sandbox.protocol.connectionLost(Failure(ConnectionLost()))
        connection = self.server.get(self.path + "/connection", self.ann).json()
        self.assertEqual((connection["status"], connection["detail"]), ("grace", None))
        self.assertEqual(connection["grace_seconds_left"], 30.0)
        pending = self.ask()
        self.server.clock.advance(5)
        self.assertFalse(pending.answered())
        again = self.sandbox()
        again.pickUp()
        again.answer(PNG)
        self.assertEqual(pending.answer().status, 200)

    def test_inGraceTimedOut(self) -> None:
        """503, and no 504, when the runner does not come back in the caller's time."""
        sandbox = self.sandbox()
        sandbox.protocol.connectionLost(Failure(ConnectionLost()))
        pending = self.ask()
        self.server.clock.advance(10.1)
        answer = pending.answer()
        self.assertEqual(
            (answer.status, answer.detail), (503, "Sandbox not connected: reconnect timeout")
        )

    def test_newerKeyFirst(self) -> None:
        """desktop-{session} is used where it is connected, else sandbox-{session}."""
        for prefix in ("sandbox-", "desktop-"):
            self.sandbox(prefix)
            connection = self.server.get(self.path + "/connection", self.ann).json()
            self.assertEqual(connection["runner"], prefix + self.session.id)
            self.assertEqual(connection["status"], "connected")
            self.assertEqual(connection["detail"]["carrier"], "raw")

    def test_theKeyThatIsAwaited(self) -> None:
        """
        A dial during the grace period waits for the runner that was lost, whichever of
        the two keys it holds; one that is connected goes before one that is awaited.
        """
        for prefix in ("sandbox-", "desktop-"):
            self.setUp()
            lost = self.sandbox(prefix)
            lost.protocol.connectionLost(Failure(ConnectionLost()))
            connection = self.server.get(self.path + "/connection", self.ann).json()
            self.assertEqual(connection["runner"], prefix + self.session.id)
            self.assertEqual(connection["status"], "grace")
            pending = self.ask()
            self.assertFalse(pending.answered(), f"{prefix} is awaited, but the dial failed")
            returned = self.sandbox(prefix)
            returned.pickUp()
            returned.answer(PNG)
            self.assertEqual(pending.answer().status, 200)
        self.setUp()
        self.sandbox("desktop-").protocol.connectionLost(Failure(ConnectionLost()))
        self.sandbox("sandbox-")
        connection = self.server.get(self.path + "/connection", self.ann).json()
        self.assertEqual(connection["runner"], "sandbox-" + self.session.id)

    def test_callerGoesAway(self) -> None:
        """A caller that hangs up takes its dial along: nothing waits for nobody."""
        self.sandbox()
        pending = self.ask()
        self.assertEqual(self.server.connections.stats().pendingDialsTotal, 1)
        pending.protocol.readConnectionLost()
        self.assertTrue(pending.wire.aborted, "a caller that closes its socket sends a FIN first")
        pending.protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.server.connections.stats().pendingDialsTotal, 0)

    def test_clipboard(self) -> None:
        """The clipboard goes both ways as the JSON that the desktop speaks."""
        sandbox = self.sandbox()
        content = b'{"type":"text","data":"hello"}'
        pending = self.ask("/clipboard")
        self.assertTrue(sandbox.pickUp().startswith(b"GET /clipboard HTTP/1.1\r\n"))
        sandbox.answer(content, kind="application/json")
        self.assertEqual(pending.answer().body, content)
        pending = self.ask("/clipboard", "POST", content)
        asked = sandbox.pickUp()
        self.assertTrue(asked.startswith(b"POST /clipboard HTTP/1.1\r\n"))
        self.assertTrue(asked.endswith(b"\r\n\r\n" + content), asked)
        sandbox.answer(b"")
        self.assertEqual((pending.answer().status, pending.answer().body), (200, b""))

    def test_clipboardIsDescribed(self) -> None:
        """The API's description says what a clipboard looks like, both ways."""
        document = self.server.get("/api/v1/openapi.json", None).json()
        path = document["paths"]["/api/v1/external-agents/{session}/clipboard"]
        reference = {"$ref": "#/components/schemas/ClipboardDocument"}
        read = path["get"]["responses"]["200"]["content"]["application/json"]
        written = path["post"]["requestBody"]["content"]["application/json"]
        self.assertEqual((read["schema"], written["schema"]), (reference, reference))
        shape = document["components"]["schemas"]["ClipboardDocument"]
        self.assertEqual(set(shape["required"]), {"type", "data"})

    def test_clipboardOverTheLimit(self) -> None:
        """413 before a dial for a clipboard over the cap."""
        self.sandbox()
        answer = self.ask("/clipboard", "POST", b"x" * 1001).answer()
        self.assertEqual(answer.status, 413)
        self.assertEqual(self.server.connections.stats().pendingDialsTotal, 0)

    def test_desktopsOwnErrors(self) -> None:
        """A desktop without a display is 503; what it says of itself is not passed on."""
        sandbox = self.sandbox()
        for said, status in (("503 No Display", 503), ("418 Teapot", 502), ("302 Found", 502)):
            pending = self.ask()
            if sandbox.wire is None:
                sandbox.pickUp()
            sandbox.answer(b"internal path /root/x", status=said, kind="text/plain")
            answer = pending.answer()
            self.assertEqual(answer.status, status)
            self.assertNotIn(b"/root/x", answer.raw)

    def test_desktopsReasons(self) -> None:
        """A word that our desktop service has for an error is said in words of the server's own."""
        sandbox = self.sandbox()
        plain = "The sandbox's desktop service answered with status 503"
        for said, kind, detail in (
            ({"code": "no-display", "detail": "/root/x"}, "application/problem+json", ": there is"),
            ({"code": "no-display"}, "text/plain", "."),
            ({"code": "/root/x"}, "application/problem+json", "."),
            ({"code": ["/root/x"]}, "application/problem+json", "."),
            (["/root/x"], "application/problem+json", "."),
        ):
            pending = self.ask()
            if sandbox.wire is None:
                sandbox.pickUp()
            sandbox.answer(json.dumps(said).encode(), status="503 No", kind=kind)
            answer = pending.answer()
            self.assertTrue(answer.detail.startswith(plain + detail), answer.detail)
            self.assertNotIn(b"/root/x", answer.raw)

    def test_whoMay(self) -> None:
        """Owner and administrators yes; other users 403; other tenants 404; runners 403."""
        self.sandbox()
        path = self.path + "/connection"
        statuses = {
            "owner": self.server.get(path, self.ann).status,
            "admin": self.server.get(path, self.server.user("root", "admin")).status,
            "other": self.server.get(path, self.server.user("bob")).status,
            "tenant": self.server.get(path, self.server.user("eve", "admin", "other")).status,
            "runner": self.server.get(path, self.server.runner()).status,
            "nobody": self.server.get(path).status,
        }
        self.assertEqual(
            statuses,
            {"owner": 200, "admin": 200, "other": 403, "tenant": 404, "runner": 403, "nobody": 401},
        )

    def test_targetForOthers(self) -> None:
        """
        A default target that its agent offers to the server alone, or to operators, is
        dialled for nobody else; what counts is what the connection says that is asked.
        """
        key, token = f"sandbox-{self.session.id}", self.server.sessionToken(self.session)
        for said in ("ui;expose=internal;default", "ui;expose=owner", "ui;expose=nonsense;default"):
            sandbox = Sandbox(self.server, key, token, Revdial_Targets=said)
            answer = self.ask().answer()
            self.assertEqual((answer.status, answer.json()["code"]), (403, "not-allowed"), said)
        self.assertEqual(self.server.connections.stats().pendingDialsTotal, 0)
        sandbox.protocol.connectionLost(Failure(ConnectionLost()))
        pending = self.ask()
        sandbox = Sandbox(self.server, key, token, Revdial_Targets="ui;expose=owner;default")
        sandbox.pickUp()
        sandbox.answer(PNG)
        self.assertEqual(pending.answer().status, 200)
        detail = self.server.get(
            "/api/v1/admin/revdial/status?detail=true", self.server.user("root", "admin")
        ).json()["details"][0]
        self.assertEqual(detail["targets"], [{"name": "ui", "expose": "owner", "default": True}])

    def test_unknownSession(self) -> None:
        """404 for a session that is not there."""
        path = "/api/v1/external-agents/ses_01M7YJEGZ9C0BKVHE6EDY79M3V/screenshot"
        self.assertEqual(self.server.get(path, self.ann).status, 404)
