# -*- test-case-name: tests.executor.test_work_tree -*-
"""
A workspace as it is, in an index of our own: what a patch and a commit are made of.

The workspace and its repository are only read.  What they say of themselves decides what
belongs to the work (C{.gitignore}, C{.gitattributes}, what a sparse checkout left out), and
not how it is told: bytes are taken as they are (L{EXACT}).

  - A repository within the workspace, that the agent has made or fetched, is files like
    others: as a reference to a commit that only this host has, it would be lost.  A
    submodule is a reference.
  - What the session itself cannot read is left out, and is said to be.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from .checkout import Checkout
from .commands import CommandFailed

EXACT: Final = (
    "-c", "core.fileMode=true",
    "-c", "core.symlinks=true",
    "-c", "core.ignoreCase=false",
    "-c", "core.autocrlf=false",
    "-c", "core.safecrlf=false",
    "-c", "core.sparseCheckout=false",
    "-c", "core.splitIndex=false",
    "-c", "diff.suppressBlankEmpty=false",
)  # fmt: skip
"""What git is told, whatever the agent or its repository has set."""

NAMES = 64 * 1024 * 1024
"""Bytes of names of files that are read."""

_SUBMODULE = b"160000"


@dataclass(frozen=True)
class Indexed:
    """
    The workspace in an index.

    @ivar environment: What git finds it by.
    @ivar leftOut: What of it is missing, for its owner; empty where nothing is.
    """

    environment: dict[str, str]
    leftOut: str


class WorkTree:
    """
    Of one session.
    """

    def __init__(self, checkout: Checkout) -> None:
        self._checkout = checkout
        self._commands = checkout.commands
        self._layout = checkout.commands.layout

    async def index(self, base: str, objects: Path | None = None) -> Indexed:
        """
        Put the workspace into an index.

        @param base: What it began as.
        @param objects: Where its files are put; beside the repository by default.
        @raise CommandFailed: That cannot be.
        """
        index = self._layout.base / "index"
        objects = objects or self._layout.base / "objects"
        environment = {
            "GIT_INDEX_FILE": str(index),
            "GIT_OBJECT_DIRECTORY": str(objects),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": self._checkout.objects,
        }
        # Made as the session, whose directory it is.
        await self._commands.run(["mkdir", "-p", str(objects)])
        await self._commands.run(["rm", "-f", str(index), f"{index}.lock"])
        await self._git(environment, "read-tree", base)
        await self._leaveSparse(environment)
        inner = await self._repositories(environment)
        problems = [await self._add(environment, inner)]
        for place in inner:
            problems.append(await self._addInner(environment, place, inner))
        return Indexed(environment, next((each for each in problems if each), ""))

    async def _git(
        self, environment: dict[str, str], *arguments: str, standardInput: bytes = b""
    ) -> bytes:
        return await self._checkout.git(
            *EXACT,
            *arguments,
            environment=environment,
            standardInput=standardInput,
            outputLimit=NAMES,
        )

    async def _add(self, environment: dict[str, str], besides: Iterable[PurePosixPath]) -> str:
        """
        Add all files, but those of repositories within.

        @return: What git says of those that it cannot read; empty where it can read all.
        """
        paths = [b".", *(b":(exclude,literal)" + _bytes(place) for place in besides)]
        try:
            await self._git(
                environment,
                "add", "-A", "--ignore-errors", "--pathspec-from-file=-", "--pathspec-file-nul",
                standardInput=b"".join(path + b"\0" for path in paths),
            )  # fmt: skip
        except CommandFailed as error:
            if error.exitCode != 1:
                raise
            return str(error)
        return ""

    async def _addInner(
        self, environment: dict[str, str], place: PurePosixPath, all_: Iterable[PurePosixPath]
    ) -> str:
        """Add the files of a repository within, as if it were a directory."""
        index = self._layout.base / "index.inner"
        await self._commands.run(["rm", "-f", str(index), f"{index}.lock"])
        own = {
            **environment,
            "GIT_INDEX_FILE": str(index),
            "GIT_WORK_TREE": str(self._layout.workspace / place),
        }
        inner = [other.relative_to(place) for other in all_ if place in other.parents]
        problem = await self._add(own, inner)
        tree = (await self._git(own, "write-tree")).decode().strip()
        await self._git(environment, "read-tree", f"--prefix={place}/", tree)
        return problem

    async def _leaveSparse(self, environment: dict[str, str]) -> None:
        """What the agent has not checked out was not removed."""
        try:
            said = await self._checkout.git("config", "--bool", "core.sparseCheckout")
        except CommandFailed:
            return
        if said.strip() != b"true":
            return
        # As the workspace's own index has them: "S", of those that are skipped.
        listed = await self._git({}, "ls-files", "-t", "-z")
        skipped = [line[2:] for line in listed.split(b"\0") if line.startswith(b"S ")]
        known = set((await self._git(environment, "ls-files", "-z")).split(b"\0"))
        names = b"".join(name + b"\0" for name in skipped if name in known)
        if names:
            await self._git(
                environment, "update-index", "--skip-worktree", "-z", "--stdin", standardInput=names
            )

    async def _repositories(self, environment: dict[str, str]) -> list[PurePosixPath]:
        """
        The directories of repositories within that are files like others: no submodules,
        not ignored, and nothing that was there already; the outer ones first.
        """
        found = await self._commands.run(
            ["find", ".", "-mindepth", "2", "-name", ".git", "-prune", "-printf", "%h\\0"],
            directory=str(self._layout.workspace),
            outputLimit=NAMES,
            tolerant=True,
        )
        places = sorted({_path(name) for name in found.split(b"\0") if name})
        if not places:
            return []
        known = (await self._git(environment, "ls-files", "-s", "-z")).split(b"\0")
        modules = await self._declared()
        tracked: set[PurePosixPath] = set()
        for line in known:
            path = _path(line.partition(b"\t")[2])
            if line.startswith(_SUBMODULE):
                modules.add(path)
            elif line:
                tracked.update(path.parents)
        places = [place for place in places if not modules & {place, *place.parents}]
        ignored = await self._ignored(environment, places)
        return [
            place
            for place in places
            if place not in tracked and not ignored & {place, *place.parents}
        ]

    async def _ignored(
        self, environment: dict[str, str], places: list[PurePosixPath]
    ) -> set[PurePosixPath]:
        names = b"".join(_bytes(place) + b"\0" for place in places)
        try:
            said = await self._git(
                environment, "check-ignore", "-z", "--stdin", standardInput=names
            )
        except CommandFailed as error:
            # It says so when none is.
            if error.exitCode != 1:
                raise
            return set()
        return {_path(name) for name in said.split(b"\0") if name}

    async def _declared(self) -> set[PurePosixPath]:
        """The submodules that the workspace has by now, as it says itself."""
        try:
            said = await self._checkout.git(
                "config", "-z", "-f", ".gitmodules", "--get-regexp", r"^submodule\..*\.path$"
            )
        except CommandFailed:
            return set()
        return {_path(line.partition(b"\n")[2]) for line in said.split(b"\0") if line}


def _path(name: bytes) -> PurePosixPath:
    return PurePosixPath(name.decode("utf-8", "surrogateescape"))


def _bytes(path: PurePosixPath) -> bytes:
    return str(path).encode("utf-8", "surrogateescape")
