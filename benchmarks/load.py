"""
The callers: what is put on a tunnel, and what came of it.

    python -m benchmarks.load WORKLOAD JSON

Each runs in a process of its own, against a port that leads to
L{benchmarks.target}, and prints one JSON object.  Workloads:

  - C{bulk}: C{streams} connections, C{direction} C{down} (from the target) or
    C{up}; MiB/s in the window, and all bytes that were moved.
  - C{dials}: connect, a byte each way, close; C{concurrency} at a time.
  - C{pingpong}: messages of C{size} bytes there and back over one connection.
  - C{http}: small GETs over C{connections} kept connections, where wrk is missing.
  - C{idle}: C{streams} connections that have moved a byte each; held until
    standard input ends.

A bulk rate is taken where the bytes arrive: what a sender could put into buffers
says nothing.  A dial that hangs is neither an error nor a latency: those that have
no answer at the end are counted as C{stuck}.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

SETTLE = 0.25
"""Seconds of a bulk workload before its window: windows and buffers grow."""

PATIENCE = 3.0
"""Seconds that dials under way at the end get to finish."""

BLOCK = 256 * 1024
SINK = 1 << 20
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def connect(port: int) -> socket.socket:
    """A connection to the tunnel's door."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def percentiles(seconds: list[float]) -> dict[str, float]:
    """The median and the 99th of a hundred, in microseconds."""
    ordered = sorted(seconds)
    if not ordered:
        return {"p50": 0.0, "p99": 0.0}
    return {
        "p50": ordered[len(ordered) // 2] * 1e6,
        "p99": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1e6,
    }


class Meter:
    """Asks the target how much has arrived there."""

    def __init__(self, target: int) -> None:
        self._connection = connect(target)

    def read(self) -> tuple[int, int]:
        """Bytes sunk so far, and other connections that are open."""
        self._connection.sendall(b"C")
        sunk, others = self._connection.recv(100).split()
        return int(sunk), int(others)


def bulk(port: int, target: int, streams: int, direction: str, seconds: float) -> dict[str, Any]:
    """Move as much as goes through."""
    meter = Meter(target)
    connections = [connect(port) for _ in range(streams)]
    down = direction == "down"
    poll = select.epoll()
    byNumber = {each.fileno(): each for each in connections}
    for each in connections:
        each.sendall(b"D" if down else b"U")
        each.setblocking(False)
        poll.register(each.fileno(), select.EPOLLIN if down else select.EPOLLOUT)
    scratch, block = bytearray(SINK), memoryview(bytes(BLOCK))
    received = 0

    def pull(connection: socket.socket) -> None:
        nonlocal received
        size = connection.recv_into(scratch, SINK, socket.MSG_TRUNC)
        if not size:
            raise SystemExit("the stream ended early")
        received += size

    def push(connection: socket.socket) -> None:
        connection.send(block)

    move: Callable[[socket.socket], None] = pull if down else push

    def run(until: float) -> None:
        while time.perf_counter() < until:
            for number, _ in poll.poll(0.1):
                try:
                    move(byNumber[number])
                except BlockingIOError:
                    pass

    def arrived() -> int:
        return received if down else meter.read()[0]

    first = arrived()
    run(time.perf_counter() + SETTLE)
    began, before = time.perf_counter(), arrived()
    run(began + seconds)
    after, ended = arrived(), time.perf_counter()
    for each in connections:
        each.close()
    last = settle(meter, arrived)
    return {
        "rate": (after - before) / (ended - began) / 2**20,
        "bytes": last - first,
    }


def settle(meter: Meter, arrived: Callable[[], int]) -> int:
    """Wait until what is under way has come through, so that it disturbs nobody else."""
    until = time.perf_counter() + PATIENCE
    while meter.read()[1] and time.perf_counter() < until:
        time.sleep(0.01)
    return arrived()


def dials(port: int, target: int, concurrency: int, seconds: float) -> dict[str, Any]:
    """Connect, move a byte each way, close, again and again."""
    taken: list[float] = []
    failed = 0
    if concurrency == 1:
        began = time.perf_counter()
        until = began + seconds
        now = began
        while now < until:
            with connect(port) as connection:
                connection.settimeout(PATIENCE)
                connection.sendall(b"x")
                try:
                    answered = connection.recv(1) == b"x"
                except OSError:
                    answered = False
            last, now = now, time.perf_counter()
            if answered:
                taken.append(now - last)
            else:
                failed += 1
        return _dialled(taken, failed, 0, now - began)
    return _manyDials(port, concurrency, seconds)


def _manyDials(port: int, concurrency: int, seconds: float) -> dict[str, Any]:
    taken: list[float] = []
    failed = 0
    poll = select.epoll()
    waiting: dict[int, tuple[socket.socket, float]] = {}
    address = ("127.0.0.1", port)
    clock = time.perf_counter

    def begin() -> None:
        started = clock()
        # Over loopback this returns when the door's queue has it.
        connection = socket.socket()
        connection.connect(address)
        connection.send(b"x")
        number = connection.fileno()
        waiting[number] = (connection, started)
        poll.register(number, select.EPOLLIN)

    began = clock()
    until = began + seconds
    for _ in range(concurrency):
        begin()
    ended = began
    while waiting:
        ready = poll.poll(0.1)
        now = clock()
        if now > until + PATIENCE:
            break
        for number, _ in ready:
            connection, started = waiting.pop(number)
            try:
                answer = connection.recv(1)
            except OSError:
                answer = b""
            connection.close()
            if answer == b"x":
                ended = clock()
                taken.append(ended - started)
            else:
                failed += 1
            if now < until:
                begin()
    return _dialled(taken, failed, len(waiting), ended - began)


def _dialled(taken: list[float], failed: int, stuck: int, seconds: float) -> dict[str, Any]:
    return {
        "rate": len(taken) / max(seconds, 1e-9),
        "operations": len(taken),
        "failed": failed,
        "stuck": stuck,
        **percentiles(taken),
    }


def pingpong(port: int, target: int, size: int, seconds: float) -> dict[str, Any]:
    """Send a message, wait for it, again and again."""
    taken: list[float] = []
    message = b"p" * size
    with connect(port) as connection:
        connection.settimeout(30)
        for _ in range(50):
            _roundTrip(connection, message)
        began = now = time.perf_counter()
        while now < began + seconds:
            _roundTrip(connection, message)
            last, now = now, time.perf_counter()
            taken.append(now - last)
    return {"rate": len(taken) / (now - began), "operations": len(taken), **percentiles(taken)}


def _roundTrip(connection: socket.socket, message: bytes) -> None:
    connection.send(message)
    left = len(message)
    while left:
        got = len(connection.recv(left))
        if not got:
            raise SystemExit("the stream ended early")
        left -= got


def http(port: int, target: int, connections: int, seconds: float) -> dict[str, Any]:
    """Small requests over kept connections, one at a time on each."""
    poll = select.epoll()
    opened = {}
    started: dict[int, float] = {}
    taken: list[float] = []
    clock = time.perf_counter
    for _ in range(connections):
        connection = connect(port)
        opened[connection.fileno()] = connection
        poll.register(connection.fileno(), select.EPOLLIN)
    began = clock()
    for number, connection in opened.items():
        started[number] = clock()
        connection.send(REQUEST)
    now = began
    while now < began + seconds:
        for number, _ in poll.poll(0.1):
            connection = opened[number]
            if not connection.recv(4096):
                raise SystemExit("the stream ended early")
            now = clock()
            taken.append(now - started[number])
            started[number] = now
            connection.send(REQUEST)
        now = clock()
    return {"rate": len(taken) / (now - began), "operations": len(taken), **percentiles(taken)}


def idle(port: int, target: int, streams: int) -> dict[str, Any]:
    """Hold streams open that do nothing."""
    opened: list[socket.socket] = []
    while len(opened) < streams:
        some = [connect(port) for _ in range(min(20, streams - len(opened)))]
        for connection in some:
            connection.sendall(b"x")
        for connection in some:
            connection.settimeout(30)
            if connection.recv(1) != b"x":
                raise SystemExit("the stream ended early")
        opened += some
    print(json.dumps({"open": len(opened)}), flush=True)
    sys.stdin.read()
    return {}


WORKLOADS: dict[str, Callable[..., dict[str, Any]]] = {
    "bulk": bulk,
    "dials": dials,
    "pingpong": pingpong,
    "http": http,
    "idle": idle,
}


def main() -> None:
    """Do the one that is named."""
    print(json.dumps(WORKLOADS[sys.argv[1]](**json.loads(sys.argv[2]))))


if __name__ == "__main__":
    main()
