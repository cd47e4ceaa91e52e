"""
Programs under measurement: started, waited for, looked at through C{/proc}, ended.

What a program costs is what it and all its descendants cost: sshd forks for each
connection, and the shell of a command line that is given stands before the program.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path


class Failed(Exception):
    """Something under measurement does not do what it should; says what."""


class Program:
    """One program, with a log."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        directory: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """
        @param directory: Where its log is written.
        @param environment: Variables that are added to ours.
        """
        self.name = name
        self._log = directory / f"{name}.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )

    @property
    def pid(self) -> int:
        """The process that was started."""
        return self._process.pid

    def check(self) -> None:
        """
        @raise Failed: It has ended; with the end of its log.
        """
        if self._process.poll() is not None:
            raise Failed(f"{self.name} ended with {self._process.returncode}:\n{self.tail()}")

    def tail(self) -> str:
        """The end of its log."""
        return self._log.read_text(errors="replace")[-2000:]

    def stop(self) -> None:
        """End it and what it has started."""
        try:
            os.killpg(self.pid, signal.SIGTERM)
        except ProcessLookupError:
            pass
        try:
            self._process.wait(8)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()


def freePort() -> int:
    """A port of the loopback interface that nobody has."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def untilListening(port: int, program: Program, limit: float = 20.0) -> None:
    """
    Wait for a port, looking at the kernel's table: a connection would be a caller.

    @raise Failed: It does not come, or the program ends.
    """
    wanted = f":{port:04X} "
    end = time.monotonic() + limit
    while True:
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            try:
                lines = Path(table).read_text().splitlines()
            except OSError:
                continue
            if any(wanted in line[:34] and line.split()[3] == "0A" for line in lines):
                return
        program.check()
        if time.monotonic() > end:
            raise Failed(f"{program.name} does not listen on port {port}:\n{program.tail()}")
        time.sleep(0.02)


def family(roots: Sequence[int]) -> list[int]:
    """Processes and all their descendants."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            children[int(stat.rpartition(")")[2].split()[1])].append(int(entry.name))
    found: list[int] = []
    queue = list(roots)
    while queue:
        pid = queue.pop()
        found.append(pid)
        queue += children[pid]
    return found


def processorSeconds(roots: Sequence[int]) -> float:
    """
    Seconds on a processor so far, of programs and their descendants.

    The scheduler's own count where there is one: the other has ticks of 10 ms.
    """
    total = 0.0
    for pid in family(roots):
        try:
            tasks = list(Path(f"/proc/{pid}/task").iterdir())
            total += sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
        except (OSError, IndexError):
            total += _ticks(pid)
    return total


def _ticks(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memoryKiB(roots: Sequence[int]) -> int:
    """The proportional share of memory (PSS) of programs and their descendants."""
    total = 0
    for pid in family(roots):
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += next(int(line.split()[1]) for line in text.splitlines() if line[:4] == "Pss:")
    return total
