"""The repository that a task is for."""

from __future__ import annotations

import subprocess
from pathlib import Path
from tempfile import mkdtemp

from twisted.python.filepath import FilePath
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.cli.checkout import Checkout, repositoryOf
from helix_revdial.cli.exit_codes import RepositoryError
from tests.needs import needsProgram

CALM = ("-c", "user.name=t", "-c", "user.email=t@example", "-c", "init.defaultBranch=main")


@needsProgram("git", package="git")
class CheckoutTests(SynchronousTestCase):
    """With the real git."""

    def setUp(self) -> None:
        """A place outside of any repository."""
        self.directory = Path(mkdtemp(prefix="helix-test-"))
        self.addCleanup(FilePath(str(self.directory)).remove)

    def git(self, *arguments: str) -> None:
        """Run git there."""
        subprocess.run(
            ["git", "-C", str(self.directory), *CALM, *arguments], check=True, capture_output=True
        )

    def begin(self, url: str = "git@github.com:acme/x.git") -> None:
        """A checkout of one commit, with this origin."""
        self.git("init", "-q", "-b", "main")
        self.git("remote", "add", "origin", url)
        (self.directory / "a").write_text("1")
        self.git("add", "a")
        self.git("commit", "-q", "-m", "a")

    def test_where(self) -> None:
        """Where one stands: the origin and the branch, or nothing where there is no checkout."""
        self.assertEqual(repositoryOf(None, self.directory), Checkout())
        self.begin()
        self.git("update-ref", "refs/remotes/origin/main", "HEAD")
        inner = self.directory / "deep"
        inner.mkdir()
        expected = Checkout("git@github.com:acme/x.git", "main")
        self.assertEqual(repositoryOf(None, inner), expected)
        self.assertEqual(repositoryOf(str(self.directory), Path("/")), expected)
        self.assertEqual(repositoryOf("deep", self.directory), expected)
        self.assertEqual(repositoryOf("none", self.directory), Checkout())

    def test_unseen(self) -> None:
        """What is not committed, or not pushed, no server sees."""
        self.begin()
        found = repositoryOf(None, self.directory)
        self.assertEqual(found.unseen, ("the branch main, which has not been pushed",))
        self.git("update-ref", "refs/remotes/origin/main", "HEAD")
        self.git("config", "branch.main.remote", "origin")
        self.git("config", "branch.main.merge", "refs/heads/main")
        self.assertEqual(repositoryOf(None, self.directory).unseen, ())
        (self.directory / "a").write_text("2")
        self.assertEqual(repositoryOf(None, self.directory).unseen, ("1 changed file",))
        self.git("commit", "-q", "-a", "-m", "b")
        self.assertEqual(
            repositoryOf(None, self.directory).unseen, ("1 commit of main, not pushed yet",)
        )

    def test_noBranch(self) -> None:
        """Where no branch is checked out it is the commit."""
        self.begin()
        self.git("checkout", "-q", "--detach")
        found = repositoryOf(None, self.directory)
        self.assertIsNone(found.branch)
        self.assertRegex(found.commit or "", "^[0-9a-f]{40}$")

    def test_passwordsStay(self) -> None:
        """A credential in origin's address goes nowhere."""
        self.begin("https://user:hl-secret@h.example:8443/acme/x.git")
        self.assertEqual(
            repositoryOf(None, self.directory).url, "https://h.example:8443/acme/x.git"
        )
        for given, url in (
            ("https://hl-secret@h.example/x", "https://h.example/x"),
            ("ssh://git:hl-secret@h.example/x", "ssh://git@h.example/x"),
            ("ssh://git@h.example/x", "ssh://git@h.example/x"),
            ("git@h.example:x", "git@h.example:x"),
        ):
            self.assertEqual(repositoryOf(given, self.directory).url, url)

    def test_noOrigin(self) -> None:
        """A checkout that nobody else can clone is not silently an empty workspace."""
        self.git("init", "-q")
        for given in (None, "."):
            with self.assertRaises(RepositoryError) as raised:
                repositoryOf(given, self.directory)
            self.assertIn("no remote called origin", str(raised.exception))
        self.assertEqual(repositoryOf("none", self.directory), Checkout())
        (self.directory / ".git").rename(self.directory / "not-git")
        with self.assertRaises(RepositoryError):
            repositoryOf("not-git/refs", self.directory)

    def test_notForAServer(self) -> None:
        """An address on this machine, and what is no address, are errors of the repository."""
        self.begin("/srv/git/x.git")
        for given in (None, "file:///srv/x", "ext::sh -c id", "-x", "nix", "https://"):
            with self.assertRaises(RepositoryError, msg=given) as raised:
                repositoryOf(given, self.directory)
            self.assertEqual(raised.exception.exitCode, 2)
