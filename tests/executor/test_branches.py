"""Workspaces that begin with a snapshot of another session's."""

from __future__ import annotations

import msgspec
from twisted.trial.unittest import SkipTest

from helix_revdial.executor.checkout import WorkspaceFailed
from helix_revdial.executor.commands import Commands
from helix_revdial.executor.filesystems import canMountOverlay
from helix_revdial.executor.layout import Layout
from helix_revdial.executor.record import writeRecord
from helix_revdial.executor.snapshots import providerOf
from helix_revdial.executor.workspace import Workspace
from helix_revdial.sessions.executor import RepoSpec, SnapshotSource
from tests.integration.executors import commonPython
from tests.needs import missing, needsProgram

from .workspaces import WorkspaceCase, reactor


@needsProgram("git", package="git")
class BranchTests(WorkspaceCase):
    """C{s} is the source, C{b} the branch; as root each has a user of its own."""

    def origin(self) -> RepoSpec:
        """A repository with one commit."""
        self.sh(
            "git init -q -b main w; cd w; git config user.name t; git config user.email t@t;"
            "echo one > f; echo gone > gone; git add .; git commit -qm first;"
            "cd ..; git clone -q --bare w o.git"
        )
        if self.user is not None:
            self.sh(f"chown -R {self.user + 1} o.git")
        return RepoSpec("git", f"file://{self.directory}/o.git")

    def branch(self, source: Workspace, snapshot: str, provider: str = "copy") -> Workspace:
        """A workspace that begins with a snapshot; it is not prepared yet."""
        writeRecord(self.layout, source._record)
        user = None if self.user is None else self.user + 100
        record = msgspec.structs.replace(
            source._record,
            spec=msgspec.structs.replace(
                source._record.spec,
                session="ses_branch",
                fromSnapshot=SnapshotSource("s", snapshot),
            ),
            user=user,
            tunnelUser=None if user is None else user + 1,
            provider=provider,
        )
        layout = self.other = Layout(self.directory / "b")
        layout.create(record.user, record.tunnelUser)
        commands = Commands(reactor, record.confinement(layout), layout, record.tunnelUser)
        self.otherCommands = commands
        workspace = Workspace(reactor, record, commands)
        self.addCleanup(workspace.provider.remove)
        return workspace

    async def within(self, script: str) -> str:
        """Run a script in the branch, as the branch."""
        said = await self.otherCommands.run(
            ["sh", "-ec", script], directory=str(self.other.workspace)
        )
        return said.decode()

    async def runThrough(self, provider: str, into: str = "copy") -> None:
        """
        The branch has what was there at the snapshot, nothing of later, and nobody else's
        files; its patch applies to what the source began with.
        """
        source = self.workspace(provider, repo=self.origin())
        await source.prepare()
        self.addCleanup(source.provider.remove)
        await self.inside(
            "echo two >> f; rm gone; mkdir -p deep; echo x > deep/new; chmod 700 deep/new;"
            "ln -s /usr/bin/env link"
        )
        await source.provider.snapshot("snap-1")
        await self.inside("echo later >> f; echo later > later; rm -r deep")
        branch = self.branch(source, "snap-1", into)
        await branch.prepare()
        self.assertEqual(await self.within("cat f deep/new; ls -A"), (
            "one\ntwo\nx\n.git\ndeep\nf\nlink\n"
        ))  # fmt: skip
        self.assertEqual((await self.within("readlink link; test -x deep/new")), "/usr/bin/env\n")
        self.assertEqual(
            (await self.within("git status --porcelain | sort")),
            " D gone\n M f\n?? deep/\n?? link\n",
        )
        await self.within("echo mine > mine; git -c user.name=a -c user.email=a@b commit -qam w")
        patch = await branch.delivery.patch()
        self.assertNotIn(b"later", patch.path.read_bytes())
        self.sh(f"git clone -q w c; cd c; git apply --index {patch.path}")
        self.assertEqual(self.sh("cat c/f c/deep/new c/mine; ls c"), (
            "one\ntwo\nx\nmine\ndeep\nf\nlink\nmine\n"
        ))  # fmt: skip
        # The source is as it was, and nothing is left in between.
        self.assertEqual(await self.inside("cat f later"), "one\ntwo\nlater\nlater\n")
        self.assertEqual([p.name for p in self.layout.base.glob("*branch*")], [])
        self.assertEqual([p.name for p in self.other.root.glob("view*")], [])
        if self.user is not None:
            owners = self.sh(f"find {self.other.workspace} -printf '%U\\n' | sort -u").split()
            self.assertEqual(owners, [str(self.user + 100)])

    async def test_copy(self) -> None:
        """From copies."""
        await self.runThrough("copy")

    async def test_git(self) -> None:
        """From commits beside the workspace, which do not have its own repository."""
        await self.runThrough("git", "git")

    async def test_overlay(self) -> None:
        """From a layer, in which what was removed stays removed."""
        if not canMountOverlay(self.directory):
            raise SkipTest("no overlay can be mounted here")
        await self.runThrough("overlay", "overlay")

    async def test_oneUser(self) -> None:
        """Where sessions have no users of their own."""
        self.user = None
        await self.runThrough("copy")

    async def test_viewThatIsLeft(self) -> None:
        """What a branch that was killed has mounted is gone with it; the source's files stay."""
        if not canMountOverlay(self.directory):
            raise SkipTest("no overlay can be mounted here")
        source = self.workspace("overlay", repo=self.origin())
        await source.prepare()
        self.addCleanup(source.provider.remove)
        await source.provider.snapshot("snap-1")
        branch = self.branch(source, "snap-1", "overlay")
        reading = self.otherCommands.reading(self.layout, self.user)
        view = await providerOf("overlay", reading).show("snap-1")
        self.assertTrue(view.is_mount())
        self.assertEqual(view.parent, self.other.root)
        await branch.provider.remove()
        self.assertFalse(view.is_mount())
        self.assertEqual(await self.inside("cat f"), "one\n")

    async def test_nothing(self) -> None:
        """Without a repository the patch has all that there is."""
        source = self.workspace()
        await source.prepare()
        await self.inside("echo a > a")
        await source.provider.snapshot("snap-1")
        await self.inside("echo b > b")
        branch = self.branch(source, "snap-1")
        await branch.prepare()
        await self.within("echo c > c")
        text = (await branch.delivery.patch()).path.read_text()
        self.assertIn("+++ b/a\n", text)
        self.assertIn("+++ b/c\n", text)
        self.assertNotIn("+++ b/b\n", text)

    async def test_upload(self) -> None:
        """From an archive: the patch is against what was in that."""
        uploads = self.directory / "uploads"
        uploads.mkdir()
        self.sh("echo a > a; tar -cf uploads/u a; chmod 755 uploads; rm a")
        python = commonPython(self.directory)
        if not python:
            missing("a Python of this version that every user may run", package="python3")
        repo = RepoSpec("upload", uploadPath="u")
        source = self.workspace(repo=repo, uploads=str(uploads), python=python)
        await source.prepare()
        await self.inside("echo early >> a")
        await source.provider.snapshot("snap-1")
        await self.inside("echo late >> a")
        branch = self.branch(source, "snap-1")
        await branch.prepare()
        await self.within("echo mine > mine")
        text = (await branch.delivery.patch()).path.read_text()
        self.assertIn("@@ -1 +1,2 @@\n a\n+early\n", text)
        self.assertIn("+++ b/mine\n", text)
        self.assertNotIn("late", text)

    async def test_gone(self) -> None:
        """What is not there any more is said; nothing of it is made up."""
        source = self.workspace(repo=self.origin())
        await source.prepare()
        for name in ("snap-1", "../workspace"):
            with self.assertRaisesRegex(WorkspaceFailed, "not here any more"):
                await self.branch(source, name).prepare()
            self.sh("rm -rf b")

    async def test_hostile(self) -> None:
        """
        A source that puts links in the places of a snapshot and of what it packs gives a
        branch nothing that it could not read itself.
        """
        if self.user is None:
            raise SkipTest("sessions have users of their own only as root")
        (self.directory / "secret").mkdir(mode=0o700)
        (self.directory / "secret" / "key").write_text("secret")
        source = self.workspace(repo=self.origin())
        await source.prepare()
        await self.inside(
            f"ln -s {self.directory}/secret ../snapshots/snap-1; mkdir ../snapshots/snap-2;"
            f"ln -s {self.directory}/secret ../base/branch-ses_branch;"
            f"ln -s {self.directory}/secret/key ../snapshots/snap-2/key"
        )
        for name in ("snap-1", "snap-2"):
            with self.assertRaises(WorkspaceFailed):
                await self.branch(source, name).prepare()
            found = self.sh("grep -r secret b/workspace || true")
            self.assertEqual(found, "")
            self.sh("rm -rf b")
