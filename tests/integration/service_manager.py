"""
A small systemd: it starts a program with descriptors and says where it listens,
hears what the program tells it, and keeps what it is given until the next start.

Run as a program it is the step between: it puts the descriptors where they
belong, says whose they are, and becomes the program.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from .forked import Running

LISTEN_START = 3
"""Where a program finds the first descriptor: C{SD_LISTEN_FDS_START}."""

TWISTD = str(Path(sys.executable).with_name("twistd"))


class ServiceManager:
    """
    Stands in for systemd.

    @ivar said: All that was said, in order.
    @ivar stored: The descriptors that were given to keep, with their names.
    @ivar sockets: The sockets of its C{.socket} unit, with their names.
    """

    def __init__(self, name: str) -> None:
        from tests.systemd.manager import ManagerSocket

        self.said: list[dict[str, str]] = []
        self.stored: list[tuple[str, int]] = []
        self.sockets: list[tuple[str, socket.socket]] = []
        self._changed = threading.Condition()
        self._notify = ManagerSocket(f"@helix-revdial-{os.getpid()}-{name}")
        self._ends = False
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def listen(self, name: str) -> int:
        """Open a port, as a C{.socket} unit does: its number."""
        listening = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.sockets.append((name, listening))
        number: int = listening.getsockname()[1]
        return number

    def start(
        self, arguments: Sequence[str], environment: Mapping[str, str], output: IO[str]
    ) -> Running:
        """Start C{twistd} with every socket and all that is kept."""
        passed = [(name, one.fileno()) for name, one in self.sockets] + self.stored
        environment = {**environment, "NOTIFY_SOCKET": self._notify.address}
        if not passed:
            from .forked import PLAIN, Forked

            return Forked(PLAIN, arguments, output=output, environment=environment)
        environment["LISTEN_FDNAMES"] = ":".join(name for name, _ in passed)
        numbers = [number for _, number in passed]
        return subprocess.Popen(
            [sys.executable, __file__, ",".join(map(str, numbers)), TWISTD, *arguments],
            stdout=output,
            stderr=output,
            env=environment,
            pass_fds=numbers,
        )

    def wait(self, name: str, value: str, limit: float = 20.0, *, after: int = 0) -> dict[str, str]:
        """The first message from C{after} on in which C{name} begins with C{value}."""
        end = time.monotonic() + limit
        with self._changed:
            while True:
                for message in self.said[after:]:
                    if message.get(name, "\0").startswith(value):
                        return message
                left = end - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    raise AssertionError(f"never said {name}={value}: {self.said[after:]}")

    def close(self) -> None:
        self._ends = True
        self._thread.join()
        self._notify.close()
        for _, one in self.sockets:
            one.close()
        self.forget()

    def forget(self) -> None:
        """Close what is kept."""
        for _, number in self.stored:
            os.close(number)
        self.stored.clear()

    def _listen(self) -> None:
        while not self._ends:
            if not select.select([self._notify.socket], [], [], 0.1)[0]:
                continue
            received = self._notify.next()
            if received is None:
                continue
            message, descriptors = received
            with self._changed:
                self.said.append(message)
                if "BARRIER" in message:
                    for each in descriptors:
                        os.close(each)
                if "FDSTORE" in message:
                    self.stored += [(message.get("FDNAME", "stored"), each) for each in descriptors]
                if "FDSTOREREMOVE" in message:
                    removed = [one for one in self.stored if one[0] == message["FDNAME"]]
                    self.stored = [one for one in self.stored if one[0] != message["FDNAME"]]
                    for _, number in removed:
                        os.close(number)
                self._changed.notify_all()


def become(numbers: list[int], argv: list[str]) -> None:
    """Put the descriptors where a program looks for them, and become it."""
    # Out of the way first: where one is to go another may be.
    high = [os.dup(number) for number in numbers]
    above = max([LISTEN_START + len(numbers), *high]) + 1
    moved = [os.dup2(number, above + place) for place, number in enumerate(high)]
    for place, number in enumerate(moved):
        os.dup2(number, LISTEN_START + place, inheritable=True)
    if numbers:
        os.environ["LISTEN_PID"] = str(os.getpid())
        os.environ["LISTEN_FDS"] = str(len(numbers))
    for number in (*high, *moved):
        if number >= LISTEN_START + len(numbers):
            os.close(number)
    os.execv(argv[0], argv)


if __name__ == "__main__":
    become([int(each) for each in sys.argv[1].split(",") if each], sys.argv[2:])
