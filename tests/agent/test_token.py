"""Tests for L{helix_revdial.agent.token}."""

from __future__ import annotations

import os
import time
import traceback
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.agent.token import MAX_TOKEN, Secret, TokenFile, TokenText, TokenUnusable

TOKEN = "hl-very-secret-0123456789"


class SecretTests(SynchronousTestCase):
    def test_hidesItself(self) -> None:
        """F1: no way of printing shows the value."""
        secret = Secret(TOKEN)
        shown = f"{secret} {secret!r} {secret!s} {[secret]} {vars(type(secret))}"
        self.assertNotIn(TOKEN, shown)
        self.assertEqual(secret.reveal(), TOKEN)

    def test_truth(self) -> None:
        """An empty value counts as none."""
        self.assertTrue(Secret("x"))
        self.assertFalse(Secret(""))


class TokenTextTests(SynchronousTestCase):
    def test_gives(self) -> None:
        """The token without the newline that C{$(cat file)} and editors leave."""
        self.assertEqual(TokenText("RUNNER_TOKEN", Secret(f" {TOKEN}\n"))(), TOKEN)

    def test_visible(self) -> None:
        """A token among the arguments gives a warning, one in the environment does not."""
        [warning] = TokenText("--token", Secret(TOKEN), visible=True).warnings()
        self.assertIn("--token-file", warning)
        self.assertNotIn(TOKEN, warning)
        self.assertEqual(TokenText("RUNNER_TOKEN", Secret(TOKEN)).warnings(), [])

    def test_hidesItself(self) -> None:
        """F1: nor does the source show it."""
        self.assertNotIn(TOKEN, repr(TokenText("--token", Secret(TOKEN))))

    def test_unusable(self) -> None:
        """What no header could carry is refused, without being repeated."""
        for text in ("", "  \n", "two words", "line\nbreak", "t\u00f6ken", "x" * (MAX_TOKEN + 1)):
            source = TokenText("RUNNER_TOKEN", Secret(text))
            error = self.assertRaises(TokenUnusable, source)
            self.assertIn("RUNNER_TOKEN", str(error))
            if text.strip():
                self.assertNotIn(text[:9], str(error))


class KeptTests(SynchronousTestCase):
    """A file is read again when it is another one, and only then."""

    def setUp(self) -> None:
        self.path = self.mktemp()
        self.now = time.time() + 10

    def write(self, content: str) -> None:
        """Replace the file's content where it lies."""
        with open(self.path, "w") as file:
            file.write(content)

    def test_readOnce(self) -> None:
        """A settled file is looked at, and not opened, for each connection."""
        self.write("first")
        source = TokenFile(self.path, "here", wallClock=lambda: self.now)
        self.assertEqual(source(), "first")
        with mock.patch("builtins.open", side_effect=AssertionError("it was opened")):
            self.assertEqual(source(), "first")

    def test_everyChangeIsSeen(self) -> None:
        """F1: Written anew, replaced, removed, made again: the next token is that one."""
        self.write("first")
        source = TokenFile(self.path, "here", wallClock=lambda: self.now)
        self.assertEqual(source(), "first")
        with open(self.path + ".new", "w") as file:
            file.write("other")
        os.replace(self.path + ".new", self.path)
        self.assertEqual(source(), "other")
        os.utime(self.path, (1, 1))
        self.write("third")
        self.assertEqual(source(), "third")
        os.unlink(self.path)
        self.assertRaises(TokenUnusable, source)
        self.write("last")
        self.assertEqual(source(), "last")

    def test_aFileThatChangedAMomentAgoIsNotTrusted(self) -> None:
        """Times may be coarse: what was just written may be written again unseen."""
        self.now = time.time()
        self.write("first")
        times = os.stat(self.path)
        source = TokenFile(self.path, "here", wallClock=lambda: self.now)
        self.assertEqual(source(), "first")
        self.write("other")
        os.utime(self.path, ns=(times.st_atime_ns, times.st_mtime_ns))
        self.assertEqual(source(), "other")

    def test_hidesItself(self) -> None:
        """F1: What was read is not shown."""
        self.write(TOKEN)
        source = TokenFile(self.path, "here", wallClock=lambda: self.now)
        source()
        self.assertNotIn(TOKEN, repr(source))
        self.assertEqual(source, TokenFile(self.path, "here"))


class TokenFileTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = self.mktemp()
        self.write(TOKEN + "\n")

    def write(self, content: str, mode: int = 0o600) -> None:
        with open(self.path, "w", encoding="latin-1") as file:
            file.write(content)
        os.chmod(self.path, mode)

    def source(self, credentials: str | None = None) -> TokenFile:
        return TokenFile(self.path, f"--token-file {self.path}", credentials)

    def test_readAtEachConnection(self) -> None:
        """A token that was replaced is used from the next connection on."""
        source = self.source()
        self.assertEqual(source(), TOKEN)
        self.write("hl-next")
        self.assertEqual(source(), "hl-next")

    def test_missing(self) -> None:
        """A missing file is named, and found when it comes."""
        os.unlink(self.path)
        source = self.source()
        error = self.assertRaises(TokenUnusable, source)
        self.assertEqual(str(error), f"--token-file {self.path}: no such file or directory")
        self.assertEqual(source.warnings(), [])
        self.write("hl-late")
        self.assertEqual(source(), "hl-late")

    def test_directory(self) -> None:
        """A directory is no token."""
        source = TokenFile(".", "--token-file .")
        self.assertEqual(
            str(self.assertRaises(TokenUnusable, source)), "--token-file .: is a directory"
        )

    def test_moreThanAToken(self) -> None:
        """F1: the content of a wrong file is in no error and no traceback of it."""
        for content in (f"TOKEN={TOKEN}\nOTHER=1", f"{TOKEN}\xff", TOKEN * 1000):
            self.write(content)
            source = self.source()
            try:
                source()
            except TokenUnusable as error:
                shown = "".join(traceback.format_exception(error))
                self.assertIn("holds more than a token", shown)
                self.assertNotIn(TOKEN, shown)
            else:
                self.fail(f"{content[:60]!r} was taken for a token")

    def test_mode(self) -> None:
        """A file that others can read gives a warning that says what to do."""
        self.assertEqual(self.source().warnings(), [])
        self.write(TOKEN, 0o640)
        [warning] = self.source().warnings()
        self.assertIn("mode 0640", warning)
        self.assertIn(f"chmod 0600 {self.path}", warning)

    def test_serviceManagersCredential(self) -> None:
        """
        No warning for a credential of systemd: access lists guard it, and they make
        its mode look wider than it is.
        """
        self.write(TOKEN, 0o440)
        self.assertEqual(self.source(os.path.dirname(os.path.abspath(self.path))).warnings(), [])
        self.assertEqual(len(self.source("/run/credentials/other").warnings()), 1)
