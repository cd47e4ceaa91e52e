"""C{helix session}, without a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from helix_revdial.cli.session_control import MAX_PROMPT
from tests.cli.events import EVENTS, ID, NO_MORE, STORY, event, stream
from tests.cli.fake import CommandTestCase, Given, problem

PATH = f"/api/v1/sessions/{ID}"
LINES = [
    {"level": one["level"], "message": one["message"], "ts": one["ts"], "seq": one["seq"]}
    for one in STORY
    if one["type"] == "log"
]


class SessionTestCase(CommandTestCase):
    """One session."""

    def setUp(self) -> None:
        """It runs, and has told its whole story."""
        super().setUp()
        self.session: dict[str, Any] = {
            "id": ID,
            "kind": "task",
            "status": "running",
            "name": "do\x1b it",
            "prompt": "do it",
            "agent": {"type": "mock", "version": "1"},
            "vcs": {"repoUrl": "git@h.example:acme/x.git", "branch": "main"},
            "createdAt": "2026-01-02T03:04:00.000Z",
            "startedAt": "2026-01-02T03:04:02.000Z",
            "endedAt": "2026-01-02T03:04:07.000Z",
            "lastSeq": 7,
        }
        self.api.on("GET", PATH, Given(self.session))
        sandbox = {"id": "ses_box", "kind": "sandbox", "status": "running"}
        self.api.on("GET", "/api/v1/sessions", Given({"items": [sandbox, self.session]}))
        self.api.on("GET", EVENTS, stream(*STORY))
        self.api.on("GET", f"{PATH}/logs", Given({"items": LINES, "total": 2}))


class ReadingTests(SessionTestCase):
    """What there is."""

    def test_list(self) -> None:
        """Tasks, filtered by the server and by repository; sandboxes where they are wanted."""
        ran = self.helix("session", "list", "--status", "running", "--status", "paused")
        self.assertEqual(self.api.asked[-1].query["status"], "running,paused")
        self.assertRegex(
            ran.out.splitlines()[1],
            rf"^{ID} +running +mock@1 +git@h.example:acme/x.git +main +2026-01-02 .*Z +do it$",
        )
        self.assertEqual(len(ran.out.splitlines()), 2)
        for words, count in (
            ((), 1),
            (("--all",), 2),
            (("--all", "--limit", "1"), 1),
            (("--repo", "acme/x"), 1),
            (("--repo", "acme/y"), 0),
            (("--workspace", ID), 1),
            (("--workspace", "host-1"), 0),
        ):
            ran = self.helix("session", "list", "--json", *words)
            self.assertEqual(len(json.loads(ran.out)), count, words)

    def test_get(self) -> None:
        """The facts, or the server's own JSON."""
        ran = self.helix("session", "get", ID)
        for line in ("Status:      running", "Took:        5.0s", "Branch:      main"):
            self.assertIn(f"{line}\n", ran.out)
        self.assertEqual(json.loads(self.helix("session", "get", ID, "--json").out), self.session)

    def test_workspace(self) -> None:
        """Where its files are; where it has none yet that is said."""
        self.api.on("GET", f"{PATH}/workspace", Given({"mountPath": "/w", "host": "h"}))
        ran = self.helix("session", "workspace", ID)
        self.assertEqual(ran.out, "Mount path:  /w\nHost:        h\n")
        self.api.on("GET", f"{PATH}/workspace", problem(409, "it has no workspace yet"))
        self.assertEqual(self.helix("session", "workspace", ID).code, 1)

    def test_patch(self) -> None:
        """As it is into a pipe or a file, harmless at a terminal; nothing on a failure."""
        patch = b"diff --git a/x b/x\n+\x1b[2Jred\xff\n\\ No newline"
        self.api.on("GET", f"{PATH}/patch", Given(patch, 200, "text/x-diff"))
        self.assertEqual(self.helix("session", "patch", ID).outBytes, patch)
        ran = self.helix("session", "patch", ID, terminal=True)
        self.assertEqual(ran.out, "diff --git a/x b/x\n+␛[2Jred\ufffd\n\\ No newline\n")
        file = Path(self.mktemp())
        ran = self.helix("session", "patch", ID, "-o", str(file))
        self.assertEqual((ran.code, ran.out, file.read_bytes()), (0, "", patch))
        self.api.on("GET", f"{PATH}/patch", Given(b"", 200, "text/x-diff"))
        ran = self.helix("session", "patch", ID)
        self.assertEqual((ran.code, ran.out), (0, ""))
        self.assertIn("nothing was changed", ran.err)
        self.api.on("GET", f"{PATH}/patch", problem(410, "gone"))
        other = Path(self.mktemp())
        self.assertEqual(self.helix("session", "patch", ID, "-o", str(other)).code, 1)
        self.assertFalse(other.exists())

    def test_open(self) -> None:
        """The commands, each on a line; the note aside."""
        answer = {"ide": "cursor", "commands": ["a", "b\x1b"], "notes": "n"}
        self.api.on("POST", f"{PATH}/open/ide", Given(answer))
        ran = self.helix("session", "open", ID, "--ide", "cursor")
        self.assertEqual((ran.out, ran.err), ("a\nb\n", "n\n"))
        self.assertEqual(self.api.asked[-1].body, {"ide": "cursor"})


