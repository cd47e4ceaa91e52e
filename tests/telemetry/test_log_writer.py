"""Writing lines to descriptors of which some are not read: real pipes, files and sockets."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.telemetry.log_writer import LogWriter

PIPE_SIZE = 4096


def readAll(descriptor: int) -> bytes:
    """What is in a pipe or socket now, and what comes until its end."""
    parts = []
    while part := os.read(descriptor, 65536):
        parts.append(part)
    return b"".join(parts)


class StalledPipe(SynchronousTestCase):
    """G6: whoever reads the log has stopped."""

    def setUp(self) -> None:
        self.reading, self.writing = os.pipe()
        fcntl.fcntl(self.writing, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        self.addCleanup(os.close, self.reading)
        self.open = True
        self.addCleanup(self.closeWriting)

    def closeWriting(self) -> None:
        if self.open:
            self.open = False
            os.close(self.writing)

    def writer(self, **options: int) -> LogWriter:
        writer = LogWriter(
            self.writing, lost=lambda count: f"{count} were dropped\n".encode(), **options
        )
        self.addCleanup(writer.close)
        return writer

    def test_theFlagOfTheGivenDescriptorStays(self) -> None:
        """Its description is shared with other processes: theirs must not stop blocking."""
        self.writer()
        self.assertTrue(os.get_blocking(self.writing))

    def test_atOnce(self) -> None:
        """A line is out when C{write} returns: a crash after it loses nothing."""
        writer = self.writer()
        writer.write(b"one\n")
        os.set_blocking(self.reading, False)
        self.assertEqual(os.read(self.reading, 100), b"one\n")
        self.assertEqual(writer.held, 0)

    def test_neverBlocks(self) -> None:
        """G6: a reader that stopped costs microseconds a line and a bounded memory."""
        writer = self.writer(maxHeld=50_000)
        begun = time.monotonic()
        for number in range(5000):
            writer.write(b"line %06d %s\n" % (number, b"x" * 80))
        self.assertLess(time.monotonic() - begun, 5, "writing waited for the reader")
        self.assertLessEqual(writer.held, 50_000)
        self.assertGreater(writer.dropped, 3000)

    def test_everyLineThatIsNotDroppedComesWholeAndInOrder(self) -> None:
        """When the reader is back it gets what was held, and then how much was not."""
        writer = self.writer(maxHeld=50_000)
        for number in range(2000):
            writer.write(b"line %06d %s\n" % (number, b"x" * 80))
        dropped = writer.dropped
        os.set_blocking(self.reading, False)
        got = b""
        end = time.monotonic() + 10
        while not got.endswith(b"were dropped\n") and time.monotonic() < end:
            try:
                got += os.read(self.reading, 65536)
            except BlockingIOError:
                time.sleep(0.001)
        lines = got.decode().splitlines()
        self.assertEqual(lines[-1], f"{dropped} were dropped")
        numbers = [int(line.split()[1]) for line in lines[:-1]]
        self.assertEqual(numbers, list(range(2000 - dropped)))
        self.assertTrue(all(len(line) == 92 for line in lines[:-1]), "a line was torn")
        self.assertTrue(writer.flush(5))
        writer.write(b"after\n")
        time.sleep(0)
        self.assertEqual(os.read(self.reading, 100), b"after\n")

    def test_flush(self) -> None:
        """The last lines get their time, and no more than that."""
        writer = self.writer()
        writer.write(b"x" * 10_000 + b"\n")
        begun = time.monotonic()
        self.assertFalse(writer.flush(0.05))
        self.assertLess(time.monotonic() - begun, 2)
        child = os.fork()
        if not child:
            # A reader that is slow, in a process of its own.
            try:
                os.set_blocking(self.reading, True)
                taken = 0
                while taken < 10_001:
                    taken += len(os.read(self.reading, 1000))
            finally:
                os._exit(0)
        self.assertTrue(writer.flush(10))
        os.waitpid(child, 0)

    def test_theReaderIsGone(self) -> None:
        """Nobody will ever read it: lines are counted and forgotten, nothing is raised."""
        reading, writing = os.pipe()
        self.addCleanup(os.close, writing)
        writer = LogWriter(writing)
        self.addCleanup(writer.close)
        os.close(reading)
        for _ in range(10):
            writer.write(b"line\n")
        self.assertEqual((writer.dropped, writer.held), (10, 0))

    def test_closed(self) -> None:
        """After C{close}, and for a descriptor that was never there, lines are dropped."""
        writer = self.writer()
        writer.close()
        writer.write(b"line\n")
        self.assertEqual(writer.dropped, 1)
        nowhere = LogWriter(987_654) if not os.path.exists("/proc/self/fd/987654") else writer
        nowhere.write(b"line\n")
        self.assertGreaterEqual(nowhere.dropped, 1)


class OtherDescriptors(SynchronousTestCase):
    """What a log is written to besides pipes."""

    def test_file(self) -> None:
        """A file gets every line, behind what it had."""
        path = Path(self.mktemp())
        path.write_bytes(b"before\n")
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        self.addCleanup(os.close, descriptor)
        writer = LogWriter(descriptor)
        writer.write(b"y" * 100_000 + b"\n")
        writer.write(b"end\n")
        self.assertEqual(path.read_bytes(), b"before\n" + b"y" * 100_000 + b"\nend\n")

    def test_stalledSocket(self) -> None:
        """G6: the journal is a socket; one that is full holds nobody up."""
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        writer = LogWriter(ours.fileno(), maxHeld=100_000)
        self.addCleanup(writer.close)
        self.assertTrue(ours.getblocking())
        count = 0
        begun = time.monotonic()
        while not writer.dropped and count < 100_000:
            writer.write(b"%06d %s\n" % (count, b"z" * 1000))
            count += 1
        self.assertLess(time.monotonic() - begun, 10)
        self.assertEqual(writer.dropped, 1, "the socket never filled up")
        self.assertTrue(ours.getblocking(), "the given socket was changed")
        theirs.settimeout(5)
        got = b""
        while got.count(b"\n") < count - 1:
            got += theirs.recv(1 << 20)
        numbers = [int(line[:6]) for line in got.splitlines()]
        self.assertEqual(numbers, list(range(count - 1)))


PROGRAM = """
import os, sys, time
from helix_revdial.telemetry.log_writer import LogWriter
writer = LogWriter(1)
for number in range(200):
    writer.write(b"%06d %s\\n" % (number, b"x" * 100))
