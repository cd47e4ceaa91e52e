# -*- test-case-name: tests.sessions.test_driver -*-
"""
Takes each task's session from its queue to its end.

The driver is the one caller of executors.  What a session is to become stands in
its row before an executor is asked for it; what it has become is what the executor
reports.  So a server that is killed at any point finds, when it starts again, what
there is to do: it asks the executor, goes on reading reports where the event log
ends, and asks again for what was asked for.

What holds:

  - a session is given to one executor, once; it is never given to a second one;
  - each report is stored once, in order, whatever breaks in between;
  - an executor that cannot be reached is tried again, with growing pauses.  Only
    when it could not be reached for L{DriverSettings.unreachableLimit} seconds is
    its session given up (C{failed}); what is left of it is removed when it returns;
  - what an executor that returns still runs of sessions that have ended here (given up
    meanwhile) is cancelled, so that nothing runs that nobody sees;
  - a session that is stopped and does not end by its deadline is cancelled, and
    given up when that does not end it either;
  - what is read from an executor and not stored yet is limited: then no more is read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ClassVar, Final

from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from helix_revdial.sessions.events import UnknownSession
from helix_revdial.sessions.executor import ExecutorRefused, ExecutorUnreachable, LaunchSpec
from helix_revdial.sessions.executors import Executors, Registered
from helix_revdial.sessions.lifecycle import TERMINAL, Illegal
from helix_revdial.sessions.records import Session
from helix_revdial.sessions.run import DriverSettings, Run, Shared
from helix_revdial.sessions.sessions import Sessions
from helix_revdial.storage.failures import DatabaseUnavailable

PLACE_AGAIN: Final = 5.0
"""Seconds after which those that wait for an executor are looked at in any case."""


class Driver:
    """
    Drives every session of a server.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        wallClock: Callable[[], float],
        sessions: Sessions,
        executors: Executors,
        prepare: Callable[[Session], Awaitable[LaunchSpec]],
        *,
        settings: DriverSettings | None = None,
        onEnded: Callable[[Session], Awaitable[None]] | None = None,
    ) -> None:
        """
        @param wallClock: seconds since the epoch.
        @param prepare: makes what a host is told of a session; it may raise
            L{LaunchImpossible}.
        @param onEnded: called with each session that has ended; once more, after a
            restart, if its token is still valid.
        """
        self.clock = clock
        self.sessions = sessions
        self.executors = executors
        self.settings = settings or DriverSettings()
        self.wallClock = wallClock
        self._onEnded = onEnded
        self._shared = Shared(
            clock, wallClock, sessions, executors, prepare, self.settings, onEnded, self.work
        )
        self._queue: dict[str, Session] = {}
        self._runs: dict[str, Run] = {}
        self._working: set[Deferred[None]] = set()
        self._placing = LoopingCall(self._place)
        self._placing.clock = clock
        self._stopped = False
        executors.onUsable(self._place)
        executors.onReturned(lambda one: self.work(self._reconcile(one)))

    @property
    def driven(self) -> int:
        """Sessions that an executor has."""
        return len(self._runs)

    @property
    def queued(self) -> int:
        """Sessions that wait for an executor."""
        return len(self._queue)

    def begin(self) -> None:
        """L{start} as soon as the database lets it."""
        self.work(self._insistOnStarting())

    async def _insistOnStarting(self) -> None:
        while True:
            try:
                await self.start()
            except DatabaseUnavailable as error:
                self._log.warn("Tasks are taken up later: {reason}", reason=str(error))
                await deferLater(self.clock, PLACE_AGAIN)
            else:
                return

    async def start(self) -> None:
        """
        Take up every session that has not ended.

        @raise DatabaseUnavailable: if they cannot be read.
        """
        for session in await self.sessions.unfinished():
            if session.id in self._runs or session.id in self._queue:
                continue
            if session.status == "queued":
                self._queue[session.id] = session
            else:
                self._drive(session)
        for one in self.executors:
            if one.standing != "offline":
                self.work(self._reconcile(one))
        if self._onEnded is not None:
            for session in await self.sessions.endedWithToken():
                await self._onEnded(session)
        if not self._placing.running and not self._stopped:
            self._placing.start(PLACE_AGAIN, now=True).addErrback(
                lambda failure: self._log.failure("Sessions are no longer placed", failure)
            )

    async def stop(self) -> None:
        """Let go of every session: the next start takes them up."""
        self._stopped = True
        if self._placing.running:
            self._placing.stop()
        for run in list(self._runs.values()):
            run.close()
        working = list(self._working)
        for one in working:
            one.cancel()
        await DeferredList(working, consumeErrors=True)

    def submit(self, session: Session) -> None:
        """Have a new session run."""
        if session.status == "queued" and not self._stopped:
            self._queue[session.id] = session
            self._place()

    # What people ask for

    async def end(
        self, session: str, *, cancel: bool = False, reason: str | None = None
    ) -> Session:
        """
        Stop a session, or cancel it.

        @param reason: for its C{status} event.
        @return: the session as it is then; it may still be stopping.
        @raise Illegal: when it has ended.
        """
        data = {"reason": reason} if reason else None
        settings = self.settings
        stopBy = self.wallClock() + settings.stopDeadline
        changed = await self.sessions.change(
            session, "cancel" if cancel else "stop", data, stopBy=stopBy
        )
        self._queue.pop(session, None)
        self._changed(changed)
        return changed

    async def pause(self, session: str) -> Session:
        """
        Have a session pause.

        @raise Illegal: unless it runs.
        """
        changed = await self.sessions.change(session, "pause")
        self._changed(changed)
        return changed

    async def resume(self, session: str, prompt: str | None = None) -> Session:
        """
        Have a session go on.

        @param prompt: what its agent is told; kept until its executor has it.
        @raise Illegal: unless it is paused.
        """
        changed = await self.sessions.resume(session, prompt)
        self._changed(changed)
        return changed

    async def prompt(self, session: Session, prompt: str) -> None:
        """
        Tell a running session's agent more.  Where its executor cannot be reached now, it
        is told when it can be.

        @raise Illegal: unless it runs.
        @raise ExecutorRefused: when the agent takes no prompts.
        @raise ExecutorUnreachable: when too many wait for the executor.
        """
        changed = await self.sessions.prompt(session.id, prompt)
        run = self._runs.get(session.id)
        if run is not None:
            await run.prompted(changed)

    async def delete(self, session: Session) -> None:
        """
        Remove a session that has ended: what its executor has of it goes, too.
        """
        deleted = await self.sessions.delete(session.id, tenant=session.tenant)
        if deleted is not None and deleted.executor and deleted.forgotten is None:
            self._drive(deleted)

    # Placing

    def _place(self) -> None:
        """Give those that wait to executors that have room."""
        if self._stopped:
            return
        for session in list(self._queue.values()):
            if not self.executors.haveRoom:
                break
            chosen = self.executors.choose(session)
            if chosen is None:
                continue
            del self._queue[session.id]
            chosen.assigned.add(session.id)
            self.work(self._begin(session, chosen))

    async def _begin(self, session: Session, chosen: Registered) -> None:
        try:
            changed = await self.sessions.change(session.id, "provision", executor=chosen.id)
        except (Illegal, UnknownSession):
            # It was stopped in the meantime.
            chosen.assigned.discard(session.id)
        except DatabaseUnavailable:
            chosen.assigned.discard(session.id)
            self._queue[session.id] = session
        else:
            self._drive(changed, mayBeThere=False)

    def _drive(self, session: Session, *, mayBeThere: bool = True) -> None:
        if self._stopped or session.id in self._runs:
            return
        run = self._runs[session.id] = Run(self._shared, session, mayBeThere=mayBeThere)
        registered = self.executors.get(session.executor)
        if registered is not None:
            registered.assigned.add(session.id)
        self.work(self._runToEnd(run))

    async def _runToEnd(self, run: Run) -> None:
        try:
            await run.run()
        finally:
            run.close()
            session = run.session
            self._runs.pop(session.id, None)
            registered = self.executors.get(session.executor)
            if registered is not None:
                registered.assigned.discard(session.id)
        # Its room is free.
        self._place()

    async def _reconcile(self, one: Registered) -> None:
        """What an executor has of sessions that have ended here is to end there, too."""
        try:
            for there in await one.executor.sessions():
                session = await self.sessions.get(there.session)
                if session is None or session.executor != one.id:
                    # Another server's, perhaps.
                    continue
                if session.status not in TERMINAL or session.id in self._runs:
                    continue
                if there.state == "ended":
                    await one.executor.acknowledge(session.id, there.lastSeq)
                    continue
                self._log.warn(
                    "{executor} still runs {session}, which is {status}: it is cancelled",
                    executor=one.id,
                    session=session.id,
                    status=session.status,
                )
                await one.executor.control(session.id, "cancel", deadline=0.0)
        except (ExecutorUnreachable, ExecutorRefused, DatabaseUnavailable) as error:
            self._log.info(
                "What {executor} has is looked at when it returns again: {error}",
                executor=one.id,
                error=str(error),
            )

    def _changed(self, session: Session) -> None:
        run = self._runs.get(session.id)
        if run is not None:
            run.changed(session)

    def work(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Have something done until it is done or the driver stops."""
        working = Deferred.fromCoroutine(coroutine)
        self._working.add(working)

        def done(result: object) -> None:
            self._working.discard(working)

        working.addErrback(self._failed).addBoth(done)

    def _failed(self, failure: Failure) -> None:
        """Something that nobody waits for has failed."""
        if failure.check(CancelledError) is None:
            self._log.failure("A session is no longer driven", failure)


__all__ = ["Driver"]
