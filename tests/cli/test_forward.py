"""C{helix forward}: what its arguments mean, and what is refused before anything listens."""

from __future__ import annotations

from helix_revdial.cli.connecting import whyNoStream
from helix_revdial.revdial.errors import TargetRefused, TooManyPendingDials
from helix_revdial.revdial.exchange import MalformedAnswer
from helix_revdial.revdial.gateway import GatewayRefused
from tests.cli.fake import CommandTestCase


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
