# -*- test-case-name: tests.integration.test_executor -*-
"""
The sessions of this host.

L{LocalSessions} owns the directory of the sessions, who runs as which user, and which
supervisor is whose.  What happens in a session is its supervisor's; what is known of
one after its end stands in its journal.

  - A session is known by its record, which is on the disk before anything is
    started.  After a restart each record is taken up again: its supervisor is found,
    or started if it never was, or what it left behind is ended and reported.
  - A session's user, groups and directory are given back when nothing of it is
    left, and not before.
  - Where there are as many as there may be, the one that ended first goes, once the
    server has said that it has all of its reports.  No other goes unasked.
  - Where a supervisor ends before its session, everything of the session is killed,
    and the last report says so.  Only who is sure that there is no supervisor
    writes a journal.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as NothingNew
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from helix_revdial.sessions.executor import (
    HostSession,
    HostState,
    LaunchSpec,
    Report,
    SnapshotMade,
    SnapshotSource,
    WorkspaceFacts,
)

from .commands import CommandFailed, Commands
from .control_groups import ControlGroup
from .filesystems import Capabilities
from .identities import Identities, NoIdentityLeft
from .journal import Journal, JournalReader, lastReport, lastSeq
from .layout import Layout
from .passage import Shown
from .record import Record, RecordUnusable, readRecord, writeRecord
from .settings import ExecutorSettings
from .snapshots import NAME
from .supervised import CommandRefused, Supervised, SupervisorGone, isAlive
from .workspace import PatchMade, Workspace, WorkspaceFailed

SESSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""What a session may be called here: it becomes a directory."""

HEARTBEAT = 15.0
"""Seconds after which a stream of reports that has none says that it lives."""

STREAM = 16 * 1024 * 1024
"""Bytes of reports in one answer."""

KILL_SECONDS = 20.0
"""How long what was killed may take to be gone."""

CANCEL_SECONDS = 45.0
"""How long a supervisor may take to end its session at once."""

_GONE = ".gone-"

RUNTIMES = ("local", "disabled")


class Refused(Exception):
    """
    It cannot be, now or later.

    @ivar word: For programs.
    """

    def __init__(self, text: str, word: str = "refused") -> None:
        super().__init__(text)
        self.word = word


class HasEnded(Refused):
    """The session is over."""

    def __init__(self) -> None:
        super().__init__("the session has ended", "ended")


class Busy(Exception):
    """Not now; later it may be."""


class NoSuchSession(Exception):
    """There is no session of that id on this host."""


class OtherSpec(Exception):
    """A session of that id was launched with another specification."""


