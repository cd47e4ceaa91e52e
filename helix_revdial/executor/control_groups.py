# -*- test-case-name: tests.executor.test_confinement -*-
"""
Control groups (version 2): how the kernel holds the processes of a session together.

A process cannot leave its group, nor can what it starts, so the whole group can be
frozen, and killed at once, whatever its processes do (cgroup-v2.rst of the kernel,
C{cgroup.freeze}, C{cgroup.kill}).  Whether there are groups that can be used is found
out by making one, freezing it and removing it, not by guessing.

The controllers that bound memory, processors and processes are switched on where that
harms nobody: a group with controllers for its children can have no process itself, so
a group in which we are is left as it is, lest the service manager cannot start the program
again in its place.  Where it has put us into a group of our own (L{OWN}), the sessions'
are beside that.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from twisted.logger import Logger

NAME = "helix-revdial-executor"
"""The group below which the sessions have theirs."""

OWN = "executor"
"""The group within its service's that the program itself is in (C{DelegateSubgroup=})."""

CONTROLLERS = ("cpu", "memory", "pids")
"""What bounds a session."""

_ESCAPED = re.compile(r"\\([0-7]{3})")


class GroupUnusable(Exception):
    """There is no such group, or it cannot be used; the text says why."""


class ControlGroup:
    """
    The group of one session, or of a part of it.

    @ivar path: Its directory.
    """

    _log = Logger()

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self) -> None:
        """
        Make it, unless it is there.

        @raise GroupUnusable: That cannot be.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise GroupUnusable(f"{self.path}: {error.strerror}") from None

    def part(self, name: str) -> ControlGroup:
        """A group within this one."""
        return ControlGroup(self.path / name)

    def _groups(self) -> Iterator[Path]:
        for directory, _, _ in os.walk(self.path, topdown=False):
            yield Path(directory)

    def processes(self) -> set[int]:
        """The processes of the group and of those within it."""
        found: set[int] = set()
        for group in self._groups():
            try:
                found.update(int(line) for line in (group / "cgroup.procs").read_text().split())
            except (OSError, ValueError):
                continue
        return found - {0}

    def freeze(self, frozen: bool = True) -> None:
        """
        Let no process of the group run, or let them all.

        @raise GroupUnusable: The kernel does not.
        """
        self._write("cgroup.freeze", "1" if frozen else "0")

    def frozen(self) -> bool:
        """Whether by now no process of it runs."""
        return self._event("frozen")

    def populated(self) -> bool:
        """Whether there is a living process in it."""
        return self._event("populated")

    def kill(self) -> None:
        """Kill every process of it, at once.  What is not there is killed already."""
        try:
            self._write("cgroup.kill", "1")
        except GroupUnusable:
            if self.path.exists():
                raise

    def enable(self) -> None:
        """Let the groups within it be bounded in what there is a controller for, if that can be."""
        try:
            there = (self.path / "cgroup.controllers").read_text().split()
            wanted = " ".join(f"+{name}" for name in CONTROLLERS if name in there)
            if wanted:
                self._write("cgroup.subtree_control", wanted)
        except (OSError, GroupUnusable) as error:
            self._log.debug("no controllers: {error}", error=error)

    def limit(self, name: str, value: str) -> bool:
        """
        Set a limit of a controller.

        @param name: The file, such as C{memory.max}.
        @return: Whether the controller is there.
        """
        if not (self.path / name).exists():
            return False
        try:
            self._write(name, value)
        except GroupUnusable:
            return False
        return True

    def remove(self) -> bool:
        """
        Remove the group and those within it.

        @return: Whether nothing is left; not while there are processes.
        """
        for group in self._groups():
            try:
                group.rmdir()
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                    self._log.warn("{group}: {reason}", group=str(group), reason=error.strerror)
                return False
        return True

    def _write(self, name: str, text: str) -> None:
        try:
            # Not created where it is missing: these files are the kernel's.
            with open(os.open(self.path / name, os.O_WRONLY), "w") as file:
                file.write(text)
        except OSError as error:
            raise GroupUnusable(f"{self.path / name}: {error.strerror}") from None

    def _event(self, name: str) -> bool:
        try:
            text = (self.path / "cgroup.events").read_text()
        except OSError:
            return False
        return f"{name} 1" in text.splitlines()


def mountPoint(mounts: str) -> Path | None:
    """
    Where the control groups are.

    @param mounts: The text of C{/proc/self/mountinfo}.
    """
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if after.split()[:1] == ["cgroup2"] and len(fields) > 4:
            return Path(_ESCAPED.sub(lambda found: chr(int(found[1], 8)), fields[4]))
    return None


def ownGroup(groups: str) -> str:
    """
    The group that a process is in.

    @param groups: The text of its C{/proc/.../cgroup}.
    """
    for line in groups.splitlines():
        if line.startswith("0::"):
            return line.removeprefix("0::").removesuffix(" (deleted)")
    return "/"


def findControlGroups(given: str | None = None, process: Path = Path("/proc/self")) -> ControlGroup:
    """
    Where the sessions' groups go: below the one that was given, else below our own, or
    beside it where it is the program's alone.

    @param given: A directory of the control groups' file system.
    @param process: Where it stands what is mounted, and which group is our own.
    @raise GroupUnusable: There is none in which processes can be frozen and killed.
    """
    if given is not None:
        base = Path(given)
    else:
        try:
            mounted = mountPoint((process / "mountinfo").read_text())
            own = ownGroup((process / "cgroup").read_text())
        except OSError as error:
            raise GroupUnusable(f"{process}: {error.strerror}") from None
        if mounted is None:
            raise GroupUnusable("no control groups of version 2 are mounted")
        outer = mounted / own.lstrip("/")
        if outer.name == OWN:
            outer = outer.parent
        ControlGroup(outer).enable()
        base = outer / NAME
    group = ControlGroup(base)
    group.create()
    trial = group.part(f"trial-{os.getpid()}")
    trial.create()
    try:
        trial.freeze()
        if not (trial.path / "cgroup.kill").exists():
            raise GroupUnusable(f"{trial.path}: the kernel has no cgroup.kill (Linux 5.14)")
        trial.freeze(False)
    finally:
        trial.remove()
    group.enable()
    return group
