"""
A way that takes time: passes TCP on, and lets every byte arrive later.

    python -m benchmarks.delay PORT TO-PORT SECONDS

SECONDS are those of one direction.  A connection over loopback is made at once, so
the round trip of TCP's own handshake is charged to the first bytes of the caller.
Neither loss nor congestion windows are modelled.
"""

from __future__ import annotations

import heapq
import select
import socket
import sys
import time
from collections import deque

READ = 64 * 1024
MOST = 8 * 1024 * 1024
"""Bytes that a direction holds, at most: a window wide enough for the delay."""


class Direction:
    """From one socket to the other."""

    def __init__(self, source: socket.socket, to: socket.socket, notBefore: float) -> None:
        self.source = source
        self.to = to
        self.notBefore = notBefore
        self.waiting: deque[tuple[float, memoryview | None]] = deque()
        self.held = 0
        self.reading = True
        self.blocked = False
        self.ended = False


class Delay:
    """Accepts, connects, and passes on later."""

    def __init__(self, listening: socket.socket, toPort: int, seconds: float) -> None:
        self._listening = listening
        self._toPort = toPort
        self._seconds = seconds
        self._poll = select.epoll()
        self._from: dict[int, Direction] = {}
        self._to: dict[int, Direction] = {}
        self._due: list[tuple[float, int, Direction]] = []
        self._count = 0

    def run(self) -> None:
        """Do it for ever."""
        self._listening.setblocking(False)
        door = self._listening.fileno()
        self._poll.register(door, select.EPOLLIN)
        while True:
            wait = -1.0 if not self._due else max(0.0, self._due[0][0] - time.monotonic())
            for number, event in self._poll.poll(wait):
                if number == door:
                    self._accept()
                    continue
                if event & select.EPOLLOUT and number in self._to:
                    self._to[number].blocked = False
                    self._send(self._to[number])
                if event & ~select.EPOLLOUT and number in self._from:
                    self._read(self._from[number])
            now = time.monotonic()
            while self._due and self._due[0][0] <= now:
                self._send(heapq.heappop(self._due)[2])

    def _accept(self) -> None:
        try:
            caller, _ = self._listening.accept()
        except BlockingIOError:
            return
        called = socket.create_connection(("127.0.0.1", self._toPort))
        now = time.monotonic()
        for each in (caller, called):
            each.setblocking(False)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        there = Direction(caller, called, now + 3 * self._seconds)
        back = Direction(called, caller, now)
        for direction in (there, back):
            self._from[direction.source.fileno()] = direction
            self._to[direction.to.fileno()] = direction
        for each in (caller, called):
            self._watch(each)

    def _watch(self, connection: socket.socket) -> None:
        number = connection.fileno()
        events = 0
        if number in self._from and self._from[number].reading:
            events |= select.EPOLLIN
        if number in self._to and self._to[number].blocked:
            events |= select.EPOLLOUT
        try:
            self._poll.modify(number, events)
        except FileNotFoundError:
            self._poll.register(number, events)

    def _read(self, direction: Direction) -> None:
        if not direction.reading:
            # Nothing but a hang-up wakes us here.
            self._close(direction)
            return
        try:
            data = direction.source.recv(READ)
        except BlockingIOError:
            return
        except OSError:
            self._close(direction)
            return
        due = max(time.monotonic() + self._seconds, direction.notBefore)
        direction.waiting.append((due, memoryview(data) if data else None))
        direction.held += len(data)
        self._count += 1
        heapq.heappush(self._due, (due, self._count, direction))
        if not data or direction.held > MOST:
            direction.reading = False
            self._watch(direction.source)

    def _send(self, direction: Direction) -> None:
        if direction.to.fileno() < 0:
            return
        now = time.monotonic()
        while direction.waiting and not direction.blocked and direction.waiting[0][0] <= now:
            due, data = direction.waiting[0]
            try:
                if data is None:
                    direction.ended = True
                    direction.waiting.popleft()
                    direction.to.shutdown(socket.SHUT_WR)
                    self._checkOver(direction)
                    return
                sent = direction.to.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._close(direction)
                return
            direction.held -= sent
            if data is not None and sent < len(data):
                direction.waiting[0] = (due, data[sent:])
                direction.blocked = True
            else:
                direction.waiting.popleft()
        endComes = direction.ended or (direction.waiting and direction.waiting[-1][1] is None)
        if not direction.reading and direction.held <= MOST and not endComes:
            direction.reading = True
            self._watch(direction.source)
        self._watch(direction.to)

    def _checkOver(self, direction: Direction) -> None:
        other = self._to.get(direction.source.fileno())
        if other is None or other.ended:
            self._close(direction)

    def _close(self, direction: Direction) -> None:
        for each in (direction.source, direction.to):
            number = each.fileno()
            if number >= 0:
                self._from.pop(number, None)
                self._to.pop(number, None)
                each.close()


def main() -> None:
    """Listen on the port that is given."""
    port, toPort, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    with socket.create_server(("127.0.0.1", port), backlog=1024) as listening:
        Delay(listening, toPort, seconds).run()


if __name__ == "__main__":
    main()
