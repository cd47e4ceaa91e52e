"""Tests for L{helix_revdial.access.table}: walk the access table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.access.principals import DEFAULT_TENANT, Principal
from helix_revdial.access.table import (
    ACCESS,
    WHO,
    Cell,
    Decision,
    columnOf,
    decide,
    refusal,
    tableText,
)
from tests.access.test_policy import Facts, runner, sandbox, user

DOCUMENT = Path(__file__).parents[2] / "docs" / "access.md"

CALLERS: dict[str, Principal | None] = {
    "nobody": None,
    "viewer": user(role="viewer", tenant=DEFAULT_TENANT),
    "operator": user(role="operator", tenant=DEFAULT_TENANT),
    "admin": user(role="admin", tenant=DEFAULT_TENANT),
    "runner": runner("*", tenant=DEFAULT_TENANT),
    "session": sandbox(),
}

MINE = Facts(owner="ann", tenant=DEFAULT_TENANT)
COLLEAGUES = Facts(owner="bob", tenant=DEFAULT_TENANT)
TASK = Facts(owner="bob", kind="task", tenant=DEFAULT_TENANT)
ELSEWHERE = Facts(tenant="other", owner="ann")

REFUSED = {True: Decision.UNAUTHENTICATED, False: Decision.FORBIDDEN}


class DocumentTests(SynchronousTestCase):
    """The document is held to the table, and the table to what is decided."""

    def documented(self) -> list[list[str]]:
        text = DOCUMENT.read_text()
        _, _, rest = text.partition("tableText -->\n")
        table, end, _ = rest.partition("<!-- end of the access table -->")
        self.assertTrue(end, "docs/access.md has lost the marks around its table")
        self.assertEqual(table, tableText(), "write tableText() into docs/access.md")
        lines = table.splitlines()[2:]
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]

    def test_everyCellOfTheDocumentHolds(self) -> None:
        """Each cell, as a person reads it, is what each caller is answered."""
        rows = self.documented()
        self.assertEqual([row[0].strip("`") for row in rows], list(ACCESS))
        for word, _, *cells in ([row[0].strip("`"), *row[1:]] for row in rows):
            for who, cell in zip(WHO, cells, strict=True):
                principal = CALLERS[who]
                allowed = {
                    "mine": decide(word, principal, MINE) is Decision.ALLOWED,
                    "a colleague's": decide(word, principal, COLLEAGUES) is Decision.ALLOWED,
                    "a task": decide(word, principal, TASK) is Decision.ALLOWED,
                }
                expected = {
                    "yes": {"mine": True, "a colleague's": True, "a task": True},
                    "own": {"mine": True, "a colleague's": False, "a task": False},
                    "task": {"mine": True, "a colleague's": False, "a task": True},
                    "-": {"mine": False, "a colleague's": False, "a task": False},
                }[cell]
                self.assertEqual(allowed, expected, f"{word} for {who}: {cell}")


class DecideTests(SynchronousTestCase):
    def test_everyRowHasEveryColumn(self) -> None:
        """The table has no hole, and only words about a session say "own"."""
        for row in ACCESS.values():
            self.assertEqual(len(row.cells), len(WHO))
            if not row.resource:
                self.assertFalse({Cell.OWN, Cell.TASK} & set(row.cells))
            elif row.resource:
                self.assertEqual(
                    [row.cells[WHO.index(who)] for who in ("nobody", "runner", "session")],
                    [Cell.NO] * 3,
                )

    def test_refusals(self) -> None:
        """Without a token 401; with one that may not, 403."""
        for row in ACCESS.values():
            for who, cell in zip(WHO, row.cells, strict=True):
                if cell is Cell.NO:
                    found = decide(row.word, CALLERS[who], MINE)
                    self.assertIs(found, REFUSED[who == "nobody"], (row.word, who))

    def test_anotherTenantsSessionDoesNotExist(self) -> None:
        """A session of another tenant, or none, is 404 for every user, the
        admin too, and says nothing about whether it is there."""
        for word, row in ACCESS.items():
            if row.resource:
                for who in ("viewer", "operator", "admin"):
                    for session in (ELSEWHERE, None):
                        self.assertIs(decide(word, CALLERS[who], session), Decision.HIDDEN)

    def test_server(self) -> None:
        """What all tenants share is for the people of one: other tenants' may not, and hear why."""
        admin = user(role="admin")
        self.assertNotEqual(admin.tenant, DEFAULT_TENANT)
        for word, row in ACCESS.items():
            if row.serverWide:
                self.assertIs(decide(word, admin), Decision.FORBIDDEN)
                self.assertIn("that all tenants share", refusal(word, admin))
            elif not row.resource:
                self.assertIs(decide(word, admin), Decision.ALLOWED, word)
        self.assertEqual([row.word for row in ACCESS.values() if row.serverWide], ["server"])

    def test_confinedToAProject(self) -> None:
        """
        For who is confined to a project, sessions of others, or of none, do not exist; nothing
        that is the whole tenant's may be touched; all else is as for the rest of the tenant.
        """
        ours = Facts(owner="ann", project="web")
        for role in ("viewer", "operator", "admin"):
            confined = replace(user(role=role), project="web")
            for word, row in ACCESS.items():
                whole = decide(word, user(role=role), ours)
                if row.tenantWide:
                    self.assertIs(decide(word, confined, ours), Decision.FORBIDDEN)
                    continue
                self.assertIs(decide(word, confined, ours), whole, word)
                if row.resource:
                    for other in (Facts(project="app"), Facts(), Facts(tenant="o", project="web")):
                        self.assertIs(decide(word, confined, other), Decision.HIDDEN, word)
        self.assertIn("whole tenant", refusal("admin", confined))

    def test_aUserOfTheSameNameElsewhere(self) -> None:
        """The owner is a user of the session's tenant, not of any."""
        namesake = user("ann", "operator", "other")
        self.assertIs(decide("session-owner", namesake, MINE), Decision.HIDDEN)

    def test_columnOf(self) -> None:
        """Each principal has one column; a user without a role is a viewer at
        most."""
        for who, principal in CALLERS.items():
            self.assertEqual(columnOf(principal), who)
        self.assertEqual(columnOf(Principal("user", "t", "f", "acme", user="x")), "viewer")

    def test_unknownWords(self) -> None:
        """A word that is not in the table permits nothing."""
        with self.assertRaises(KeyError):
            decide("root", CALLERS["admin"])


