# -*- test-case-name: tests.test_keeping,tests.integration.test_drain -*-
"""
Control connections kept over a restart, with the service manager's store.

Before the server ends, L{Keeping.keep} gives the sockets of L{kept
<helix_revdial.revdial.kept>} to the manager, and beside them a file in memory
that says what they are.  At the next start L{Keeping.takeBack} looks at each:
whose token has been revoked meanwhile, or whose session has been deleted, is
closed; the others go on, and their agents notice nothing.

Invariants:

  - What comes from the store is taken out of it before anything is read or
    written: a process that crashes after that leaves nothing behind that a later
    one would take up in the middle of a line.
  - A socket that nobody goes on with is shut down, so that its agent connects
    again, even where the store still has it.
  - Whatever fails costs its own connection, and never the start.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from helix_revdial.revdial.connections import Connections
from helix_revdial.revdial.errors import DialError
from helix_revdial.revdial.kept import KeptState, adopt, release
from helix_revdial.systemd.store import DescriptorStore

SOCKETS = "hrc"
"""What the sockets are called in the store: short, since each has it in an environment."""

STATES = "hrs"
"""What the file that describes them is called."""

AT_A_TIME = 16
"""Connections that are being taken up at the same time: each asks the database."""

MAX_STATES = 64 * 1024 * 1024
"""Bytes of that file that are read."""

MayGoOn = Callable[[KeptState], Awaitable[bool]]
"""Whether a connection's token and session are still there."""


class Keeping:
    """
    Lets connections go, and takes them up.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        connections: Connections,
        store: DescriptorStore,
        mayGoOn: MayGoOn,
    ) -> None:
        """
        @param reactor: Watches the sockets that are taken up.
        @param connections: Whose connections they are.
        @param store: The service manager's.
        @param mayGoOn: Asked about each that is to be taken up.
        """
        self._reactor = reactor
        self._connections = connections
        self._store = store
        self._mayGoOn = mayGoOn
        self._held: list[Any] = []

    async def keep(self, most: int) -> int:
        """
        Give connections away; the process has to end soon after.

        @param most: How many, at most.
        @return: How many there were.
        """
        released = release(self._connections, most)
        if not released:
            return 0
        # Sockets that are collected are closed, which is in order from here on; the
        # transports themselves have to stay as they are.
        self._held = [each.transport for each in released]
        file = os.memfd_create("helix-revdial-connections", os.MFD_CLOEXEC)
        try:
            content = memoryview(msgspec.json.encode([each.state for each in released]))
            while content:
                content = content[os.write(file, content) :]
            told = await self._store.put(STATES, [file]) and await self._store.put(
                SOCKETS, [each.descriptor for each in released]
            )
            if told and await self._store.settled():
                self._log.info("{count} control connections are kept", count=len(released))
                return len(released)
        finally:
            os.close(file)
        self._log.warn("systemd does not take the control connections; their agents connect again")
        await self._store.remove(SOCKETS)
        for each in released:
            _shutDown(each.transport.getHandle())
        return 0

    async def takeBack(self, handed: Mapping[str, list[int]]) -> int:
        """
        Go on with the connections of the process before.

        @param handed: The descriptors by L{SOCKETS} and L{STATES}.
        @return: How many go on.
        """
        files, numbers = handed.get(STATES, []), handed.get(SOCKETS, [])
        if not files and not numbers:
            return 0
        states = self._read(files)
        sockets = []
        for number in numbers:
            try:
                sockets.append(socket.socket(fileno=number))
            except OSError as error:
                self._log.warn("A kept connection is no socket: {why}", why=str(error))
                os.close(number)
        removed = await self._store.remove(STATES) and await self._store.remove(SOCKETS)
        waiting = iter(sockets)

        async def work() -> int:
            count = 0
            for connection in waiting:
                state = states.get(os.fstat(connection.fileno()).st_ino)
                if removed and state is not None and await self._goesOn(connection, state):
                    count += 1
                else:
                    _shutDown(connection)
            return count

        workers = [Deferred.fromCoroutine(work()) for _ in range(AT_A_TIME)]
        count = sum(await gatherResults(workers))
        self._log.info(
            "{count} control connections go on, {gone} do not",
            count=count,
            gone=len(sockets) - count,
        )
        return count

    async def _goesOn(self, connection: socket.socket, state: KeptState) -> bool:
        try:
            if not await self._mayGoOn(state):
                self._log.info("{runner} may not be connected any more", runner=state.key)
                return False
            # It closes its own.
            registration = await adopt(self._reactor, self._connections, connection.dup(), state)
        except (DialError, OSError, ValueError) as error:
            self._log.info(
                "The kept connection of {runner} does not go on: {why}",
                runner=state.key,
                why=str(error),
            )
            return False
        except Exception:
            self._log.failure("The kept connection of {runner} does not go on", runner=state.key)
            return False
        connection.close()
        self._log.info(
            "{runner} goes on as generation {generation}, before {before}",
            runner=state.key,
            generation=registration.generation,
            before=state.generation,
        )
        return True

    def _read(self, files: list[int]) -> dict[int, KeptState]:
        """What the files say, by the sockets' inodes."""
        found: dict[int, KeptState] = {}
        for number in files:
            try:
                with open(number, "rb") as file:
                    file.seek(0)
                    content = file.read(MAX_STATES)
                for state in msgspec.json.decode(content, type=list[KeptState]):
                    found[state.inode] = state
            except (OSError, ValueError, msgspec.MsgspecError) as error:
                self._log.warn("What is kept is not described: {why}", why=str(error))
        return found


def _shutDown(connection: socket.socket) -> None:
    """End a connection whoever else has it open."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    connection.close()


__all__ = ["SOCKETS", "STATES", "Keeping"]
