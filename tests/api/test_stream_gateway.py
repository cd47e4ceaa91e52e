"""Streams from a caller's machine to a target: who may, what each failure is, and what is left."""

from __future__ import annotations

from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.config import LimitsSection, ServerConfig
from tests.api.harness import Answer, Server, await_, request
from tests.api.test_external_agents import Pending, Sandbox

TARGETS = "api;expose=operator;default, desk;expose=owner, wolf;expose=internal"


def stream(path: str, token: str | None, *, upgrade: str = "revdial", **headers: str) -> bytes:
    """A request for a stream."""
    fields = {"Connection": "Upgrade", "Upgrade": upgrade}
    if upgrade == "websocket":
        fields |= {"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    return request("GET", path, token, headers=fields)


class StreamTestCase(SynchronousTestCase):
    """A server with a machine and a session's sandbox."""

    def setUp(self) -> None:
        self.server = Server(ServerConfig(limits=LimitsSection(streamsPerUser=2)))
        self.operator = self.server.user("ann")

    def machine(self, key: str = "wolf-1", targets: str = TARGETS) -> Sandbox:
        return Sandbox(self.server, key, self.server.runner("wolf-*"), Revdial_Targets=targets)

    def ask(self, target: str | None = "api", token: str | None = None, **words: str) -> Pending:
        query = "" if target is None else f"?target={target}"
        path = f"/api/v1/runners/wolf-1/stream{query}"
        return Pending(self.server, stream(path, token or self.operator, **words))

    def nothingLeft(self) -> None:
        """Neither the gateway nor the connections keep anything."""
        self.assertEqual(len(self.server.services.streams), 0)
        self.assertEqual(self.server.connections.openStreams, 0)
        self.assertEqual(self.server.connections.dialsUnderWay, 0)

    def lose(self, pending: Pending) -> None:
        """The caller's connection breaks."""
        pending.protocol.connectionLost(Failure(ConnectionLost()))


class OpenTests(StreamTestCase):
    """A stream that comes about."""

    def test_notBeforeTheTargetIsConnected(self) -> None:
        """101 comes when the target is connected, and then bytes flow both ways."""
        agent = self.machine()
        pending = self.ask(Revdial_Features="eof")
        self.assertFalse(pending.answered(), "101 before there is a stream")
        self.assertEqual(agent.asked()["target"], "api")
        agent.pickUp()
        head, _, rest = pending.wire.value().partition(b"\r\n\r\n")
        self.assertTrue(head.startswith(b"HTTP/1.1 101 "), head)
        self.assertIn(b"\r\nUpgrade: revdial", head)
        self.assertIn(b"\r\nRevdial-Features: eof", head)
        self.assertEqual(rest, b"")
        self.server.clock.advance(0)
        assert agent.wire is not None
        agent.wire.clear()
        pending.wire.clear()
        pending.protocol.dataReceived(b"ping")
        self.assertEqual(agent.wire.value(), b"ping")
        agent.data.dataReceived(b"pong")
        self.assertEqual(pending.wire.value(), b"pong")

    def test_bytesThatCameWithTheRequest(self) -> None:
        """What a caller sends before the 101 reaches the target, whole and in order."""
        agent = self.machine()
        path = "/api/v1/runners/wolf-1/stream?target=api"
        pending = Pending(self.server, stream(path, self.operator) + b"early ")
        pending.protocol.dataReceived(b"bird")
        agent.pickUp()
        self.server.clock.advance(0)
        assert agent.wire is not None
        self.assertTrue(agent.wire.value().endswith(b"\r\n\r\nearly bird"), agent.wire.value())

    def test_webSocket(self) -> None:
        """Over WebSocket: the handshake is answered, frames carry the bytes."""
        agent = self.machine()
        pending = self.ask(upgrade="websocket", Revdial_Features="eof")
        agent.pickUp()
        self.server.clock.advance(0)
        head = pending.wire.value().partition(b"\r\n\r\n")[0]
        self.assertTrue(head.startswith(b"HTTP/1.1 101 "), head)
        self.assertIn(b"sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=", head.lower())
        pending.wire.clear()
        agent.data.dataReceived(b"pong")
        self.assertEqual(pending.wire.value(), b"\x82\x04pong")

    def test_theDefaultTarget(self) -> None:
        """Without a target's name the agent's default is dialled, if it is for the caller."""
        agent = self.machine()
        pending = self.ask(None)
        self.assertNotIn("target", agent.asked())
        agent.pickUp()
        self.assertTrue(pending.wire.value().startswith(b"HTTP/1.1 101 "))

    def test_aCallerThatGoesTakesTheDialWithIt(self) -> None:
        """A caller that goes away while it waits leaves no dial and no share."""
        agent = self.machine()
        pending = self.ask()
        self.lose(pending)
        self.nothingLeft()
        agent.pickUp()
        assert agent.wire is not None
        self.assertTrue(agent.wire.value().startswith(b"HTTP/1.1 404 "), "C1: a late dial-back")

    def test_nothingIsLeftOfAStream(self) -> None:
        """A stream that ends, at either end, gives its share back."""
        agent = self.machine()
        for byCaller in (True, False, True):
            pending = self.ask()
            agent.pickUp()
            self.server.clock.advance(0)
            self.assertEqual(len(self.server.services.streams), 1)
            if byCaller:
                self.lose(pending)
            else:
                agent.data.connectionLost(Failure(ConnectionLost()))
            self.assertTrue(
                agent.wire.aborted if byCaller else pending.wire.aborted,  # type: ignore[union-attr]
                "a break on one side is a break on the other",
            )
            self.lose(pending)
            agent.data.connectionLost(Failure(ConnectionLost()))
            self.nothingLeft()


class RefusalTests(StreamTestCase):
    """A stream that does not."""

    def refused(self, pending: Pending, status: int, code: str | None) -> Answer:
        answer = pending.answer()
        self.assertEqual(answer.status, status, answer.raw)
        self.assertEqual(answer.json().get("code"), code, answer.raw)
        self.assertEqual(len(self.server.services.streams), 0)
        return answer

    def test_noToken(self) -> None:
        """401 without a token."""
        raw = stream("/api/v1/runners/wolf-1/stream", None)
        self.refused(Pending(self.server, raw), 401, "unauthenticated")

    def test_noUpgrade(self) -> None:
        """426 for a plain request, with what is understood."""
        pending = Pending(
            self.server, request("GET", "/api/v1/runners/wolf-1/stream", self.operator)
        )
        answer = self.refused(pending, 426, None)
        self.assertEqual(answer.headers["upgrade"], "revdial, websocket")

    def test_badNames(self) -> None:
        """400 for a runner or a target that cannot be one, and for a poor handshake."""
        for path in ("/api/v1/runners/-x/stream", "/api/v1/runners/wolf-1/stream?target=a%2Fb"):
            self.refused(Pending(self.server, stream(path, self.operator)), 400, None)
        raw = stream("/api/v1/runners/wolf-1/stream", self.operator, upgrade="websocket",
                     Sec_WebSocket_Key="short")  # fmt: skip
        self.refused(Pending(self.server, raw), 400, None)

    def test_notConnected(self) -> None:
        """The dial's own error, by status and word."""
        answer = self.refused(self.ask(), 503, "not-connected")
        self.assertEqual(answer.detail, "Runner wolf-1 not connected: no connection")

    def test_theTargetRefuses(self) -> None:
        """502 with the agent's words; D13: the control connection and other streams go on."""
        agent = self.machine()
        first = self.ask()
        agent.pickUp()
        self.server.clock.advance(0)
        pending = self.ask("desk")
        agent.refuse("target-refused", "127.0.0.1:9: Connection refused")
        answer = pending.answer()
        self.assertEqual((answer.status, answer.json()["code"]), (502, "target-refused"))
        self.assertIn("127.0.0.1:9: Connection refused", answer.detail)
        self.assertEqual(self.server.connections.status("wolf-1"), "connected")
        agent.data.dataReceived(b"still here")
        self.assertTrue(first.wire.value().endswith(b"still here"))

    def test_theCallersDeadline(self) -> None:
        """C{Prefer: wait} bounds the dial."""
        self.machine()
        pending = self.ask(Prefer="wait=2")
        self.server.clock.advance(1.9)
        self.assertFalse(pending.answered())
        self.server.clock.advance(0.2)
        self.refused(pending, 504, "timed-out")
        self.nothingLeft()

    def test_whatTheTargetIsFor(self) -> None:
        """F2: each stream is judged by what the agent says of the target; refusals are audited."""
        self.machine()
        self.refused(self.ask("wolf"), 403, "not-allowed")
        self.refused(self.ask("unlisted"), 403, "not-allowed")
        events = [entry for entry in self.server.events() if entry.event == "stream-refused"]
        self.assertEqual([entry.fields["target"] for entry in events], ["wolf", "unlisted"])
        self.nothingLeft()

    def test_aViewerLearnsNothing(self) -> None:
        """Who may have none of a runner's targets does not learn whether it is connected."""
        viewer = self.server.user("vic", role="viewer")
        away = self.refused(self.ask(token=viewer), 403, "not-allowed").detail
        self.machine()
        self.assertEqual(self.refused(self.ask(token=viewer), 403, "not-allowed").detail, away)

    def test_tokensOfMachines(self) -> None:
        """A runner's token opens no stream."""
        self.refused(self.ask(token=self.server.runner("wolf-*")), 403, "not-allowed")

    def test_tooMany(self) -> None:
        """A user has so many streams, dials included; another user is not concerned."""
        agent = self.machine()
        first, _second = self.ask(), self.ask()
        answer = self.ask().answer()
        self.assertEqual((answer.status, answer.json()["code"]), (503, "busy"))
        self.assertIn("retry-after", answer.headers)
        bob = self.ask(token=self.server.user("bob"))
        agent.pickUp()
        self.assertTrue(bob.answered())
        self.lose(first)
        self.assertFalse(self.ask().answered(), "the share of the lost caller was not given back")


class SessionTests(StreamTestCase):
    """Streams to a session's runner."""

    def setUp(self) -> None:
        super().setUp()
        self.session = self.server.session("ann")
        self.path = f"/api/v1/sessions/{self.session.id}/stream?target="

    def sandbox(self) -> Sandbox:
        token = self.server.sessionToken(self.session)
        return Sandbox(self.server, "sandbox-" + self.session.id, token, Revdial_Targets=TARGETS)

    def status(self, path: str, token: str) -> int:
        """The status of an answer, 101 for a dial that is asked of the agent."""
        pending = Pending(self.server, stream(path, token))
        if pending.answered():
            return pending.answer().status
        self.lose(pending)
        return 101

    def test_whoMay(self) -> None:
        """The table of targets, walked by the session's path and by the runner's key."""
        self.sandbox()
        users = {
            "owner": self.operator,
            "colleague": self.server.user("bob"),
            "viewer": self.server.user("vic", role="viewer"),
            "admin": self.server.user("root", role="admin"),
        }
        expected = {
            "desk": {"owner": 101, "colleague": 403, "viewer": 403, "admin": 101},
            "api": {"owner": 101, "colleague": 101, "viewer": 403, "admin": 101},
            "wolf": dict.fromkeys(users, 403),
        }
        key = f"/api/v1/runners/sandbox-{self.session.id}/stream?target="
        for target, answers in expected.items():
            for name, token in users.items():
                for path in (self.path, key):
                    self.assertEqual(
                        self.status(path + target, token), answers[name], (target, name, path)
                    )

    def test_anotherTenant(self) -> None:
        """Another tenant's session does not exist, and its runner is nobody's."""
        self.sandbox()
        stranger = self.server.user("eve", role="admin", tenant="other")
        self.assertEqual(self.status(self.path + "desk", stranger), 404)
        key = f"/api/v1/runners/sandbox-{self.session.id}/stream?target=desk"
        self.assertEqual(self.status(key, stranger), 403)

    def test_theSessionIsDeleted(self) -> None:
        """The end of a session cuts its streams at both ends."""
        sandbox = self.sandbox()
        pending = Pending(self.server, stream(self.path + "desk", self.operator))
        sandbox.pickUp()
        self.server.clock.advance(0)
        self.assertTrue(pending.wire.value().startswith(b"HTTP/1.1 101 "))
        await_(self.server.sessions.delete(self.session.id))
        assert sandbox.wire is not None
        self.assertTrue(sandbox.wire.aborted)


class RevocationTests(StreamTestCase):
    """F3: what ends with the token."""

    def setUp(self) -> None:
        super().setUp()
        self.record, self.secret = await_(
            self.server.tokens.create("user", name="x", user="bob", role="operator")
        )

    def test_aStreamIsCut(self) -> None:
        """Revoking the caller's token cuts its streams, and nobody else's."""
        agent = self.machine()
        others = self.ask()
        agent.pickUp()
        self.server.clock.advance(0)
        pending = self.ask(token=self.secret)
        agent.pickUp()
        self.server.clock.advance(0)
        await_(self.server.tokens.revoke(self.record.id))
        self.assertTrue(pending.wire.aborted)
        assert agent.wire is not None
        self.assertTrue(agent.wire.aborted)
        self.assertFalse(others.wire.aborted)

    def test_aDialThatWaits(self) -> None:
        """A dial that is under way ends with 401."""
        self.machine()
        pending = self.ask(token=self.secret)
        await_(self.server.tokens.revoke(self.record.id))
        self.assertEqual(pending.answer().status, 401)
        self.nothingLeft()

    def test_theRunnersToken(self) -> None:
        """Revoking the runner's token cuts the stream."""
        record, secret = await_(self.server.tokens.create("runner", name="r", patterns=("wolf-*",)))
        agent = Sandbox(self.server, "wolf-1", secret, Revdial_Targets=TARGETS)
        pending = self.ask()
        agent.pickUp()
        self.server.clock.advance(0)
        await_(self.server.tokens.revoke(record.id))
        agent.data.connectionLost(Failure(ConnectionLost()))
        self.assertTrue(pending.wire.aborted)
