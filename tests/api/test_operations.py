"""Sessions, tokens, status, health and the document: the rest of the operation table."""

from __future__ import annotations

import re

from openapi_spec_validator import validate
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.access.table import ACCESS
from helix_revdial.http.openapi import METHODS
from helix_revdial.http.operations import ANY
from tests.api.harness import Server


class SessionTests(SynchronousTestCase):
    """C{/api/v1/sessions}."""

    def setUp(self) -> None:
        self.server = Server()
        self.ann = self.server.user("ann")

    def test_lifeOfASession(self) -> None:
        """Made, found, listed, deleted, gone."""
        made = self.server.post("/api/v1/sessions", self.ann, {"name": "one"})
        self.assertEqual(made.status, 201)
        document = made.json()
        self.assertRegex(document["id"], "^ses_[0-9A-Z]{26}$")
        self.assertEqual(
            {name: document[name] for name in ("tenant", "owner", "name", "status")},
            {"tenant": "default", "owner": "ann", "name": "one", "status": "created"},
        )
        path = made.headers["location"]
        self.assertEqual(self.server.get(path, self.ann).json(), document)
        listed = self.server.get("/api/v1/sessions", self.ann).json()
        self.assertEqual(listed, {"items": [document], "total": 1})
        self.assertEqual(self.server.delete(path, self.ann).status, 204)
        self.assertEqual(self.server.get(path, self.ann).status, 404)
        self.assertEqual(self.server.delete(path, self.ann).status, 404)
        self.assertEqual(self.server.get("/api/v1/sessions", self.ann).json()["total"], 0)

    def test_pages(self) -> None:
        """Newest first, with the number of the next page except on the last."""
        for number in range(3):
            self.server.clock.advance(1)
            self.server.post("/api/v1/sessions", self.ann, {"name": f"s{number}"})
        first = self.server.get("/api/v1/sessions?perPage=2", self.ann).json()
        self.assertEqual([one["name"] for one in first["items"]], ["s2", "s1"])
        self.assertEqual((first["nextPage"], first["total"]), ("2", 3))
        second = self.server.get("/api/v1/sessions?perPage=2&page=2", self.ann).json()
        self.assertEqual([one["name"] for one in second["items"]], ["s0"])
        self.assertNotIn("nextPage", second)
        for bad in ("page=0", "perPage=201", "perPage=x"):
            self.assertEqual(self.server.get(f"/api/v1/sessions?{bad}", self.ann).status, 400)

    def test_othersSeeTheirOwn(self) -> None:
        """A user lists their own; an administrator the tenant; another tenant nothing."""
        self.server.session("ann")
        self.server.session("bob")
        for token, total in (
            (self.ann, 1),
            (self.server.user("root", "admin"), 2),
            (self.server.user("eve", "admin", "other"), 0),
        ):
            self.assertEqual(self.server.get("/api/v1/sessions", token).json()["total"], total)

    def test_badNames(self) -> None:
        """A name that cannot be is said so by field."""
        for body in ({}, {"name": ""}, {"name": "x" * 201}, {"name": "a\nb"}, {"name": 1}):
            answer = self.server.post("/api/v1/sessions", self.ann, body)
            self.assertEqual(answer.status, 400, body)
            self.assertIn("name", answer.json()["errors"], body)

    def test_viewersDoNotMake(self) -> None:
        """A viewer reads only; the refusal is in the audit log."""
        viewer = self.server.user("vic", "viewer")
        answer = self.server.post("/api/v1/sessions", viewer, {"name": "x"})
        self.assertEqual(answer.status, 403)
        self.assertEqual(
            answer.detail,
            "This is for operators and administrators, and the token is that of a viewer.",
        )
        self.assertIn("forbidden", [entry.event for entry in self.server.events()])


