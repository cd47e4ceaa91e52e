"""Snapshots of real workspaces, by every provider that this machine has."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from twisted.trial.unittest import SkipTest

from helix_revdial.executor.filesystems import BTRFS, canMountOverlay, detect, magicOf
from helix_revdial.executor.snapshots import NoSuchSnapshot
from tests.needs import needsProgram

from .workspaces import WorkspaceCase


class SnapshotTests(WorkspaceCase):
    async def runThrough(self, provider: str, below: Path | None = None) -> None:
        """Two snapshots of two states; each comes back whole, whatever happened since."""
        workspace = self.workspace(provider, below=below)
        await workspace.prepare()
        self.addCleanup(workspace.provider.remove)
        await self.inside(
            "mkdir -p deep/er; echo one > deep/er/a; echo gone > gone; ln -s deep link; "
            "chmod 755 deep/er/a"
        )
        await workspace.provider.snapshot("snap-1")
        await self.inside("echo two > deep/er/a; rm gone; echo new > new; rm -r link")
        await workspace.provider.snapshot("snap-2")
        await self.inside("rm -r deep new; echo other > other")
        look = "find . -path ./.git -prune -o -type f -print | sort | xargs grep -H ."
        await workspace.provider.restore("snap-1")
        self.assertEqual(await self.inside(look), "./deep/er/a:one\n./gone:gone\n")
        self.assertEqual((await self.inside("readlink link")).strip(), "deep")
        await self.inside("test -x deep/er/a; echo more >> deep/er/a")
        await workspace.provider.restore("snap-2")
        self.assertEqual(await self.inside(look), "./deep/er/a:two\n./new:new\n")
        with self.assertRaises(NoSuchSnapshot):
            await workspace.provider.restore("snap-3")
        with self.assertRaises(NoSuchSnapshot):
            await workspace.provider.restore("../s")
        if self.user is not None:
            self.assertEqual(self.layout.workspace.stat().st_uid, self.user)

    async def test_copy(self) -> None:
        """Copies."""
        await self.runThrough("copy")

    @needsProgram("git", package="git")
    async def test_git(self) -> None:
        """Commits beside the workspace."""
        await self.runThrough("git")

    async def test_overlay(self) -> None:
        """The layer of an overlay; what was removed stays removed."""
        if not canMountOverlay(self.directory):
            raise SkipTest("no overlay can be mounted here")
        await self.runThrough("overlay")
        self.assertTrue(self.layout.workspace.is_mount())

    @needsProgram("mkfs.btrfs", package="btrfs-progs")
    async def test_btrfs(self) -> None:
        """Subvolumes, on a file system in a file."""
        place = self.btrfs()
        self.assertEqual(magicOf(place), BTRFS)
        found = detect(place)
        self.assertEqual(found.snapshots[0], "btrfs")
        self.assertTrue(found.reflink)
        await self.runThrough("btrfs", place)

    def btrfs(self) -> Path:
        if os.geteuid() != 0:
            raise SkipTest("only root mounts file systems")
        image, place = self.directory / "image", self.directory / "b"
        place.mkdir()
        with image.open("wb") as file:
            file.truncate(256 * 1024 * 1024)
        self.sh(f"mkfs.btrfs -q {image}")
        done = subprocess.run(["mount", "-o", "loop", str(image), str(place)], capture_output=True)
        if done.returncode != 0:
            raise SkipTest(f"this machine cannot mount btrfs: {done.stderr.decode()}")
        place.chmod(0o711)
        self.addCleanup(subprocess.run, ["umount", str(place)])
        return place


class DetectTests(WorkspaceCase):
    def test_choose(self) -> None:
        """What is preferred and there is; a copy where nothing that is preferred is."""
        found = detect(self.directory)
        self.assertIn("copy", found.snapshots)
        self.assertEqual(found.choose([]), found.snapshots[0])
        self.assertEqual(found.choose(["zfs", "copy"]), "copy")
        self.assertEqual(found.choose(["zfs"]), "copy")
        self.assertEqual(list(self.directory.iterdir()), [])

    def test_noOverlay(self) -> None:
        """A kernel without overlays is asked for none."""
        kinds = self.directory / "filesystems"
        kinds.write_text("nodev\tproc\n\text4\n")
        self.assertFalse(canMountOverlay(self.directory, kinds))
