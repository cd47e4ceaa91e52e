"""C{Idempotency-Key}: calls that are made again, over HTTP."""

from __future__ import annotations

from sqlalchemy import Connection, text
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.api.session_document import SessionDocument
from helix_revdial.http.operations import Call, Operation
from helix_revdial.http.problem import Problem
from tests.api.harness import Answer, Server, now, parse, request


class ReplayTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.server = Server()
        self.token = self.server.user()

    def post(
        self,
        key: str,
        body: object = None,
        path: str = "/api/v1/sessions",
        token: str | None = None,
    ) -> Answer:
        return self.server.ask(
            "POST",
            path,
            token or self.token,
            {"name": "one"} if body is None else body,
            {"Idempotency-Key": key},
        )

    def count(self) -> int:
        return int(self.server.get("/api/v1/sessions", self.token).json()["total"])

    def test_replayed(self) -> None:
        """The second time there is no second session: the same body, 200, and a word."""
        first, second = self.post("k1"), self.post("k1")
        self.assertEqual((first.status, second.status), (201, 200))
        self.assertEqual(first.body, second.body)
        self.assertEqual(first.headers["location"], second.headers["location"])
        self.assertNotIn("idempotency-replayed", first.headers)
        self.assertEqual(second.headers["idempotency-replayed"], "true")
        self.assertEqual(self.count(), 1)

    def test_sameInOtherWords(self) -> None:
        """The order of members and the white space say nothing."""
        token = self.server.user(role="admin")
        path = "/api/v1/tokens/import"
        one = b'{"kind":"runner","name":"r","patterns":["a-*"],"token":"0123456789"}'
        two = b' { "token": "0123456789", "name":"r", "patterns":["a-*"], "kind":"runner"}'
        self.assertEqual(self.post("k", one, path, token).status, 201)
        self.assertEqual(self.post("k", two, path, token).status, 200)

    def test_otherBody(self) -> None:
        """The key of another body is refused."""
        self.post("k1")
        answer = self.post("k1", {"name": "two"})
        self.assertEqual(answer.status, 422)
        self.assertEqual(
            answer.json()["type"], "https://docs.example.com/errors/idempotency-key-reuse"
        )
        self.assertEqual(self.count(), 1)

    def test_whose(self) -> None:
        """A key is its caller's, whichever token that shows; another's means nothing."""
        self.post("k1")
        self.assertEqual(self.post("k1", token=self.server.user("bob")).status, 201)
        self.assertEqual(self.post("k1", token=self.server.user(tenant="other")).status, 201)
        self.assertEqual(self.post("k1", token=self.server.user("ann")).status, 200)

    def test_everyPost(self) -> None:
        """There is no POST of ours that does not mind the key."""
        for row in self.server.table.operations:
            if row.method == "POST" and row.access is not None:
                self.assertTrue(row.takesKey, row.name)

    def test_badKeys(self) -> None:
        """A key is one value of up to 255 visible ASCII characters."""
        self.assertEqual(self.post("x" * 255).status, 201)
        for bad in ("x" * 256, "a b", "\xe9", ""):
            answer = self.post(bad)
            self.assertEqual(answer.status, 400, repr(bad))
            self.assertEqual(list(answer.json()["errors"]), ["Idempotency-Key"])
        self.assertEqual(self.count(), 1)

    def test_refusedFirst(self) -> None:
        """A call that was refused had no effect: the key is free for the right one."""
        self.assertEqual(self.post("k1", {"nome": "x"}).status, 400)
        self.assertEqual(self.post("k1").status, 201)

    def test_restart(self) -> None:
        """What was answered before a restart is replayed after it."""
        first = self.post("k1")
        other = Server(database=self.server.database)
        self.server = other
        second = self.post("k1")
        self.assertEqual((second.status, second.body), (200, first.body))

    def test_secret(self) -> None:
        """
        An answer with a secret is not kept: the repetition makes no second token, and says that
        the first was told once.
        """
        token = self.server.user(role="admin")
        body = {"kind": "runner", "name": "r", "patterns": ["a-*"]}
        first = self.post("k1", body, "/api/v1/tokens", token)
        second = self.post("k1", body, "/api/v1/tokens", token)
        self.assertEqual((first.status, second.status), (201, 409))
        self.assertEqual(second.json()["code"], "secret-not-kept")
        secret = first.json()["token"].encode()
        self.assertNotIn(secret, second.raw)

        def dump(connection: Connection) -> list[object]:
            return list(connection.execute(text("SELECT body, headers FROM idempotency")).all())

        (row,) = now(self.server.database.read(dump))
        self.assertEqual(tuple(row), (None, "[]"))


