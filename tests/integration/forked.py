"""
Programs of ours as processes that cost a fork, not a second of imports.

A test process has one interpreter (C{python -m tests.integration.forked}) that has
imported what the programs import, has no reactor and no thread, and does nothing but
fork: each child becomes C{twistd} with a test's arguments, environment, directory and
output, and nothing of its parent's but the modules.  What a program does when it is
started by its own command is tested where that is started: C{test_server},
C{test_serve}, C{test_agent} and others.  Twisted reads what a service manager passes
when it is imported: such programs cannot be forked.

The protocol: one request, a line of JSON beside three descriptors (its standard input
and output, and a socket), for each child.  That socket carries the child's pid, and when
it has ended its status; then it is closed.  The interpreter ends, and its children
with it, when the process that started it is gone.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import IO, Any, NoReturn

from .scripted import ROOT

LIMIT = 60.0
"""Seconds that the interpreter may take to fork, its own start included."""

PLAIN = "twisted.scripts.twistd"
INSPECTED = "tests.integration.inspected"
"""Modules whose C{run} is C{twistd}: as it is, and with a side door."""

ALSO = ("helix_revdial.storage.schema", "helix_revdial.executor.tap", "psycopg")
"""What the programs import late."""


class Forked:
    """
    A process, as L{subprocess.Popen} has it.

    @ivar pid: Its number.
    @ivar returncode: How it ended, as there; C{None} while it runs.
    """

    def __init__(
        self,
        program: str,
        arguments: Sequence[str],
        *,
        output: IO[Any],
        environment: Mapping[str, str],
        directory: str | os.PathLike[str] = ROOT,
    ) -> None:
        """
        @param program: L{PLAIN} or L{INSPECTED}.
        @param output: A file, for all that it says.
        """
        self.returncode: int | None = None
        self._said = b""
        asked = {
            "program": program,
            "arguments": list(arguments),
            "environment": dict(environment),
            "directory": os.fspath(directory),
        }
        self._ended, theirs = socket.socketpair()
        with theirs, open(os.devnull, "rb") as nothing:
            descriptors = [nothing.fileno(), output.fileno(), theirs.fileno()]
            _interpreter().ask(json.dumps(asked).encode() + b"\n", descriptors)
        self._ended.settimeout(LIMIT)
        self.pid = int(self._line())

    def _line(self) -> bytes:
        while b"\n" not in self._said:
            piece = self._ended.recv(100)
            if not piece:
                raise AssertionError("the interpreter that forks is gone; its output says why")
            self._said += piece
        line, _, self._said = self._said.partition(b"\n")
        return line

    def poll(self) -> int | None:
        """How it ended, or C{None}."""
        if self.returncode is None and select.select([self._ended], [], [], 0)[0]:
            self._collect()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """
        Wait until it has ended.

        @raise subprocess.TimeoutExpired: It has not within C{timeout} seconds.
        """
        if self.returncode is None:
            if not select.select([self._ended], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self._collect()
        assert self.returncode is not None
        return self.returncode

    def _collect(self) -> None:
        self.returncode = os.waitstatus_to_exitcode(int(self._line()))
        self._ended.close()

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


Running = Forked | subprocess.Popen[bytes]
"""A process that a test has started."""


class _Interpreter:
    """The interpreter that forks, from outside."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.forked", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env={"PATH": os.environ.get("PATH", ""), "PYTHONUNBUFFERED": "1"},
                pass_fds=[theirs.fileno()],
            )
        atexit.register(self.stop)

    def ask(self, line: bytes, descriptors: list[int]) -> None:
        """Ask for a process."""
        socket.send_fds(self._socket, [line], descriptors)

    def stop(self) -> None:
        """End it, and all its children."""
        self._socket.close()
        self._process.wait()


@functools.cache
def _interpreter() -> _Interpreter:
    """This process's."""
    return _Interpreter()


class _Parent:
    """The interpreter that forks, inside: it waits for requests and for its children."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._children: dict[int, tuple[int, socket.socket]] = {}
        # No descriptor of its own, that a child would have to close.
        self._waiting = select.poll()
        self._waiting.register(requests.fileno(), select.POLLIN)

    def run(self) -> None:
        """Serve until nobody can ask any more."""
        asked = True
        while asked:
            for number, _ in self._waiting.poll():
                if number != self._requests.fileno():
                    self._gone(number)
                elif not self._serve():
                    asked = False
        for pid, _ in self._children.values():
            os.kill(pid, signal.SIGKILL)

    def _serve(self) -> bool:
        line, descriptors, _, _ = socket.recv_fds(self._requests, 1 << 20, 3)
        if not descriptors:
            return False
        # The descriptors come with the first bytes of a request that may be long.
        while not line.endswith(b"\n"):
            line += self._requests.recv(1 << 20)
        stdin, output, told = descriptors
        teller = socket.socket(fileno=told)
        pid = os.fork()
        if pid == 0:
            for watched, (_, other) in self._children.items():
                os.close(watched)
                other.close()
            teller.close()
            self._requests.close()
            _become(json.loads(line), stdin, output)
        watch = os.pidfd_open(pid)
        self._children[watch] = (pid, teller)
        self._waiting.register(watch, select.POLLIN)
        os.close(stdin)
        os.close(output)
        teller.sendall(b"%d\n" % pid)
        return True

    def _gone(self, watch: int) -> None:
        pid, teller = self._children.pop(watch)
        self._waiting.unregister(watch)
        os.close(watch)
        _, status = os.waitpid(pid, 0)
        with teller:
            try:
                teller.sendall(b"%d\n" % status)
            except OSError:
                # Whoever started it does not want to know.
                pass


def _become(asked: dict[str, Any], stdin: int, output: int) -> NoReturn:
    """Be the program, and end as it ends."""
    for number, descriptor in enumerate((stdin, output, output)):
        os.dup2(descriptor, number)
    os.close(stdin)
    os.close(output)
    os.chdir(asked["directory"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    time.tzset()
    sys.argv = [asked["program"], *asked["arguments"]]
    import_module(asked["program"]).run()
    sys.exit(0)


def main() -> None:
    """Import, and fork when asked."""
    requests = socket.socket(fileno=int(sys.argv[1]))
    for name in (PLAIN, INSPECTED, *ALSO):
        import_module(name)
    assert "twisted.internet.reactor" not in sys.modules, "children would share its descriptors"
    gc.collect()
    gc.freeze()
    _Parent(requests).run()


if __name__ == "__main__":
    main()