class WatchingTests(SessionTestCase):
    """What is said and what happens."""

    def test_logs(self) -> None:
        """Lines, messages, objects; what is wanted of them the server is told."""
        ran = self.helix("session", "logs", ID, "--raw")
        self.assertEqual(ran.out, "Reading\nOh\n")
        ran = self.helix("session", "logs", ID, "--json", "--tail", "2", "--level", "info")
        self.assertEqual([json.loads(line) for line in ran.out.splitlines()], LINES)
        query = self.api.asked[-1].query
        self.assertEqual((query["tail"], query["level"]), ("2", "info"))
        self.helix("session", "logs", ID, "--since", "2026-01-02T03:04:05+01:00")
        self.assertEqual(self.api.asked[-1].query["since"], "2026-01-02T02:04:05+00:00")
        self.assertEqual(self.helix("session", "logs", ID, "--since", "10m").code, 0)
        asked = len(self.api.asked)
        for since in ("yesterday", "10y", "1.2.3s"):
            self.assertEqual(self.helix("session", "logs", ID, "--since", since).code, 7)
        self.assertEqual(len(self.api.asked), asked)

    def test_pagesOfTheLog(self) -> None:
        """A long log comes page by page, in order."""
        self.api.on(
            "GET",
            f"{PATH}/logs",
            Given({"items": LINES[:1], "nextPage": "2"}),
            Given({"items": LINES[1:]}),
        )
        ran = self.helix("session", "logs", ID, "--raw")
        self.assertEqual(ran.out, "Reading\nOh\n")
        self.assertEqual([one.query.get("page") for one in self.api.asked], [None, "2"])

    def test_logsFollowed(self) -> None:
        """What the log had is not told twice; the session's end is the exit code."""
        self.session["lastSeq"] = 3
        late = event(8, "log", level="info", message="late")
        end = event(9, "status", status="stopped")
        self.api.on("GET", EVENTS, stream(*STORY[4:6], late, end))
        ran = self.helix("session", "logs", ID, "-f", "--raw")
        self.assertEqual((ran.out, ran.code), ("Reading\nOh\nlate\n", 11))
        self.assertEqual(self.api.asked[-1].headers["last-event-id"], "4")
        ran = self.helix("session", "logs", ID, "-f", "--json")
        self.assertEqual(
            [json.loads(line)["message"] for line in ran.out.splitlines()],
            ["Reading", "Oh", "late"],
        )

    def test_nothingOfBefore(self) -> None:
        """--since with nothing to show does not bring the old back by the events."""
        self.api.on("GET", f"{PATH}/logs", Given({"items": [], "total": 0}))
        self.api.on("GET", EVENTS, NO_MORE)
        self.session["status"] = "completed"
        ran = self.helix("session", "logs", ID, "-f", "--since", "1s")
        self.assertEqual((ran.out, ran.code), ("", 0))
        asked = [one for one in self.api.asked if one.path == EVENTS]
        self.assertEqual(asked[0].headers["last-event-id"], "7")

    def test_eventsSoFar(self) -> None:
        """Without --follow what there is now, although the session goes on."""
        self.session["lastSeq"] = 3
        ran = self.helix("session", "events", ID, "--json")
        self.assertEqual([json.loads(line)["seq"] for line in ran.out.splitlines()], [1, 2, 3])
        self.assertEqual(ran.code, 0)
        ran = self.helix("session", "events", ID, "--json", "--since", "3")
        self.assertEqual(ran.out, "")

    def test_eventsFollowed(self) -> None:
        """All of them, as lines or objects, and the session's end as the exit code."""
        ran = self.helix("session", "events", ID, "-f", "--json", "--since", "2")
        self.assertEqual([json.loads(line) for line in ran.out.splitlines()], list(STORY[2:]))
        self.assertEqual(ran.code, 0)
        self.assertEqual(self.api.asked[-1].headers["last-event-id"], "2")

    def test_attach(self) -> None:
        """Lines where there is no terminal that can redraw."""
        ran = self.helix("session", "attach", ID)
        self.assertEqual((len(ran.out.splitlines()), ran.code), (7, 0))

    def test_serverThatStaysAway(self) -> None:
        """It is given up after --patience, as a matter of the network."""
        self.api.on("GET", EVENTS, stream(*STORY[:2]), problem(502, "away"))
        ran = self.helix("session", "events", ID, "-f", "--patience", "20")
        self.assertEqual(ran.code, 5)
        self.assertEqual(ran.err, "helix: 502 - away; trying again\nhelix: 502 - away\n")


