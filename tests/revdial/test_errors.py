"""Tests for L{helix_revdial.revdial.errors}."""

from __future__ import annotations

from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.errors import DialTimeout, wordsOf


class WordsTests(SynchronousTestCase):
    def test_words(self) -> None:
        """People are told how it ended, not which method of Twisted's was called."""
        for error, words in (
            (ConnectionDone(), "closed"),
            (ConnectionLost(), "the connection was lost"),
            (ConnectionLost("timed out"), "the connection was lost: timed out"),
            (
                ConnectionAborted("Connection reset by peer"),
                "the connection was cut: Connection reset by peer",
            ),
            (DialTimeout(), "dial timed out"),
            (KeyError(), "KeyError"),
        ):
            self.assertEqual(wordsOf(Failure(error)), words)
