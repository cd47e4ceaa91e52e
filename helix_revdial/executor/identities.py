# -*- test-case-name: tests.executor.test_identities -*-
"""
Which user a session runs as.

A range of numbers that belong to nobody else, two for each session: its own, and its
tunnel agent's.  A number is given out again only when its session is forgotten,
that is, when no file and no process of it is left.
"""

from __future__ import annotations

import pwd
from collections.abc import Callable, Collection
from dataclasses import dataclass

from .process_table import ofUser, processTable


class NoIdentityLeft(Exception):
    """Every number of the range is a session's, or somebody's."""


def busyUsers(users: Collection[int]) -> set[int]:
    """Those of some users that have a living process."""
    table = processTable()
    return {user for user in users if ofUser(table, user)}


def knownUsers(users: range) -> list[str]:
    """The names of those in a range that the host knows: it may hold no user of the host."""
    return sorted(entry.pw_name for entry in pwd.getpwall() if entry.pw_uid in users)


@dataclass(frozen=True)
class Identity:
    """
    Of one session.

    @ivar user: The session's.
    @ivar tunnelUser: Its tunnel agent's.
    """

    user: int
    tunnelUser: int


class Identities:
    """
    Gives them out.
    """

    def __init__(
        self, first: int, count: int, busy: Callable[[Collection[int]], set[int]] = busyUsers
    ) -> None:
        """
        @param first: The first number.
        @param count: For how many sessions.
        @param busy: Which of some users have a process, whoever started it.
        """
        self._all = [Identity(first + 2 * n, first + 2 * n + 1) for n in range(count)]
        self._busy = busy
        self._taken: set[int] = set()
        self._next = 0

    def taken(self, user: int) -> None:
        """A session of before the start has this one."""
        self._taken.add(user)

    def allocate(self) -> Identity:
        """
        One that no living session has.

        The number that was given back last comes last.

        @raise NoIdentityLeft: There is none.
        """
        count = len(self._all)
        for step in range(count):
            identity = self._all[(self._next + step) % count]
            if identity.user in self._taken:
                continue
            if self._busy((identity.user, identity.tunnelUser)):
                continue
            self._taken.add(identity.user)
            self._next = (self._next + step + 1) % count
            return identity
        raise NoIdentityLeft(f"all {count} users that sessions may run as are in use")

    def release(self, user: int) -> None:
        """Nothing is left of its session."""
        self._taken.discard(user)
