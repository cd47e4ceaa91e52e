"""Tests for L{helix_revdial.systemd.credentials}."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.systemd.credentials import CredentialUnusable, credentialPath, readCredential


class CredentialTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.environment = {"CREDENTIALS_DIRECTORY": str(self.directory)}

    def test_read(self) -> None:
        """A credential is the text of its file, without the line's end."""
        (self.directory / "token").write_text("hl-secret\n")
        self.assertEqual(readCredential(self.environment, "token"), "hl-secret")
        self.assertEqual(credentialPath(self.environment, "token"), self.directory / "token")

    def test_none(self) -> None:
        """No directory, no file or no name is no credential."""
        self.assertIsNone(readCredential({}, "token"))
        self.assertIsNone(readCredential(self.environment, "token"))
        for name in ("", "..", ".", "../token", "/etc/passwd"):
            self.assertIsNone(credentialPath(self.environment, name), name)

    def test_unusable(self) -> None:
        """What cannot be one secret is refused by its name; what it holds is not repeated."""
        for content in (b"\n", b"hidden\xff", b"hidden" * 1000):
            (self.directory / "token").write_bytes(content)
            with self.assertRaises(CredentialUnusable) as caught:
                readCredential(self.environment, "token")
            self.assertIn("credential token: ", str(caught.exception))
            self.assertNotIn("hidden", str(caught.exception))
            self.assertIsNone(caught.exception.__cause__)
