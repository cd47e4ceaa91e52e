# -*- test-case-name: tests.sessions.test_driver -*-
"""
One session and the executor that has it: launched, followed, told what is wanted,
and cleaned up after.

What holds is said in L{helix_revdial.sessions.driver}, whose part this is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeVar

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from helix_revdial.sessions.executor import (
    Executor,
    ExecutorRefused,
    ExecutorUnreachable,
    HostSession,
    LaunchSpec,
    Prompt,
    Report,
    Verb,
)
from helix_revdial.sessions.executors import Executors
from helix_revdial.sessions.key_lines import KeyLines
from helix_revdial.sessions.lifecycle import TERMINAL
from helix_revdial.sessions.records import Session
from helix_revdial.sessions.reports import Gap, finish, store
from helix_revdial.sessions.sessions import Sessions
from helix_revdial.storage.failures import DatabaseUnavailable

T = TypeVar("T")

BATCH: Final = 200
"""Reports that are stored in one write at most."""

PROMPT_ANSWER: Final = 5.0
"""Seconds that somebody waits for an executor to take a prompt, or to refuse it."""

BUFFERED: Final = 1000
"""Reports of one session that were read and are not stored yet, at most."""


class LaunchImpossible(Exception):
    """A session cannot be launched as it is.  The text is for its owner."""


@dataclass(frozen=True, slots=True)
class DriverSettings:
    """
    Seconds.

    @ivar stopDeadline: from a stop to the end by force.
    @ivar stopGrace: how much longer to wait for the report of that.
    @ivar firstRetry: the pause before an executor is tried again; it doubles up to
        C{lastRetry}.
    @ivar unreachableLimit: how long an executor may be away with its sessions;
        C{stoppingLimit}: with one that is to end.
    """

    stopDeadline: float = 10.0
    stopGrace: float = 5.0
    firstRetry: float = 0.5
    lastRetry: float = 10.0
    unreachableLimit: float = 900.0
    stoppingLimit: float = 60.0


@dataclass(frozen=True, slots=True)
class Shared:
    """
    What all the runs of a driver have in common.

    @ivar wallClock: seconds since the epoch.
    @ivar prepare: makes what a host is told of a session.
    @ivar onEnded: called with each session that has ended.
    @ivar work: has something done that nobody waits for.
    """

    clock: IReactorTime
    wallClock: Callable[[], float]
    sessions: Sessions
    executors: Executors
    prepare: Callable[[Session], Awaitable[LaunchSpec]]
    settings: DriverSettings
    onEnded: Callable[[Session], Awaitable[None]] | None
    work: Callable[[Coroutine[Any, Any, None]], None]


class Run:
    """
    One session and its executor.

    @ivar session: as it was when it last changed.
    """

    log: ClassVar[Logger] = Logger()

    def __init__(self, shared: Shared, session: Session, *, mayBeThere: bool) -> None:
        """
        @param mayBeThere: whether the executor may have it already.
        """
        self.session = session
        self._shared = shared
        self._settings = shared.settings
        self._clock = shared.clock
        self._buffer: list[Report] = []
        self._storing: Deferred[None] | None = None
        self._room: Deferred[None] | None = None
        self._broken: BaseException | None = None
        self._obeying: Deferred[None] | None = None
        self._wanted: Verb | None = None
        self._asking: dict[int, Deferred[None]] = {}
        self._handing: Deferred[None] | None = None
        self._launched = False
        self._lostAt: float | None = None
        self._deadline: IDelayedCall | None = None
        self._forced = False
        self._reading: Deferred[None] | None = None
        # Whether the executor may have it.
        self._mayBeThere = mayBeThere

    def close(self) -> None:
        """Do nothing more."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        for one in (self._obeying, self._storing):
            if one is not None:
                one.cancel()
        self._leavePrompts()

    async def run(self) -> None:
        """See the session to its end, and see to what is left."""
        if self.session.status not in TERMINAL and await self._launch():
            self._launched = True
            self.changed(self.session)
            await self._follow()
        session = self.session
        try:
            await self._insist(lambda: self._told(session))
        except CancelledError:
            raise
        except Exception:
            self.log.failure("What {session} held is not all ended", session=session.id)
        if session.goal == "cancelled" or session.deleted is not None:
            await self._forget()
        elif session.executorSeq:
            await self._acknowledge()

    async def _told(self, session: Session) -> None:
        if self._shared.onEnded is not None:
            await self._shared.onEnded(session)

    # To begin

    async def _launch(self) -> bool:
        """
        Make sure that the executor has the session.

        @return: whether there will be reports.
        """
        pause = self._settings.firstRetry
        spec: LaunchSpec | None = None
        self._watchDeadline()
        while True:
            session = self.session
            if session.status == "stopping" and not self._mayBeThere:
                # Nobody has begun what is to be ended.
                await self._finish(_ENDED)
                return False
            try:
                executor = self._executor()
                if await executor.describe(session.id) is not None:
                    self._lostAt = None
                    return True
                if self.session.status == "stopping":
                    await self._finish(_ENDED)
                    return False
                if session.status != "provisioning" or session.executorSeq:
                    await self._finish(_lost("its runner knows nothing of it any more"))
                    return False
                if spec is None:
                    spec = await self._shared.prepare(session)
                if self.session.status != "provisioning":
                    continue
                self._mayBeThere = True
                await executor.launch(session.id, spec)
            except (ExecutorRefused, LaunchImpossible) as error:
                await self._finish(_lost(str(error)))
                return False
            except ExecutorUnreachable as error:
                if not await self._unreachable(error, pause):
                    return False
            except DatabaseUnavailable:
                await deferLater(self._clock, pause)
            else:
                self._lostAt = None
                return True
            pause = min(pause * 2, self._settings.lastRetry)

    # What it reports

    async def _follow(self) -> None:
        """Read the reports until the session has ended."""
        pause = self._settings.firstRetry
        while self.session.status not in TERMINAL:
            before = self.session.executorSeq
            try:
                executor = self._executor()
                await self._read(executor.reports(self.session.id, before))
                if self.session.status in TERMINAL:
                    return
                # No exit among them: the host has the last word.
                described = await executor.describe(self.session.id)
                await self._judge(described)
            except ExecutorUnreachable as error:
                if not await self._unreachable(error, pause):
                    return
            except ExecutorRefused as error:
                await self._finish(_lost(str(error)))
                return
            except (Gap, DatabaseUnavailable):
                await deferLater(self._clock, pause)
            except (CancelledError, GeneratorExit):
                raise
            except Exception:
                self.log.failure(
                    "The reports of {session} cannot be stored", session=self.session.id
                )
                await self._finish(_lost("the server could not store what its runner reported"))
                return
            else:
                if self.session.status not in TERMINAL:
                    await deferLater(self._clock, pause)
            if self.session.executorSeq > before:
                pause = self._settings.firstRetry
            else:
                pause = min(pause * 2, self._settings.lastRetry)

    async def _judge(self, described: HostSession | None) -> None:
        if described is None:
            await self._finish(_lost("its runner knows nothing of it any more"))
        elif described.state == "ended" and described.lastSeq <= self.session.executorSeq:
            await self._finish(
                Report(
                    0,
                    0,
                    "exit",
                    exitCode=described.exitCode,
                    signal=described.signal,
                    error=described.error,
                )
            )

    async def _read(self, reports: AsyncIterator[Report]) -> None:
        """Read and store until the reports end."""
        self._broken = None
        self._reading = Deferred.fromCoroutine(self._readAll(reports))
        try:
            await self._reading
        except CancelledError:
            # What ends the reading from here says why; otherwise the driver stops.
            if self._broken is None and self.session.status not in TERMINAL:
                raise
        finally:
            self._reading = None
            while self._storing is not None:
                self._room = Deferred()
                await self._room
            self._buffer.clear()
        if self._broken is not None:
            raise self._broken

    async def _readAll(self, reports: AsyncIterator[Report]) -> None:
        keys = KeyLines()
        try:
            async for report in reports:
                self._lostAt = None
                self._buffer.append(keys.cleaned(report))
                self._store()
                if self._broken is not None or report.kind == "exit":
                    return
                if len(self._buffer) >= BUFFERED:
                    self._room = Deferred()
                    await self._room
        finally:
            close = getattr(reports, "aclose", None)
            if close is not None:
                await close()

    def _store(self) -> None:
        if self._storing is not None or self._broken is not None:
            return

        def done(failure: Failure | None) -> None:
            self._storing = None
            if failure is not None:
                self._broken = failure.value
                if self._reading is not None:
                    self._reading.cancel()
            room, self._room = self._room, None
            if room is not None:
                room.callback(None)

        self._storing = storing = Deferred.fromCoroutine(self._storeAll())
        storing.addBoth(done)

    async def _storeAll(self) -> None:
        while self._buffer:
            batch = self._buffer[:BATCH]
            self._took(await self._insist(lambda batch=batch: self._write(batch)))  # type: ignore[misc]
            del self._buffer[: len(batch)]
            if self._room is not None and len(self._buffer) < BUFFERED:
                room, self._room = self._room, None
                room.callback(None)

    async def _write(self, batch: list[Report]) -> Session:
        session = self.session.id
        return await self._shared.sessions.events.write(
            session, lambda connection, log: store(connection, log, session, batch)
        )

    async def _insist(self, function: Callable[[], Awaitable[T]]) -> T:
        """Do something, however long the database is away."""
        pause = self._settings.firstRetry
        while True:
            try:
                return await function()
            except DatabaseUnavailable:
                await deferLater(self._clock, pause)
                pause = min(pause * 2, self._settings.lastRetry)

    def _took(self, session: Session) -> None:
        """The session is otherwise now."""
        if session.executorSeq >= self.session.executorSeq:
            self.session = session
        if session.status in TERMINAL and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    # What is asked of it

    async def prompted(self, session: Session) -> None:
        """
        Somebody has something for the agent, which stands in the row.

        @return: when the executor has it, or has not answered for L{PROMPT_ANSWER}.
        @raise ExecutorRefused: the executor does not take it.
        """
        if not self._launched:
            # It is not known yet whether the executor can be reached.
            self.changed(session)
            return
        number = session.promptSeq
        asked = self._asking[number] = Deferred()
        enough = self._clock.callLater(PROMPT_ANSWER, self._leavePrompt, number)
        self.changed(session)
        try:
            await asked
        finally:
            if enough.active():
                enough.cancel()

    def changed(self, session: Session) -> None:
        """Somebody has asked for something, which stands in the row."""
        self._took(session)
        match session.status:
            case "pausing":
                self._wanted = "pause"
            case "resuming":
                self._wanted = "resume"
            case "stopping":
                force = self._forced or session.goal == "cancelled"
                self._wanted = "cancel" if force else "stop"
                self._watchDeadline()
            case _ if not session.prompts:
                return
        if self._wanted is not None and self._handing is not None:
            # A prompt that the executor does not answer to is not waited for.
            handing, self._handing = self._handing, None
            handing.cancel()
        if self._launched and self._obeying is None:
            obeying = Deferred.fromCoroutine(self._obey())
            if not obeying.called:
                self._obeying = obeying

            def done(failure: Failure | None) -> None:
                self._obeying = None
                if failure is not None and failure.check(CancelledError) is None:
                    self.log.failure("A session is no longer told what is wanted", failure)

            obeying.addBoth(done)

    async def _obey(self) -> None:
        pause = self._settings.firstRetry
        while self.session.status not in TERMINAL:
            verb = self._wanted
            try:
                if verb is not None:
                    await self._executor().control(
                        self.session.id, verb, deadline=self._remaining(verb)
                    )
                elif self.session.prompts:
                    await self._handOver(msgspec.convert(self.session.prompts[0], Prompt))
                else:
                    break
            except ExecutorUnreachable:
                self._leavePrompts()
                await deferLater(self._clock, pause)
                pause = min(pause * 2, self._settings.lastRetry)
                continue
            except ExecutorRefused as error:
                if verb is not None:
                    await self._refused(verb, error)
            if self._wanted is verb:
                self._wanted = None
            pause = self._settings.firstRetry
        self._leavePrompts()

    async def _handOver(self, prompt: Prompt) -> None:
        """Give the executor a prompt, and be done with it whatever it says."""
        refused: ExecutorRefused | None = None
        told = self._executor().control(
            self.session.id, "prompt", deadline=self._settings.stopDeadline, prompt=prompt
        )
        self._handing = handing = Deferred.fromCoroutine(told)
        try:
            await handing
        except ExecutorRefused as error:
            refused = error
        except CancelledError:
            if self._handing is handing:
                raise
            raise ExecutorUnreachable("something else is more urgent") from None
        finally:
            if self._handing is handing:
                self._handing = None
        session = self.session.id
        self._took(
            await self._insist(lambda: self._shared.sessions.prompted(session, prompt.number))
        )
        asked = self._asking.pop(prompt.number, None)
        if asked is not None and refused is not None:
            asked.errback(refused)
        elif asked is not None:
            asked.callback(None)

    def _leavePrompts(self) -> None:
        """Nobody need wait any longer: what is kept is handed over when it can be."""
        for number in list(self._asking):
            self._leavePrompt(number)

    def _leavePrompt(self, number: int) -> None:
        asked = self._asking.pop(number, None)
        if asked is not None and not asked.called:
            asked.callback(None)

    def _remaining(self, verb: Verb) -> float:
        if verb == "cancel":
            return 0.0
        stopBy = self.session.stopBy
        if verb != "stop" or stopBy is None:
            return self._settings.stopDeadline
        return max(stopBy - self._shared.wallClock(), 0.0)

    async def _refused(self, verb: Verb, error: ExecutorRefused) -> None:
        """What was asked for will not be; if the session has ended, a report says so."""
        if verb not in ("pause", "resume"):
            return
        session = self.session.id
        now = "pausing" if verb == "pause" else "resuming"
        found = await self._shared.sessions.get(session)
        if found is None or found.status != now:
            return
        await self._shared.sessions.events.append(
            session,
            "log",
            {"level": "warn", "stream": "system", "message": f"To {verb} it failed: {error}"},
        )
        if verb == "pause":
            self._took(await self._shared.sessions.change(session, "started"))

    # Deadlines

    def _watchDeadline(self) -> None:
        stopBy = self.session.stopBy
        if stopBy is None or self.session.status != "stopping" or self._deadline is not None:
            return
        wait = max(stopBy - self._shared.wallClock(), 0.0) + self._settings.stopGrace
        self._deadline = self._clock.callLater(wait, self._tooLate)

    def _tooLate(self) -> None:
        self._deadline = None
        if self.session.status != "stopping":
            return
        if not self._forced:
            self._forced = True
            self._deadline = self._clock.callLater(
                self._settings.stopDeadline + self._settings.stopGrace, self._tooLate
            )
            self.changed(self.session)
        elif self._lostAt is None:
            # The host can be reached, and yet it does not end.
            self._shared.work(self._finish(_lost("it could not be stopped")))

    async def _unreachable(self, error: ExecutorUnreachable, pause: float) -> bool:
        """
        Wait before the executor is tried again.

        @return: whether it is to be tried.
        """
        now = self._clock.seconds()
        if self._lostAt is None:
            self._lostAt = now
        limit = self._settings.unreachableLimit
        if self.session.status == "stopping":
            limit = min(limit, self._settings.stoppingLimit)
        if now - self._lostAt >= limit:
            await self._finish(_lost(f"its runner could not be reached any more: {error}"))
            return False
        await deferLater(self._clock, pause)
        return True

    # The end

    async def _finish(self, report: Report) -> None:
        """The session has ended without a report of it."""
        session = self.session.id

        async def write() -> Session:
            return await self._shared.sessions.events.write(
                session, lambda connection, log: finish(connection, log, session, report)
            )

        self._took(await self._insist(write))
        if self._reading is not None:
            self._reading.cancel()

    async def _forget(self) -> None:
        """Have the executor remove what is left, however long it takes to reach it."""
        pause = self._settings.firstRetry
        while True:
            try:
                await self._executor().forget(self.session.id)
                await self._shared.sessions.note(
                    self.session.id, forgotten=self._shared.wallClock()
                )
            except (ExecutorUnreachable, ExecutorRefused, DatabaseUnavailable):
                await deferLater(self._clock, pause)
                pause = min(pause * 2, self._settings.lastRetry)
            else:
                return

    async def _acknowledge(self) -> None:
        """Let the executor know that it need not keep the session, should it want its room."""
        try:
            await self._executor().acknowledge(self.session.id, self.session.executorSeq)
        except (ExecutorUnreachable, ExecutorRefused) as error:
            # It is told when it returns.
            self.log.debug("{session}: {error}", session=self.session.id, error=error)

    def _executor(self) -> Executor:
        return self._shared.executors.reach(self.session.executor)


_ENDED: Final = Report(0, 0, "exit", signal="SIGTERM")


def _lost(why: str) -> Report:
    return Report(0, 0, "exit", error=why)
