"""Asking again, once."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError as NothingListens

from helix_revdial.cli.exchange import Answer
from helix_revdial.cli.failures import Refused, TimedOut, Unreachable, unreachable
from helix_revdial.cli.retrying import LONGEST_WAIT, Backoff, newKey, postOnce
from tests.cli.fake import HANG, CommandTestCase, Given, problem


class BackoffTests(CommandTestCase):
    """How long to wait."""

    def test_grows(self) -> None:
        """Each wait is about twice the one before it, and at most the longest."""
        backoff = Backoff(lambda: 1.0)
        waits = [backoff.wait() for _ in range(2000)]
        self.assertEqual(waits[:4], [0.5, 1.0, 2.0, 4.0])
        self.assertEqual(max(waits), LONGEST_WAIT)
        backoff.succeeded()
        self.assertEqual(Backoff(lambda: 0.0).wait(), 0.25)
        self.assertEqual(backoff.wait(), 0.5)

    def test_whatTheServerAsksFor(self) -> None:
        """It is heeded, within reason."""
        self.assertGreaterEqual(Backoff(lambda: 0.0).wait(7.0), 7.0)
        self.assertLess(Backoff(lambda: 1.0).wait(1e9), 1000)

    def test_keys(self) -> None:
        """26 capital letters and digits, and never the same."""
        keys = {newKey() for _ in range(100)}
        self.assertEqual(len(keys), 100)
        for key in keys:
            self.assertRegex(key, r"^[A-Z0-9]{26}$")


class PostOnceTests(CommandTestCase):
    """A POST that is sent again."""

    def post(self, *answers: Any, patience: float = 60.0) -> Answer:
        """Send one, that gets these answers."""
        self.api.on("POST", "/x", *answers)
        self.retried: list[Any] = []
        found = self.settle(
            Deferred.fromCoroutine(
                postOnce(
                    self.client.exchange,
                    "/x",
                    {"a": 1},
                    key="K",
                    random=lambda: 0.5,
                    patience=patience,
                    onRetry=self.retried.append,
                )
            )
        )
        assert isinstance(found, Answer)
        return found

    def test_sameKey(self) -> None:
        """Until an answer comes it is the same request with the same key."""
        answer = self.post(
            problem(503, "no"),
            HANG,
            problem(429, "slow", **{"retry-after": "3"}),
            Given({"ok": 1}, 200),
        )
        self.assertEqual(answer.status, 200)
        self.assertEqual([asked.body for asked in self.api.asked], [{"a": 1}] * 4)
        self.assertEqual({asked.headers["idempotency-key"] for asked in self.api.asked}, {"K"})
        self.assertEqual([type(error) for error in self.retried], [Refused, TimedOut, Refused])

    def test_stillRunning(self) -> None:
        """That the first one is being carried out is no news."""
        self.post(problem(409, "wait", "still-running"), Given({}))
        self.assertEqual(self.retried, [])

    def test_refused(self) -> None:
        """What another attempt does not change is told at once."""
        for status in (400, 401, 403, 404, 409, 413, 422):
            with self.assertRaises(Refused):
                self.post(problem(status, "no"))
            self.assertEqual(len(self.api.asked), 1)
            self.api.asked.clear()

    def test_patience(self) -> None:
        """It ends after a while, with what was wrong at last."""
        started = self.clock.seconds()
        with self.assertRaises(Refused) as raised:
            self.post(problem(503, "never"), patience=20)
        self.assertEqual(raised.exception.status, 503)
        self.assertLess(self.clock.seconds() - started, 21)

    def test_nothingSent(self) -> None:
        """Where nothing listens nothing has been sent; where it broke off it may have been."""
        self.assertFalse(unreachable("http://x", NothingListens()).sent)
        self.assertTrue(unreachable("http://x", ConnectionResetError()).sent)
        self.assertTrue(Unreachable("the answer broke off").sent)
