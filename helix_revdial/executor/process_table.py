# -*- test-case-name: tests.executor.test_confinement -*-
"""
Which processes there are, whose they are and from whom they come.

Reads C{/proc} and owns nothing.  A process that ends while it is looked at was
never there.  Where there are no control groups this is how the processes of a session
are found again, whatever they did to get away: by their user where that is the
session's alone, else by descent (who loses his parent falls to the supervisor, which
is a subreaper, prctl(2)) and by the session's mark in their environment.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

MARK = "HELIX_SESSION_ID"
"""The variable that every process of a session begins with."""

_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True)
class Process:
    """
    A process of the moment.

    @ivar user: The real user.
    @ivar dead: Whether it has ended and only waits to be looked after.
    @ivar stopped: Whether a signal holds it.
    """

    pid: int
    parent: int
    user: int
    dead: bool
    stopped: bool


def processTable(root: str = "/proc") -> dict[int, Process]:
    """Every process that can be seen, by its number."""
    found = {}
    for name in os.listdir(root):
        if name.isdecimal():
            process = _look(root, int(name))
            if process is not None:
                found[process.pid] = process
    return found


def _look(root: str, pid: int) -> Process | None:
    try:
        with open(f"{root}/{pid}/status", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return None
    fields = {
        name: value.strip()
        for name, colon, value in (line.partition(":") for line in text.splitlines()[1:])
        if colon
    }
    try:
        state = fields["State"][:1]
        return Process(
            pid,
            int(fields["PPid"]),
            int(fields["Uid"].split()[0]),
            dead=state in ("Z", "X"),
            stopped=state in ("T", "t"),
        )
    except (KeyError, ValueError, IndexError):
        return None


def ofUser(table: Mapping[int, Process], user: int) -> set[int]:
    """Every living process of a user."""
    return {pid for pid, process in table.items() if process.user == user and not process.dead}


def descendants(
    table: Mapping[int, Process], ancestors: Collection[int], without: Collection[int] = ()
) -> set[int]:
    """
    Every living process that comes from one of C{ancestors}, they themselves not.

    @param without: Processes that do not count, nor what comes from them.
    """
    children: dict[int, list[int]] = {}
    for process in table.values():
        children.setdefault(process.parent, []).append(process.pid)
    found: set[int] = set()
    waiting = list(ancestors)
    while waiting:
        for pid in children.get(waiting.pop(), ()):
            if pid not in found and pid not in without:
                found.add(pid)
                waiting.append(pid)
    return {pid for pid in found if not table[pid].dead}


def marked(table: Mapping[int, Process], session: str, root: str = "/proc") -> set[int]:
    """Every living process that began with the mark of a session, as far as can be seen."""
    wanted = f"{MARK}={session}".encode()
    return {pid for pid in table if not table[pid].dead and wanted in set(_environment(root, pid))}


def _environment(root: str, pid: int) -> Iterator[bytes]:
    try:
        with open(f"{root}/{pid}/environ", "rb") as file:
            yield from file.read().split(b"\0")
    except OSError:
        return


def becomeSubreaper() -> bool:
    """
    Be the parent of every descendant that loses its own.

    @return: Whether the system lets us.
    """
    return bool(ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def reapOrphans(besides: Collection[int]) -> None:
    """
    Look after the dead that fell to us as a subreaper.

    @param besides: Those that somebody else looks after.
    """
    own = os.getpid()
    for process in processTable().values():
        if process.dead and process.parent == own and process.pid not in besides:
            try:
                os.waitpid(process.pid, os.WNOHANG)
            except ChildProcessError:
                continue


def signalUser(user: int, number: int) -> None:
    """
    Signal every process of a user at once, those too that are being made: what
    kill(2) does with -1.  For root only.
    """
    child = os.fork()
    if child == 0:
        try:
            os.setresuid(user, user, user)
            os.kill(-1, number)
        except OSError:
            pass
        finally:
            os._exit(0)
    os.waitpid(child, 0)
