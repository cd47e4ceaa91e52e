# -*- test-case-name: tests.executor.test_snapshots -*-
"""
How a workspace is kept as it is at a moment, and made so again.

A provider makes the workspace's directory in its own way, and then snapshots of it:

  - C{btrfs}: the workspace is a subvolume, a snapshot a read-only one that shares all;
  - C{overlay}: the workspace is an overlay over what it began as; a snapshot is a
    copy of the layer that holds the changes;
  - C{copy}: a copy of all, which shares blocks where the file system can;
  - C{git}: a commit in a repository beside the workspace; what the workspace's own
    C{.gitignore} leaves out is not kept.

Nothing of the session runs during a snapshot or a restoration: whoever asks for one
has frozen the task, or it has ended.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol as Shape

from .commands import CommandFailed, Commands
from .filesystems import overlayMount

NAME = re.compile(r"snap-[A-Za-z0-9]{1,40}")
"""What a snapshot is called."""

COPY_SECONDS = 600.0
"""How long a copy may take."""


_VIEW = "view-"


class NoSuchSnapshot(Exception):
    """There is no snapshot of that name."""


class Provider(Shape):
    """
    Makes snapshots of one workspace.

    @ivar name: What it is called.
    """

    name: str

    async def create(self) -> None:
        """Make the workspace's directory, empty, as the session's."""

    async def begun(self) -> None:
        """What is in the workspace now is what it begins with."""

    async def attach(self) -> None:
        """See to it that the workspace is there, after a restart."""

    async def snapshot(self, name: str) -> str | None:
        """
        Keep the workspace.

        @param name: As L{NAME} has it.
        @return: Where it can be looked at.
        """

    async def restore(self, name: str) -> None:
        """
        Make the workspace what it was.

        @raise NoSuchSnapshot: There is none of that name.
        """

    async def show(self, name: str) -> Path:
        """
        Have the files of a snapshot in a directory that its session can read.

        @raise NoSuchSnapshot: There is none of that name.
        """

    async def hide(self, name: str) -> None:
        """Undo L{show}."""

    async def remove(self) -> None:
        """Take away what the removal of a directory would not."""


class _Files:
    """What the providers have in common."""

    def __init__(self, commands: Commands) -> None:
        self.commands = commands
        self.layout = commands.layout
        self.user = commands.confinement.user

    def own(self, path: Path) -> None:
        os.chmod(path, 0o700)
        if self.user is not None:
            os.chown(path, self.user, self.user)

    def kept(self, name: str) -> Path:
        path = self.layout.snapshots / name
        if NAME.fullmatch(name) is None or not path.is_dir() or path.is_symlink():
            raise NoSuchSnapshot(f"there is no snapshot {name[:60]!r}")
        return path

    async def begun(self) -> None:
        """Nothing to do: all that is in it is the workspace's own."""

    async def attach(self) -> None:
        """Nothing to do: a directory stays."""

    async def show(self, name: str) -> Path:
        """It is there."""
        return self.kept(name)

    async def hide(self, name: str) -> None:
        """Nothing to do: it was there."""

    async def remove(self) -> None:
        """
        It is all plain files, but for views of other sessions' snapshots: who was killed
        while he looked at one has left it.
        """
        for view in self.commands.scratch.glob(f"{_VIEW}*"):
            while view.is_mount():
                await self.commands.run(["umount", str(view)], by="host")


class CopyProvider(_Files):
    """Copies of all files."""

    name = "copy"

    async def create(self) -> None:
        self.layout.workspace.mkdir(exist_ok=True)
        self.own(self.layout.workspace)

    async def snapshot(self, name: str) -> str | None:
        place = self.layout.snapshots / name
        await self._copy(self.layout.workspace, place)
        return str(place)

    async def restore(self, name: str) -> None:
        kept = self.kept(name)
        await self._empty(self.layout.workspace)
        await self._copy(kept, self.layout.workspace)

    async def _copy(self, source: Path, place: Path) -> None:
        argv = ["cp", "-a", "--reflink=auto", "-T", "--", str(source), str(place)]
        await self.commands.run(argv, deadline=COPY_SECONDS)

    async def _empty(self, place: Path) -> None:
        argv = ["find", str(place), "-mindepth", "1", "-maxdepth", "1"]
        argv += ["-exec", "rm", "-rf", "--", "{}", "+"]
        await self.commands.run(argv, deadline=COPY_SECONDS)


class BtrfsProvider(_Files):
    """Subvolumes."""

    name = "btrfs"

    async def create(self) -> None:
        if not self.layout.workspace.exists():
            await self._btrfs("create", str(self.layout.workspace))
        self.own(self.layout.workspace)

    async def snapshot(self, name: str) -> str | None:
        place = self.layout.snapshots / name
        await self._btrfs("snapshot", "-r", str(self.layout.workspace), str(place))
        return str(place)

    async def restore(self, name: str) -> None:
        kept = self.kept(name)
        workspace = self.layout.workspace
        before = self.layout.root / "workspace.before"
        if not before.exists():
            workspace.rename(before)
        await self._btrfs("snapshot", str(kept), str(workspace))
        await self._btrfs("delete", str(before))

    async def remove(self) -> None:
        await super().remove()
        places = [self.layout.workspace, self.layout.root / "workspace.before"]
        if self.layout.snapshots.is_dir():
            places += sorted(self.layout.snapshots.iterdir())
        for place in places:
            if place.is_dir() and not place.is_symlink():
                try:
                    await self._btrfs("delete", str(place))
                except CommandFailed:
                    # A directory that was never a subvolume goes with the others.
                    continue

    async def _btrfs(self, *arguments: str) -> None:
        await self.commands.run(["btrfs", "subvolume", *arguments], by="host")


