"""Tests for L{helix_revdial.api.discovery}: what there is to ask for."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.config import AgentSection, AgentsSection, ServerConfig
from helix_revdial.programs import Finished, ProgramMissing, ProgramTimedOut, TooBusy
from helix_revdial.sessions.catalogue import noteUse
from helix_revdial.sessions.git_refs import GitAccess, GitRefs
from tests.api.harness import NOW, Server, now
from tests.sessions.names import Names
from tests.sessions.test_git_refs import OUTPUT, A, B, FakeGit

SCHEMA = {"type": "object", "properties": {"model": {"type": "string"}}}
CONFIG = ServerConfig(
    agents=AgentsSection(
        agent=(AgentSection(type="coder", command=("coder",), versions=("2", "1"), schema=SCHEMA),)
    )
)


class DiscoveryTests(SynchronousTestCase):
    """Over HTTP, in memory."""

    def setUp(self) -> None:
        self.server = Server(CONFIG)
        self.viewer = self.server.user(role="viewer")
        self.operator = self.server.user(role="operator")

    def get(self, path: str, token: str | None = None) -> Any:
        answer = self.server.get(path, token or self.viewer)
        self.assertEqual(answer.status, 200, answer.body)
        return answer.json()

    def test_agents(self) -> None:
        """Each agent with its versions and a reference to its schema, which is there."""
        items = self.get("/api/v1/agents")["items"]
        self.assertEqual(
            items[0],
            {
                "type": "coder",
                "versions": ["2", "1"],
                "settingsSchemaRef": "/api/v1/schemas/agents/coder.json",
            },
        )
        self.assertEqual(items[1]["type"], "demonstration")
        schema = self.get(items[0]["settingsSchemaRef"])
        self.assertEqual(schema["properties"], SCHEMA["properties"])
        self.assertEqual(schema, self.get("/api/v1/schemas/agents/coder"))
        self.assertEqual(
            self.server.get("/api/v1/schemas/agents/other.json", self.viewer).status, 404
        )

    def test_totals(self) -> None:
        """A list without pages says how much it has, as those with pages do."""
        admin = self.server.user(role="admin")
        for path in (
            *("agents", "projects", "repos", "runners", "executors", "runtimes"),
            *("webhooks/secrets", "admin/forwards"),
        ):
            told = self.get(f"/api/v1/{path}", admin)
            self.assertEqual(told["total"], len(told["items"]), path)

    def test_strangers(self) -> None:
        """Nothing of it is for who shows no token."""
        for path in ("agents", "schemas/agents/coder.json", "projects", "repos", "git/refs?url=x"):
            self.assertEqual(self.server.get(f"/api/v1/{path}").status, 401, path)

    def test_used(self) -> None:
        """Projects and repositories that tasks have named; with times where there are any."""
        now(
            self.server.services.database.run(
                lambda connection: noteUse(
                    connection,
                    tenant="default",
                    project="p",
                    url="git@github.com:acme/x.git",
                    branch="main",
                    at=NOW,
                )
            )
        )
        (project,) = self.get("/api/v1/projects")["items"]
        self.assertEqual((project["id"], project["displayName"]), ("p", "p"))
        self.assertIn("lastUsedAt", project)
        (repo,) = self.get("/api/v1/repos?projectId=p")["items"]
        self.assertEqual(
            (repo["displayName"], repo["scmProvider"], repo["defaultBranch"], repo["projectId"]),
            ("acme/x", "github", "main", "p"),
        )
        self.assertEqual(self.get("/api/v1/repos?projectId=other")["items"], [])


class GitRefsTests(SynchronousTestCase):
    """The branches of a repository."""

    url = "/api/v1/git/refs?url=https%3A%2F%2Fa.example%2Fx.git"

    def setUp(self) -> None:
        self.server = Server()
        self.operator = self.server.user(role="operator")
        self.git = FakeGit()
        names = Names({"a.example": ["93.184.216.34"], "inside.example": ["10.0.0.1"]})
        self.server.services.gitRefs = GitRefs(
            self.git, names, self.server.clock, self.server.wallClock, GitAccess()
        )

    def ask(self, outcome: Finished | Exception) -> Any:
        answered: Deferred[Finished] = Deferred()
        if isinstance(outcome, Exception):
            answered.errback(outcome)
        else:
            answered.callback(outcome)
        self.patch(self.git, "run", lambda *arguments, **words: answered)
        return self.server.get(self.url, self.operator)

    def test_refs(self) -> None:
        """Its branches, tags and default branch, and when it was asked."""
        body = self.ask(Finished(0, OUTPUT.encode(), b"")).json()
        self.assertEqual(body["url"], "https://a.example/x.git")
        self.assertEqual(body["refs"][0], {"name": "main", "type": "branch", "sha": A})
        self.assertEqual(body["refs"][2], {"name": "v1", "type": "tag", "sha": B})
        self.assertEqual(body["defaultBranch"], "main")
        self.assertIn("cachedAt", body)

    def test_failures(self) -> None:
        """Each way of failing has its status, and a sentence."""
        for outcome, status in (
            (Finished(128, b"", b"fatal: not found\n"), 502),
            (ProgramTimedOut("x"), 504),
            (TooBusy("x"), 503),
            (ProgramMissing("the program git is not installed"), 501),
        ):
            answer = self.ask(outcome)
            self.assertEqual(answer.status, status, answer.body)
            self.assertTrue(answer.detail)

    def test_refused(self) -> None:
        """A URL that is not taken is a fault of the field."""
        for url in ("file%3A%2F%2F%2Fetc", "--upload-pack%3Dx", "https%3A%2F%2Finside.example%2Fx"):
            answer = self.server.get(f"/api/v1/git/refs?url={url}", self.operator)
            self.assertEqual(answer.status, 400, answer.body)
            self.assertEqual(list(answer.json()["errors"]), ["url"])
        self.assertEqual(self.git.commands, [])

    def test_viewers(self) -> None:
        """It makes the server connect elsewhere: not for viewers."""
        viewer = self.server.user(role="viewer")
        self.assertEqual(self.server.get(self.url, viewer).status, 403)
