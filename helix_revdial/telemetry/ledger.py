# -*- test-case-name: tests.telemetry.test_ledger -*-
"""
Who owns what the process holds: descriptors, timers, unsent bytes.

Nothing is kept here; everything is counted when somebody asks, out of what the
operating system and the reactor say, joined with what the owners say of their own.
A descriptor that nobody claims is C{"other"}: in a process at rest there are none
but those of the interpreter and the libraries.

Reading a link of C{/proc/self/fd} costs about 2 us, so descriptors that an owner
claims are not looked up.
"""

from __future__ import annotations

import functools
import os
import resource
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IListeningPort

_DIRECTORY = "/proc/self/fd"

STANDARD = frozenset((0, 1, 2))


def openDescriptors() -> int:
    """
    How many descriptors this process has open; 0 where the system cannot say.
    """
    try:
        # One is the directory that is being read.
        return len(os.listdir(_DIRECTORY)) - 1
    except OSError:
        return 0


def descriptorLimit() -> int:
    """How many descriptors this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def descriptors(
    known: Mapping[int, str], files: Callable[[str], str | None] = lambda path: None
) -> dict[str, int]:
    """
    Every open descriptor, by kind.

    @param known: The kind of each descriptor that has an owner.
    @param files: The kind of a file, by its path; C{None} if it is nobody's.
    """
    found: Counter[str] = Counter()
    try:
        names = os.listdir(_DIRECTORY)
    except OSError:
        return dict(Counter(known.values()))
    for name in names:
        number = int(name)
        kind = known.get(number)
        if kind is None:
            kind = _kindOf(number, files)
        if kind is not None:
            found[kind] += 1
    return dict(sorted(found.items()))


def _kindOf(number: int, files: Callable[[str], str | None]) -> str | None:
    if number in STANDARD:
        return "standard"
    try:
        place = os.readlink(f"{_DIRECTORY}/{number}")
    except OSError:
        # The directory that was being read, or closed meanwhile by a thread.
        return None
    if place.startswith("anon_inode:"):
        return "reactor"
    if place == os.devnull:
        # Twisted holds it in reserve, to be able to refuse when there is no other left.
        return "reserve"
    return files(place) or "other"


def reactorDescriptors(reactor: Any) -> dict[int, str]:
    """
    What the reactor watches: listening ports, its own pipe, and sockets.

    Sockets are C{"socket"}: their owners know better.
    """
    found: dict[int, str] = {}
    for method in ("getReaders", "getWriters"):
        for selectable in getattr(reactor, method, list)():
            try:
                number = selectable.fileno()
            except Exception:  # noqa: S112 (a selectable of somebody else's code)
                continue
            if not isinstance(number, int) or number < 0:
                continue
            if IListeningPort.providedBy(selectable):
                found[number] = "listener"
            elif isinstance(writing := getattr(selectable, "o", None), int):
                # A waker: the pipe by which threads and signals wake the reactor.
                found[number] = found[writing] = "reactor"
            else:
                found.setdefault(number, "socket")
    return found


def timers(calls: Iterable[IDelayedCall]) -> dict[str, int]:
    """
    Calls that are to come, by the name of what is called.
    """
    found = Counter(_nameOf(getattr(call, "func", call)) for call in calls)
    return dict(sorted(found.items()))


def _nameOf(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    looping = getattr(function, "f", None)
    if callable(looping):
        # A LoopingCall calls itself; who it works for says more.
        function = looping
    named = getattr(function, "__func__", function)
    name = getattr(named, "__qualname__", None)
    if name is None:
        name, named = type(function).__qualname__, type(function)
    return f"{getattr(named, '__module__', '?')}.{name}"


def unsentBytes(writers: Iterable[Any], known: Mapping[int, str]) -> dict[str, int]:
    """
    Bytes that wait in the memory of this process for their peers to read, by kind of
    connection.

    Only what stands before the sockets is seen (Twisted's own buffers, ciphertext
    with TLS): a transport that has something to send is among the reactor's writers.

    @param writers: The reactor's.
    @param known: The kind of each descriptor that has an owner.
    """
    found: Counter[str] = Counter()
    for writer in writers:
        try:
            number = writer.fileno()
            waiting = len(writer.dataBuffer) - writer.offset + writer._tempDataLen
        except (AttributeError, TypeError, OSError):
            continue
        if waiting > 0:
            found[known.get(number, "other")] += waiting
    return dict(sorted(found.items()))


__all__ = [
    "descriptorLimit",
    "descriptors",
    "openDescriptors",
    "reactorDescriptors",
    "timers",
    "unsentBytes",
]
