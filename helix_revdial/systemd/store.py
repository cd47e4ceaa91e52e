# -*- test-case-name: tests.systemd.test_store -*-
"""
Descriptors that outlive the process: the service manager's store
(sd_pid_notify_with_fds(3), C{FDSTORE=1}), and what it hands over at the next
start (sd_listen_fds(3)).

systemd keeps what it is given only where the unit says C{FileDescriptorStoreMax=},
and closes the rest, so whoever gives something away asks with L{DescriptorStore.settled}
at most whether it was read, not whether it was kept.

Invariants:

  - A message that finds the manager's queue full is tried again, up to a limit.
  - What is handed over is not inherited by programs that are started.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, MutableMapping, Sequence

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from .notify import MAX_DESCRIPTORS, Notifier

START = 3
"""Where the descriptors of sd_listen_fds(3) begin."""

PATIENCE = 3.0
"""Seconds for which a full queue is tried again, and an answer waited for."""

RETRY = 0.02
"""Seconds between two tries."""


class DescriptorStore:
    """
    Gives descriptors to the service manager, and takes them from it.
    """

    def __init__(self, clock: IReactorTime, notifier: Notifier) -> None:
        self._clock = clock
        self._notifier = notifier

    async def put(self, name: str, descriptors: Sequence[int]) -> bool:
        """
        Have descriptors kept.

        @param name: Letters, digits and C{-}, for all of them.
        @return: Whether the manager was told of all.
        """
        for begin in range(0, len(descriptors), MAX_DESCRIPTORS):
            some = descriptors[begin : begin + MAX_DESCRIPTORS]
            if not await self._say({"FDSTORE": "1", "FDNAME": name}, some):
                return False
        return True

    async def remove(self, name: str) -> bool:
        """
        Have everything of that name kept no more.

        @return: Whether the manager was told.
        """
        return await self._say({"FDSTOREREMOVE": "1", "FDNAME": name})

    async def settled(self) -> bool:
        """
        Wait until the manager has read what it was told (C{BARRIER=1},
        sd_notify_barrier(3)).  A process that ends before it may not be believed.

        @return: Whether it has, within L{PATIENCE}.
        """
        ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            said = await self._say({"BARRIER": "1"}, [theirs])
            os.close(theirs)
            return said and await self._ended(ours)
        finally:
            os.close(ours)

    async def _ended(self, descriptor: int) -> bool:
        until = self._clock.seconds() + PATIENCE
        while self._clock.seconds() < until:
            try:
                if not os.read(descriptor, 1):
                    return True
            except BlockingIOError:
                pass
            await deferLater(self._clock, RETRY)
        return False

    async def _say(self, message: dict[str, str], descriptors: Sequence[int] = ()) -> bool:
        until = self._clock.seconds() + PATIENCE
        while self._notifier.enabled:
            if self._notifier.send(message, descriptors):
                return True
            if self._clock.seconds() >= until:
                break
            await deferLater(self._clock, RETRY)
        return False


def handedOver(
    environment: MutableMapping[str, str], names: Iterable[str], *, start: int = START
) -> dict[str, list[int]]:
    """
    What the service manager hands to this process under some names.

    Twisted's endpoints take C{LISTEN_PID} and C{LISTEN_FDS} out of the environment
    when they are imported, if they are meant for this process, and leave
    C{LISTEN_FDNAMES}, which says how many there are just as well.

    @param environment: C{os.environ}.  The names are taken out of it.
    @param names: Whose descriptors are wanted; the others are left alone.
    @param start: The first descriptor's number.
    @return: Descriptors by name, for those names only.
    """
    wanted = set(names)
    listed = environment.get("LISTEN_FDNAMES", "")
    if not listed or environment.get("LISTEN_PID", str(os.getpid())) != str(os.getpid()):
        return {}
    found: dict[str, list[int]] = {}
    for place, name in enumerate(listed.split(":")):
        if name not in wanted:
            continue
        try:
            os.set_inheritable(start + place, False)
        except OSError:
            continue
        found.setdefault(name, []).append(start + place)
    if found:
        environment["LISTEN_FDNAMES"] = ""
    return found


__all__ = ["PATIENCE", "RETRY", "DescriptorStore", "handedOver"]
