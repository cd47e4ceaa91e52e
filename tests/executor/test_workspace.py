"""Workspaces and what is delivered of them, with a hostile task in between."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.executor.checkout import WorkspaceFailed
from helix_revdial.executor.delivery import copyAndDigest, pushedTo
from helix_revdial.sessions.executor import RepoSpec

from .workspaces import WorkspaceCase


class WorkspaceTests(WorkspaceCase):
    def origin(self) -> Path:
        """A bare repository with two commits and a branch."""
        self.sh(
            "git init -q -b main w; cd w; git config user.name t; git config user.email t@t;"
            "echo one > f; git add f; git commit -qm first; git tag v1; echo two >> f;"
            "git commit -qam second; git branch other; cd ..; git clone -q --bare w o.git"
        )
        if self.user is not None:
            self.sh(f"chown -R {self.user + 1} o.git")
        return self.directory / "o.git"

    def git(self, **more: str) -> RepoSpec:
        return RepoSpec("git", f"file://{self.origin()}", **more)

    async def test_commit(self) -> None:
        """A commit is checked out, and the patch is against it."""
        workspace = self.workspace(repo=self.git(commit="v1"))
        await workspace.prepare()
        self.assertEqual(await self.inside("cat f"), "one\n")
        self.assertEqual((await workspace.delivery.patch()).size, 0)
        await self.inside("echo three >> f")
        made = await workspace.delivery.patch()
        text = made.path.read_bytes()
        self.assertIn(b"+three\n", text)
        self.assertEqual(made.sha256, hashlib.sha256(text).hexdigest())

    async def test_commitOnNoBranch(self) -> None:
        """A commit that is on no branch, as those of pull requests are, is fetched by its name."""
        origin = self.origin()
        self.sh(
            "cd w; git checkout -q --detach; echo pull > f; git commit -qam pull;"
            "cd ../o.git; git -c safe.directory='*' fetch -q ../w HEAD:refs/pull/1/head"
        )
        if self.user is not None:
            self.sh(f"chown -R {self.user + 1} o.git")
        commit = self.sh("git -C w rev-parse HEAD").strip()
        workspace = self.workspace(repo=RepoSpec("git", f"file://{origin}", commit=commit))
        await workspace.prepare()
        self.assertEqual(await self.inside("cat f"), "pull\n")

    async def test_branches(self) -> None:
        """A branch is called what git lets it be called, or by its whole name; so is a tag."""
        origin = self.origin()
        self.sh("git -c safe.directory='*' -C o.git branch 'fix/#1=größe!' main~1")
        for name, lines in (("fix/#1=größe!", 1), ("refs/heads/other", 2), ("v1", 1)):
            workspace = self.workspace(repo=RepoSpec("git", f"file://{origin}", branch=name))
            await workspace.prepare()
            self.assertEqual(await self.inside("wc -l < f"), f"{lines}\n")
            self.sh("rm -rf s")

    async def test_nothingThereYet(self) -> None:
        """The first branch of an empty repository begins with the task."""
        self.sh("git init -q --bare -b main o.git")
        if self.user is not None:
            self.sh(f"chown -R {self.user + 1} o.git")
        repo = RepoSpec("git", f"file://{self.directory / 'o.git'}", branch="first")
        workspace = self.workspace(repo=repo)
        await workspace.prepare()
        self.assertEqual(await self.inside("git symbolic-ref HEAD"), "refs/heads/first\n")
        await self.inside("echo one > f")
        self.assertIn("+one\n", (await workspace.delivery.patch()).path.read_text())
        await workspace.delivery.push("ses_test", "first", False)
        said = self.sh("git -c safe.directory='*' -C o.git log --format=%s first")
        self.assertEqual(said, "a prompt\n")

    async def test_unusable(self) -> None:
        """What is no branch and no commit is refused before git sees it as an option."""
        for more in (
            {"branch": "--upload-pack=id"},
            {"branch": "none-such"},
            {"commit": "--help"},
            {"commit": "0" * 40},
        ):
            workspace = self.workspace(repo=self.git(**more))
            with self.assertRaises(WorkspaceFailed):
                await workspace.prepare()
            self.sh("rm -rf s w o.git")

    async def test_hostile(self) -> None:
        """
        Hooks, filters and settings of the workspace's repository run nothing as anybody but
        the session, and what it puts in a patch's place is not followed.
        """
        workspace = self.workspace(repo=self.git())
        await workspace.prepare()
        await self.inside(
            "printf '#!/bin/sh\\nid -u > ../tmp/ran\\n' > .git/hooks/post-index-change;"
            "chmod +x .git/hooks/*; git config core.fsmonitor 'id -u > ../tmp/ran; true';"
            "git config core.hooksPath .git/hooks; git config diff.external 'false';"
            "git config diff.noprefix true; git config color.ui always;"
            "echo '* diff=evil' > .gitattributes; git config diff.evil.textconv 'false';"
            "echo three >> f; ln -s /etc/shadow ../base/patch"
        )
        made = await workspace.delivery.patch()
        text = made.path.read_text()
        self.assertIn("\n+three\n", text)
        self.assertIn("--- a/f\n", text)
        ran = self.layout.temporary / "ran"
        if ran.exists() and self.user is not None:
            self.assertEqual(ran.read_text().strip(), str(self.user))

    async def test_ignored(self) -> None:
        """What the repository ignores is not in the patch; the workspace is not changed by it."""
        workspace = self.workspace(repo=self.git())
        await workspace.prepare()
        await self.inside("echo junk > .gitignore; echo x > junk; echo y > kept")
        before = await self.inside("git status --porcelain; find .git -type f | sort | md5sum")
        text = (await workspace.delivery.patch()).path.read_text()
        self.assertIn("b/kept", text)
        self.assertNotIn("b/junk", text)
        after = await self.inside("git status --porcelain; find .git -type f | sort | md5sum")
        self.assertEqual(before, after)

    async def test_push(self) -> None:
        """Commits and what is left over are pushed; nothing changed is no branch."""
        workspace = self.workspace(repo=self.git())
        await workspace.prepare()
        with self.assertRaises(WorkspaceFailed) as caught:
            await workspace.delivery.push("ses_test", None, False)
        self.assertIn("nothing was changed", str(caught.exception))
        await self.inside(
            "echo three >> f; git checkout -q -b mine;"
            "git -c user.name=a -c user.email=a@a commit -qam three; echo n > n"
        )
        await workspace.delivery.push("ses_test", None, False)
        said = self.sh("git -c safe.directory='*' -C o.git log --format=%s helix/ses_test")
        self.assertEqual(said.splitlines(), ["a prompt", "three", "second", "first"])
        with self.assertRaises(WorkspaceFailed):
            await workspace.delivery.push("ses_test", "--force", False)
        # The branch has moved: it is not overwritten.
        await self.inside("git reset -q --hard HEAD~1; echo other > other")
        with self.assertRaises(WorkspaceFailed):
            await workspace.delivery.push("ses_test", None, False)

    async def test_patchTooLarge(self) -> None:
        """A patch that is too large is none."""
        workspace = self.workspace(patchBytes=1000)
        await workspace.prepare()
        await self.inside("seq 1000 > numbers")
        with self.assertRaises(WorkspaceFailed):
            await workspace.delivery.patch()

    async def test_noUpload(self) -> None:
        """An upload is one that was put on this host, by its name."""
        uploads = self.directory / "uploads"
        uploads.mkdir()
        for name in ("", "none", "../s", "/etc/passwd"):
            workspace = self.workspace(
                repo=RepoSpec("upload", uploadPath=name), uploads=str(uploads)
            )
            with self.assertRaises(WorkspaceFailed):
                await workspace.prepare()


class TakeOverTests(SynchronousTestCase):
    def test_onlyFiles(self) -> None:
        """A link, a pipe and a directory are not taken for a patch, nor waited for."""
        place = Path(self.mktemp())
        place.mkdir()
        os.symlink("/etc/passwd", place / "link")
        os.mkfifo(place / "pipe")
        for name in ("link", "pipe", "."):
            with self.assertRaises(OSError):
                copyAndDigest(place / name, place / "taken", 100)
        self.assertFalse((place / "taken").exists())


class PushedToTests(SynchronousTestCase):
    def test_known(self) -> None:
        """Where a branch or a request is seen, for the hosts that are known."""
        for url, onto, wanted in (
            ("git@github.com:o/r.git", None, "https://github.com/o/r/tree/b/c"),
            (
                "https://github.com/o/r",
                "main",
                "https://github.com/o/r/compare/main...b/c?expand=1",
            ),
            ("ssh://git@gitlab.com/g/r.git", None, "https://gitlab.com/g/r/-/tree/b/c"),
            ("https://u:p@git.example:8443/r.git", None, "https://git.example:8443/r.git"),
        ):
            self.assertEqual(pushedTo(url, "b/c", onto), wanted)
