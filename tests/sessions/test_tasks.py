"""Tests for L{helix_revdial.sessions.tasks}."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.sessions.branch_names import branchProblem
from helix_revdial.sessions.tasks import (
    TaskForbidden,
    TaskInvalid,
    TaskPolicy,
    gitURLProblem,
    nameOf,
    validateTask,
    withoutPassword,
)
from tests.sessions.worlds import task

POLICY = TaskPolicy(tenant="acme")


class ValidateTests(SynchronousTestCase):
    def test_everythingAtOnce(self) -> None:
        """All that is wrong is told at once, by field."""
        with self.assertRaises(TaskInvalid) as raised:
            validateTask(
                task(prompt=" ", repo={"mode": "git"}, labels={"x" * 64: "y"}, tenantId="other"),
                POLICY,
            )
        self.assertEqual(set(raised.exception.errors), {"prompt", "repo.url", "labels", "tenantId"})
        self.assertEqual(raised.exception.errors["repo.url"], ["is required"])

    def test_limits(self) -> None:
        """Labels and webhooks have limits."""
        for fields, name in (
            ({"labels": {str(n): "" for n in range(65)}}, "labels"),
            ({"labels": {"a": "x" * 257}}, "labels.a"),
            ({"webhooks": [{"event": "*", "url": "https://x"}] * 11}, "webhooks"),
        ):
            with self.assertRaises(TaskInvalid) as raised:
                validateTask(task(**fields), POLICY)
            self.assertEqual(list(raised.exception.errors), [name])
        validateTask(task(labels={str(n): "" for n in range(64)}), POLICY)

    def test_thePolicysSay(self) -> None:
        """Agents, executors and webhooks are the server's to know."""
        policy = TaskPolicy(
            tenant="acme",
            agentFaults=lambda agent: {"agent.type": [f"not {agent.type}"]},
            hasExecutor=lambda name: name == "wolf-1",
            webhookURL=lambda url: "is private",
        )
        with self.assertRaises(TaskInvalid) as raised:
            validateTask(
                task(
                    workspace={"executionHostId": "wolf-2"},
                    webhooks=[{"event": "session.completed", "url": "https://10.0.0.1/"}],
                ),
                policy,
            )
        self.assertEqual(
            set(raised.exception.errors),
            {"agent.type", "workspace.executionHostId", "webhooks[0].url"},
        )

    def test_webhookAddresses(self) -> None:
        """Each that cannot be has its own reason."""
        for url, why in (
            ("ftp://h.example/", "is no http or https address"),
            ("https:///x", "is no http or https address"),
            ("https://ann@h.example/", "has a user or a password"),
            ("https://:hunter22@h.example/", "has a user or a password"),
        ):
            with self.assertRaises(TaskInvalid) as raised:
                validateTask(task(webhooks=[{"event": "*", "url": url}]), POLICY)
            self.assertEqual(raised.exception.errors, {"webhooks[0].url": [why]})

    def test_disabled(self) -> None:
        """A runtime without a sandbox is the server's to allow."""
        wanted = task(runtime={"type": "disabled"})
        self.assertRaises(TaskForbidden, validateTask, wanted, POLICY)
        validateTask(wanted, TaskPolicy(tenant="acme", disabledRuntime=True))


class TextTests(SynchronousTestCase):
    def test_addresses(self) -> None:
        """What git would run, or take for an option, is no address; nor is a local file."""
        for bad in (
            "",
            "-x",
            "--upload-pack=touch x",
            "ext::sh -c id",
            "ext::x",
            "fd::3",
            "file:///etc",
            "/etc",
            "../x",
            "ssh://-oProxyCommand=id/x",
            "ssh://-l@host/x",
            "-oProxyCommand=id@host:x",
            "-host:x",
            "host:-x",
            "https://",
            "https:///x",
            "https://host",
            "https://host:99999/x",
            "ftp://host/x",
            "https://host/x\ny",
            "git@host:x y",
            "C\x00:x",
        ):
            self.assertNotEqual(gitURLProblem(bad), "", bad)
        for good in (
            "git@github.com:acme/x.git",
            "host.example:path/x",
            "https://github.com/acme/x",
            "HTTPS://GitHub.com/acme/x",
            "ssh://git@host:2222/~/x",
            "git://host/x.git",
        ):
            self.assertEqual(gitURLProblem(good), "", good)

    def test_branches(self) -> None:
        """A branch's name is one by git-check-ref-format."""
        for bad in (
            "",
            "-x",
            "a..b",
            "a b",
            "a~1",
            "a^",
            "a:b",
            "x.lock",
            "a/.b",
            "/a",
            "a/",
            "a//b",
            "@",
            "a@{1}",
            "a\\b",
            "a\x7fb",
            "x.",
        ):
            self.assertNotEqual(branchProblem(bad), "", bad)
        for good in ("main", "feature/x-1", "v1.2", "@x", "日本"):
            self.assertEqual(branchProblem(good), "", good)

    def test_withoutPassword(self) -> None:
        """An address as it may be shown."""
        for url, shown in (
            ("https://ann:secret@h/x", "https://ann:***@h/x"),
            ("https://token@h/x", "https://***@h/x"),
            ("ssh://git@h/x", "ssh://git@h/x"),
            ("ssh://git:pw@h/x", "ssh://git:***@h/x"),
            ("git@h:x", "git@h:x"),
            ("https://h/x@y", "https://h/x@y"),
        ):
            self.assertEqual(withoutPassword(url), shown)

    @settings(deadline=None, max_examples=200)
    @given(st.text())
    def test_names(self, prompt: str) -> None:
        """A task's name is one that a session may have, whatever the prompt is."""
        name = nameOf(prompt)
        self.assertTrue(1 <= len(name) <= 100)
        self.assertFalse([c for c in name if ord(c) < 32 or 0xD800 <= ord(c) < 0xE000])

    @settings(deadline=None, max_examples=200)
    @given(st.text())
    def test_anyTextHasAnAnswer(self, text: str) -> None:
        """No text makes the checks fail otherwise than by saying so."""
        self.assertIsInstance(gitURLProblem(text), str)
        self.assertIsInstance(branchProblem(text), str)