class ControlTests(SessionTestCase):
    """What is done to it."""

    def test_verbs(self) -> None:
        """Each is sent once, with a key of its own, and tells the new state."""
        for words, path, body in (
            (("pause", ID), "pause", {}),
            (("resume", ID), "resume", {}),
            (("resume", ID, "go on"), "resume", {"prompt": "go on"}),
            (("resume", "go on"), "resume", {"prompt": "go on"}),
            (("resume", ID, "--prompt", "on"), "resume", {"prompt": "on"}),
            (("stop", ID), "stop", {}),
            (("stop", ID, "--reason", "r"), "stop", {"reason": "r"}),
        ):
            self.api.on("POST", f"{PATH}/{path}", Given({"id": ID, "status": "soon"}, 202))
            ran = self.helix("session", *words)
            self.assertEqual((ran.code, ran.out), (0, f"{ID} soon\n"), ran.err)
            self.assertEqual(self.api.asked[-1].body, body)
            self.assertRegex(self.api.asked[-1].headers["idempotency-key"], "^[A-Z0-9]{26}$")
        ran = self.helix("session", "stop", ID, "--json")
        self.assertEqual(json.loads(ran.out), {"id": ID, "status": "soon"})

    def test_wait(self) -> None:
        """Until it is so; an end that is another is a failure."""
        self.api.on("POST", f"{PATH}/pause", Given({"id": ID, "status": "pausing"}, 202))
        more = (event(8, "status", status="pausing"), event(9, "status", status="paused"))
        self.api.on("GET", EVENTS, stream(*more))
        ran = self.helix("session", "pause", ID, "--wait")
        self.assertEqual((ran.code, ran.out), (0, f"{ID} paused\n"))
        self.api.on("GET", EVENTS, stream(event(8, "status", status="failed")))
        ran = self.helix("session", "pause", ID, "--wait")
        self.assertEqual((ran.code, ran.out), (1, f"{ID} failed\n"))

    def test_prompt(self) -> None:
        """To the newest task, or the one named; - is standard input."""
        self.api.on("POST", f"{PATH}/prompt", Given({"sessionId": ID, "accepted": True}, 202))
        for words, stdin, expected in (
            (("go on",), b"", "go on"),
            (("go",), b"", "go"),
            ((ID, "go"), b"", "go"),
            ((ID, "-"), b"from\nstdin", "from\nstdin"),
        ):
            ran = self.helix("session", "prompt", *words, stdin=stdin)
            self.assertEqual((ran.code, ran.out), (0, f"{ID} was told\n"), ran.err)
            self.assertEqual(self.api.asked[-1].body, {"prompt": expected})
        asked = len(self.api.asked)
        for bad in ((ID,), (ID, " "), (ID, "a", "b"), (ID, "x" * (MAX_PROMPT + 1)), ()):
            self.assertEqual(self.helix("session", "prompt", *bad).code, 7)
        self.assertEqual(self.helix("session", "resume", ID, "a", "--prompt", "b").code, 7)
        self.assertEqual(len(self.api.asked), asked)

    def test_cancel(self) -> None:
        """What runs is cancelled; what has ended, and a sandbox, is not deleted by mistake."""
        self.api.on("DELETE", PATH, Given({"id": ID, "status": "stopping"}, 202))
        ran = self.helix("session", "cancel", ID)
        self.assertEqual((ran.code, ran.out), (0, f"{ID} stopping\n"))
        asked = len(self.api.asked)
        for change in ({"status": "completed"}, {"status": "running", "kind": "sandbox"}):
            self.session.update(change)
            ran = self.helix("session", "cancel", ID)
            self.assertEqual((ran.code, ran.out), (1, ""))
        self.assertNotIn(f"DELETE {PATH}", self.api.paths()[asked:])

    def test_notPossibleNow(self) -> None:
        """The server's sentence, once."""
        self.api.on("POST", f"{PATH}/pause", problem(409, "The session is paused"))
        ran = self.helix("session", "pause", ID)
        self.assertEqual((ran.code, ran.err), (1, "helix: 409 - The session is paused\n"))
