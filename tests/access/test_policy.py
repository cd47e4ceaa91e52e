"""Tests for L{helix_revdial.access.policy}."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.access.policy import (
    Expose,
    NotPermitted,
    RunnerPolicy,
    matches,
    mayDial,
    mayRegister,
    ownerOf,
    runnerFor,
    sessionOf,
)
from helix_revdial.access.principals import Principal


@dataclass(frozen=True)
class Facts:
    id: str = "ses_1"
    tenant: str = "acme"
    owner: str = "ann"
    kind: str = "sandbox"
    project: str | None = None


def user(name: str = "ann", role: str = "operator", tenant: str = "acme") -> Principal:
    return Principal("user", "tok_u", "fam_u", tenant, user=name, roles=frozenset({role}))


def runner(*patterns: str, tenant: str = "acme") -> Principal:
    return Principal("runner", "tok_r", "fam_r", tenant, patterns=patterns)


def sandbox(session: str = "ses_1", tenant: str = "acme") -> Principal:
    return Principal("session", "tok_s", "fam_s", tenant, session=session)


class PatternTests(SynchronousTestCase):
    def test_exactAndTrailingStar(self) -> None:
        """A pattern is exact, or what a key begins with."""
        for pattern, key, expected in (
            ("wolf-1", "wolf-1", True),
            ("wolf-1", "wolf-10", False),
            ("wolf-1", "Wolf-1", False),
            ("wolf-*", "wolf-1", True),
            ("wolf-*", "wolf-", True),
            ("wolf-*", "wol", False),
            ("*", "wolf-1", True),
        ):
            self.assertIs(matches(pattern, key), expected, (pattern, key))

    def test_sessionsAreReachedOnlyBySayingSo(self) -> None:
        """No pattern reaches a session's runner that does not say its prefix."""
        for pattern in ("*", "s*", "sandbox*", "d*", "desktop*"):
            self.assertFalse(matches(pattern, "sandbox-ses_1"), pattern)
            self.assertFalse(matches(pattern, "desktop-ses_1"), pattern)
        self.assertTrue(matches("sandbox-*", "sandbox-ses_1"))
        self.assertTrue(matches("desktop-ses_1", "desktop-ses_1"))
        self.assertFalse(matches("sandbox-*", "desktop-ses_1"))

    @settings(deadline=None, max_examples=200)
    @given(st.text("sandboxektp-*1", max_size=12), st.text("sandboxektp-1", max_size=12))
    def test_neverASessionByAccident(self, pattern: str, rest: str) -> None:
        """Whatever the pattern, a session's key needs its prefix in it."""
        for prefix in ("sandbox-", "desktop-"):
            if matches(pattern, prefix + rest):
                self.assertTrue(pattern.startswith(prefix))


class MayRegisterTests(SynchronousTestCase):
    """The table of runners in C{docs/access.md}."""

    def test_runnerTokens(self) -> None:
        """By pattern; a session's runner within its tenant."""
        self.assertTrue(mayRegister(runner("wolf-*"), "wolf-1", None))
        self.assertFalse(mayRegister(runner("wolf-*"), "moonlight-1", None))
        self.assertFalse(mayRegister(runner("*"), "sandbox-ses_1", Facts()))
        self.assertTrue(mayRegister(runner("sandbox-*"), "sandbox-ses_1", Facts()))
        self.assertTrue(mayRegister(runner("x", "sandbox-*"), "sandbox-bench", None))
        self.assertFalse(mayRegister(runner("sandbox-*", tenant="b"), "sandbox-ses_1", Facts()))
        self.assertFalse(mayRegister(runner(), "wolf-1", None))

    def test_sessionTokens(self) -> None:
        """Its own session, and nothing else."""
        for key in ("sandbox-ses_1", "desktop-ses_1"):
            self.assertTrue(mayRegister(sandbox(), key, Facts()))
            self.assertFalse(mayRegister(sandbox("ses_2"), key, Facts()))
            self.assertFalse(mayRegister(sandbox(), key, None), "a deleted session")
            self.assertFalse(mayRegister(sandbox(tenant="b"), key, Facts()))
        self.assertFalse(mayRegister(sandbox(), "wolf-1", None))
        self.assertFalse(mayRegister(sandbox(), "sandbox-ses_2", Facts("ses_2")))

    def test_users(self) -> None:
        """Sessions that the user owns, as operator or admin; no machine."""
        for role in ("admin", "operator"):
            for key in ("sandbox-ses_1", "desktop-ses_1"):
                self.assertTrue(mayRegister(user(role=role), key, Facts()))
                self.assertFalse(mayRegister(user("bob", role), key, Facts()))
                self.assertFalse(mayRegister(user("ann", role, "b"), key, Facts()))
                self.assertFalse(mayRegister(user(role=role), key, None))
            self.assertFalse(mayRegister(user(role=role), "wolf-1", None))
        self.assertFalse(mayRegister(user(role="viewer"), "sandbox-ses_1", Facts()))

    def test_aSessionThatWasNotMeant(self) -> None:
        """The session that was looked up has to be the key's."""
        self.assertFalse(mayRegister(user(), "sandbox-ses_2", Facts("ses_1")))

    def test_badKeys(self) -> None:
        """What is no runner key is nobody's."""
        for key in ("", "-x", "a b", "x" * 129, "wolf\n", "a/../b"):
            self.assertFalse(mayRegister(runner("*"), key, None), key)


