"""The access table, walked: every operation, asked by every kind of caller, over HTTP."""

from __future__ import annotations

import re

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.access.table import ACCESS, WHO, Cell
from helix_revdial.http.operations import ANY, Operation
from tests.api.harness import Server, request

DECIDED_LATER = {"dial", "session-dial", "runner"}
"""Words whose row lets somebody through to another table, which may still refuse."""


class WalkTests(SynchronousTestCase):
    """What the table says is what is answered."""

    def setUp(self) -> None:
        self.server = server = Server()
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
