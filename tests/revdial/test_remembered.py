"""Tests for L{helix_revdial.revdial.remembered}, and for whom the connections then await."""

from __future__ import annotations

import json
import os
from itertools import count
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.connections import Connections
from helix_revdial.revdial.errors import HeldByAnother, NotConnected, ReconnectTimeout
from helix_revdial.revdial.remembered import MAX_AGE, WRITE_EVERY, Known, Remembered

WOLF: Known = {"key": "wolf-1", "owner": "family:a", "credential": "a", "generation": 7}


class RememberedTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.path = Path(self.mktemp())
        self.known: list[Known] = []
        self.now = 1_800_000_000.0
        self.remembered = self.make()

    def make(self) -> Remembered:
        return Remembered(self.clock, self.path, lambda: self.known, lambda: self.now)

    def test_afterACrash(self) -> None:
        """A9: it is there for the next start without a word from the last one."""
        self.remembered.start()
        self.known = [WOLF]
        self.clock.advance(WRITE_EVERY)
        self.assertEqual(self.make().read(), [WOLF])
        self.assertEqual(os.stat(self.path).st_mode & 0o777, 0o600)

    def test_atTheEnd(self) -> None:
        """What has changed since the last look is written when the server stops."""
        self.remembered.start()
        self.known = [WOLF]
        self.remembered.stop()
        self.assertEqual(self.make().read(), [WOLF])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_onlyWhatChangesIsWritten(self) -> None:
        """Once a while anyway, or the file would look old."""
        self.remembered.start()
        self.known = [WOLF]
        self.clock.advance(WRITE_EVERY)
        written = self.path.stat().st_ino
        self.clock.advance(WRITE_EVERY)
        self.assertEqual(self.path.stat().st_ino, written)
        self.now += MAX_AGE / 2
        self.clock.advance(WRITE_EVERY)
        self.assertEqual(json.loads(self.path.read_text())["written"], self.now)

    def test_filesThatSayNothing(self) -> None:
        """Missing, damaged, of another form, old, or from the future: nobody is awaited."""
        self.assertEqual(self.remembered.read(), [])
        for text in (b"", b"{", b"[]", b'{"written": 1800000000, "runners": [{}]}', b"\xff"):
            self.path.write_bytes(text)
            self.assertEqual(self.remembered.read(), [], text)
        self.known = [WOLF]
        self.remembered.write()
        for away in (MAX_AGE + 1, -1):
            self.now += away
            self.assertEqual(self.remembered.read(), [])
            self.now -= away

    def test_aDirectoryThatCannotBeWritten(self) -> None:
        """It is logged; the server goes on."""
        self.path = self.path / "missing" / "file"
        self.known = [WOLF]
        self.make().write()


class SettleTests(SynchronousTestCase):
    """A9: nobody is judged dead before the settle time is over."""

    def setUp(self) -> None:
        self.clock = Clock()
        numbers = count(8)
        self.connections = Connections(
            self.clock, lambda: succeed(next(numbers)), wallClock=self.clock.seconds
        )
        self.assertEqual(self.connections.expect([WOLF, WOLF], 45), 1)

    def dial(self, timeout: float | None = None) -> Deferred[Any]:
        endpoint = self.connections.endpoint("wolf-1", timeout=timeout)
        return endpoint.connect(Factory.forProtocol(Protocol))

    def register(self, owner: str) -> Deferred[Any]:
        return Deferred.fromCoroutine(
            self.connections.register(
                "wolf-1", owner, "a", features=frozenset(), offered=True, peer="192.0.2.1"
            )
        )

    def test_dialsWait(self) -> None:
        """And go to the agent that is back."""
        waiting = self.dial()
        self.clock.advance(30)
        self.assertNoResult(waiting)
        self.successResultOf(self.register("family:a"))
        self.assertEqual(self.connections.status("wolf-1"), "connected")
        self.assertNoResult(waiting)
        waiting.cancel()
        self.failureResultOf(waiting)

    def test_theNameIsKept(self) -> None:
        """For its owner, as in grace."""
        self.failureResultOf(self.register("family:b"), HeldByAnother)

    def test_theEnd(self) -> None:
        """Then it is as gone as any that does not come back."""
        waiting = self.dial()
        self.clock.advance(45.1)
        self.failureResultOf(waiting, ReconnectTimeout)
        self.failureResultOf(self.dial(), NotConnected)
        self.assertEqual(self.connections.known(), [])

    def test_whoWasNeverThere(self) -> None:
        """Is not awaited."""
        endpoint = self.connections.endpoint("wolf-2")
        self.failureResultOf(endpoint.connect(Factory.forProtocol(Protocol)), NotConnected)
