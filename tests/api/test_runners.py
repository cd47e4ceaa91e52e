"""Tests for L{helix_revdial.api.runners}: where sessions can run."""

from __future__ import annotations

from typing import Any, cast

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.config import ServerConfig, SessionsSection
from helix_revdial.sessions.executor import (
    Executor,
    ExecutorUnreachable,
    HostHealth,
    HostSession,
)
from tests.api.harness import Server

HEALTH = HostHealth(
    os="linux",
    arch="x86_64",
    snapshotCapabilities=["btrfs", "copy", "git"],
    agents=[],
    runtimes=["local", "disabled"],
    slots=4,
    running=1,
    version="1.0",
    host="gpu-1",
)


class Host:
    """An executor that only says how it is."""

    kind = "local"

    def __init__(self) -> None:
        self.away = False

    async def host(self) -> HostHealth:
        if self.away:
            raise ExecutorUnreachable("away")
        return HEALTH

    async def sessions(self) -> list[HostSession]:
        return []


class RunnersTests(SynchronousTestCase):
    """Over HTTP, in memory."""

    def setUp(self) -> None:
        self.server = Server(ServerConfig(sessions=SessionsSection(allowDisabledRuntime=True)))
        self.viewer = self.server.user(role="viewer")
        self.host = Host()
        executors = self.server.services.executors
        executors.start()
        self.addCleanup(executors.stop)
        executors.add("wolf-1", cast(Executor, self.host))

    def items(self, path: str, token: str | None = None) -> Any:
        answer = self.server.get(f"/api/v1/{path}", token or self.viewer)
        self.assertEqual(answer.status, 200, answer.body)
        return answer.json()["items"]

    def test_runner(self) -> None:
        """What a host said of itself, and when; under both names."""
        (runner,) = self.items("runners")
        self.assertEqual(
            {name: runner[name] for name in ("id", "os", "arch", "health", "slots", "running")},
            {
                "id": "wolf-1",
                "os": "linux",
                "arch": "x86_64",
                "health": "ok",
                "slots": 4,
                "running": 1,
            },
        )
        self.assertIn("git", runner["snapshotCapabilities"])
        self.assertIn("lastHeartbeat", runner)
        self.assertEqual(self.items("executors"), [runner])

    def test_health(self) -> None:
        """Two heartbeats missed: degraded; three: offline, and its runtimes are gone."""
        self.host.away = True
        beat = self.server.services.config.sessions.heartbeat
        seen = []
        for _ in range(3):
            self.server.clock.advance(beat)
            seen.append(self.items("runners")[0]["health"])
        self.assertEqual(seen, ["ok", "degraded", "offline"])
        self.assertEqual(self.items("runtimes"), [])
        self.host.away = False
        self.server.clock.advance(beat)
        self.assertEqual(self.items("runners")[0]["health"], "ok")

    def test_gone(self) -> None:
        """A host that was there and is not known to be, since a restart, is offline."""
        before = self.items("runners")
        self.server.services.executors.stop()
        del self.server.services.executors._known["wolf-1"]
        self.assertEqual(self.items("runners"), [{**before[0], "health": "offline"}])
        self.assertEqual(self.items("runtimes"), [])

    def test_runtimes(self) -> None:
        """To run without a sandbox is a profile, where the operator allows it."""
        local = {"type": "local", "images": [], "paths": []}
        self.assertEqual(
            self.items("runtimes"), [{**local, "sandboxProfiles": ["default", "disabled"]}]
        )
        self.server.services.config = ServerConfig()
        self.assertEqual(self.items("runtimes"), [{**local, "sandboxProfiles": ["default"]}])

    def test_tenants(self) -> None:
        """A host of one tenant is not there for another."""
        self.server.services.executors.add("theirs", cast(Executor, Host()), tenant="other")
        self.assertEqual([one["id"] for one in self.items("runners")], ["wolf-1"])
        other = self.server.user(role="viewer", tenant="other")
        self.assertEqual([one["id"] for one in self.items("runners", other)], ["theirs", "wolf-1"])
