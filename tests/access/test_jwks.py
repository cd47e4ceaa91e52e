"""Tests for L{helix_revdial.access.jwks}: an issuer's public keys."""

from __future__ import annotations

import base64
import json

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.access.jwks import (
    FRESH,
    MAX_AGE,
    MAX_ASKS,
    MAX_KEYS,
    MIN_INTERVAL,
    KeySet,
    KeysUnavailable,
    httpsFetch,
    parseKeys,
)
from tests.access.signing import SECRET, ecKey, edKey, jwk, keySet, rsaKey


class ParseTests(SynchronousTestCase):
    def test_byAlgorithm(self) -> None:
        """Of a set with all kinds each algorithm gets the keys of its own kind."""
        data = keySet(jwk(rsaKey(), kid="r"), jwk(ecKey(), kid="e"), jwk(edKey(), kid="d"))
        for algorithm, kid in (("RS256", "r"), ("PS512", "r"), ("ES256", "e"), ("EdDSA", "d")):
            self.assertEqual(list(parseKeys(data, algorithm)), [kid], algorithm)
        self.assertEqual(parseKeys(data, "ES384"), {}, "another curve")

    def test_symmetric(self) -> None:
        """A secret that stands in public verifies nothing, whatever it calls itself."""
        k = base64.urlsafe_b64encode(SECRET).decode()
        for alg in ("HS256", "RS256"):
            data = keySet({"kty": "oct", "k": k, "kid": "x", "alg": alg})
            self.assertEqual(parseKeys(data, "RS256"), {})

    def test_unfit(self) -> None:
        """Keys for encryption, for another algorithm, too short or broken are left out."""
        good = jwk(rsaKey(), kid="good")
        for bad in (
            {**good, "kid": "bad", "use": "enc"},
            {**good, "kid": "bad", "alg": "RS512"},
            jwk(rsaKey(1, 1024), kid="bad"),
            {**good, "kid": "bad", "n": "!"},
            {"kty": "RSA", "kid": "bad"},
            {**good, "kid": 7},
            {**good, "kid": "x" * 300},
            {**jwk(ecKey()), "kid": "bad", "crv": "P-384"},
            "no key",
        ):
            self.assertEqual(list(parseKeys(keySet(bad, good), "RS256")), ["good"], str(bad))  # type: ignore[arg-type]

    def test_bounded(self) -> None:
        """A set of thousands is read as far as a limit."""
        data = keySet(*({"kty": "RSA", "kid": str(n)} for n in range(5000)), jwk(rsaKey(), kid="k"))
        self.assertEqual(parseKeys(data, "RS256"), {})
        several = keySet(*(jwk(rsaKey(), kid=str(n)) for n in range(MAX_KEYS + 20)))
        self.assertEqual(len(parseKeys(several, "RS256")), MAX_KEYS)

    def test_noSet(self) -> None:
        """What is no set is said so."""
        for bad in (b"", b"[]", b"{}", b'{"keys":{}}', b"<html>", b"[" * 100_000, b"\xff"):
            self.assertRaises(ValueError, parseKeys, bad, "RS256")

    def test_onlyHTTPS(self) -> None:
        """Keys come by HTTPS only."""
        for url in ("http://id.example/keys", "file:///etc/passwd", "https:x"):
            self.assertRaises(ValueError, httpsFetch, Clock(), url, None)


class KeySetTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.asked: list[Deferred[bytes]] = []
        self.keys = KeySet(self.fetch, self.clock, "RS256", "id.example")

    async def fetch(self) -> bytes:
        answer: Deferred[bytes] = Deferred()
        self.asked.append(answer)
        return await answer

    def key(self, name: str | None) -> Deferred[object]:
        return Deferred.fromCoroutine(self.keys.key(name))

    def serve(self, *names: str) -> None:
        """The issuer answers the last request."""
        self.asked[-1].callback(keySet(*(jwk(rsaKey(), kid=name) for name in names)))

    def test_first(self) -> None:
        """All who wait for the first keys share one request."""
        waiting = [self.key("a"), self.key("b"), self.key("a")]
        self.assertEqual(len(self.asked), 1)
        self.serve("a")
        found = [self.successResultOf(one) for one in waiting]
        self.assertIsNotNone(found[0])
        self.assertIsNone(found[1])
        self.assertIsNotNone(self.successResultOf(self.key("a")))
        self.assertEqual(len(self.asked), 1)

    def test_cancelled(self) -> None:
        """Who gives up waiting takes nothing from the others."""
        one, other = self.key("a"), self.key("a")
        one.cancel()
        self.failureResultOf(one)
        self.serve("a")
        self.assertIsNotNone(self.successResultOf(other))

    def test_unknownKey(self) -> None:
        """C: a storm of unknown key ids asks the issuer a few times, then once in an interval."""
        first = self.key("a")
        self.serve("a")
        self.successResultOf(first)
        self.storm()
        self.assertEqual(len(self.asked), MAX_ASKS)
        self.clock.advance(MIN_INTERVAL)
        waiting = self.key("b")
        self.assertEqual(len(self.asked), MAX_ASKS + 1)
        self.assertIsNotNone(self.successResultOf(self.key("a")), "known ones do not wait")
        self.serve("a", "b")
        self.assertIsNotNone(self.successResultOf(waiting))

    def storm(self) -> None:
        """Tokens that name keys which are nobody's."""
        for number in range(100):
            unknown = self.key(f"no{number}")
            if not self.asked[-1].called:
                self.serve("a")
            self.assertIsNone(self.successResultOf(unknown))

    def test_newKey(self) -> None:
        """A new key is fetched for the first token that it has signed, however soon that comes."""
        for names in (("a",), ("a", "b"), ("b", "c")):
            waiting = self.key(names[-1])
            self.serve(*names)
            self.assertIsNotNone(self.successResultOf(waiting))
        self.assertEqual(len(self.asked), 3)
        self.assertIsNotNone(self.successResultOf(self.key("b")))
        # A quiet time later there is room for as many again, and no more.
        self.clock.advance(FRESH - 1)
        self.storm()
        self.assertEqual(len(self.asked), 3 + MAX_ASKS)

    def test_rotation(self) -> None:
        """A key that is used is renewed in the background, and gone when the issuer drops it."""
        first = self.key("a")
        self.serve("a")
        self.successResultOf(first)
        self.clock.advance(FRESH)
        self.assertIsNotNone(self.successResultOf(self.key("a")))
        self.assertEqual(len(self.asked), 2)
        self.serve("b")
        dropped = self.key("a")
        self.serve("b")
        self.assertIsNone(self.successResultOf(dropped))

    def test_down(self) -> None:
        """While the issuer is down known keys are used, for a day; it is asked now and then."""
        first = self.key("a")
        self.serve("a")
        self.successResultOf(first)
        for _ in range(3):
            self.clock.advance(FRESH)
            self.assertIsNotNone(self.successResultOf(self.key("a")))
            self.asked[-1].errback(ConnectionRefusedError())
        self.assertEqual(len(self.asked), 4)
        self.clock.advance(MAX_AGE)
        waiting = self.key("a")
        self.asked[-1].errback(ConnectionRefusedError())
        self.failureResultOf(waiting, KeysUnavailable)
        for _ in range(20):
            waiting = self.key("a")
            if not self.asked[-1].called:
                self.asked[-1].errback(ConnectionRefusedError())
            self.failureResultOf(waiting, KeysUnavailable)
        self.assertEqual(len(self.asked), 4 + MAX_ASKS)
        self.clock.advance(MIN_INTERVAL)
        waiting = self.key("a")
        self.serve("a")
        self.assertIsNotNone(self.successResultOf(waiting))

    def test_rubbish(self) -> None:
        """What the issuer serves instead of keys replaces none."""
        first = self.key("a")
        self.serve("a")
        self.successResultOf(first)
        for rubbish in (b"<html>", keySet(), json.dumps({"keys": [{"kty": "oct"}]}).encode()):
            self.clock.advance(FRESH)
            self.assertIsNotNone(self.successResultOf(self.key("a")))
            self.asked[-1].callback(rubbish)
            self.assertIsNotNone(self.successResultOf(self.key("a")))

    def test_withoutName(self) -> None:
        """A token that names no key is the only key's; where there are several, nobody's."""
        first = self.key(None)
        self.serve("a")
        self.assertIsNotNone(self.successResultOf(first))
        self.clock.advance(FRESH)
        self.key("a")
        self.serve("a", "b")
        several = self.key(None)
        self.serve("a", "b")
        self.assertIsNone(self.successResultOf(several))
