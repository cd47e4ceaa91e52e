"""The keys of an issuer, fetched by HTTPS from a server that is really there."""

from __future__ import annotations

from typing import Any

import trustme
from twisted.internet import reactor as _reactor
from twisted.internet.ssl import PrivateCertificate
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from helix_revdial.access.jwks import MAX_BYTES, KeySet, KeysUnavailable, httpsFetch
from helix_revdial.access.jwt import Issuer, JWTs
from tests.access.signing import AUDIENCE, ISSUER, claims, jwk, keySet, rsaKey, token
from tests.listening.pems import authority, otherAuthority

reactor: Any = _reactor
NOW = 1_800_000_000.0


class Keys(Resource):
    """Serves what the test says."""

    isLeaf = True
    status = 200
    headers: dict[bytes, bytes] = {}
    body = b""
    asked = 0

    def render_GET(self, request: Request) -> bytes:
        self.asked += 1
        request.setResponseCode(self.status)
        for name, value in self.headers.items():
            request.setHeader(name, value)
        return self.body


class IssuerTests(TestCase):
    def setUp(self) -> None:
        self.keys = Keys()
        self.keys.body = keySet(jwk(rsaKey(), kid="k"))

    def listen(self, certificates: trustme.CA) -> str:
        certificate = certificates.issue_cert("localhost", "127.0.0.1")
        pem = certificate.private_key_pem.bytes() + certificate.cert_chain_pems[0].bytes()
        options = PrivateCertificate.loadPEM(pem).options()
        port = reactor.listenSSL(0, Site(self.keys), options, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        return f"https://localhost:{port.getHost().port}/keys"

    def issuer(self, url: str) -> JWTs:
        fetch = httpsFetch(reactor, url, authority().cert_pem.bytes())
        keys = KeySet(fetch, reactor, "RS256", "localhost")
        jwts = JWTs(
            reactor,
            lambda: NOW,
            lambda families: None,
            [Issuer(ISSUER, AUDIENCE, "RS256", keys=keys)],
        )
        self.addCleanup(jwts.stop)
        return jwts

    async def test_verified(self) -> None:
        """A token is verified with a key that was fetched; the next one needs no request."""
        jwts = self.issuer(self.listen(authority()))
        shown = token(claims(NOW), rsaKey(), "RS256", kid="k")
        for _ in range(3):
            self.assertEqual((await jwts.authenticate(shown)).user, "ann")
        self.assertEqual(self.keys.asked, 1)

    async def unavailable(self, url: str) -> None:
        shown = token(claims(NOW), rsaKey(), "RS256", kid="k")
        try:
            await self.issuer(url).authenticate(shown)
        except KeysUnavailable:
            return
        self.fail("the keys were believed")

    async def test_stranger(self) -> None:
        """A server whose certificate is not believed has no keys for us."""
        await self.unavailable(self.listen(otherAuthority()))
        self.assertEqual(self.keys.asked, 0)

    async def test_elsewhere(self) -> None:
        """An answer that leads elsewhere is not followed, nor is another status taken."""
        url = self.listen(authority())
        for status in (302, 307, 404, 500):
            self.keys.status = status
            self.keys.headers = {b"Location": url.encode()}
            asked = self.keys.asked
            await self.unavailable(url)
            self.assertEqual(self.keys.asked, asked + 1)

    async def test_endless(self) -> None:
        """An answer that is too large is given up."""
        self.keys.body = b" " * (MAX_BYTES + 1) + self.keys.body
        await self.unavailable(self.listen(authority()))
