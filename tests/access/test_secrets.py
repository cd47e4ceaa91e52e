"""Tests for L{helix_revdial.access.secrets}."""

from __future__ import annotations

import hashlib

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.access.secrets import digestOf, isSecret, newSecret, redact


class SecretTests(SynchronousTestCase):
    def test_form(self) -> None:
        """The mark, and all random bytes in base64url without padding."""
        self.assertEqual(newSecret(lambda n: b"\xff" * n), "hlx_" + "_" * 42 + "8")
        self.assertTrue(isSecret(newSecret()))

    def test_digest(self) -> None:
        """SHA-256 in hexadecimal, as stored by every version."""
        self.assertEqual(digestOf("hlx_x"), hashlib.sha256(b"hlx_x").hexdigest())

    def test_redact(self) -> None:
        """F1: secrets are taken out of texts, wherever they stand."""
        secret = newSecret()
        for text in (secret, f"?token={secret}&x=1", f"Bearer {secret}\n", f"{secret}{secret}"):
            cleaned = redact(text)
            self.assertNotIn(secret[4:16], cleaned)
            self.assertIn("[redacted]", cleaned)
        self.assertEqual(redact("wolf-1 was refused"), "wolf-1 was refused")
