# -*- test-case-name: tests.api.test_load -*-
"""
What the server has to bear, and what it refuses when that is too much.

L{Load} has the limits that are about all callers and agents together, and says which
requests are let go first when descriptors run out: new streams and everything that is
no control connection, never a runner that wants to be reachable.

What is refused gets 503 with C{Retry-After} and the word C{busy}; the limit's name goes
to the metrics, and, once a minute, to the log and the audit log.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from helix_revdial.access.handshakes import Handshakes, TooManyHandshakes
from helix_revdial.access.limits import LimitsHit
from helix_revdial.access.shares import Shares
from helix_revdial.config import LimitsSection
from helix_revdial.http.factory import HTTPFactory
from helix_revdial.http.problem import Problem
from helix_revdial.http.request import Request
from helix_revdial.revdial.descriptors import Descriptors
from helix_revdial.revdial.overload import Overload
from helix_revdial.settings import overloadLimits

AGENTS = "/api/v1/revdial"
"""Where agents connect: never shed."""

ALWAYS = ("/healthz", "/readyz", "/version", "/api/v1/admin/")
"""What operators need to see what is wrong."""

CLOSE_IDLE_EVERY = 1.0
"""Seconds between two rounds of closing connections that only wait."""


class Load:
    """
    The limits over everything.

    @ivar handshakes: Lets control connections in.
    @ivar overload: Lets dials begin.
    @ivar descriptors: Knows how many are left.
    @ivar tenants: Tunnels of each tenant.
    @ivar hit: Told each limit that is reached.
    """

    def __init__(
        self,
        clock: IReactorTime,
        limits: LimitsSection,
        *,
        factory: HTTPFactory | None = None,
        buffered: Callable[[], int] = lambda: 0,
        count: Callable[[str], object] | None = None,
        record: Callable[[str, dict[str, Any]], None] | None = None,
        descriptors: Descriptors | None = None,
    ) -> None:
        """
        @param factory: The HTTP server's.
        @param buffered: How many bytes wait for their readers.
        @param count: Told the name of each limit that refuses something here.
        @param record: Of the audit log.
        @param descriptors: Others than this process's own.
        """
        self._clock = clock
        self._factory = factory
        self._count = count
        self._closeIdleAgain = float("-inf")
        self.hit = LimitsHit(clock, record)
        self.handshakes = Handshakes(
            clock,
            rate=limits.handshakesPerSecond,
            burst=limits.handshakeBurst,
            onLimit=self.refused,
        )
        self.descriptors = descriptors or Descriptors(
            clock,
            lambda: 0 if factory is None else factory.connections,
            reserve=limits.descriptorReserve or None,
        )
        self.overload = Overload(
            clock,
            overloadLimits(limits),
            scarce=self.scarce,
            buffered=buffered,
            # Whoever watches the connections counts these.
            onLimit=self.hit,
        )
        self.tenants = Shares(limits.connectionsPerTenant)

    def setLimits(self, limits: LimitsSection) -> None:
        """From now on, others; who is in stays in."""
        self.handshakes.setRate(limits.handshakesPerSecond, limits.handshakeBurst)
        self.overload.limits = overloadLimits(limits)
        self.tenants.limit = limits.connectionsPerTenant

    def scarce(self) -> bool:
        """
        Whether descriptors are running out.  Connections that only wait for another
        request are then closed.
        """
        if not self.descriptors.scarce():
            return False
        now = self._clock.seconds()
        if self._factory is not None and now >= self._closeIdleAgain:
            self._closeIdleAgain = now + CLOSE_IDLE_EVERY
            self._factory.closeIdle()
        return True

    def shed(self, request: Request) -> None:
        """
        Let C{request} go if descriptors are short and it is none of those that matter
        most; its connection ends with it.

        @raise Problem: 503.
        """
        path = request.path
        if path == AGENTS or path.startswith(ALWAYS) or not self.scarce():
            return
        self.refused("descriptors")
        raise _busy(
            "The server is short of file descriptors; it keeps those that are left for agents.",
            2.0,
            (b"Connection", b"close"),
        )

    async def handshake(self, *, patient: bool) -> None:
        """
        A control connection wants to be made.

        @param patient: Whether the agent is an old one, which can only wait.
        @raise Problem: 503; it is to come back later.
        """
        try:
            await Deferred.fromCoroutine(self.handshakes.enter(patient=patient))
        except TooManyHandshakes as error:
            raise _busy(
                "Too many agents are connecting at once; try again later.", error.retryAfter
            ) from None

    def tunnel(self, tenant: str) -> None:
        """
        A tenant's agent wants one more connection.

        @raise Problem: 503; the tenant has as many as it may have.
        """
        if self.tenants.spent(tenant):
            self.refused("connections_per_tenant")
            raise _busy(
                f"The tenant {tenant} has as many tunnels as it may have "
                f"({self.tenants.limit}; limits.connections_per_tenant).",
                5.0,
            )

    def tunnelled(self, tenant: str, request: Request) -> None:
        """The connection of C{request} is one of C{tenant}'s, until it is lost."""
        self.tenants.take(tenant)
        request.whenLost(_Tunnel(self.tenants, tenant).lost)

    def refused(self, limit: str) -> None:
        """A limit of that name has refused something."""
        self.hit(limit)
        if self._count is not None:
            self._count(limit)


class _Tunnel:
    """One tunnel of a tenant's; there is one for each connection."""

    __slots__ = ("_tenant", "_tenants")

    def __init__(self, tenants: Shares, tenant: str) -> None:
        self._tenants = tenants
        self._tenant = tenant

    def lost(self) -> None:
        """It is no more."""
        self._tenants.release(self._tenant)


def _busy(text: str, retryAfter: float, *headers: tuple[bytes, bytes]) -> Problem:
    seconds = b"%d" % max(1, math.ceil(retryAfter))
    return Problem(503, text, code="busy", headers=[(b"Retry-After", seconds), *headers])


__all__ = ["Load"]