class RunningTests(SynchronousTestCase):
    """Calls that take their time."""

    def setUp(self) -> None:
        self.server = Server()
        self.token = self.server.user()
        self.gates: list[Deferred[object]] = []

        async def slow(call: Call) -> object:
            gate: Deferred[object] = Deferred()
            self.gates.append(gate)
            return await gate

        table = self.server.table
        self.server.table = type(table)(
            [
                *table.operations,
                Operation(
                    "slow",
                    "POST",
                    "/api/v1/slow",
                    slow,
                    access="user",
                    response=SessionDocument,
                    status=201,
                ),
            ],
            authenticate=table._authenticate,
            authorise=table._authorise,
            once=self.server.services.replays.once,
        )
        self.bytes = request(
            "POST",
            "/api/v1/slow",
            self.token,
            headers={"Idempotency-Key": "k", "Content-Length": "0"},
        )

    def again(self) -> Answer:
        protocol, wire = self.server.connect()
        protocol.dataReceived(self.bytes)
        return parse(wire.value())

    def test_running(self) -> None:
        """While the first is carried out others are told to come back in a second."""
        protocol, wire = self.server.connect()
        protocol.dataReceived(self.bytes)
        answer = self.again()
        self.assertEqual((answer.status, answer.headers["retry-after"]), (409, "1"))
        self.gates[0].callback({"id": "1"})
        self.assertEqual(parse(wire.value()).status, 201)
        self.assertEqual(self.again().status, 200)
        self.assertEqual(len(self.gates), 1)

    def test_callerGone(self) -> None:
        """The caller of the first goes away: it is carried out, and whoever asks again hears."""
        protocol, _ = self.server.connect()
        protocol.dataReceived(self.bytes)
        protocol.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.again().status, 409)
        self.gates[0].callback({"id": "1"})
        answer = self.again()
        self.assertEqual((answer.status, answer.json()), (200, {"id": "1"}))
        self.assertEqual(len(self.gates), 1)

    def test_callerGoneAndFailed(self) -> None:
        """What then fails is in the log, and the key is free."""
        for error, logged in ((ZeroDivisionError(), 1), (Problem(409, "no"), 0)):
            protocol, _ = self.server.connect()
            protocol.dataReceived(self.bytes)
            protocol.connectionLost(Failure(ConnectionLost()))
            self.gates[-1].errback(error)
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), logged)
        self.server.connect()[0].dataReceived(self.bytes)
        self.assertEqual(len(self.gates), 3)

    def test_failed(self) -> None:
        """A failure is not kept: the repetition is carried out."""
        for error, status in ((ZeroDivisionError(), 500), (Problem(503), 503), (Problem(404), 404)):
            protocol, wire = self.server.connect()
            protocol.dataReceived(self.bytes)
            self.gates[-1].errback(error)
            self.assertEqual(parse(wire.value()).status, status)
        self.flushLoggedErrors(ZeroDivisionError)
        protocol, wire = self.server.connect()
        protocol.dataReceived(self.bytes)
        self.gates[-1].callback({"id": "1"})
        self.assertEqual(parse(wire.value()).status, 201)
