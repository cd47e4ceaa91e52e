"""C{helix forward}: what its arguments mean, and what is refused before anything listens."""

from __future__ import annotations

from typing import Any

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.cli.connecting import whyNoStream
from helix_revdial.cli.forwarding import MAX_CONNECTIONS, Forwarding
from helix_revdial.cli.local_end import Local
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


class ListeningTests(SynchronousTestCase):
    """What listens."""

    def test_backlog(self) -> None:
        """
        As many may come at once as may be open: where more do than the kernel holds until
        they are accepted, it resets some, or loses what they have sent.
        """
        reactor = MemoryReactorClock()
        report: Any = type("Report", (), {"runner": "wolf-1", "say": lambda *a, **k: None})()
        endpoint: Any = None
        forwarding = Forwarding(reactor, report, None)
        forwarding.listen(Local("db"), endpoint)
        forwarding.listen(Local("db", path=self.mktemp()), endpoint)
        [(_, _, tcp, _)] = reactor.tcpServers
        [(_, _, unix, *_)] = reactor.unixServers
        self.assertGreaterEqual(min(tcp, unix), MAX_CONNECTIONS)
