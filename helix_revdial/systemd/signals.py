# -*- test-case-name: tests.systemd.test_signals -*-
"""
The second signal.

The first SIGTERM or SIGINT is the reactor's: it stops, and services get to
finish what they do.  Twisted takes no notice of another one meanwhile, apart
from an error in the log.  From the moment a service begins to stop,
L{SecondSignal} takes both signals over: the next one ends the waiting, and the
one after it ends the process, whatever it does.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from twisted.internet.interfaces import IReactorFromThreads

SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""What ends a process in good order."""


class SecondSignal:
    """
    Notices that somebody does not want to wait.
    """

    def __init__(
        self,
        reactor: IReactorFromThreads,
        *,
        install: Callable[[int, Any], object] = signal.signal,
    ) -> None:
        """
        @param reactor: In whose turn the waiting is ended.
        @param install: As L{signal.signal}, to be called in the main thread only.
        """
        self._reactor = reactor
        self._install = install
        self._hurry: list[Callable[[], None]] = []

    def arm(self, hurry: Callable[[], None]) -> None:
        """
        From now on, a signal calls C{hurry} in the reactor's thread, once.

        To be called in the main thread, which is the reactor's.
        """
        self._hurry.append(hurry)
        if len(self._hurry) == 1:
            for number in SIGNALS:
                self._install(number, self._again)

    def _again(self, number: int, frame: FrameType | None) -> None:
        # A process that is stuck can still be ended by one more.
        for each in SIGNALS:
            self._install(each, signal.SIG_DFL)
        for hurry in self._hurry:
            self._reactor.callFromThread(hurry)


__all__ = ["SIGNALS", "SecondSignal"]
