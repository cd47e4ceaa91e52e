# -*- test-case-name: tests.executor.test_workspace -*-
"""
Git on a session's workspace: in whose name, in which repository, and by what
credentials.

Who does what is the point of it (see L{helix_revdial.executor.commands}): the tunnel's
user fetches and pushes, since it has the credentials, from and into repositories that
no task has touched; the session's user reads and writes the workspace.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from helix_revdial.sessions.executor import RepoSpec

from .commands import OUTPUT, CommandFailed, Commands
from .credentials import credentialFor, gitEnvironment, placeOf, removeFiles
from .record import Record, Terms

EMPTY_TREE: Final = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
"""What git calls a tree without files (SHA-1)."""

GIT_SECONDS = 300.0
"""How long git may take where it reads or writes a whole workspace."""

CALM = (
    "-c", "core.hooksPath=/dev/null",
    "-c", "core.fsmonitor=false",
    "-c", "gc.auto=0",
    "-c", "advice.detachedHead=false",
)  # fmt: skip
"""What git is told, whatever a repository says: to run nothing on the side."""


class WorkspaceFailed(Exception):
    """The workspace could not be made, or not be delivered; the text is for its owner."""


class Checkout:
    """
    Of one session.

    @ivar repo: What the workspace begins with, and where its work goes.
    @ivar commands: Runs programs.
    """

    def __init__(self, record: Record, commands: Commands) -> None:
        self.repo: RepoSpec = record.spec.repo
        self.commands = commands
        self._record = record
        self._terms: Terms = record.terms
        self._layout = commands.layout

    @property
    def base(self) -> str:
        """
        What the workspace began as: a commit or a tree.

        @raise OSError: It was not made yet.
        """
        return (self._layout.private / "base").read_text()

    def remember(self, base: str) -> None:
        """What the workspace begins as."""
        (self._layout.private / "base").write_text(base)

    @property
    def ownRepository(self) -> Path:
        """Beside the workspace, what it began as: whatever the agent does to its repository."""
        return self._layout.base / "base.git"

    @property
    def repository(self) -> Path:
        """The workspace's own, as long as there is one."""
        own = self._layout.workspace / ".git"
        if self.repo.mode == "git" and (own.is_file() or os.path.lexists(own / "HEAD")):
            return own
        return self.ownRepository

    @property
    def objects(self) -> str:
        """Where there are objects: of the workspace, and of what it began as."""
        places = dict.fromkeys((self.repository, self.ownRepository))
        return ":".join(str(place / "objects") for place in places)

    async def keep(self) -> None:
        """Keep what a clone has, which costs next to nothing: its packs never change."""
        source = str(self._layout.workspace / ".git" / "objects")
        place = str(self.ownRepository / "objects")
        await self.git("init", "-q", "--bare", str(self.ownRepository), bare=True)
        for way in ("--link", "--reflink=auto"):
            argv = ["cp", "-a", way, "-T", "--", source, place]
            try:
                await self.commands.run(argv, deadline=GIT_SECONDS)
            except CommandFailed:
                # Another file system, where nothing can be linked.
                continue
            return

    async def git(
        self,
        *arguments: str,
        bare: bool = False,
        environment: dict[str, str] | None = None,
        fileSize: int | None = None,
        standardInput: bytes = b"",
        outputLimit: int = OUTPUT,
    ) -> bytes:
        """Run git on the workspace, as the session."""
        own = {"GIT_CONFIG_NOSYSTEM": "1"}
        if not bare:
            own |= {"GIT_DIR": str(self.repository), "GIT_WORK_TREE": str(self._layout.workspace)}
        own |= environment or {}
        return await self.commands.run(
            ["git", *CALM, *arguments],
            directory=str(self._layout.workspace),
            environment=own,
            deadline=GIT_SECONDS,
            fileSize=fileSize,
            standardInput=standardInput,
            outputLimit=outputLimit,
        )

    async def remote(self, argv: list[str]) -> bytes:
        """Run git where it has the credentials."""
        url = self.repo.url or ""
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
            return await self.commands.run(
                argv,
                by="tunnel",
                environment=environment,
                deadline=self._terms.cloneSeconds,
            )
        finally:
            removeFiles(tunnel)
