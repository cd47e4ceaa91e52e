# -*- test-case-name: tests.revdial.test_keepalive -*-
"""
What the kernel is told about a connection's path, and how long silence may last.

Two things notice that a peer is gone.  The B{kernel} notices within seconds,
where the other end of TCP is the peer itself: it probes an idle connection and
waits for acknowledgements of what it sent.  Where something in between ends TCP
and answers for the peer (a proxy), only the peer's own answers count, and
L{Liveness} says how often they are asked for and how long they may be missing.

L{watchPath} sets socket options, and nothing else.  It reaches through TLS, PROXY
and carriers to the socket beneath; it leaves alone what is no TCP socket, and
leaves out what the platform lacks.

While bytes are unacknowledged the kernel does not probe (tcp(7)): what is written over
a path that has gone would begin the limit anew.  So that it counts from when the peer was
last heard, L{hasten} takes off what has passed of it, before a line is written.

Control connections have a limit on unacknowledged bytes (C{TCP_USER_TIMEOUT}).
Data connections must not: that limit also ends a connection whose peer lives
and does not read, and a reader may stop for as long as it likes.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class KernelWatch:
    """
    How the kernel watches a path.  Times are in whole seconds.

    @ivar idle: Silence before the first probe.
    @ivar interval: Between probes.
    @ivar count: Probes without an answer after which the connection is gone.
    @ivar unacknowledged: How long bytes, or probes, may go without an
        acknowledgement; C{None} for the system's own (about 15 minutes for
        bytes).  On Linux it replaces C{count} (tcp(7), C{TCP_USER_TIMEOUT}).
    """

    idle: int
    interval: int
    count: int
    unacknowledged: int | None = None

    @classmethod
    def within(cls, seconds: float) -> KernelWatch:
        """
        A watch that notices within about C{seconds}: three probes in that time.

        @param seconds: At least 1.
        """
        limit = max(1, round(seconds))
        interval = max(1, limit // 5)
        return cls(max(1, limit - 3 * interval), interval, 3, limit)


CONTROL_WATCH = KernelWatch.within(10)
"""
Probes after 4, 6 and 8 s of silence, gone after 10.  The price is a packet each
way every 4 s on an idle control connection.
"""

DATA_WATCH = KernelWatch(60, 15, 4)
"""
Gone two minutes after its peer's machine, if it is idle.  A peer that does not
read still answers probes.
"""


@dataclass(frozen=True, slots=True)
class Liveness:
    """
    How an end of a control connection finds out whether its peer lives.

    @ivar keepAlive: Seconds between plain keep-alives to agents without C{echo},
        which give up after 60 s of silence.
    @ivar ask: Seconds between questions (echo or ping) that the peer must answer.
    @ivar silence: Seconds without an answer after which the peer is given up.
        Two questions in a row can be lost, or one can be late by C{silence - ask},
        before that happens.
    @ivar kernel: What the kernel is told about the connection.
    """

    keepAlive: float = 18.0
    ask: float = 15.0
    silence: float = 40.0
    kernel: KernelWatch = field(default=CONTROL_WATCH)


def socketBeneath(transport: Any) -> socket.socket | None:
    """
    The TCP socket that carries C{transport} in the end.

    @param transport: A carrier, a TLS or PROXY wrapper, or a TCP transport.
    @return: C{None} where there is none: a unix socket, a test's transport, or a
        connection that is closed already.
    """
    for _ in range(8):
        beneath = getattr(transport, "beneath", None)
        if beneath is None:
            # What wraps a protocol around another keeps the transport under this name.
            beneath = getattr(transport, "transport", None)
        if beneath is None:
            break
        transport = beneath
    handle = getattr(transport, "getHandle", lambda: None)()
    if (
        isinstance(handle, socket.socket)
        and handle.family in (socket.AF_INET, socket.AF_INET6)
        and handle.fileno() >= 0
    ):
        return handle
    return None


def watchPath(transport: Any, watch: KernelWatch) -> bool:
    """
    Let the kernel watch the path of C{transport}.

    @return: Whether it does; C{False} where there is no TCP socket beneath.
    """
    found = socketBeneath(transport)
    if found is None:
        return False
    watchSocket(found, watch)
    return True


def watchSocket(found: socket.socket, watch: KernelWatch) -> None:
    """Let the kernel watch the path of a TCP socket, or of what it will accept."""
    options = [
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", watch.idle),
        # What macOS calls the same.
        (socket.IPPROTO_TCP, "TCP_KEEPALIVE", watch.idle),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", watch.interval),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", watch.count),
    ]
    if watch.unacknowledged is not None:
        options.append((socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", watch.unacknowledged * 1000))
    for level, name, value in options:
        number = getattr(socket, name, None)
        if number is None:
            continue
        try:
            found.setsockopt(level, number, value)
        except OSError:
            # A kernel that knows the name but not the option, or a connection that
            # has just been reset: its end is reported elsewhere.
            continue


_INFO = struct.Struct("=24xI24xII")
"""Of C{struct tcp_info}: C{tcpi_unacked}, C{tcpi_last_data_recv}, C{tcpi_last_ack_recv}."""


def silenceOf(found: socket.socket) -> float | None:
    """
    Seconds since anything came from the other end of a TCP connection, its kernel's
    answers to probes included.

    @return: C{None} where the platform does not tell, and where bytes of ours are on
        the way: the kernel's own limit counts from those.
    """
    number = getattr(socket, "TCP_INFO", None)
    if number is None or not hasattr(socket, "TCP_USER_TIMEOUT"):
        return None
    try:
        said = found.getsockopt(socket.IPPROTO_TCP, number, _INFO.size)
        unacknowledged, data, answer = _INFO.unpack(said)
    except (OSError, struct.error):
        return None
    return None if unacknowledged else min(data, answer) / 1000


def hasten(transport: Any, watch: KernelWatch, least: float) -> bool:
    """
    What is written next has no more time for its acknowledgement than is left of the
    watch's limit since the peer was last heard; not less than the time between probes.

    @param least: Silence, in seconds, up to which nothing is changed.
    @return: Whether something was; L{relax} takes it back.
    """
    found = socketBeneath(transport)
    if found is None or watch.unacknowledged is None:
        return False
    silence = silenceOf(found)
    if silence is None or silence <= least:
        return False
    _limit(found, max(watch.interval, watch.unacknowledged - silence))
    return True


def relax(transport: Any, watch: KernelWatch) -> None:
    """The peer was heard: the watch's own limit counts again."""
    found = socketBeneath(transport)
    if found is not None and watch.unacknowledged is not None:
        _limit(found, watch.unacknowledged)


def isHeard(transport: Any, least: float) -> bool:
    """Whether the kernel has heard the peer within C{least} seconds, as far as it tells."""
    found = socketBeneath(transport)
    silence = None if found is None else silenceOf(found)
    return silence is not None and silence <= least


def _limit(found: socket.socket, seconds: float) -> None:
    try:
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(seconds * 1000))
    except OSError:
        # As in watchSocket.
        return


__all__ = [
    "CONTROL_WATCH",
    "DATA_WATCH",
    "KernelWatch",
    "Liveness",
    "hasten",
    "isHeard",
    "relax",
    "silenceOf",
    "socketBeneath",
    "watchPath",
    "watchSocket",
]