class _Session:
    """One of them."""

    def __init__(self, layout: Layout, record: Record) -> None:
        self.layout = layout
        self.record = record
        self.supervised: Supervised | None = None
        self.ended: Report | None = None
        self.forgotten = False
        self.forgetting: list[Deferred[None]] | None = None
        self.recovering = True
        self.busy = False
        self.acknowledged = 0
        self._waiting: list[Deferred[None]] = []

    @property
    def id(self) -> str:
        return self.record.spec.session

    @property
    def state(self) -> HostState:
        if self.ended is not None:
            return "ended"
        return self.supervised.state if self.supervised is not None else "provisioning"

    @property
    def isStored(self) -> bool:
        """Whether the server has its last report, and so all of them."""
        ended = self.ended
        return ended is not None and (self.acknowledged >= ended.seq or self.layout.stored.exists())

    def acknowledge(self, seq: int) -> None:
        """The server has the reports up to C{seq}, for good."""
        self.acknowledged = max(self.acknowledged, seq)
        if self.supervised is not None:
            self.supervised.acknowledge(seq)
        elif self.isStored:
            # For who comes after us.
            self.layout.stored.touch(0o600)

    def changed(self) -> None:
        """There is something new, for all who wait."""
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.called:
                each.callback(None)

    async def news(self, reactor: Any, seconds: float) -> bool:
        """
        Wait for something new.

        @return: Whether there is.
        """
        result: Deferred[None] = Deferred()
        result.addTimeout(seconds, reactor)
        self._waiting.append(result)
        try:
            await result
        except NothingNew:
            return False
        finally:
            if result in self._waiting:
                self._waiting.remove(result)
        return True


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
        self._sessions: dict[str, _Session] = {}
        self._stopped = False

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
            session = self._sessions[record.spec.session] = _Session(layout, record)
            if record.user is not None and self._identities is not None:
                self._identities.taken(record.user)
            self._begin(session)

    def _begin(self, session: _Session) -> None:
        Deferred.fromCoroutine(self._supervise(session)).addErrback(
            lambda failure: self._log.failure(
                "{session} cannot be supervised", failure, session=session.id
            )
        )

    async def _supervise(self, session: _Session) -> None:
        layout = session.layout
        if not isAlive(layout):
            ended = lastReport(layout.journal, frozenset({"exit"}))
            if ended is not None:
                session.ended = ended
                session.recovering = False
                session.changed()
                return
        supervised = Supervised(self._reactor, layout, session.changed, lambda: self._lost(session))
        session.supervised = supervised
        session.recovering = False
        if not isAlive(layout):
            if lastSeq(layout.journal):
                supervised.lost()
                return
            supervised.start()
        try:
            await supervised.connect()
        except SupervisorGone:
            supervised.kill()

    def _lost(self, session: _Session) -> None:
        """A supervisor is gone: its session has ended, or is ended now."""
        if not self._stopped:
            Deferred.fromCoroutine(self._close(session)).addErrback(
                lambda failure: self._log.failure(
                    "{session} cannot be closed", failure, session=session.id
                )
            )

    async def _close(self, session: _Session) -> None:
        end = self._reactor.seconds() + KILL_SECONDS
        while isAlive(session.layout) and self._reactor.seconds() < end:
            await deferLater(self._reactor, 0.02)
        if isAlive(session.layout):
            self._killSupervisor(session)
        session.supervised = None
        ended = lastReport(session.layout.journal, frozenset({"exit"}))
        if ended is None:
            self._log.error(
                "the supervisor of {session} has ended before it: the session is killed",
                session=session.id,
            )
            await self._kill(session)
            journal = Journal(session.layout.journal)
            try:
                ended = journal.ended or journal.append(
                    self._wallClock(), "exit", error="the session's supervisor was killed"
                )
            finally:
                journal.close()
        session.ended = ended
        session.acknowledge(session.acknowledged)
        session.changed()

    def _killSupervisor(self, session: _Session) -> None:
        try:
            pid = int(session.layout.lock.read_text())
        except (OSError, ValueError):
            return
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    async def _kill(self, session: _Session) -> None:
        confinement = session.record.confinement(session.layout)
        end = self._reactor.seconds() + KILL_SECONDS
        while not confinement.kill():
            if self._reactor.seconds() > end:
                self._log.error("processes of {session} cannot be killed", session=session.id)
                return
            await deferLater(self._reactor, 0.02)

    def stop(self) -> None:
        """Leave the sessions to their supervisors."""
        self._stopped = True
        for session in self._sessions.values():
            if session.supervised is not None:
                session.supervised.disconnect()
            session.changed()

    # What is asked

    @property
    def running(self) -> int:
        """How many have not ended."""
        return sum(session.ended is None for session in self._sessions.values())

    def _find(self, session: str) -> _Session:
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
        self._launchAgain(found, spec)
        return False

    async def _makeRoom(self, spec: LaunchSpec) -> None:
        """Remove what ended first, but not what is to be begun with."""
        needed = None if spec.fromSnapshot is None else spec.fromSnapshot.session
        ended = [
            (each.ended.at, each.id)
            for each in self._sessions.values()
            if each.ended is not None
            and each.isStored
            and each.forgetting is None
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
        session = self._sessions[spec.session] = _Session(layout, record)
        self._begin(session)

    def _launchAgain(self, session: _Session, spec: LaunchSpec) -> None:
        """
        The same, but for the session's token: a server that does not know whether it has
        launched a session makes another one, which alone is valid then.
        """
        before = session.record.spec
        if msgspec.structs.replace(before, sandbox=spec.sandbox) != spec:
            raise OtherSpec("a session of that id was launched with another specification")
        if before == spec:
            return
        session.record = msgspec.structs.replace(session.record, spec=spec)
        writeRecord(session.layout, session.record)
        if spec.sandbox is not None:
            Deferred.fromCoroutine(
                self._command(session, "token", None, spec.sandbox.token)
            ).addErrback(lambda failure: failure.trap(Refused))

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

    def describe(self, session: str) -> HostSession:
        """
        What is known of a session.

        @raise NoSuchSession: Nothing.
        """
        found = self._find(session)
        journal = found.layout.journal
        state, ended = found.state, found.ended
        if ended is None and state == "ended":
            ended = lastReport(journal, frozenset({"exit"}))
        made = lastReport(journal, frozenset({"workspace"}))
        workspace: WorkspaceFacts | None = None if made is None else made.workspace
        supervised = found.supervised
        seq = supervised.seq if supervised is not None else 0
        return HostSession(
            session=found.id,
            state=state,
            lastSeq=ended.seq if ended is not None else max(seq, lastSeq(journal)),
            exitCode=None if ended is None else ended.exitCode,
            signal=None if ended is None else ended.signal,
            error=None if ended is None else ended.error,
            workspace=workspace,
        )

    def reports(self, session: str, after: int) -> AsyncIterator[bytes]:
        """
        The reports of a session from C{after + 1} on, as lines of JSON; an empty line where
        there are none for a while.  Whoever asks has all up to C{after}, for good.  Ends
        after L{STREAM} bytes, so that he says so again.

        @raise NoSuchSession: There is none.
        @raise JournalGone: They are not all kept.
        """
        found = self._find(session)
        reader = JournalReader(found.layout.journal, after)
        found.acknowledge(after)
        return self._reports(found, reader)

    async def _reports(self, session: _Session, reader: JournalReader) -> AsyncIterator[bytes]:
        sent = 0
        while not (reader.ended or session.forgotten or self._stopped) and sent < STREAM:
            if session.ended is not None and reader.seq >= session.ended.seq:
                # He has the last one.
                return
            lines = reader.read()
            if lines:
                yield lines
                # Asked for more: what went before was taken.
                sent += len(lines)
                if session.supervised is not None:
                    session.supervised.fetched(reader.seq)
            elif not reader.ended and not await session.news(self._reactor, HEARTBEAT):
                yield b"\n"

    async def control(
        self,
        session: str,
        verb: str,
        *,
        deadline: float | None,
        text: str | None,
        number: int | None = None,
    ) -> None:
        """
        Have something done.

        @param number: Of a prompt: one that the agent was handed is not handed again.
        @raise NoSuchSession: There is none.
        @raise Refused: It cannot be.
        """
        await self._command(self._find(session), verb, deadline, text, number)

    async def _command(
        self,
        session: _Session,
        verb: str,
        deadline: float | None,
        text: str | None,
        number: int | None = None,
    ) -> dict[str, Any]:
        while session.recovering:
            await session.news(self._reactor, 1.0)
        if session.ended is not None or session.supervised is None:
            raise HasEnded
        try:
            return await session.supervised.command(
                verb, deadline=deadline, text=text, number=number
            )
        except CommandRefused as error:
            if session.state == "ended":
                raise HasEnded from None
            raise Refused(str(error)) from None
        except SupervisorGone:
            raise HasEnded from None

    async def _whenEnded(self, session: _Session) -> None:
        """Wait until we are sure that there is no supervisor any more."""
        while session.ended is None:
            await session.news(self._reactor, 1.0)

    async def snapshot(self, session: str, label: str) -> SnapshotMade:
        """
        Keep the workspace of a session.

        @raise NoSuchSession: There is none.
        @raise Refused: It cannot be.
        """
        found = self._find(session)
        try:
            made = await self._command(found, "snapshot", None, label)
        except HasEnded:
            await self._whenEnded(found)
        else:
            return SnapshotMade(**made)
        name, at = f"snap-{secrets.token_hex(10)}", self._wallClock()
        workspace = self._workspace(found)
        async with _Turn(found, self._reactor):
            try:
                await workspace.provider.attach()
                mount = await workspace.provider.snapshot(name)
            except (CommandFailed, OSError) as error:
                raise Refused(f"there is no snapshot: {error}") from None
        return SnapshotMade(name, workspace.provider.name, at, mount)

    async def patch(self, session: str) -> PatchMade:
        """
        All that is different in a session's workspace, as a patch.

        @raise NoSuchSession: There is none.
        @raise Refused: There is no patch.
        """
        found = self._find(session)
        try:
            made = await self._command(found, "patch", None, None)
        except HasEnded:
            await self._whenEnded(found)
        else:
            return PatchMade(found.layout.patch, made["size"], made["sha256"])
        async with _Turn(found, self._reactor):
            try:
                return await self._workspace(found).patch()
            except WorkspaceFailed as error:
                raise Refused(str(error)) from None

    def _workspace(self, session: _Session) -> Workspace:
        return Workspace(self._reactor, session.record, self._commands(session))

    def _commands(self, session: _Session) -> Commands:
        confinement = session.record.confinement(session.layout)
        confinement.create()
        return Commands(self._reactor, confinement, session.layout, session.record.tunnelUser)

    async def forget(self, session: str) -> None:
        """
        Kill what runs of a session, and remove what is left.  Nothing happens for one
        that is not there.
        """
        found = self._sessions.get(session)
        if found is None:
            return
        done: Deferred[None] = Deferred()
        if found.forgetting is not None:
            found.forgetting.append(done)
            await done
            return
        found.forgetting = []
        try:
            await self._forget(found)
        finally:
            waiting, found.forgetting = found.forgetting, None
            for each in waiting:
                each.callback(None)

    async def _forget(self, session: _Session) -> None:
        try:
            await self._command(session, "cancel", None, None)
        except Refused as error:
            self._log.debug("{session}: {reason}", session=session.id, reason=error)
        end = self._reactor.seconds() + CANCEL_SECONDS
        while session.ended is None:
            if self._reactor.seconds() > end:
                self._killSupervisor(session)
                end += CANCEL_SECONDS
            await session.news(self._reactor, 1.0)
        session.forgotten = True
        session.changed()
        await self._kill(session)
        try:
            await self._workspace(session).provider.remove()
        except (CommandFailed, OSError) as error:
            self._log.error("{session}: {error}", session=session.id, error=error)
        confinement = session.record.confinement(session.layout)
        await self._kill(session)
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


class _Turn:
    """One after the other looks at the files of a session that has ended."""

    def __init__(self, session: _Session, reactor: Any) -> None:
        self._session = session
        self._reactor = reactor

    async def __aenter__(self) -> None:
        while self._session.busy:
            await deferLater(self._reactor, 0.05)
        self._session.busy = True

    async def __aexit__(self, *_: object) -> None:
        self._session.busy = False
