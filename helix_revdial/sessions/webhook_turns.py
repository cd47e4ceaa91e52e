# -*- test-case-name: tests.sessions.test_webhook_turns -*-
"""
Whose turn it is to be told: so that one receiver, or one tenant, stops nobody else.

At one time there are so many attempts of one tenant, so many at one server, and one at
a server that has just failed, which is left alone for a while before.  A server is
counted for each tenant by itself: what one tenant sends to it does not delay another.

Knows clocks and counts; no table, no socket, and how many are allowed it is told.  What
is remembered is limited (L{MAX_TARGETS}), and lost with the process.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from twisted.internet.interfaces import IReactorTime

MAX_TARGETS: Final = 500
"""Servers that failed and are remembered; of more, the first are forgotten."""

LONGEST_PAUSE: Final = 60.0
"""Seconds for which a server that failed is left alone, at most."""

Counted = dict[str | tuple[str, str], int]
"""What was chosen so far: attempts of each tenant, and at each of its servers."""


@dataclass(slots=True)
class Server:
    """
    Another server, to one tenant.

    @ivar running: attempts under way.
    @ivar failures: attempts that failed since the last one that did not.
    @ivar pausedUntil: when it may be tried again.
    """

    running: int = 0
    failures: int = 0
    pausedUntil: float = 0.0


class Turns:
    """Counts attempts under way, and servers that failed."""

    def __init__(self, clock: IReactorTime, spread: Callable[[], float]) -> None:
        """
        @param spread: from 0 to 1: what sets pauses apart.
        """
        self._clock = clock
        self._spread = spread
        self._servers: OrderedDict[tuple[str, str], Server] = OrderedDict()
        self._tenants: dict[str, int] = {}

    def closed(self, perTenant: int, perTarget: int) -> tuple[list[str], list[tuple[str, str]]]:
        """
        Tenants and servers whose turn it is not.

        @param perTenant: attempts of one tenant at one time.
        @param perTarget: attempts at one server of one tenant at one time.
        """
        now = self._clock.seconds()
        tenants = [name for name, count in self._tenants.items() if count >= perTenant]
        servers = [
            key
            for key, one in self._servers.items()
            if one.pausedUntil > now or one.running >= (1 if one.failures else perTarget)
        ]
        return tenants, servers

    def caps(self, perTenant: int, perTarget: int) -> Callable[[str, str, Counted], bool]:
        """
        Says, for a tenant and a server of it, whether one more may be sent, and counts
        it.  It goes by what is under way now, and may be called in a thread.

        @param perTenant: as in L{closed}; so is C{perTarget}.
        """
        tenants = dict(self._tenants)
        servers = {
            key: (one.running, 1 if one.failures else perTarget)
            for key, one in self._servers.items()
        }

        def mayBegin(tenant: str, target: str, chosen: Counted) -> bool:
            running, cap = servers.get((tenant, target), (0, perTarget))
            ofTenant = tenants.get(tenant, 0) + chosen.get(tenant, 0)
            ofServer = running + chosen.get((tenant, target), 0)
            if ofTenant >= perTenant or ofServer >= cap:
                return False
            chosen[tenant] = chosen.get(tenant, 0) + 1
            chosen[(tenant, target)] = chosen.get((tenant, target), 0) + 1
            return True

        return mayBegin

    def begin(self, tenant: str, target: str) -> Server:
        """An attempt begins; L{end} when it is over."""
        server = self._servers.setdefault((tenant, target), Server())
        server.running += 1
        self._tenants[tenant] = self._tenants.get(tenant, 0) + 1
        return server

    def end(self, tenant: str, target: str, server: Server) -> None:
        """An attempt is over."""
        server.running -= 1
        self._tenants[tenant] -= 1
        if not self._tenants[tenant]:
            del self._tenants[tenant]
        self._forget((tenant, target))

    def answered(self, server: Server) -> None:
        """The server is well."""
        server.failures, server.pausedUntil = 0, 0.0

    def failed(self, server: Server) -> None:
        """The server is not; it is left alone for a while."""
        server.failures = min(server.failures + 1, 16)
        pause = min(2.0**server.failures, LONGEST_PAUSE) * (0.5 + self._spread() / 2)
        server.pausedUntil = self._clock.seconds() + pause

    def _forget(self, key: tuple[str, str]) -> None:
        server = self._servers.get(key)
        if server is not None and not server.running and not server.failures:
            del self._servers[key]
        if len(self._servers) > MAX_TARGETS:
            for one in [name for name, each in self._servers.items() if not each.running]:
                if len(self._servers) <= MAX_TARGETS:
                    break
                del self._servers[one]


__all__ = ["LONGEST_PAUSE", "MAX_TARGETS", "Counted", "Server", "Turns"]
