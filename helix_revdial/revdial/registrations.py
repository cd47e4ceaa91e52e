# -*- test-case-name: tests.revdial.test_connections,tests.revdial.test_views -*-
"""
One generation of a runner, and what can be said of it.

Values, but for L{Registration}, which holds the generation's L{Dialer
<helix_revdial.revdial.dialer.Dialer>} and its counts, and for L{Claim}, which is what
there is before it.
"""

from __future__ import annotations

from dataclasses import dataclass

from .dialer import Dialer
from .offered import OfferedTarget


@dataclass(frozen=True)
class Stats:
    """The counts of the admin status."""

    activeConnections: int
    gracePeriodEntries: int
    pendingDialsTotal: int
    connections: list[str]


@dataclass(frozen=True)
class ConnectionDetail:
    """
    One live control connection.

    @ivar carrier: C{"raw"}, C{"websocket"}, C{"hijack"}, or C{"none"} while its
        carrier is being set up.
    @ivar connectedSince: Wall clock, seconds since 1970.
    @ivar lastHeard: Seconds since a byte of the agent came.
    @ivar roundTrip: Seconds, or C{None} where it was not measured.
    @ivar targets: What the agent says of its targets, C{None} for nothing.
    @ivar openStreams: Of this runner, whichever registration answered.
    @ivar bytesIn: Payload from the agent, over the streams of this registration.
    @ivar bytesOut: Payload to the agent, likewise.
    """

    key: str
    generation: int
    carrier: str
    features: frozenset[str]
    remoteAddress: str
    connectedSince: float
    lastHeard: float
    roundTrip: float | None
    openStreams: int
    bytesIn: int
    bytesOut: int
    pendingDials: int
    targets: tuple[OfferedTarget, ...] | None = None


@dataclass(frozen=True)
class GraceEntry:
    """A runner that was lost and is awaited for C{secondsLeft} more."""

    key: str
    generation: int
    secondsLeft: float
    pendingDials: int


@dataclass(eq=False)
class Claim:
    """A registration that waits for its number, or for the holder to be probed."""

    key: str
    owner: str
    credential: str
    revoked: bool = False
    before: str | None = None

    def matches(self, key: str | None, owner: str | None, credential: str | None) -> bool:
        """Whether a revocation means it too."""
        return (
            (key is None or key == self.key)
            and (owner is None or owner == self.owner)
            and (credential is None or credential == self.credential)
        )


class Registration:
    """
    One generation of a runner.

    @ivar key: The runner's key.
    @ivar owner: Who holds it.
    @ivar credential: What registered it.
    @ivar generation: Its number.
    @ivar features: What both ends agreed on.
    @ivar targets: What the agent says of its targets, C{None} for nothing.
    @ivar peer: The agent's address, for people.
    @ivar connectedSince: Wall clock, seconds since 1970.
    @ivar protocol: What to hand the control carrier to.
    """

    def __init__(
        self,
        key: str,
        owner: str,
        credential: str,
        generation: int,
        features: frozenset[str],
        peer: str,
        connectedSince: float,
    ) -> None:
        self.key = key
        self.owner = owner
        self.credential = credential
        self.generation = generation
        self.features = features
        self.peer = peer
        self.connectedSince = connectedSince
        self.protocol: Dialer
        self.targets: tuple[OfferedTarget, ...] | None = None
        self.endedIn = 0
        self.endedOut = 0

    def abandon(self) -> None:
        """The hand-over failed: there will be no carrier."""
        self.protocol.abandon()
