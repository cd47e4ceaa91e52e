"""
What the rooms of this package promise each other.

A carrier (WebSocket or raw bytes) is an L{ITransport} with a little more, so
that everything above it is an ordinary Twisted protocol: the control
protocols of both ends, the caller's protocol, and the relay.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocol, ITransport
from zope.interface import Attribute, Interface


class ICarrierTransport(ITransport):
    """
    The byte stream that a carrier gives to the protocol on top of it.

    Also an L{IConsumer <twisted.internet.interfaces.IConsumer>}
    (C{registerProducer}, C{unregisterProducer}) and a push producer
    (C{pauseProducing}, C{resumeProducing}, C{stopProducing}), with
    C{abortConnection}.

    C{loseConnection} flushes: every byte written before it reaches the peer,
    or the peer sees an unclean end.  The protocol on top hears
    C{connectionLost} exactly once, with L{ConnectionDone
    <twisted.internet.error.ConnectionDone>} for an orderly end.
    """

    carrier: str = Attribute("C{'websocket'}, C{'raw'} or C{'hijack'}.")

    halfClose: bool = Attribute(
        "Whether loseWriteConnection reaches the peer as an end of this direction only. "
        "Without it loseWriteConnection is loseConnection."
    )

    bytesReceived: int = Attribute("Payload bytes delivered to the protocol so far.")

    bytesSent: int = Attribute("Payload bytes accepted by write so far.")

    responseHeaders: tuple[tuple[bytes, bytes], ...] = Attribute(
        "On the dialling side, the header fields of the answer to the upgrade, "
        "names in lower case; empty on the accepting side."
    )

    def loseWriteConnection() -> None:
        """End our direction after what is written; the other goes on."""

    def abortConnection() -> None:
        """Drop everything at once."""

    def closeWith(code: int, reason: str) -> None:
        """
        C{loseConnection}, with a close code (4000-4999 or 1000) and a reason of at
        most 123 bytes where the carrier can say one.
        """

    def ping() -> Deferred[float] | None:
        """
        Ask the peer's carrier for a sign of life.

        @return: Fires with the round trip in seconds; errbacks when the
            connection ends first.  C{None} when the carrier has no such thing.
        """


class ITarget(Interface):
    """A local service that an agent offers."""

    def open() -> Deferred[IProtocol]:
        """
        Connect to the service.

        @return: Fires, once the service is connected, with the protocol to put on
            the data connection (it also provides L{IHalfCloseableProtocol});
            errbacks with L{TargetRefused
            <helix_revdial.revdial.errors.TargetRefused>} or L{TargetTimeout
            <helix_revdial.revdial.errors.TargetTimeout>}.  Cancelling it, or
            losing the protocol's connection before it is made, releases the
            service's connection.
        """


__all__ = ["ICarrierTransport", "IHalfCloseableProtocol", "ITarget"]
