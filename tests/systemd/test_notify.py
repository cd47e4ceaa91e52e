"""Tests for L{helix_revdial.systemd.notify}."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any, cast

from twisted.internet.testing import EventLoggingObserver
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.systemd.notify import MAX_DESCRIPTORS, Notifier

from .manager import ManagerSocket


class NotifierTests(SynchronousTestCase):
    def manager(self, address: str) -> ManagerSocket:
        manager = ManagerSocket(address)
        self.addCleanup(manager.close)
        return manager

    def path(self) -> str:
        # A socket's path has 107 bytes at most; trial's own directories are deep.
        return f"/proc/self/cwd/{os.path.relpath(self.mktemp())}.n"

    def notifier(self, manager: ManagerSocket) -> Notifier:
        notifier = Notifier.fromEnvironment({"NOTIFY_SOCKET": manager.address})
        self.addCleanup(notifier.close)
        return notifier

    def observe(self) -> Any:
        return EventLoggingObserver.createWithCleanup(cast(Any, self), globalLogPublisher)

    def test_path(self) -> None:
        """A message is one datagram of assignments."""
        manager = self.manager(self.path())
        self.assertTrue(self.notifier(manager).send({"READY": "1", "STATUS": "12 runners"}))
        self.assertEqual(manager.messages(), [{"READY": "1", "STATUS": "12 runners"}])

    def test_abstract(self) -> None:
        """A name that begins with @ is in the abstract name space."""
        manager = self.manager(f"@helix-revdial-test-{os.getpid()}")
        self.assertTrue(self.notifier(manager).send({"WATCHDOG": "1"}))
        self.assertEqual(manager.messages(), [{"WATCHDOG": "1"}])

    def test_nobodyListens(self) -> None:
        """Without the variable nothing is opened, and nothing fails."""
        for environment in ({}, {"NOTIFY_SOCKET": ""}):
            notifier = Notifier.fromEnvironment(environment)
            self.assertFalse(notifier.enabled)
            self.assertFalse(notifier.send({"READY": "1"}))

    def test_unknownAddress(self) -> None:
        """An address of another kind is said, once, and costs nothing else."""
        observer = self.observe()
        self.assertFalse(Notifier("vsock:2:1234").enabled)
        [event] = list(observer)
        self.assertIn("systemd is told nothing", formatEvent(event))

    def test_gone(self) -> None:
        """A manager that is gone is said once, and found when it is back."""
        observer = self.observe()
        path = self.path()
        notifier = self.notifier(self.manager(path))
        os.unlink(path)
        self.assertFalse(notifier.send({"WATCHDOG": "1"}))
        self.assertFalse(notifier.send({"WATCHDOG": "1"}))
        self.assertEqual(len(list(observer)), 1)
        manager = self.manager(path)
        self.assertTrue(notifier.send({"WATCHDOG": "1"}))
        self.assertEqual(manager.messages(), [{"WATCHDOG": "1"}])

    def test_neverWaits(self) -> None:
        """G6: a manager that does not read costs the message, never a wait."""
        notifier = self.notifier(manager := self.manager(self.path()))
        sent = 0
        while notifier.send({"STATUS": "x" * 900}):
            sent += 1
            self.assertLess(sent, 100_000, "the queue has no end")
        self.assertGreater(sent, 0)
        manager.messages()
        self.assertTrue(notifier.send({"STATUS": "y"}))

    def test_valueIsOneLine(self) -> None:
        """A value with a line's end in it forges no second assignment."""
        manager = self.manager(self.path())
        self.notifier(manager).send({"STATUS": "a\nMAINPID=1\x00" + "z" * 5000})
        [message] = manager.messages()
        self.assertEqual(list(message), ["STATUS"])
        self.assertTrue(message["STATUS"].startswith("a MAINPID=1 zzz"))
        self.assertEqual(len(message["STATUS"]), 1024)

    def test_descriptors(self) -> None:
        """Open files go with a message, and are the same files on the other side."""
        manager = self.manager(self.path())
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        notifier = self.notifier(manager)
        self.assertTrue(notifier.send({"FDSTORE": "1", "FDNAME": "c"}, [theirs.fileno()]))
        inode = os.fstat(theirs.fileno()).st_ino
        theirs.close()
        received = manager.next()
        assert received is not None
        message, [descriptor] = received
        self.assertEqual(message, {"FDSTORE": "1", "FDNAME": "c"})
        self.assertEqual(os.fstat(descriptor).st_ino, inode)
        with socket.socket(fileno=descriptor) as passed:
            ours.sendall(b"still there")
            self.assertEqual(passed.recv(100), b"still there")
        with self.assertRaises(ValueError):
            notifier.send({}, [0] * (MAX_DESCRIPTORS + 1))

    def test_notInherited(self) -> None:
        """The socket does not leak into programs that are started."""
        notifier = self.notifier(self.manager(self.path()))
        held = [
            number
            for number in map(int, os.listdir("/proc/self/fd"))
            if Path(f"/proc/self/fd/{number}").exists() and not os.get_inheritable(number)
        ]
        assert notifier._socket is not None
        self.assertIn(notifier._socket.fileno(), held)
