# -*- test-case-name: tests.sessions.test_executors -*-
"""
The executors that there are, how they are, and which one gets a session.

Whoever knows of runner hosts adds and removes them here.  Each is asked how it is
at a fixed interval; what it said last is its health, and how often in a row it said
nothing makes it degraded or offline.  An executor that is offline gets no sessions;
those that it has stay its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from helix_revdial.sessions.executor import (
    Executor,
    ExecutorRefused,
    ExecutorUnreachable,
    HostHealth,
)
from helix_revdial.sessions.records import Session

HEARTBEAT: Final = 5.0
"""Seconds between two questions."""

DEGRADED_AFTER: Final = 2
"""Questions without an answer, after which an executor is degraded."""

OFFLINE_AFTER: Final = 3

Standing = Literal["ok", "degraded", "offline"]


@dataclass(slots=True)
class Registered:
    """
    An executor.

    @ivar id: the runner's key.
    @ivar tenant: whose sessions it takes; C{None} for everybody's.
    @ivar health: what it said last, or C{None}.
    @ivar lastHeartbeat: when, in seconds since the epoch.
    @ivar missed: questions without an answer since then.
    @ivar assigned: the sessions that it has or is about to get.
    """

    id: str
    executor: Executor
    tenant: str | None = None
    health: HostHealth | None = None
    lastHeartbeat: float | None = None
    missed: int = 0
    assigned: set[str] = field(default_factory=set)
    asking: Deferred[None] | None = None

    @property
    def standing(self) -> Standing:
        """How it is."""
        if self.health is None or self.missed >= OFFLINE_AFTER:
            return "offline"
        return "degraded" if self.missed >= DEGRADED_AFTER else "ok"

    @property
    def load(self) -> float:
        """How full it is, 1 when there is no room."""
        if self.health is None or self.health.slots <= 0:
            return 1.0
        return max(self.health.running, len(self.assigned)) / self.health.slots


class Executors:
    """
    Every executor of this server.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        wallClock: Callable[[], float],
        *,
        heartbeat: float = HEARTBEAT,
    ) -> None:
        """
        @param wallClock: seconds since the epoch.
        @param heartbeat: seconds between two questions.
        """
        self._clock = clock
        self._wallClock = wallClock
        self._heartbeat = heartbeat
        self._known: dict[str, Registered] = {}
        self._subscribers: list[Callable[[], None]] = []
        self._awaiting: list[Callable[[Registered], None]] = []
        self._listening: list[Callable[[Registered], None]] = []
        self._leaving: list[Callable[[str], None]] = []
        self._beat = LoopingCall(self._askAll)
        self._beat.clock = clock

    def __iter__(self) -> Iterator[Registered]:
        return iter(sorted(self._known.values(), key=lambda one: one.id))

    def __contains__(self, executor: object) -> bool:
        return executor in self._known

    def start(self) -> None:
        """Begin to ask."""
        if not self._beat.running:
            self._beat.start(self._heartbeat, now=True).addErrback(
                lambda failure: self._log.failure("Executors are no longer asked", failure)
            )

    def stop(self) -> None:
        """Ask no more."""
        if self._beat.running:
            self._beat.stop()
        for one in self._known.values():
            if one.asking is not None:
                one.asking.cancel()

    def add(self, executor: str, reached: Executor, *, tenant: str | None = None) -> Registered:
        """
        Take sessions to another executor.  One of the same id takes its place, and
        keeps its sessions.

        @param executor: its id.
        @param reached: how it is reached.
        @param tenant: whose sessions it takes; C{None} for everybody's.
        """
        before = self._known.get(executor)
        registered = self._known[executor] = Registered(executor, reached, tenant)
        if before is not None:
            registered.assigned = before.assigned
            if before.asking is not None:
                before.asking.cancel()
        self._ask(registered)
        return registered

    def remove(self, executor: str) -> None:
        """It is none any more: its sessions wait for its return."""
        gone = self._known.pop(executor, None)
        if gone is not None and gone.asking is not None:
            gone.asking.cancel()
        for callback in list(self._leaving):
            callback(executor)

    def get(self, executor: str | None) -> Registered | None:
        """The executor of that id."""
        return None if executor is None else self._known.get(executor)

    def reach(self, executor: str | None) -> Executor:
        """
        The same, to have it do something.

        @raise ExecutorUnreachable: when it is not there now.
        """
        found = self.get(executor)
        if found is None:
            raise ExecutorUnreachable(f"the runner {executor} is not connected")
        return found.executor

    def choose(self, session: Session) -> Registered | None:
        """
        The executor that is to run a session: the one that it asks for, or the least
        loaded that can.

        @return: C{None} while there is none.
        """
        request = session.request
        wanted = None if request.workspace is None else request.workspace.executionHostId
        able = [
            one
            for one in self
            if (wanted is None or one.id == wanted)
            and one.tenant in (None, session.tenant)
            and one.standing != "offline"
            and one.load < 1
            and one.health is not None
            and request.runtime.type in one.health.runtimes
            and (not one.health.agents or request.agent.type in one.health.agents)
        ]
        return min(able, key=lambda one: (one.load, one.id), default=None)

    @property
    def haveRoom(self) -> bool:
        """Whether any of them could take a session now."""
        return any(one.load < 1 and one.standing != "offline" for one in self._known.values())

    def onUsable(self, callback: Callable[[], None]) -> None:
        """Have C{callback} called when one may take sessions that could not before."""
        self._subscribers.append(callback)

    def onReturned(self, callback: Callable[[Registered], None]) -> None:
        """Have C{callback} called with each that answers for the first time, or again."""
        self._awaiting.append(callback)

    def onHeard(self, callback: Callable[[Registered], None]) -> None:
        """Have C{callback} called whenever one has said how it is."""
        self._listening.append(callback)

    def onRemoved(self, callback: Callable[[str], None]) -> None:
        """Have C{callback} called with the id of each that is none any more."""
        self._leaving.append(callback)

    def _askAll(self) -> None:
        for one in self:
            self._ask(one)

    def _ask(self, one: Registered) -> None:
        if one.asking is not None:
            # It has not answered the last question yet.
            self._missed(one)
            return
        one.asking = Deferred.fromCoroutine(self._listen(one))
        if one.asking.called:
            one.asking = None

    async def _listen(self, one: Registered) -> None:
        away = one.standing == "offline"
        was = one.load < 1 and not away
        try:
            health = await one.executor.host()
        except CancelledError:
            return
        except (ExecutorUnreachable, ExecutorRefused):
            self._missed(one)
            return
        except Exception:
            self._log.failure("The executor {id} cannot be asked how it is", id=one.id)
            self._missed(one)
            return
        finally:
            one.asking = None
        one.health, one.missed = health, 0
        one.lastHeartbeat = self._wallClock()
        for callback in list(self._listening):
            callback(one)
        if away:
            for callback in list(self._awaiting):
                callback(one)
        if not was and one.load < 1:
            self.usable()

    def usable(self) -> None:
        """Tell those who wait for room that there may be some."""
        for callback in list(self._subscribers):
            callback()

    def _missed(self, one: Registered) -> None:
        one.missed += 1
        if one.missed == OFFLINE_AFTER:
            self._log.warn("The executor {id} is offline", id=one.id)
