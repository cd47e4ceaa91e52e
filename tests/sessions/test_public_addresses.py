"""Tests for L{helix_revdial.sessions.public_addresses}."""

from __future__ import annotations

import ipaddress

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.sessions.public_addresses import (
    RESOLVE_TIMEOUT,
    Address,
    AddressRefused,
    isPublic,
    publicAddress,
)

from .names import Names

PRIVATE = (
    "127.0.0.1",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "240.0.0.1",
    "::1",
    "::",
    "fe80::1",
    "fc00::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "64:ff9b::a00:1",
    "2002:7f00:1::",
)

PUBLIC = ("93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "64:ff9b::5db8:d822")


class IsPublicTests(SynchronousTestCase):
    """Which addresses are the Internet's."""

    def test_private(self) -> None:
        """Nothing that is a machine's own, its neighbours', or only wraps one of them."""
        wrong = [text for text in PRIVATE if isPublic(ipaddress.ip_address(text))]
        self.assertEqual(wrong, [])

    def test_public(self) -> None:
        """What everybody can reach."""
        wrong = [text for text in PUBLIC if not isPublic(ipaddress.ip_address(text))]
        self.assertEqual(wrong, [])

    def test_allowed(self) -> None:
        """An operator opens a network, also for those who name it in IPv6's words."""
        network = ipaddress.ip_network("10.0.0.0/8")
        for text in ("10.1.2.3", "::ffff:10.1.2.3"):
            self.assertTrue(isPublic(ipaddress.ip_address(text), [network]), text)
        self.assertFalse(isPublic(ipaddress.ip_address("192.168.1.1"), [network]))


class PublicAddressTests(SynchronousTestCase):
    """A user's word becomes an address."""

    def setUp(self) -> None:
        self.clock = Clock()

    def ask(self, host: str, names: Names) -> Deferred[Address]:
        return Deferred.fromCoroutine(publicAddress(names, self.clock, host))

    def test_name(self) -> None:
        """A name is resolved once, and the first address is used."""
        names = Names({"a.example": [PUBLIC[0], PUBLIC[1]]})
        found = self.successResultOf(self.ask("a.example", names))
        self.assertEqual((str(found), len(names.asked)), (PUBLIC[0], 1))

    def test_literal(self) -> None:
        """An address needs nobody to resolve it, and is judged alike."""
        names = Names({})
        self.assertEqual(str(self.successResultOf(self.ask(PUBLIC[0], names))), PUBLIC[0])
        self.failureResultOf(self.ask("127.0.0.1", names), AddressRefused)
        self.failureResultOf(self.ask("::1", names), AddressRefused)
        self.assertEqual(names.asked, [])

    def test_bothWays(self) -> None:
        """One private address among public ones is a trick."""
        names = Names({"a.example": [PUBLIC[0], "10.0.0.1"]})
        self.failureResultOf(self.ask("a.example", names), AddressRefused)

    def test_nowhere(self) -> None:
        """A name without an address."""
        failure = self.failureResultOf(self.ask("a.example", Names({"a.example": []})))
        self.assertIn("a.example has no address", str(failure.value))

    def test_silent(self) -> None:
        """A resolver that says nothing is not waited for."""
        names = Names({})
        asked = self.ask("a.example", names)
        self.assertNoResult(asked)
        self.clock.advance(RESOLVE_TIMEOUT)
        self.failureResultOf(asked, AddressRefused)
        self.assertTrue(names.asked[0].cancelled)
        self.assertEqual(self.clock.getDelayedCalls(), [])
