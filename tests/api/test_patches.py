"""Tests for L{helix_revdial.api.patches} and L{helix_revdial.sessions.patch_copies}."""

from __future__ import annotations

import base64
import hashlib
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from unittest.mock import patch

from sqlalchemy import delete

from helix_revdial.config import ServerConfig, ServerSection, SessionsSection
from helix_revdial.sessions.executor import ExecutorRefused, ExecutorUnreachable
from helix_revdial.sessions.synthetic import PATCH
from helix_revdial.storage.tables import sessions
from tests.api.harness import Answer, Server, await_, now
from tests.api.test_tasks import CONFIG, TaskTestCase
from tests.api.test_timeline import chunks
from tests.storage.databases import newDatabase
from tests.storage.postgresql import OnPostgreSQL


class PatchTestCase(TaskTestCase):
    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="hx-"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.config = ServerConfig(
            agents=CONFIG.agents,
            server=ServerSection(stateDirectory=str(self.directory)),
            sessions=SessionsSection(patchRetention=1.0),
        )
        super().setUp()
        self.server.services.patchCopies.begin()
        self.addCleanup(lambda: await_(self.server.services.patchCopies.stop()))

    def fetch(self, session: str) -> Answer:
        return self.server.get(f"/api/v1/sessions/{session}/patch", self.ann)

    def files(self) -> list[str]:
        return [path.name for path in (self.directory / "patches").iterdir()]

    def wait(self, seconds: float) -> None:
        self.server.clock.pump([1.0] * int(seconds))