class OverlayProvider(_Files):
    """An overlay, whose changes are copied."""

    name = "overlay"

    @property
    def _lower(self) -> Path:
        return self.layout.layers / "lower"

    @property
    def _upper(self) -> Path:
        return self.layout.layers / "upper"

    @property
    def _work(self) -> Path:
        return self.layout.layers / "work"

    async def create(self) -> None:
        for place in (self.layout.workspace, self._lower, self._upper):
            place.mkdir(exist_ok=True)
            self.own(place)
        self._work.mkdir(exist_ok=True)

    async def begun(self) -> None:
        """What was put into the workspace becomes the layer below."""
        if self.layout.workspace.is_mount():
            return
        self._lower.rmdir()
        self.layout.workspace.rename(self._lower)
        self.layout.workspace.mkdir()
        self.own(self.layout.workspace)
        await self.attach()

    async def attach(self) -> None:
        if self._upper.exists() and not self.layout.workspace.is_mount():
            argv = overlayMount(self._lower, self._upper, self._work, self.layout.workspace)
            await self.commands.run(argv, by="host")

    async def detach(self) -> None:
        while self.layout.workspace.is_mount():
            await self.commands.run(["umount", str(self.layout.workspace)], by="host")

    async def snapshot(self, name: str) -> str | None:
        place = self.layout.snapshots / name
        await self._copy(self._upper, place)
        return None

    async def restore(self, name: str) -> None:
        kept = self.kept(name)
        await self.detach()
        for place in (self._upper, self._work):
            await self.commands.run(["rm", "-rf", "--", str(place)], by="host")
        self._work.mkdir()
        await self._copy(kept, self._upper)
        await self.attach()

    async def show(self, name: str) -> Path:
        kept = self.kept(name)
        view = self._view(name)
        view.mkdir()
        options = f"ro,nosuid,nodev,lowerdir={kept}:{self._lower}"
        argv = ["mount", "-t", "overlay", "overlay", "-o", options, str(view)]
        await self.commands.run(argv, by="host")
        return view

    async def hide(self, name: str) -> None:
        view = self._view(name)
        if view.is_mount():
            await self.commands.run(["umount", str(view)], by="host")
        if view.is_dir():
            view.rmdir()

    def _view(self, name: str) -> Path:
        # Outside of the source's own directory, which may be removed at any time.
        return self.commands.scratch / f"{_VIEW}{name}"

    async def _copy(self, source: Path, place: Path) -> None:
        # As the host: what stands for a file that was removed is a device.
        argv = ["cp", "-a", "--reflink=auto", "-T", "--", str(source), str(place)]
        await self.commands.run(argv, by="host", deadline=COPY_SECONDS)

    async def remove(self) -> None:
        await super().remove()
        await self.detach()


class GitProvider(_Files):
    """Commits in a repository beside the workspace."""

    name = "git"

    async def create(self) -> None:
        self.layout.workspace.mkdir(exist_ok=True)
        self.own(self.layout.workspace)

    async def snapshot(self, name: str) -> str | None:
        place = self.layout.snapshots / name
        await self._git("init", "-q", "--bare", str(self._repository), work=False)
        await self._git("add", "-A", "--", ".")
        tree = (await self._git("write-tree")).decode().strip()
        await self._git("update-ref", f"refs/snapshots/{name}", await self._commit(tree))
        place.mkdir()
        self.own(place)
        return None

    async def restore(self, name: str) -> None:
        self.kept(name)
        reference = f"refs/snapshots/{name}"
        # The index says what of the workspace is known; what is not in the snapshot goes.
        await self._git("add", "-A", "--", ".")
        await self._git("read-tree", "--reset", "-u", reference)

    async def show(self, name: str) -> Path:
        self.kept(name)
        view = self._view(name)
        await self.commands.run(["mkdir", "--", str(view)])
        environment = {"GIT_WORK_TREE": str(view), "GIT_INDEX_FILE": f"{view}.index"}
        await self._git("read-tree", f"refs/snapshots/{name}", more=environment)
        await self._git("checkout-index", "--all", "--force", more=environment)
        return view

    async def hide(self, name: str) -> None:
        view = self._view(name)
        await self.commands.run(["rm", "-rf", "--", str(view), f"{view}.index"])

    def _view(self, name: str) -> Path:
        return self.layout.base / f"view-{self.commands.confinement.session}-{name}"

    @property
    def _repository(self) -> Path:
        return self.layout.base / "snapshots.git"

    async def _commit(self, tree: str) -> str:
        said = await self._git("commit-tree", "-m", "snapshot", tree)
        return said.decode().strip()

    async def _git(
        self, *arguments: str, work: bool = True, more: Mapping[str, str] | None = None
    ) -> bytes:
        environment = {
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": "helix_revdial",
            "GIT_AUTHOR_EMAIL": "executor@localhost",
            "GIT_COMMITTER_NAME": "helix_revdial",
            "GIT_COMMITTER_EMAIL": "executor@localhost",
        }
        if work:
            environment["GIT_DIR"] = str(self._repository)
            environment["GIT_WORK_TREE"] = str(self.layout.workspace)
        environment |= more or {}
        return await self.commands.run(
            ["git", *arguments],
            directory=str(self.layout.workspace),
            environment=environment,
            deadline=COPY_SECONDS,
        )


_PROVIDERS: dict[str, type[CopyProvider | BtrfsProvider | OverlayProvider | GitProvider]] = {
    each.name: each for each in (CopyProvider, BtrfsProvider, OverlayProvider, GitProvider)
}


def providerOf(name: str, commands: Commands) -> Provider:
    """The provider of that name, for the workspace of a session."""
    return _PROVIDERS[name](commands)
