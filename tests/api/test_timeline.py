"""Tests for L{helix_revdial.api.timeline}."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import patch

from helix_revdial.config import ServerConfig, SessionsSection
from helix_revdial.sessions import moments
from helix_revdial.sessions.executor import SnapshotMade
from helix_revdial.storage.database import Database
from helix_revdial.storage.failures import DatabaseUnavailable
from tests.api.harness import Answer, Server, await_, request
from tests.api.test_session_events import Client
from tests.api.test_tasks import CONFIG, TaskTestCase
from tests.storage.databases import BreakableThread, newDatabase
from tests.storage.postgresql import OnPostgreSQL


def chunks(body: bytes) -> bytes:
    """What the chunks of an answer hold; fails where the last one is missing."""
    found = b""
    while True:
        size, _, rest = body.partition(b"\r\n")
        count = int(size, 16)
        if not count:
            return found
        found, body = found + rest[:count], rest[count + 2 :]


class TimelineTestCase(TaskTestCase):
    def do_(
        self, session: str, what: str, fields: object = None, token: str | None = None
    ) -> Answer:
        path = f"/api/v1/sessions/{session}/{what}"
        return self.server.ask("POST", path, token or self.ann, fields)

    def look(self, session: str, what: str, token: str | None = None) -> Answer:
        return self.server.get(f"/api/v1/sessions/{session}/{what}", token or self.ann)

    def made(self, session: str, what: str, fields: object = None) -> Any:
        answer = self.do_(session, what, fields)
        self.assertEqual(answer.status, 201, answer.body)
        return answer.json()

    def seen(self, session: str, what: str) -> Any:
        answer = self.look(session, what)
        self.assertEqual(answer.status, 200, answer.body)
        return answer.json()

    def events(self, session: str, *types: str) -> list[Any]:
        found = await_(self.server.services.events.read(session, types=types))
        return [event.data for event in found]


class OnEachDatabase(TimelineTestCase):
    def setUp(self) -> None:
        super().setUp()
        # On whichever database this class is for.
        self.server = Server(self.config, database=self.database())
        self.runner = self.server.host()
        self.ann = self.server.user()
        self.addCleanup(self.runner.stop)
        self.addCleanup(lambda: await_(self.server.services.driver.stop()))

    def database(self) -> Database:
        self.workers = BreakableThread()
        return newDatabase(self, self.workers)


class TimelineTests(OnEachDatabase):
    def test_whole(self) -> None:
        """All that happened has its place in the session's time."""
        session = self.task()
        self.until(session, "completed")
        seen = self.seen(session, "timeline")
        self.assertEqual(seen["sessionId"], session)
        self.assertGreater(seen["durationSec"], 1)
        uri = f"/api/v1/sessions/{session}/recording"
        self.assertEqual(seen["recording"], {"format": "cast", "uri": uri})
        (moment,) = seen["moments"]
        (snapshot,) = seen["fsSnapshots"]
        self.assertEqual((moment["label"], moment["kind"]), ("half-way", "auto"))
        self.assertEqual(moment["fsSnapshotId"], snapshot["id"])
        self.assertEqual(snapshot["momentId"], moment["id"])
        self.assertEqual(snapshot["provider"], "copy")
        self.assertRegex(snapshot["snapshot"]["id"], "^synthetic-")
        self.assertTrue(0 < moment["offsetSec"] < seen["durationSec"], seen)
        self.assertEqual(self.seen(session, "fs-snapshots"), {"items": [snapshot], "total": 1})
        whole = self.session(session)
        self.assertEqual(whole["recording"], seen["recording"])
        self.assertEqual(whole["sessionTimeline"], f"/api/v1/sessions/{session}/timeline")
        self.assertEqual(whole["links"]["patch"], f"/api/v1/sessions/{session}/patch")

    def test_moments(self) -> None:
        """A moment is set now, at a place in the recording, or at a time, and is told of."""
        session = self.task(prompt="forever")
        self.until(session, "running")
        self.server.clock.advance(5)
        seen = self.seen(session, "timeline")
        now = self.made(session, "moments", {"label": "now"})
        self.assertAlmostEqual(now["offsetSec"], seen["durationSec"], 1)
        placed = self.made(session, "moments", {"label": "placed", "ts": 1.5})
        self.assertEqual(placed["offsetSec"], 1.5)
        timed = self.made(session, "moments", {"label": "timed", "ts": seen["startedAt"]})
        self.assertEqual((timed["offsetSec"], timed["ts"]), (0, seen["startedAt"]))
        late = self.made(session, "moments", {"label": "late", "ts": 1e6})
        self.assertEqual(late["offsetSec"], now["offsetSec"])
        labels = [
            one["label"]
            for one in self.seen(session, "timeline")["moments"]
            if one["kind"] == "manual"
        ]
        self.assertEqual(labels[:2], ["timed", "placed"])
        self.assertEqual(set(labels[2:]), {"now", "late"})
        told = self.events(session, "timeline.sessionMoment")
        self.assertIn(
            {"id": now["id"], "label": "now", "kind": "manual", "fsSnapshotId": None}, told
        )
        self.assertIn("now", [data["note"] for data in self.events(session, "moment")])

    def test_whatIsNoMoment(self) -> None:
        """Each mistake is told by the field's name."""
        session = self.task(prompt="forever")
        self.until(session, "running")
        wrong: list[tuple[Any, set[str]]] = [
            ({}, {"label"}),
            ({"label": ""}, {"label"}),
            ({"label": "x" * 201}, {"label"}),
            ({"label": "x\x00y"}, {"label"}),
            ({"label": "x", "ts": "yesterday"}, {"ts"}),
            ({"label": "x", "ts": "2026-01-02T03:04:05"}, {"ts"}),
            ({"label": "x", "ts": -1}, {"ts"}),
            ({"label": "x", "when": 1}, {"when"}),
        ]
        for fields, names in wrong:
            answer = self.do_(session, "moments", fields)
            self.assertEqual(answer.status, 400, (fields, answer.body))
            self.assertEqual(set(answer.json()["errors"]), names, (fields, answer.body))

    def test_secrets(self) -> None:
        """No label keeps a secret, in the events or beside them."""
        session = self.task(prompt="forever")
        self.until(session, "running")
        self.made(session, "moments", {"label": "with ghp_0123456789abcdefghijABCDEFGHIJ"})
        self.assertNotIn(b"ghp_", self.look(session, "timeline").body)

    def test_snapshots(self) -> None:
        """A snapshot is the host's, is noted once whoever tells of it, and has a moment."""
        session = self.task(prompt="forever")
        self.until(session, "running")
        made = self.made(session, "fs-snapshots", {"label": "before the risk"})
        # The host reports it, too.
        self.server.clock.advance(2)
        found = [
            one
            for one in self.seen(session, "fs-snapshots")["items"]
            if one["label"] == "before the risk"
        ]
        self.assertEqual([one["id"] for one in found], [made["id"]])
        timeline = self.seen(session, "timeline")
        (moment,) = [one for one in timeline["moments"] if one["label"] == "before the risk"]
        self.assertEqual((moment["fsSnapshotId"], moment["kind"]), (made["id"], "manual"))
        self.assertEqual((found[0]["momentId"], made["momentId"]), (moment["id"], moment["id"]))
        told = self.events(session, "timeline.fsSnapshot.created")
        self.assertEqual([one["id"] for one in told].count(made["id"]), 1)
        (note,) = [one for one in self.events(session, "moment") if one["id"] == moment["id"]]
        self.assertEqual(note["snapshotId"], made["id"])

    def test_snapshotThatIsNotNoted(self) -> None:
        """What the host made when the database was lost is there by the host's report."""
        session = self.task(prompt="forever")
        self.until(session, "running")
        real = self.runner.snapshot

        async def losing(session: str, label: str) -> SnapshotMade:
            made = await real(session, label)
            self.workers.lost = DatabaseUnavailable("it is lost")
            return made

        with patch.object(self.runner, "snapshot", losing):
            answer = self.do_(session, "fs-snapshots", {"label": "lost"})
        self.assertEqual((answer.status, answer.json()["code"]), (503, "database-unavailable"))
        self.workers.lost = None
        self.server.clock.pump([1.0] * 20)
        labels = [one["label"] for one in self.seen(session, "fs-snapshots")["items"]]
        self.assertEqual(labels.count("lost"), 1)

    def test_afterTheEnd(self) -> None:
        """What has ended can be kept and named as long as its host has it."""
        session = self.task()
        done = self.until(session, "completed")
        made = self.made(session, "fs-snapshots", {"label": "the end"})
        self.made(session, "moments", {"label": "well done"})
        moments = self.seen(session, "timeline")["moments"]
        (named,) = [one for one in moments if one["label"] == "well done"]
        self.assertEqual(named["ts"], done["endedAt"])
        self.assertEqual(self.made(session, "session-branch", {
            "name": "b", "fsSnapshotId": made["id"]
        })["fsSnapshotId"], made["id"])  # fmt: skip
        gone = self.task()
        self.until(gone, "running")
        self.server.delete(f"/api/v1/sessions/{gone}", self.ann)
        self.until(gone, "cancelled")
        self.assertEqual(self.do_(gone, "fs-snapshots", {}).status, 410)

    def test_limits(self) -> None:
        """A session has so many moments and snapshots, and no more."""
        session = self.task(prompt="forever")
        self.until(session, "running")
        self.enterContext(patch.object(moments, "MAX_MOMENTS", 3))
        self.enterContext(patch("helix_revdial.sessions.timeline.MAX_SNAPSHOTS", 2))
        for number in range(3):
            self.made(session, "moments", {"label": str(number)})
        answer = self.do_(session, "moments", {"label": "more"})
        self.assertEqual((answer.status, answer.json()["code"]), (409, "timeline-full"))
        # There is room for the snapshot, and none for its moment.
        made = self.made(session, "fs-snapshots", {})
        self.assertNotIn("momentId", made)
        self.made(session, "fs-snapshots", {})
        answer = self.do_(session, "fs-snapshots", {})
        self.assertEqual((answer.status, answer.json()["code"]), (409, "timeline-full"))

    def test_seek(self) -> None:
        """A time leads to the last moment and snapshot before it, or to the first."""
        session = self.task(prompt="forever steps=1000 delay=1")
        self.until(session, "running")
        self.server.clock.advance(10)
        first = self.made(session, "fs-snapshots", {"label": "one"})
        self.server.clock.advance(10)
        second = self.made(session, "fs-snapshots", {"label": "two"})

        def seek(**fields: Any) -> Any:
            answer = self.do_(session, "seek", fields)
            self.assertEqual(answer.status, 200, answer.body)
            return answer.json()

        for at, expected in ((0, first), (first["offsetSec"], first), (15, first), (1e6, second)):
            found = seek(ts=at)
            self.assertEqual(found["fsSnapshot"]["id"], expected["id"], at)
            self.assertEqual(found["moment"]["label"], expected["label"], at)
            self.assertNotIn("view", found)
        found = seek(ts=second["ts"])
        self.assertEqual(found["fsSnapshot"]["id"], second["id"])
        found = seek(fsSnapshotId=first["id"])
        self.assertEqual((found["ts"], found["moment"]["label"]), (first["ts"], "one"))
        for fields, status in (
            ({}, 400),
            ({"ts": 1, "fsSnapshotId": first["id"]}, 400),
            ({"ts": "soon"}, 400),
            ({"fsSnapshotId": "snap_nobody"}, 404),
        ):
            self.assertEqual(self.do_(session, "seek", fields).status, status, fields)

    def test_recording(self) -> None:
        """What was printed and when, as asciicast v2, with the moments as markers."""
        session = self.task(prompt="steps=6")
        self.until(session, "completed")
        answer = self.look(session, "recording")
        self.assertEqual(answer.headers["content-type"], "application/x-asciicast")
        head, *lines = map(json.loads, chunks(answer.body).splitlines())
        self.assertEqual(head["version"], 2)
        self.assertEqual(head["title"], "steps=6")
        times = [line[0] for line in lines]
        self.assertEqual(times, sorted(times))
        self.assertGreaterEqual(times[0], 0)
        self.assertLessEqual(times[-1], self.seen(session, "timeline")["durationSec"])
        self.assertEqual([line[2] for line in lines if line[1] == "m"], ["half-way"])
        printed = [line[2] for line in lines if line[1] == "o"]
        logged = self.seen(session, "logs")["items"]
        self.assertEqual(len(printed), len(logged))
        self.assertTrue(
            all(one["message"] in text for one, text in zip(logged, printed, strict=True))
        )
        self.assertTrue(all(text.endswith("\r\n") for text in printed))

    def test_recordingOfWhatRuns(self) -> None:
        """A recording has what there is, and an end."""
        session = self.task(prompt="forever")
        self.until(session, "running")
        self.server.clock.advance(3)
        lines = chunks(self.look(session, "recording").body).splitlines()
        self.assertGreater(len(lines), 2)

    def test_notBegun(self) -> None:
        """What waits has no time yet; it can be looked at."""
        self.server.services.executors.remove("host-1")
        session = self.task()
        for what, fields in (
            ("moments", {"label": "x"}),
            ("fs-snapshots", {}),
            ("seek", {"ts": 0}),
            ("session-branch", {"name": "b", "fromTs": 0}),
        ):
            answer = self.do_(session, what, fields)
            self.assertEqual((answer.status, answer.json()["code"]), (409, "session-queued"), what)
        self.assertEqual(self.seen(session, "timeline")["moments"], [])
        self.assertEqual(len(chunks(self.look(session, "recording").body).splitlines()), 1)

    def test_sandbox(self) -> None:
        """A sandbox that somebody else runs has no timeline."""
        sandbox = self.server.session("ann").id
        self.assertEqual(self.look(sandbox, "timeline").status, 409)
        self.assertEqual(self.do_(sandbox, "moments", {"label": "x"}).status, 409)

    def test_whoMay(self) -> None:
        """Viewers look and seek, operators add; strangers find nothing."""
        session = self.task(prompt="forever")
        self.until(session, "running")
        made = self.made(session, "fs-snapshots", {})
        viewer = self.server.user("vic", "viewer")
        stranger = self.server.user("eve", "admin", tenant="other")
        reads = ("timeline", "recording", "fs-snapshots")
        writes: list[tuple[str, Any]] = [
            ("moments", {"label": "x"}),
            ("fs-snapshots", {}),
            ("session-branch", {"name": "b", "fsSnapshotId": made["id"]}),
        ]
        for what in reads:
            self.assertEqual(self.look(session, what, viewer).status, 200, what)
            self.assertEqual(self.look(session, what, stranger).status, 404, what)
            self.assertEqual(
                self.server.get(f"/api/v1/sessions/{session}/{what}").status, 401, what
            )
        self.assertEqual(self.do_(session, "seek", {"ts": 0}, viewer).status, 200)
        self.assertEqual(self.do_(session, "seek", {"ts": 0}, stranger).status, 404)
        for what, fields in writes:
            self.assertEqual(self.do_(session, what, fields, viewer).status, 403, what)
            self.assertEqual(self.do_(session, what, fields, stranger).status, 404, what)

    def test_streamed(self) -> None:
        """What is added while somebody follows comes to him in order."""
        session = self.task(prompt="forever")
        self.until(session, "running")
        protocol, transport = self.server.connect()
        protocol.dataReceived(request("GET", f"/api/v1/sessions/{session}/events", self.ann))
        client = Client(transport, protocol)
        self.made(session, "moments", {"label": "followed"})
        made = self.made(session, "fs-snapshots", {"label": "kept"})
        self.made(session, "session-branch", {"name": "b", "fsSnapshotId": made["id"]})
        kinds = [frame.event for frame in client.frames]
        for kind in (
            "moment",
            "timeline.sessionMoment",
            "timeline.fsSnapshot.created",
            "timeline.sessionBranch.created",
        ):
            self.assertIn(kind, kinds)
        self.assertEqual(client.seqs, list(range(1, len(client.seqs) + 1)))


class TimelinePostgreSQLTests(OnPostgreSQL, TimelineTests):
    pass


class BoundedRecordingTests(TimelineTestCase):
    config = ServerConfig(agents=CONFIG.agents, sessions=SessionsSection(recordingBytes=400))

    def test_bounded(self) -> None:
        """A recording ends where it is too long, and says so."""
        session = self.task(prompt="steps=30")
        self.until(session, "completed")
        body = chunks(self.look(session, "recording").body)
        self.assertLess(len(body), 1000)
        self.assertIn("left out", json.loads(body.splitlines()[-1])[2])
