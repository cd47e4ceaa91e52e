# -*- test-case-name: tests.http.test_connection -*-
"""
What the kernel still holds for a peer.

A socket says that it has room only when a good part of its buffer is free, of which the
kernel may have made megabytes.  Whoever wants to know before whether a slow peer takes
anything at all has to look.
"""

from __future__ import annotations

import fcntl
import struct
import termios
from typing import Any


def unsentBytes(transport: Any) -> int | None:
    """
    Bytes that the kernel has of a transport's, and its peer has not.

    @return: C{None} where the platform or the transport does not tell.
    """
    fileno = getattr(transport, "fileno", None)
    if fileno is None:
        return None
    try:
        # For sockets this is SIOCOUTQ (tcp(7), unix(7)).
        found: tuple[int] = struct.unpack("i", fcntl.ioctl(fileno(), termios.TIOCOUTQ, bytes(4)))
    except (OSError, TypeError, ValueError):
        return None
    return found[0]


__all__ = ["unsentBytes"]
