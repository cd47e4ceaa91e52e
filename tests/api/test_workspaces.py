"""Tests for L{helix_revdial.api.workspaces}: where the files of tasks are."""

from __future__ import annotations

from tests.api.test_tasks import TaskTestCase


class WorkspaceTests(TaskTestCase):
    """Over HTTP, in memory, with a host that pretends."""

    def test_workspaces(self) -> None:
        """There from the moment a host has made it; by status, and one alone."""
        before = self.task()
        missing = self.server.get(f"/api/v1/workspaces/{before}", self.ann)
        self.assertEqual(missing.status, 404, missing.body)
        self.until(before, "running")
        after = self.task(projectId="p")
        self.until(before, "completed")
        self.until(after, "running", "completed")
        listed = self.server.get("/api/v1/workspaces", self.ann).json()
        self.assertEqual([one["id"] for one in listed["items"]], [after, before])
        self.assertEqual(listed["total"], 2)
        item = listed["items"][1]
        self.assertEqual((item["status"], item["executorId"]), ("idle", "host-1"))
        self.assertTrue(item["details"]["mountPath"])
        self.assertEqual(item["taskHistory"][0]["sessionId"], before)
        alone = self.server.get(f"/api/v1/workspaces/{before}", self.ann).json()
        self.assertEqual(alone["details"], item["details"])
        idle = self.server.get("/api/v1/workspaces?status=idle", self.ann).json()["items"]
        self.assertIn(before, [one["id"] for one in idle])
        paused = self.server.get("/api/v1/workspaces?status=paused", self.ann).json()
        self.assertEqual((paused["items"], paused["total"]), ([], 0))
        self.assertEqual(
            [
                one["id"]
                for one in self.server.get("/api/v1/workspaces?projectId=p", self.ann).json()[
                    "items"
                ]
            ],
            [after],
        )

    def test_tenants(self) -> None:
        """Another tenant's are not there."""
        session = self.task()
        self.until(session, "running")
        other = self.server.user(tenant="other")
        self.assertEqual(self.server.get("/api/v1/workspaces", other).json()["items"], [])
        self.assertEqual(self.server.get(f"/api/v1/workspaces/{session}", other).status, 404)

    def test_query(self) -> None:
        """A status that is none is a fault of the field."""
        answer = self.server.get("/api/v1/workspaces?status=other", self.ann)
        self.assertEqual((answer.status, list(answer.json()["errors"])), (400, ["status"]))
