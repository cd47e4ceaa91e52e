# -*- test-case-name: tests.integration.test_tls_transport -*-
"""
TLS directly on a socket that does not block: what OpenSSL says, in few words.

Twisted runs TLS between two buffers in memory, from which bytes are copied to and
from the socket.  Here OpenSSL reads and writes the socket itself.  The session is one
of pyOpenSSL's, made from the same contexts as Twisted's are, so that there is one
policy whatever moves the bytes.  (Python's own C{ssl.SSLSocket} moves no more:
measured, 0.8 CPU seconds for a GiB received and 1.1 sent, against 0.8 and 0.9 here;
and it would need a second policy, for it has no callback that verifies, takes keys
from files only, and cannot say which authorities are asked for.)

Invariants:

  - Nothing waits.
  - A record is received whole or not at all, and up to 16 KiB of it may lie in
    OpenSSL while the socket has nothing: L{TLSSocket.receive} goes on until there is
    less than was asked for, or its caller's room is full, which
    L{TLSSocket.mayHaveMore} tells.
  - What C{send} did not take must be given to it again, first, and before anything
    else is sent: OpenSSL may have half of its record on the way.
  - An end without the closing alert is no end (RFC 8446, 6.1): the connection broke.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from OpenSSL import SSL
from twisted.internet import error

RECORD = 16 * 1024
"""Payload bytes of one record at most (RFC 8446, 5.1)."""

_SMALL = 4 * 1024
"""A record below this size ended what its sender had to say: it is not asked for another."""


class TLSSocket:
    """
    One session.

    @ivar connection: The session.
    @ivar secured: Whether the handshake is over.
    @ivar ended: Whether the peer's closing alert came.
    @ivar failure: What broke the connection, once that was found out.
    @ivar alertSent: Whether our closing alert is out.
    @ivar mayHaveMore: Whether the last receive stopped because its room was full.
    @ivar receiveWaitsForRoom: Whether receiving goes on only when there is room to send.
    @ivar sendWaitsForBytes: Whether sending goes on only when something is received.
    """

    def __init__(self, connection: SSL.Connection) -> None:
        """
        @param connection: On a socket that does not block.
        """
        self.connection = connection
        self.secured = False
        self.ended = False
        self.failure: Exception | None = None
        self.alertSent = False
        self.mayHaveMore = False
        self.receiveWaitsForRoom = False
        self.sendWaitsForBytes = False

    @property
    def holds(self) -> bool:
        """Whether there may be bytes that the socket does not announce."""
        return self.mayHaveMore or self.connection.pending() > 0

    def handshake(self) -> bool:
        """
        Go on with the handshake.

        @return: Whether it is over now.
        @raise Exception: It failed: an L{SSL.Error}, or the connection's own error.
        """
        self.receiveWaitsForRoom = False
        try:
            self.connection.do_handshake()
        except SSL.WantReadError:
            return False
        except SSL.WantWriteError:
            self.receiveWaitsForRoom = True
            return False
        except SSL.Error as failed:
            self.failure = _meaning(failed)
            raise self.failure from None
        self.secured = True
        return True

    def receiveInto(self, room: memoryview) -> int:
        """
        Receive what there is.

        @return: How many bytes; after that C{ended} and C{failure} say whether more
            can come.
        """
        taken, size = 0, len(room)
        receive = self.connection.recv_into
        self.receiveWaitsForRoom = self.mayHaveMore = False
        try:
            while taken < size:
                got = receive(room[taken:], RECORD)
                taken += got
                if got < _SMALL and not self.connection.pending():
                    return taken
            self.mayHaveMore = True
        except SSL.WantReadError:
            pass
        except SSL.Error as stopped:
            self._stopped(stopped)
        return taken

    def receive(self, limit: int) -> bytes:
        """The same, as bytes of their own, a record above the limit at most."""
        pieces: list[bytes] = []
        taken = 0
        receive = self.connection.recv
        self.receiveWaitsForRoom = self.mayHaveMore = False
        try:
            while taken < limit:
                piece = receive(RECORD)
                pieces.append(piece)
                taken += len(piece)
                if len(piece) < _SMALL and not self.connection.pending():
                    break
            else:
                self.mayHaveMore = True
        except SSL.WantReadError:
            pass
        except SSL.Error as stopped:
            self._stopped(stopped)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _stopped(self, stopped: SSL.Error) -> None:
        """Receiving came to an end of some kind."""
        if isinstance(stopped, SSL.WantWriteError):
            self.receiveWaitsForRoom = True
        elif isinstance(stopped, SSL.ZeroReturnError):
            self.ended = True
        else:
            self.failure = _meaning(stopped)

    def send(self, data: bytes | memoryview) -> int:
        """
        Send as much as there is room for.

        @return: How many bytes were taken.
        @raise Exception: The connection is broken.
        """
        taken, size = 0, len(data)
        send = self.connection.send
        self.sendWaitsForBytes = False
        try:
            while taken < size:
                # One record for each call.
                taken += send(data[taken:] if taken else data)
        except SSL.WantWriteError:
            pass
        except SSL.WantReadError:
            self.sendWaitsForBytes = True
        except SSL.Error as failed:
            self.failure = _meaning(failed)
            raise self.failure from None
        return taken

    def sendPieces(self, pieces: Sequence[bytes | memoryview]) -> int:
        """
        The same for pieces, of which small ones share a record.

        @return: How many bytes were taken.
        """
        if len(pieces) == 1:
            return self.send(pieces[0])
        taken = 0
        joined: list[bytes | memoryview] = []
        size = 0
        for piece in pieces:
            joined.append(piece)
            size += len(piece)
            if size >= RECORD:
                sent = self.send(joined[0] if len(joined) == 1 else b"".join(joined))
                taken += sent
                if sent < size:
                    return taken
                joined, size = [], 0
        if joined:
            taken += self.send(b"".join(joined))
        return taken

    def sendEnd(self) -> bool:
        """
        Send the closing alert, after which nothing may be sent.

        @return: Whether it is out; else there is no room for it yet.
        @raise Exception: The connection is broken.
        """
        if self.alertSent:
            return True
        try:
            self.connection.shutdown()
        except (SSL.WantWriteError, SSL.WantReadError):
            return False
        except SSL.Error as failed:
            self.failure = _meaning(failed)
            raise self.failure from None
        self.alertSent = True
        return True


def _meaning(failed: SSL.Error) -> Exception:
    """
    What an error of OpenSSL's says: of the connection, where it is about that.
    """
    if isinstance(failed, SSL.SysCallError):
        number = failed.args[0]
        if number <= 0:
            return error.ConnectionLost("the connection ended without TLS's closing alert")
        return OSError(number, os.strerror(number))
    queue: Any = failed.args[0] if failed.args else None
    if not queue or str(queue[-1][-1]).casefold().startswith("unexpected eof"):
        return error.ConnectionLost("the connection ended without TLS's closing alert")
    return failed


__all__ = ["RECORD", "TLSSocket"]