class PatchTests(PatchTestCase):
    def assertWhole(self, answer: Answer) -> None:
        self.assertEqual((answer.status, answer.body), (200, PATCH))
        digest = hashlib.sha256(PATCH)
        self.assertEqual(answer.headers["etag"], f'"{digest.hexdigest()}"')
        said = base64.b64encode(digest.digest()).decode()
        self.assertEqual(answer.headers["repr-digest"], f"sha-256=:{said}:")
        self.assertEqual(answer.headers["content-type"], "text/x-diff; charset=utf-8")

    def test_hostThatIsGone(self) -> None:
        """A patch can be had when its host forgot the session, and when it is gone."""
        session = self.task()
        done = self.until(session, "completed")
        self.assertEqual(done["delivery"]["sha256"], hashlib.sha256(PATCH).hexdigest())
        self.assertWhole(self.fetch(session))
        await_(self.runner.forget(session))
        self.assertWhole(self.fetch(session))
        self.server.services.executors.remove("host-1")
        self.assertWhole(self.fetch(session))

    def test_restart(self) -> None:
        """So it is after a restart of the server."""
        session = self.task()
        self.until(session, "completed")
        await_(self.server.services.patchCopies.stop())
        before = self.server
        await_(before.services.driver.stop())
        self.server = Server(self.config, database=before.database)
        self.server.clock.advance(before.clock.seconds() - 1000)
        self.server.services.patchCopies.begin()
        self.assertWhole(self.fetch(session))

    def test_whileItRuns(self) -> None:
        """What runs is asked for its patch of now."""
        session = self.task(prompt="forever")
        self.until(session, "running")
        answer = self.fetch(session)
        self.assertEqual((answer.status, chunks(answer.body)), (200, PATCH))
        self.assertNotIn("etag", answer.headers)
        self.assertEqual(self.files(), [])

    def test_stopped(self) -> None:
        """What was stopped, or failed, leaves its patch, too."""
        stopped, failed = self.task(prompt="forever"), self.task(prompt="fail")
        self.until(stopped, "running")
        self.do(stopped, "stop", {})
        for session, status in ((stopped, "stopped"), (failed, "failed")):
            self.until(session, status)
            await_(self.runner.forget(session))
            self.assertWhole(self.fetch(session))

    def test_otherDeliveries(self) -> None:
        """Of a task that delivers otherwise there is no copy: its url is where it went."""
        session = self.task(delivery={"mode": "branch", "targetBranch": "fix"})
        done = self.until(session, "completed")
        self.assertEqual(self.files(), [])
        self.assertEqual(done["vcs"]["delivery"]["mode"], "branch")
        self.assertEqual(done["links"]["delivery"], done["vcs"]["delivery"]["url"])
        self.assertNotIn("patch", done["links"])
        (event,) = await_(self.server.services.events.read(session, types=["delivery"]))
        self.assertEqual(event.data["url"], done["links"]["delivery"])
        self.assertEqual(self.fetch(session).status, 200)

    def test_hostThatIsAway(self) -> None:
        """The host is asked again until it is there; nothing else waits for that."""
        asked = 0

        async def away(session: str) -> AsyncIterator[bytes]:
            nonlocal asked
            asked += 1
            yield b"diff"
            raise ExecutorUnreachable("it is away")

        with patch.object(self.runner, "patch", away):
            session = self.task()
            self.until(session, "completed")
            self.wait(100)
            self.assertEqual(self.files(), [])
            self.assertEqual(self.server.services.patchCopies.fetching, 1)
            self.assertLess(asked, 12)
        self.wait(61)
        self.assertEqual(self.server.services.patchCopies.fetching, 0)
        self.assertEqual(len(self.files()), 1)

    def test_hostThatStaysAway(self) -> None:
        """There is an end to asking."""

        async def away(session: str) -> AsyncIterator[bytes]:
            raise ExecutorUnreachable("it is away")
            yield b""

        with patch.object(self.runner, "patch", away):
            session = self.task()
            self.until(session, "completed")
            self.server.clock.pump([60.0] * 70)
            self.assertEqual(self.server.services.patchCopies.fetching, 0)
            self.assertEqual(self.fetch(session).status, 503)

    def test_hostThatRefuses(self) -> None:
        """What a host does not have is not asked for again."""

        async def refuse(session: str) -> AsyncIterator[bytes]:
            raise ExecutorRefused("there is none")
            yield b""

        with patch.object(self.runner, "patch", refuse):
            session = self.task()
            self.until(session, "completed")
            self.assertEqual(self.server.services.patchCopies.fetching, 0)
            self.assertEqual(self.fetch(session).status, 409)

    def test_killedBefore(self) -> None:
        """What was not fetched when the server ended is fetched after its next start."""
        await_(self.server.services.patchCopies.stop())
        session, other = self.task(), self.task(delivery=None)
        self.until(session, "completed")
        self.until(other, "completed")
        self.assertEqual(self.files(), [])
        server = Server(self.config, database=self.server.database)
        server.clock.advance(self.server.clock.seconds() - 1000)
        server.services.executors.add("host-1", self.runner)
        server.services.patchCopies.begin()
        self.assertEqual([name.partition(".")[0] for name in self.files()], [session])

    def test_deleted(self) -> None:
        """With the session its patch goes."""
        session = self.task()
        self.until(session, "completed")
        self.assertEqual(len(self.files()), 1)
        self.assertEqual(self.server.delete(f"/api/v1/sessions/{session}", self.ann).status, 204)
        self.assertEqual(self.files(), [])
        self.assertEqual(self.fetch(session).status, 404)

    def test_removedElsewhere(self) -> None:
        """What somebody else removed the session of is found at the next look."""
        session, other = self.task(), self.task()
        self.until(session, "completed")
        self.until(other, "completed")
        query = delete(sessions).where(sessions.c.id == session)
        now(self.server.database.run(lambda connection: connection.execute(query).rowcount))
        self.assertEqual(len(self.files()), 2)
        self.server.clock.advance(3600)
        self.assertEqual([name.partition(".")[0] for name in self.files()], [other])

    def test_old(self) -> None:
        """A patch is kept for so many days."""
        session = self.task()
        self.until(session, "completed")
        self.server.clock.pump([1800.0] * 60)
        self.assertEqual(self.files(), [])
        self.assertEqual(self.fetch(session).status, 200)

    def test_damaged(self) -> None:
        """A copy that was damaged is as if it had never been."""
        session = self.task()
        self.until(session, "completed")
        (name,) = self.files()
        (self.directory / "patches" / name).write_bytes(b"nonsense")
        answer = self.fetch(session)
        self.assertEqual((answer.status, chunks(answer.body)), (200, PATCH))
        self.assertEqual(self.files(), [])

    def test_head(self) -> None:
        """HEAD says how long it is."""
        session = self.task()
        self.until(session, "completed")
        answer = self.server.ask("HEAD", f"/api/v1/sessions/{session}/patch", self.ann)
        self.assertEqual((answer.status, answer.body), (200, b""))
        self.assertEqual(answer.headers["content-length"], str(len(PATCH)))


class PatchPostgreSQLTests(OnPostgreSQL, PatchTests):
    def setUp(self) -> None:
        super().setUp()
        await_(self.server.services.patchCopies.stop())
        await_(self.server.services.driver.stop())
        self.server = Server(self.config, database=newDatabase(self))
        self.runner = self.server.host()
        self.ann = self.server.user()
        self.server.services.patchCopies.begin()
