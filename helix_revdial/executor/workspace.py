# -*- test-case-name: tests.executor.test_workspace -*-
"""
The workspace of a session: from a repository, an archive or nothing to a patch, a
pushed branch, or a snapshot.

Who does what is the point of it (see L{helix_revdial.executor.commands}): the tunnel's
user fetches and pushes, since it has the credentials, from and into repositories that
no task has touched; the session's user reads and writes the workspace.  What goes from
the one to the other is whole: a tree that is given away, a bundle of commits.

The workspace itself is not changed by looking at it: a patch is made with an index and
objects of its own.  It is made against what the workspace began as, which the host
remembers, whatever the agent commits.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from twisted.internet.threads import deferToThreadPool

from helix_revdial.sessions.executor import RepoSpec, SnapshotSource

from .commands import CommandFailed, Commands
from .credentials import (
    CredentialUnusable,
    credentialFor,
    gitEnvironment,
    placeOf,
    removeFiles,
)
from .layout import Layout
from .record import Record, RecordUnusable, Terms, readRecord
from .snapshots import NoSuchSnapshot, Provider, providerOf

EMPTY_TREE: Final = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
"""What git calls a tree without files (SHA-1)."""

DELIVER_SECONDS = 300.0
"""How long a patch or a push may take."""

ARCHIVES: Final = str(Path(__file__).with_name("archives.py"))

_BRANCH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/@+-]{0,199}")
_COMMIT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/@+-]{0,199}")

_CALM = (
    "-c", "core.hooksPath=/dev/null",
    "-c", "core.fsmonitor=false",
    "-c", "gc.auto=0",
    "-c", "advice.detachedHead=false",
)  # fmt: skip
"""What git is told, whatever a repository says: to run nothing on the side."""


class WorkspaceFailed(Exception):
    """The workspace could not be made, or not be delivered; the text is for its owner."""


@dataclass(frozen=True, slots=True)
class PatchMade:
    """
    A patch.

    @ivar path: Where it is.
    @ivar size: Its bytes.
    @ivar sha256: Their digest, in hexadecimal.
    """

    path: Path
    size: int
    sha256: str


def copyAndDigest(source: Path, target: Path, limit: int) -> PatchMade:
    """
    Take over a file that somebody else has made.

    @raise OSError: It is no file, or larger than C{limit}.
    """
    digest = hashlib.sha256()
    size = 0
    draft = target.with_suffix(".new")
    number = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(number, "rb") as read:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise OSError("what git wrote is no file any more")
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as write:
            while piece := read.read(1024 * 1024):
                size += len(piece)
                if size > limit:
                    raise OSError(f"the patch is larger than {limit} bytes")
                digest.update(piece)
                write.write(piece)
    draft.rename(target)
    return PatchMade(target, size, digest.hexdigest())


def pushedTo(url: str, branch: str, onto: str | None) -> str:
    """
    Where people look at a branch that was pushed, or make a pull request of it.

    @param onto: The branch that it is for; C{None} for no pull request.
    """
    scheme, host, path = placeOf(url)
    name = path.strip("/").removesuffix(".git")
    branch = quote(branch, safe="/")
    site = host.partition(":")[0]
    if site == "github.com" or site.startswith("github."):
        base = f"https://{site}/{name}"
        if onto is None:
            return f"{base}/tree/{branch}"
        return f"{base}/compare/{quote(onto, safe='/')}...{branch}?expand=1"
    if site == "gitlab.com" or site.startswith("gitlab."):
        base = f"https://{site}/{name}/-"
        if onto is None:
            return f"{base}/tree/{branch}"
        source = f"merge_request%5Bsource_branch%5D={branch}"
        return f"{base}/merge_requests/new?{source}&merge_request%5Btarget_branch%5D={onto}"
    if site == "bitbucket.org":
        base = f"https://{site}/{name}"
        return (
            f"{base}/branch/{branch}"
            if onto is None
            else (f"{base}/pull-requests/new?source={branch}&dest={onto}")
        )
    return f"{scheme}://{host}{path}" if host else path


class Workspace:
    """
    Of one session.

    @ivar provider: What makes its snapshots.
    """

    def __init__(self, reactor: Any, record: Record, commands: Commands) -> None:
        """
        @param reactor: Its threads copy what is large.
        """
        self._reactor = reactor
        self._record = record
        self._terms: Terms = record.terms
        self._repo: RepoSpec = record.spec.repo
        self._commands = commands
        self._layout = commands.layout
        self.provider: Provider = providerOf(record.provider, commands)

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
        url = self._repo.url or ""
        argv = ["git", *_CALM, "clone", "--quiet", "--no-recurse-submodules"]
        if self._repo.branch:
            if _BRANCH.fullmatch(self._repo.branch) is None:
                raise WorkspaceFailed(f"{self._repo.branch[:100]!r} is no name of a branch")
            argv += ["--branch", self._repo.branch]
        self._own(self._record.tunnelUser)
        await self._remote([*argv, "--", url, str(self._layout.workspace)])
        if self._repo.commit:
            if _COMMIT.fullmatch(self._repo.commit) is None:
                raise WorkspaceFailed(f"{self._repo.commit[:100]!r} is no name of a commit")
            wanted = f"{self._repo.commit}^{{commit}}"
            await self._remote(
                ["git", *_CALM, "-C", str(self._layout.workspace), "checkout", "--quiet",
                 "--detach", wanted, "--"]
            )  # fmt: skip
        if self._record.user is not None:
            owner = f"{self._record.user}:{self._record.user}"
            await self._commands.run(
                ["chown", "-hR", owner, "--", str(self._layout.workspace)], by="host"
            )
        try:
            head = await self._git("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
            self._remember(head.decode().strip())
        except CommandFailed:
            # A repository without a commit.
            self._remember(EMPTY_TREE)

    def _own(self, user: int | None) -> None:
        if user is not None:
            os.chown(self._layout.workspace, user, user)

    async def _remote(self, argv: list[str]) -> bytes:
        """Run git where it has the credentials."""
        url = self._repo.url or ""
        scheme, _, _ = placeOf(url)
        if scheme not in self._terms.protocols:
            allowed = ", ".join(self._terms.protocols)
            raise WorkspaceFailed(f"this host takes repositories by {allowed}, not by {scheme}")
        tunnel = self._layout.tunnel
        credential = credentialFor(url, self._terms.credentials)
        try:
            environment = gitEnvironment(url, credential, tunnel, self._record.tunnelUser)
            environment |= {
                "GIT_TERMINAL_PROMPT": "0",
                "GIT_ASKPASS": "/bin/false",
                "SSH_ASKPASS": "/bin/false",
                "GIT_CONFIG_NOSYSTEM": "1",
                "GIT_ALLOW_PROTOCOL": ":".join(self._terms.protocols),
            }
            return await self._commands.run(
                argv,
                by="tunnel",
                environment=environment,
                deadline=self._terms.cloneSeconds,
            )
        finally:
            removeFiles(tunnel)

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
            await self._bring(reading, layout.base, self._own_repository.name, self._layout.base)
        elif provider.name == "git":
            # Its snapshots are without the repository that the agent works in.
            await self._bring(reading, layout.workspace, ".git", self._layout.workspace)
            if base != EMPTY_TREE:
                await self._git("update-ref", "--no-deref", "HEAD", base)
            await self._git("read-tree", base)
        self._remember(base)

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
            await self._git("init", "-q", "--bare", str(self._own_repository), bare=True)
            if self._repo.mode == "none":
                self._remember(EMPTY_TREE)
                return
            await self._git("add", "-A", "--", ".")
            self._remember((await self._git("write-tree")).decode().strip())
        except CommandFailed:
            if shutil.which("git") is not None:
                raise

    def _remember(self, base: str) -> None:
        (self._layout.private / "base").write_text(base)

    # Delivering it

    async def patch(self) -> PatchMade:
        """
        All that is different from what the workspace began as: commits, changes,
        files that are new.

        @raise WorkspaceFailed: There is no patch to be had.
        """
        try:
            base = (self._layout.private / "base").read_text()
        except OSError:
            raise WorkspaceFailed("the workspace was not made yet") from None
        written = self._layout.base / "patch"
        try:
            await self.provider.attach()
            environment = await self._indexed(base)
            written.unlink(missing_ok=True)
            await self._git(
                "diff", "--cached", "--binary", "--full-index", "--no-ext-diff",
                "--no-textconv", "--no-color", "--src-prefix=a/", "--dst-prefix=b/",
                f"--output={written}", base, "--",
                environment=environment,
                fileSize=self._terms.patchBytes,
            )  # fmt: skip
            made: PatchMade = await self._inThread(
                copyAndDigest, written, self._layout.patch, self._terms.patchBytes
            )
            return made
        except CommandFailed as error:
            raise WorkspaceFailed(f"there is no patch: {error}") from None
        except OSError as error:
            raise WorkspaceFailed(f"there is no patch: {error.strerror or error}") from None
        finally:
            written.unlink(missing_ok=True)

    async def _inThread(self, function: Any, *arguments: Any) -> Any:
        pool = self._reactor.getThreadPool()
        return await deferToThreadPool(self._reactor, pool, function, *arguments)

    async def _indexed(self, base: str) -> dict[str, str]:
        """
        Put the workspace as it is into an index of our own.

        @return: What git finds that index by.
        """
        objects = self._layout.base / "objects"
        index = self._layout.base / "index"
        environment = {
            "GIT_INDEX_FILE": str(index),
            "GIT_OBJECT_DIRECTORY": str(objects),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(self._repository / "objects"),
        }
        # Made as the session, whose directory it is.
        await self._commands.run(["mkdir", "-p", str(objects)])
        await self._commands.run(["rm", "-f", str(index), f"{index}.lock"])
        await self._git("read-tree", base, environment=environment)
        await self._git("add", "-A", "--ignore-errors", "--", ".", environment=environment)
        return environment

    async def push(self, session: str, target: str | None, asRequest: bool) -> str:
        """
        Push all that is different to a branch.

        @param session: Names the branch where no other name is given.
        @param target: The branch: to push to, or that a pull request is for.
        @param asRequest: Whether it is for a pull request.
        @return: Where it can be seen.
        @raise WorkspaceFailed: Nothing was pushed.
        """
        if self._repo.mode != "git" or self._repo.url is None:
            raise WorkspaceFailed("nothing was pushed: the workspace is no clone of a repository")
        branch = f"helix/{session}" if asRequest or target is None else target
        if _BRANCH.fullmatch(branch) is None:
            raise WorkspaceFailed(f"nothing was pushed: {branch[:100]!r} is no name of a branch")
        try:
            base = (self._layout.private / "base").read_text()
            await self.provider.attach()
            commit = await self._commit(base, session)
            await self._bundle(commit)
            repository = self._layout.tunnel / "push.git"
            bundle = self._layout.tunnel / "bundle"
            await self._commands.run(
                ["git", *_CALM, "init", "-q", "--bare", str(repository)], by="tunnel"
            )
            at = ["git", *_CALM, "-C", str(repository)]
            reference = "refs/heads/delivery"
            await self._commands.run(
                [*at, "fetch", "-q", str(bundle), f"{reference}:{reference}"],
                by="tunnel",
                deadline=DELIVER_SECONDS,
            )
            await self._remote(
                [*at, "push", "-q", "--", self._repo.url, f"{reference}:refs/heads/{branch}"]
            )
        except (CommandFailed, CredentialUnusable) as error:
            raise WorkspaceFailed(f"nothing was pushed: {error}") from None
        except OSError as error:
            raise WorkspaceFailed(f"nothing was pushed: {error.strerror}") from None
        return pushedTo(self._repo.url, branch, (target or "main") if asRequest else None)

    async def _commit(self, base: str, session: str) -> str:
        """What is to be pushed: the agent's own commits, and one for what it left over."""
        environment = await self._indexed(base)
        tree = (await self._git("write-tree", environment=environment)).decode().strip()
        try:
            head = (await self._git("rev-parse", "--verify", "HEAD^{commit}")).decode().strip()
            committed = (await self._git("rev-parse", "HEAD^{tree}")).decode().strip()
        except CommandFailed:
            head, committed = "", EMPTY_TREE
        if tree == committed:
            if head in ("", base):
                raise WorkspaceFailed("nothing was pushed: nothing was changed")
            return head
        author = {
            f"GIT_{role}_{part}": value
            for role in ("AUTHOR", "COMMITTER")
            for part, value in (("NAME", "helix_revdial"), ("EMAIL", "executor@localhost"))
        }
        parents = ["-p", head] if head else []
        title = (
            self._record.spec.prompt.strip().splitlines()[0][:72]
            if (self._record.spec.prompt.strip())
            else "Changes"
        )
        said = await self._git(
            "commit-tree", tree, *parents, "-m", f"{title}\n\nSession: {session}",
            environment={**environment, **author},
        )  # fmt: skip
        return said.decode().strip()

    async def _bundle(self, commit: str) -> None:
        """Hand the commits over to who pushes them."""
        scratch = self._layout.base / "delivery.git"
        made = self._layout.base / "bundle"
        own = {
            "GIT_DIR": str(scratch),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": ":".join(
                str(place / "objects") for place in (self._repository, self._layout.base)
            ),
        }
        await self._commands.run(["git", *_CALM, "init", "-q", "--bare", str(scratch)])
        for argv in (
            ["update-ref", "refs/heads/delivery", commit],
            ["bundle", "create", "--quiet", str(made), "refs/heads/delivery"],
        ):
            await self._commands.run(
                ["git", *_CALM, *argv], environment=own, deadline=DELIVER_SECONDS
            )
        bundle = self._layout.tunnel / "bundle"
        made.rename(bundle)
        if not stat.S_ISREG(os.lstat(bundle).st_mode):
            raise WorkspaceFailed("nothing was pushed: the bundle is no file")
        if self._record.tunnelUser is not None:
            os.chown(bundle, self._record.tunnelUser, self._record.tunnelUser)

    # Git

    @property
    def _own_repository(self) -> Path:
        return self._layout.base / "base.git"

    @property
    def _repository(self) -> Path:
        if self._repo.mode == "git":
            return self._layout.workspace / ".git"
        return self._own_repository

    async def _git(
        self,
        *arguments: str,
        bare: bool = False,
        environment: dict[str, str] | None = None,
        fileSize: int | None = None,
    ) -> bytes:
        """Run git on the workspace, as the session."""
        own = {"GIT_CONFIG_NOSYSTEM": "1", **(environment or {})}
        if not bare:
            own |= {"GIT_DIR": str(self._repository), "GIT_WORK_TREE": str(self._layout.workspace)}
        return await self._commands.run(
            ["git", *_CALM, *arguments],
            directory=str(self._layout.workspace),
            environment=own,
            deadline=DELIVER_SECONDS,
            fileSize=fileSize,
        )
