# -*- test-case-name: tests.revdial.test_tls_side -*-
"""
One connection of a pair whose bytes are moved between the sockets, with TLS on it.

A L{TLSSide} is a L{Side} that reads and writes through a session
(L{helix_revdial.revdial.tls_socket}).  What differs:

  - B{Reading.}  Records are received into the shared buffer until that is full or nothing
    is left.  What OpenSSL has and the socket does not announce is asked for in a later
    turn: after a full buffer, and when reading goes on after a stop.
  - B{Ends.}  Raw bytes over TLS have no end of one direction: the peer's closing alert
    ends both, as does ours, after which the peer's is waited for.  WebSocket ends as it
    does without TLS, and the alert follows.  An end without an alert broke the
    connection.
  - B{No pipes.}  The kernel cannot encrypt here.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from OpenSSL import SSL
from twisted.internet import error
from twisted.internet.interfaces import IDelayedCall

from helix_revdial.revdial.socket_outbox import Outbox
from helix_revdial.revdial.socket_side import Side
from helix_revdial.revdial.socket_streams import SocketStream
from helix_revdial.revdial.tls_socket import TLSSocket

if TYPE_CHECKING:
    from helix_revdial.revdial.sockets import SocketRelay


class TLSOutbox(Outbox):
    """
    What one session is still to be sent.
    """

    __slots__ = ("_session",)

    def __init__(self, socket: Any, session: TLSSocket) -> None:
        super().__init__(socket, None)
        self._session = session

    def send(self, piece: bytes | memoryview) -> None:
        self.sendPieces([piece], len(piece))

    def sendPieces(self, pieces: Sequence[bytes | memoryview], size: int) -> None:
        if self.waits:
            self._keep(pieces, 0)
            return
        try:
            sent = self._session.sendPieces(pieces)
        except (error.ConnectionLost, SSL.Error) as failed:
            raise _broken(failed) from None
        if sent < size:
            self._keep(pieces, sent)

    def flush(self) -> int:
        pending = self._pending
        if not pending:
            return 0
        # Beginning with what was refused last time, as OpenSSL wants it.
        data = pending[0] if len(pending) == 1 else b"".join(pending)
        try:
            sent = self._session.send(data)
        except (error.ConnectionLost, SSL.Error) as failed:
            raise _broken(failed) from None
        self._pendingSize -= sent
        pending[:] = [memoryview(data)[sent:]] if sent < len(data) else []
        self._settle()
        return sent


class TLSSide(Side):
    """
    One connection of a pair; see the module.
    """

    __slots__ = ("_again", "_alertWaits", "_session")

    def __init__(self, relay: SocketRelay, stream: SocketStream) -> None:
        super().__init__(relay, stream)
        assert stream.tls is not None
        self._session = stream.tls
        self.outbox = TLSOutbox(self._socket, self._session)
        self._again: IDelayedCall | None = None
        self._alertWaits = False

    # The reactor.

    def updateReading(self) -> None:
        before = self._isReading
        super().updateReading()
        if self._isReading and not before and self._session.holds:
            # Before we had it, or while we did not read, OpenSSL may have.
            self._readAgain()

    def _updateWriting(self) -> None:
        wanted = self.relay.why is None and (
            (self.outbox.waits and not self._session.sendWaitsForBytes)
            or self._alertWaits
            or self._session.receiveWaitsForRoom
        )
        if wanted is not self._isWriting:
            self._isWriting = wanted
            self._watch()

    def leaveReactor(self) -> None:
        super().leaveReactor()
        if self._again is not None:
            self._again.cancel()
            self._again = None

    # Receiving.

    def _readAgain(self) -> None:
        if self._again is None and self.relay.why is None:
            self._again = self._relays.clock.callLater(0, self._readNow)

    def _readNow(self) -> None:
        self._again = None
        if self._isReading:
            self.doRead()

    def receive(self, most: int) -> int:
        session, room = self._session, self._relays.room
        size = session.receiveInto(room[:most])
        if session.sendWaitsForBytes:
            session.sendWaitsForBytes = False
            self._updateWriting()
        if size:
            if self.relay.movedAt is not None and not self._marked:
                self.relay.moved()
            self.received(room[:size], True)
            if self.relay.why is not None:
                return size
        if session.ended or session.failure is not None:
            self._ended()
        elif session.mayHaveMore:
            self._readAgain()
        elif session.receiveWaitsForRoom:
            self._updateWriting()
        return size

    def _ended(self) -> None:
        """The closing alert came, or the connection broke."""
        failure = self._session.failure
        if failure is not None and not self._draining:
            raise _broken(failure)
        if self._framing is None or self._draining:
            self._bothDone()
        else:
            super()._ended()

    # Sending.

    def _flush(self) -> None:
        session = self._session
        if session.receiveWaitsForRoom:
            session.receiveWaitsForRoom = False
            self.receive(self._relays.size)
            if self.relay.why is not None:
                return
        if self._alertWaits:
            self._alert()
        super()._flush()

    def end(self) -> None:
        if self._framing is not None:
            super().end()
        elif not (self._writeEnded or self._endWaits) and self.relay.why is None:
            if self.outbox.waits:
                self._endWaits = True
            else:
                self._close()

    def _close(self) -> None:
        if self._framing is None and not self._closeSent:
            # The alert is to raw bytes what the close frame is to WebSocket.
            self._closeSent = True
            self._alert()
        super()._close()

    def _alert(self) -> None:
        try:
            self._alertWaits = not self._session.sendEnd()
        except (error.ConnectionLost, SSL.Error) as failed:
            raise _broken(failed) from None
        self._updateWriting()

    def _checkOver(self) -> None:
        if self._framing is None and self._draining:
            return  # the peer's alert, or the limit on it, comes
        super()._checkOver()


def _broken(failed: Exception) -> OSError:
    """An error as a relay expects them of sockets."""
    if isinstance(failed, OSError):
        return failed
    return OSError(errno.EPROTO, str(failed) or type(failed).__name__)


__all__ = ["TLSOutbox", "TLSSide"]
