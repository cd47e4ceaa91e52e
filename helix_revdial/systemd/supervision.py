# -*- test-case-name: tests.systemd.test_supervision -*-
"""
What the service manager knows of this process: ready, its state in a line,
alive, reloading, on its way out.

L{Supervision} owns when a message is sent; L{Notifier
<helix_revdial.systemd.notify.Notifier>} owns how.

Invariants:

  - The sign of life for the watchdog is sent by the reactor's own turns, so that a
    loop that is stuck is noticed.  It is never sent late to make up for one.
  - What must arrive (ready, reloading, stopping) is sent again until it has; a
    later state replaces an earlier one that has not got through.
  - While the process stops, the manager's patience is extended a little at a time, and
    never beyond the limit that was named: a stop that hangs is ended by the manager.
  - Nothing runs where there is no service manager.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from .notify import Notifier

INTERVAL = 2.0
"""Seconds between two looks at whether the line of status has changed."""

EXTENSION = 15.0
"""Seconds for which a process that is stopping asks for patience at a time."""

_STATES = ("READY", "RELOADING", "STOPPING")


def watchdogInterval(environment: Mapping[str, str], process: int | None = None) -> float | None:
    """
    How often a sign of life is wanted, as sd_watchdog_enabled(3) reads it.

    @param process: The process's number, this one's by default.
    @return: Seconds after which a silent process is ended; L{None} for never.
    """
    try:
        wanted = int(environment.get("WATCHDOG_USEC", "0"))
        meant = int(environment.get("WATCHDOG_PID", "0"))
    except ValueError:
        return None
    if wanted <= 0 or meant not in (0, os.getpid() if process is None else process):
        return None
    return wanted / 1e6


class Supervision:
    """
    Keeps the service manager informed.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        notifier: Notifier,
        describe: Callable[[], str],
        *,
        watchdog: float | None = None,
    ) -> None:
        """
        @param clock: Tells the time and calls later.
        @param notifier: The way to the manager.
        @param describe: The state of the process in a line, asked for again and again.
        @param watchdog: Seconds of silence after which the manager ends the process.
        """
        self.notifier = notifier
        self._clock = clock
        self._describe = describe
        self._watchdog = watchdog
        self._loops: list[LoopingCall] = []
        self._pending: dict[str, str] = {}
        self._status = ""
        self._patienceEnds: float | None = None
        self._over = False

    @classmethod
    def fromEnvironment(
        cls, clock: IReactorTime, environment: Mapping[str, str], describe: Callable[[], str]
    ) -> Supervision:
        """What C{NOTIFY_SOCKET} and C{WATCHDOG_USEC} ask for."""
        return cls(
            clock,
            Notifier.fromEnvironment(environment),
            describe,
            watchdog=watchdogInterval(environment),
        )

    def started(self) -> None:
        """
        The process can do its work.

        It is said in the reactor's next turn: what has not begun to run is not ready.
        """
        if self.notifier.enabled and not self._loops:
            self._pending["READY"] = "1"
            self._repeat(INTERVAL, self._tick)
            if self._watchdog is not None:
                self._repeat(self._watchdog / 2, self._alive)

    def reloading(self) -> None:
        """The settings are being read anew; L{reloaded} has to follow."""
        moment = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._state("RELOADING", {"MONOTONIC_USEC": str(moment)})

    def reloaded(self) -> None:
        """Reading the settings is over, whether they could be used or not."""
        self._state("READY", {})

    def stopping(self, limit: float) -> None:
        """
        The process is on its way out.

        @param limit: Seconds that it may take; the manager is kept patient for so long.
        """
        self._patienceEnds = self._clock.seconds() + limit
        self._state("STOPPING", {})

    def changed(self) -> None:
        """What the process is doing has changed: say so now."""
        self._tick()

    def ended(self) -> None:
        """Everything is done: say the last state, and no more."""
        self._tick()
        self._over = True
        for loop in self._loops:
            if loop.running:
                loop.stop()
        self._loops.clear()
        self.notifier.close()

    def _state(self, name: str, also: Mapping[str, str]) -> None:
        if self._over or not self.notifier.enabled:
            return
        for state in (*_STATES, "MONOTONIC_USEC"):
            self._pending.pop(state, None)
        self._pending[name] = "1"
        self._pending.update(also)
        self._tick()

    def _tick(self) -> None:
        if self._over or not self.notifier.enabled:
            return
        status = self._described()
        message = dict(self._pending)
        if status != self._status or message:
            message["STATUS"] = status
        if self._patienceEnds is not None:
            left = min(EXTENSION, self._patienceEnds - self._clock.seconds())
            if left > 0:
                message["EXTEND_TIMEOUT_USEC"] = str(int(left * 1e6))
        if message and self.notifier.send(message):
            self._pending.clear()
            self._status = status

    def _alive(self) -> None:
        self.notifier.send({"WATCHDOG": "1"})

    def _described(self) -> str:
        try:
            return self._describe()
        except Exception:
            self._log.failure("The line of status cannot be made.")
            return self._status

    def _repeat(self, interval: float, call: Callable[[], None]) -> None:
        loop = LoopingCall(call)
        loop.clock = self._clock
        self._loops.append(loop)
        self._clock.callLater(0, self._begin, loop, interval)

    def _begin(self, loop: LoopingCall, interval: float) -> None:
        if not self._over:
            loop.start(interval).addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        self._log.failure("systemd is told nothing any more.", failure)


__all__ = ["EXTENSION", "INTERVAL", "Supervision", "watchdogInterval"]