class RefusalTests(SynchronousTestCase):
    """Why somebody is forbidden something, in a sentence."""

    def test_everyForbiddenCell(self) -> None:
        """There is a sentence for each, which says whom the operation is for."""
        said = set()
        for word in ACCESS:
            for who, principal in CALLERS.items():
                if decide(word, principal, COLLEAGUES) is Decision.FORBIDDEN:
                    assert principal is not None
                    said.add((who, refusal(word, principal)))
        self.assertEqual(
            {text for who, text in said if who == "operator"},
            {
                "This is for administrators, and the token is that of an operator.",
                "This session belongs to somebody else.",
            },
        )
        self.assertIn(
            (
                "viewer",
                "This is for operators and administrators, and the token is that of a viewer.",
            ),
            said,
        )
        self.assertIn(
            ("session", "This is for users, and the token is that of a session's sandbox."), said
        )

    def test_projects(self) -> None:
        """Who is confined to a project has that project's sessions, and no other's."""
        confined = Principal(
            "user", "t", "f", "acme", user="ann", roles=frozenset({"admin"}), project="p1"
        )
        for project, expected in (
            ("p1", Decision.ALLOWED),
            ("p2", Decision.HIDDEN),
            (None, Decision.HIDDEN),
        ):
            session = Facts(kind="task", project=project)
            self.assertEqual(decide("session-operator", confined, session), expected)
