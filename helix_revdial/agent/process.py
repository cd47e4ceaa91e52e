# -*- test-case-name: tests.agent.test_process -*-
"""
All the agents of one process.

L{agentsService} makes the service that C{twistd} runs: one agent as it is, several
as the parts of one.  Runners that share a process share the reactor and nothing
else: each has its own connection, token, targets, limits and wait, so that a login
which is refused, or a server that is away, never disturbs another.

What there is once in a process stays once: the service manager hears of all agents
in one line, and the second signal ends the waiting of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from ..systemd.signals import SecondSignal
from ..systemd.supervision import Supervision
from ..telemetry.logs import LoggingService
from .service import AgentService, agentService
from .settings import AgentSettings

if TYPE_CHECKING:
    from .observation import AgentObservation


class AgentsService(LoggingService, MultiService):
    """
    Several agents, started and stopped together.
    """

    def __init__(self, agents: Sequence[AgentService]) -> None:
        super().__init__()
        self.supervision: Supervision | None = None
        self._agents = list(agents)
        self._patience = 0.0
        for agent in self._agents:
            agent.supervision = _Part(self)
            agent.setServiceParent(self)

    def startService(self) -> None:
        """Begin to connect, every agent for itself."""
        super().startService()
        if self.supervision is not None:
            self.supervision.started()

    def stopService(self) -> Deferred[None]:
        """
        Leave, all at the same time.

        @return: Fires when nothing is left of any.
        """
        stopping: Deferred[None] = super().stopService()
        return stopping.addBoth(self._stopped)

    def status(self) -> str:
        """What the agents are doing, in a line."""
        connected = [agent for agent in self._agents if agent.session is not None]
        away = [agent for agent in self._agents if agent.session is None]
        said = f"{len(connected)} of {len(self._agents)} runners connected"
        if away and self.running:
            said += f"; not: {', '.join(agent.key for agent in away)}"
        return said

    def changed(self) -> None:
        """One of the agents does something else now."""
        if self.supervision is not None:
            self.supervision.changed()

    def stopping(self, limit: float) -> None:
        """One of the agents leaves, within so many seconds."""
        if self.supervision is not None:
            # The agent that says so last need not be the one that takes longest.
            self._patience = max(limit, self._patience)
            self.supervision.stopping(self._patience)

    def _stopped(self, result: Any) -> Any:
        if self.supervision is not None:
            self.supervision.ended()
        return result


class _Part:
    """What one agent tells, on its way to those who want to know of all."""

    def __init__(self, whole: AgentsService) -> None:
        self._whole = whole

    def started(self) -> None:
        """The whole says so, once."""

    def changed(self) -> None:
        self._whole.changed()

    def stopping(self, limit: float) -> None:
        self._whole.stopping(limit)

    def ended(self) -> None:
        self._whole.changed()


def agentsService(
    reactor: Any,
    runners: Sequence[AgentSettings],
    environment: Mapping[str, str] | None = None,
    observation: AgentObservation | None = None,
) -> AgentService | AgentsService:
    """
    Put the agents of a process together.

    @param reactor: Opens sockets, tells the time and resolves names.
    @param runners: What each is told; at least one.
    @param environment: Where a service manager says how to inform it.
    @param observation: What watches the runners, if anything does.
    @raise RuntimeError: WebSocket would run without its native code.
    """
    if len(runners) == 1:
        return agentService(reactor, runners[0], environment, observation=observation)
    signals = SecondSignal(reactor)
    service = AgentsService(
        [
            agentService(
                reactor, settings, signals=signals, observation=observation, oneOfSeveral=True
            )
            for settings in runners
        ]
    )
    service.supervision = Supervision.fromEnvironment(
        cast(IReactorTime, reactor), environment or {}, service.status
    )
    return service


__all__ = ["AgentsService", "agentsService"]