class OwnerTests(SynchronousTestCase):
    def test_ownerOf(self) -> None:
        """A session's key is the session's, another is the family's."""
        self.assertEqual(ownerOf(runner("*"), "wolf-1"), "family:fam_r")
        for principal in (user(), sandbox(), runner("sandbox-*")):
            self.assertEqual(ownerOf(principal, "sandbox-ses_1"), "session:ses_1")
            self.assertEqual(ownerOf(principal, "desktop-ses_1"), "session:ses_1")

    def test_sessionOf(self) -> None:
        """Which session a key belongs to."""
        self.assertEqual(sessionOf("desktop-ses_1"), "ses_1")
        self.assertEqual(sessionOf("sandbox-ses_1"), "ses_1")
        self.assertIs(sessionOf("wolf-sandbox-1"), None)

    def test_runnerFor(self) -> None:
        """The newer key if it is connected, else the older."""
        self.assertEqual(runnerFor("s", lambda key: key == "desktop-s"), "desktop-s")
        self.assertEqual(runnerFor("s", lambda key: key == "sandbox-s"), "sandbox-s")
        self.assertEqual(runnerFor("s", lambda key: False), "sandbox-s")
        self.assertEqual(runnerFor("s", lambda key: True), "desktop-s")


class MayDialTests(SynchronousTestCase):
    def test_theTableOfTargets(self) -> None:
        """The table of targets in C{docs/access.md}, row by row."""
        callers = (
            user("bob", "viewer"), user("ann", "viewer"), user("bob", "operator"),
            user("ann", "operator"), user("bob", "admin"), user("bob", "admin", "b"),
            runner("*", "sandbox-*"), sandbox(),
        )  # fmt: skip
        rows: list[tuple[str, Expose, Facts | None, str]] = [
            ("sandbox-ses_1", "internal", Facts(), "........"),
            ("sandbox-ses_1", "operator", Facts(), "..yyy..."),
            ("sandbox-ses_1", "owner", Facts(), ".y.yy..."),
            ("sandbox-ses_1", "owner", None, "........"),
            ("wolf-1", "internal", None, "........"),
            ("wolf-1", "operator", None, "..yyyy.."),
            ("wolf-1", "owner", None, "..yyyy.."),
        ]
        for key, expose, session, expected in rows:
            found = "".join(".y"[mayDial(c, key, expose, session)] for c in callers)
            self.assertEqual(found, expected, (key, expose))


class RunnerPolicyTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.asked: list[str] = []

        async def session(sessionId: str) -> Facts | None:
            self.asked.append(sessionId)
            return Facts() if sessionId == "ses_1" else None

        self.policy = RunnerPolicy(session)

    def ask(self, principal: Principal, key: str) -> Deferred[str]:
        return Deferred.fromCoroutine(self.policy.registration(principal, key))

    def test_permitted(self) -> None:
        """It says whose the key is, and looks up only what it has to."""
        self.assertEqual(self.successResultOf(self.ask(runner("*"), "wolf-1")), "family:fam_r")
        self.assertEqual(self.asked, [])
        self.assertEqual(self.successResultOf(self.ask(user(), "desktop-ses_1")), "session:ses_1")

    def test_unknownIsLikeNotOwned(self) -> None:
        """A session that does not exist is refused in the same words as one
        that somebody else owns."""
        texts = {
            self.failureResultOf(self.ask(user("bob"), key), NotPermitted).getErrorMessage()
            for key in ("sandbox-ses_1", "sandbox-ses_404", "desktop-", "sandbox-../x")
        }
        self.assertEqual(texts, {"unauthorized: session not owned by user"})

    def test_otherRefusals(self) -> None:
        """A machine's key needs a runner token that reaches it."""
        for principal, key, text in (
            (user(), "wolf-1", "a runner token is needed"),
            (runner("x"), "wolf-1", "patterns do not reach"),
            (runner("*"), "sandbox-ses_1", "patterns do not reach"),
            (sandbox(), "wolf-1", "a runner token is needed"),
        ):
            failure = self.failureResultOf(self.ask(principal, key), NotPermitted)
            self.assertIn(text, failure.getErrorMessage())
