"""Tests for L{helix_revdial.api.tasks} and what is done to a session."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.cli.local_end import Local
from helix_revdial.config import AgentSection, AgentsSection, ServerConfig, SessionsSection
from helix_revdial.http.openapi import openapi
from helix_revdial.storage.ids import isId
from tests.api.harness import Answer, Server, await_, parse, request
from tests.storage.databases import isPostgreSQL, newDatabase
from tests.storage.postgresql import OnPostgreSQL

CONFIG = ServerConfig(
    agents=AgentsSection(
        agent=(
            AgentSection(
                type="coder",
                command=("coder", "{prompt}"),
                versions=("2.1", "2.0"),
                schema={
                    "type": "object",
                    "properties": {
                        "model": {"type": "string"},
                        "pin": {"type": "string", "writeOnly": True},
                        "apiKey": {"type": "string"},
                    },
                    "additionalProperties": False,
                },
            ),
        )
    )
)


def body(**fields: Any) -> dict[str, Any]:
    """A task as JSON."""
    return {
        "prompt": "Fix the build",
        "repo": {"mode": "git", "url": "git@github.com:acme/x.git", "branch": "main"},
        "runtime": {"type": "local"},
        "agent": {"type": "coder", "settings": {"model": "m"}},
        "delivery": {"mode": "patch"},
        "labels": {"team": "a"},
    } | fields


class TaskTestCase(SynchronousTestCase):
    config = CONFIG

    def setUp(self) -> None:
        # The tables are made once for all of them on PostgreSQL.
        database = newDatabase(self) if isPostgreSQL(self) else None
        self.server = Server(self.config, database=database)
        self.runner = self.server.host()
        self.ann = self.server.user()
        self.addCleanup(self.runner.stop)
        self.addCleanup(lambda: await_(self.server.services.driver.stop()))

    def task(self, **fields: Any) -> str:
        answer = self.server.post("/api/v1/tasks", self.ann, body(**fields))
        self.assertEqual(answer.status, 201, answer.body)
        return str(answer.json()["id"])

    def session(self, session: str, token: str | None = None) -> Any:
        answer = self.server.get(f"/api/v1/sessions/{session}", token or self.ann)
        self.assertEqual(answer.status, 200, answer.body)
        return answer.json()

    def until(self, session: str, *statuses: str) -> Any:
        for _ in range(600):
            found = self.session(session)
            if found["status"] in statuses:
                return found
            self.server.clock.advance(0.2)
        raise AssertionError(self.session(session))

    def do(self, session: str, verb: str, fields: object = None) -> Answer:
        return self.server.ask("POST", f"/api/v1/sessions/{session}/{verb}", self.ann, fields)


class CreateTests(TaskTestCase):
    def test_created(self) -> None:
        """Defect 2: 201, where it is, and links that lead somewhere."""
        answer = self.server.post("/api/v1/tasks", self.ann, body())
        self.assertEqual(answer.status, 201)
        told = answer.json()
        self.assertTrue(isId(told["id"], "ses"))
        self.assertEqual({told["id"], told["sessionId"], told["taskId"]}, {told["id"]})
        self.assertEqual(told["status"], "queued")
        self.assertEqual(answer.headers["location"], f"/api/v1/sessions/{told['id']}")
        for link in ("self", "logs"):
            self.assertEqual(self.server.get(told["links"][link], self.ann).status, 200)
        self.assertEqual(told["links"]["events"], f"/api/v1/sessions/{told['id']}/events")

    def test_invalid(self) -> None:
        """Defect 2: each field that is wrong is named, all at once."""
        wrong: list[tuple[dict[str, Any], set[str]]] = [
            ({"prompt": ""}, {"prompt"}),
            ({"prompt": " \n "}, {"prompt"}),
            ({"repo": {"mode": "git"}}, {"repo.url"}),
            ({"repo": {"mode": "git", "url": "file:///etc"}}, {"repo.url"}),
            ({"repo": {"mode": "git", "url": "ext::sh -c id"}}, {"repo.url"}),
            ({"repo": {"mode": "git", "url": "--upload-pack=x"}}, {"repo.url"}),
            ({"repo": {"mode": "git", "url": "ssh://-oProxyCommand=x/y"}}, {"repo.url"}),
            ({"repo": {"mode": "upload"}}, {"repo.uploadToken"}),
            ({"repo": {"mode": "none"}, "delivery": {"mode": "pr"}}, {"delivery.mode"}),
            ({"runtime": {"type": "docker"}}, {"runtime.type"}),
            ({"agent": {"type": "nobody"}}, {"agent.type"}),
            ({"agent": {"type": "coder", "version": "1"}}, {"agent.version"}),
            ({"agent": {"type": "coder", "settings": {"model": 1}}}, {"agent.settings.model"}),
            ({"workspace": {"executionHostId": "nowhere"}}, {"workspace.executionHostId"}),
            ({"workspace": {"snapshotPreference": ["x"]}}, {"workspace.snapshotPreference[0]"}),
            ({"delivery": {"mode": "branch", "targetBranch": "a..b"}}, {"delivery.targetBranch"}),
            ({"tenantId": "other"}, {"tenantId"}),
            ({"labels": {"": "x"}}, {"labels"}),
            (
                {"webhooks": [{"event": "x", "url": "ftp://x"}]},
                {"webhooks[0].event", "webhooks[0].url"},
            ),
            ({"surprise": 1}, {"surprise"}),
            ({"repo": {"mode": "git"}, "prompt": " "}, {"repo.url", "prompt"}),
        ]
        for fields, names in wrong:
            answer = self.server.post("/api/v1/tasks", self.ann, body(**fields))
            self.assertEqual(answer.status, 400, (fields, answer.body))
            self.assertEqual(set(answer.json()["errors"]), names, (fields, answer.body))
            self.assertEqual(answer.headers["content-type"], "application/problem+json")
        answer = self.server.post("/api/v1/tasks", self.ann, body(repo={"mode": "git"}))
        self.assertEqual(answer.json()["errors"], {"repo.url": ["is required"]})
        answer = self.server.post("/api/v1/tasks", self.ann, {})
        self.assertEqual(
            answer.json()["errors"],
            {name: ["is required"] for name in ("prompt", "repo", "runtime", "agent")},
        )
        for repo, name in (
            ({"mode": "git"}, "repo.url"),
            ({"mode": "git", "url": None}, "repo.url"),
            ({"mode": "upload"}, "repo.uploadToken"),
        ):
            answer = self.server.post("/api/v1/tasks", self.ann, {"prompt": "p", "repo": repo})
            self.assertEqual(
                answer.json()["errors"],
                {one: ["is required"] for one in (name, "runtime", "agent")},
            )
        self.assertEqual(self.server.get("/api/v1/sessions", self.ann).json()["total"], 0)

    def test_addresses(self) -> None:
        """What people write for a repository is taken, the form of scp too."""
        for url in (
            "git@github.com:acme/x.git",
            "github.com:acme/x",
            "https://github.com/acme/x.git",
            "ssh://git@github.com:22/acme/x.git",
            "git://host/x",
            "https://user:password@git.example/x",
            "ssh://[::1]:2222/x",
        ):
            self.task(repo={"mode": "git", "url": url})

    def test_disabledRuntime(self) -> None:
        """No sandbox at all is for servers that allow it."""
        answer = self.server.post("/api/v1/tasks", self.ann, body(runtime={"type": "disabled"}))
        self.assertEqual(answer.status, 403)

    def test_whoMay(self) -> None:
        """Defect 1: nobody without a token, and no viewer."""
        self.assertEqual(self.server.post("/api/v1/tasks", None, body()).status, 401)
        viewer = self.server.user("vic", "viewer")
        self.assertEqual(self.server.post("/api/v1/tasks", viewer, body()).status, 403)

    def test_idempotent(self) -> None:
        """Defect 2: the same key makes one session."""
        headers = {"Idempotency-Key": "01HF7YAT31JSPVDRNZKB7MQJ5K"}
        made = self.server.ask("POST", "/api/v1/tasks", self.ann, body(), headers)
        again = self.server.ask("POST", "/api/v1/tasks", self.ann, body(), headers)
        self.assertEqual((made.status, again.status), (201, 200))
        self.assertEqual(made.json()["id"], again.json()["id"])
        self.assertEqual(self.server.get("/api/v1/sessions", self.ann).json()["total"], 1)

    def test_tooLarge(self) -> None:
        """A body beyond the limit is refused."""
        answer = self.server.post("/api/v1/tasks", self.ann, body(prompt="x" * 900_000))
        self.assertEqual(answer.status, 413)
        self.task(prompt="\U0001f600" * 65_536)
        session = self.task(prompt="forever")
        self.until(session, "running")
        # Also where no body is read at all.
        self.assertEqual(self.do(session, "pause", {"x": "x" * 100_000}).status, 413)
        self.assertEqual(self.session(session)["status"], "running")
        self.assertEqual(self.do(session, "pause", {}).status, 202)


class SessionTests(TaskTestCase):
    def test_theWholeSession(self) -> None:
        """Defect 8: camelCase, nested as specified, with the times."""
        session = self.task(projectId="p1")
        queued = self.session(session)
        self.assertNotIn("endedAt", queued)
        done = self.until(session, "completed")
        self.assertEqual(done["task"]["prompt"], "Fix the build")
        self.assertEqual(done["task"]["labels"], {"team": "a"})
        self.assertEqual(
            done["agent"], {"type": "coder", "version": "latest", "settings": {"model": "m"}}
        )
        self.assertEqual(done["runtime"], {"type": "local"})
        self.assertEqual(done["workspace"]["mountPath"], "/workspace")
        self.assertEqual(done["workspace"]["snapshotProvider"], "copy")
        self.assertEqual(done["vcs"]["repoUrl"], "git@github.com:acme/x.git")
        self.assertEqual(done["vcs"]["branch"], "main")
        self.assertEqual(done["vcs"]["delivery"]["url"], f"/api/v1/sessions/{session}/patch")
        self.assertEqual((done["projectId"], done["tenantId"]), ("p1", "default"))
        self.assertEqual((done["exitCode"], done["kind"]), (0, "task"))
        self.assertLessEqual(done["createdAt"], done["startedAt"])
        self.assertLess(done["startedAt"], done["endedAt"])
        for name in _names(done):
            self.assertNotIn("_", name)

    def test_noSecretIsShown(self) -> None:
        """F1: what is secret by its name, its schema or its form is not told again."""
        session = self.task(
            agent={
                "type": "coder",
                "settings": {"model": "m", "apiKey": "swordfish", "pin": "haddock"},
            },
            repo={"mode": "git", "url": "https://ann:hunter22@git.example/x"},
            prompt="use swordfish with ghp_" + "a1" * 20 + ", hunter22 for git",
            labels={"with": "swordfish", "also": "ghp_" + "a1" * 20},
        )
        self.until(session, "completed")
        for path in ("", "/logs", "/info", "/recording", "/events", "s"):
            path = f"/{session}{path}" if path != "s" else ""
            text = self.server.get(f"/api/v1/sessions{path}", self.ann).body.decode()
            for secret in ("swordfish", "haddock", "hunter22", "ghp_"):
                self.assertNotIn(secret, text, path)
        self.assertEqual(self.session(session)["agent"]["settings"]["pin"], "***")
        repos = self.server.get("/api/v1/repos", self.ann)
        self.assertNotIn("hunter22", repos.body.decode())

    def test_lifeOfATask(self) -> None:
        """Defects 6 and 9: pause, resume and stop act, and answer with a body."""
        session = self.task(prompt="forever")
        self.until(session, "running")
        for verb, first, then in (
            ("pause", "pausing", "paused"),
            ("resume", "resuming", "running"),
            ("stop", "stopping", "stopped"),
        ):
            answer = self.do(session, verb)
            self.assertEqual(answer.status, 202, answer.body)
            self.assertEqual(answer.json()["id"], session)
            self.assertIn(answer.json()["status"], (first, then))
            self.until(session, then)
        for verb in ("pause", "resume", "stop"):
            answer = self.do(session, verb)
            self.assertEqual(answer.status, 409, verb)
            self.assertIn("stopped", answer.detail)
        self.assertEqual(self.do(session, "prompt", {"prompt": "x"}).status, 410)

    def test_delete(self) -> None:
        """Defect 6: a deletion cancels what runs and removes what has ended."""
        session = self.task(prompt="forever")
        self.until(session, "running")
        answer = self.server.delete(f"/api/v1/sessions/{session}", self.ann)
        self.assertEqual((answer.status, answer.json()["id"]), (202, session))
        self.until(session, "cancelled")
        self.assertEqual(self.runner._runs, {})
        self.assertEqual(self.server.delete(f"/api/v1/sessions/{session}", self.ann).status, 204)
        self.assertEqual(self.server.get(f"/api/v1/sessions/{session}", self.ann).status, 404)
        self.assertEqual(self.server.delete(f"/api/v1/sessions/{session}", self.ann).status, 404)

    def test_prompt(self) -> None:
        """A running agent is told more: 202; a paused one is not: 409."""
        session = self.task(prompt="forever")
        self.until(session, "running")
        answer = self.do(session, "prompt", {"prompt": "and tests"})
        self.assertEqual((answer.status, answer.json()["accepted"]), (202, True))
        self.do(session, "pause")
        self.until(session, "paused")
        self.assertEqual(self.do(session, "prompt", {"prompt": "x"}).status, 409)
        self.assertEqual(self.do(session, "prompt", {"prompt": "x" * 20_000}).status, 400)

    def test_longestPrompts(self) -> None:
        """A prompt of as many characters as are allowed is taken, however JSON writes them."""
        session = self.task(prompt="forever")
        self.until(session, "running")
        longest = json.dumps({"prompt": "\U0001f600" * 16_384}).encode("ascii")
        for before, verb in (("running", "prompt"), ("paused", "resume")):
            if before == "paused":
                self.do(session, "pause")
            self.until(session, before)
            self.assertEqual(self.do(session, verb, longest).status, 202, verb)

    def test_workspaceAndEditor(self) -> None:
        """Where the files are, once they are somewhere."""
        self.server.services.executors.remove("host-1")
        waiting = self.task()
        for answer in (
            self.server.get(f"/api/v1/sessions/{waiting}/workspace", self.ann),
            self.do(waiting, "open/ide", {"ide": "vscode"}),
            self.server.get(f"/api/v1/sessions/{waiting}/patch", self.ann),
        ):
            self.assertEqual(answer.status, 409)
        self.server.services.executors.add("host-1", self.runner)
        self.until(waiting, "completed")
        place = self.server.get(f"/api/v1/sessions/{waiting}/workspace", self.ann).json()
        self.assertEqual((place["mountPath"], place["executionHostId"]), ("/workspace", "host-1"))
        answer = self.do(waiting, "open/ide", {"ide": "cursor"})
        self.assertEqual(answer.status, 200)
        forward, editor = answer.json()["commands"]
        self.assertIn("/workspace", editor)
        # The first one is what helix understands, and listens where the second one connects.
        *start, runner, local = forward.split()
        self.assertEqual((start, runner), (["helix", "forward"], f"sandbox-{waiting}"))
        listening = Local.parse(local)
        self.assertEqual(listening.target, "ssh")
        self.assertIn(f"{listening.host}:{listening.port}", editor)
        self.assertEqual(self.do(waiting, "open/ide", {"ide": "emacs"}).status, 400)

    def test_patch(self) -> None:
        """The work, as a file that git applies."""
        session = self.task()
        self.until(session, "completed")
        answer = self.server.get(f"/api/v1/sessions/{session}/patch", self.ann)
        self.assertEqual(answer.status, 200)
        self.assertTrue(answer.headers["content-type"].startswith("text/x-diff"))
        self.assertIn(b"diff --git", answer.body)

    def test_deliveryKeepsWhatWasAsked(self) -> None:
        """What was delivered does not hide where it was to go."""
        session = self.task(delivery={"mode": "pr", "targetBranch": "release"})
        self.assertEqual(self.session(session)["delivery"]["targetBranch"], "release")
        done = self.until(session, "completed")
        self.assertIn("url", done["delivery"])
        self.assertEqual(done["delivery"]["targetBranch"], "release")
        self.assertEqual(done["vcs"]["delivery"], done["delivery"])

    def test_anyText(self) -> None:
        """What JSON can say is kept by any database, and told again as it was said."""
        odd = "a\x00b \x1b[2J \u202e \U0001f600 \u2028"
        settings = {"model": odd, "more": {odd: [odd, 10**400, -0.0, None]}}
        session = self.task(prompt=odd, agent={"type": "demonstration", "settings": settings})
        done = self.until(session, "completed")
        self.assertEqual(done["prompt"], odd)
        self.assertEqual(done["agent"]["settings"], settings)
        draft = self.server.post("/api/v1/drafts", self.ann, {"prompt": odd})
        self.assertEqual(draft.json()["prompt"], odd)
        self.assertEqual(
            self.server.get("/api/v1/drafts", self.ann).json()["items"][0], draft.json()
        )
        for path, fields, name in (
            ("drafts", {"projectId": odd}, "projectId"),
            ("tasks", body(projectId=odd), "projectId"),
            ("tasks", body(draftId=odd), "draftId"),
        ):
            answer = self.server.post(f"/api/v1/{path}", self.ann, fields)
            self.assertEqual((answer.status, [*answer.json()["errors"]]), (400, [name]), path)

    def test_neverAWorkspace(self) -> None:
        """Of a session that ended too early, not that there is none I{yet}."""
        session = self.task(prompt="refuse")
        self.until(session, "failed")
        answer = self.server.get(f"/api/v1/sessions/{session}/workspace", self.ann)
        self.assertEqual(answer.status, 409)
        self.assertEqual(answer.detail, "The session is failed: it never had a workspace.")

    def test_info(self) -> None:
        """A session in short."""
        session = self.task()
        told = self.server.get(f"/api/v1/sessions/{session}/info", self.ann).json()
        self.assertEqual(told["id"], session)
        self.assertEqual(told["endpoints"]["events"], f"/api/v1/sessions/{session}/events")

    def test_sandboxesAreNoTasks(self) -> None:
        """What somebody else runs is not stopped from here."""
        sandbox = self.server.post("/api/v1/sessions", self.ann, {"name": "x"}).json()
        self.assertEqual((sandbox["kind"], sandbox["status"]), ("sandbox", "created"))
        for verb in ("stop", "pause", "resume"):
            self.assertEqual(self.do(sandbox["id"], verb).status, 409)
        self.assertEqual(
            self.server.delete(f"/api/v1/sessions/{sandbox['id']}", self.ann).status, 204
        )


class SandboxTests(TaskTestCase):
    """A session's own way to the server."""

    def setUp(self) -> None:
        self.config = ServerConfig(
            agents=CONFIG.agents, sessions=SessionsSection(serverUrl="https://cp.example")
        )
        super().setUp()

    def test_theTokenEndsWithTheSession(self) -> None:
        """What a session is given to register with is its own, and ends with it."""
        session = self.task(prompt="forever")
        self.until(session, "running")
        sandbox = self.runner._runs[session].spec.sandbox
        assert sandbox is not None
        self.assertEqual(sandbox.serverUrl, "https://cp.example")
        principal = await_(self.server.tokens.authenticate(sandbox.token))
        self.assertEqual((principal.kind, principal.session), ("session", session))
        for path in (f"/{session}", f"/{session}/logs", "", f"/{session}/events?since=9999"):
            self.assertNotIn(
                sandbox.token.encode(),
                self.server.get(f"/api/v1/sessions{path}", self.ann).raw,
            )
        self.do(session, "stop")
        self.until(session, "stopped")
        self.assertIs(await_(self.server.tokens.authenticate(sandbox.token)), None)


