# -*- test-case-name: tests.integration.test_executor -*-
"""
The sessions of this host.

L{LocalSessions} owns the directory of the sessions, who runs as which user, and which
there are at all.  What becomes of one is told by L{Held<helix_revdial.executor.held.Held>}.

  - A session is known by its record, which is on the disk before anything is
    started.  After a restart each record is taken up again: its supervisor is found,
    or started if it never was, or what it left behind is ended and reported.
  - A session's user, groups and directory are given back when nothing of it is
    left, and not before.
  - Where there are as many as there may be, the one that ended first goes, once the
    server has said that it has all of its reports.  No other goes unasked.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from helix_revdial.sessions.executor import LaunchSpec, SnapshotSource

from .control_groups import ControlGroup
from .filesystems import Capabilities
from .held import Held, Refused
from .identities import Identities, NoIdentityLeft
from .layout import Layout
from .passage import Shown
from .record import Record, RecordUnusable, readRecord, writeRecord
from .settings import ExecutorSettings
from .snapshots import NAME

SESSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""What a session may be called here: it becomes a directory."""

CANCEL_SECONDS = 45.0
"""How long a supervisor may take to end its session at once."""

_GONE = ".gone-"

RUNTIMES = ("local", "disabled")


class Busy(Exception):
    """Not now; later it may be."""


class NoSuchSession(Exception):
    """There is no session of that id on this host."""


