"""Tests for L{helix_revdial.sessions.executors}."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from helix_revdial.sessions.executor import ExecutorUnreachable, HostHealth
from helix_revdial.sessions.executors import Executors
from helix_revdial.sessions.synthetic import SyntheticExecutor
from tests.sessions.worlds import SessionTestCase


class Host(SyntheticExecutor):
    """
    One whose health is told by the test.

    @ivar health: what it says; C{None}: it cannot be reached.
    @ivar silent: whether it never answers.
    """

    health: HostHealth | None = HostHealth("linux", "x86_64", ["copy"], [], ["local"], 4, 0)
    silent = False

    async def host(self) -> HostHealth:
        if self.silent:
            await Deferred()
        if self.health is None:
            raise ExecutorUnreachable("gone")
        return self.health


class ExecutorsTests(SessionTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.executors = Executors(self.clock, self.wallClock, heartbeat=5)
        self.executors.start()
        self.addCleanup(self.executors.stop)
        self.usable = 0
        self.executors.onUsable(self.count)

    def count(self) -> None:
        self.usable += 1

    def host(self, name: str, tenant: str | None = None) -> Host:
        host = Host(self.clock, self.wallClock)
        self.executors.add(name, host, tenant=tenant)
        return host

    def standing(self, name: str) -> str:
        found = self.executors.get(name)
        assert found is not None
        return found.standing

    def test_returned(self) -> None:
        """Who answers for the first time, or again after it was offline, is told of once."""
        told: list[str] = []
        self.executors.onReturned(lambda one: told.append(one.id))
        host = self.host("a")
        self.assertEqual(told, ["a"])
        for health in (None, None, host.health, None, None, None, host.health, host.health):
            host.health = health
            self.clock.advance(5)
        self.assertEqual(told, ["a", "a"])

    def test_heartbeats(self) -> None:
        """Two questions without an answer: degraded; three: offline; one answer: well."""
        host = self.host("a")
        told = []
        for health in (host.health, None, None, None, None, host.health):
            host.health = health
            self.clock.advance(5)
            told.append(self.standing("a"))
        self.assertEqual(told, ["ok", "ok", "degraded", "offline", "offline", "ok"])
        self.assertEqual(self.usable, 2)

    def test_silence(self) -> None:
        """A host that never answers is asked once at a time, and goes offline."""
        host = self.host("a")
        host.silent = True
        self.clock.pump([5] * 5)
        self.assertEqual(self.standing("a"), "offline")

    def test_choice(self) -> None:
        """The least loaded that can; ties by name."""
        one, two, three = self.host("one"), self.host("two"), self.host("three")
        one.health = HostHealth("linux", "x", [], [], ["local"], 4, 2)
        two.health = HostHealth("linux", "x", [], [], ["local"], 10, 2)
        three.health = HostHealth("linux", "x", [], ["other"], ["local"], 4, 0)
        self.clock.advance(5)
        chosen = self.executors.choose(self.newTask())
        assert chosen is not None
        self.assertEqual(chosen.id, "two")
        two.health = HostHealth("linux", "x", [], [], ["devcontainer"], 10, 0)
        self.clock.advance(5)
        chosen = self.executors.choose(self.newTask())
        assert chosen is not None
        self.assertEqual(chosen.id, "one")
        chosen.assigned |= {"a", "b", "c", "d"}
        self.assertIs(self.executors.choose(self.newTask()), None)

    def test_comesBack(self) -> None:
        """One that is added again keeps its sessions; one that is gone cannot be reached."""
        self.host("a")
        found = self.executors.get("a")
        assert found is not None
        found.assigned.add("ses_1")
        self.host("a")
        found = self.executors.get("a")
        assert found is not None
        self.assertEqual(found.assigned, {"ses_1"})
        self.executors.remove("a")
        self.executors.remove("a")
        self.assertRaises(ExecutorUnreachable, self.executors.reach, "a")
        self.assertRaises(ExecutorUnreachable, self.executors.reach, None)
