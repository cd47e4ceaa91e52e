# -*- test-case-name: tests.revdial.test_sockets -*-
"""
A connection that can be taken over by whoever moves its bytes on its socket.

A transport says by a L{SocketStream} what is needed for that: itself, to be
parked, how its bytes are framed, what it has received already, and whom to
tell.  Taking does not happen here; see L{helix_revdial.revdial.sockets}.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from typing import Protocol as Shape

from twisted.internet import tcp

from helix_revdial.revdial.frames import Control, EndMark, FrameReader

if TYPE_CHECKING:
    from helix_revdial.revdial.sockets import SocketRelay
    from helix_revdial.revdial.tls_socket import TLSSocket


@dataclass(slots=True)
class Framing:
    """
    The WebSocket of a connection that is taken over.

    @ivar reader: Knows how far the peer's frames have been read.
    @ivar client: Whether we are the client, and mask.
    @ivar eof: Whether the end mark is agreed.
    @ivar zeroKey: Whether the client may mask with a zero key.
    """

    reader: FrameReader
    client: bool
    eof: bool
    zeroKey: bool = False


class SocketOwner(Shape):
    """Whose connection it is: told what becomes of it."""

    def socketsTaken(self, relay: SocketRelay) -> None:
        """C{relay} has it now; nothing has moved yet."""

    def socketsEnded(self, orderly: bool, why: str) -> None:
        """It ended, in good order or not; the transport is told next."""

    def socketsAgain(self, rest: list[bytes | Control | EndMark]) -> None:
        """
        In place of the transport, where both directions have ended by their marks: the
        connection can carry another stream, and this is what came behind the end of
        this one.
        """


class FirstBytes(Shape):
    """Told once of each direction that it has begun."""

    def firstReceived(self) -> None:
        """Payload came from the connection."""

    def firstSent(self) -> None:
        """Payload was sent to it."""


@dataclass(slots=True)
class SocketStream:
    """
    A connection that can be taken over.

    @ivar transport: Twisted's transport, with nothing left to send.
    @ivar tls: The TLS session that runs on the socket; C{None} where none does.
    @ivar framing: Its WebSocket, or C{None} where bytes are bytes.
    @ivar early: What was received and not yet parsed.
    @ivar payload: What was received and parsed before that, and not passed on.
    @ivar hasNoDelay: Whether its socket sends small pieces at once already.
    @ivar owner: Told what becomes of it; C{None} where nobody but the transport is.
    @ivar isReusable: Whether its connection can carry another stream after this one.
    @ivar firsts: Told when bytes begin to move.
    @ivar received: Payload bytes that came from it since it was taken.
    @ivar sent: Payload bytes that were sent to it since then.
    """

    transport: tcp.Connection
    framing: Framing | None = None
    early: bytes = b""
    payload: bytes = b""
    tls: TLSSocket | None = None
    hasNoDelay: bool = False
    owner: SocketOwner | None = None
    isReusable: bool = False
    firsts: FirstBytes | None = None
    received: int = 0
    sent: int = 0


def plainStream(transport: Any) -> SocketStream | None:
    """
    The stream of a transport of Twisted's own, if it can be taken over now.

    Not Twisted's TLS, not closing; and nothing in it that is still to be sent, after it
    has been given the chance.  Of a wrapper that passes every byte on as it is, and has
    none in hand, the transport beneath: such a one says so by a method
    C{plainTransport} of its class.  And of TLS that runs on its own socket the session:
    that one has a method C{tlsStream} (L{helix_revdial.revdial.tls_transport}).
    """
    # Of its class: a wrapper that passes every attribute on, as Twisted's TLS does,
    # would give what lies beneath a wrapper beneath it.
    if not isinstance(transport, tcp.Connection):
        session = getattr(type(transport), "tlsStream", None)
        if session is not None:
            found: SocketStream | None = session(transport)
            return found
        beneath = getattr(type(transport), "plainTransport", None)
        return None if beneath is None else plainStream(beneath(transport))
    if transport.TLS:
        return None
    if not transport.connected or transport.disconnected or transport.disconnecting:
        return None
    if (transport.dataBuffer or transport._tempDataBuffer) and _hasUnsent(transport):
        transport.doWrite()
        if _hasUnsent(transport) or transport.disconnected or transport.disconnecting:
            return None
    return SocketStream(transport, hasNoDelay=getattr(transport, "hasNoDelay", False))


def streamOf(transport: Any) -> SocketStream | None:
    """The stream of a transport, a carrier's or Twisted's own, if it can be taken now."""
    give = getattr(transport, "socketStream", None)
    if give is None:
        return plainStream(transport)
    stream: SocketStream | None = give()
    return stream


def _hasUnsent(transport: Any) -> bool:
    return len(transport.dataBuffer) > transport.offset or bool(transport._tempDataBuffer)
