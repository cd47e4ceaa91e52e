"""Which session is meant."""

from __future__ import annotations

from typing import Any

from helix_revdial.cli.session_control import named
from tests.cli.fake import CommandTestCase, Given

A = "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV"
B = "ses_01ARZ3NDEKTSV4RRFFQ69G5FBB"
C = "ses_01BX5ZZKBKACTAV9WEVGEMMVRZ"


def listed(*sessions: dict[str, Any]) -> Given:
    """A list's answer."""
    return Given({"items": list(sessions), "total": len(sessions)})


class NamesTests(CommandTestCase):
    """By C{helix session get --json}, which says which."""

    def setUp(self) -> None:
        """Three tasks and a sandbox, the newest first."""
        super().setUp()
        vcs = {"repoUrl": "git@h.example:acme/x.git", "branch": "main"}
        self.sessions: list[dict[str, Any]] = [
            {"id": "ses_sandbox", "kind": "sandbox"},
            {"id": C, "kind": "task", "vcs": {**vcs, "branch": "fix"}},
            {"id": B, "kind": "task", "vcs": vcs},
            {"id": A, "kind": "task", "vcs": {**vcs, "delivery": {"targetBranch": "old"}}},
        ]
        self.api.on("GET", "/api/v1/sessions", listed(*self.sessions))
        for one in self.sessions:
            self.api.on("GET", f"/api/v1/sessions/{one['id']}", Given(one))

    def meant(self, *name: str) -> str:
        """The id, or what was wrong."""
        ran = self.helix("session", "get", *name)
        if ran.code == 0:
            return ran.out.split()[1]
        self.assertEqual(ran.out, "")
        return ran.err

    def test_whole(self) -> None:
        """A whole id is asked for as it is."""
        self.assertEqual(self.meant(A), A)
        self.assertEqual(self.api.paths(), [f"GET /api/v1/sessions/{A}"])

    def test_beginnings(self) -> None:
        """The beginning of one, with its ses_ or without."""
        for name in ("ses_01B", "01BX5", C[:-1]):
            self.assertEqual(self.meant(name), C)
        self.assertEqual(self.meant("ses_sandbox"), "ses_sandbox")
        text = self.meant("ses_01A")
        self.assertIn(f"is the beginning of {B}, {A}: give more", text)
        self.assertIn("no session's id begins with nix", self.meant("nix"))

    def test_branches(self) -> None:
        """The branch, or repository and branch: the newest that works on it."""
        for name, expected in (("fix", C), ("main", B), ("x/main", B), ("old", A), ("x/old", A)):
            self.assertEqual(self.meant(name), expected)
        self.assertIn("no session's id", self.meant("y/main"))

    def test_numbers(self) -> None:
        """C{.N} is the Nth newest of a branch, unless the branch itself is called so."""
        for name, expected in (("main.1", B), ("x/main.2", A), ("main.2", A)):
            self.assertEqual(self.meant(name), expected)
        for name in ("main.3", "main.0", "nix.1"):
            self.assertIn("no session's id", self.meant(name))
        self.sessions[3]["vcs"]["branch"] = "fix.1"
        self.api.on("GET", "/api/v1/sessions", listed(*self.sessions))
        self.assertEqual(self.meant("fix.1"), A)

    def test_newest(self) -> None:
        """Nothing is the newest task, which is told."""
        ran = self.helix("session", "get")
        self.assertEqual(ran.out.split()[1], C)
        self.assertEqual(ran.err, f"helix: session {C}\n")
        self.api.on("GET", "/api/v1/sessions", listed(self.sessions[0]))
        self.assertIn("there is no task's session yet", self.meant())

    def test_noNames(self) -> None:
        """What cannot be a name is refused before anything is asked."""
        for name in ("..", "a/../b", "a b", "-x", "a?b", "a%2f"):
            ran = self.helix("session", "get", "--", name)
            self.assertEqual(ran.code, 7, ran.err)
        self.assertEqual(self.api.asked, [])

    def test_wordsOfAPrompt(self) -> None:
        """An id and a prompt are told apart, or it is an error."""
        self.assertEqual(named(()), (None, None))
        self.assertEqual(named((A,)), (A, None))
        self.assertEqual(named((A, "go on")), (A, "go on"))
        self.assertEqual(named(("go on",)), (None, "go on"))
        self.assertEqual(named(("continue",)), ("continue", None))
