# -*- test-case-name: tests.integration.test_executor -*-
"""
One session as its host holds it, from its record until it is forgotten.

While it runs a L{Held} session is what its supervisor makes of it, and this is only the
way there.  Once it has ended it is its journal and its workspace, at which there is
still something to look.

  - Where a supervisor ends before its session, everything of the session is killed,
    and the last report says so.  Only who is sure that there is no supervisor
    writes a journal.
  - Who has ended is found by its journal, also after a restart.
"""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as NothingNew
from twisted.internet.task import deferLater
from twisted.logger import Logger

from helix_revdial.sessions.executor import (
    HostSession,
    HostState,
    LaunchSpec,
    Report,
    SnapshotMade,
    WorkspaceFacts,
)

from .checkout import WorkspaceFailed
from .commands import CommandFailed, Commands
from .delivery import PatchMade
from .journal import Journal, JournalReader, lastReport, lastSeq
from .layout import Layout
from .record import Record, writeRecord
from .reporting import RETRY
from .supervised import CommandRefused, Supervised, SupervisorGone, isAlive
from .workspace import Workspace

HEARTBEAT = 15.0
"""Seconds after which a stream of reports that has none says that it lives."""

STREAM = 16 * 1024 * 1024
"""Bytes of reports in one answer."""

LEAVE_SECONDS = 2.0
"""How long the supervisor of a session that nobody wants any more may take to go."""

KILL_SECONDS = 20.0
"""How long what was killed may take to be gone."""


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


class OtherSpec(Exception):
    """A session of that id was launched with another specification."""


