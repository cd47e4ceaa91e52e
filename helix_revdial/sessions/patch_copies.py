# -*- test-case-name: tests.api.test_patches -*-
"""
Has the patch of each task whose delivery is one copied from its host to the server.

When a host says that the patch is there, and again when the session ends otherwise than
by being cancelled, the patch is fetched and handed to L{Patches
<helix_revdial.sessions.patches.Patches>}.  A host that is away is asked again, with
growing pauses, for as long as L{GIVE_UP}; what was not fetched when the server ended is
fetched after the next start.  It is nobody's business but this module's whether that
succeeds: a session ends as it ends.

At most L{AT_ONCE} are fetched at the same time, and L{MAX_WAITING} wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final

from sqlalchemy import select
from twisted.internet.defer import CancelledError, Deferred, DeferredList, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from helix_revdial.sessions.events import Event
from helix_revdial.sessions.executor import ExecutorRefused, ExecutorUnreachable
from helix_revdial.sessions.executors import Executors
from helix_revdial.sessions.patches import Patches, PatchTooLarge
from helix_revdial.sessions.records import Session, fromRow
from helix_revdial.sessions.sessions import Sessions
from helix_revdial.storage.database import Database
from helix_revdial.storage.failures import DatabaseUnavailable
from helix_revdial.storage.tables import sessions as table

AT_ONCE: Final = 2

MAX_WAITING: Final = 1000

GIVE_UP: Final = 3600.0
"""Seconds for which a host is asked again."""

MISSED: Final = 86_400.0
"""Seconds since its end, for which a session's patch is looked for at a start."""

FIRST_PAUSE: Final = 1.0

LAST_PAUSE: Final = 60.0

SWEEP: Final = 3600.0
"""Seconds between two looks for what is too old."""

CHUNK: Final = 500
"""Sessions that are looked for at once."""

_ENDS: Final = ("completed", "failed", "stopped")


