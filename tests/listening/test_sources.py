"""Who may send PROXY headers."""

from __future__ import annotations

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.listening.errors import ListenError
from helix_revdial.listening.sources import ProxySources


class SourcesTests(SynchronousTestCase):
    """L{ProxySources}."""

    def test_networks(self) -> None:
        """Networks and addresses of both families; an IPv4 peer of an IPv6 socket is IPv4."""
        sources = ProxySources(["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"])
        for host, expected in (
            ("10.1.2.3", True),
            ("192.0.2.7", True),
            ("192.0.2.8", False),
            ("11.0.0.1", False),
            ("2001:db8::5", True),
            ("2001:db9::5", False),
            ("::ffff:10.1.2.3", True),
            ("::ffff:11.1.2.3", False),
            ("fe80::1%eth0", False),
        ):
            kind = IPv6Address if ":" in host else IPv4Address
            self.assertEqual(sources.trusts(kind("TCP", host, 1)), expected, host)

    def test_unix(self) -> None:
        """A unix socket's peer is a proxy where that is said, and else is none."""
        peer = UNIXAddress(None)
        self.assertFalse(ProxySources(["10.0.0.0/8"]).trusts(peer))
        self.assertTrue(ProxySources(["unix"]).trusts(peer))
        self.assertFalse(ProxySources(["unix"]).trusts(IPv4Address("TCP", "10.0.0.1", 1)))

    def test_refused(self) -> None:
        """What is no network, and an empty list, are refused with the reason."""
        for sources, text in (
            (["lb.example"], "'lb.example' is no network or address"),
            (["10.0.0.1/8"], "has host bits set"),
            ([], "names no proxy"),
        ):
            with self.assertRaises(ListenError) as caught:
                ProxySources(sources)
            self.assertIn(text, str(caught.exception))
