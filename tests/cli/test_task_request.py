"""What the flags of C{helix task} ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.cli.checkout import Checkout
from helix_revdial.cli.edge import SettingsError
from helix_revdial.cli.exit_codes import RepositoryError
from helix_revdial.cli.task_request import pairs, pushed, settingsOf, taskRequest, webhooksOf
from helix_revdial.sessions.tasks import TaskPolicy, TaskRequest, validateTask

NOTHING: dict[str, Any] = {
    "prompt": "do it",
    "repository": Checkout(),
    "branch": None,
    "agent": "mock",
    "settings": {},
    "labels": {},
    "delivery": None,
    "workBranch": None,
    "targetBranch": None,
    "runtime": None,
    "devcontainer": None,
    "cpu": None,
    "memory": None,
    "host": None,
    "snapshots": (),
    "project": None,
    "webhooks": (),
}
GIT = Checkout("git@h.example:acme/x.git", "main", "0" * 40)


class TaskRequestTests(SynchronousTestCase):
    """Bodies that the server takes."""

    def made(self, **more: Any) -> dict[str, Any]:
        """The body; it is one that the server's own rules take."""
        body = taskRequest(**{**NOTHING, **more})
        validateTask(msgspec.convert(body, TaskRequest), TaskPolicy("t", disabledRuntime=True))
        return body

    def refused(self, text: str, **more: Any) -> None:
        """The flags contradict each other."""
        with self.assertRaises(click.UsageError) as raised:
            taskRequest(**{**NOTHING, **more})
        self.assertIn(text, raised.exception.format_message())

    def test_least(self) -> None:
        """What is not said is not sent."""
        self.assertEqual(
            self.made(),
            {
                "prompt": "do it",
                "repo": {"mode": "none"},
                "runtime": {"type": "local"},
                "agent": {"type": "mock"},
                "delivery": {"mode": "patch"},
            },
        )

    def test_most(self) -> None:
        """Everything has its place."""
        self.assertEqual(
            self.made(
                repository=GIT,
                agent="mock@1.2",
                settings={"a": 1},
                labels={"b": "c"},
                targetBranch="main",
                devcontainer=".devcontainer",
                cpu=2,
                memory=512,
                host="h",
                snapshots=("btrfs", "copy"),
                project="p",
                webhooks=webhooksOf(["https://w.example/x=1", "session.failed=http://w.example"]),
            ),
            {
                "prompt": "do it",
                "projectId": "p",
                "repo": {
                    "mode": "git",
                    "url": "git@h.example:acme/x.git",
                    "branch": "main",
                    "commit": "0" * 40,
                },
                "runtime": {
                    "type": "devcontainer",
                    "devcontainerPath": ".devcontainer",
                    "resources": {"cpu": 2, "memoryMiB": 512},
                },
                "workspace": {"snapshotPreference": ["btrfs", "copy"], "executionHostId": "h"},
                "agent": {"type": "mock", "version": "1.2", "settings": {"a": 1}},
                "delivery": {"mode": "pr", "targetBranch": "main"},
                "labels": {"b": "c"},
                "webhooks": [
                    {"event": "session.completed", "url": "https://w.example/x=1"},
                    {"event": "session.failed", "url": "http://w.example"},
                ],
            },
        )

    def test_branches(self) -> None:
        """BRANCH is where the work is pushed; --branch what is worked on."""
        body = self.made(repository=GIT, branch="next", workBranch="fix-1")
        self.assertEqual(body["repo"]["branch"], "next")
        self.assertNotIn("commit", body["repo"])
        self.assertEqual(body["delivery"], {"mode": "branch", "targetBranch": "fix-1"})
        for branch in ("a/b", "", "a b", "ä", "a;b", "a\n"):
            self.refused("BRANCH", repository=GIT, workBranch=branch)
        self.refused("not with pr", repository=GIT, workBranch="a", delivery="pr")
        self.refused("different", repository=GIT, workBranch="a", targetBranch="b")
        self.refused("--target-branch", repository=GIT, delivery="patch", targetBranch="b")
        self.refused("--repo", branch="next")
        for more in ({"workBranch": "a"}, {"delivery": "pr"}, {"targetBranch": "a"}):
            with self.assertRaises(RepositoryError):
                self.made(**more)

    def test_pushed(self) -> None:
        """--push-to-remote is --delivery by another name."""
        for delivery, push, expected in (
            (None, None, None),
            (None, True, "branch"),
            (None, False, "patch"),
            ("pr", True, "pr"),
            ("patch", False, "patch"),
            ("pr", None, "pr"),
        ):
            self.assertEqual(pushed(delivery, push), expected)
        for delivery, push in (("patch", True), ("branch", False), ("pr", False)):
            with self.assertRaises(click.UsageError):
                pushed(delivery, push)

    def test_pairs(self) -> None:
        """Names and values; the first = divides them."""
        self.assertEqual(pairs(["a=b=c", "d="], "--labels"), {"a": "b=c", "d": ""})
        for text in ("a", "=b", ""):
            with self.assertRaises(click.UsageError):
                pairs([text], "--labels")

    def test_settings(self) -> None:
        """A setting is what its schema says; without one JSON is JSON; a secret is in a file."""
        secret = Path(self.mktemp())
        secret.write_text("hl-secret\n")
        schema = {"properties": {"version": {"type": "string"}, "count": {"type": "integer"}}}
        given = {
            "version": "1.0",
            "count": "3",
            "flag": "true",
            "list": "[1]",
            "word": "hello",
            "key": f"@{secret}",
            "at": "@@home",
        }
        self.assertEqual(
            settingsOf(given, schema),
            {
                "version": "1.0",
                "count": 3,
                "flag": True,
                "list": [1],
                "word": "hello",
                "key": "hl-secret",
                "at": "@home",
            },
        )
        with self.assertRaises(SettingsError):
            settingsOf({"key": "@/nonexistent"}, {})