class Held:
    """
    One session.

    @ivar ended: Its last report, once it is known.
    @ivar unwanted: Whether it is to be removed: nobody waits for its last report.
    @ivar forgotten: Whether it is there no more for anybody who asks.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, layout: Layout, record: Record, wallClock: Callable[[], float]
    ) -> None:
        """
        @param wallClock: Seconds since 1970.
        """
        self.layout = layout
        self.record = record
        self.ended: Report | None = None
        self.unwanted = False
        self.forgotten = False
        self._reactor = reactor
        self._wallClock = wallClock
        self._supervised: Supervised | None = None
        self._recovering = True
        self._left = False
        self._acknowledged = 0
        self._busy = False
        self._waiting: list[Deferred[None]] = []

    @property
    def id(self) -> str:
        return self.record.spec.session

    @property
    def state(self) -> HostState:
        if self.ended is not None:
            return "ended"
        return self._supervised.state if self._supervised is not None else "provisioning"

    @property
    def isStored(self) -> bool:
        """Whether the server has its last report, and so all of them."""
        ended = self.ended
        return ended is not None and (
            self._acknowledged >= ended.seq or self.layout.stored.exists()
        )

    def changed(self) -> None:
        """There is something new, for all who wait."""
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.called:
                each.callback(None)

    async def news(self, seconds: float) -> bool:
        """
        Wait for something new.

        @return: Whether there is.
        """
        result: Deferred[None] = Deferred()
        result.addTimeout(seconds, self._reactor)
        self._waiting.append(result)
        try:
            await result
        except NothingNew:
            return False
        finally:
            if result in self._waiting:
                self._waiting.remove(result)
        return True

    # Its supervisor

    def begin(self) -> None:
        """Find its supervisor, or start it if it never was, or see to what it has left."""
        Deferred.fromCoroutine(self._supervise()).addErrback(
            lambda failure: self._log.failure(
                "{session} cannot be supervised", failure, session=self.id
            )
        )

    def leave(self) -> None:
        """Leave it to its supervisor."""
        self._left = True
        if self._supervised is not None:
            self._supervised.disconnect()
        self.changed()

    async def _supervise(self) -> None:
        layout = self.layout
        if not isAlive(layout):
            ended = lastReport(layout.journal, frozenset({"exit"}))
            if ended is not None:
                self.ended = ended
                self._recovering = False
                self.changed()
                return
        supervised = Supervised(self._reactor, layout, self.changed, self._lost)
        self._supervised = supervised
        self._recovering = False
        if not isAlive(layout):
            if lastSeq(layout.journal):
                supervised.lost()
                return
            supervised.start()
        try:
            await supervised.connect()
        except SupervisorGone:
            supervised.kill()

    def _lost(self) -> None:
        """Its supervisor is gone: it has ended, or is ended now."""
        if not self._left:
            Deferred.fromCoroutine(self._close()).addErrback(
                lambda failure: self._log.failure(
                    "{session} cannot be closed", failure, session=self.id
                )
            )

    async def _close(self) -> None:
        began = self._reactor.seconds()
        while isAlive(self.layout):
            # It may wait until there is room for its last report.
            limit = LEAVE_SECONDS if self.unwanted else KILL_SECONDS
            if self._reactor.seconds() - began > limit:
                self.killSupervisor()
                break
            await deferLater(self._reactor, 0.02)
        self._supervised = None
        ended = lastReport(self.layout.journal, frozenset({"exit"}))
        if ended is None:
            self._log.error(
                "the supervisor of {session} has ended before it: the session is killed",
                session=self.id,
            )
            await self.kill()
            ended = await self._writeEnd()
        self.ended = ended
        self._acknowledge(self._acknowledged)
        self.changed()

    async def _writeEnd(self) -> Report:
        """Write the last report in the place of its supervisor, as soon as there is room."""
        error = "the session's supervisor was killed"
        while True:
            try:
                journal = Journal(self.layout.journal)
                try:
                    return journal.ended or journal.append(self._wallClock(), "exit", error=error)
                finally:
                    journal.close()
            except OSError as problem:
                self._log.error("the journal cannot be written: {error}", error=problem)
            if self.unwanted:
                return Report(lastSeq(self.layout.journal) + 1, self._wallClock(), "exit")
            await deferLater(self._reactor, RETRY)

    def killSupervisor(self) -> None:
        """Kill its supervisor, which does not end by itself."""
        if not isAlive(self.layout):
            # Its number may be somebody else's by now.
            return
        try:
            pid = int(self.layout.lock.read_text())
        except (OSError, ValueError):
            return
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    async def kill(self) -> None:
        """Kill every process of it, and wait until there is none."""
        confinement = self.record.confinement(self.layout)
        end = self._reactor.seconds() + KILL_SECONDS
        while not confinement.kill():
            if self._reactor.seconds() > end:
                self._log.error("processes of {session} cannot be killed", session=self.id)
                return
            await deferLater(self._reactor, 0.02)

    async def command(
        self, verb: str, deadline: float | None, text: str | None, number: int | None = None
    ) -> dict[str, Any]:
        """
        Have its supervisor do something.

        @param number: Of a prompt: one that the agent was handed is not handed again.
        @return: What it answers.
        @raise Refused: It cannot be.
        """
        while self._recovering:
            await self.news(1.0)
        if self.ended is not None or self._supervised is None:
            raise HasEnded
        try:
            return await self._supervised.command(verb, deadline=deadline, text=text, number=number)
        except CommandRefused as error:
            if self.state == "ended":
                raise HasEnded from None
            raise Refused(str(error)) from None
        except SupervisorGone:
            raise HasEnded from None

    def launchAgain(self, spec: LaunchSpec) -> None:
        """
        The same, but for the session's token: a server that does not know whether it has
        launched a session makes another one, which alone is valid then.

        @raise OtherSpec: It is not the same.
        """
        before = self.record.spec
        if msgspec.structs.replace(before, sandbox=spec.sandbox) != spec:
            raise OtherSpec("a session of that id was launched with another specification")
        if before == spec:
            return
        self.record = msgspec.structs.replace(self.record, spec=spec)
        writeRecord(self.layout, self.record)
        if spec.sandbox is not None:
            Deferred.fromCoroutine(self.command("token", None, spec.sandbox.token)).addErrback(
                lambda failure: failure.trap(Refused)
            )

    # What it says

    def describe(self) -> HostSession:
        """What is known of it."""
        journal = self.layout.journal
        state, ended = self.state, self.ended
        if ended is None and state == "ended":
            ended = lastReport(journal, frozenset({"exit"}))
        made = lastReport(journal, frozenset({"workspace"}))
        workspace: WorkspaceFacts | None = None if made is None else made.workspace
        seq = self._supervised.seq if self._supervised is not None else 0
        return HostSession(
            session=self.id,
            state=state,
            lastSeq=ended.seq if ended is not None else max(seq, lastSeq(journal)),
            exitCode=None if ended is None else ended.exitCode,
            signal=None if ended is None else ended.signal,
            error=None if ended is None else ended.error,
            workspace=workspace,
        )

    def reports(self, after: int) -> AsyncIterator[bytes]:
        """
        Its reports from C{after + 1} on, as lines of JSON; an empty line where there are
        none for a while.  Whoever asks has all up to C{after}, for good.  Ends after
        L{STREAM} bytes, so that he says so again.

        @raise JournalGone: They are not all kept.
        """
        reader = JournalReader(self.layout.journal, after)
        self._acknowledge(after)
        return self._reports(reader)

    def _acknowledge(self, seq: int) -> None:
        """The server has the reports up to C{seq}, for good."""
        self._acknowledged = max(self._acknowledged, seq)
        if self._supervised is not None:
            self._supervised.acknowledge(seq)
        elif self.isStored:
            # For who comes after us.
            self.layout.stored.touch(0o600)

    async def _reports(self, reader: JournalReader) -> AsyncIterator[bytes]:
        sent = 0
        while not (reader.ended or self.forgotten or self._left) and sent < STREAM:
            if self.ended is not None and reader.seq >= self.ended.seq:
                # He has the last one.
                return
            lines = reader.read()
            if lines:
                yield lines
                # Asked for more: what went before was taken.
                sent += len(lines)
                if self._supervised is not None:
                    self._supervised.fetched(reader.seq)
            elif not reader.ended and not await self.news(HEARTBEAT):
                yield b"\n"

    # Its files

    async def snapshot(self, label: str) -> SnapshotMade:
        """
        Keep its workspace.

        @raise Refused: It cannot be.
        """
        try:
            made = await self.command("snapshot", None, label)
        except HasEnded:
            await self._whenEnded()
        else:
            return SnapshotMade(**made)
        name, at = f"snap-{secrets.token_hex(10)}", self._wallClock()
        workspace = self._workspace()
        async with _Turn(self):
            try:
                await workspace.provider.attach()
                mount = await workspace.provider.snapshot(name)
            except (CommandFailed, OSError) as error:
                raise Refused(f"there is no snapshot: {error}") from None
        return SnapshotMade(name, workspace.provider.name, at, mount)

    async def patch(self) -> PatchMade:
        """
        All that is different in its workspace, as a patch.

        @raise Refused: There is no patch.
        """
        try:
            made = await self.command("patch", None, None)
        except HasEnded:
            await self._whenEnded()
        else:
            return PatchMade(self.layout.patch, made["size"], made["sha256"])
        async with _Turn(self):
            try:
                return await self._workspace().delivery.patch()
            except WorkspaceFailed as error:
                raise Refused(str(error)) from None

    async def removeFiles(self) -> None:
        """Take away of its workspace what the removal of a directory would not."""
        try:
            await self._workspace().provider.remove()
        except (CommandFailed, OSError) as error:
            self._log.error("{session}: {error}", session=self.id, error=error)

    async def _whenEnded(self) -> None:
        """Wait until we are sure that there is no supervisor any more."""
        while self.ended is None:
            await self.news(1.0)

    def _workspace(self) -> Workspace:
        confinement = self.record.confinement(self.layout)
        confinement.create()
        commands = Commands(self._reactor, confinement, self.layout, self.record.tunnelUser)
        return Workspace(self._reactor, self.record, commands)

    async def takeTurn(self) -> None:
        """Wait until nobody else looks at its files, and be the one who does."""
        while self._busy:
            await deferLater(self._reactor, 0.05)
        self._busy = True

    def endTurn(self) -> None:
        """Somebody else may."""
        self._busy = False


class _Turn:
    """One after the other looks at the files of a session that has ended."""

    def __init__(self, session: Held) -> None:
        self._session = session

    async def __aenter__(self) -> None:
        await self._session.takeTurn()

    async def __aexit__(self, *_: object) -> None:
        self._session.endTurn()
