"""C{helix remote}: what there is to ask for."""

from __future__ import annotations

import json
from typing import Any

from tests.cli.fake import CommandTestCase, Given, problem


class RemoteTests(CommandTestCase):
    """Lists."""

    def test_lists(self) -> None:
        """Each as a table that nothing in it can spoil, or as the records themselves."""
        records: dict[str, dict[str, Any]] = {
            "agents": {"type": "mo\x1bck", "versions": ["1", "2"]},
            "runtimes": {"type": "local", "images": []},
            "runners": {"id": "h-1", "health": "ok", "running": 1, "slots": 4},
            "executors": {"id": "h-1", "health": "ok"},
            "repos": {"id": "r", "displayName": "acme/x", "remoteUrl": "git@h:acme/x"},
            "workspaces": {"id": "w", "status": "active", "executorId": "h-1"},
            "projects": {"id": "p", "displayName": "P", "lastUsedAt": "2026-01-02T03:04:05Z"},
        }
        for name, record in records.items():
            self.api.on("GET", f"/api/v1/{name}", Given({"items": [record]}))
            ran = self.helix("remote", name)
            self.assertEqual((ran.code, len(ran.out.splitlines())), (0, 2), ran.err)
            self.assertNotIn("\x1b", ran.out)
            ran = self.helix("remote", name, "--json")
            self.assertEqual(json.loads(ran.out), [record])

    def test_pages(self) -> None:
        """All pages; filters go to the server."""
        self.api.on(
            "GET",
            "/api/v1/repos",
            Given({"items": [{"id": "a"}], "nextPage": "2"}),
            Given({"items": [{"id": "b"}]}),
        )
        ran = self.helix("remote", "repos", "--project", "p", "--json")
        self.assertEqual([one["id"] for one in json.loads(ran.out)], ["a", "b"])
        self.assertEqual(
            [asked.query for asked in self.api.asked],
            [{"projectId": "p"}, {"projectId": "p", "page": "2"}],
        )

    def test_refs(self) -> None:
        """Branches and tags, the default one marked; what the server says is wrong is said."""
        refs = [
            {"name": "main", "type": "branch", "sha": "0" * 40},
            {"name": "v1", "type": "tag", "sha": "1" * 40},
        ]
        answer = {"url": "u", "refs": refs, "defaultBranch": "main"}
        self.api.on("GET", "/api/v1/git/refs", Given(answer))
        ran = self.helix("remote", "refs", "https://h.example/x?a=b&c")
        self.assertEqual(self.api.asked[-1].query, {"url": "https://h.example/x?a=b&c"})
        self.assertRegex(ran.out, r"main \* +branch +0{40}\nv1 +tag +1{40}\n")
        self.assertEqual(json.loads(self.helix("remote", "refs", "u", "--json").out), answer)
        # The repository's address and the server's are two things.
        self.assertEqual(self.helix("remote", "refs", "u", "--url", "http://cp.example").code, 0)
        self.assertEqual(self.api.asked[-1].query, {"url": "u"})
        self.api.on("GET", "/api/v1/git/refs", problem(502, "no such repository"))
        self.assertEqual(self.helix("remote", "refs", "u").code, 5)
