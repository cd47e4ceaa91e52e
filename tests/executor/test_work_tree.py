"""What of a workspace becomes a patch, byte by byte, whatever the agent did to its repository."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

from twisted.internet.defer import Deferred, gatherResults

from helix_revdial.executor.delivery import PatchMade
from helix_revdial.executor.workspace import Workspace
from helix_revdial.sessions.executor import RepoSpec

from .workspaces import WorkspaceCase


def files(root: Path) -> dict[bytes, tuple[bool, bytes]]:
    """Every file below a directory, but git's own: whether it can be run, and its bytes."""
    found = {}
    for directory, names, others in os.walk(os.fsencode(root)):
        names[:] = [name for name in names if name != b".git"]
        for name in others:
            path = os.path.join(directory, name)
            what = os.lstat(path).st_mode
            if stat.S_ISLNK(what):
                about = (False, b"-> " + os.readlink(path))
            else:
                about = (bool(what & stat.S_IXUSR), Path(os.fsdecode(path)).read_bytes())
            found[os.path.relpath(path, os.fsencode(root))] = about
    return found


class WorkTreeTests(WorkspaceCase):
    """A repository, an agent's script, and its patch applied to a fresh clone."""

    async def work(self, begin: str, agent: str) -> tuple[Workspace, PatchMade]:
        """Have a repository, and a workspace in which the agent has been."""
        self.sh(
            "git init -q -b main w; cd w; git config user.name t; git config user.email t@t;"
            f"{begin}\ngit add -A; git commit -qm first; cd ..; git clone -q --bare w o.git"
        )
        if self.user is not None:
            self.sh(f"chown -R {self.user + 1} o.git")
        workspace = self.workspace(repo=RepoSpec("git", f"file://{self.directory / 'o.git'}"))
        await workspace.prepare()
        await self.inside(
            "export HOME=$(cd ../home; pwd); git config --global user.name a;"
            f"git config --global user.email a@a\n{agent}"
        )
        return workspace, await workspace.delivery.patch()

    def applied(self, made: PatchMade) -> dict[bytes, tuple[bool, bytes]]:
        """What becomes of a fresh clone."""
        self.sh("rm -rf fresh; git clone -q w fresh")
        argv = ["git", "-C", str(self.directory / "fresh"), "apply", "--allow-empty", "-"]
        done = subprocess.run(argv, input=made.path.read_bytes(), capture_output=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        return files(self.directory / "fresh")

    async def same(self, begin: str, agent: str) -> None:
        """The clone becomes what the workspace is."""
        workspace, made = await self.work(begin, agent)
        self.assertEqual(self.applied(made), files(self.layout.workspace))
        self.assertEqual(workspace.delivery.leftOut, "")

    async def test_names(self) -> None:
        """Names with spaces, dashes, quotes, line ends and bytes that are no text."""
        odd = r"""$(printf 'tab\tnl\nquote"')"""
        await self.same(
            f"echo a > 'sp ace'; echo b > ./-rf; echo c > größe; echo d > \"{odd}\"",
            f"echo A >> 'sp ace'; echo B >> ./-rf; mkdir 'd d'; mv größe 'd d/grün'; rm \"{odd}\";"
            "echo E > \"$(printf '\\377\\376')\"; ln -s /etc/passwd absolute; ln -s . loop;"
            "echo F > ./--help",
        )

    async def test_bytes(self) -> None:
        """Line ends of every kind, no line end, NUL, modes, links that become files."""
        await self.same(
            "printf 'a\\r\\nb\\n' > mixed; printf 'a\\0b' > binary; echo x > x; ln -s x l;"
            "printf '*.crlf text eol=crlf\\n*.nd -diff\\n' > .gitattributes;"
            "printf 'a\\r\\n' > a.crlf; echo n > n.nd",
            "printf 'c\\r\\nd' >> mixed; printf '\\0\\1\\r\\n' >> binary; chmod +x x; rm l;"
            "echo file > l; printf 'b\\r\\n' >> a.crlf; echo m >> n.nd; printf '\\t \\n  ' > ws",
        )

    async def test_settings(self) -> None:
        """What the agent sets for itself and its repository changes no byte of its work."""
        settings = (
            "diff.context 0", "diff.noprefix true", "diff.mnemonicPrefix true",
            "diff.submodule log", "diff.orderFile /none", "diff.relative true",
            "diff.wsErrorHighlight all", "diff.ignoreSubmodules all", "color.ui always",
            "core.fileMode false", "core.symlinks false", "core.ignoreCase true",
            "core.autocrlf input", "core.safecrlf true", "diff.suppressBlankEmpty true",
        )  # fmt: skip
        await self.same(
            "seq 100 > numbers; echo b > b; echo c > C",
            ";".join(f"git config --global {each}; git config {each}" for each in settings)
            + "\nsed -i 50s/.*/x/ numbers; chmod +x b; mv C c; ln -s b link; mkdir s;"
            "printf 'q\\r\\nr\\n' > s/s; cd s",
        )

    async def test_repositories(self) -> None:
        """
        Repositories that the agent has made are files like others, with and without a commit,
        within each other, and in a directory that was there before.
        """
        init = "git init -q; git config user.name a; git config user.email a"
        await self.same(
            "mkdir there; echo a > there/a",
            f"mkdir -p 'n w/m' new/deep; (cd 'n w'; {init}; echo 1 > 1; cd m; {init}; echo 2 > 2;"
            "git add 2; git commit -qm 2)\n"
            f"(cd new/deep; {init}; echo 3 > 3; git add 3; git commit -qm 3; rm -r .git/objects)\n"
            f"(cd there; {init}; echo 4 > 4)",
        )

    async def test_repositoryGone(self) -> None:
        """An agent that removes the repository, or begins another one, has done its work."""
        for agent in (
            "rm -rf .git",
            "rm -rf .git; git init -q; git add -A; git commit -qm mine",
            "git checkout -q --orphan new; git commit -qam new; git branch -D main;"
            "git remote rm origin; git reflog expire --expire=now --all; git gc -q --prune=now",
        ):
            await self.same("echo a > a; echo b > b", f"echo c >> a; rm b\n{agent}")
            self.sh("rm -rf s w o.git")

    async def test_goneAndPushed(self) -> None:
        """What is pushed then goes on from what there was."""
        workspace, _ = await self.work("echo a > a", "rm -rf .git; echo b >> a")
        await workspace.delivery.push("ses_test", "work", False)
        said = self.sh("git -c safe.directory='*' -C o.git log --format=%s work")
        self.assertEqual(said.splitlines(), ["a prompt", "first"])

    async def test_ignoredRepositories(self) -> None:
        """What is ignored of them, and what of a submodule is its own, is not in the patch."""
        self.sh(
            "git init -q s; cd s; git config user.name t; git config user.email t@t;"
            "echo s > s; git add s; git commit -qm s"
        )
        if self.user is not None:
            self.sh(f"chown -R {self.user} s")
        workspace, made = await self.work(
            "echo cache > .gitignore",
            "mkdir -p cache/x n; (cd cache/x; git init -q; echo 1 > 1);"
            "(cd n; git init -q; printf 'built\\n' > .gitignore; echo 2 > built; echo 3 > 3)\n"
            f"git -c protocol.file.allow=always submodule add -q {self.directory / 's'} sub",
        )
        found = self.applied(made)
        self.assertEqual(sorted(found), [b".gitignore", b".gitmodules", b"n/.gitignore", b"n/3"])
        self.assertIn(b"+Subproject commit", made.path.read_bytes())
        # Nothing of it is changed by looking.
        self.assertEqual((await workspace.delivery.patch()).sha256, made.sha256)

    async def test_nothingCloned(self) -> None:
        """The same where there was no repository."""
        workspace = self.workspace()
        await workspace.prepare()
        await self.inside(
            "mkdir n; cd n; git init -q; echo inner > f; cd ..; git init -q; echo o > o"
        )
        text = (await workspace.delivery.patch()).path.read_text()
        self.assertIn("+++ b/n/f\n", text)
        self.assertIn("+++ b/o\n", text)

    async def test_uploaded(self) -> None:
        """Repositories within an archive are files like others, from the beginning."""
        self.sh(
            "mkdir -p u uploads; cd u; git init -q n; echo one > n/f; tar cf ../uploads/a.tar ."
        )
        # The standard library is all that unpacking takes.
        python = shutil.which("python3", path="/usr/bin") or sys.executable
        uploads = str(self.directory / "uploads")
        repo = RepoSpec("upload", uploadPath="a.tar")
        workspace = self.workspace(repo=repo, uploads=uploads, python=python)
        await workspace.prepare()
        self.assertEqual((await workspace.delivery.patch()).size, 0)
        await self.inside("echo two >> n/f")
        text = (await workspace.delivery.patch()).path.read_text()
        self.assertIn("+++ b/n/f\n", text)
        self.assertIn("\n one\n+two\n", text)

    async def test_atOnce(self) -> None:
        """Whoever asks for a patch while another is made, or while it is pushed, gets his own."""
        workspace, made = await self.work(
            "seq 1000 > a; echo b > b", "seq 2000 > a; rm b; echo c > c"
        )
        delivery = workspace.delivery
        pushed = Deferred.fromCoroutine(delivery.push("ses_test", "work", False))
        patches = [Deferred.fromCoroutine(delivery.patch()) for _ in range(3)]
        found = await gatherResults(patches)
        self.assertEqual({each.sha256 for each in found}, {made.sha256})
        await pushed
        tree = "git -c safe.directory='*' -C o.git ls-tree -r --name-only work"
        self.assertEqual(self.sh(tree).split(), ["a", "c"])

    async def test_unreadable(self) -> None:
        """What the session cannot read is left out, and said to be; the rest is there."""
        workspace, made = await self.work(
            "echo a > a; echo k > k", "echo b >> a; echo s > s; chmod 0 s k"
        )
        self.assertIn("Permission denied", workspace.delivery.leftOut)
        self.assertEqual(sorted(self.applied(made)), [b"a", b"k"])
        self.assertIn(b"\n+b\n", made.path.read_bytes())

    async def test_sparse(self) -> None:
        """What a sparse checkout leaves out was not removed; the rest is as it is."""
        _, made = await self.work(
            "mkdir x y; echo x > x/x; echo y > y/y; echo z > x/z",
            "git status -s; git sparse-checkout set x; test ! -e y; echo m >> x/x; rm x/z",
        )
        self.assertEqual(sorted(self.applied(made)), [b"x/x", b"y/y"])
