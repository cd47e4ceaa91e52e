"""Several agents in one process."""

from __future__ import annotations

import os
from typing import Any, cast

from twisted.internet.testing import EventLoggingObserver, MemoryReactorClock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.agent.process import AgentsService, agentsService
from helix_revdial.agent.reconnect import ReconnectPolicy
from helix_revdial.agent.service import AgentService
from helix_revdial.agent.settings import AgentSettings, readSettings
from helix_revdial.revdial.client import Refused
from helix_revdial.revdial.listener import Listener
from tests.agent.test_service import Path


def settings(key: str) -> AgentSettings:
    return readSettings(
        {"runner-id": key, "server": ["http://cp.example"]}, {"RUNNER_TOKEN": "hl-x"}
    )


class Heard:
    """Somebody who is told how the process is."""

    def __init__(self, service: AgentsService) -> None:
        self.service = service
        self.said: list[str] = []

    def started(self) -> None:
        self.said.append("started")

    def changed(self) -> None:
        self.said.append(self.service.status())

    def stopping(self, limit: float) -> None:
        self.said.append(f"stopping {limit:g}")

    def ended(self) -> None:
        self.said.append("ended")


class AgentsServiceTests(SynchronousTestCase):
    """Agents that share nothing but the process."""

    def setUp(self) -> None:
        self.clock = MemoryReactorClock()
        self.paths: list[Path] = []
        self.service = AgentsService([self.agent("wolf-1"), self.agent("wolf-2")])
        self.heard = Heard(self.service)
        self.service.supervision = cast(Any, self.heard)

    def agent(self, key: str) -> AgentService:
        path = Path()
        self.paths.append(path)
        clock = cast(Any, self.clock)
        listener = Listener(clock, cast(Any, path), {}, default=None)
        policy = ReconnectPolicy(lambda: 0.5, firstDelay=2.0)
        return AgentService(clock, settings(key), path, listener, policy, oneOfSeveral=True)

    def test_oneRefusedDoesNotDisturbTheOther(self) -> None:
        """Each agent waits for itself; one that is refused leaves the other connected."""
        self.service.startService()
        first, second = self.paths
        first.accept()
        second.refuse(Refused(403, "no"))
        self.assertEqual(self.service.status(), "1 of 2 runners connected; not: wolf-2")
        self.clock.advance(1.0)
        self.assertEqual((len(first.attempts), len(second.attempts)), (0, 1))
        second.accept()
        self.assertEqual(self.service.status(), "2 of 2 runners connected")
        self.assertEqual(self.heard.said[0], "started")
        self.assertEqual(self.heard.said.count("started"), 1)
        self.assertEqual(self.heard.said[-1], "2 of 2 runners connected")

    def test_whoseLineItIs(self) -> None:
        """Each line of the log says which runner it is about, and has it in a field."""
        events: Any = EventLoggingObserver.createWithCleanup(cast(Any, self), globalLogPublisher)
        self.service.startService()
        self.paths[0].accept()
        self.paths[1].refuse(Refused(401, "unknown"))
        said = [formatEvent(event) for event in events]
        self.assertIn("wolf-2: refused by http://cp.example:8080: unknown", said)
        self.assertTrue(any(line.startswith("wolf-2: connecting again") for line in said), said)
        self.assertTrue(
            all(
                line.startswith(f"{event['runner']}: ")
                for line, event in zip(said, events, strict=True)
            )
        )

    def test_stop(self) -> None:
        """All leave; the end is said once, when nothing is left of any."""
        self.service.startService()
        carrier = self.paths[0].accept()
        stopped = self.service.stopService()
        self.clock.advance(0)
        self.clock.advance(1)
        self.successResultOf(stopped)
        self.assertTrue(carrier.disconnected)
        self.assertEqual(self.paths[1].cancelled, 1)
        self.assertEqual(self.heard.said[-1], "ended")
        self.assertEqual(self.heard.said.count("ended"), 1)
        self.assertTrue(any(each.startswith("stopping ") for each in self.heard.said))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_oneIsItself(self) -> None:
        """A process of one runner is that runner's agent; of several, all of theirs."""
        one = agentsService(self.clock, [settings("wolf-1")], os.environ)
        self.assertIsInstance(one, AgentService)
        two = agentsService(self.clock, [settings("wolf-1"), settings("wolf-2")])
        assert isinstance(two, AgentsService)
        self.assertEqual([cast(AgentService, each).key for each in two], ["wolf-1", "wolf-2"])
