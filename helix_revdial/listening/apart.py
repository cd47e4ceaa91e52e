# -*- test-case-name: tests.integration.test_tls_transport,tests.integration.test_listening -*-
"""
Reads what stands before a connection's protocol, and not one byte of what follows.

A PROXY header and the beginning of TLS often come in one segment.  Whoever runs TLS on
the socket itself cannot be told of bytes that somebody else has read from it: so the
header is looked at where it lies (C{MSG_PEEK}), and only what belongs to it is taken.

Invariants:

  - What has been looked at and belongs to the header is taken at once, so that the
    socket is silent until more comes.
  - Once it is over, the reactor has nothing of it, and the transport is as it was.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from twisted.internet import error
from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from helix_revdial.listening.proxy_header import MAX_BLOCK

_LATER = (BlockingIOError, InterruptedError)


@implementer(IReadDescriptor)
class ApartReader:
    """
    Reads the beginning of one connection.
    """

    def __init__(
        self,
        reactor: Any,
        transport: Any,
        feed: Callable[[bytes], int | None],
        done: Callable[[], None],
    ) -> None:
        """
        @param reactor: Watches the socket.
        @param transport: Twisted's, which is connected and reads: it is stopped until
            this is over.
        @param feed: Is shown what came.  Gives how many of those bytes belonged to the
            beginning, which is over then; or C{None} where all did, and more must come.
        @param done: Called when the beginning is over, with the transport as it was.
        """
        self._reactor = reactor
        self._transport = transport
        self._feed = feed
        self._done = done
        self._fd: int = transport.fileno()
        self._over = False

    def start(self) -> None:
        """Begin to read."""
        self._transport.stopReading()
        self._reactor.addReader(self)

    def stop(self) -> None:
        """Read no more."""
        if not self._over:
            self._over = True
            self._reactor.removeReader(self)

    def fileno(self) -> int:
        return -1 if self._over else self._fd

    def logPrefix(self) -> str:
        return "header"

    def doRead(self) -> None:
        """Look at what came, and take what belongs to the beginning."""
        if self._over:
            return
        handle: socket.socket = self._transport.getHandle()
        try:
            seen = handle.recv(MAX_BLOCK, socket.MSG_PEEK)
        except _LATER:
            return
        except OSError:
            self.connectionLost(Failure(error.ConnectionLost()))
            return
        if not seen:
            self.connectionLost(Failure(error.ConnectionDone()))
            return
        belonged = self._feed(seen)
        if self._over:
            return
        if belonged is None:
            handle.recv(len(seen))
            return
        if belonged:
            handle.recv(belonged)
        self.stop()
        self._transport.startReading()
        self._done()

    def connectionLost(self, reason: Failure) -> None:
        """The connection ended before its beginning was whole."""
        if not self._over:
            self.stop()
            self._transport.connectionLost(reason)


__all__ = ["ApartReader"]
