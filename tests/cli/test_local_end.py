"""Where a forward listens, and where it leads."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.cli.local_end import Local, removeStale


class LocalTests(SynchronousTestCase):
    """C{[LOCAL:]TARGET}."""

    def test_understood(self) -> None:
        """Every form, with and without a target's name."""
        for text, expected in {
            "db": Local("db"),
            "5432:db": Local("db", port=5432),
            "0:db": Local("db"),
            "8080:": Local(None, port=8080),
            "10.0.0.1:5432:db": Local("db", "10.0.0.1", 5432),
            "localhost:1:db": Local("db", "localhost", 1),
            "[::1]:5432:db": Local("db", "::1", 5432),
            "unix:///run/x.sock:db": Local("db", path="/run/x.sock"),
            "unix:/run/x.sock:db": Local("db", path="/run/x.sock"),
            "unix:///run/a:b.sock:": Local(None, path="/run/a:b.sock"),
        }.items():
            self.assertEqual(Local.parse(text), expected, text)

    def test_refused(self) -> None:
        """What is no form says what is expected."""
        for text, words in {
            "": "expected [LOCAL:]TARGET",
            ":": "expected [LOCAL:]TARGET",
            "5432": "a port alone leads nowhere; expected 5432:TARGET",
            "5432:a b": "is no target's name",
            "70000:db": "expected PORT, HOST:PORT or unix:///PATH",
            "::1:db": "is no host; an IPv6 address has brackets",
            "a b:1:db": "is no host",
            "unix://x:db": "expected unix:///PATH:TARGET",
            "unix:///" + "x" * 107 + ":db": "at most 107 bytes",
        }.items():
            with self.assertRaises(ValueError) as caught:
                Local.parse(text)
            self.assertIn(words, str(caught.exception), text)


class StaleTests(SynchronousTestCase):
    """A socket file in the way."""

    def setUp(self) -> None:
        # A short path: unix sockets have no room for a test's own directory.
        self.path = f"{self.id()[-8:]}.{os.getpid()}"
        self.addCleanup(lambda: Path(self.path).unlink(missing_ok=True))

    def test_nobodyListens(self) -> None:
        """One that nobody listens on is removed; none is no trouble."""
        removeStale(self.path)
        with socket.socket(socket.AF_UNIX) as gone:
            gone.bind(self.path)
        removeStale(self.path)
        self.assertFalse(os.path.exists(self.path))

    def test_somebodyListens(self) -> None:
        """One that is in use stays, and so does what is no socket."""
        with socket.socket(socket.AF_UNIX) as lives:
            lives.bind(self.path)
            lives.listen()
            self.assertRaises(OSError, removeStale, self.path)
        Path(self.path).unlink()
        Path(self.path).write_text("")
        self.assertRaises(OSError, removeStale, self.path)
        self.assertTrue(os.path.exists(self.path))
