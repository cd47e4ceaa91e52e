# -*- test-case-name: tests.executor.test_settings -*-
"""
Where what a session has lies on the host.

One directory for each session, that the session can pass through and not list::

    sessions/ses_.../
        private/     root's alone: the record, the journal, the supervisor's socket
        workspace/   the session's: where the agent works
        home/ tmp/   the session's
        snapshots/   the session's: copies of the workspace
        base/        the session's: what the workspace began as
        layers/      root's: the layers of an overlay, where the workspace is one
        run/         the session's: the socket of its desktop
        tunnel/      the tunnel agent's alone: its token
        accounts     root's: the host's users, and the session's two
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

PASSWD = Path("/etc/passwd")
"""The host's users (passwd(5))."""

MAX_SOCKET_PATH = 107
"""Bytes of a unix socket's path."""

MAX_STATE_DIRECTORY = MAX_SOCKET_PATH - len("/sessions/ses_/private/control") - 26
"""Bytes of the state directory's path, so that the sockets below it can be."""


@dataclass(frozen=True)
class Layout:
    """
    The directories of one session.

    @ivar root: Its own directory.
    """

    root: Path

    @property
    def private(self) -> Path:
        return self.root / "private"

    @property
    def record(self) -> Path:
        """What is known of it, as L{Record <helix_revdial.executor.record.Record>}."""
        return self.private / "record.json"

    @property
    def journal(self) -> Path:
        return self.private / "journal"

    @property
    def stored(self) -> Path:
        """There once the server has all of its reports."""
        return self.private / "stored"

    @property
    def control(self) -> Path:
        """The supervisor's socket."""
        return self.private / "control"

    @property
    def lock(self) -> Path:
        """Held by the supervisor for as long as it lives."""
        return self.private / "lock"

    @property
    def log(self) -> Path:
        """What the supervisor says, for the operator."""
        return self.private / "supervisor.log"

    @property
    def workspace(self) -> Path:
        return self.root / "workspace"

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def temporary(self) -> Path:
        return self.root / "tmp"

    @property
    def snapshots(self) -> Path:
        return self.root / "snapshots"

    @property
    def base(self) -> Path:
        return self.root / "base"

    @property
    def layers(self) -> Path:
        return self.root / "layers"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def desktop(self) -> Path:
        """The desktop service's socket."""
        return self.run / "desktop"

    @property
    def tunnel(self) -> Path:
        return self.root / "tunnel"

    @property
    def accounts(self) -> Path:
        """What the session sees as C{/etc/passwd}, where it has users of its own."""
        return self.root / "accounts"

    @property
    def patch(self) -> Path:
        """The patch, once it was made."""
        return self.private / "patch"

    def create(self, user: int | None, tunnelUser: int | None) -> None:
        """
        Make the directories.

        @param user: Whose the session's are; C{None} for our own.
        @param tunnelUser: Whose the tunnel agent's is.
        """
        self.root.mkdir(mode=0o711, exist_ok=True)
        os.chmod(self.root, 0o711)  # noqa: S103 - the session passes through
        for path in (self.private, self.layers):
            path.mkdir(mode=0o700, exist_ok=True)
        for path in (self.home, self.temporary, self.snapshots, self.base):
            self._give(path, 0o700, user)
        # The tunnel agent passes through to the socket of the desktop.
        self._give(self.run, 0o711, user)
        self._give(self.tunnel, 0o700, tunnelUser)
        if user is not None and tunnelUser is not None:
            self._writeAccounts(user, tunnelUser)

    def _writeAccounts(self, user: int, tunnelUser: int) -> None:
        known = PASSWD.read_text(errors="surrogateescape").rstrip("\n")
        own = [
            f"{name}:x:{number}:{number}:{name}:{home}:/bin/sh"
            for name, number, home in (
                ("session", user, self.home),
                ("tunnel", tunnelUser, self.tunnel),
            )
        ]
        self.accounts.write_text("\n".join([known, *own, ""]), errors="surrogateescape")
        self.accounts.chmod(0o644)

    @staticmethod
    def _give(path: Path, mode: int, user: int | None) -> None:
        path.mkdir(mode=0o700, exist_ok=True)
        os.chmod(path, mode)
        if user is not None:
            os.chown(path, user, user)
