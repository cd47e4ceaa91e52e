"""Tests for L{helix_revdial.keeping}: what happens where something goes wrong."""

from __future__ import annotations

import os
import socket
from typing import Any, cast

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.keeping import SOCKETS, STATES, Keeping
from helix_revdial.revdial.errors import HeldByAnother
from helix_revdial.revdial.features import ALL
from helix_revdial.revdial.kept import KeptState


class Store:
    """A service manager's store, which may not listen."""

    def __init__(self) -> None:
        self.kept: dict[str, list[int]] = {}
        self.listens = True
        self.reads = True

    async def put(self, name: str, descriptors: list[int]) -> bool:
        if self.listens:
            self.kept.setdefault(name, []).extend(os.dup(each) for each in descriptors)
        return self.listens

    async def remove(self, name: str) -> bool:
        if self.listens:
            for each in self.kept.pop(name, []):
                os.close(each)
        return self.listens

    def forget(self) -> None:
        for kept in self.kept.values():
            for each in kept:
                os.close(each)

    async def settled(self) -> bool:
        return self.reads


class Transport:
    """What is left of a transport that was let go of."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def getHandle(self) -> socket.socket:
        return self._connection


class Registration:
    """One generation of a runner."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.owner = self.credential = "fam_1"
        self.generation = 7
        self.features = ALL
        self.targets = None
        self.peer = "192.0.2.1"
        self.connectedSince = 1000.0
        self.protocol: Any = self
        self.carrierName = "raw"
        self.offered = True


class Connections:
    """Lets go of what it is given; refuses whoever wants to register."""

    def __init__(self) -> None:
        self.mine: list[tuple[Registration, Transport, bytes]] = []
        self.asked: list[str] = []

    def release(self, most: int) -> list[tuple[Registration, Transport, bytes]]:
        released, self.mine = self.mine[:most], self.mine[most:]
        return released

    async def register(self, key: str, *arguments: object, **more: object) -> Any:
        self.asked.append(key)
        raise HeldByAnother


class KeepingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.store = Store()
        self.connections = Connections()
        self.permitted = True
        self.keeping = Keeping(
            Clock(), cast(Any, self.connections), cast(Any, self.store), self.mayGoOn
        )
        self.addCleanup(self.store.forget)

    async def mayGoOn(self, state: KeptState) -> bool:
        return self.permitted

    def agent(self, key: str = "wolf-1", pending: bytes = b"") -> socket.socket:
        """An agent with a connection that can be kept: its own end."""
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        self.connections.mine.append((Registration(key), Transport(ours), pending))
        return theirs

    def isOpen(self, agent: socket.socket) -> bool:
        try:
            return agent.recv(1) != b""
        except BlockingIOError:
            return True

    def keep(self, most: int = 10) -> int:
        return self.successResultOf(Deferred.fromCoroutine(self.keeping.keep(most)))

    def takeBack(self) -> int:
        """The next process starts with what is kept."""
        handed = {name: [os.dup(each) for each in kept] for name, kept in self.store.kept.items()}
        taking = Deferred.fromCoroutine(self.keeping.takeBack(handed))
        return self.successResultOf(taking)

    def test_keeps(self) -> None:
        """The sockets are in the store, with what they are; no secret is among it."""
        agents = [self.agent("wolf-1", b'{"comm'), self.agent("wolf-2")]
        self.assertEqual(self.keep(), 2)
        self.assertTrue(all(self.isOpen(agent) for agent in agents))
        [file] = self.store.kept[STATES]
        states = msgspec.json.decode(os.pread(file, 65536, 0), type=list[KeptState])
        self.assertEqual(
            [state.inode for state in states],
            [os.fstat(each).st_ino for each in self.store.kept[SOCKETS]],
        )
        self.assertEqual([state.key for state in states], ["wolf-1", "wolf-2"])
        self.assertEqual((states[0].pending, states[1].pending), ("eyJjb21t", ""))

    def test_nothingToKeep(self) -> None:
        """Nothing is said where there is nothing."""
        self.assertEqual(self.keep(), 0)
        self.assertEqual(self.store.kept, {})

    def test_managerDoesNotListen(self) -> None:
        """Where nobody takes the sockets their agents are told by the end of the connection."""
        agent = self.agent()
        self.store.listens = False
        self.assertEqual(self.keep(), 0)
        self.assertFalse(self.isOpen(agent))

    def test_managerDoesNotAnswer(self) -> None:
        """Where it is not sure that they were taken, they are ended for whoever has them."""
        agent = self.agent()
        self.store.reads = False
        self.assertEqual(self.keep(), 0)
        self.assertFalse(self.isOpen(agent))

    def test_notPermittedAnyMore(self) -> None:
        """F3: whose token or session has gone is closed, and leaves the store."""
        agent = self.agent()
        self.keep()
        self.permitted = False
        self.assertEqual(self.takeBack(), 0)
        self.assertFalse(self.isOpen(agent))
        self.assertEqual((self.store.kept, self.connections.asked), ({}, []))

    def test_refused(self) -> None:
        """A name that is another's by now costs this connection, and no other."""
        agents = [self.agent("wolf-1"), self.agent("wolf-2")]
        self.keep()
        self.assertEqual(self.takeBack(), 0)
        self.assertEqual(self.connections.asked, ["wolf-1", "wolf-2"])
        self.assertFalse(any(self.isOpen(agent) for agent in agents))

    def test_cannotBeTakenOut(self) -> None:
        """
        What stays in the store is not gone on with: a later process would take it up
        in the middle of a line.
        """
        agent = self.agent()
        self.keep()
        self.store.listens = False
        self.assertEqual(self.takeBack(), 0)
        self.assertEqual(self.connections.asked, [])
        self.assertFalse(self.isOpen(agent))
        self.store.listens = True

    def test_notDescribed(self) -> None:
        """A socket that nothing is known of is ended; so is one whose description is damaged."""
        for content in (None, b"", b"[{", b'[{"inode":1}]', b"\xff"):
            agent = self.agent()
            self.keep()
            for each in self.store.kept.pop(STATES):
                os.close(each)
            if content is not None:
                file = os.memfd_create("damaged")
                os.write(file, content)
                self.store.kept[STATES] = [file]
            self.assertEqual(self.takeBack(), 0)
            self.assertFalse(self.isOpen(agent), content)

    def test_noSocket(self) -> None:
        """A descriptor that is no socket costs nothing but itself."""
        self.store.kept[SOCKETS] = [os.open("/dev/null", os.O_RDONLY)]
        self.assertEqual(self.takeBack(), 0)

    def test_nothingHanded(self) -> None:
        """A first start asks nobody for anything."""
        self.store.listens = False
        self.assertEqual(self.takeBack(), 0)
