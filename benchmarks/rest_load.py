"""
The callers of a REST service, and what came of it.

    python -m benchmarks.rest_load WORKLOAD JSON

Each runs in a process of its own and prints one JSON object.  Workloads:

  - C{post}, C{keyed}, C{list}: C{POST /tasks}, the same with a key each, and
    C{GET /sessions}, over C{connections} kept connections, each with one call under way.
  - C{fanout}: C{readers} of one session's events, and batches of C{lines} that are
    stored one after the other; the next when every reader has the last.
  - C{idle}: C{readers} who only hold their streams, until standard input ends.
"""

from __future__ import annotations

import json
import resource
import selectors
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from .load import percentiles

LINE = "Running the tests: all of them have passed so far, and there are some that have not run"

TASK = {
    "prompt": "Fix the build: it fails since yesterday, in the tests of the parser",
    "repo": {"mode": "git", "url": "git@github.com:acme/x.git", "branch": "main"},
    "runtime": {"type": "local"},
    "agent": {"type": "demonstration", "settings": {}},
    "delivery": {"mode": "patch"},
    "labels": {"team": "parser"},
}


class Caller:
    """One kept connection with one call under way."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.began = 0.0
        self._data = b""
        self._need = -1
        self._start = b""

    def send(self, request: bytes) -> None:
        """Begin a call."""
        self.began = time.perf_counter()
        self.socket.sendall(request)

    def readable(self) -> bool:
        """@return: Whether the call is over."""
        data = self.socket.recv(262144)
        if not data:
            raise ConnectionError(f"closed after {self._data[:300]!r}")
        self._data += data
        if self._need < 0:
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                return False
            head = self._data[:end].lower()
            if head[9:12] not in (b"200", b"201"):
                raise ConnectionError(f"answered with {self._data[:1000]!r}")
            at = head.index(b"content-length: ") + 16
            self._need = end + 4 + int(head[at:].partition(b"\r\n")[0])
        if len(self._data) < self._need:
            return False
        self._data, self._need = b"", -1
        return True


def calls(
    port: int, connections: int, seconds: float, request: Callable[[int], bytes]
) -> dict[str, float]:
    """Calls for so long."""
    selector = selectors.DefaultSelector()
    callers = [Caller(port) for _ in range(connections)]
    number = 0
    for caller in callers:
        selector.register(caller.socket, selectors.EVENT_READ, caller)
        caller.send(request(number))
        number += 1
    taken: list[float] = []
    warm = time.perf_counter() + 0.3
    end = warm + seconds
    while (now := time.perf_counter()) < end:
        for key, _ in selector.select(1):
            caller = key.data
            if caller.readable():
                now = time.perf_counter()
                if now > warm:
                    taken.append(now - caller.began)
                caller.send(request(number))
                number += 1
    return {"rate": len(taken) / seconds, **percentiles(taken)}


def requestOf(settings: dict[str, Any], keyed: bool) -> Callable[[int], bytes]:
    """Writes C{POST /tasks}."""
    body = json.dumps(TASK).encode()
    head = (
        f"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "
        f"{settings['token']}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    ).encode()
    if not keyed:
        whole = head + b"\r\n" + body
        return lambda number: whole
    mark = f"{time.time_ns()}"
    return lambda number: head + f"Idempotency-Key: {mark}-{number}\r\n\r\n".encode("ascii") + body


def subscribe(settings: dict[str, Any], source: str = "127.0.0.1") -> socket.socket:
    """A reader of a session's events, who has seen what was there before."""
    reader = socket.create_connection(
        ("127.0.0.1", settings["port"]), timeout=30, source_address=(source, 0)
    )
    reader.sendall(
        f"GET /api/v1/sessions/{settings['session']}/events?since={settings.get('since', 0)} "
        f"HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {settings['token']}\r\n\r\n".encode()
    )
    data = b""
    while b"retry: 3000\n\n" not in data:
        piece = reader.recv(65536)
        if not piece or not b"HTTP/1.1 200".startswith(data[:12]):
            raise ConnectionError(f"no stream: {data + piece!r}")
        data += piece
    return reader


def fanout(settings: dict[str, Any]) -> dict[str, float]:
    """Events to many readers."""
    readers, lines = settings["readers"], settings["lines"]
    selector = selectors.DefaultSelector()
    for _ in range(readers):
        reader = subscribe(settings)
        reader.setblocking(False)
        selector.register(reader, selectors.EVENT_READ)
    # What is known of a stream so far is behind them.
    time.sleep(0.5)
    source = socket.create_connection(("127.0.0.1", settings["source"]), timeout=30)
    body = json.dumps([LINE] * lines).encode()
    batch = (
        f"POST /bench/sessions/{settings['session']}/lines HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    selector.register(source, selectors.EVENT_READ)
    taken: list[float] = []
    delivered = 0
    begun = time.perf_counter()
    while time.perf_counter() - begun < settings["seconds"]:
        start = time.perf_counter()
        source.sendall(batch)
        left, answered = readers * lines, False
        tails: dict[int, bytes] = {}
        while left or not answered:
            ready = selector.select(10)
            if not ready:
                raise ConnectionError(f"{left} events did not come")
            for key, _ in ready:
                data = key.fileobj.recv(262144)  # type: ignore[union-attr]
                if not data:
                    raise ConnectionError("a stream was closed")
                if key.fileobj is source:
                    answered = True
                    continue
                # A mark may lie across two pieces.
                data = tails.get(key.fd, b"") + data
                left -= data.count(b"\nevent: log\n")
                tails[key.fd] = b"" if data.endswith(b"\nevent: log\n") else data[-11:]
        taken.append(time.perf_counter() - start)
        delivered += readers * lines
    return {"rate": delivered / (time.perf_counter() - begun), **percentiles(taken)}


def idle(settings: dict[str, Any]) -> dict[str, float]:
    """Hold streams."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    held = [
        subscribe(settings, f"127.0.{1 + number // 5000}.1")
        for number in range(settings["readers"])
    ]
    print(json.dumps({"held": len(held)}), flush=True)
    sys.stdin.read()
    return {}


def main() -> None:
    """Run one workload."""
    workload, settings = sys.argv[1], json.loads(sys.argv[2])
    port = settings["port"]
    match workload:
        case "post" | "keyed":
            request = requestOf(settings, workload == "keyed")
            found = calls(port, settings["connections"], settings["seconds"], request)
        case "list":
            whole = (
                "GET /api/v1/sessions HTTP/1.1\r\nHost: localhost\r\n"
                f"Authorization: Bearer {settings['token']}\r\n\r\n"
            ).encode()
            found = calls(port, settings["connections"], settings["seconds"], lambda _: whole)
        case "fanout":
            found = fanout(settings)
        case _:
            found = idle(settings)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
