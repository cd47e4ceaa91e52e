# -*- test-case-name: tests.access.test_rate_limits -*-
"""
How often a tenant, a project and a user may call.

A token bucket each, and a call takes one from every bucket that its principal has, or
from none.  Whoever a call counts for is whom its credential names, never what a header
says.  Runners and sessions' sandboxes are not counted here: how fast they may connect
is L{Handshakes <helix_revdial.access.handshakes.Handshakes>}' business.

A bucket is one number: the time at which it would be full again (the generic cell rate
algorithm), so that one that is full need not be kept.  The tables are bounded; who is
forgotten first has been quiet for longest.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from twisted.internet.interfaces import IReactorTime

from helix_revdial.access.principals import Principal

Scope = Literal["tenant", "project", "user"]

SCOPES: Final[tuple[Scope, ...]] = ("tenant", "project", "user")

MAX_BUCKETS: Final = 10_000
"""Buckets of one scope that are kept."""


@dataclass(frozen=True, slots=True)
class Rate:
    """
    @ivar perSecond: Calls a second, over any longer time; 0: as many as there are.
    @ivar burst: Calls at once, after a quiet time.
    """

    perSecond: float = 0.0
    burst: int = 1


@dataclass(frozen=True, slots=True)
class RateSettings:
    """
    @ivar rates: What each of a scope may, unless it is named.
    @ivar named: What somebody in particular may: by scope and name, a project's as
        C{tenant/project}, a user's as C{tenant/user}.
    """

    rates: Mapping[Scope, Rate] = field(default_factory=dict)
    named: Mapping[tuple[Scope, str], Rate] = field(default_factory=dict)


class RateExceeded(Exception):
    """
    Too many calls.  HTTP answers 429.

    @ivar scope: Whose bucket is empty.
    @ivar retryAfter: Whole seconds, at least one, after which there is room for a call.
    """

    def __init__(self, scope: Scope, retryAfter: int) -> None:
        super().__init__(f"too many calls of this {scope}")
        self.scope = scope
        self.retryAfter = retryAfter


class RateLimits:
    """
    The buckets of everybody.
    """

    def __init__(
        self,
        clock: IReactorTime,
        settings: RateSettings | None = None,
        *,
        maxBuckets: int = MAX_BUCKETS,
    ) -> None:
        self._clock = clock
        self._settings = settings or RateSettings()
        self._maxBuckets = maxBuckets
        self._full: dict[Scope, OrderedDict[str, float]] = {
            scope: OrderedDict() for scope in SCOPES
        }

    def setLimits(self, settings: RateSettings) -> None:
        """From now on, others."""
        self._settings = settings

    def sizes(self) -> Mapping[str, int]:
        """Buckets that are kept."""
        return {f"rate_{scope}": len(buckets) for scope, buckets in self._full.items()}

    def take(self, principal: Principal) -> None:
        """
        Count a call.

        @raise RateExceeded: There may be no more of them now; this one counts for
            nobody.
        """
        now = self._clock.seconds()
        taken: list[tuple[Scope, str, float]] = []
        for scope, name in _buckets(principal):
            rate = self._rate(scope, name)
            if rate.perSecond <= 0:
                continue
            each = 1.0 / rate.perSecond
            full = max(self._full[scope].get(name, now), now) + each
            wait = full - now - max(rate.burst, 1) * each
            # A millionth of a call is a rounding error.
            if wait > each * 1e-6:
                raise RateExceeded(scope, max(1, math.ceil(wait)))
            taken.append((scope, name, full))
        for scope, name, full in taken:
            buckets = self._full[scope]
            buckets[name] = full
            buckets.move_to_end(name)
            if len(buckets) > self._maxBuckets:
                self._forget(buckets, now)

    def _rate(self, scope: Scope, name: str) -> Rate:
        named = self._settings.named.get((scope, name))
        return named if named is not None else self._settings.rates.get(scope, Rate())

    def _forget(self, buckets: OrderedDict[str, float], now: float) -> None:
        """Those that are full, of those that were quiet for longest; at least one."""
        buckets.popitem(last=False)
        for _ in range(10):
            if not buckets or next(iter(buckets.values())) > now:
                break
            buckets.popitem(last=False)


def _buckets(principal: Principal) -> list[tuple[Scope, str]]:
    if principal.kind != "user":
        return []
    found: list[tuple[Scope, str]] = [("tenant", principal.tenant)]
    if principal.project is not None:
        found.append(("project", f"{principal.tenant}/{principal.project}"))
    found.append(("user", f"{principal.tenant}/{principal.user}"))
    return found


__all__ = [
    "MAX_BUCKETS",
    "SCOPES",
    "Rate",
    "RateExceeded",
    "RateLimits",
    "RateSettings",
    "Scope",
]
