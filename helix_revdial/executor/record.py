# -*- test-case-name: tests.executor.test_workspace -*-
"""
What is known of a session on its host before it says anything: written once, when it
is launched, and found again by whoever starts later.

The record holds the session's token: its file is root's alone.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from helix_revdial.durable import syncDirectory
from helix_revdial.sessions.executor import LaunchSpec

from .confinement import Confinement, Limits
from .control_groups import ControlGroup
from .layout import Layout


class RecordUnusable(Exception):
    """The record cannot be read; the text says why."""


class Credential(msgspec.Struct, frozen=True):
    """
    What opens the repositories below a URL.

    @ivar url: Such as C{https://git.example/team/} or C{ssh://git@git.example/}.
    @ivar passwordFile: For https: the password or token.
    @ivar keyFile: For ssh: the private key.
    @ivar knownHostsFile: For ssh: the hosts' keys.
    """

    url: str
    username: str = "git"
    passwordFile: str | None = None
    keyFile: str | None = None
    knownHostsFile: str | None = None


class Terms(msgspec.Struct, frozen=True):
    """
    What the host's settings say of every session, as they were at its launch.

    @ivar cloneSeconds: How long the repository may take to arrive.
    @ivar protocols: By which repositories may be reached.
    @ivar outputAhead: Bytes of reports that nobody has fetched, from which on the
        task's output is held back.
    @ivar patchBytes: How large a patch may be.
    @ivar display: The size of the session's display; C{None} for no desktop.
    @ivar caFile: The authorities that the tunnel agent trusts.
    @ivar serverUrl: Where the tunnel agent finds the server, instead of where the
        server says.
    @ivar uploads: The directory in which uploaded archives are.
    @ivar environment: What every task finds in its environment.
    @ivar python: The Python that the session can run.
    """

    cloneSeconds: float = 600.0
    protocols: tuple[str, ...] = ("https", "ssh")
    credentials: tuple[Credential, ...] = ()
    outputAhead: int = 32 * 1024 * 1024
    patchBytes: int = 1024 * 1024 * 1024
    display: str | None = "1280x720x24"
    caFile: str | None = None
    serverUrl: str | None = None
    uploads: str | None = None
    environment: dict[str, str] = {}
    python: str = sys.executable


class Record(msgspec.Struct, frozen=True):
    """
    One session.

    @ivar user: Its user and group; C{None} for the executor's own.
    @ivar tunnelUser: Its tunnel agent's.
    @ivar group: The directory of its control group.
    @ivar mounts: Whether it has a mount namespace of its own.
    @ivar privateTmp: Whether it has a C{/tmp} of its own.
    @ivar provider: What makes its snapshots.
    @ivar shown: What it sees of directories that are closed to it.
    """

    spec: LaunchSpec
    user: int | None
    tunnelUser: int | None
    group: str | None
    mounts: bool
    privateTmp: bool
    provider: str
    processes: int
    files: int
    terms: Terms
    shown: dict[str, list[str]] = {}

    def confinement(self, layout: Layout, supervisor: int | None = None) -> Confinement:
        """What holds the session."""
        resources = self.spec.runtime.resources
        memory = None if resources is None or resources.memoryMiB is None else resources.memoryMiB
        return Confinement(
            session=self.spec.session,
            user=self.user,
            tunnelUser=self.tunnelUser,
            group=None if self.group is None else ControlGroup(Path(self.group)),
            temporary=str(layout.temporary) if self.privateTmp else None,
            mounts=self.mounts,
            accounts=str(layout.accounts) if layout.accounts.exists() else None,
            limits=Limits(
                processes=self.processes,
                files=self.files,
                memory=None if memory is None else memory * 1024 * 1024,
                cpu=None if resources is None else resources.cpu,
            ),
            shown=self.shown,
            supervisor=supervisor,
        )


def writeRecord(layout: Layout, record: Record) -> None:
    """Write it, whole or not at all."""
    draft = layout.private / "record.new"
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(msgspec.json.encode(record))
        file.flush()
        os.fsync(file.fileno())
    draft.rename(layout.record)
    syncDirectory(layout.private)


def readRecord(layout: Layout) -> Record:
    """
    Read it.

    @raise RecordUnusable: There is none, or it is of another time.
    """
    try:
        return msgspec.json.decode(layout.record.read_bytes(), type=Record)
    except OSError as error:
        raise RecordUnusable(f"{layout.record}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise RecordUnusable(f"{layout.record}: {error}") from None
