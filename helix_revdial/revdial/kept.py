# -*- test-case-name: tests.integration.test_kept -*-
"""
Control connections that outlive the process: what one process writes down about
a connection that it lets go of, and how the next one goes on with it.

Only where the carrier is a plain socket, raw or hijacked: then the connection is
its descriptor, the bytes of a line that is not whole yet, and what was agreed at
the registration.  Between the two processes nobody reads and nobody writes, so
that no byte is lost or doubled; what the agent sends meanwhile waits in the
kernel.

Where the descriptor lies meanwhile is not known here.

Invariants:

  - A connection is let go of only when all that was written to it is with the
    kernel.  One that is stuck is closed like any other.
  - The next process claims the name by the rules, with a generation of its own:
    a runner that has connected again meanwhile is not pushed aside.
  - The state has no secret: it names owners and credentials, and opens nothing.
"""

from __future__ import annotations

import base64
import os
import socket
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol

from .connections import Connections
from .features import formatFeatures, parseFeatures
from .offered import formatTargets, parseTargets
from .registrations import Registration
from .upgrade import RawCarrier


class KeptState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """
    One connection, as it is written down.

    @ivar inode: Tells its descriptor among others: C{st_ino} of the socket.
    @ivar generation: That of the process that let it go.
    @ivar targets: As in the header of a registration, C{None} for none.
    @ivar pending: The bytes of a line that is not whole yet, in base64.
    """

    inode: int
    carrier: Literal["raw", "hijack"]
    key: str
    owner: str
    credential: str
    generation: int
    features: str
    offered: bool
    targets: str | None
    peer: str
    connectedSince: float
    pending: str


@dataclass(frozen=True)
class Released:
    """
    A connection that this process has let go of.

    @ivar transport: Twisted's transport, out of the reactor.  Its socket is not to
        be shut down, and closed by nothing but the end of the process.
    """

    transport: Any
    state: KeptState

    @property
    def descriptor(self) -> int:
        """The socket's descriptor."""
        number: int = self.transport.getHandle().fileno()
        return number


def release(connections: Connections, most: int) -> list[Released]:
    """
    Let go of control connections, to be handed to the next process.

    @param most: How many, at most; what stays is closed with the server.
    """
    released = []
    for registration, transport, pending in connections.release(most):
        inode = os.fstat(transport.getHandle().fileno()).st_ino
        released.append(Released(transport, _describe(registration, inode, pending)))
    return released


def _describe(registration: Registration, inode: int, pending: bytes) -> KeptState:
    carrier = registration.protocol.carrierName
    targets = registration.targets
    return KeptState(
        inode=inode,
        carrier="hijack" if carrier == "hijack" else "raw",
        key=registration.key,
        owner=registration.owner,
        credential=registration.credential,
        generation=registration.generation,
        features=formatFeatures(registration.features).decode("ascii"),
        offered=registration.protocol.offered,
        targets=None if targets is None else formatTargets(targets).decode("ascii"),
        peer=registration.peer,
        connectedSince=registration.connectedSince,
        pending=base64.b64encode(pending).decode("ascii"),
    )


async def adopt(
    reactor: Any, connections: Connections, connection: socket.socket, state: KeptState
) -> Registration:
    """
    Go on with a connection that another process has let go of.

    @param reactor: Watches the socket (C{IReactorSocket}).
    @param connection: It is this function's from here on: closed if that fails.
    @raise DialError: The name is another's now, or the server is full or stopping.
    @raise OSError: The connection has ended.
    @raise ValueError: The state makes no sense.
    """
    try:
        pending = base64.b64decode(state.pending, validate=True)
        targets = None if state.targets is None else parseTargets([state.targets.encode("ascii")])
        registration = await connections.register(
            state.key,
            state.owner,
            state.credential,
            features=parseFeatures([state.features.encode("ascii")]),
            offered=state.offered,
            peer=state.peer,
            targets=targets,
        )
        try:
            registration.connectedSince = state.connectedSince
            carrier = RawCarrier(registration.protocol, reactor, state.carrier)
            connection.setblocking(False)
            # Twisted makes a descriptor of its own of it.
            reactor.adoptStreamConnection(
                connection.fileno(), connection.family, _Existing(carrier)
            )
        except Exception:
            registration.abandon()
            raise
    finally:
        connection.close()
    if pending:
        carrier.dataReceived(pending)
    return registration


class _Existing(Factory):
    """Builds the one protocol that there is already."""

    noisy = False

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return self._protocol


__all__ = ["KeptState", "Released", "adopt", "release"]
