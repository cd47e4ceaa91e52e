"""Tests for L{helix_revdial.systemd.store}."""

from __future__ import annotations

import fcntl
import os

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.systemd.notify import MAX_DESCRIPTORS, Notifier
from helix_revdial.systemd.store import PATIENCE, DescriptorStore, handedOver

from .manager import ManagerSocket


class DescriptorStoreTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.manager = ManagerSocket(f"@helix-revdial-store-{os.getpid()}-{id(self)}")
        self.addCleanup(self.manager.close)
        self.notifier = Notifier(self.manager.address)
        self.addCleanup(self.notifier.close)
        self.store = DescriptorStore(self.clock, self.notifier)

    def next(self) -> tuple[dict[str, str], int]:
        """The next message, and how many descriptors came with it."""
        received = self.manager.next()
        assert received is not None, "nothing was said"
        for each in received[1]:
            os.close(each)
        return received[0], len(received[1])

    def fill(self) -> None:
        """The manager's queue is full."""
        while self.notifier.send({"STATUS": "x"}):
            pass

    def empty(self) -> None:
        self.manager.messages()

    def test_put(self) -> None:
        """More descriptors than go with one message go with several."""
        ours = os.open("/dev/null", os.O_RDONLY)
        self.addCleanup(os.close, ours)
        putting = Deferred.fromCoroutine(self.store.put("hrc", [ours] * (MAX_DESCRIPTORS + 3)))
        self.assertTrue(self.successResultOf(putting))
        said = {"FDSTORE": "1", "FDNAME": "hrc"}
        self.assertEqual([self.next(), self.next()], [(said, MAX_DESCRIPTORS), (said, 3)])

    def test_remove(self) -> None:
        """What is taken back is kept no more."""
        self.assertTrue(self.successResultOf(Deferred.fromCoroutine(self.store.remove("hrc"))))
        self.assertEqual(self.next(), ({"FDSTOREREMOVE": "1", "FDNAME": "hrc"}, 0))

    def test_busyManager(self) -> None:
        """A message that the queue had no room for is sent again, once."""
        self.fill()
        removing = Deferred.fromCoroutine(self.store.remove("hrc"))
        self.clock.advance(1)
        self.assertNoResult(removing)
        self.empty()
        self.clock.advance(1)
        self.assertTrue(self.successResultOf(removing))
        self.assertEqual(len(self.manager.messages()), 1)

    def test_managerThatNeverReads(self) -> None:
        """The wait has a limit."""
        self.fill()
        removing = Deferred.fromCoroutine(self.store.remove("hrc"))
        self.clock.pump([0.1] * int(PATIENCE * 10 + 2))
        self.assertFalse(self.successResultOf(removing))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_settled(self) -> None:
        """The manager has read everything when it closes what came with the barrier."""
        settling = Deferred.fromCoroutine(self.store.settled())
        self.clock.advance(1)
        self.assertNoResult(settling)
        self.assertEqual(self.next(), ({"BARRIER": "1"}, 1))
        self.clock.advance(1)
        self.assertTrue(self.successResultOf(settling))

    def test_settledNever(self) -> None:
        """A manager that knows no barrier is not waited for beyond the limit."""
        before = len(os.listdir("/proc/self/fd"))
        settling = Deferred.fromCoroutine(self.store.settled())
        self.clock.pump([0.1] * int(PATIENCE * 10 + 2))
        self.assertFalse(self.successResultOf(settling))
        self.next()
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    def test_noManager(self) -> None:
        """Without a manager nothing is kept, and nobody waits."""
        store = DescriptorStore(self.clock, Notifier(None))
        for asking in (store.put("hrc", [0]), store.remove("hrc"), store.settled()):
            self.assertFalse(self.successResultOf(Deferred.fromCoroutine(asking)))


class HandedOverTests(SynchronousTestCase):
    def setUp(self) -> None:
        nothing = os.open("/dev/null", os.O_RDONLY)
        self.addCleanup(os.close, nothing)
        # Above those that come and go in a process that has run other tests.
        self.first = fcntl.fcntl(nothing, fcntl.F_DUPFD, 600)
        self.addCleanup(os.close, self.first)

    def handed(self, **environment: str) -> dict[str, list[int]]:
        return handedOver(environment, ("hrc", "hrs"), start=self.first)

    def test_byName(self) -> None:
        """Descriptors come under their names; those of sockets that listen are left alone."""
        second = fcntl.fcntl(self.first, fcntl.F_DUPFD, self.first)
        self.addCleanup(os.close, second)
        self.assertEqual(second, self.first + 1, "descriptors in a row are needed")
        environment = {"LISTEN_FDNAMES": "http:hrc", "LISTEN_PID": str(os.getpid())}
        found = handedOver(environment, ("hrc", "hrs"), start=self.first)
        self.assertEqual(found, {"hrc": [second]})
        self.assertFalse(os.get_inheritable(second))
        self.assertTrue(os.get_inheritable(self.first))
        self.assertEqual(environment["LISTEN_FDNAMES"], "", "they are found once only")

    def test_forAnother(self) -> None:
        """What is meant for another process is not ours."""
        self.assertEqual(self.handed(LISTEN_FDNAMES="hrc", LISTEN_PID="1"), {})

    def test_afterTwistedLooked(self) -> None:
        """Twisted takes the number and the process out of the environment; the names do."""
        self.assertEqual(self.handed(LISTEN_FDNAMES="hrc"), {"hrc": [self.first]})

    def test_nothing(self) -> None:
        """Nothing is handed over, or nothing of that name, or what is not open."""
        self.assertEqual(self.handed(), {})
        self.assertEqual(self.handed(LISTEN_FDNAMES="http"), {})
        closed = {"LISTEN_FDNAMES": "hrc"}
        self.assertEqual(handedOver(closed, ("hrc",), start=100_000), {})
