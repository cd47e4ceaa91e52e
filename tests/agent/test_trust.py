"""Tests for L{helix_revdial.agent.trust}."""

from __future__ import annotations

import trustme
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.agent.trust import TrustUnusable, certificatesIn, tlsOptionsFor


class CertificatesInTests(SynchronousTestCase):
    def write(self, content: bytes) -> str:
        path: str = self.mktemp()
        with open(path, "wb") as file:
            file.write(content)
        return path

    def test_several(self) -> None:
        """All certificates of a file are read, whatever stands between them."""
        first, second = (trustme.CA().cert_pem.bytes() for _ in range(2))
        found = certificatesIn(self.write(b"# first\n" + first + b"\n# second\n" + second))
        self.assertEqual(len(found), 2)

    def test_unusable(self) -> None:
        """What is wrong is said, and with which file."""
        damaged = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
        for content, words in ((b"nothing", "holds no certificate"), (damaged, "is damaged")):
            path = self.write(content)
            error = self.assertRaises(TrustUnusable, certificatesIn, path)
            self.assertIn(words, str(error))
            self.assertIn(path, str(error))
        error = self.assertRaises(TrustUnusable, certificatesIn, "/does/not/exist")
        self.assertEqual(str(error), "/does/not/exist: no such file or directory")

    def test_options(self) -> None:
        """Both kinds of trust give something to speak TLS with."""
        path = self.write(trustme.CA().cert_pem.bytes())
        tlsOptionsFor("cp.example", None)
        tlsOptionsFor("127.0.0.1", path)
        self.assertRaises(TrustUnusable, tlsOptionsFor, "cp.example", "/does/not/exist")
