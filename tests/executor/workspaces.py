"""A workspace of a session without a supervisor, for tests of what is done to its files."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import reactor as realReactor
from twisted.trial.unittest import TestCase

from helix_revdial.executor.commands import Commands
from helix_revdial.executor.layout import Layout
from helix_revdial.executor.record import Record, Terms
from helix_revdial.executor.workspace import Workspace
from helix_revdial.sessions.executor import AgentSpec, LaunchSpec, RepoSpec, RuntimeSpec

reactor: Any = realReactor


class WorkspaceCase(TestCase):
    """Makes workspaces; as root each has users of its own."""

    timeout = 60

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="hx-"))
        self.directory.chmod(0o711)
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.user = 1_300_000 + os.getpid() % 10_000 * 2 if os.geteuid() == 0 else None

    def workspace(
        self,
        provider: str = "copy",
        *,
        repo: RepoSpec | None = None,
        below: Path | None = None,
        **terms: Any,
    ) -> Workspace:
        """A workspace that is not prepared yet."""
        spec = LaunchSpec(
            session="ses_test",
            prompt="a prompt",
            agent=AgentSpec("test", command=["true"]),
            repo=repo or RepoSpec("none"),
            runtime=RuntimeSpec("local"),
        )
        record = Record(
            spec=spec,
            user=self.user,
            tunnelUser=None if self.user is None else self.user + 1,
            group=None,
            mounts=False,
            privateTmp=False,
            provider=provider,
            processes=100,
            files=1000,
            terms=Terms(protocols=("file",), **terms),
        )
        layout = Layout((below or self.directory) / "s")
        layout.create(record.user, record.tunnelUser)
        commands = Commands(reactor, record.confinement(layout), layout, record.tunnelUser)
        self.layout = layout
        self.commands = commands
        return Workspace(reactor, record, commands)

    async def inside(self, script: str) -> str:
        """Run a script in the workspace, as the session."""
        said = await self.commands.run(["sh", "-ec", script], directory=str(self.layout.workspace))
        return said.decode()

    def sh(self, script: str) -> str:
        """Run a script as the host."""
        done = subprocess.run(
            ["sh", "-ec", script],
            cwd=self.directory,
            capture_output=True,
            text=True,
            env={**os.environ, "HOME": str(self.directory)},
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout
