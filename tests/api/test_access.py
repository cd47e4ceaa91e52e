"""The access table, walked: every operation, asked by every kind of caller, over HTTP."""

from __future__ import annotations

import re

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.access.jwt import Issuer
from helix_revdial.access.table import ACCESS, WHO, Cell
from helix_revdial.http.operations import ANY, Operation
from tests.access.signing import AUDIENCE, ISSUER, SECRET, claims, token
from tests.api.harness import Server, request

DECIDED_LATER = {"dial", "session-dial", "runner"}
"""Words whose row lets somebody through to another table, which may still refuse."""


class WalkTests(SynchronousTestCase):
    """What the table says is what is answered."""

    def setUp(self) -> None:
        self.server = server = Server()
        self.addCleanup(server.services.jwts.stop)
        server.services.jwts.setIssuers([Issuer(ISSUER, AUDIENCE, "HS256", secret=SECRET)])
        self.mine = server.session("walker")
        self.tokens: dict[str, str | None] = {
            "nobody": None,
            **{role: server.user("walker", role) for role in ("viewer", "operator", "admin")},
            "runner": server.runner("wolf-*"),
            "session": server.sessionToken(self.mine),
        }

    def status(self, row: Operation, shown: str | None, session: str) -> int | None:
        """
        What is answered to a call with nothing in it; C{None}: nothing yet, so it is being
        carried out.
        """
        path = row.openAPIPath.replace("{session}", session)
        path = re.sub(r"\{\w+\}", "x", path)
        method = "GET" if row.method == ANY else row.method
        protocol, wire = self.server.connect()
        protocol.dataReceived(request(method, path, shown, headers={"Content-Length": "0"}))
        head = wire.value().partition(b"\r\n")[0].split(b" ")
        return int(head[1]) if len(head) > 1 else None

    def rows(self) -> list[Operation]:
        return [row for row in self.server.table.operations if row.access is not None]

    def test_everyOperation(self) -> None:
        """
        Where the row says no: 401 without a token, 403 with one.  Where it says yes or own, it
        is neither of them for one's own session.
        """
        for row in self.rows():
            assert row.access is not None
            for who, cell in zip(WHO, ACCESS[row.access].cells, strict=True):
                session = self.server.session("walker")
                if who == "session":
                    # The sandbox of this very session.
                    self.tokens["session"] = self.server.sessionToken(session)
                status = self.status(row, self.tokens[who], session.id)
                place = f"{row.method} {row.path} ({row.access}) by {who}"
                if cell is Cell.NO:
                    self.assertEqual(status, 401 if who == "nobody" else 403, place)
                elif row.access not in DECIDED_LATER:
                    self.assertNotIn(status, (401, 403), place)
                self.assertNotEqual(status, 500, place)
        self.flushLoggedErrors()

    def test_anotherOwner(self) -> None:
        """Where the row says own, a colleague's session is 403 for all but its administrators."""
        for row in self.rows():
            assert row.access is not None
            for who, cell in zip(WHO, ACCESS[row.access].cells, strict=True):
                if cell is Cell.OWN:
                    theirs = self.server.session("colleague").id
                    status = self.status(row, self.tokens[who], theirs)
                    self.assertEqual(status, 403, f"{row.name} by {who}")

    def test_anotherTenant(self) -> None:
        """A session of another tenant is 404 for every user, whatever the operation."""
        elsewhere = self.server.session("walker", "other").id
        asked = 0
        for row in self.rows():
            assert row.access is not None
            if "{session}" in row.path and ACCESS[row.access].resource:
                for who in ("viewer", "operator", "admin"):
                    status = self.status(row, self.tokens[who], elsewhere)
                    self.assertEqual(status, 404, f"{row.name} by {who}")
                    asked += 1
        self.assertGreater(asked, 10)

    def test_anotherProject(self) -> None:
        """Nor does one of another project exist for who is confined to one."""
        shown = token(
            claims(self.server.wallClock(), project_id="web", roles=["admin"], sub="walker")
        )
        without = self.server.session("walker").id
        for row in self.rows():
            assert row.access is not None
            if "{session}" in row.path and ACCESS[row.access].resource:
                self.assertEqual(self.status(row, shown, without), 404, row.name)
            elif ACCESS[row.access].tenantWide:
                self.assertEqual(self.status(row, shown, without), 403, row.name)

    def test_inAProject(self) -> None:
        """What somebody makes who is confined to a project belongs to it, and is all they see."""
        server = self.server

        def confined(project: str, sub: str = "walker") -> str:
            given = claims(server.wallClock(), project_id=project, roles=["admin"], sub=sub)
            return token(given)

        web, app = confined("web"), confined("app")
        made = server.post("/api/v1/sessions", web, {"name": "x"})
        self.assertEqual(made.status, 201)
        path = f"/api/v1/sessions/{made.json()['id']}"
        self.assertEqual(server.get(path, web).status, 200)
        self.assertEqual(server.get(path, app).status, 404)
        self.assertEqual(server.get(path, self.tokens["admin"]).status, 200)
        self.assertEqual(server.get("/api/v1/sessions", web).json()["total"], 1)
        self.assertEqual(server.get("/api/v1/sessions", app).json()["total"], 0)
        self.assertEqual(server.get("/api/v1/sessions", self.tokens["admin"]).json()["total"], 2)

    def test_noWayOut(self) -> None:
        """Who is confined to a project makes no token that is not, and touches no such one."""
        shown = token(
            claims(self.server.wallClock(), project_id="web", roles=["admin"], sub="walker")
        )
        for body in (
            {"kind": "user", "name": "n", "user": "walker", "role": "admin"},
            {"kind": "runner", "name": "n", "patterns": ["*"]},
        ):
            self.assertEqual(self.server.post("/api/v1/tokens", shown, body).status, 403)
        body = {"kind": "session", "name": "n", "session": self.mine.id}
        self.assertEqual(self.server.post("/api/v1/tokens", shown, body).status, 400)
        admin = self.tokens["admin"]
        others = self.server.get("/api/v1/tokens?kind=runner", admin).json()["items"]
        self.assertEqual(self.server.delete(f"/api/v1/tokens/{others[0]['id']}", shown).status, 404)
        self.assertNotIn(
            "runner",
            [one["kind"] for one in self.server.get("/api/v1/tokens", shown).json()["items"]],
        )
