"""Tests for L{helix_revdial.api.uploads}, and for tasks that begin with one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.error import ConnectionLost
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.iweb import IBodyProducer

from helix_revdial.config import ServerConfig, UploadsSection
from helix_revdial.sessions.executor import LaunchSpec
from tests.api.harness import Answer, now, parse, request
from tests.api.test_tasks import CONFIG, TaskTestCase, body

PATH = "/api/v1/uploads"

CONTENT = b"PK" + b"x" * 98


class UploadTests(TaskTestCase):
    """Over HTTP, to the host that runs the task."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        section = UploadsSection(directory=str(self.directory), maxBytes=1000, tenantBytes=3000)
        self.config: ServerConfig = msgspec.structs.replace(CONFIG, uploads=section)
        super().setUp()

    def promise(self, token: str | None = None, **fields: Any) -> Any:
        answer = self.server.post(PATH, token or self.ann, fields)
        self.assertEqual(answer.status, 201, answer.body)
        return answer.json()

    def put(self, promise: Any, content: bytes = CONTENT, token: str | None = None) -> Answer:
        return self.server.ask(
            promise["method"], promise["url"], token or self.ann, content, dict(promise["headers"])
        )

    def sent(self) -> str:
        promise = self.promise()
        self.assertEqual(self.put(promise).status, 200)
        return str(promise["uploadToken"])

    def hand(self, upload: str, token: str | None = None) -> Answer:
        fields = body(repo={"mode": "upload", "uploadToken": upload})
        return self.server.post("/api/v1/tasks", token or self.ann, fields)

    def test_promised(self) -> None:
        """Where, how, how long, how much; and no token in a URL."""
        answer = self.server.post(PATH, self.ann, {})
        self.assertEqual(answer.status, 201)
        told = answer.json()
        self.assertEqual((told["method"], told["maxBytes"]), ("PUT", 1000))
        self.assertEqual(told["url"], f"{PATH}/{told['id']}")
        self.assertEqual(answer.headers["location"], told["url"])
        self.assertEqual(told["headers"]["Upload-Token"], told["uploadToken"])
        self.assertNotIn(told["uploadToken"], told["url"])
        self.assertGreater(told["expiresAt"], "2027-01-15T")
        self.assertEqual(self.server.post(PATH, self.ann, {"size": 1001}).status, 413)
        self.assertEqual(self.promise(size=10)["maxBytes"], 10)

    def test_sent(self) -> None:
        """An archive is sent once, and its digest told."""
        promise = self.promise()
        answer = self.put(promise)
        self.assertEqual(answer.status, 200, answer.body)
        told = answer.json()
        self.assertEqual((told["id"], told["size"]), (promise["id"], 100))
        self.assertEqual(told["sha256"], hashlib.sha256(CONTENT).hexdigest())
        again = self.put(promise)
        self.assertEqual((again.status, again.json()["code"]), (409, "upload-spent"))

    def test_whoMay(self) -> None:
        """The token is not enough, and nor is the caller."""
        promise = self.promise()
        bare = {"Content-Type": "application/octet-stream"}
        for token, headers, status in (
            (None, promise["headers"], 401),
            (self.server.user("vic", "viewer"), promise["headers"], 403),
            (self.server.user("bob"), promise["headers"], 404),
            (self.server.user("ann", tenant="other"), promise["headers"], 404),
            (self.ann, bare, 400),
            (self.ann, bare | {"Upload-Token": "hlxu_wrong"}, 404),
        ):
            answer = self.server.ask("PUT", promise["url"], token, CONTENT, dict(headers))
            self.assertEqual(answer.status, status, answer.body)
        self.assertEqual(self.put(promise).status, 200)

    def test_tooLarge(self) -> None:
        """D4: more than was promised is refused before it is read."""
        promise = self.promise(size=10)
        protocol, transport = self.server.connect()
        head = request("PUT", promise["url"], self.ann, CONTENT, dict(promise["headers"]))
        protocol.dataReceived(head[: -len(CONTENT)])
        self.assertEqual(parse(transport.value()).status, 413)
        self.assertFalse(self.directory.exists())

    def test_incomplete(self) -> None:
        """What is not the whole archive is refused, and does not use the upload up."""
        promise = self.promise(size=100)
        for content in (CONTENT[:-1], b""):
            answer = self.put(promise, content)
            self.assertEqual((answer.status, answer.json()["code"]), (400, "upload-incomplete"))
        promise["headers"]["Content-Range"] = "bytes 0-99/200"
        self.assertEqual(self.put(promise).status, 400)
        del promise["headers"]["Content-Range"]
        self.assertEqual(self.put(promise).status, 200)

    def test_brokenOff(self) -> None:
        """A sender that goes away leaves nothing, and may come back."""
        promise = self.promise()
        protocol, _ = self.server.connect()
        whole = request("PUT", promise["url"], self.ann, CONTENT, dict(promise["headers"]))
        protocol.dataReceived(whole[:-40])
        self.assertEqual(len(list(self.directory.iterdir())), 1)
        protocol.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(list(self.directory.iterdir()), [])
        self.assertEqual(self.put(promise).status, 200)
        self.flushLoggedErrors()

    def test_anyMedia(self) -> None:
        """What programs say of an archive does not matter; a coding does."""
        for media in ("application/zip", "application/x-tar", "application/gzip", "x/y"):
            promise = self.promise()
            promise["headers"]["Content-Type"] = media
            self.assertEqual(self.put(promise, b"x").status, 200, media)
        promise = self.promise()
        promise["headers"]["Content-Encoding"] = "gzip"
        self.assertEqual(self.put(promise).status, 415)

    def test_quota(self) -> None:
        """A tenant has so many bytes."""
        for _ in range(3):
            self.promise()
        answer = self.server.post(PATH, self.ann, {})
        self.assertEqual((answer.status, answer.json()["code"]), (413, "upload-quota"))

    def test_notToldTwice(self) -> None:
        """An answer with a secret is not kept for a repetition."""
        headers = {"Idempotency-Key": "k1"}
        made = self.server.ask("POST", PATH, self.ann, {}, headers)
        again = self.server.ask("POST", PATH, self.ann, {}, headers)
        self.assertEqual((made.status, again.status), (201, 409))
        self.assertEqual(again.headers["location"], made.headers["location"])
        self.assertNotIn(b"hlxu_", again.body)
        kept = now(
            self.server.database.read(
                lambda c: str(list(c.exec_driver_sql("SELECT * FROM idempotency")))
            )
        )
        self.assertNotIn("hlxu_", kept)

    def test_handedIn(self) -> None:
        """A task has it, alone; and it is shown nowhere."""
        upload = self.sent()
        self.assertEqual(self.hand(upload, self.server.user("bob")).status, 400)
        answer = self.hand(upload)
        self.assertEqual(answer.status, 201, answer.body)
        session = answer.json()["id"]
        again = self.hand(upload)
        self.assertEqual(again.status, 400)
        self.assertEqual(set(again.json()["errors"]), {"repo.uploadToken"})
        for path in (f"/{session}", "", f"/{session}/logs"):
            text = self.server.get(f"/api/v1/sessions{path}", self.ann).body.decode()
            self.assertNotIn(upload, text)
        self.assertEqual(self.server.get("/api/v1/sessions", self.ann).json()["total"], 1)

    def test_notSentYet(self) -> None:
        """What was not sent cannot be used, and makes no session."""
        answer = self.hand(self.promise()["uploadToken"])
        self.assertEqual(answer.status, 400)
        self.assertEqual(self.server.get("/api/v1/sessions", self.ann).json()["total"], 0)

    def test_toTheHost(self) -> None:
        """The host has the archive before it is told of the session; then it is gone here."""
        told: list[tuple[str, bytes | str | None]] = []
        launch = self.runner.launch

        async def upload(name: str, archive: IBodyProducer) -> str:
            transport = StringTransport()
            await archive.startProducing(transport)
            told.append(("archive", transport.value()))
            return f"there-{name}"

        async def launched(session: str, spec: LaunchSpec) -> None:
            told.append(("launch", spec.repo.uploadPath))
            await launch(session, spec)

        self.patch(self.runner, "upload", upload)
        self.patch(self.runner, "launch", launched)
        promise = self.promise()
        self.put(promise)
        session = self.hand(promise["uploadToken"]).json()["id"]
        self.until(session, "completed")
        self.assertEqual(told, [("archive", CONTENT), ("launch", f"there-{promise['id']}")])
        self.assertEqual(list(self.directory.iterdir()), [])

    def test_archiveGone(self) -> None:
        """A session whose archive somebody removed fails, and says why."""
        upload = self.sent()
        self.server.services.executors.remove("host-1")
        session = self.hand(upload).json()["id"]
        for one in self.directory.iterdir():
            one.unlink()
        self.server.services.executors.add("host-1", self.runner)
        failed = self.until(session, "failed")
        self.assertIn("archive", failed["error"])
