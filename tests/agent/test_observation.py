"""An agent that is watched: its pages, and what its numbers are."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.error import ConnectionLost
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.agent.observation import (
    AgentObservation,
    MetricsPort,
    ObservedServers,
    observedAgents,
)
from helix_revdial.agent.settings import readSettings
from helix_revdial.agent.token import TokenUnusable
from helix_revdial.revdial.client import Refused
from helix_revdial.revdial.listener import Closed
from helix_revdial.telemetry.rows import ANSWERS
from tests.api.harness import Answer, Wire, parse, request
from tests.telemetry.test_metrics import scraped

PREFIX = "helix_revdial_"


class Session:
    """A control connection's life."""

    def __init__(self) -> None:
        self.closed: Deferred[Closed] = Deferred()


class Path:
    """A way to a server that comes out as the test says."""

    server = "https://cp.example"

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome

    def connectControl(self, listener: Any) -> Deferred[Any]:
        if isinstance(self.outcome, Exception):
            return fail(self.outcome)
        return succeed(self.outcome)


class Control:
    """The control connection as a listener shows it."""

    carrierName = "raw"
    roundTrip = 0.02
    lastHeard = 0.0


class Listener:
    """A listener with fixed numbers."""

    dialsUnderWay = 2
    openStreams = 3
    control: Control | None = Control()

    def traffic(self) -> tuple[int, int]:
        return 10, 20


class Agent:
    """An agent, connected or not."""

    def __init__(self, key: str, session: object) -> None:
        self.key = key
        self.session = session


class ObservationTests(SynchronousTestCase):
    """L{AgentObservation}."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.observation = AgentObservation(self.reactor)

    def watch(self, key: str, session: object = None) -> None:
        agent: Any = Agent(key, session)
        listener: Any = Listener()
        self.observation.watch(agent, listener)

    def metric(self, name: str, **labels: str) -> float:
        found = scraped(self.observation.metrics.registry)
        return found[PREFIX + name][tuple(sorted(labels.items()))]

    def get(self, path: str) -> Answer:
        port = MetricsPort(self.reactor, self.observation, "tcp:9465")
        protocol: Any = port._factory.buildProtocol(None)
        wire = Wire()
        protocol.makeConnection(wire)
        protocol.dataReceived(request("GET", path))
        return parse(wire.value())

    def test_ready(self) -> None:
        """Ready is who has all its runners connected; who is not says which are missing."""
        self.watch("wolf-1", Session())
        self.assertEqual(self.get("/readyz").status, 200)
        self.watch("wolf-2")
        answer = self.get("/readyz")
        self.assertEqual((answer.status, answer.detail), (503, "Not connected: wolf-2."))
        self.assertEqual(answer.headers["retry-after"], "1")

    def test_healthy(self) -> None:
        """Healthy is who answers, connected or not."""
        self.watch("wolf-1")
        answer = self.get("/healthz")
        self.assertEqual((answer.status, answer.body), (200, b"ok\n"))

    def test_state(self) -> None:
        """The numbers are those of all runners together."""
        self.watch("wolf-1", Session())
        self.watch("wolf-2")
        self.reactor.advance(5)
        self.observation.streamEnded("d", 100, 200, "closed")
        for name, value in (
            ("agent_runners", 2),
            ("agent_connected", 1),
            ("agent_round_trip_seconds", 0.02),
            ("agent_silence_seconds", 5),
            ("agent_dials_under_way", 4),
            ("agent_streams", 6),
        ):
            self.assertEqual(self.metric(name), value, name)
        self.assertEqual(self.metric("agent_connections", carrier="raw"), 2)
        self.assertEqual(self.metric("agent_stream_bytes_total", direction="in"), 120)
        self.assertEqual(self.metric("agent_stream_bytes_total", direction="out"), 240)
        self.assertIn(b"helix_revdial_agent_runners 2.0", self.get("/metrics").body)

    def test_notConnected(self) -> None:
        """An agent without a connection has no round trip, rather than one of 0."""
        agent: Any = Agent("wolf-1", None)
        listener: Any = Listener()
        listener.control = None
        self.observation.watch(agent, listener)
        self.assertNotIn(
            PREFIX + "agent_round_trip_seconds", scraped(self.observation.metrics.registry)
        )

    def test_dials(self) -> None:
        """Each answer to the server is counted; what connected has its time."""
        for word in ANSWERS:
            self.observation.answered("d", None, word, 0.5)
            self.assertEqual(self.metric("agent_dials_total", outcome=word), 1)
        self.assertEqual(self.metric("agent_dial_back_seconds_sum"), 0.5)

    def test_attempts(self) -> None:
        """How each attempt came out, and why each connection ended."""
        listener: Any = None
        for outcome, word in (
            (Refused(403, "no", None), "refused"),
            (TokenUnusable("none"), "no-token"),
            (ConnectionLost(), "unreachable"),
            (CancelledError(), "timed-out"),
        ):
            path: Any = Path(outcome)
            trying = Deferred.fromCoroutine(
                ObservedServers(path, self.observation.metrics).connectControl(listener)
            )
            self.failureResultOf(trying, type(outcome))
            self.assertEqual(self.metric("agent_attempts_total", outcome=word), 1, word)
        session = Session()
        path = Path(session)
        observed = ObservedServers(path, self.observation.metrics)
        self.assertEqual(observed.server, "https://cp.example")
        trying = Deferred.fromCoroutine(observed.connectControl(listener))
        self.assertIs(self.successResultOf(trying), session)
        self.assertEqual(self.metric("agent_attempts_total", outcome="connected"), 1)
        closed = Closed("silence", None, 60.0)
        session.closed.callback(closed)
        self.assertIs(self.successResultOf(session.closed), closed, "who waits gets it, too")
        self.assertEqual(self.metric("agent_control_ended_total", reason="silence"), 1)

    def test_portTaken(self) -> None:
        """A port that cannot be had is said, and the agent goes on; stopping leaves nothing."""
        port = MetricsPort(self.reactor, self.observation, "tcp:9465")

        class Taken:
            def listen(self, factory: Any) -> Deferred[Any]:
                return fail(OSError("taken"))

        taken: Any = Taken()
        port._endpoint = taken
        port.startService()
        self.successResultOf(port.stopService())
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_together(self) -> None:
        """The agents and their port are one service."""
        settings = readSettings(
            {"runner-id": "wolf-1"},
            {"HELIX_API_URL": "http://cp.example", "RUNNER_TOKEN": "t" * 20},
        )
        service = observedAgents(self.reactor, [settings], {}, "tcp:9465")
        self.assertEqual(len(list(service)), 2)
