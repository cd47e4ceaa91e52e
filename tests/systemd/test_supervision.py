"""Tests for L{helix_revdial.systemd.supervision}."""

from __future__ import annotations

import os

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.systemd.supervision import EXTENSION, INTERVAL, Supervision, watchdogInterval

from .manager import ManagerSocket


class SupervisionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.manager = ManagerSocket(f"@helix-revdial-{os.getpid()}-{id(self)}")
        self.addCleanup(self.manager.close)
        self.status = "0 runners, 0 streams"

    def supervision(self, **environment: str) -> Supervision:
        supervision = Supervision.fromEnvironment(
            self.clock,
            {"NOTIFY_SOCKET": self.manager.address, **environment},
            lambda: self.status,
        )
        self.addCleanup(supervision.ended)
        return supervision

    def passes(self, seconds: float) -> list[dict[str, str]]:
        """What is said in the next C{seconds}."""
        said = []
        for _ in range(int(seconds * 2)):
            self.clock.advance(0.5)
            # A socket's queue has room for ten messages.
            said.extend(self.manager.messages())
        return said

    def test_ready(self) -> None:
        """Ready is said once the reactor runs, with what there is to tell."""
        self.supervision().started()
        self.assertEqual(self.manager.messages(), [], "said before the loop has turned")
        self.clock.advance(0)
        self.assertEqual(
            self.manager.messages(), [{"READY": "1", "STATUS": "0 runners, 0 streams"}]
        )

    def test_status(self) -> None:
        """The line of status follows what happens, and is sent when it is another."""
        self.supervision().started()
        self.passes(1)
        self.assertEqual(self.passes(INTERVAL * 5), [])
        self.status = "12 runners, 3 streams"
        self.assertEqual(self.passes(INTERVAL * 5), [{"STATUS": "12 runners, 3 streams"}])

    def test_watchdog(self) -> None:
        """G5: a sign of life comes at half of the time that the manager waits."""
        self.supervision(WATCHDOG_USEC="10000000").started()
        self.passes(1)
        self.assertEqual(self.passes(20), [{"WATCHDOG": "1"}] * 4)

    def test_watchdogOfAStuckLoop(self) -> None:
        """G5: signs of life that were missed while the loop stood are not made up for."""
        self.supervision(WATCHDOG_USEC="10000000").started()
        self.passes(1)
        self.clock.advance(60)
        self.assertEqual(self.manager.messages(), [{"WATCHDOG": "1"}])

    def test_watchdogInterval(self) -> None:
        """Only a whole number for this very process counts."""
        self.assertEqual(watchdogInterval({"WATCHDOG_USEC": "30000000"}), 30.0)
        self.assertEqual(
            watchdogInterval({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 7), 30.0
        )
        for environment in (
            {},
            {"WATCHDOG_USEC": "0"},
            {"WATCHDOG_USEC": "soon"},
            {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"},
        ):
            self.assertIsNone(watchdogInterval(environment, 7), environment)

    def test_reload(self) -> None:
        """A reload is announced with the moment it began, and its end is said."""
        supervision = self.supervision()
        supervision.started()
        self.passes(1)
        supervision.reloading()
        supervision.reloaded()
        first, second = self.manager.messages()
        self.assertEqual(first["RELOADING"], "1")
        self.assertGreater(int(first["MONOTONIC_USEC"]), 0)
        self.assertEqual(second["READY"], "1")
        self.assertNotIn("MONOTONIC_USEC", second)

    def test_stopping(self) -> None:
        """While it stops, the process asks for patience, up to the limit and no longer."""
        supervision = self.supervision()
        supervision.started()
        self.passes(1)
        self.status = "stopping: 3 streams"
        supervision.stopping(40)
        [said] = self.manager.messages()
        self.assertEqual(
            said,
            {
                "STOPPING": "1",
                "STATUS": "stopping: 3 streams",
                "EXTEND_TIMEOUT_USEC": str(int(EXTENSION * 1e6)),
            },
        )
        extended = self.passes(100)
        self.assertEqual(len(extended), 20)
        last = int(extended[-1]["EXTEND_TIMEOUT_USEC"]) / 1e6
        self.assertLess(last, INTERVAL + 0.5)
        supervision.ended()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_managerIsBusy(self) -> None:
        """What must arrive is sent again until it has; nothing is sent twice."""
        supervision = self.supervision()
        while supervision.notifier.send({"STATUS": "x" * 900}):
            pass
        supervision.started()
        self.clock.advance(0)
        supervision.stopping(5)
        self.manager.messages()
        [first, *_] = self.passes(INTERVAL)
        self.assertEqual(first["STOPPING"], "1")
        self.assertNotIn("READY", first, "a later state replaces an earlier one")
        self.assertTrue(all("STOPPING" not in each for each in self.passes(10)))

    def test_statusThatFails(self) -> None:
        """A line that cannot be made is logged; the watchdog is fed all the same."""
        supervision = Supervision.fromEnvironment(
            self.clock,
            {"NOTIFY_SOCKET": self.manager.address, "WATCHDOG_USEC": "2000000"},
            lambda: str(1 // 0),
        )
        self.addCleanup(supervision.ended)
        supervision.started()
        said = self.passes(4)
        self.assertIn({"WATCHDOG": "1"}, said)
        self.assertIn("READY", said[0])
        supervision.ended()
        self.assertGreater(len(self.flushLoggedErrors(ZeroDivisionError)), 0)

    def test_noManager(self) -> None:
        """Without a service manager nothing runs."""
        supervision = Supervision.fromEnvironment(self.clock, {}, lambda: "x")
        supervision.started()
        supervision.reloading()
        supervision.reloaded()
        supervision.stopping(30)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        supervision.ended()
