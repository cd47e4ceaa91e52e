# -*- test-case-name: tests.agent.test_addresses -*-
"""
The addresses of this host, and when they change.

L{AddressWatch} listens to the kernel's announcements (rtnetlink(7)) and says that
something has changed; what, is asked of the kernel anew (L{isHere}).  A host
that moves from one network to another loses the address that its connections
use, and nobody tells the connections: they are silent until they are given up.

Invariants:

  - Announcements come in bursts, and an address comes before the routes that use
    it: C{changed} is called once for a burst, L{SETTLE} seconds after its beginning.
  - Where there are no announcements (no Linux, or they are not allowed), nothing
    is said and nothing fails.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

SETTLE = 1.0
"""Seconds from the first announcement of a burst to C{changed}."""

_ROUTE = 0
"""C{NETLINK_ROUTE} of linux/netlink.h."""

_GROUPS = 0x1 | 0x10 | 0x100
"""C{RTMGRP_LINK}, C{RTMGRP_IPV4_IFADDR} and C{RTMGRP_IPV6_IFADDR} of linux/rtnetlink.h."""

_READS = 64
"""Announcements that are taken in one turn of the reactor."""


def openAnnouncements() -> socket.socket | None:
    """A socket on which the kernel announces changes, or C{None}."""
    family = getattr(socket, "AF_NETLINK", None)
    if family is None:
        return None
    try:
        found = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _ROUTE)
    except OSError:
        return None
    try:
        found.setblocking(False)
        found.bind((0, _GROUPS))
    except OSError:
        found.close()
        return None
    return found


def isHere(address: str) -> bool:
    """
    Whether this host has C{address}.

    Anything but the kernel's plain no counts as yes.
    """
    host, _, scope = address.partition("%")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            if family == socket.AF_INET6:
                index = socket.if_nametoindex(scope) if scope else 0
                probe.bind((host, 0, 0, index))
            else:
                probe.bind((host, 0))
    except OSError as error:
        return error.errno != errno.EADDRNOTAVAIL
    return True


@implementer(IReadDescriptor)
class AddressWatch:
    """
    Says when the host's addresses have changed.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        *,
        announcements: Callable[[], socket.socket | None] = openAnnouncements,
        settle: float = SETTLE,
    ) -> None:
        """
        @param reactor: Reads descriptors and calls later.
        @param announcements: Opens the socket.
        @param settle: Seconds to wait for the rest of a burst.
        """
        self._reactor = reactor
        self._open = announcements
        self._settle = settle
        self._socket: socket.socket | None = None
        self._timer: IDelayedCall | None = None
        self._changed: Callable[[], None] = lambda: None

    def start(self, changed: Callable[[], None]) -> None:
        """
        Begin to watch.

        @param changed: Called when something has changed.
        """
        self._changed = changed
        if self._socket is None:
            self._socket = self._open()
            if self._socket is not None:
                self._reactor.addReader(self)

    def stop(self) -> None:
        """No further call, no descriptor, no timer."""
        found, self._socket = self._socket, None
        if found is not None:
            self._reactor.removeReader(self)
            found.close()
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def fileno(self) -> int:
        return -1 if self._socket is None else self._socket.fileno()

    def logPrefix(self) -> str:
        return "addresses"

    def doRead(self) -> None:
        for _ in range(_READS):
            if self._socket is None:
                return
            try:
                self._socket.recv(65536)
            except BlockingIOError:
                break
            except OSError as error:
                # ENOBUFS: some were lost. That there were some is all we want to know.
                if error.errno != errno.ENOBUFS:
                    self._log.warn("no more news of addresses: {why}", why=str(error))
                    self.stop()
                    return
        if self._timer is None:
            self._timer = self._reactor.callLater(self._settle, self._settled)

    def connectionLost(self, reason: Failure) -> None:
        self.stop()

    def _settled(self) -> None:
        self._timer = None
        self._changed()


__all__ = ["SETTLE", "AddressWatch", "isHere", "openAnnouncements"]
