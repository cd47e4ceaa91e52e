"""What becomes of a task's work: pushed to a real repository."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from .executors import LIMIT, ExecutorCase


class Deliveries(ExecutorCase):
    """Looks into the repository."""

    def inside(self, bare: Path, *argv: str) -> list[str]:
        """What git says of a repository, in lines."""
        done = subprocess.run(
            ["git", "-c", f"safe.directory={bare}", "-C", str(bare), *argv],
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.splitlines()

    def branches(self, bare: Path) -> list[str]:
        """Its branches."""
        return self.inside(bare, "branch", "--list", "--format=%(refname:short)")

    def delivered(self, reports: list[dict[str, Any]]) -> dict[str, Any]:
        """The one report of the delivery, which is the last but one."""
        found = [each for each in reports if each["kind"] == "delivery"]
        self.assertEqual(found, reports[-2:-1], reports[-4:])
        return found[0]


class FileTests(Deliveries):
    """What comes of it where nothing can be pushed."""

    def test_refused(self) -> None:
        """A repository that does not take it: the task's exit code stays, the reason is said."""
        bare = self.repository()
        hook = bare / "hooks" / "pre-receive"
        hook.write_text("#!/bin/sh\necho this branch is closed >&2\nexit 1\n")
        hook.chmod(0o755)
        self.give(bare, self.firstUser + 1)
        session = self.launch(
            "append file.txt two",
            repo={"mode": "git", "url": f"file://{bare}"},
            delivery={"mode": "branch", "targetBranch": "closed"},
        )
        last = self.ended(session)
        self.assertEqual(last["exitCode"], 0)
        self.assertIn("nothing was pushed", last["error"])
        self.assertIn("this branch is closed", last["error"])
        self.assertEqual(self.branches(bare), ["main"])

    def test_nothingToDeliver(self) -> None:
        """A task that failed delivers nothing; one that changed nothing says so."""
        bare = self.repository()
        self.give(bare, self.firstUser + 1)
        repo = {"mode": "git", "url": f"file://{bare}"}
        delivery = {"mode": "branch", "targetBranch": "work"}
        failed = self.launch("append file.txt two\nexit 3", repo=repo, delivery=delivery)
        reports = self.reports(failed)
        self.assertEqual(reports[-1]["exitCode"], 3)
        self.assertNotIn("delivery", [each["kind"] for each in reports])
        self.give(bare, self.firstUser + 3)
        idle = self.launch("say nothing to do", repo=repo, delivery=delivery)
        last = self.ended(idle)
        self.assertEqual(last["exitCode"], 0)
        self.assertIn("nothing was changed", last["error"])
        self.assertEqual(self.branches(bare), ["main"])
