"""Dials that run out on agents that never say a word: what they prove, and what not."""

from __future__ import annotations

from itertools import count
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.connections import Connections
from helix_revdial.revdial.errors import DialTimeout
from helix_revdial.revdial.messages import ConnReady, dialIds
from tests.revdial.carriers import MemoryCarrier


class UnansweredTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        numbers = count(1)
        self.connections = Connections(
            self.clock, lambda: succeed(next(numbers)), wallClock=self.clock.seconds
        )
        registration = self.successResultOf(
            Deferred.fromCoroutine(
                self.connections.register(
                    "wolf-1", "family:a", "a", features=frozenset(), offered=False, peer="x"
                )
            )
        )
        self.carrier = MemoryCarrier("hijack").connect(registration.protocol)

    def dial(self, timeout: float | None = None) -> Deferred[Any]:
        endpoint = self.connections.endpoint("wolf-1", timeout=timeout)
        return endpoint.connect(Factory.forProtocol(Protocol))

    def runOut(self, timeout: float | None = None) -> None:
        waiting = self.dial(timeout)
        self.clock.pump([0.5] * 41)
        self.failureResultOf(waiting, DialTimeout)

    def test_twoInARow(self) -> None:
        """The runner is in grace after the second, and a third dial waits for its return."""
        self.runOut()
        self.assertEqual(self.connections.status("wolf-1"), "connected")
        self.runOut()
        self.assertEqual(self.connections.status("wolf-1"), "grace")
        self.assertTrue(self.carrier.aborted)
        waiting = self.dial()
        self.assertNoResult(waiting)
        waiting.addErrback(lambda _: None)

    def test_impatientCallersProveNothing(self) -> None:
        """A dial that its caller gives less time than the agent may take does not count."""
        for _ in range(5):
            self.runOut(1.0)
        self.assertEqual(self.connections.status("wolf-1"), "connected")

    def test_aPickUpInBetween(self) -> None:
        """An agent that dials back is there, whatever became of the dial before."""
        self.runOut()
        self.carrier.messages()
        waiting = self.dial()
        [ready] = [each for each in self.carrier.messages() if isinstance(each, ConnReady)]
        dialer, request = dialIds(ready.connPath)
        picked = self.connections.pickUp("a", dialer=dialer, request=request)
        picked.protocol.makeConnection(MemoryCarrier())
        self.successResultOf(waiting)
        self.runOut()
        self.assertEqual(self.connections.status("wolf-1"), "connected")
