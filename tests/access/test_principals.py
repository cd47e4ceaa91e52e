"""Tests for L{helix_revdial.access.principals}."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.access.principals import Kind, Principal, isPattern


class PrincipalTests(SynchronousTestCase):
    def test_onlyUsersHaveRoles(self) -> None:
        """A role counts for a user only, whatever else carries the word."""
        kinds: list[tuple[Kind, bool]] = [("user", True), ("runner", False), ("session", False)]
        for kind, expected in kinds:
            principal = Principal(kind, "tok", "fam", "t", roles=frozenset({"admin"}))
            self.assertIs(principal.hasRole("admin"), expected)
        self.assertFalse(Principal("user", "tok", "fam", "t").hasRole("admin", "viewer"))

    def test_patterns(self) -> None:
        """A pattern is a key, the beginning of one and C{*}, or C{*}."""
        for good in ("*", "wolf-1", "wolf-*", "a", "A.b_c-d*", "x" * 128, "x" * 128 + "*"):
            self.assertTrue(isPattern(good), good)
        for bad in ("", "**", "w*lf", "*-wolf", "-wolf", ".x", "x" * 129, "a b", "a/b", "wolf\n"):
            self.assertFalse(isPattern(bad), bad)