class PatchCopies:
    """
    Fetches patches.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        wallClock: Callable[[], float],
        database: Database,
        sessions: Sessions,
        executors: Executors,
        patches: Patches,
    ) -> None:
        """
        @param wallClock: seconds since the epoch.
        """
        self._clock = clock
        self._wallClock = wallClock
        self._database = database
        self._sessions = sessions
        self._executors = executors
        self._patches = patches
        self._turn = DeferredSemaphore(AT_ONCE)
        self._fetching: dict[str, Deferred[None]] = {}
        self._starting: Deferred[None] | None = None
        self._stopped = False
        self._unsubscribe: list[Callable[[], None]] = []
        self._sweeping = LoopingCall(lambda: Deferred.fromCoroutine(self._sweep()))
        self._sweeping.clock = clock

    def begin(self) -> None:
        """Begin, as soon as the database is there; what cannot be is logged."""
        if self._starting is None:
            self._starting = starting = Deferred.fromCoroutine(self._start())
            starting.addErrback(self._failed, "any session")

    async def _start(self) -> None:
        await self._patches.start()
        self._unsubscribe = [
            self._sessions.events.subscribeAll(self._happened),
            self._sessions.onDeleted(self._deleted),
        ]
        self._sweeping.start(SWEEP, now=True).addErrback(
            lambda failure: self._log.failure("Old patches are no longer removed", failure)
        )
        pause = FIRST_PAUSE
        while True:
            try:
                missed = await self._missed()
            except DatabaseUnavailable:
                await deferLater(self._clock, pause)
                pause = min(pause * 2, LAST_PAUSE)
            else:
                break
        for session in missed:
            self._begin(session.id)

    async def stop(self) -> None:
        """Fetch nothing more."""
        self._stopped = True
        if self._starting is not None:
            self._starting.cancel()
        if self._sweeping.running:
            self._sweeping.stop()
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        fetching = list(self._fetching.values())
        for one in fetching:
            one.cancel()
        await DeferredList(fetching, consumeErrors=True)

    @property
    def fetching(self) -> int:
        """How many patches are awaited."""
        return len(self._fetching)

    async def _missed(self) -> list[Session]:
        query = (
            select(table)
            .where(
                table.c.kind == "task",
                table.c.status.in_(_ENDS),
                table.c.ended > self._wallClock() - min(MISSED, self._patches.retention),
                table.c.executor.is_not(None),
                table.c.forgotten.is_(None),
                table.c.deleted.is_(None),
            )
            .order_by(table.c.ended.desc())
            .limit(MAX_WAITING)
        )
        found = await self._database.read(
            lambda connection: [fromRow(row) for row in connection.execute(query)]
        )
        return [one for one in found if _isWanted(one) and self._patches.get(one.id) is None]

    async def _sweep(self) -> None:
        """Remove what is too old, and what is of sessions that are gone, whoever removed them."""
        try:
            await self._patches.sweep()
            kept = self._patches.sessions
            for start in range(0, len(kept), CHUNK):
                chunk = kept[start : start + CHUNK]
                for session in set(chunk) - await self._there(chunk):
                    await self._patches.remove(session)
        except (OSError, DatabaseUnavailable) as error:
            self._log.error("Old patches cannot be removed: {error}", error=error)

    async def _there(self, sessions: list[str]) -> set[str]:
        query = select(table.c.id).where(table.c.id.in_(sessions), table.c.deleted.is_(None))
        return await self._database.read(
            lambda connection: set(connection.execute(query).scalars())
        )

    def _happened(self, event: Event) -> None:
        ends = event.ends and event.data.get("status") in _ENDS
        if ends or (event.type == "delivery" and event.data.get("mode") == "patch"):
            self._begin(event.session)

    def _deleted(self, session: Session) -> None:
        fetching = self._fetching.get(session.id)
        if fetching is not None:
            fetching.cancel()
        Deferred.fromCoroutine(self._patches.remove(session.id)).addErrback(
            lambda failure: self._log.failure("A patch cannot be removed", failure)
        )

    def _begin(self, session: str) -> None:
        if self._stopped or session in self._fetching or self._patches.get(session) is not None:
            return
        if len(self._fetching) >= MAX_WAITING:
            self._log.warn("The patch of {session} is not kept: too many wait", session=session)
            return
        fetching = Deferred.fromCoroutine(self._fetch(session))
        if fetching.called:
            fetching.addErrback(self._failed, session)
            return
        self._fetching[session] = fetching

        def done(result: object) -> object:
            self._fetching.pop(session, None)
            return result

        fetching.addBoth(done).addErrback(self._failed, session)

    def _failed(self, failure: Failure, session: str) -> None:
        if failure.check(CancelledError) is None:
            self._log.failure("The patch of {session} is not kept", failure, session=session)

    async def _fetch(self, session: str) -> None:
        pause, began = FIRST_PAUSE, self._clock.seconds()
        while True:
            try:
                found = await self._sessions.get(session)
                if found is None or not _isWanted(found) or found.forgotten is not None:
                    return
                await self._turn.acquire()
                try:
                    executor = self._executors.reach(found.executor)
                    await self._patches.put(session, executor.patch(session))
                finally:
                    self._turn.release()
            except (ExecutorUnreachable, DatabaseUnavailable) as error:
                if self._clock.seconds() - began >= GIVE_UP:
                    self._log.warn(
                        "The patch of {session} is not kept: {error}", session=session, error=error
                    )
                    return
                await deferLater(self._clock, pause)
                pause = min(pause * 2, LAST_PAUSE)
            except (ExecutorRefused, PatchTooLarge, OSError) as error:
                self._log.warn(
                    "The patch of {session} is not kept: {error}", session=session, error=error
                )
                return
            else:
                if self._sessions.wasDeleted(session):
                    await self._patches.remove(session)
                return


def _isWanted(session: Session) -> bool:
    """Whether a session's patch is what its task is to deliver, and there is one."""
    delivery = session.request.delivery if session.kind == "task" else None
    return delivery is not None and delivery.mode == "patch" and session.workspace is not None


__all__ = ["PatchCopies"]
