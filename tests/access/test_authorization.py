"""Tests for L{helix_revdial.access.authorization}."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.access.authorization import MAX_CREDENTIALS, parseAuthorization


class ParseAuthorizationTests(SynchronousTestCase):
    def test_bothSchemesInAnyCase(self) -> None:
        """Bearer and ApiKey, in any letter case, with spaces or tabs."""
        for header in (
            b"Bearer hlx_x",
            b"bearer hlx_x",
            b"BEARER   hlx_x",
            b"ApiKey hlx_x",
            b"apikey\thlx_x",
            b"  Bearer hlx_x \t",
        ):
            self.assertEqual(parseAuthorization(header), "hlx_x", header)

    def test_anythingElseIsNoToken(self) -> None:
        """No header, other schemes, several words, other bytes: no token."""
        for header in (
            None,
            b"",
            b"Bearer",
            b"Bearer ",
            b"hlx_x",
            b"Basic dXNlcjpwYXNz",
            b"Bearer a b",
            b"Bearer a,b c",
            b"Bearerhlx_x",
            b"Bearer \xff\xfe",
            b"Bearer a\x00b",
            b"Bearer a\n",
            b"XBearer a",
        ):
            self.assertIs(parseAuthorization(header), None, header)

    def test_theLimit(self) -> None:
        """A token up to the limit, and not a byte more."""
        longest = b"x" * MAX_CREDENTIALS
        self.assertEqual(parseAuthorization(b"Bearer " + longest), longest.decode())
        self.assertIs(parseAuthorization(b"Bearer x" + longest), None)

    @settings(deadline=None, max_examples=200)
    @given(st.binary(max_size=64) | st.binary(max_size=64).map(lambda b: b"Bearer " + b))
    def test_neverAnythingButATokenOrNone(self, header: bytes) -> None:
        """Whatever comes in, what comes out is visible ASCII or nothing."""
        token = parseAuthorization(header)
        if token is not None:
            self.assertTrue(token and all(0x21 <= ord(c) <= 0x7E for c in token))
            self.assertTrue(header.rstrip(b" \t").endswith(token.encode()))
