"""Which header fields cross the reverse proxy."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.gateways.forwarding import (
    SANDBOX,
    BadAnswer,
    Caller,
    answerFields,
    asksUpgrade,
    checkSwitch,
    requestFields,
)
from helix_revdial.http.request import Headers

CALLER = Caller("192.0.2.7", True)
PREFIX = b"/api/v1/runners/wolf-1/http/api"


def headers(*fields: tuple[bytes, bytes]) -> Headers:
    return Headers([(b"Host", b"cp.example"), *fields])


class RequestTests(SynchronousTestCase):
    """What a service is told."""

    def crossed(self, *fields: tuple[bytes, bytes], caller: Caller = CALLER) -> list[bytes]:
        """The names that cross, but for those that always do."""
        own = (b"host", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host")
        names = [name.lower() for name, _ in requestFields(headers(*fields), caller)]
        return [name for name in names if name not in own]

    def test_hopByHop(self) -> None:
        """What is one connection's stays, and so does what C{Connection} names."""
        for name in (
            b"Connection", b"Keep-Alive", b"Proxy-Connection", b"Proxy-Authorization", b"TE",
            b"Trailer", b"Transfer-Encoding", b"Upgrade", b"Content-Length", b"Expect",
        ):  # fmt: skip
            self.assertEqual(self.crossed((name, b"x")), [], name)
        fields = ((b"Connection", b"close, X-Hop"), (b"X-HOP", b"1"), (b"X-End", b"2"))
        self.assertEqual(self.crossed(*fields), [b"x-end"])

    def test_ourToken(self) -> None:
        """F1: our token never reaches a service; its own credentials do, where told apart."""
        fields = headers((b"Authorization", b"Bearer hlx_1"), (b"X-Helix-Authorization", b"hlx_2"))
        text = repr(requestFields(fields, CALLER))
        self.assertNotIn("hlx_", text)
        text = repr(requestFields(fields, CALLER, passAuthorization=True))
        self.assertIn("hlx_1", text)
        self.assertNotIn("hlx_2", text)

    def test_whoTheCallerIs(self) -> None:
        """F6: a caller's own word on who it is does not cross, however it is spelled."""
        for name in (
            b"X-Forwarded-For", b"X_Forwarded_For", b"x-forwarded_proto", b"X-Forwarded-User",
            b"Forwarded", b"X-Real-IP", b"X_Real_IP", b"Transfer_Encoding", b"Content_Length",
            b"X_Helix_Authorization",
        ):  # fmt: skip
            fields = requestFields(headers((name, b"203.0.113.66")), CALLER)
            self.assertNotIn("203.0.113.66", repr(fields), name)
        found = dict(requestFields(headers(), CALLER))
        self.assertEqual(found[b"X-Forwarded-For"], b"192.0.2.7")
        self.assertEqual(found[b"X-Forwarded-Proto"], b"https")
        self.assertEqual(found[b"X-Forwarded-Host"], b"cp.example")
        self.assertNotIn(b"X-Forwarded-Prefix", found)

    def test_trustedProxy(self) -> None:
        """A proxy of the operator's is believed, and stands behind whom it names."""
        given = headers(
            (b"X-Forwarded-For", b"203.0.113.1, 10.0.0.1"),
            (b"X-Forwarded-Proto", b"http"),
            (b"X-Forwarded-Host", b"www.example"),
            (b"Forwarded", b"for=203.0.113.66"),
        )
        caller = Caller("10.0.0.2", True, trusted=True, prefix=PREFIX)
        found = dict(requestFields(given, caller))
        self.assertEqual(found[b"X-Forwarded-For"], b"203.0.113.1, 10.0.0.1, 10.0.0.2")
        self.assertEqual(found[b"X-Forwarded-Proto"], b"http")
        self.assertEqual(found[b"X-Forwarded-Host"], b"www.example")
        self.assertEqual(found[b"X-Forwarded-Prefix"], PREFIX)
        self.assertNotIn(b"Forwarded", found)

    def test_hostCannotBeNamedAway(self) -> None:
        """C{Connection: Host} does not leave a request without one, nor with two."""
        given = headers((b"Connection", b"Host, Content-Length"))
        names = [name for name, _ in requestFields(given, CALLER)]
        self.assertEqual(names.count(b"Host"), 1)

    def test_upgrade(self) -> None:
        """D17: an upgrade is one in any letter case, if C{Connection} says so, and 1.1."""
        ask = headers((b"CONNECTION", b"Keep-Alive, UPGRADE"), (b"upgrade", b"WebSocket"))
        self.assertEqual(asksUpgrade(ask, b"1.1"), b"WebSocket")
        self.assertIsNone(asksUpgrade(ask, b"1.0"))
        self.assertIsNone(asksUpgrade(headers((b"Upgrade", b"websocket")), b"1.1"))
        two = headers((b"Connection", b"upgrade"), (b"Upgrade", b"H2C, websocket, foo/2"))
        self.assertEqual(asksUpgrade(two, b"1.1"), b"websocket, foo/2")
        self.assertEqual(
            checkSwitch(b"WebSocket", headers((b"Upgrade", b"websocket"))), b"websocket"
        )
        for answer in ((b"Upgrade", b"telnet"), (b"X", b"y")):
            with self.assertRaises(BadAnswer):
                checkSwitch(b"WebSocket", headers(answer))


