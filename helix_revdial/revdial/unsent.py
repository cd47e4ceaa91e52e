# -*- test-case-name: tests.revdial.test_sockets,tests.revdial.test_relay -*-
"""
What the kernel still holds for a peer.

A socket says that it has room only when a good part of its buffer is free, of which the
kernel may have made megabytes; and the peer of one that is full gives way again only when
a good part of its own is free.  To whoever waits for that, a slow reader and one that has
stopped look the same for minutes.  The kernel tells them apart.
"""

from __future__ import annotations

import fcntl
import struct
import termios
from typing import Any


def unsentBytes(connection: Any) -> int:
    """
    Bytes that the kernel has of a connection's, and its peer has not.

    @param connection: A transport, or anything else with a C{fileno}; or with an
        C{unsentBytes} of its own, where it is no socket.
    @return: 0 also where the platform or the transport does not tell.
    """
    tell = getattr(connection, "unsentBytes", None)
    if tell is not None:
        return int(tell())
    fileno = getattr(connection, "fileno", None)
    if fileno is None:
        return 0
    try:
        # For sockets this is SIOCOUTQ (tcp(7), unix(7)).
        found: tuple[int] = struct.unpack("i", fcntl.ioctl(fileno(), termios.TIOCOUTQ, bytes(4)))
    except (OSError, TypeError, ValueError):
        return 0
    return found[0]


__all__ = ["unsentBytes"]