class LocalSessions:
    """
    All of them.

    @ivar capabilities: What the file system can do.
    @ivar isolation: What keeps sessions apart here.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        settings: ExecutorSettings,
        capabilities: Capabilities,
        groups: ControlGroup | None,
        wallClock: Callable[[], float],
        *,
        ownUsers: bool,
        mounts: bool,
        shown: Shown,
        keepTmp: bool,
    ) -> None:
        """
        @param groups: Where control groups go, if there are any.
        @param ownUsers: Whether sessions have users of their own.
        @param mounts: Whether they have mounts of their own.
        @param shown: What they see there of directories that are closed to them.
        @param keepTmp: Whether they see the host's C{/tmp}, since what they need is there.
        """
        self.capabilities = capabilities
        self.isolation = [
            name
            for name, able in (
                ("user", ownUsers), ("control-group", groups is not None), ("mounts", mounts)
            )
            if able
        ]  # fmt: skip
        self._reactor = reactor
        self._settings = settings
        self._groups = groups
        self._wallClock = wallClock
        self._mounts = mounts
        self._shown = {closed: list(paths) for closed, paths in shown.items()}
        self._keepTmp = keepTmp
        self._identities = (
            Identities(settings.firstUser, settings.maxSessions) if ownUsers else None
        )
        self._directory = Path(settings.stateDirectory, "sessions")
        self._sessions: dict[str, Held] = {}
        self._forgetting: dict[str, list[Deferred[None]]] = {}

    # Start and stop

    def start(self) -> None:
        """Take up what is there."""
        self._directory.mkdir(mode=0o711, exist_ok=True)
        os.chmod(self._directory, 0o711)  # noqa: S103 - passed through
        Path(self._settings.stateDirectory, "uploads").mkdir(mode=0o700, exist_ok=True)
        for root in sorted(self._directory.iterdir()):
            layout = Layout(root)
            if root.name.startswith(_GONE) or not layout.record.exists():
                shutil.rmtree(root, ignore_errors=True)
                continue
            try:
                record = readRecord(layout)
            except RecordUnusable as error:
                self._log.error("a session cannot be taken up: {error}", error=error)
                continue
            session = self._sessions[record.spec.session] = self._held(layout, record)
            if record.user is not None and self._identities is not None:
                self._identities.taken(record.user)
            session.begin()

    def stop(self) -> None:
        """Leave the sessions to their supervisors."""
        for session in self._sessions.values():
            session.leave()

    # What is asked

    @property
    def running(self) -> int:
        """How many have not ended."""
        return sum(session.ended is None for session in self._sessions.values())

    def _held(self, layout: Layout, record: Record) -> Held:
        return Held(self._reactor, layout, record, self._wallClock)

    def find(self, session: str) -> Held:
        """
        One of them.

        @raise NoSuchSession: There is none of that id.
        """
        found = self._sessions.get(session)
        if found is None or found.forgotten:
            raise NoSuchSession(f"there is no session {session[:64]!r} on this host")
        return found

    def ids(self) -> list[str]:
        """Every session that is not forgotten."""
        return sorted(each.id for each in self._sessions.values() if not each.forgotten)

    async def launch(self, spec: LaunchSpec) -> bool:
        """
        Begin a session.

        @return: Whether it is new: the same specification again changes nothing.
        @raise OtherSpec: It was begun with another.
        @raise Refused: It cannot run here.
        @raise Busy: Not now.
        """
        while (found := self._sessions.get(spec.session)) is None:
            self._check(spec)
            if self.running >= self._settings.slots:
                raise Busy(f"all {self._settings.slots} slots of this host are taken")
            if len(self._sessions) < self._settings.maxSessions:
                self._create(spec)
                return True
            await self._makeRoom(spec)
        if found.forgotten:
            raise Busy("the session of that id is being removed")
        found.launchAgain(spec)
        return False

    async def _makeRoom(self, spec: LaunchSpec) -> None:
        """Remove what ended first, but not what is to be begun with."""
        needed = None if spec.fromSnapshot is None else spec.fromSnapshot.session
        ended = [
            (each.ended.at, each.id)
            for each in self._sessions.values()
            if each.ended is not None
            and each.isStored
            and each.id not in self._forgetting
            and each.id != needed
        ]
        if not ended:
            raise Busy(f"{len(self._sessions)} sessions are kept on this host, which is all it may")
        _, oldest = min(ended)
        self._log.info("{session} is removed: its room is needed", session=oldest)
        await self.forget(oldest)

    def _create(self, spec: LaunchSpec) -> None:
        record = self._record(spec)
        layout = Layout(self._directory / spec.session)
        try:
            layout.create(record.user, record.tunnelUser)
            writeRecord(layout, record)
        except OSError as error:
            shutil.rmtree(layout.root, ignore_errors=True)
            if record.user is not None and self._identities is not None:
                self._identities.release(record.user)
            raise Busy(f"the host cannot keep the session: {error.strerror}") from None
        session = self._sessions[spec.session] = self._held(layout, record)
        session.begin()

    def _check(self, spec: LaunchSpec) -> None:
        if SESSION.fullmatch(spec.session) is None:
            raise Refused("session: an id of letters, digits, '_' and '-', at most 64")
        if not spec.agent.command:
            raise Refused("agent.command: there is none")
        allowed = self._settings.agents
        if allowed and spec.agent.type not in allowed:
            raise Refused(
                f"agent.type: this host runs {', '.join(allowed)}, not {spec.agent.type[:60]}"
            )
        if spec.runtime.type not in RUNTIMES:
            raise Refused(f"runtime.type: this host has no {spec.runtime.type}", "no-runtime")
        source = spec.fromSnapshot
        if source is not None and not self._hasSnapshot(source):
            raise Refused(
                "fromSnapshot: this host does not have the snapshot any more", "no-snapshot"
            )

    def _hasSnapshot(self, source: SnapshotSource) -> bool:
        found = self._sessions.get(source.session)
        if found is None or found.forgotten or NAME.fullmatch(source.snapshot) is None:
            return False
        return (found.layout.snapshots / source.snapshot).is_dir()

    def _record(self, spec: LaunchSpec) -> Record:
        identity = None
        if self._identities is not None:
            try:
                identity = self._identities.allocate()
            except NoIdentityLeft as error:
                raise Busy(str(error)) from None
        group = None if self._groups is None else str(self._groups.path / spec.session)
        return Record(
            spec=spec,
            user=None if identity is None else identity.user,
            tunnelUser=None if identity is None else identity.tunnelUser,
            group=group,
            mounts=self._mounts,
            privateTmp=self._mounts and not self._keepTmp,
            provider=self.capabilities.choose(spec.snapshotPreference),
            processes=self._settings.processes,
            files=self._settings.files,
            terms=self._settings.terms(),
            shown=self._shown,
        )

    async def forget(self, session: str) -> None:
        """
        Kill what runs of a session, and remove what is left.  Nothing happens for one
        that is not there.
        """
        found = self._sessions.get(session)
        if found is None:
            return
        waiting = self._forgetting.get(session)
        if waiting is not None:
            done: Deferred[None] = Deferred()
            waiting.append(done)
            await done
            return
        self._forgetting[session] = []
        try:
            await self._forget(found)
        finally:
            for each in self._forgetting.pop(session):
                each.callback(None)

    async def _forget(self, session: Held) -> None:
        session.unwanted = True
        try:
            await session.command("cancel", None, None)
        except Refused as error:
            self._log.debug("{session}: {reason}", session=session.id, reason=error)
        end = self._reactor.seconds() + CANCEL_SECONDS
        while session.ended is None:
            if self._reactor.seconds() > end:
                session.killSupervisor()
                end += CANCEL_SECONDS
            await session.news(1.0)
        session.forgotten = True
        session.changed()
        await session.kill()
        await session.removeFiles()
        confinement = session.record.confinement(session.layout)
        await session.kill()
        for _ in range(100):
            if confinement.remove():
                break
            await deferLater(self._reactor, 0.02)
        gone = self._directory / f"{_GONE}{session.id}"
        session.layout.root.rename(gone)
        pool = self._reactor.getThreadPool()
        await deferToThreadPool(self._reactor, pool, lambda: shutil.rmtree(gone, True))
        del self._sessions[session.id]
        if session.record.user is not None and self._identities is not None:
            self._identities.release(session.record.user)