class AnswerTests(SynchronousTestCase):
    """What a caller is told."""

    def crossed(
        self,
        *fields: tuple[bytes, bytes],
        prefix: bytes = b"",
        host: bytes = b"",
        status: int = 200,
    ) -> list[tuple[bytes, bytes]]:
        return answerFields(status, Headers(fields), version=b"1.1", prefix=prefix, host=host)

    def test_hopByHop(self) -> None:
        """Fields of the service's connection stay; the length stays a length."""
        fields = self.crossed(
            (b"Connection", b"X-Hop, Content-Length"),
            (b"X-Hop", b"1"),
            (b"Keep-Alive", b"5"),
            (b"Proxy-Authenticate", b"x"),
            (b"Upgrade", b"h2c"),
            (b"Content-Length", b"5"),
            (b"Set-Cookie", b"a=1"),
            (b"Set-Cookie", b"b=2"),
        )
        self.assertEqual(
            fields, [(b"Content-Length", b"5"), (b"Set-Cookie", b"a=1"), (b"Set-Cookie", b"b=2")]
        )

    def test_lengthOfNothing(self) -> None:
        """A 204 has no length, whatever the service says; a 304 says that of another."""
        length = (b"Content-Length", b"5")
        self.assertEqual(self.crossed(length, status=204), [])
        self.assertEqual(self.crossed(length, status=304), [length])

    def test_prefix(self) -> None:
        """Behind a prefix, paths and cookies stay behind it, and pages are strangers."""
        for location, told in (
            (b"/login?x", PREFIX + b"/login?x"),
            (PREFIX + b"/login", PREFIX + b"/login"),
            (b"//evil.example/", b"//evil.example/"),
            (b"https://other.example/", b"https://other.example/"),
            (b"relative", b"relative"),
        ):
            fields = self.crossed((b"Location", location), prefix=PREFIX)
            self.assertEqual(fields, [(b"Location", told), SANDBOX])
        # Many a service names the host that it was asked for.
        for location, told in (
            (b"http://cp.example:8443/login?x", PREFIX + b"/login?x"),
            (b"HTTPS://CP.example:8443", PREFIX + b"/"),
            (b"https://cp.example:8443?x", PREFIX + b"/?x"),
            (b"http://cp.example:8443" + PREFIX + b"/login", PREFIX + b"/login"),
            (b"http://cp.example:8443//evil", PREFIX + b"//evil"),
            (b"http://cp.example:84430/", b"http://cp.example:84430/"),
            (b"http://cp.example:8443.evil/", b"http://cp.example:8443.evil/"),
            (b"http://cp.example:8443@evil/", b"http://cp.example:8443@evil/"),
            (b"http://cp.example/", b"http://cp.example/"),
        ):
            fields = self.crossed((b"Location", location), prefix=PREFIX, host=b"cp.example:8443")
            self.assertEqual(fields, [(b"Location", told), SANDBOX])
        for cookie, told in (
            (b"a=1; HttpOnly", b"a=1; Path=" + PREFIX + b"/; HttpOnly"),
            (b"a=1; path=/x; Domain=example", b"a=1; Path=" + PREFIX + b"/x"),
            (b"a=1; Path=x", b"a=1; Path=" + PREFIX + b"/"),
        ):
            fields = self.crossed((b"Set-Cookie", cookie), prefix=PREFIX)
            self.assertEqual(fields[0], (b"Set-Cookie", told))
        fields = self.crossed(
            (b"Strict-Transport-Security", b"max-age=1"),
            (b"Clear-Site-Data", b"*"),
            (b"Service-Worker-Allowed", b"/"),
            prefix=PREFIX,
        )
        self.assertEqual(fields, [SANDBOX])

    def test_originOfItsOwn(self) -> None:
        """Without a prefix the answer is the service's own."""
        given = ((b"Location", b"/login"), (b"Strict-Transport-Security", b"max-age=1"))
        self.assertEqual(self.crossed(*given), list(given))
