"""The API's operations, and what they read from answers."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.cli.client import MAX_PAGES, serverTiming
from helix_revdial.cli.edge import CommandError
from helix_revdial.cli.failures import BadAnswer
from tests.cli.fake import CommandTestCase, Given


class ServerTimingTests(SynchronousTestCase):
    """The C{Server-Timing} field."""

    def test_read(self) -> None:
        """Durations in their order; quoted text may hold any divider."""
        self.assertEqual(
            serverTiming('asked;dur=1.5, odd;desc="a;dur=9,b";dur="2", none, bad;dur=x;dur=-1, z'),
            {"asked": 1.5, "odd": 2.0},
        )
        self.assertEqual(serverTiming(""), {})

    @settings(deadline=None, max_examples=100)
    @given(st.text(alphabet='a;,="\\ .1dur\x1b', max_size=60))
    def test_anything(self, text: str) -> None:
        """Whatever the field holds, reading it ends, with numbers and printable names."""
        for name, value in serverTiming(text).items():
            self.assertIsInstance(value, float)
            self.assertTrue(name.isprintable())


class ClientTests(CommandTestCase):
    """Operations."""

    def test_idsAreQuoted(self) -> None:
        """An id is one segment of the path, whatever is in it; dots do not climb."""
        self.api.on("DELETE", "/api/v1/sessions/a%2F..%2Fb%3Fc", Given(b"", 204, None))
        self.settle(Deferred.fromCoroutine(self.client.deleteSession("a/../b?c")))
        for bad in ("", ".", ".."):
            with self.assertRaises(CommandError):
                self.settle(Deferred.fromCoroutine(self.client.deleteSession(bad)))

    def test_pagesAreLimited(self) -> None:
        """A list that never ends is given up after a stated number of pages."""
        pages = iter(range(2, 10**6))
        self.api.on("GET", "/api/v1/tokens", lambda: Given({"items": [], "nextPage": next(pages)}))
        with self.assertRaises(BadAnswer) as raised:
            self.settle(Deferred.fromCoroutine(self.client.tokens()))
        self.assertIn("more than 1,000 pages", str(raised.exception))
        self.assertEqual(len(self.api.asked), MAX_PAGES)

    def test_itemsThatAreNone(self) -> None:
        """A wrapper without a list of objects is no list."""
        for body in ({}, {"items": 5}, {"items": [5]}):
            self.api.on("GET", "/api/v1/tokens", Given(body))
            with self.assertRaises(BadAnswer):
                self.settle(Deferred.fromCoroutine(self.client.tokens()))
