"""Tests for L{helix_revdial.systemd.signals}."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.systemd.signals import SecondSignal


class Reactor:
    """Collects what it is asked to call."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def callFromThread(self, call: Callable[[], None]) -> None:
        self.calls.append(call)

    callWhenRunning = callFromThread

    def turn(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call()


class SecondSignalTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = Reactor()
        self.stopped: list[int] = []
        self.handlers: dict[int, Any] = {
            number: lambda number, frame: self.stopped.append(number)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        self.handlers[signal.SIGHUP] = signal.SIG_DFL
        self.hurried: list[str] = []
        self.second = SecondSignal(
            self.reactor,
            install=lambda n, h: self.handlers.update({n: h}),
            installed=self.handlers.__getitem__,
        )

    def send(self, number: int) -> None:
        self.handlers[number](number, None)

    def watch(self) -> None:
        self.second.watch()
        self.reactor.turn()

    def test_waitsForTheReactor(self) -> None:
        """The reactor puts its handlers in place first; ours go in front of them."""
        before = dict(self.handlers)
        self.second.watch()
        self.assertEqual(self.handlers, before)
        self.reactor.turn()
        self.assertNotEqual(self.handlers, before)

    def test_firstIsTheReactors(self) -> None:
        """The first signal stops the reactor, as without us."""
        self.watch()
        self.second.arm(lambda: self.hurried.append("a"))
        self.send(signal.SIGINT)
        self.reactor.turn()
        self.assertEqual((self.stopped, self.hurried), ([signal.SIGINT], []))

    def test_hangUp(self) -> None:
        """SIGHUP, which would end the process at once, stops the reactor; ignored, it stays so."""
        self.watch()
        self.send(signal.SIGHUP)
        self.assertEqual(self.stopped, [signal.SIGHUP])
        for other in (signal.SIG_IGN, print):
            self.handlers[signal.SIGHUP] = other
            self.watch()
            self.assertEqual(self.handlers[signal.SIGHUP], other)

    def test_hurries(self) -> None:
        """G2: the second one, of either kind, ends every wait in the reactor's turn."""
        self.watch()
        self.second.arm(lambda: self.hurried.append("a"))
        self.second.arm(lambda: self.hurried.append("b"))
        self.send(signal.SIGTERM)
        self.send(signal.SIGINT)
        self.assertEqual(self.hurried, [], "called within the signal")
        self.reactor.turn()
        self.assertEqual(self.hurried, ["a", "b"])
        self.assertEqual(self.stopped, [signal.SIGTERM])

    def test_bothBeforeTheStop(self) -> None:
        """G2: two signals that come at once count as two, although nothing has begun to stop."""
        self.watch()
        self.send(signal.SIGTERM)
        self.send(signal.SIGTERM)
        self.second.arm(lambda: self.hurried.append("a"))
        self.reactor.turn()
        self.assertEqual((self.stopped, self.hurried), ([signal.SIGTERM], ["a"]))

    def test_thirdEndsTheProcess(self) -> None:
        """One more signal does what it does to any program."""
        self.watch()
        self.send(signal.SIGTERM)
        self.send(signal.SIGTERM)
        self.assertEqual(set(self.handlers.values()), {signal.SIG_DFL})

    def test_ignoredStaysIgnored(self) -> None:
        """What whoever started the process has it ignore is left alone."""
        self.handlers[signal.SIGINT] = signal.SIG_IGN
        self.watch()
        self.assertIs(self.handlers[signal.SIGINT], signal.SIG_IGN)
        self.send(signal.SIGTERM)
        self.send(signal.SIGTERM)
        self.assertIs(self.handlers[signal.SIGINT], signal.SIG_IGN)
