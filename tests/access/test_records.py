"""Tests for L{helix_revdial.access.records}: what a token may be."""

from __future__ import annotations

from typing import Any

from helix_revdial.access.records import MAX_PATTERNS, TokenError
from helix_revdial.storage.ids import newId
from tests.access.worlds import START, AccessTestCase


class RuleTests(AccessTestCase):
    def refused(self, field: str, kind: str, **other: Any) -> None:
        """Making this token is refused because of that parameter."""
        error = self.fails(self.tokens.create(kind, **{"name": "n", **other}), TokenError)
        assert isinstance(error, TokenError)
        self.assertEqual(error.field, field, str(error))

    def test_everyKindHasItsOwnParameters(self) -> None:
        """No kind takes what belongs to another, or lacks its own."""
        session = newId("ses", START)
        self.refused("kind", "root")
        self.refused("user", "user", role="admin")
        self.refused("role", "user", user="ann")
        self.refused("role", "user", user="ann", role="root")
        self.refused("patterns", "user", user="ann", role="admin", patterns=["*"])
        self.refused("session", "user", user="ann", role="admin", session=session)
        self.refused("patterns", "runner")
        self.refused("role", "runner", patterns=["*"], role="admin")
        self.refused("session", "runner", patterns=["*"], session=session)
        self.refused("session", "session")
        self.refused("session", "session", session="wolf-1")
        self.refused("patterns", "session", session=session, patterns=["*"])
        self.refused("role", "session", session=session, role="admin")

    def test_names(self) -> None:
        """A name has 1 to 200 characters, none of which moves a terminal."""
        for name in ("", "x" * 201, "a\x1b[2J", "line\n", "\x00", "\x9b", "\ud800"):
            self.refused("name", "runner", name=name, patterns=["*"])
        self.get(self.tokens.create("runner", name="ü" * 200, patterns=["*"]))

    def test_tenantsAndUsers(self) -> None:
        """Tenant and user are words."""
        for word in ("", "a b", "x" * 129, "a\x00"):
            self.refused("tenant", "runner", tenant=word, patterns=["*"])
            self.refused("user", "user", user=word, role="admin")

    def test_expiry(self) -> None:
        """A token expires in the future, at a time that is one."""
        for expires in (START, START - 1, float("nan"), float("inf"), START + 1e11):
            self.refused("expires", "runner", patterns=["*"], expires=expires)

    def test_patterns(self) -> None:
        """Patterns are patterns, and not too many."""
        self.refused("patterns", "runner", patterns=["ok", "not ok"])
        self.refused("patterns", "runner", patterns=["a"] * (MAX_PATTERNS + 1))
        self.get(self.tokens.create("runner", name="n", patterns=["a"] * MAX_PATTERNS))
