"""C{helix task}, without a server."""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from unittest.mock import patch

import click
from twisted.python.filepath import FilePath

from helix_revdial.cli import task_prompt
from helix_revdial.cli.task_prompt import MAX_PROMPT
from tests.cli.events import EVENTS, ID, NO_MORE, STORY, stream
from tests.cli.fake import HANG, CommandTestCase, Given, problem

TASKS = "/api/v1/tasks"


class TaskTests(CommandTestCase):
    """What is asked for, and what is printed."""

    def setUp(self) -> None:
        """A server that takes every task, and no checkout."""
        super().setUp()
        self.made = 0
        self.api.on("POST", TASKS, self.accept)
        self.directory = Path(mkdtemp(prefix="helix-test-"))
        self.addCleanup(FilePath(str(self.directory)).remove)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.directory)

    def accept(self) -> Given:
        """The next task: the first is that of the stories."""
        self.made += 1
        name = ID if self.made == 1 else f"ses_{self.made}"
        return Given({"id": name, "sessionId": name, "taskId": name, "status": "queued"}, 201)

    def bodies(self) -> list[Any]:
        """The tasks that were asked for."""
        return [asked.body for asked in self.api.asked if asked.path == TASKS]

    def test_prompts(self) -> None:
        """From the flag, a file, standard input; one of them."""
        file = self.directory / "prompt.md"
        file.write_text("from a file\n")
        taken: list[tuple[tuple[str, ...], bytes, str]] = [
            (("-p", "from a flag"), b"", "from a flag"),
            (("--prompt", "from a flag"), b"unread", "from a flag"),
            (("--prompt-file", str(file)), b"", "from a file\n"),
            (("--prompt-file", "-"), b"from stdin", "from stdin"),
            ((), b"from stdin\nand more", "from stdin\nand more"),
        ]
        for words, stdin, expected in taken:
            ran = self.helix("task", "--agent", "mock", *words, stdin=stdin)
            self.assertEqual((ran.code, ran.err), (0, ""))
            self.assertEqual(self.bodies()[-1]["prompt"], expected)
        self.api.asked.clear()
        refused: list[tuple[tuple[str, ...], bytes, int]] = [
            (("-p", "a", "--prompt-file", str(file)), b"", 7),
            (("-p", " "), b"", 7),
            (("--prompt-file", "/nonexistent"), b"", 8),
            (("-p", "x" * (MAX_PROMPT + 1)), b"", 7),
            ((), b"x" * (MAX_PROMPT + 1), 7),
            ((), b"", 10),
            ((), b"\xff", 8),
        ]
        for words, stdin, code in refused:
            ran = self.helix("task", "--agent", "mock", *words, stdin=stdin)
            self.assertEqual((ran.code, ran.out), (code, ""), ran.err)
            self.assertEqual(ran.err.count("\n"), 1)
        self.assertEqual(self.api.asked, [])

    def test_editor(self) -> None:
        """A person writes it in an editor; comments and nothing at all are no prompt."""
        for written, code in (("do it\n# not this\nnow\n", 0), ("# nothing\n\n", 1), (None, 1)):
            with (
                patch.object(click, "edit", lambda text, extension, written=written: written),
                patch.object(task_prompt, "interactive", lambda: True),
            ):
                ran = self.helix("task", "--agent", "mock")
            self.assertEqual(ran.code, code, ran.err)
        self.assertEqual([one["prompt"] for one in self.bodies()], ["do it\nnow"])
        with patch.object(task_prompt, "interactive", lambda: True):
            ran = self.helix("task", "--agent", "mock", "--non-interactive")
        self.assertEqual(ran.code, 10)

    def test_agentsAndInstances(self) -> None:
        """--instances belongs to the --agent before it; each task has a key of its own."""
        ran = self.helix(
            *("task", "-p", "x", "--agent", "a", "--instances", "2"),
            *("--agent=b@1", "--agent", "c", "--instances=3"),
        )
        self.assertEqual(ran.code, 0, ran.err)
        agents = [(one["agent"]["type"], one["agent"].get("version")) for one in self.bodies()]
        self.assertEqual(agents, [("a", None)] * 2 + [("b", "1")] + [("c", None)] * 3)
        keys = {asked.headers["idempotency-key"] for asked in self.api.asked}
        self.assertEqual(len(keys), 6)
        self.assertEqual(ran.out.split(), [ID, *(f"ses_{n}" for n in range(2, 7))])
        self.api.asked.clear()
        for words in (
            ("--instances", "2", "--agent", "a"),
            ("--agent", "a", "--instances", "0"),
            ("--agent", "a", "--instances", "x"),
            ("--agent", "a", "--instances", "101"),
            ("--agent", "@1"),
        ):
            self.assertEqual(self.helix("task", "-p", "x", *words).code, 7, words)
        ran = self.helix("task", "-p", "x", "--agent", "a", "--instances", "11")
        self.assertEqual(ran.code, 10)
        self.assertEqual(self.api.asked, [])
        ran = self.helix("task", "-p", "--agent", "--agent", "a", "--instances", "11", "--yes")
        self.assertEqual(ran.code, 0)
        self.assertEqual(self.bodies()[0]["prompt"], "--agent")

    def test_otherNames(self) -> None:
        """The names that other clients have for flags."""
        words = ("--sandbox", "local", "--fs-snapshots", "auto", "--push-to-remote", "no")
        ran = self.helix("task", "-p", "x", "--agent", "a", "--repo", "none", *words)
        self.assertEqual(ran.code, 0, ran.err)
        (body,) = self.bodies()
        self.assertEqual((body["runtime"]["type"], body["delivery"]["mode"]), ("local", "patch"))
        self.assertNotIn("workspace", body)
        ran = self.helix("task", "-p", "x", "--repo", "none", "--push-to-remote", "yes")
        self.assertEqual(ran.code, 2)

    def test_onlyAgent(self) -> None:
        """Without a name it is the server's only agent."""
        one, two = {"type": "one"}, {"type": "two"}
        self.api.on("GET", "/api/v1/agents", Given({"items": [one]}))
        self.assertEqual(self.helix("task", "-p", "x", "--instances", "2").code, 0)
        self.assertEqual([body["agent"] for body in self.bodies()], [{"type": "one"}] * 2)
        self.api.on("GET", "/api/v1/agents", Given({"items": [one, two]}))
        ran = self.helix("task", "-p", "x")
        self.assertEqual(ran.err, "helix: which agent? Give --agent: one, two\n")
        self.assertEqual(ran.code, 3)

    def test_settings(self) -> None:
        """They are read as the agent's schema says; an unknown agent is the server's matter."""
        schema = {"properties": {"version": {"type": "string"}}}
        self.api.on("GET", "/api/v1/schemas/agents/mock.json", Given(schema))
        words = ("--setting", "version=1", "--setting", "depth=2")
        self.helix("task", "-p", "x", "--agent", "mock", *words)
        self.assertEqual(self.bodies()[-1]["agent"]["settings"], {"version": "1", "depth": 2})
        self.assertEqual(self.helix("task", "-p", "x", "--agent", "nix", *words).code, 0)

    def test_json(self) -> None:
        """The server's own answer; of several, a list."""
        ran = self.helix("task", "-p", "x", "--agent", "mock", "--json")
        self.assertEqual(json.loads(ran.out)["sessionId"], ID)
        ran = self.helix("task", "-p", "x", "--agent", "a", "--agent", "b", "--json")
        self.assertEqual(len(json.loads(ran.out)), 2)

    def test_fieldErrors(self) -> None:
        """What is wrong with each field is in the one line."""
        answer = problem(400, "The request is not valid")
        assert isinstance(answer.body, dict)
        answer.body["errors"] = {"repo.url": ["is\x1b required"], "prompt": ["is empty"]}
        self.api.on("POST", TASKS, answer)
        ran = self.helix("task", "-p", "x", "--agent", "mock")
        self.assertEqual(
            ran.err,
            "helix: 400 - The request is not valid (repo.url: is required; prompt: is empty)\n",
        )
        self.assertEqual(ran.code, 7)

    def test_sentAgain(self) -> None:
        """It is sent again with the same key until there is an answer, and then followed."""
        self.api.on("POST", TASKS, problem(503, "later"), problem(500, "oh"), self.accept)
        ran = self.helix("task", "-p", "x", "--agent", "mock", "--idempotency-key", "mine")
        self.assertEqual((ran.code, ran.out), (0, f"{ID}\n"))
        self.assertEqual([one.headers["idempotency-key"] for one in self.api.asked], ["mine"] * 3)
        self.assertEqual(ran.err.count("; trying again\n"), 2)

    def test_someMade(self) -> None:
        """Those that were made are told, although one of them could not be."""
        self.api.on("POST", TASKS, self.accept, self.accept, problem(429, "enough"))
        words = ("task", "-p", "x", "--agent", "mock", "--instances", "3")
        ran = self.helix(*words)
        self.assertEqual((ran.code, ran.out), (6, f"{ID}\nses_2\n"))
        self.api.on("POST", TASKS, self.accept, problem(400, "no"))
        ran = self.helix(*words, "--json", "--follow")
        self.assertEqual((ran.code, len(json.loads(ran.out))), (7, 1))

    def test_interruptedWhileItIsMade(self) -> None:
        """Whether there is a task is not known; how to find out is said."""
        self.api.on("POST", TASKS, HANG)
        self.cancelAfter = 1
        ran = self.helix("task", "-p", "x", "--agent", "mock", "--idempotency-key", "mine")
        self.assertIn("may have been made: --idempotency-key mine asks", ran.err)
        self.assertEqual(ran.out, "")

    def test_follow(self) -> None:
        """Lines to a pipe, and the session's end as the exit code; the id stands aside."""
        self.api.on("GET", f"/api/v1/sessions/{ID}", Given({"id": ID, "status": "running"}))
        self.api.on("GET", EVENTS, stream(*STORY[:3]), stream(*STORY[3:]))
        ran = self.helix("task", "-p", "x", "--agent", "mock", "--follow")
        self.assertEqual((ran.code, ran.err), (0, f"helix: session {ID}\n"))
        self.assertEqual(len(ran.out.splitlines()), len(STORY))
        self.api.on("GET", EVENTS, stream(*STORY))
        self.made = 0
        ran = self.helix("task", "-p", "x", "--agent", "mock", "-f", "--json")
        self.assertEqual([json.loads(line) for line in ran.out.splitlines()], list(STORY))

    def test_followSeveral(self) -> None:
        """Each line says whose it is; the worst end is the exit code."""
        failed = {**STORY[6], "status": "failed"}
        for name, end in ((ID, STORY[6]), ("ses_2", failed)):
            self.api.on("GET", f"/api/v1/sessions/{name}", Given({"id": name}))
            self.api.on("GET", f"/api/v1/sessions/{name}/events", stream(*STORY[:6], end))
        ran = self.helix("task", "-p", "x", "--agent", "a", "--agent", "b", "-f")
        self.assertEqual(ran.code, 1)
        self.assertEqual(
            sorted(line.split()[0] for line in ran.out.splitlines()), [ID] * 7 + ["ses_2"] * 7
        )

    def test_ends(self) -> None:
        """Each end of a session has its code; where the events do not say, the session does."""
        for status, code in (("completed", 0), ("failed", 1), ("stopped", 11), ("cancelled", 12)):
            self.made = 0
            self.api.on("GET", f"/api/v1/sessions/{ID}", Given({"id": ID, "status": status}))
            self.api.on("GET", EVENTS, stream(*STORY[:6], {**STORY[6], "status": status}))
            words = ("task", "-p", "x", "--agent", "mock", "-f")
            self.assertEqual(self.helix(*words).code, code)
            self.made = 0
            self.api.on("GET", EVENTS, NO_MORE)
            self.assertEqual(self.helix(*words).code, code)