class ListTests(TaskTestCase):
    def list(self, query: str = "", token: str | None = None) -> Any:
        answer = self.server.get(f"/api/v1/sessions{query}", token or self.ann)
        self.assertEqual(answer.status, 200, answer.body)
        return answer.json()

    def test_filters(self) -> None:
        """Defect 11: by status, agent and project; several statuses at once."""
        one = self.task(projectId="p1")
        self.until(one, "completed")
        two = self.task(prompt="fail", projectId="p2")
        self.until(two, "failed")
        three = self.task(prompt="forever", agent={"type": "demonstration"})
        for query, expected in (
            ("", [three, two, one]),
            ("?status=completed", [one]),
            ("?status=completed,failed", [two, one]),
            ("?status=completed&status=failed", [two, one]),
            ("?agent=coder", [two, one]),
            ("?agent=demonstration", [three]),
            ("?projectId=p2", [two]),
            ("?projectId=p2&status=completed", []),
            ("?tenantId=default", [three, two, one]),
            ("?tenantId=other", []),
        ):
            found = self.list(query)
            self.assertEqual([item["id"] for item in found["items"]], expected, query)
            self.assertEqual(found["total"], len(expected))
        self.assertEqual(self.server.get("/api/v1/sessions?status=x", self.ann).status, 400)

    def test_pages(self) -> None:
        """Defect 11: C{nextPage} is a string, absent on the last page."""
        made: list[str] = []
        for _ in range(5):
            self.server.clock.advance(0.01)
            made.insert(0, self.task(prompt="forever"))
        first = self.list("?perPage=2")
        self.assertEqual((first["nextPage"], first["total"]), ("2", 5))
        second = self.list("?perPage=2&page=2")
        last = self.list("?perPage=2&page=3")
        self.assertNotIn("nextPage", last)
        told = [item["id"] for page in (first, second, last) for item in page["items"]]
        self.assertEqual(told, made)
        for query in ("?page=0", "?perPage=201", "?page=x"):
            self.assertEqual(self.server.get("/api/v1/sessions" + query, self.ann).status, 400)

    def test_longPrompts(self) -> None:
        """A page of the longest prompts is made bit by bit; others have their turn meanwhile."""
        made = [self.task(prompt="forever " + "x" * 65_000) for _ in range(6)]
        protocol, transport = self.server.connect()
        protocol.dataReceived(request("GET", "/api/v1/sessions", self.ann))
        self.assertEqual(transport.value(), b"")
        self.assertEqual(self.server.get("/healthz").status, 200)
        self.server.clock.advance(0)
        items = parse(transport.value()).json()["items"]
        self.assertEqual({item["id"] for item in items}, set(made))

    def test_tenants(self) -> None:
        """Another tenant's session does not exist; a colleague's task is seen."""
        session = self.task(prompt="forever")
        stranger = self.server.user("eve", "admin", "other")
        for method, path in (
            ("GET", ""),
            ("GET", "/events"),
            ("GET", "/logs"),
            ("GET", "/patch"),
            ("POST", "/stop"),
            ("DELETE", ""),
        ):
            answer = self.server.ask(method, f"/api/v1/sessions/{session}{path}", stranger)
            self.assertEqual(answer.status, 404, (method, path))
        self.assertEqual(self.list(token=stranger)["total"], 0)
        viewer = self.server.user("vic", "viewer")
        self.assertEqual(self.list(token=viewer)["total"], 1)
        self.assertEqual(self.session(session, viewer)["id"], session)
        stop = f"/api/v1/sessions/{session}/stop"
        self.assertEqual(self.server.ask("POST", stop, viewer).status, 403)
        colleague = self.server.user("bob", "operator")
        self.assertEqual(self.server.ask("POST", stop, colleague).status, 202)


class SessionPostgreSQLTests(OnPostgreSQL, SessionTests):
    """The same on PostgreSQL."""


class ListPostgreSQLTests(OnPostgreSQL, ListTests):
    """The same on PostgreSQL."""


class DocumentTests(TaskTestCase):
    def test_described(self) -> None:
        """Defect 10: every operation of sessions is in the document."""
        described = openapi(self.server.table)
        for path in (
            "/api/v1/tasks",
            "/api/v1/sessions/{session}",
            "/api/v1/sessions/{session}/events",
            "/api/v1/sessions/{session}/stop",
        ):
            self.assertIn(path, described["paths"])
        responses = described["paths"]["/api/v1/sessions/{session}"]["delete"]["responses"]
        self.assertLessEqual({"202", "204", "404"}, set(responses))


def _names(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [*value, *(name for one in value.values() for name in _names(one))]
    return [name for one in value for name in _names(one)] if isinstance(value, list) else []
