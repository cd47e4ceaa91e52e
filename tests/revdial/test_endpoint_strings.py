"""C{revdial:} endpoint strings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import trustme
from twisted.internet.endpoints import clientFromString
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.gateway import GatewayEndpoint, TokenUnreadable


class ParserTests(SynchronousTestCase):
    """What is understood, and what is refused with words."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()

    def parse(self, text: str) -> GatewayEndpoint:
        endpoint = clientFromString(self.reactor, text)
        assert isinstance(endpoint, GatewayEndpoint)
        return endpoint

    def refused(self, text: str) -> str:
        with self.assertRaises(ValueError) as caught:
            clientFromString(self.reactor, text)
        return str(caught.exception)

    def test_theWholeForm(self) -> None:
        """Every part is taken, colons behind backslashes included."""
        authority = Path(self.mktemp())
        trustme.CA().cert_pem.write_to_path(str(authority))
        endpoint = self.parse(
            r"revdial:https\://cp.example\:8443/base:wolf-1:target=api:tokenFile=/nowhere"
            f":caFile={authority}:timeout=7"
        )
        self.assertEqual(
            repr(endpoint), "<GatewayEndpoint https://cp.example:8443/base wolf-1 target='api'>"
        )

    def test_theLeast(self) -> None:
        """Without a target it is the agent's default."""
        endpoint = self.parse(r"revdial:http\://127.0.0.1\:80:wolf-1:tokenFile=/nowhere")
        self.assertEqual(repr(endpoint), "<GatewayEndpoint http://127.0.0.1 wolf-1 target=None>")

    def test_refused(self) -> None:
        """What is wrong is said, with the form; a token in the string is not repeated."""
        form = "expected revdial:https"
        for text, words in (
            (r"revdial:https\://cp.example", form),
            (r"revdial:https\://cp.example:wolf-1", "tokenFile is missing"),
            (r"revdial:https\://cp.example:-x:tokenFile=/t", "no runner's key"),
            (r"revdial:https\://cp.example:wolf-1:tokenFile=/t:target=a b", "no target's name"),
            (r"revdial:https\://cp.example:wolf-1:tokenFile=/t:speed=1", "speed is unknown"),
            (r"revdial:https\://cp.example:wolf-1:tokenFile=/t:timeout=x", "timeout: expected"),
            (r"revdial:https\://cp.example:wolf-1:tokenFile=/t:timeout=nan", "timeout: expected"),
            (r"revdial:http\://cp.example:wolf-1:tokenFile=/t:caFile=/c", "there is no TLS"),
            (r"revdial:ftp\://cp.example:wolf-1:tokenFile=/t", "a server URL begins with"),
        ):
            self.assertIn(words, self.refused(text), text)
        text = self.refused(r"revdial:https\://cp.example:wolf-1:token=hlx_secret")
        self.assertIn("does not belong in an endpoint string", text)
        self.assertNotIn("hlx_secret", text)

    def test_noAuthorities(self) -> None:
        """A file without certificates is refused when the string is parsed."""
        path = Path(self.mktemp())
        path.write_text("nothing")
        text = rf"revdial:https\://cp.example:wolf-1:tokenFile=/t:caFile={path}"
        self.assertIn("no certificate in PEM", self.refused(text))

    def test_theTokensFile(self) -> None:
        """It is read for each connection; what is wrong with it is that connection's error."""
        path = Path(self.mktemp())
        endpoint = self.parse(rf"revdial:http\://127.0.0.1:wolf-1:tokenFile={path}")
        factory = Factory.forProtocol(Protocol)
        self.failureResultOf(endpoint.connect(factory), TokenUnreadable)
        path.write_text("two words")
        failure = self.failureResultOf(endpoint.connect(factory), TokenUnreadable)
        self.assertNotIn("two words", failure.getErrorMessage())
        path.write_text("hlx_token\n")
        self.assertNoResult(endpoint.connect(factory))
        self.assertEqual(len(self.reactor.tcpClients), 1)

    def test_otherStringsStayCheap(self) -> None:
        """The plugin, which Twisted may import for any string, imports little."""
        code = (
            "import sys\nfrom twisted.plugin import getPlugins\n"
            "from twisted.internet.interfaces import IStreamClientEndpointStringParserWithReactor\n"
            "found = list(getPlugins(IStreamClientEndpointStringParserWithReactor))\n"
            "assert 'revdial' in [each.prefix for each in found]\n"
            "sys.exit('helix_revdial.revdial.gateway' in sys.modules)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
