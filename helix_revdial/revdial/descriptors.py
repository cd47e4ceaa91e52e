# -*- test-case-name: tests.revdial.test_descriptors -*-
"""
How many file descriptors are left, and when to become choosy.

Each connection is a descriptor.  A process that has none left can accept nobody: not
the runner that lost its control connection either.  So the last part of them, the
reserve, is kept: L{Descriptors.scarce} says when it is begun, and whoever would open
something less important asks first.

Counting what is open takes time in proportion, so it is done once a second at most;
in between, what the caller knows that it holds is counted on.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

COUNT_EVERY = 1.0
"""Seconds between two looks at what is open."""

SHARE = 10
"""One descriptor in so many is reserve."""

LEAST_RESERVE = 32
"""The reserve where a tenth would be less."""

_DIRECTORIES = ("/proc/self/fd", "/dev/fd")


def raiseDescriptorLimit() -> int:
    """
    Allow this process as many descriptors as its hard limit says.

    @return: The limit that is in force.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard and hard != resource.RLIM_INFINITY:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):
            # Some platforms have a lower ceiling than the one that they name.
            return soft
        return hard
    return soft


def openDescriptors() -> int | None:
    """How many are open; C{None} where the platform does not say."""
    for directory in _DIRECTORIES:
        try:
            # One of them is the directory, while it is read.
            return len(os.listdir(directory)) - 1
        except FileNotFoundError:
            continue
        except OSError:
            # There is not even one left to look with.
            return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None


class Descriptors:
    """
    Watches the descriptors of this process.
    """

    def __init__(
        self,
        clock: IReactorTime,
        held: Callable[[], int],
        *,
        reserve: int | None = None,
        limit: int | None = None,
        count: Callable[[], int | None] = openDescriptors,
    ) -> None:
        """
        @param clock: Tells the time.
        @param held: How many of the open ones the caller knows of, at any time:
            what changes between two counts.
        @param reserve: How many are kept back; a tenth if not given.
        @param limit: How many there may be; the process's own limit if not given.
        @param count: Counts what is open.
        """
        self._clock = clock
        self._held = held
        self._count = count
        self.limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if limit is None else limit
        if reserve is None:
            reserve = max(LEAST_RESERVE, self.limit // SHARE)
        # A small limit is not to be reserve altogether.
        self.reserve = min(reserve, self.limit // 2)
        self._others = 0
        self._countAgain = float("-inf")

    @property
    def inUse(self) -> int:
        """How many are open, as far as is known."""
        now = self._clock.seconds()
        held = self._held()
        if now >= self._countAgain:
            self._countAgain = now + COUNT_EVERY
            open_ = self._count()
            if open_ is not None:
                self._others = open_ - held
        return self._others + held

    def scarce(self) -> bool:
        """Whether only the reserve is left."""
        if self._clock.seconds() < self._countAgain:
            # As it is asked some times for each dial.
            return self._others + self._held() >= self.limit - self.reserve
        return self.inUse >= self.limit - self.reserve


__all__ = ["Descriptors", "openDescriptors", "raiseDescriptorLimit"]
