# -*- test-case-name: tests.systemd.test_signals -*-
"""
The second signal.

The first SIGTERM or SIGINT is the reactor's: it stops, and services get to
finish what they do.  Twisted takes no notice of another one meanwhile, apart
from an error in the log.  L{SecondSignal} stands in front of the reactor's
handlers: it passes the first one on, the next one ends the waiting, and the
one after it ends the process, whatever it does.

SIGHUP, where nobody else has a use for it, counts as SIGTERM: a process whose terminal
is closed, or that is told to read settings which it reads at its start only, leaves in
good order, and a service manager starts it anew.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""What ends a process in good order."""


class SecondSignal:
    """
    Notices that somebody does not want to wait.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        install: Callable[[int, Any], object] = signal.signal,
        installed: Callable[[int], Any] = signal.getsignal,
    ) -> None:
        """
        @param reactor: Whose signals these are, and in whose turn the waiting ends
            (C{IReactorCore}, C{IReactorFromThreads}).
        @param install: As L{signal.signal}, which works in the main thread only.
        @param installed: As L{signal.getsignal}.
        """
        self._reactor = reactor
        self._install = install
        self._installed = installed
        self._first: dict[int, Callable[[int, FrameType | None], object]] = {}
        self._received = 0
        self._hurry: list[Callable[[], None]] = []

    def watch(self) -> None:
        """Count signals from the time on when the reactor has its own handlers in place."""
        self._reactor.callWhenRunning(self._stepInFront)

    def arm(self, hurry: Callable[[], None]) -> None:
        """
        Have C{hurry} called, in the reactor's thread, when a second signal comes or
        has come already.
        """
        self._hurry.append(hurry)
        if self._received > 1:
            self._reactor.callFromThread(hurry)

    def _stepInFront(self) -> None:
        for number in SIGNALS:
            handler = self._installed(number)
            # What is ignored, as SIGINT is under nohup, stays ignored.
            if callable(handler) and number not in self._first:
                self._first[number] = handler
                self._install(number, self._signalled)
        ends = self._first.get(signal.SIGTERM)
        if ends is not None and self._installed(signal.SIGHUP) == signal.SIG_DFL:
            self._first[signal.SIGHUP] = ends
            self._install(signal.SIGHUP, self._signalled)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self._received += 1
        if self._received == 1:
            self._first[number](number, frame)
            return
        # A process that is stuck can still be ended by one more.
        for each in self._first:
            self._install(each, signal.SIG_DFL)
        for hurry in self._hurry:
            self._reactor.callFromThread(hurry)


__all__ = ["SIGNALS", "SecondSignal"]
