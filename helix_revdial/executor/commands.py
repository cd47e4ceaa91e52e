# -*- test-case-name: tests.executor.test_workspace -*-
"""
Runs the programs that look after a session's files: git, cp, btrfs, mount.

What touches files that the task may have written runs as the session itself, so that
there is nothing in them (a hook, a filter, a link) that could reach further than the
task could.  What holds a credential runs as the tunnel's user, whose processes and
files the task cannot see.  Only what moves no more than whole trees runs as the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from twisted.internet.defer import Deferred

from helix_revdial.programs import (
    Finished,
    OutputTooLarge,
    ProgramError,
    Programs,
    ProgramTimedOut,
)

from .confinement import PATH, Confinement
from .enter import CANNOT_ENTER
from .layout import Layout

As = Literal["session", "tunnel", "host"]

DEADLINE = 120.0
"""Seconds that a program may take where nothing else is said."""

OUTPUT = 1024 * 1024
"""Bytes of output that are read of one."""


class CommandFailed(Exception):
    """
    A program did not do its work; the text says which, and what it said.

    @ivar exitCode: Its exit code, where it ended with one.
    """

    def __init__(self, text: str, exitCode: int | None = None) -> None:
        super().__init__(text)
        self.exitCode = exitCode


class Commands:
    """
    For one session.

    @ivar confinement: What holds it.
    @ivar layout: Where it is.
    @ivar scratch: A directory of the host's own, for what lasts no longer than this.
    """

    def __init__(
        self, reactor: Any, confinement: Confinement, layout: Layout, tunnelUser: int | None
    ) -> None:
        self.confinement = confinement
        self.layout = layout
        self.scratch = layout.root
        self._reactor = reactor
        self._tunnelUser = tunnelUser
        self._running: set[Programs] = set()
        self._reading: list[Commands] = []
        self._stopped = False

    def reading(self, layout: Layout, user: int | None) -> Commands:
        """
        For looking at another session's files: as that session's user, so that nothing
        in them reaches further than it could itself, and among the processes of this one,
        with which they end.
        """
        confinement = replace(self.confinement, user=user, temporary=None)
        commands = Commands(self._reactor, confinement, layout, None)
        commands.scratch = self.scratch
        self._reading.append(commands)
        return commands

    async def run(
        self,
        command: Sequence[str],
        *,
        by: As = "session",
        directory: str | None = None,
        environment: Mapping[str, str] | None = None,
        deadline: float = DEADLINE,
        fileSize: int | None = None,
        standardInput: bytes = b"",
        outputLimit: int = OUTPUT,
        tolerant: bool = False,
    ) -> bytes:
        """
        Run a program to its end.

        @param by: As whom.
        @param directory: Where it starts; the session's own directory by default.
        @param environment: What is added to its environment.
        @param fileSize: Bytes of each file that it writes.
        @param tolerant: Whether its output is good whatever its exit code says.
        @return: Its standard output.
        @raise CommandFailed: It did not end with 0, or not in time.
        """
        if self._stopped:
            raise CommandFailed("the session is being ended")
        more = dict(environment or {})
        start = directory or str(self.layout.root)
        if by == "host":
            argv = list(command)
            whole = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": "/", **more}
        else:
            user = self._tunnelUser if by == "tunnel" else None
            home = self.layout.tunnel if by == "tunnel" else self.layout.home
            argv = self.confinement.argv(command, "side", start, fileSize=fileSize, user=user)
            whole = self.confinement.environment(str(home), str(home), more)
        programs = Programs(self._reactor, whole)
        self._running.add(programs)
        name = command[0]
        try:
            done: Finished = await programs.run(
                argv, outputLimit=outputLimit, deadline=deadline, standardInput=standardInput
            )
        except ProgramTimedOut:
            raise CommandFailed(f"{name} did not end within {deadline:g} seconds") from None
        except OutputTooLarge:
            raise CommandFailed(f"{name} wrote more than {outputLimit} bytes") from None
        except ProgramError as error:
            raise CommandFailed(str(error)) from None
        finally:
            self._running.discard(programs)
        cannotEnter = done.exitCode in (None, CANNOT_ENTER)
        if done.exitCode != 0 and (cannotEnter or not tolerant):
            what = "confining it" if done.exitCode == CANNOT_ENTER else name
            raise CommandFailed(f"{what}: {done.complaint()}", done.exitCode)
        return done.output

    async def stop(self) -> None:
        """Kill what runs, and start nothing more."""
        self._stopped = True
        for commands in self._reading:
            await commands.stop()
        for programs in list(self._running):
            await programs.stop()


async def settled(deferred: Deferred[Any]) -> None:
    """Wait for the end of something, however it ends."""
    await deferred.addBoth(lambda _: None)
