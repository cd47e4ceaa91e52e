# -*- test-case-name: tests.executor.test_workspace -*-
"""
The workspace of a session, made from a repository, an archive, a snapshot or nothing.

What comes from the user that fetches to the session's, or from another session, is whole:
a tree that is given away, an archive that is unpacked.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from pathlib import Path
from typing import Any, Final

from helix_revdial.sessions.branch_names import branchProblem
from helix_revdial.sessions.executor import RepoSpec, SnapshotSource

from .checkout import CALM, EMPTY_TREE, Checkout, WorkspaceFailed
from .commands import CommandFailed, Commands
from .credentials import CredentialUnusable
from .delivery import Delivery
from .layout import Layout
from .record import Record, RecordUnusable, Terms, readRecord
from .snapshots import NoSuchSnapshot, Provider, providerOf
from .work_tree import WorkTree

ARCHIVES: Final = str(Path(__file__).with_name("archives.py"))

_COMMIT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/@+-]{0,199}")
_WHOLE = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


class Workspace:
    """
    Of one session.

    @ivar provider: What makes its snapshots.
    @ivar delivery: What becomes of the work in it.
    """

    def __init__(self, reactor: Any, record: Record, commands: Commands) -> None:
        """
        @param reactor: Its threads copy what is large.
        """
        self._record = record
        self._terms: Terms = record.terms
        self._repo: RepoSpec = record.spec.repo
        self._commands = commands
        self._layout = commands.layout
        self._checkout = Checkout(record, commands)
        self.provider: Provider = providerOf(record.provider, commands)
        self.delivery = Delivery(reactor, record, self._checkout, self.provider)

    # Making it

    async def prepare(self) -> None:
        """
        Make the workspace.

        @raise WorkspaceFailed: It could not be made.
        """
        try:
            await self.provider.create()
            source = self._record.spec.fromSnapshot
            if source is not None:
                await self._branch(source)
            elif self._repo.mode == "git":
                await self._clone()
            elif self._repo.mode == "upload":
                await self._unpack()
            if source is None and self._repo.mode != "git":
                await self._begin()
            await self.provider.begun()
        except (CommandFailed, CredentialUnusable) as error:
            raise WorkspaceFailed(f"the workspace could not be made: {error}") from None
        except OSError as error:
            raise WorkspaceFailed(f"the workspace could not be made: {error.strerror}") from None

    async def _clone(self) -> None:
        self._own(self._record.tunnelUser)
        await self._fetch(self._repo.url or "", self._repo.branch)
        if self._repo.commit:
            await self._checkOut(self._repo.commit)
        if self._record.user is not None:
            owner = f"{self._record.user}:{self._record.user}"
            await self._commands.run(
                ["chown", "-hR", owner, "--", str(self._layout.workspace)], by="host"
            )
        try:
            head = await self._checkout.git("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
            self._checkout.remember(head.decode().strip())
        except CommandFailed:
            # A repository without a commit.
            self._checkout.remember(EMPTY_TREE)
        await self._checkout.keep()

    async def _fetch(self, url: str, branch: str | None) -> None:
        argv = ["git", *CALM, "clone", "--quiet", "--no-recurse-submodules"]
        into = ["--", url, str(self._layout.workspace)]
        if not branch:
            await self._checkout.remote([*argv, *into])
            return
        if branchProblem(branch):
            raise WorkspaceFailed(f"{branch[:100]!r} is no name of a branch")
        for prefix in ("refs/heads/", "refs/tags/"):
            branch = branch.removeprefix(prefix)
        try:
            await self._checkout.remote([*argv, "--branch", branch, *into])
        except CommandFailed as error:
            if error.exitCode is None or await self._checkout.remote(
                ["git", "ls-remote", "--", url]
            ):
                raise
            # There is nothing yet: the branch begins here.
            await self._checkout.remote([*argv, *into])
            at = ["git", *CALM, "-C", str(self._layout.workspace)]
            await self._commands.run(
                [*at, "symbolic-ref", "HEAD", f"refs/heads/{branch}"], by="tunnel"
            )

    async def _checkOut(self, commit: str) -> None:
        if _COMMIT.fullmatch(commit) is None:
            raise WorkspaceFailed(f"{commit[:100]!r} is no name of a commit")
        at = ["git", *CALM, "-C", str(self._layout.workspace)]
        argv = [*at, "checkout", "--quiet", "--detach", f"{commit}^{{commit}}", "--"]
        try:
            await self._checkout.remote(argv)
        except CommandFailed:
            if _WHOLE.fullmatch(commit) is None:
                raise
            # On no branch, as those of pull requests are: hosts give it to who knows its name.
            await self._checkout.remote([*at, "fetch", "--quiet", "origin", commit])
            await self._checkout.remote(argv)

    def _own(self, user: int | None) -> None:
        if user is not None:
            os.chown(self._layout.workspace, user, user)

    async def _unpack(self) -> None:
        uploads, wanted = self._terms.uploads, self._repo.uploadPath or ""
        if uploads is None or not wanted:
            raise WorkspaceFailed("no archive was uploaded to this host")
        source = Path(uploads, wanted)
        if not self._isUpload(source, Path(uploads)):
            raise WorkspaceFailed(f"no archive {wanted[:100]!r} was uploaded to this host")
        place = self._layout.base / "archive"
        shutil.move(source, place)
        if self._record.user is not None:
            os.chown(place, self._record.user, self._record.user)
        argv = [self._terms.python, "-I", "-S", ARCHIVES, str(place), str(self._layout.workspace)]
        await self._commands.run(argv, deadline=self._terms.cloneSeconds)
        place.unlink()

    @staticmethod
    def _isUpload(source: Path, uploads: Path) -> bool:
        return source.parent == uploads and source.is_file() and not source.is_symlink()

    async def _branch(self, source: SnapshotSource) -> None:
        """
        Begin with what the workspace of another session was.

        What that one began with is what this one begins with, too: a patch has what was
        done there up to the snapshot, and what is done here.
        """
        layout = Layout(self._layout.root.parent / source.session)
        gone = f"the snapshot {source.snapshot[:60]} of {source.session[:60]} is not here any more"
        try:
            record = readRecord(layout)
            base = (layout.private / "base").read_text()
        except (RecordUnusable, OSError):
            raise WorkspaceFailed(gone) from None
        reading = self._commands.reading(layout, record.user)
        provider = providerOf(record.provider, reading)
        try:
            try:
                shown = await provider.show(source.snapshot)
                await self._bring(reading, shown, ".", self._layout.workspace)
            finally:
                await provider.hide(source.snapshot)
        except NoSuchSnapshot:
            raise WorkspaceFailed(gone) from None
        if self._repo.mode != "git":
            await self._bring(
                reading, layout.base, self._checkout.ownRepository.name, self._layout.base
            )
        elif provider.name == "git":
            # Its snapshots are without the repository that the agent works in.
            await self._bring(reading, layout.workspace, ".git", self._layout.workspace)
            if base != EMPTY_TREE:
                await self._checkout.git("update-ref", "--no-deref", "HEAD", base)
            await self._checkout.git("read-tree", base)
        if self._repo.mode == "git":
            await self._checkout.keep()
        self._checkout.remember(base)

    async def _bring(self, reading: Commands, place: Path, member: str, target: Path) -> None:
        """
        Copy files of another session: it packs them, we unpack them, each as itself.

        @param reading: Runs programs as the other session.
        @param place: A directory of the other session's, and C{member}, what of it.
        @param target: A directory of our own.
        """
        made = reading.layout.base / f"branch-{self._record.spec.session}"
        archive = self._layout.base / "archive"
        try:
            pack = ["tar", "-c", "--exclude=./.git/*.lock", "--exclude=.git/*.lock"]
            await reading.run(
                [*pack, "-f", str(made), "-C", str(place), "--", member],
                deadline=self._terms.cloneSeconds,
            )
            self._take(made, archive)
            unpack = ["tar", "-x", "-p", "--no-same-owner", "--no-overwrite-dir"]
            await self._commands.run(
                [*unpack, "-f", str(archive), "-C", str(target)],
                deadline=self._terms.cloneSeconds,
            )
        finally:
            archive.unlink(missing_ok=True)
            made.unlink(missing_ok=True)

    def _take(self, made: Path, place: Path) -> None:
        """Make a file that another session has made our own; it may be anything."""
        made.rename(place)
        number = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            found = os.fstat(number)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                raise WorkspaceFailed("the workspace could not be made: what was packed is no file")
            if self._record.user is not None:
                os.fchown(number, self._record.user, self._record.user)
        finally:
            os.close(number)

    async def _begin(self) -> None:
        """Remember what a workspace without a repository begins with."""
        try:
            await self._checkout.git(
                "init", "-q", "--bare", str(self._checkout.ownRepository), bare=True
            )
            if self._repo.mode == "none":
                self._checkout.remember(EMPTY_TREE)
                return
            own = self._checkout.ownRepository / "objects"
            indexed = await WorkTree(self._checkout).index(EMPTY_TREE, own)
            tree = await self._checkout.git("write-tree", environment=indexed.environment)
            self._checkout.remember(tree.decode().strip())
        except CommandFailed:
            if shutil.which("git") is not None:
                raise
