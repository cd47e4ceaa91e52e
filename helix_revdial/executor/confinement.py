# -*- test-case-name: tests.executor.test_confinement -*-
"""
What holds a session together and apart from others: its user and its control group.

A L{Confinement} says how a program of the session is started (L{Confinement.argv}
puts L{helix_revdial.executor.enter} before it), which processes there are, and freezes,
signals and kills them all.  It holds no state but what it is told, so that whoever
comes after a crash makes the same one again from the session's record.

A session has two parts.  C{task} is the agent with whatever it starts; C{side} is what
goes on while the task is paused: the display, and the programs that look after the
workspace.

What finds the processes, from the strongest to the weakest:

  - the control groups, which no process leaves;
  - the user, where the session has one of its own (as root);
  - descent and the session's mark, where the executor is not root: a process
    that has lost its parent and its environment gets away once the supervisor is gone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from .control_groups import ControlGroup
from .passage import Shown
from .process_table import Process, descendants, marked, ofUser, processTable, signalUser

Part = Literal["task", "side"]

ENTER: Final = str(Path(__file__).with_name("enter.py"))

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs of a session are looked up."""


@dataclass(frozen=True)
class Limits:
    """
    What one session may have of the host.

    @ivar processes: Processes and threads of its user at one time; only where
        the user is its own.
    @ivar files: Open files of each process.
    @ivar fileSize: Bytes of each file that it writes.
    @ivar memory: Bytes, where there is a memory controller.
    @ivar cpu: Processors, where there is a cpu controller.
    """

    processes: int = 1024
    files: int = 4096
    fileSize: int | None = None
    memory: int | None = None
    cpu: int | None = None


