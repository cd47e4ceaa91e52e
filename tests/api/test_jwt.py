"""JSON web tokens over HTTP: who asks, and what ends with the token."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.access.jwt import Issuer
from helix_revdial.gateways.forwarding import OWN_AUTHORIZATION
from tests.access.signing import AUDIENCE, ISSUER, SECRET, claims, token
from tests.api.harness import Server
from tests.api.test_event_streams import withEvents


class JWTTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.server = Server()
        self.addCleanup(self.server.services.jwts.stop)
        self.server.services.jwts.setIssuers([Issuer(ISSUER, AUDIENCE, "HS256", secret=SECRET)])

    def token(self, **changed: Any) -> str:
        return token(claims(self.server.wallClock(), **changed))

    def test_asks(self) -> None:
        """A token's bearer is a user of its tenant, with its role and nothing else's."""
        ann, bob = self.token(), self.token(sub="bob", roles=["viewer"])
        made = self.server.post("/api/v1/sessions", ann, {"name": "x"})
        self.assertEqual((made.status, made.json()["owner"]), (201, "ann"))
        self.assertEqual(self.server.post("/api/v1/sessions", bob, {"name": "x"}).status, 403)
        path = f"/api/v1/sessions/{made.json()['id']}"
        self.assertEqual(self.server.get(path, ann).status, 200)
        for role in ("operator", "admin"):
            stranger = self.token(tenant_id="other", roles=[role])
            self.assertEqual(self.server.get(path, stranger).status, 404)
        own = {OWN_AUTHORIZATION.decode(): f"Bearer {ann}"}
        self.assertEqual(self.server.get(path, **own).status, 200)

    def test_refused(self) -> None:
        """One that is no good is 401 with a challenge, and in the audit log without its text."""
        shown = self.token(aud="other")
        answer = self.server.get("/api/v1/sessions", shown)
        self.assertEqual(answer.status, 401)
        self.assertIn("audience", answer.detail)
        self.assertTrue(answer.headers["www-authenticate"].startswith("Bearer"))
        (entry,) = self.server.events()
        self.assertEqual(entry.event, "unauthenticated")
        self.assertNotIn(shown.split(".")[1], repr(entry))

    def test_ownTokens(self) -> None:
        """Tokens of our own are taken as before."""
        self.assertEqual(self.server.get("/api/v1/sessions", self.server.user()).status, 200)
        self.assertEqual(self.server.get("/api/v1/sessions", "a.b.c").status, 401)

    def test_expiryCuts(self) -> None:
        """A stream of events ends at the moment at which its token expires; no other does."""
        opened = withEvents(self.server)
        short, long = self.token(exp=self.server.wallClock() + 5), self.token()
        streams = [opened(short), opened(long), opened(self.server.user())]
        self.server.clock.advance(4.9)
        self.assertEqual([stream.closed for stream, _ in streams], [False] * 3)
        self.server.clock.advance(0.1)
        self.assertEqual([stream.closed for stream, _ in streams], [True, False, False])
        self.assertTrue(streams[0][1].aborted)
        self.assertEqual(self.server.get("/api/v1/sessions", short).status, 401)

    def test_issuerGoneCuts(self) -> None:
        """So it does when its issuer is taken out of the settings."""
        stream, wire = withEvents(self.server)(self.token())
        self.server.services.jwts.setIssuers([])
        self.assertEqual((stream.closed, wire.aborted), (True, True))
