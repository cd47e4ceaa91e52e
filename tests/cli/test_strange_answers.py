"""Answers of servers newer, older or stranger than this client: shown, or one clear error."""

from __future__ import annotations

from typing import Any

from tests.cli.events import ID, NO_MORE, stream
from tests.cli.fake import DETAIL, CommandTestCase, Given

PATH = f"/api/v1/sessions/{ID}"

STRANGE: tuple[Any, ...] = (
    None,
    True,
    -1,
    2.5,
    1e300,
    10**30,
    "",
    "0001-01-01T00:00:00+14:00",
    "\x1b]0;owned\x07\x9b2J\u202e\r\n\ud800",
    [],
    [None, {"\x1b[2J": 1}, ["x"]],
    {},
    {"type": ["x"], "\x1b[2J": {"a": None}, "url": {}, "mode": 3, "branch": [1]},
)
"""What a field can turn out to be."""

ASKING: tuple[tuple[str, ...], ...] = (
    ("session", "list", "--all"),
    ("session", "list", "--repo", "x"),
    ("session", "get", ID),
    ("session", "get", "main"),
    ("session", "logs", ID),
    ("session", "events", ID),
    ("session", "attach", ID),
    ("session", "attach"),
    ("session", "logs", ID, "-f", "--level", "warn"),
    ("session", "workspace", ID),
    ("session", "open", ID),
    ("session", "pause", ID),
    ("session", "stop", ID, "--wait"),
    ("session", "cancel", ID),
    ("remote", "agents"),
    ("remote", "runtimes"),
    ("remote", "runners"),
    ("remote", "repos"),
    ("remote", "workspaces"),
    ("remote", "projects"),
    ("remote", "refs", "https://h.example/x.git"),
    ("task", "--repo", "none", "-p", "x"),
    ("task", "--repo", "none", "-p", "x", "--agent", "mock", "--setting", "a=1", "-f"),
    ("sessions", "list"),
    ("sessions", "create", "x"),
    ("tokens", "list"),
    ("tokens", "create", "--kind", "user", "--user", "a", "--name", "n"),
    ("forwards", "list"),
    ("forwards", "create", "tcp:1", "wolf-1"),
    ("revdial", "status"),
    ("server", "ledger"),
    ("server", "reload"),
    ("spectask", "list"),
    ("spectask", "revdial", ID),
    ("why", "wolf-1"),
    ("why", ID),
    ("version", "--server"),
)
"""Commands that show what a server says."""

_TEXTS = """
    id kind status name prompt owner tenant error version type displayName remoteUrl defaultBranch
    executorId mountPath host health os arch notes listen runner target lastError token code role
    session carrier reason session_id key event message level stream label note provider
"""
_NUMBERS = """
    running slots age storageUsed exitCode lastSeq accepted failed refused connections bytesIn
    active_connections grace_period_entries pending_dials_total grace_seconds_left firstAvailable
    size
"""
_TIMES = """
    createdAt created startedAt endedAt lastUsedAt lastActivity lastHeartbeat ts at expires lastUsed
"""
_LISTS = """
    versions images paths sandboxProfiles runtimes snapshotCapabilities commands changed allow
    patterns
"""

RECORD: dict[str, Any] = {
    **dict.fromkeys(_TEXTS.split(), "x"),
    **dict.fromkeys(_NUMBERS.split(), 1),
    **dict.fromkeys(_TIMES.split(), "2026-01-02T03:04:05.000Z"),
    **{name: ["x"] for name in _LISTS.split()},
    "agent": {"type": "mock", "version": "1"},
    "vcs": {"repoUrl": "git@h.example:x.git", "branch": "main", "delivery": {"targetBranch": "y"}},
    "delivery": {"mode": "patch", "url": "x"},
    "refs": [{"name": "main", "type": "branch", "sha": "x"}],
    "descriptors": {"sockets": 3},
    "streams": [{"id": "x", "phases": {"asked": 1.0}}],
    "detail": DETAIL,
    "details": [DETAIL],
    "grace": [{"key": "x", "generation": 1, "seconds_left": 1.0, "pending_dials": 0}],
}
"""A record that has what any of them shows."""


class StrangeAnswersTests(CommandTestCase):
    """Nothing that a server says is a fault of C{helix}, or drives a terminal."""

    def given(self, record: Any) -> None:
        """Have every operation answer with that record, or with a list of it."""
        one = Given(record)
        many = Given({"items": [record], "nextPage": None})
        event = {**record, "type": "status", "status": "completed"}
        happened = stream({**record, "type": "new.kind", "seq": 1}, {**event, "seq": 2})

        def answer(method: str, path: str) -> Given:
            last = path.rpartition("/")[2]
            if path.endswith("/events"):
                return NO_MORE if "last-event-id" in self.api.asked[-1].headers else happened
            lists = {
                "sessions", "logs", "agents", "runtimes", "runners", "repos", "workspaces",
                "projects", "tokens", "forwards", "audit",
            }  # fmt: skip
            return many if method == "GET" and last in lists else one

        self.api.answering = answer

    def check(self, record: Any, terminal: bool, *more: str) -> None:
        """Whatever is asked, it is shown, or it is one clear error."""
        self.given(record)
        for words in ASKING:
            ran = self.helix(*words, *more, terminal=terminal)
            said = f"{words} {more} {record}: {ran}"
            self.assertNotIn("unforeseen", ran.err, said)
            if terminal:
                self.assertNotRegex(ran.out, "[\x07\x9b\u202e]|\x1b[^[]|\x1b\\[2J", said)
            self.assertNotRegex(ran.err, "[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", said)
            self.assertLess(len(ran.err.splitlines()), 4, said)

    def test_whatIsKnown(self) -> None:
        """Each command understands a record that has everything."""
        self.check(RECORD, True)
        self.check(RECORD, False, "--json")

    def test_fieldsThatAreOtherwise(self) -> None:
        """A field may have any kind of value, or be missing."""
        names = list(RECORD)
        for part in (names[::2], names[1::2]):
            for value in STRANGE:
                self.check({**RECORD, **dict.fromkeys(part, value)}, True)
            self.check({name: RECORD[name] for name in part}, True)
