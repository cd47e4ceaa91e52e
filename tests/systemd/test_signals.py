"""Tests for L{helix_revdial.systemd.signals}."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any, cast

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.systemd.signals import SecondSignal


class Reactor:
    """Collects what it is asked to call."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def callFromThread(self, call: Callable[[], None]) -> None:
        self.calls.append(call)


class SecondSignalTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = Reactor()
        self.installed: dict[int, Any] = {}
        self.second = SecondSignal(
            cast(Any, self.reactor), install=lambda n, h: self.installed.update({n: h})
        )

    def test_takesNothingBeforeTheStop(self) -> None:
        """The first signal is the reactor's."""
        self.assertEqual(self.installed, {})

    def test_hurries(self) -> None:
        """G2: the second one, of either kind, ends the wait in the reactor's turn."""
        hurried: list[int] = []
        self.second.arm(lambda: hurried.append(1))
        self.second.arm(lambda: hurried.append(2))
        self.assertEqual(self.installed.keys(), {signal.SIGTERM, signal.SIGINT})
        self.installed[signal.SIGINT](signal.SIGINT, None)
        self.assertEqual(hurried, [], "called within the signal")
        for call in self.reactor.calls:
            call()
        self.assertEqual(hurried, [1, 2])

    def test_thirdEndsTheProcess(self) -> None:
        """One more signal does what it does to any program."""
        self.second.arm(lambda: None)
        self.installed[signal.SIGTERM](signal.SIGTERM, None)
        self.assertEqual(
            self.installed, {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.SIG_DFL}
        )
