# -*- test-case-name: tests.integration.test_tls_transport -*-
"""
A connection with TLS on its own socket, as a Twisted protocol sees it.

L{TLSTransport} takes the socket of one of Twisted's connections out of its hands as it
is made, runs TLS on it (L{helix_revdial.revdial.tls_socket}), and is the transport of
the protocol on top.  Twisted's transport is parked: it has the socket, the addresses
and the socket's options, closes the socket, and passes C{connectionLost} on, through
whatever stands between (a PROXY header's reader, a CONNECT's).

A relay may take such a connection over (L{TLSTransport.tlsStream}), with its session.
Which connections get this transport is decided in L{helix_revdial.revdial.tls_endpoints}.

As with Twisted's TLS, the protocol on top is connected before the handshake; what it
writes waits for that.  And like there the end of one direction ends both: what a peer
does that has received a closing alert is not agreed between implementations, and
WebSocket's end mark (C{eof}) says it better.

Invariants:

  - The protocol hears C{connectionLost} once, last, never inside one of its own calls;
    with L{ConnectionDone <error.ConnectionDone>} only where closing alerts ended it, or
    where it closed the connection itself.
  - What the socket does not take waits here; above C{bufferSize} the producer is paused.
    A read brings 64 KiB at most, and a record.
  - A paused protocol hears nothing; bytes that OpenSSL holds by then come after
    C{resumeProducing}, in a later turn.
  - A handshake that is not over in L{HANDSHAKE_TIMEOUT}, and a peer that has not answered
    our closing alert in L{CLOSE_TIMEOUT}, are not waited for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from OpenSSL.crypto import X509
from twisted.internet import error
from twisted.internet.interfaces import (
    IConsumer,
    IDelayedCall,
    IHandshakeListener,
    INegotiated,
    IProtocol,
    IPushProducer,
    IReactorTime,
    IReadWriteDescriptor,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from helix_revdial.revdial.socket_streams import SocketStream
from helix_revdial.revdial.tls_socket import TLSSocket

READ_SIZE = 64 * 1024
"""Bytes of one read."""

HANDSHAKE_TIMEOUT = 30.0
"""Seconds for a handshake; whoever has something better to wait for waits less."""

CLOSE_TIMEOUT = 5.0
"""Seconds for a peer to answer our closing alert, once that is out."""


@implementer(INegotiated, IConsumer, IPushProducer, IReadWriteDescriptor)
class TLSTransport:
    """
    See the module.

    @ivar beneath: Twisted's transport, or what wraps it.
    @ivar bufferSize: Bytes that may wait before the producer is paused.
    @ivar disconnecting: Whether we have closed.
    @ivar connected: Whether it is not over.
    """

    _log = Logger()

    bufferSize = 64 * 1024

    def __init__(self, reactor: Any, protocol: IProtocol, parked: Any, beneath: Any) -> None:
        """
        @param reactor: Watches the socket and tells the time.
        @param protocol: Goes on top.
        @param parked: Twisted's own transport, which is connected.
        @param beneath: That, or what wraps it: has the addresses.
        """
        self.connected = True
        self.disconnecting = False
        self.beneath = beneath
        self._reactor = reactor
        self._clock = cast(IReactorTime, reactor)
        self._protocol = protocol
        self._parked = parked
        self._fd: int = parked.fileno()
        self._tls: TLSSocket
        self._reason: Failure | None = None
        self._buffer: list[bytes] = []
        self._held = 0
        self._producer: Any = None
        self._streaming = True
        self._producerPaused = False
        self._paused = False
        self._inRead = False
        self._reading = False
        self._writing = False
        self._taken = False
        self._timer: IDelayedCall | None = None
        self._again: IDelayedCall | None = None
        self._dying: IDelayedCall | None = None

    def begin(self, session: TLSSocket) -> None:
        """
        Take the socket, connect the protocol, and shake hands.

        @param session: A session on the parked transport's socket.
        """
        self._tls = session
        self._parked.stopReading()
        self._parked.stopWriting()
        session.connection.set_app_data(self)
        self._timer = self._clock.callLater(HANDSHAKE_TIMEOUT, self._tooSlow)
        self._protocol.makeConnection(self)
        if self.connected and self._dying is None:
            try:
                self._shake()
            except Exception:
                self._die(Failure())
            self._watch()

    def _tooSlow(self) -> None:
        self._timer = None
        self._reason = Failure(error.TimeoutError("no TLS handshake in time"))
        self.abortConnection()

    # The descriptor.

    def fileno(self) -> int:
        return self._fd if self.connected else -1

    def logPrefix(self) -> str:
        return "tls"

    def _watch(self) -> None:
        """Be in the reactor for what is wanted now."""
        session = self._tls
        alive = self.connected and not self._taken and self._dying is None
        reading = alive and (
            not session.secured
            or session.sendWaitsForBytes
            or (session.alertSent and not session.ended)
            or not self._paused
        )
        writing = alive and (
            session.receiveWaitsForRoom
            or (
                session.secured
                and (bool(self._buffer) or self._pulls or self._closes)
                and not session.sendWaitsForBytes
            )
        )
        if reading is not self._reading:
            self._reading = reading
            (self._reactor.addReader if reading else self._reactor.removeReader)(self)
        if writing is not self._writing:
            self._writing = writing
            (self._reactor.addWriter if writing else self._reactor.removeWriter)(self)

    @property
    def _pulls(self) -> bool:
        """Whether the producer waits to be asked."""
        return self._producer is not None and not self._streaming

    @property
    def _closes(self) -> bool:
        """Whether all that is left to send is the closing alert."""
        return (
            self.disconnecting
            and not self._buffer
            and self._producer is None
            and not self._tls.alertSent
        )

    def doRead(self) -> None:
        """The socket has something, or OpenSSL has."""
        if not self.connected or self._taken or self._dying is not None:
            return
        self._read()
        self._watch()

    def _read(self) -> None:
        session = self._tls
        self._inRead = True
        try:
            if not session.secured:
                if not self._tryShake():
                    return
            elif session.sendWaitsForBytes:
                session.sendWaitsForBytes = False
                self._pushOut()
            if self._paused and not session.alertSent:
                return
            data = session.receive(READ_SIZE)
            if data and not self.disconnecting:
                self._protocol.dataReceived(data)
            if self._taken or not self.connected:
                return
            if session.ended or session.failure is not None:
                self._peerEnded()
                return
            if session.mayHaveMore:
                self._readAgain()
        finally:
            self._inRead = False
        if self.connected and not self._taken:
            self._pushOut()

    def _readAgain(self) -> None:
        """OpenSSL may hold what the socket will not announce any more."""
        if self._again is None:
            self._again = self._clock.callLater(0, self._readLater)

    def _readLater(self) -> None:
        self._again = None
        try:
            self.doRead()
        except Exception:
            # No reactor frame is above us that would drop the connection.
            self._log.failure("{protocol!r} failed", protocol=self._protocol)
            self.connectionLost(Failure())

    def doWrite(self) -> None:
        """There is room to send."""
        if not self.connected or self._taken or self._dying is not None:
            return
        session = self._tls
        if session.receiveWaitsForRoom:
            session.receiveWaitsForRoom = False
            self.doRead()
            if not self.connected or self._taken or self._dying is not None:
                return
        if session.secured:
            if self._pulls and not self._buffer:
                self._producer.resumeProducing()
            self._pushOut()
        self._watch()

    # The handshake.

    def _tryShake(self) -> bool:
        try:
            return self._shake()
        except Exception:
            self.connectionLost(Failure())
            return False

    def _shake(self) -> bool:
        """
        @return: Whether the handshake is over.
        @raise Exception: It failed.
        """
        if not self._tls.handshake():
            return False
        self._stopTimer()
        listener = IHandshakeListener(self._protocol, None)
        if listener is not None:
            listener.handshakeCompleted()
        self._pushOut()
        return self.connected

    def failVerification(self, reason: Failure) -> None:
        """The peer's certificate is refused, for this reason: the handshake fails."""
        self._reason = reason

    @property
    def negotiatedProtocol(self) -> bytes | None:
        """What was agreed on by ALPN, if anything was."""
        return self._tls.connection.get_alpn_proto_negotiated() or None

    def getPeerCertificate(self) -> X509 | None:
        """The peer's certificate, if it showed one, and the handshake is over."""
        return self._tls.connection.get_peer_certificate()

    # Sending.

    def write(self, data: bytes) -> None:
        if not data or not self.connected or self._dying is not None:
            return
        if self.disconnecting and self._producer is None:
            return
        self._buffer.append(data)
        self._held += len(data)
        if self._tls.secured and not self._inRead and not self._pulls:
            self._pushOut()
            self._watch()
        if self._held > self.bufferSize and self._streaming:
            self._pauseProducer()

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.write(b"".join(data))

    def _pushOut(self) -> None:
        """Send what waits; what goes wrong ends the connection, in another turn."""
        if not self.connected or self._dying is not None:
            return
        try:
            self._flush()
        except Exception:
            self._die(Failure())

    def _flush(self) -> None:
        """
        Send what waits, then the closing alert, if we have closed.

        @raise Exception: The connection is broken.
        """
        session, buffer = self._tls, self._buffer
        if buffer:
            data = buffer[0] if len(buffer) == 1 else b"".join(buffer)
            taken = session.send(data)
            self._held = len(data) - taken
            if self._held:
                # The same bytes first, next time.
                buffer[:] = [data[taken:]]
                return
            buffer.clear()
        if self._producerPaused and self._streaming and self._producer is not None:
            self._producerPaused = False
            self._producer.resumeProducing()
        if self._closes and session.sendEnd():
            self._alertIsOut()

    def _alertIsOut(self) -> None:
        if self._tls.ended:
            self._die(Failure(error.ConnectionDone()))
        elif self._timer is None:
            self._timer = self._clock.callLater(CLOSE_TIMEOUT, self._closedAlone)
            # Nobody hears what comes from now on, but the peer's own alert does.
            self._readAgain()

    def _closedAlone(self) -> None:
        self._timer = None
        self.connectionLost(Failure(error.ConnectionDone()))

    def _die(self, reason: Failure) -> None:
        """End it in another turn: somebody's call is under way."""
        if self._dying is None and self.connected:
            self._dying = self._clock.callLater(0, self.connectionLost, reason)
            self._watch()

    # The producer of what we send.

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        if self._producer is not None:
            raise RuntimeError(
                f"cannot register producer {producer!r}, because producer "
                f"{self._producer!r} was never unregistered"
            )
        if not self.connected:
            producer.stopProducing()
            return
        self._producer = producer
        self._streaming = streaming
        self._producerPaused = False
        if not streaming:
            self._watch()
            if self._tls.secured or not self._buffer:
                producer.resumeProducing()

    def _pauseProducer(self) -> None:
        if self._producer is not None and not self._producerPaused:
            self._producerPaused = True
            self._producer.pauseProducing()

    def unregisterProducer(self) -> None:
        self._producer = None
        self._streaming = True
        if self.connected and self._tls.secured and not self._taken:
            if self._closes:
                self._pushOut()
            self._watch()

    # Receiving.

    def pauseProducing(self) -> None:
        self._paused = True
        if self.connected:
            self._watch()

    def resumeProducing(self) -> None:
        if not self.connected or self._taken:
            return
        self._paused = False
        if self._tls.secured and self._tls.holds:
            self._readAgain()
        self._watch()

    def stopProducing(self) -> None:
        self.loseConnection()

    # The end.

    def _peerEnded(self) -> None:
        """Nothing more comes: by an alert, or because the connection broke."""
        session = self._tls
        failure = None if session.alertSent else session.failure
        self.connectionLost(Failure(failure or error.ConnectionDone()))

    def loseConnection(self) -> None:
        """Send what waits, and the closing alert, and wait a little for the peer's."""
        if self.disconnecting or not self.connected:
            return
        if not self._tls.secured and not self._buffer:
            # Without a session there is nothing to end in good order.
            self.abortConnection()
            return
        self.disconnecting = True
        if self._tls.secured and not self._inRead:
            self._pushOut()
        self._watch()

    def loseWriteConnection(self) -> None:
        """TLS ends both directions with one; see the module."""
        self.loseConnection()

    def abortConnection(self) -> None:
        """Drop the connection at once."""
        if not self.connected or self._dying is not None:
            return
        self.disconnecting = True
        self._buffer.clear()
        self._held = 0
        self._die(Failure(error.ConnectionAborted()))

    def connectionLost(self, reason: Failure) -> None:
        """
        It is over: let the parked transport close the socket, and tell everybody.

        Called by ourselves, by the reactor, or by a relay that had the connection.
        """
        if self.connected:
            self._leave()
            if reason.check(error.ConnectionDone):
                self._sendLastWords()
            parked = self._parked
            if parked.connected:
                parked.connectionLost(reason)
            else:
                self.lost(reason)

    def _sendLastWords(self) -> None:
        """
        What waits, as far as there is room, and our closing alert: so that a good end
        looks like one to the peer.
        """
        session = self._tls
        if not session.secured or session.alertSent or session.failure is not None:
            return
        try:
            if not self._buffer or session.send(b"".join(self._buffer)) == self._held:
                session.sendEnd()
        except Exception as failed:
            self._log.debug("the peer has closed, and reads no more: {why}", why=str(failed))

    def _leave(self) -> None:
        """Be in no table of the reactor's any more, while the socket still has a number."""
        for waiting in (self._timer, self._again, self._dying):
            if waiting is not None and waiting.active():
                waiting.cancel()
        self._timer = self._again = self._dying = None
        if self._reading:
            self._reading = False
            self._reactor.removeReader(self)
        if self._writing:
            self._writing = False
            self._reactor.removeWriter(self)

    def lost(self, reason: Failure) -> None:
        """The parked transport is gone."""
        if not self.connected:
            return
        self._leave()
        self.connected = False
        self._buffer.clear()
        self._tls.connection.set_app_data(None)
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.stopProducing()
        self._protocol.connectionLost(self._reason or reason)

    def _stopTimer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    # A relay that moves the bytes itself.

    def tlsStream(self) -> SocketStream | None:
        """
        The connection and its session, to be taken over.

        @return: C{None} where that cannot be, or not now.
        """
        if not self.connected or self.disconnecting or self._dying is not None or self._taken:
            return None
        session = self._tls
        if not session.secured or session.ended or session.failure is not None:
            return None
        if self._buffer:
            self._pushOut()
            if self._buffer or self._dying is not None:
                return None
        return SocketStream(cast(Any, self), tls=session)

    def taken(self) -> None:
        """A relay has the connection now."""
        self._taken = True
        self._watch()
        if self._again is not None:
            self._again.cancel()
            self._again = None

    def startReading(self) -> None:
        """A relay gives the connection back, which can carry another stream."""
        self._taken = False
        self._paused = True
        self.resumeProducing()

    def getHandle(self) -> Any:
        """The session, as of every TLS transport of Twisted's."""
        return self._tls.connection

    # What the socket knows.

    def getPeer(self) -> Any:
        return self.beneath.getPeer()

    def getHost(self) -> Any:
        return self.beneath.getHost()

    def getTcpNoDelay(self) -> bool:
        return bool(self._parked.getTcpNoDelay())

    def setTcpNoDelay(self, enabled: bool) -> None:
        if hasattr(self._parked, "setTcpNoDelay"):
            self._parked.setTcpNoDelay(enabled)

    def getTcpKeepAlive(self) -> bool:
        return bool(self._parked.getTcpKeepAlive())

    def setTcpKeepAlive(self, enabled: bool) -> None:
        if hasattr(self._parked, "setTcpKeepAlive"):
            self._parked.setTcpKeepAlive(enabled)


__all__ = ["CLOSE_TIMEOUT", "HANDSHAKE_TIMEOUT", "TLSTransport"]
