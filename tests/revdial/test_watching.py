"""What those who watch are told, and that they cannot disturb anybody."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.connections import Connections, Registration
from helix_revdial.revdial.errors import HeldByAnother, NotConnected
from helix_revdial.revdial.pickups import Call
from helix_revdial.revdial.watching import Watchers, Watching


class Notes(Watching):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def registered(self, registration: Registration, before: str | None) -> None:
        self.told.append(("registered", registration.key, before))

    def registrationRefused(self, key: str, error: Any) -> None:
        self.told.append(("refused", key, error.word))

    def lost(self, registration: Registration, word: str, reason: str) -> None:
        self.told.append(("lost", registration.key, word))

    def gone(self, key: str, generation: int) -> None:
        self.told.append(("gone", key))

    def dialRefused(self, key: str, error: Any, limit: str | None) -> None:
        self.told.append(("dial refused", key, error.word, limit))

    def ended(self, call: Call) -> None:
        self.told.append(("ended", call.outcome, call.stream.about))


class Broken(Notes):
    """Fails at everything."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("registered", "lost", "gone", "ended", "dialRefused", "registrationRefused"):

            def fail(*arguments: object) -> None:
                raise RuntimeError("a watcher's own fault")

            return fail
        return super().__getattribute__(name)


class WatchingTests(SynchronousTestCase):
    """L{Watching}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.notes: Notes = Notes()
        self.generation = 0

    def connections(self) -> Connections:
        def next_() -> Deferred[int]:
            self.generation += 1
            return succeed(self.generation)

        return Connections(
            self.clock, next_, wallClock=self.clock.seconds, maxPending=1, watching=self.notes
        )

    def register(self, connections: Connections, owner: str = "o") -> Deferred[Registration]:
        return Deferred.fromCoroutine(
            connections.register("wolf-1", owner, "c", features=frozenset(), offered=True, peer="p")
        )

    def test_comingAndGoing(self) -> None:
        """First, taken over, lost, back in time, refused to another, and gone."""
        connections = self.connections()
        first = self.successResultOf(self.register(connections))
        second = self.successResultOf(self.register(connections))
        self.failureResultOf(self.register(connections, "another"), HeldByAnother)
        second.protocol.connectionLost(Failure(ConnectionLost()))
        third = self.successResultOf(self.register(connections))
        third.protocol.connectionLost(Failure(ConnectionLost()))
        self.clock.advance(100)
        del first
        self.assertEqual(
            self.notes.told,
            [
                ("registered", "wolf-1", None),
                ("lost", "wolf-1", "superseded"),
                ("registered", "wolf-1", "connected"),
                ("refused", "wolf-1", "held"),
                ("lost", "wolf-1", "lost"),
                ("registered", "wolf-1", "grace"),
                ("lost", "wolf-1", "lost"),
                ("gone", "wolf-1"),
            ],
        )

    def test_dials(self) -> None:
        """A dial that never began is told of with its limit, one that did when it is over."""
        connections = self.connections()
        factory = Factory.forProtocol(Protocol)
        endpoint = connections.endpoint("wolf-1", about={"request": "r"})
        self.failureResultOf(endpoint.connect(factory), NotConnected)
        self.successResultOf(self.register(connections))
        waiting = endpoint.connect(factory)
        self.assertEqual([call.dial.key for call in connections.living()], ["wolf-1"])
        self.assertEqual(connections.sizes()["dials"], 1)
        endpoint.connect(factory).addErrback(lambda failure: None)
        waiting.addErrback(lambda failure: None)
        waiting.cancel()
        self.assertEqual(
            [note for note in self.notes.told if note[0] != "registered"],
            [
                ("dial refused", "wolf-1", "not-connected", None),
                ("dial refused", "wolf-1", "busy", "pending_dials_per_runner"),
                ("ended", "cancelled", {"request": "r"}),
            ],
        )
        self.assertEqual(connections.sizes()["dials"], 0)

    def test_aBrokenWatcher(self) -> None:
        """What fails in a watcher is logged, and changes nothing for anybody."""
        self.notes = Broken()
        connections = self.connections()
        endpoint = connections.endpoint("wolf-1")
        factory = Factory.forProtocol(Protocol)
        self.failureResultOf(endpoint.connect(factory), NotConnected)
        registration = self.successResultOf(self.register(connections))
        waiting = endpoint.connect(factory)
        waiting.addErrback(lambda failure: None)
        waiting.cancel()
        registration.protocol.connectionLost(Failure(ConnectionLost()))
        self.clock.advance(100)
        self.assertIsNone(connections.status("wolf-1"))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 5)


class WatchersTests(SynchronousTestCase):
    """Several who watch the same."""

    def test_all(self) -> None:
        """Each is told all, in order, whatever another one does."""

        class Broken(Watching):
            def gone(self, key: str, generation: int) -> None:
                raise RuntimeError("broken")

        first, last = Notes(), Notes()
        watchers = Watchers(first, Broken())
        watchers.add(last)
        watchers.gone("a", 1)
        watchers.dialRefused("b", NotConnected("no"), None)
        for notes in (first, last):
            self.assertEqual(
                [each[:2] for each in notes.told], [("gone", "a"), ("dial refused", "b")]
            )
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
