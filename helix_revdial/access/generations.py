# -*- test-case-name: tests.access.test_generations -*-
"""
The numbers of registrations.

Each control connection that is let in gets a generation, and whatever ends
acts on its own generation only.  The numbers come from the database, so that
no two processes, and no two runs of one, ever give out the same; and in
blocks, so that ten thousand agents that come back at once are ten writes.
What is left of a block when a process ends is never used.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from helix_revdial.storage.database import Database
from helix_revdial.storage.tables import counters

BLOCK: Final = 1000
"""How many numbers one transaction fetches."""


class Generations:
    """
    Gives out numbers that grow.

    Within a process every number is larger than the one before.  Between
    processes numbers are only distinct: a process may still hold a lower block
    than another has used.  Where the order matters across processes, say above
    what the number has to be.
    """

    def __init__(self, database: Database, *, block: int = BLOCK, name: str = "generation") -> None:
        """
        @param block: how many numbers to fetch at once.
        @param name: which counter, for those that count something else.
        """
        if block < 1:
            raise ValueError("a block has at least one number")
        self._database = database
        self._block = block
        self._name = name
        self._upcoming = 0
        self._end = 0
        self._waiting: list[Deferred[None]] | None = None

    async def next(self, above: int = 0) -> int:
        """
        @param above: a number that another process gave out, or 0.
        @return: a number that was never given out before, larger than each
            that this process gave out, and larger than C{above}.
        @raise DatabaseUnavailable: when a block is needed and cannot be had.
        """
        while True:
            if self._upcoming <= above:
                # What another process gave out lies below the counter; the
                # next block starts there.
                self._upcoming = min(above + 1, self._end)
            if self._upcoming < self._end:
                number = self._upcoming
                self._upcoming += 1
                return number
            await self._refill(above)

    async def _refill(self, above: int) -> None:
        """Fetch a block; callers that come meanwhile share it."""
        if self._waiting is not None:
            turn: Deferred[None] = Deferred()
            self._waiting.append(turn)
            await turn
            return
        self._waiting = []
        failure: Failure | None = None
        try:
            first = await self._database.run(
                lambda connection: takeNumbers(connection, self._name, self._block, above)
            )
            # The counter only grows, but a process that was given a backup of
            # its database must not repeat itself either.
            self._upcoming = max(first, self._end)
            self._end = max(first + self._block, self._end)
        except CancelledError:
            raise  # the one who gave up is not the others: they try themselves
        except Exception:
            failure = Failure()
            raise
        finally:
            waiting, self._waiting = self._waiting, None
            for turn in waiting:
                if failure is None:
                    turn.callback(None)
                else:
                    turn.errback(failure)


def takeNumbers(connection: Connection, name: str, count: int, above: int = 0) -> int:
    """
    Take C{count} consecutive numbers from a counter.

    @param above: the first of them shall be larger than this.
    @return: the first of them.
    """
    row = connection.execute(
        select(counters.c.value).where(counters.c.name == name).with_for_update()
    ).one_or_none()
    if row is None:
        try:
            with connection.begin_nested():
                connection.execute(insert(counters).values(name=name, value=0))
        except IntegrityError:
            pass  # another process made it in this moment
        return takeNumbers(connection, name, count, above)
    first = max(int(row.value), above) + 1
    connection.execute(
        update(counters).where(counters.c.name == name).values(value=first + count - 1)
    )
    return first
