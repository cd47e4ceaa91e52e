"""C{helix forward}: what its arguments mean, and what is refused before anything listens."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.cli.connecting import whyNoStream
from helix_revdial.cli.forward import Local, _removeStale
from helix_revdial.revdial.errors import TargetRefused, TooManyPendingDials
from helix_revdial.revdial.exchange import MalformedAnswer
from helix_revdial.revdial.gateway import GatewayRefused
from tests.cli.fake import CommandTestCase


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
        _removeStale(self.path)
        with socket.socket(socket.AF_UNIX) as gone:
            gone.bind(self.path)
        _removeStale(self.path)
        self.assertFalse(os.path.exists(self.path))

    def test_somebodyListens(self) -> None:
        """One that is in use stays, and so does what is no socket."""
        with socket.socket(socket.AF_UNIX) as lives:
            lives.bind(self.path)
            lives.listen()
            self.assertRaises(OSError, _removeStale, self.path)
        Path(self.path).unlink()
        Path(self.path).write_text("")
        self.assertRaises(OSError, _removeStale, self.path)
        self.assertTrue(os.path.exists(self.path))


class UsageTests(CommandTestCase):
    """What is refused before a server is asked."""

    def test_usage(self) -> None:
        """Wrong arguments are exit code 2 and one line."""
        for arguments, words in (
            (["forward", "wolf-1"], "Missing argument '[LOCAL:]TARGET...'"),
            (["forward", "wolf-1", "5432"], "expected 5432:TARGET"),
            (["forward", "a/b", "db"], "Invalid value for 'RUNNER'"),
            (["connect"], "Missing argument 'RUNNER'"),
            (["connect", "wolf-1", "a/b"], "Invalid value for '[TARGET]'"),
            (["--token-file", "-", "connect", "wolf-1"], "standard input is the stream here"),
        ):
            ran = self.helix(*arguments)
            self.assertEqual((ran.code, ran.out), (2, ""), arguments)
            self.assertIn(words, ran.err, arguments)

    def test_sentences(self) -> None:
        """Why there is no stream: status, word and the server's sentence, with what to do."""
        for error, text in (
            (TargetRefused("It is not there."), "502 target-refused - It is not there"),
            (TooManyPendingDials("full", retryAfter=5), "503 busy - full; try again in 5 s"),
            (GatewayRefused(404, "There is no session x."), "404 - There is no session x"),
            (GatewayRefused(401, "no"), "401 - no; check HELIX_API_KEY or --token-file"),
            (MalformedAnswer("odd"), "http://x: odd"),
        ):
            self.assertEqual(whyNoStream("http://x", error), text)
