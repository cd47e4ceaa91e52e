"""
What idle clients of server-sent events cost: C{python -m benchmarks.event_streams [CLIENTS]}.

The streams of one server, in a process of its own, over real sockets; the clients in
another.  Prints resident memory for each client, the processor time that its heartbeats
take, and how long one event takes to reach all of them.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
import time
from typing import Any

from helix_revdial.http.event_frames import eventFrame
from helix_revdial.http.events import EventStream, EventStreams
from helix_revdial.http.factory import HTTPFactory
from helix_revdial.http.limits import HTTPLimits
from helix_revdial.http.request import Request
from helix_revdial.http.response import Response

HEARTBEAT = 5.0
REQUEST = b"GET /events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n"


def residentKiB() -> int:
    """Resident memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def serve(clients: int, report: int, ready: int) -> None:
    """The server's process: measures, and ends."""
    from twisted.internet import reactor as _reactor

    reactor: Any = _reactor
    streams = EventStreams(reactor, lambda: "2027-01-01T00:00:00.000Z", heartbeat=HEARTBEAT)
    opened: list[EventStream] = []

    async def dispatch(request: Request) -> Response:
        request.authenticated()
        stream = streams.open(request)
        opened.append(stream)
        return stream.response()

    most = clients + 100
    limits = HTTPLimits(
        maxConnections=most,
        maxConnectionsPerAddress=most,
        maxUnauthenticated=most,
        maxUnauthenticatedPerAddress=most,
    )
    port = reactor.listenTCP(
        0, HTTPFactory(dispatch, reactor, limits), backlog=4096, interface="127.0.0.1"
    )
    before = residentKiB()
    os.write(ready, b"%d\n" % port.getHost().port)

    def wait() -> None:
        if len(streams) < clients:
            reactor.callLater(0.1, wait)
        else:
            reactor.callLater(1.0, settled)

    def settled() -> None:
        os.write(report, b"memory %.1f KiB a client\n" % ((residentKiB() - before) / clients))
        begun = time.process_time(), time.monotonic()
        reactor.callLater(3 * HEARTBEAT, beaten, begun)

    def beaten(begun: tuple[float, float]) -> None:
        share = (time.process_time() - begun[0]) / (time.monotonic() - begun[1])
        os.write(report, b"heartbeats every %g s %.1f %% of a core\n" % (HEARTBEAT, share * 100))
        frame = eventFrame('{"type":"log","message":"' + "x" * 200 + '"}', event="log", id="1")
        start = time.monotonic()
        for stream in opened:
            stream.push(frame)
        reactor.callLater(0, sent, start)

    def sent(start: float) -> None:
        if any(stream.queued for stream in opened):
            reactor.callLater(0.001, sent, start)
            return
        os.write(report, b"one event to all %.0f ms\n" % ((time.monotonic() - start) * 1000))
        reactor.stop()

    wait()
    reactor.run(installSignalHandlers=False)


def main(arguments: list[str]) -> int:
    """
    Measure.

    @return: The status of the process.
    """
    clients = int(arguments[0]) if arguments else 10_000
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    clients = min(clients, hard - 200)
    readyIn, readyOut = os.pipe()
    reportIn, reportOut = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(readyIn)
        os.close(reportIn)
        serve(clients, reportOut, readyOut)
        os._exit(0)
    os.close(readyOut)
    os.close(reportOut)
    port = int(os.read(readyIn, 100))
    print(f"{clients} clients", flush=True)
    sockets = []
    for number in range(clients):
        # One address has only so many ports.
        client = socket.create_connection(
            ("127.0.0.1", port), source_address=(f"127.0.{1 + number // 20_000}.1", 0)
        )
        client.sendall(REQUEST)
        sockets.append(client)
    with os.fdopen(reportIn) as report:
        for line in report:
            print(line.rstrip(), flush=True)
    os.waitpid(child, 0)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