class TokenTests(SynchronousTestCase):
    """C{/api/v1/tokens}."""

    def setUp(self) -> None:
        self.server = Server()
        self.root = self.server.user("root", "admin")
        self.ann = self.server.user("ann")

    def test_runnerToken(self) -> None:
        """Made by an administrator; its secret is in that answer and in no other."""
        made = self.server.post(
            "/api/v1/tokens",
            self.root,
            {"kind": "runner", "name": "hosts", "patterns": ["wolf-*"], "expiresIn": 3600},
        )
        self.assertEqual(made.status, 201, made.raw)
        secret = made.json()["token"]
        self.assertEqual(made.json()["expires"], "2027-01-15T09:00:00.000Z")
        listed = self.server.get("/api/v1/tokens?kind=runner", self.root)
        self.assertEqual([one["name"] for one in listed.json()["items"]], ["hosts"])
        self.assertNotIn(secret, listed.raw.decode())
        self.assertNotIn(secret, repr(self.server.events()))

    def test_usersMakeTokensOfTheirSessionsOnly(self) -> None:
        """An operator makes tokens for own sessions, and nothing else."""
        own, other = self.server.session("ann"), self.server.session("bob")
        for body, status in (
            ({"kind": "session", "name": "s", "session": own.id}, 201),
            ({"kind": "session", "name": "s", "session": other.id}, 400),
            ({"kind": "runner", "name": "r", "patterns": ["*"]}, 403),
            ({"kind": "user", "name": "u", "user": "root", "role": "admin"}, 403),
        ):
            answer = self.server.post("/api/v1/tokens", self.ann, body)
            self.assertEqual(answer.status, status, (body, answer.raw))

    def test_badPurposes(self) -> None:
        """What a token cannot be is said by field."""
        for body, field in (
            ({"kind": "robot", "name": "x"}, "kind"),
            ({"kind": "runner", "name": "x"}, "patterns"),
            ({"kind": "runner", "name": "x", "patterns": ["a*b"]}, "patterns"),
            ({"kind": "session", "name": "x"}, "session"),
            ({"kind": "user", "name": "x", "user": "a b"}, "user"),
            ({"kind": "user", "name": "x", "expiresIn": -1}, "expiresIn"),
        ):
            answer = self.server.post("/api/v1/tokens", self.root, body)
            self.assertEqual(answer.status, 400, body)
            self.assertIn(field, answer.json()["errors"], (body, answer.raw))

    def test_rotate(self) -> None:
        """The old token is valid for the overlap, the new one at once, as one family."""
        made = self.server.post(
            "/api/v1/tokens", self.root, {"kind": "user", "name": "x", "user": "bob"}
        ).json()
        path = f"/api/v1/tokens/{made['id']}/rotate"
        rotated = self.server.post(path, made["token"], {"overlap": 60})
        self.assertEqual(rotated.status, 201, rotated.raw)
        self.assertEqual(rotated.json()["family"], made["family"])
        new = rotated.json()["token"]
        self.assertEqual(self.server.get("/api/v1/sessions", made["token"]).status, 200)
        self.server.clock.advance(61)
        self.assertEqual(self.server.get("/api/v1/sessions", made["token"]).status, 401)
        self.assertEqual(self.server.get("/api/v1/sessions", new).status, 200)
        self.assertEqual(self.server.post(path, self.root, {"overlap": 0}).status, 409)

    def test_revoke(self) -> None:
        """A revoked token is worth nothing from that answer on."""
        made = self.server.post(
            "/api/v1/tokens", self.root, {"kind": "user", "name": "x", "user": "bob"}
        ).json()
        self.assertEqual(self.server.get("/api/v1/sessions", made["token"]).status, 200)
        self.assertEqual(self.server.delete(f"/api/v1/tokens/{made['id']}", self.root).status, 204)
        self.assertEqual(self.server.get("/api/v1/sessions", made["token"]).status, 401)

    def test_othersTokensAreNotThere(self) -> None:
        """404 for a token of somebody else: neither rotated nor revoked nor told of."""
        made = self.server.post(
            "/api/v1/tokens", self.root, {"kind": "user", "name": "x", "user": "bob"}
        ).json()
        path = f"/api/v1/tokens/{made['id']}"
        self.assertEqual(self.server.delete(path, self.ann).status, 404)
        self.assertEqual(self.server.post(path + "/rotate", self.ann, {}).status, 404)
        self.assertEqual(self.server.get("/api/v1/tokens", self.ann).json()["total"], 1)

    def test_lowRoleDoesNotReachAHigherTokenOfTheSameUser(self) -> None:
        """A viewer's token cannot rotate or revoke the same user's administrator token."""
        viewer = self.server.user("root", "viewer")
        listed = self.server.get("/api/v1/tokens?kind=user", viewer).json()["items"]
        for one in listed:
            if one["role"] == "admin":
                path = f"/api/v1/tokens/{one['id']}"
                self.assertEqual(self.server.post(path + "/rotate", viewer, {}).status, 404)
                self.assertEqual(self.server.delete(path, viewer).status, 404)
        self.assertIn("admin", [one["role"] for one in listed])

    def test_makerChangesTheTokensOfTheirSessions(self) -> None:
        """Who made a session's token may rotate and revoke it."""
        session = self.server.session("ann")
        body = {"kind": "session", "name": "s", "session": session.id}
        made = self.server.post("/api/v1/tokens", self.ann, body).json()
        path = f"/api/v1/tokens/{made['id']}"
        rotated = self.server.post(path + "/rotate", self.ann, {})
        self.assertEqual(rotated.status, 201)
        path = f"/api/v1/tokens/{rotated.json()['id']}"
        self.assertEqual(self.server.delete(path, self.ann).status, 204)

    def test_deletionOfASessionRevokes(self) -> None:
        """The tokens of a session end with it; each is in the audit log, with who did it."""
        session = self.server.session("ann")
        body = {"kind": "session", "name": "s", "session": session.id}
        made = [self.server.post("/api/v1/tokens", self.ann, body).json()["id"] for _ in range(2)]
        self.assertEqual(self.server.delete(f"/api/v1/sessions/{session.id}", self.ann).status, 204)
        entries = [entry for entry in self.server.events() if entry.event == "token-revoked"]
        self.assertEqual(sorted(entry.fields["token"] for entry in entries), sorted(made))
        mine = [one for one in self.server.events() if one.event == "token-created"]
        self.assertEqual({one.subject for one in entries}, {one.subject for one in mine})

    def test_importToken(self) -> None:
        """A secret that exists is taken; taken again for the same it is the same."""
        body = {
            "token": "oh-hallo-insecure-token",
            "kind": "runner",
            "name": "old",
            "patterns": ["wolf-*"],
        }
        first = self.server.post("/api/v1/tokens/import", self.root, body)
        self.assertEqual(first.status, 201, first.raw)
        self.assertNotIn("oh-hallo-insecure-token", first.raw.decode())
        again = self.server.post("/api/v1/tokens/import", self.root, body)
        self.assertEqual(again.json()["id"], first.json()["id"])
        other = self.server.post("/api/v1/tokens/import", self.root, {**body, "patterns": ["*"]})
        self.assertEqual(other.status, 409)
        self.assertEqual(self.server.post("/api/v1/tokens/import", self.ann, body).status, 403)


