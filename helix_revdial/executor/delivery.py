# -*- test-case-name: tests.executor.test_workspace -*-
"""
What becomes of a session's work: a patch, or a branch that is pushed.

The workspace itself is not changed by looking at it: a patch is made with an index and
objects of its own.  It is made against what the workspace began as, which the host
remembers, whatever the agent commits.  What goes from the session's user to the one
who pushes is whole: a bundle of commits.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from twisted.internet.defer import DeferredLock
from twisted.internet.threads import deferToThreadPool

from helix_revdial.sessions.branch_names import branchProblem

from .checkout import CALM, EMPTY_TREE, GIT_SECONDS, Checkout, WorkspaceFailed
from .commands import CommandFailed
from .credentials import CredentialUnusable, placeOf
from .record import Record
from .snapshots import Provider
from .work_tree import EXACT, WorkTree

PATCH = (
    "--binary", "--full-index", "--unified=3", "--inter-hunk-context=0", "--find-renames",
    "--no-ext-diff", "--no-textconv", "--no-color", "--no-relative", "-O/dev/null",
    "--submodule=short", "--ignore-submodules=none", "--ws-error-highlight=none",
    "--src-prefix=a/", "--dst-prefix=b/",
)  # fmt: skip
"""How a patch is written, whatever the agent has set: so that it can be applied."""


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
        return f"{base}/merge_requests/new?{source}&merge_request%5Btarget_branch%5D={quote(onto)}"
    if site == "bitbucket.org":
        base = f"https://{site}/{name}"
        return (
            f"{base}/branch/{branch}"
            if onto is None
            else (f"{base}/pull-requests/new?source={branch}&dest={quote(onto)}")
        )
    return f"{scheme}://{host}{path}" if host else path


class Delivery:
    """
    Of one session.

    @ivar leftOut: What of the workspace was not in the last delivery, and why; empty
        where nothing was.
    """

    def __init__(
        self, reactor: Any, record: Record, checkout: Checkout, provider: Provider
    ) -> None:
        """
        @param reactor: Its threads copy what is large.
        @param provider: Sees to it that the workspace is there.
        """
        self._reactor = reactor
        self._record = record
        self._terms = record.terms
        self._repo = checkout.repo
        self._checkout = checkout
        self._commands = checkout.commands
        self._layout = checkout.commands.layout
        self._provider = provider
        self._workTree = WorkTree(checkout)
        self.leftOut = ""
        # There is one index, and one place for what is made of it.
        self._turn = DeferredLock()

    async def patch(self) -> PatchMade:
        """
        All that is different from what the workspace began as: commits, changes,
        files that are new.

        @raise WorkspaceFailed: There is no patch to be had.
        """
        try:
            base = self._checkout.base
        except OSError:
            raise WorkspaceFailed("the workspace was not made yet") from None
        await self._turn.acquire()
        try:
            return await self._patch(base)
        finally:
            self._turn.release()

    async def _patch(self, base: str) -> PatchMade:
        written = self._layout.base / "patch"
        try:
            await self._provider.attach()
            environment = await self._indexed(base)
            written.unlink(missing_ok=True)
            await self._checkout.git(
                *EXACT, "diff", "--cached", *PATCH, f"--output={written}", base, "--",
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
        """Put the workspace into an index; what git finds that by."""
        indexed = await self._workTree.index(base)
        self.leftOut = indexed.leftOut
        return indexed.environment

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
        if branchProblem(branch):
            raise WorkspaceFailed(f"nothing was pushed: {branch[:100]!r} is no name of a branch")
        try:
            base = self._checkout.base
            await self._turn.acquire()
            try:
                await self._provider.attach()
                await self._bundle(await self._commit(base, session))
            finally:
                self._turn.release()
            repository = self._layout.tunnel / "push.git"
            bundle = self._layout.tunnel / "bundle"
            await self._commands.run(
                ["git", *CALM, "init", "-q", "--bare", str(repository)], by="tunnel"
            )
            at = ["git", *CALM, "-C", str(repository)]
            reference = "refs/heads/delivery"
            await self._commands.run(
                [*at, "fetch", "-q", str(bundle), f"{reference}:{reference}"],
                by="tunnel",
                deadline=GIT_SECONDS,
            )
            await self._checkout.remote(
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
        tree = (await self._checkout.git("write-tree", environment=environment)).decode().strip()
        head, committed = "", EMPTY_TREE
        # Without a commit of its own any more, the workspace goes on from where it began.
        for name in ("HEAD", base):
            try:
                said = await self._checkout.git(
                    "rev-parse", f"{name}^{{commit}}", f"{name}^{{tree}}",
                    environment=environment,
                )  # fmt: skip
            except CommandFailed:
                continue
            head, committed = said.decode().split()
            break
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
        said = await self._checkout.git(
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
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": (
                f"{self._checkout.objects}:{self._layout.base / 'objects'}"
            ),
        }
        await self._commands.run(["git", *CALM, "init", "-q", "--bare", str(scratch)])
        for argv in (
            ["update-ref", "refs/heads/delivery", commit],
            ["bundle", "create", "--quiet", str(made), "refs/heads/delivery"],
        ):
            await self._commands.run(["git", *CALM, *argv], environment=own, deadline=GIT_SECONDS)
        bundle = self._layout.tunnel / "bundle"
        made.rename(bundle)
        if not stat.S_ISREG(os.lstat(bundle).st_mode):
            raise WorkspaceFailed("nothing was pushed: the bundle is no file")
        if self._record.tunnelUser is not None:
            os.chown(bundle, self._record.tunnelUser, self._record.tunnelUser)
