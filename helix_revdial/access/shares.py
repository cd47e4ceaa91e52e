# -*- test-case-name: tests.access.test_limits -*-
"""
How many of something each tenant has at a time.

One tenant's connections must not be the reason that another's are refused.
"""

from __future__ import annotations


class Shares:
    """
    Counts by tenant.

    @ivar limit: How many each may have; may be replaced.
    """

    def __init__(self, limit: int) -> None:
        """
        @param limit: How many each may have.
        """
        self.limit = limit
        self._held: dict[str, int] = {}

    def spent(self, tenant: str) -> bool:
        """Whether C{tenant} has all that it may have."""
        return self._held.get(tenant, 0) >= self.limit

    def take(self, tenant: str) -> None:
        """C{tenant} has one more."""
        self._held[tenant] = self._held.get(tenant, 0) + 1

    def release(self, tenant: str) -> None:
        """C{tenant} has one less."""
        left = self._held[tenant] - 1
        if left:
            self._held[tenant] = left
        else:
            del self._held[tenant]

    def held(self, tenant: str) -> int:
        """How many C{tenant} has."""
        return self._held.get(tenant, 0)


__all__ = ["Shares"]
