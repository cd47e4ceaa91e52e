"""What opens a repository goes to git alone, and to the repositories it is for."""

from __future__ import annotations

import base64
import stat
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.executor.credentials import (
    CredentialUnusable,
    credentialFor,
    gitEnvironment,
    placeOf,
    removeFiles,
)
from helix_revdial.executor.record import Credential


class CredentialsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.place = Path(self.mktemp())
        self.place.mkdir()
        (self.place / "secret").write_text("pass word\n")

    def test_places(self) -> None:
        """URLs, and what ssh writes instead of them."""
        for url, wanted in (
            ("https://Git.Example/a/b.git", ("https", "git.example", "/a/b.git")),
            ("ssh://git@h:22/a", ("ssh", "h:22", "/a")),
            ("git@h:a/b", ("ssh", "h", "/a/b")),
            ("/srv/x.git", ("file", "", "/srv/x.git")),
            ("ext::sh -c id", ("ext", "", "sh -c id")),
        ):
            self.assertEqual(placeOf(url), wanted, url)

    def test_chosen(self) -> None:
        """The longest beginning counts; another host, scheme or folder has nothing."""
        team = Credential("https://h/team/", passwordFile="t")
        every = Credential("https://h/", passwordFile="h")
        for url, wanted in (
            ("https://h/team/x", team),
            ("https://h/teams/x", every),
            ("https://h.evil/team/x", None),
            ("http://h/team/x", None),
            ("https://h:8443/team/x", None),
        ):
            self.assertEqual(credentialFor(url, [every, team]), wanted, url)

    def test_password(self) -> None:
        """F1: a password is in git's own environment, bound to its URL, and nowhere else."""
        credential = Credential("https://h/team/", "u", str(self.place / "secret"))
        found = gitEnvironment("https://h/team/x", credential, self.place, None)
        said = base64.b64encode(b"u:pass word").decode()
        self.assertEqual(found["GIT_CONFIG_KEY_0"], "http.https://h/team/.extraHeader")
        self.assertEqual(found["GIT_CONFIG_VALUE_0"], f"Authorization: Basic {said}")
        self.assertEqual(found["GIT_CONFIG_VALUE_1"], "false")
        self.assertEqual(gitEnvironment("https://h/x", None, self.place, None), {})

    def test_key(self) -> None:
        """A key is a file of git's user alone, for as long as it is needed."""
        credential = Credential("ssh://h/", keyFile=str(self.place / "secret"))
        found = gitEnvironment("git@h:x", credential, self.place, None)
        self.assertIn("BatchMode=yes", found["GIT_SSH_COMMAND"])
        self.assertIn("StrictHostKeyChecking=yes", found["GIT_SSH_COMMAND"])
        key = self.place / "key"
        self.assertEqual(stat.S_IMODE(key.stat().st_mode), 0o600)
        removeFiles(self.place)
        self.assertFalse(key.exists())

    def test_missing(self) -> None:
        """A file that is not there is told without its name, which is the host's affair."""
        credential = Credential("https://h/", passwordFile="/no/such/file")
        error = self.assertRaises(
            CredentialUnusable, gitEnvironment, "https://h/x", credential, self.place, None
        )
        self.assertNotIn("/no/such/file", str(error))
