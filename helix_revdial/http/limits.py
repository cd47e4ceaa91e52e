# -*- test-case-name: tests.http.test_limits -*-
"""
How much a peer may have of us before it has proved who it is, and after.

L{HTTPLimits} are the numbers, L{Admission} counts the connections of peers that
have not authenticated.  Nothing here touches a socket.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from twisted.internet.interfaces import IAddress


@dataclass(frozen=True, slots=True)
class HTTPLimits:
    """
    Every limit of an HTTP connection.  Times are in seconds, sizes in bytes.
    """

    headBytes: int = 16 * 1024
    """Request line and header fields together."""
    headFields: int = 100
    """Header fields of one request."""
    headTimeout: float = 10.0
    """From the connection (the first request) or a request's first byte to the
    end of its head, however steadily bytes drip in."""
    idleTimeout: float = 75.0
    """Between two requests of a connection."""
    bodyWindow: float = 20.0
    """A body that somebody waits for must bring C{bodyRate} in each such span."""
    bodyRate: float = 500.0
    """Bytes a second, averaged over C{bodyWindow}."""
    bodyBuffer: int = 64 * 1024
    """Body bytes that wait for their reader before the peer is paused."""
    holdBuffer: int = 64 * 1024
    """Bytes after a request that wait for its end before the peer is paused."""
    drainBytes: int = 64 * 1024
    """Unread body that is taken and dropped so that the connection lives on."""
    stallTimeout: float = 60.0
    """A peer that takes nothing of our answer for this long is cut off; what the kernel has
    for it still is looked at when the time is up."""
    pieceBytes: int = 64 * 1024
    """Answers are written in pieces of this size, each when the one before is gone."""
    lingerTimeout: float = 2.0
    """After an answer that refuses what the peer still sends: how long its bytes
    are taken and dropped, so that a reset does not destroy the answer."""
    maxConnections: int = 20_000
    """Connections of one factory, whoever they are, handed over or not."""
    maxConnectionsPerAddress: int = 20_000
    """The same from one address (IPv6: one /64)."""
    maxUnauthenticated: int = 2048
    """Connections of peers that have not authenticated."""
    maxUnauthenticatedPerAddress: int = 256
    """The same from one address (IPv6: one /64)."""


class Admission:
    """
    Counts connections whose peers have not authenticated, and those of each address.

    A stranger's place is taken when a connection is accepted, and given back when its
    peer authenticates or it ends, whichever is first (L{admit}, L{release}).  An
    address's place is held for the whole life of a connection (L{enter}, L{leave}).
    """

    def __init__(self, limits: HTTPLimits) -> None:
        self._limits = limits
        self._perAddress: dict[str, int] = {}
        self._connections: dict[str, int] = {}
        self.total = 0
        """Places taken."""
        self.refused = {
            "unauthenticated": 0,
            "unauthenticated_per_address": 0,
            "connections_per_address": 0,
        }
        """How many got no place, by the limit."""

    def admit(self, address: str) -> bool:
        """
        Take a place, if there is one.

        @param address: What L{addressKey} made of the peer's address; the
            empty string (no address: a unix socket) counts towards the total only.
        """
        if self.total >= self._limits.maxUnauthenticated:
            self.refused["unauthenticated"] += 1
            return False
        taken = self._perAddress.get(address, 0)
        if address:
            if taken >= self._limits.maxUnauthenticatedPerAddress:
                self.refused["unauthenticated_per_address"] += 1
                return False
            self._perAddress[address] = taken + 1
        self.total += 1
        return True

    def release(self, address: str) -> None:
        """Give a place back."""
        self.total -= 1
        if address:
            left = self._perAddress[address] - 1
            if left:
                self._perAddress[address] = left
            else:
                del self._perAddress[address]

    def enter(self, address: str) -> bool:
        """
        Count one more connection from C{address}, if there may be one more.

        @param address: As for L{admit}.
        """
        held = self._connections.get(address, 0)
        if address and held >= self._limits.maxConnectionsPerAddress:
            self.refused["connections_per_address"] += 1
            return False
        self._connections[address] = held + 1
        return True

    def leave(self, address: str) -> None:
        """A connection from C{address} that entered has ended."""
        left = self._connections[address] - 1
        if left:
            self._connections[address] = left
        else:
            del self._connections[address]

    def setLimits(self, limits: HTTPLimits) -> None:
        """From now on, others; who has a place keeps it."""
        self._limits = limits

    @property
    def pressed(self) -> bool:
        """Whether more than half of all places are taken: idle peers wait elsewhere."""
        return self.total * 2 > self._limits.maxUnauthenticated


def addressKey(address: IAddress | None) -> str:
    """
    What one peer is, to the caps: an IPv4 address, or an IPv6 /64, since
    whoever has one IPv6 address usually has the whole /64.
    """
    host = getattr(address, "host", None)
    if not isinstance(host, str):
        return ""
    try:
        parsed = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return parsed.exploded[:19] + "::/64"
    return host