pid = os.fork()
if not pid:
    writer.write(b"child\\n")
    writer.flush(10)
    os._exit(0)
os.waitpid(pid, 0)
writer.flush(10)
os.kill(os.getpid(), 9)
"""


class ProcessTests(SynchronousTestCase):
    """The end of a process, and a fork."""

    def test_lastLines(self) -> None:
        """A process that ends at once after C{flush} has lost none of its lines."""
        process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE)
        assert process.stdout is not None
        fcntl.fcntl(process.stdout.fileno(), fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        got = readAll(process.stdout.fileno())
        process.stdout.close()
        self.assertEqual(process.wait(10), -signal.SIGKILL)
        numbers = [line for line in got.splitlines() if line != b"child"]
        self.assertEqual(len({line[:6] for line in numbers}), 200)
        self.assertTrue(b"child" in got, "the child of a fork wrote nothing")


INTERRUPTED = """
import os, signal, sys
from helix_revdial.telemetry.log_writer import LogWriter
writer = LogWriter(1)
some = writer._some
def interrupted(data):
    if data.startswith(b"line"):
        done = some(data[:6])
        os.kill(os.getpid(), signal.SIGUSR1)
        return done
    return some(data)
writer._some = interrupted
signal.signal(signal.SIGUSR1, lambda number, frame: writer.write(b"from the handler\\n"))
for number in range(3):
    writer.write(b"line %d, long enough\\n" % number)
    writer.flush(10)
"""


class SignalTests(SynchronousTestCase):
    """What a signal's handler logs while its thread writes."""

    def test_amidALine(self) -> None:
        """It comes whole, behind the line; neither waits for the other for ever."""
        done = subprocess.run(
            [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60
        )
        lines = [f"line {number}, long enough" for number in range(3)]
        expected = [line for each in lines for line in (each, "from the handler")]
        self.assertEqual((done.stdout.splitlines(), done.stderr), (expected, ""))