@dataclass(frozen=True)
class Confinement:
    """
    Of one session.

    @ivar session: Its id.
    @ivar user: Its own user and group; C{None} for the executor's, which is
        every session's then.
    @ivar tunnelUser: The user of its tunnel agent, likewise.
    @ivar group: Its control group; C{None} where there are none.
    @ivar temporary: What it sees as C{/tmp}; C{None} for the host's.
    @ivar mounts: Whether it has mounts and shared memory of its own.
    @ivar accounts: What it sees as C{/etc/passwd}, and its tunnel agent too; C{None} for
        the host's.
    @ivar shown: What it sees of directories that are closed to it, and its tunnel agent too.
    @ivar supervisor: The process that its orphans fall to.
    """

    session: str
    user: int | None = None
    tunnelUser: int | None = None
    group: ControlGroup | None = None
    temporary: str | None = None
    mounts: bool = False
    accounts: str | None = None
    limits: Limits = field(default_factory=Limits)
    shown: Shown = field(default_factory=dict)
    supervisor: int | None = None

    def create(self) -> list[str]:
        """
        Make the control groups.

        @return: What the task is to be bounded in and is not: C{memory}, C{cpu}.
        @raise GroupUnusable: That cannot be.
        """
        wanted = {}
        if self.limits.memory is not None:
            wanted["memory"] = ("memory.max", str(self.limits.memory))
        if self.limits.cpu is not None:
            wanted["cpu"] = ("cpu.max", f"{self.limits.cpu * 100_000} 100000")
        if self.group is None:
            return list(wanted)
        self.group.create()
        self.group.enable()
        for part in ("task", "side"):
            self.group.part(part).create()
        task = self.group.part("task")
        task.limit("pids.max", str(self.limits.processes))
        if self.limits.memory is not None:
            # What does not fit is not to go on in the host's swap.
            task.limit("memory.swap.max", "0")
        return [name for name, (file, value) in wanted.items() if not task.limit(file, value)]

    def argv(
        self,
        command: Sequence[str],
        part: Part,
        directory: str | None = None,
        *,
        newSession: bool = False,
        fileSize: int | None = None,
        user: int | None = None,
        told: int | None = None,
    ) -> list[str]:
        """
        The command line that runs C{command} within the session.

        @param directory: Where it starts.
        @param newSession: Whether it leads a session (setsid(2)) of its own.
        @param fileSize: Another limit of bytes for each file.
        @param user: Another user than the session's own: then it is none of its
            processes, but in its control group all the same.
        @param told: A descriptor on which it is said that the program cannot be confined.
        """
        limits: dict[str, int] = {"core": 0, "files": self.limits.files}
        most = fileSize if fileSize is not None else self.limits.fileSize
        if most is not None:
            limits["fileSize"] = most
        terms: dict[str, Any] = {
            "newSession": newSession,
            "directory": directory,
            "limits": limits,
        }
        own = self.user if user is None else user
        if own is not None and self.user is not None:
            terms["user"] = terms["userGroup"] = own
            limits["processes"] = self.limits.processes
        if self.group is not None:
            terms["group"] = str(self.group.part(part).path)
        if self.mounts and user is None:
            terms["mounts"] = True
            terms["temporary"] = self.temporary
        if self.mounts and self.accounts is not None:
            terms["accounts"] = self.accounts
        if self.mounts and self.shown:
            terms["shown"] = self.shown
        if told is not None:
            terms["told"] = told
        if part == "task":
            # Short of memory, the kernel takes a task before it takes the host's services.
            terms["oomScore"] = 500
        return [sys.executable, "-I", "-S", ENTER, json.dumps(terms), *command]

    def environment(self, home: str, temporary: str, more: Mapping[str, str]) -> dict[str, str]:
        """
        The whole environment of a program of the session: nothing of ours is in it.

        @param more: What is added, or replaces.
        """
        return {
            "PATH": PATH,
            "HOME": home,
            "TMPDIR": temporary,
            "LANG": "C.UTF-8",
            "USER": "session",
            "LOGNAME": "session",
            "SHELL": "/bin/sh",
            **more,
            "HELIX_SESSION_ID": self.session,
        }

    def processes(self, part: Part | None = None, besides: Collection[int] = ()) -> set[int]:
        """
        The processes of the session.

        @param part: Of this part only.
        @param besides: Processes that are of the other part, with what they
            started, where only this tells the parts apart.
        """
        if self.group is not None:
            group = self.group if part is None else self.group.part(part)
            found = group.processes()
            if part is not None or self.user is None:
                return found
            return found | self._ofUsers(processTable())
        table = processTable()
        if self.user is not None:
            found = self._ofUsers(table) if part is None else ofUser(table, self.user)
            if besides:
                found -= set(besides) | descendants(table, besides)
            return found
        found = marked(table, self.session) - set(besides) - descendants(table, besides)
        if self.supervisor is not None:
            found |= descendants(table, [self.supervisor], without=besides)
        return found - {os.getpid(), self.supervisor}

    def _ofUsers(self, table: Mapping[int, Process]) -> set[int]:
        users = [user for user in (self.user, self.tunnelUser) if user is not None]
        return {pid for user in users for pid in ofUser(table, user)}

    def signal(self, number: int, part: Part | None = None, besides: Collection[int] = ()) -> int:
        """
        Signal every process.

        @return: How many there were.
        """
        found = self.processes(part, besides)
        for pid in found:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        return len(found)

    def freeze(self, besides: Collection[int] = ()) -> bool:
        """
        Let the task run no further.

        To be called again until it is so: what is just being started is met later.

        @return: Whether by now nothing of it runs.
        """
        if self.group is not None:
            task = self.group.part("task")
            task.freeze()
            return task.frozen() or not task.populated()
        found = self.processes("task", besides)
        table = processTable()
        running = {pid for pid in found if pid in table and not table[pid].stopped}
        for pid in running:
            try:
                os.kill(pid, signal.SIGSTOP)
            except ProcessLookupError:
                continue
        return not running

    def thaw(self, besides: Collection[int] = ()) -> None:
        """Let the task run again."""
        if self.group is not None:
            self.group.part("task").freeze(False)
        else:
            self.signal(signal.SIGCONT, "task", besides)

    def kill(self, part: Part | None = None, besides: Collection[int] = ()) -> bool:
        """
        Kill every process.

        To be called again until none is left.

        @return: Whether none is left.
        """
        if self.group is not None:
            group = self.group if part is None else self.group.part(part)
            group.kill()
        if self.user is not None and not besides and part is None:
            for user in (self.user, self.tunnelUser):
                if user is not None:
                    signalUser(user, signal.SIGKILL)
        elif self.group is None:
            self.signal(signal.SIGKILL, part, besides)
        return not self.processes(part, besides)

    def remove(self) -> bool:
        """
        Remove the control groups.

        @return: Whether nothing is left of them.
        """
        return self.group is None or self.group.remove()