class ViewTests(SynchronousTestCase):
    """Status, health, version and the OpenAPI document."""

    def setUp(self) -> None:
        self.server = Server()

    def test_status(self) -> None:
        """Exactly the fields of the original, for administrators only."""
        root = self.server.user("root", "admin")
        path = "/api/v1/admin/revdial/status"
        self.assertEqual(
            self.server.get(path, root).json(),
            {
                "active_connections": 0,
                "grace_period_entries": 0,
                "pending_dials_total": 0,
                "connections": [],
            },
        )
        self.assertEqual(self.server.get(path, self.server.user("ann")).status, 403)
        self.assertEqual(self.server.get(path).status, 401)

    def test_audit(self) -> None:
        """What was refused is listed for administrators, newest first, without secrets."""
        root = self.server.user("root", "admin")
        self.server.get("/api/v1/sessions", "hlx_nobody-has-this-one")
        self.server.get("/api/v1/admin/audit", self.server.user("ann"))
        answer = self.server.get("/api/v1/admin/audit", root)
        events = [one["event"] for one in answer.json()["items"]]
        self.assertEqual(events, ["forbidden", "unauthenticated"])
        self.assertNotIn("nobody-has-this-one", answer.raw.decode())
        only = self.server.get("/api/v1/admin/audit?event=forbidden&limit=1", root).json()["items"]
        self.assertEqual([one["event"] for one in only], ["forbidden"])
        other = self.server.user("eve", "admin", "other")
        self.assertEqual(self.server.get("/api/v1/admin/audit", other).json()["items"], [])
        for query, status in (
            (f"before={2**63 - 1}", 200),
            (f"before={2**63}", 400),
            ("before=0", 400),
            ("event=forbidden%00", 400),
        ):
            answer = self.server.get(f"/api/v1/admin/audit?{query}", root)
            self.assertEqual(answer.status, status, query)

    def test_health(self) -> None:
        """Both paths, open to all; not ready says why and when to ask again."""
        for path in ("/healthz", "/readyz", "/version", "/api/v1/healthz"):
            self.assertEqual(self.server.get(path).status, 200, path)
        self.server.notReady = "shutting down"
        answer = self.server.get("/readyz")
        self.assertEqual((answer.status, answer.detail), (503, "Not ready: shutting down."))
        self.assertEqual(answer.headers["retry-after"], "1")

    def test_document(self) -> None:
        """The served document is valid OpenAPI 3.1 and names every operation."""
        answer = self.server.get("/api/v1/openapi.json")
        document = answer.json()
        validate(document)
        self.assertTrue(document["openapi"].startswith("3.1"))
        named = {row["operationId"] for path in document["paths"].values() for row in path.values()}
        # A row that takes any method is named once for each that the document knows.
        rows = {
            name
            for row in self.server.table.operations
            for name in (
                [row.name]
                if row.method != ANY
                else [row.name + method.capitalize() for method in METHODS]
            )
        }
        self.assertEqual(named, rows)

    def test_everyRowIsDecided(self) -> None:
        """Every operation has a word of the access table, or is meant to be open."""
        for row in self.server.table.operations:
            if row.access is None:
                self.assertRegex(row.name, re.compile("healthz|readyz|version|getOpenAPI"))
            else:
                self.assertIn(row.access, ACCESS)

    def test_databaseLost(self) -> None:
        """503 with a time to try again when the database cannot be asked."""
        root = self.server.user("root", "admin")
        self.server.get("/api/v1/sessions", root)
        self.server.database.engine.dispose()

        def broken(*args: object, **kwargs: object) -> None:
            from sqlalchemy.exc import OperationalError

            raise OperationalError("SELECT", {}, Exception("disk I/O error"))

        self.patch(self.server.database.engine, "connect", broken)
        answer = self.server.get("/api/v1/sessions", root)
        self.assertEqual((answer.status, answer.json()["code"]), (503, "database-unavailable"))
        self.assertNotIn("disk I/O", answer.raw.decode())
