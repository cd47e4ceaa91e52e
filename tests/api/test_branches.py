"""Tests for L{helix_revdial.api.branches}."""

from __future__ import annotations

from typing import Any

from tests.api.harness import await_
from tests.api.test_timeline import OnEachDatabase
from tests.storage.postgresql import OnPostgreSQL


class BranchTests(OnEachDatabase):
    """Another session that goes on from a point of one."""

    def test_branch(self) -> None:
        """
        A branch is a session of its own, begins with the snapshot on the same host, is told
        the prompt and what is added, and both know of each other.
        """
        self.server.host("host-2")
        session = self.task(projectId="p", prompt="forever steps=1000 delay=1")
        self.until(session, "running")
        made = self.made(session, "fs-snapshots", {"label": "here"})
        self.server.clock.advance(5)
        branch = self.made(
            session,
            "session-branch",
            {"name": "otherwise", "fromTs": made["offsetSec"] + 1, "injectedMessage": "exit=0"},
        )
        self.assertEqual(branch["sessionBranchOf"], session)
        self.assertEqual(branch["fsSnapshotId"], made["id"])
        self.assertEqual(branch["workspace"]["snapshot"], made["snapshot"])
        self.assertEqual((branch["name"], branch["status"]), ("otherwise", "queued"))
        self.until(branch["id"], "running")
        whole = self.session(branch["id"])
        self.assertEqual(whole["name"], "otherwise")
        self.assertEqual(whole["sessionBranchOf"], session)
        self.assertEqual(whole["prompt"], "forever steps=1000 delay=1\n\nexit=0")
        self.assertEqual(whole["projectId"], "p")
        self.assertEqual(whole["vcs"]["repoUrl"], self.session(session)["vcs"]["repoUrl"])
        hosts = {
            self.session(one)["workspace"]["executionHostId"] for one in (session, branch["id"])
        }
        self.assertEqual(len(hosts), 1)
        logs = [one["message"] for one in self.seen(branch["id"], "logs")["items"]]
        self.assertIn(f"It begins with {made['snapshot']['id']} of {session}", logs)
        self.assertEqual(
            self.events(session, "timeline.sessionBranch.created"),
            [{"branchId": branch["id"], "name": "otherwise", "fsSnapshotId": made["id"]}],
        )
        (known,) = self.seen(session, "timeline")["branches"]
        self.assertEqual((known["sessionId"], known["name"]), (branch["id"], "otherwise"))
        self.assertEqual(known["fsSnapshotId"], made["id"])

    def test_branchThatPushes(self) -> None:
        """A branch pushes to a branch of its own; a pull request is for what it was for."""
        for mode, target in (("branch", None), ("pr", "fix")):
            delivery = {"mode": mode, "targetBranch": "fix"}
            session = self.task(prompt="forever", delivery=delivery)
            self.until(session, "running")
            made = self.made(session, "fs-snapshots", {})
            fields = {"name": "b", "fsSnapshotId": made["id"]}
            branch = self.made(session, "session-branch", fields)
            self.assertEqual(self.session(branch["id"])["delivery"].get("targetBranch"), target)

    def test_branchOnce(self) -> None:
        """The same key makes one branch, the same is true of a snapshot."""
        session = self.task(prompt="forever")
        self.until(session, "running")
        headers = {"Idempotency-Key": "k1"}
        path = f"/api/v1/sessions/{session}/"
        kept = [
            self.server.ask("POST", path + "fs-snapshots", self.ann, {"label": "x"}, headers).json()
            for _ in range(2)
        ]
        self.assertEqual(kept[0], kept[1])
        fields = {"name": "b", "fsSnapshotId": kept[0]["id"]}
        answers = [
            self.server.ask("POST", path + "session-branch", self.ann, fields, headers)
            for _ in range(2)
        ]
        self.assertEqual([one.status for one in answers], [201, 200])
        self.assertEqual(answers[0].json()["id"], answers[1].json()["id"])
        self.assertEqual(len(self.seen(session, "timeline")["branches"]), 1)
        self.assertEqual(answers[0].headers["location"], answers[0].json()["links"]["self"])

    def test_secretsInTheNameOfABranch(self) -> None:
        """A branch is not called by a secret, wherever its name stands."""
        session = self.task(prompt="forever")
        self.until(session, "running")
        made = self.made(session, "fs-snapshots", {})
        secret = "ghp_" + "a1" * 20
        fields = {"name": f"with {secret}", "fsSnapshotId": made["id"]}
        branch = self.made(session, "session-branch", fields)
        self.assertEqual(branch["name"], "with ***")
        self.assertEqual(self.session(branch["id"])["name"], "with ***")
        self.assertEqual(self.seen(session, "timeline")["branches"][0]["name"], "with ***")

    def test_whatCannotBeBranched(self) -> None:
        """Mistakes, and what is not there."""
        session = self.task(prompt="forever")
        self.until(session, "running")
        answer = self.do_(session, "session-branch", {"name": "b", "fromTs": 0})
        self.assertEqual((answer.status, answer.json()["code"]), (409, "no-snapshot"))
        made = self.made(session, "fs-snapshots", {})
        wrong: list[tuple[Any, int]] = [
            ({"fsSnapshotId": made["id"]}, 400),
            ({"name": "b"}, 400),
            ({"name": "b\n", "fsSnapshotId": made["id"]}, 400),
            ({"name": "", "fsSnapshotId": made["id"]}, 400),
            ({"name": "b", "fsSnapshotId": made["id"], "fromTs": 1}, 400),
            ({"name": "b", "fromTs": "then"}, 400),
            ({"name": "b", "fsSnapshotId": made["id"], "injectedMessage": ""}, 400),
            ({"name": "b", "fsSnapshotId": "snap_none"}, 404),
        ]
        for fields, status in wrong:
            answer = self.do_(session, "session-branch", fields)
            self.assertEqual(answer.status, status, (fields, answer.body))
        self.assertEqual(self.seen(session, "timeline")["branches"], [])

    def test_hostThatForgot(self) -> None:
        """A branch whose snapshot the host has no more fails, and says why."""
        session = self.task(prompt="steps=5")
        self.until(session, "completed")
        snapshot = self.seen(session, "fs-snapshots")["items"][0]["id"]
        await_(self.runner.forget(session))
        branch = self.made(session, "session-branch", {"name": "b", "fsSnapshotId": snapshot})
        found = self.until(branch["id"], "failed")
        self.assertIn("snapshot", found["error"])

    def test_hostThatIsGone(self) -> None:
        """Without its runner there is no branch, and it may be asked for again."""
        session = self.task(prompt="steps=5")
        self.until(session, "completed")
        snapshot = self.seen(session, "fs-snapshots")["items"][0]["id"]
        self.server.services.executors.remove("host-1")
        answer = self.do_(session, "session-branch", {"name": "b", "fsSnapshotId": snapshot})
        self.assertEqual((answer.status, answer.headers["retry-after"]), (503, "5"))
        self.assertEqual(self.do_(session, "fs-snapshots", {}).status, 503)


class BranchPostgreSQLTests(OnPostgreSQL, BranchTests):
    pass
