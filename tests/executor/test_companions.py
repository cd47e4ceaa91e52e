"""What runs beside a task: started again when it dies, and not where it cannot run."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ProcessTerminated
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.executor.companions import AGAIN, Companion
from helix_revdial.executor.enter import CANNOT_ENTER, CANNOT_RUN, NOT_FOUND


class _Transport(StringTransport):
    pid = 4711

    def closeStdin(self) -> None:
        """Nothing is read."""


class _Reactor(Clock):
    """Starts nothing, and counts."""

    started = 0

    def spawnProcess(self, protocol: Companion, *_: Any, **__: Any) -> _Transport:
        self.started += 1
        transport = _Transport()
        protocol.makeConnection(transport)
        return transport


class CompanionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = _Reactor()
        self.companion = Companion(self.reactor, "the program", ["program"], {})
        self.companion.line.addErrback(lambda _: None)
        self.companion.start()

    def end(self, code: int) -> None:
        self.companion.processEnded(Failure(ProcessTerminated(code)))

    def test_again(self) -> None:
        """What dies is started again, with growing pauses."""
        for number, seconds in enumerate(AGAIN):
            self.end(1)
            self.assertIs(self.companion.pid, None)
            self.reactor.advance(seconds - 0.1)
            self.assertEqual(self.reactor.started, number + 1)
            self.reactor.advance(0.1)
            self.assertEqual(self.reactor.started, number + 2)
        self.assertIs(self.companion.impossible, None)

    def test_impossible(self) -> None:
        """What cannot be run is not tried again, and says why."""
        for code in (CANNOT_ENTER, CANNOT_RUN, NOT_FOUND):
            self.setUp()
            self.companion.childDataReceived(2, b"cannot run program: Permission denied\n")
            self.end(code)
            self.assertEqual(self.companion.impossible, "cannot run program: Permission denied")
            self.assertEqual(self.reactor.getDelayedCalls(), [])
