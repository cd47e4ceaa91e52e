"""
The scenarios that the REST service was asked for, by a client that knows the served
description only, on SQLite and on PostgreSQL.

What of them is ingestion of other hosts' events, and connectivity, is no operation yet
(L{ScenarioTests.test_discovery} would notice).
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Sequence
from typing import Any

import jwt

from helix_revdial.storage.schema import upgrade
from tests.storage.databases import newURL
from tests.storage.postgresql import OnPostgreSQL

from .fleet import FleetCase, until
from .outsider import Answer, Outsider

SECRET = "0123456789abcdef0123456789abcdef"

SETTINGS = """
[[agents.agent]]
type = "coder"
versions = ["2.1", "2.0"]
command = ["coder", "{prompt}"]
schema = { type = "object", properties = { apiKey = { type = "string", writeOnly = true } } }

[[access.issuer]]
issuer = "https://id.example/"
audience = "helix"
algorithm = "HS256"
secret_file = "%(directory)s/issuer.secret"
clock_skew = 0

[rate_limits]
override = [{ user = "default/hasty", per_second = 0.5, burst = 3 }]
"""


def task(prompt: str | None = "Fix the build", **changed: Any) -> dict[str, Any]:
    """A task as the description asks for it; C{None} takes a member away."""
    whole = {
        "prompt": prompt,
        "repo": {"mode": "git", "url": "git@github.com:acme/x.git", "branch": "main"},
        "runtime": {"type": "local"},
        "agent": {"type": "coder", "settings": {"model": "m"}},
        "delivery": {"mode": "patch"},
        **changed,
    }
    return {name: value for name, value in whole.items() if value is not None}


class ScenarioTests(FleetCase):
    """One server, with the synthetic host; a step of which takes 20 ms."""

    def setUp(self) -> None:
        # Made first, it goes last: when the server has ended.
        url = newURL(self)
        upgrade(url)
        super().setUp()
        (self.directory / "issuer.secret").write_text(SECRET)
        (self.directory / "issuer.secret").chmod(0o600)
        self.running = self.server(
            doors=SETTINGS % {"directory": self.directory},
            server__database=url,
            sessions__synthetic="true",
            sessions__synthetic_speed=50,
            events__heartbeat=0.1,
        )
        self.admin = Outsider(self.running.url, self.running.admin)

    def somebody(self, user: str, role: str, scheme: str = "Bearer") -> Outsider:
        """Somebody else of the same tenant."""
        token = self.token(self.running, kind="user", user=user, role=role)
        return Outsider(self.running.url, token, scheme)

    def signed(self, **claims: Any) -> str:
        """A JSON web token."""
        whole = {
            "iss": "https://id.example/",
            "aud": "helix",
            "sub": "ann",
            "exp": time.time() + 60,
            "roles": ["operator"],
            **claims,
        }
        return jwt.encode(whole, SECRET, "HS256")

    def refused(
        self, answer: Answer, status: int, word: str, errors: Sequence[str] = ()
    ) -> dict[str, Any]:
        """An answer is a problem of that type; C{errors} names the wrong fields."""
        self.assertEqual(answer.status, status, answer.body)
        problem: dict[str, Any] = answer.document
        self.assertEqual(problem["type"], f"https://docs.example.com/errors/{word}")
        self.assertEqual(problem["requestId"], answer.fields["X-Request-Id"])
        self.assertEqual(sorted(problem.get("errors") or ()), sorted(errors))
        return problem

    def made(self, who: Outsider | None = None, **changed: Any) -> dict[str, str]:
        """The path parameters of a new task's session."""
        answer = (who or self.admin).call("createTask", body=task(**changed))
        self.assertEqual(answer.status, 201, answer.body)
        return {"session": answer.document["sessionId"]}

    def becomes(self, place: dict[str, str], *statuses: str) -> str:
        """Wait for a session's state."""

        found = ""

        def look() -> bool:
            nonlocal found
            found = self.admin.call("getSession", place).document["status"]
            return found in statuses

        until(look, f"{place} is {statuses}")
        return found

    # 1. Create

    def test_create(self) -> None:
        """
        A task is made once for one key, whoever asks again; another body, another
        caller and a failure are told apart.
        """
        named = {"Idempotency-Key": "K-1"}
        first = self.admin.call("createTask", headers=named, body=task())
        self.assertEqual(first.status, 201, first.body)
        accepted = first.document
        self.assertEqual({accepted[name] for name in ("id", "sessionId", "taskId")}.__len__(), 1)
        self.assertEqual(first.fields["Location"], accepted["links"]["self"])
        again = self.admin.call(
            "createTask", headers=named, raw=json.dumps(dict(reversed(task().items()))).encode()
        )
        self.assertEqual((again.status, again.document), (200, accepted))
        self.assertEqual(again.fields["Idempotency-Replayed"], "true")
        self.assertEqual(again.fields["Location"], first.fields["Location"])
        other = self.admin.call("createTask", headers=named, body=task("Something else"))
        self.refused(other, 422, "idempotency-key-reuse")
        ann = self.somebody("ann", "operator")
        hers = ann.call("createTask", headers=named, body=task())
        self.assertEqual(hers.status, 201)
        self.assertNotEqual(hers.document["id"], accepted["id"])
        # A failure is not kept: the key is free for the task that was meant.
        named = {"Idempotency-Key": "K-2"}
        wrong = self.admin.call("createTask", headers=named, body=task(prompt=""))
        self.refused(wrong, 400, "validation", ["prompt"])
        right = self.admin.call("createTask", headers=named, body=task())
        self.assertEqual(right.status, 201)
        listed = self.admin.call("listSessions", query={"perPage": 2}).document
        self.assertEqual((listed["total"], listed["nextPage"]), (3, "2"))
        self.assertEqual(listed["items"][0]["id"], right.document["id"])
        rest = self.admin.call("listSessions", query={"perPage": 2, "page": 2}).document
        self.assertEqual([one["id"] for one in rest["items"]], [accepted["id"]])
        self.assertNotIn("nextPage", rest)

        # Ten callers at the same moment: each is told of the one, or that it is being made.
        named = {"Idempotency-Key": "at-once"}
        answers: list[Answer] = []

        def callAtOnce() -> None:
            answers.append(self.admin.call("createTask", headers=named, body=task()))

        threads = [threading.Thread(target=callAtOnce) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(len(answers), 10)
        told = [answer for answer in answers if answer.status in (200, 201)]
        self.assertEqual([answer.status for answer in told].count(201), 1)
        self.assertEqual(len({answer.document["id"] for answer in told}), 1)
        for answer in answers:
            if answer not in told:
                self.refused(answer, 409, "conflict")
                self.assertEqual(answer.fields["Retry-After"], "1")
        self.assertEqual(self.admin.call("listSessions").document["total"], 4)

    # 2. Lifecycle, 3. logs and workspace

    def test_toTheEnd(self) -> None:
        """
        A task's events: the states in order, logs, a snapshot with its moment, the
        delivery, and heartbeats between them; then the end, and no more.  They can be
        resumed anywhere.  Its log, workspace and patch are there, and its secret is not.
        """
        secret = "sk-very-secret-value-1234567890"
        place = self.made(
            prompt=f"steps=6 delay=8 say {secret}",
            agent={"type": "coder", "settings": {"apiKey": secret}},
        )
        session = place["session"]
        source = self.admin.events(session)
        messages = list(source.messages())
        self.assertEqual(source.retry, 3000)
        self.assertGreaterEqual(len([one for one in source.comments if one.startswith("hb ")]), 3)
        self.assertEqual([int(one.id) for one in messages], list(range(1, len(messages) + 1)))
        for one in messages:
            document = one.document
            self.assertEqual(
                (document["type"], document["seq"], document["sessionId"]),
                (one.type, int(one.id), session),
            )
            self.assertRegex(document["ts"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        statuses = [one.document["status"] for one in messages if one.type == "status"]
        self.assertEqual(statuses, ["queued", "provisioning", "running", "completed"])
        kinds = {one.type for one in messages}
        self.assertLessEqual(
            {"status", "log", "moment", "timeline.fsSnapshot.created", "delivery"}, kinds
        )
        self.assertEqual(messages[-1].document["exitCode"], 0)
        # Where a client was, whichever way it says so.
        after = messages[3:]
        self.assertEqual(list(self.admin.events(session, last="3").messages()), after)
        self.assertEqual(list(self.admin.events(session, query={"since": 3}).messages()), after)
        both = self.admin.events(session, last="3", query={"since": 1})
        self.assertEqual(list(both.messages()), after)
        # To a browser: do not come back.
        over = self.admin.events(session, last=messages[-1].id)
        self.assertEqual(over.answer.status, 204)
        # The log.
        logs = [one.document for one in messages if one.type == "log"]
        tail = self.admin.call("getSessionLogs", place, query={"tail": 3}).document
        self.assertEqual([line["seq"] for line in tail["items"]], [one["seq"] for one in logs[-3:]])
        self.assertEqual(tail["total"], len(logs))
        self.assertNotIn("nextPage", tail)
        paged = self.admin.call("getSessionLogs", place, query={"perPage": 3}).document
        self.assertEqual(
            [line["message"] for line in paged["items"]], [one["message"] for one in logs[:3]]
        )
        self.assertEqual(paged["nextPage"], "2")
        # Where it was done.
        workspace = self.admin.call("getSessionWorkspace", place).document
        self.assertEqual(
            (workspace["snapshotProvider"], workspace["mountPath"]), ("copy", "/workspace")
        )
        self.assertEqual(workspace["executionHostId"], "synthetic")
        self.assertTrue(self.admin.call("getSessionPatch", place).body.startswith(b"diff --git"))
        got = self.admin.call("getSession", place)
        self.assertEqual(got.document["workspace"]["mountPath"], "/workspace")
        self.assertEqual(got.document["vcs"]["repoUrl"], "git@github.com:acme/x.git")
        for body in (got.body, self.admin.call("listSessions").body, repr(messages).encode()):
            self.assertNotIn(secret.encode(), body)

    def test_ended(self) -> None:
        """
        What runs is paused, goes on, is stopped or cancelled, each in order; what
        cannot be is refused with the state, and what is under way is no mistake.
        """
        place = self.made(prompt="forever")
        self.becomes(place, "running")
        self.assertEqual(self.admin.call("pauseSession", place).status, 202)
        self.becomes(place, "paused")
        self.refused(self.admin.call("pauseSession", place), 409, "conflict")
        self.refused(self.admin.call("promptSession", place, body={"prompt": "x"}), 409, "conflict")
        self.assertEqual(
            self.admin.call("resumeSession", place, body={"prompt": "Go on"}).status, 202
        )
        self.becomes(place, "running")
        refused = self.refused(self.admin.call("resumeSession", place), 409, "conflict")
        self.assertIn("running", refused["detail"])
        prompted = self.admin.call("promptSession", place, body={"prompt": "And more"})
        self.assertEqual(prompted.status, 202, prompted.body)
        cancelled = self.admin.call("deleteSession", place)
        self.assertEqual(cancelled.status, 202, cancelled.body)
        messages = list(self.admin.events(place["session"]).messages())
        self.assertEqual(
            [one.document["status"] for one in messages if one.type == "status"],
            [
                *("queued", "provisioning", "running", "pausing", "paused"),
                *("resuming", "running", "stopping", "cancelled"),
            ],
        )
        self.refused(self.admin.call("stopSession", place, body={}), 409, "conflict")
        self.refused(self.admin.call("promptSession", place, body={"prompt": "x"}), 410, "gone")
        self.assertEqual(self.admin.call("deleteSession", place).status, 204)
        self.refused(self.admin.call("getSession", place), 404, "not-found")
        # Stopped, with its reason; asked for twice; and failed by its exit code.
        place = self.made(prompt="forever")
        self.becomes(place, "running")
        for _ in range(2):
            stopped = self.admin.call("stopSession", place, body={"reason": "enough"})
            self.assertIn(stopped.status, (202, 409))
        self.becomes(place, "stopped")
        reasons = [
            one.document.get("reason") for one in self.admin.events(place["session"]).messages()
        ]
        self.assertIn("enough", reasons)
        place = self.made(prompt="exit=3 steps=1")
        self.becomes(place, "failed")
        failed = self.admin.call("getSession", place).document
        self.assertEqual(failed["exitCode"], 3)
        listed = self.admin.call("listSessions", query={"status": "stopped,failed"}).document
        self.assertEqual({one["status"] for one in listed["items"]}, {"stopped", "failed"})

    # 4. Discovery

    def test_discovery(self) -> None:
        """What there is to choose from, in the shape that forms and completions need."""
        agents = self.admin.call("listAgents").document["items"]
        coder = next(one for one in agents if one["type"] == "coder")
        self.assertEqual(coder["versions"], ["2.1", "2.0"])
        schema = self.admin.call("getAgentSchema", {"agent": "coder"}).document
        self.assertTrue(schema["properties"]["apiKey"]["writeOnly"])
        status, body = self.running.request("GET", coder["settingsSchemaRef"], self.running.admin)
        self.assertEqual((status, json.loads(body)), (200, schema))
        runtimes = self.admin.call("listRuntimes").document["items"]
        self.assertEqual({one["type"] for one in runtimes} - {"local", "devcontainer"}, set())
        (runner,) = self.admin.call("listRunners").document["items"]
        self.assertEqual((runner["id"], runner["kind"]), ("synthetic", "synthetic"))
        self.assertEqual(runner["snapshotCapabilities"], ["copy", "git"])
        until(
            lambda: (
                self.admin.call("listRunners").document["items"][0].get("lastHeartbeat") is not None
            ),
            "the host's heartbeat is seen",
        )
        self.assertEqual(self.admin.call("listExecutors").document["items"][0]["id"], "synthetic")
        place = self.made(projectId="apollo")
        self.becomes(place, "completed")
        projects = self.admin.call("listProjects").document["items"]
        self.assertEqual([one["displayName"] for one in projects], ["apollo"])
        (repository,) = self.admin.call("listRepositories").document["items"]
        self.assertEqual(repository["remoteUrl"], "git@github.com:acme/x.git")
        workspaces = self.admin.call("listWorkspaces").document["items"]
        self.assertEqual([one["id"] for one in workspaces], [place["session"]])
        # The description is at both its places, and what it does not have is 404.
        for path in ("/openapi.json", "/api/v1/openapi.json"):
            status, body = self.running.request("GET", path)
            self.assertEqual((status, json.loads(body)), (200, self.admin.description))
        for path in ("/healthz", "/api/v1/healthz", "/readyz", "/version"):
            self.assertEqual(self.running.request("GET", path)[0], 200, path)
        for path in ("/api/v1/followers", "/api/v1/connect/keys", "/api/v1/nothing"):
            described = path in self.admin.description["paths"]
            if not described:
                status, _ = self.running.request("GET", path, self.running.admin)
                self.assertEqual(status, 404, path)

    # 7. What is refused

    def test_refusals(self) -> None:
        """Each refusal is a problem that says what is wrong, with each wrong field."""
        call = self.admin.call
        wrong = call("createTask", body=task(repo={"mode": "git"}))
        problem = self.refused(wrong, 400, "validation", ["repo.url"])
        self.assertEqual(problem["errors"], {"repo.url": ["is required"]})
        several = task(prompt=None, runtime={"type": "moon"}, agent={"type": "nobody"})
        self.assertIn("prompt", call("createTask", body=several).document["errors"])
        self.refused(call("createTask", raw=b"{"), 400, "bad-request")
        self.refused(call("createTask", raw=b"[]"), 400, "validation", ["body"])
        unknown = call("createTask", body=task(promt="x"))
        self.refused(unknown, 400, "validation", ["promt"])
        self.refused(
            call("createTask", body=task(workspace={"executionHostId": "moon"})),
            400,
            "validation",
            ["workspace.executionHostId"],
        )
        large = call("createTask", raw=b'{"prompt": "' + b"x" * 900_000 + b'"}')
        self.refused(large, 413, "payload-too-large")
        text = {"Content-Type": "text/plain"}
        self.refused(call("createTask", raw=b"x", headers=text), 415, "unsupported-media-type")
        html = {"Accept": "text/html"}
        self.refused(call("createTask", body=task(), headers=html), 406, "not-acceptable")
        key = {"Idempotency-Key": "two words"}
        self.refused(
            call("createTask", body=task(), headers=key), 400, "validation", ["Idempotency-Key"]
        )
        for name, value in (("page", 0), ("perPage", 201), ("status", "asleep")):
            self.refused(call("listSessions", query={name: value}), 400, "validation", [name])
        nowhere = {"session": "ses_00000000000000000000000000"}
        for operation in ("getSession", "getSessionLogs", "streamSessionEvents", "pauseSession"):
            self.refused(call(operation, nowhere), 404, "not-found")
        place = self.made()
        last = {"Last-Event-ID": "soon"}
        self.refused(
            call("streamSessionEvents", place, headers=last), 400, "validation", ["Last-Event-ID"]
        )
        self.assertEqual(call("listSessions").document["total"], 1)
        status, body = self.running.request("PATCH", "/api/v1/tasks", self.running.admin)
        self.assertEqual((status, json.loads(body)["status"]), (405, 405))
        # What is announced as too large is refused before it comes.
        connection = http.client.HTTPConnection("127.0.0.1", self.running.port, timeout=10)
        self.addCleanup(connection.close)
        connection.putrequest("POST", "/api/v1/tasks")
        connection.putheader("Authorization", f"Bearer {self.running.admin}")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", "1000000000")
        connection.endheaders()
        answer = connection.getresponse()
        self.assertEqual(answer.status, 413)
        self.assertIn(b"payload-too-large", answer.read())

    def test_whoMayWhat(self) -> None:
        """
        Strangers, viewers, operators, bearers of JSON web tokens and other tenants:
        each may what the table says, and a thing of another tenant is not there.
        """
        place = self.made(prompt="forever")
        nobody = Outsider(self.running.url)
        self.refused(nobody.call("listSessions"), 401, "auth")
        self.assertIn("Bearer", nobody.call("listSessions").fields["WWW-Authenticate"])
        self.refused(Outsider(self.running.url, "hx_wrong").call("listSessions"), 401, "auth")
        viewer = self.somebody("vera", "viewer", "ApiKey")
        self.assertEqual(viewer.call("getSession", place).status, 200)
        self.assertEqual(viewer.call("getSessionLogs", place).status, 200)
        for operation, body in (
            ("stopSession", {}),
            ("pauseSession", None),
            ("deleteSession", None),
            ("promptSession", {"prompt": "x"}),
        ):
            self.refused(viewer.call(operation, place, body=body), 403, "authz")
        self.refused(viewer.call("createTask", body=task()), 403, "authz")
        operator = self.somebody("otto", "operator")
        self.becomes(place, "running")
        self.assertEqual(operator.call("pauseSession", place).status, 202)
        ann = Outsider(self.running.url, self.signed())
        self.assertEqual(ann.call("getSession", place).status, 200)
        hers = self.made(ann)
        self.assertEqual(self.admin.call("getSession", hers).document["owner"], "ann")
        bob = Outsider(self.running.url, self.signed(sub="bob", tenant_id="other"))
        for operation in ("getSession", "getSessionLogs", "streamSessionEvents", "stopSession"):
            body = {} if operation == "stopSession" else None
            self.refused(bob.call(operation, place, body=body), 404, "not-found")
        self.assertEqual(bob.call("listSessions").document["total"], 0)
        his = self.made(bob)
        self.refused(self.admin.call("getSession", his), 404, "not-found")
        elsewhere = self.admin.call("createTask", body=task(tenantId="other"))
        self.assertIn(elsewhere.status, (400, 403), elsewhere.body)
        for wrong in (
            self.signed(iss="https://evil.example/"),
            self.signed(aud="other"),
            self.signed(exp=time.time() - 60),
            self.signed()[:-4] + "AAAA",
            jwt.encode({"sub": "x"}, "", "none"),
        ):
            self.refused(Outsider(self.running.url, wrong).call("listSessions"), 401, "auth")

    def test_tooMuchAndTooLong(self) -> None:
        """
        Who calls too often is told when to come back, and nobody else suffers; a stream
        of events is cut when the token that it was asked with expires.
        """
        hasty = self.somebody("hasty", "operator")
        answers = [hasty.call("listSessions") for _ in range(6)]
        limited = [answer for answer in answers if answer.status == 429]
        self.assertGreaterEqual(len(limited), 2)
        for answer in limited:
            self.refused(answer, 429, "rate-limited")
            self.assertGreaterEqual(int(answer.fields["Retry-After"]), 1)
        self.assertEqual(self.admin.call("listSessions").status, 200)
        spoofed = hasty.call("listSessions", headers={"X-Forwarded-For": "192.0.2.1"})
        self.assertEqual(spoofed.status, 429)
        until(lambda: hasty.call("listSessions").status == 200, "the rate allows a call again")
        place = self.made(prompt="forever")
        ann = Outsider(self.running.url, self.signed(exp=int(time.time()) + 2))
        source = ann.events(place["session"])
        began = time.monotonic()
        try:
            seen = len(list(source.messages()))
        except (http.client.HTTPException, ConnectionError):
            seen = 1
        self.assertGreater(seen, 0)
        self.assertLess(time.monotonic() - began, 25)
        self.refused(ann.call("getSession", place), 401, "auth")


class ScenarioPostgreSQLTests(OnPostgreSQL, ScenarioTests):
    """The same on PostgreSQL."""
