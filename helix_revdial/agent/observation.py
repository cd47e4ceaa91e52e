# -*- test-case-name: tests.agent.test_observation -*-
"""
The agent as those see it who run it: metrics, and whether it is connected.

L{AgentObservation} watches all the runners of one process; L{ObservedServers} stands
between a runner and its way to the server, and counts what comes of it.
L{MetricsPort} serves C{/metrics}, C{/healthz} and C{/readyz}.  None of it is imported
unless it is asked for: an agent without metrics pays nothing for them.

An agent is ready when each of its runners is connected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from twisted.application.service import MultiService, Service
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort
from twisted.logger import ILogObserver, Logger, LogPublisher

from .. import __version__
from ..http.factory import HTTPFactory
from ..http.pages import Pages
from ..http.problem import Problem
from ..http.request import Request
from ..http.response import Response
from ..revdial.client import ControlSession, Refused
from ..revdial.listener import Closed, Listener
from ..revdial.watching import ListenerWatching
from ..telemetry.eventloop import LoopLag
from ..telemetry.ledger import reactorDescriptors, unsentBytes
from ..telemetry.log_writer import LogWriter
from ..telemetry.logs import LoggingService
from ..telemetry.metrics import AgentMetrics, AgentState, exposition
from .process import agentsService
from .settings import AgentSettings
from .token import TokenUnusable

if TYPE_CHECKING:
    from .service import AgentService, ControlPath

STOP_TIMEOUT = 1.0
"""Seconds for the last scrape to end."""

_UNHEARD = Logger("helix_revdial.agent.observation", observer=LogPublisher())
"""For the lines about each scrape, which nobody needs."""

PLAIN = [(b"Content-Type", b"text/plain; charset=utf-8"), (b"Cache-Control", b"no-store")]


class AgentObservation(ListenerWatching):
    """
    Watches the runners of one process.

    @ivar metrics: What Prometheus is told.
    """

    _log = Logger()

    def __init__(self, reactor: Any, logWriter: LogWriter | None = None) -> None:
        """
        @param reactor: Tells the time; whatever else it can say is asked of it.
        @param logWriter: What the log is written by, where it is ours.
        """
        self._reactor = reactor
        self._logWriter = logWriter
        self._lag = LoopLag(reactor)
        self._watched: list[tuple[AgentService, Listener]] = []
        self._bytesIn = 0
        self._bytesOut = 0
        self.metrics = AgentMetrics(self.state, self._lag, __version__)

    def observed(self, path: ControlPath) -> ControlPath:
        """A way to the server on which attempts are counted."""
        return ObservedServers(path, self.metrics)

    def watch(self, agent: AgentService, listener: Listener) -> None:
        """Look at this runner, too."""
        self._watched.append((agent, listener))

    def start(self) -> None:
        """Measure the event loop."""
        self._lag.start()

    def stop(self) -> None:
        """Have no timer any more."""
        self._lag.stop()

    # What is told

    def answered(self, dial: str | None, target: str | None, word: str, seconds: float) -> None:
        self.metrics.dials.add(word)
        if word == "connected":
            self.metrics.dialBacks.observe(seconds)

    def streamEnded(self, dial: str | None, bytesIn: int, bytesOut: int, reason: str) -> None:
        self._bytesIn += bytesIn
        self._bytesOut += bytesOut

    # What is

    def away(self) -> list[str]:
        """The runners that are not connected."""
        return [agent.key for agent, _ in self._watched if agent.session is None]

    def state(self) -> AgentState:
        """For the metrics."""
        listeners = [listener for _, listener in self._watched]
        controls = [listener.control for listener in listeners if listener.control is not None]
        traffic = [listener.traffic() for listener in listeners]
        trips = [one.roundTrip for one in controls if one.roundTrip is not None]
        now = self._reactor.seconds()
        writers: list[Any] = getattr(self._reactor, "getWriters", list)()
        return AgentState(
            delayedCalls=len(getattr(self._reactor, "getDelayedCalls", list)()),
            buffered=unsentBytes(writers, reactorDescriptors(self._reactor)) if writers else {},
            logDropped=0 if self._logWriter is None else self._logWriter.dropped,
            runners=len(self._watched),
            connected=len(self._watched) - len(self.away()),
            carriers=dict(Counter(control.carrierName for control in controls)),
            roundTrip=max(trips, default=None),
            silence=max((now - one.lastHeard for one in controls), default=None),
            dialsUnderWay=sum(listener.dialsUnderWay for listener in listeners),
            streams=sum(listener.openStreams for listener in listeners),
            bytesIn=self._bytesIn + sum(coming for coming, _ in traffic),
            bytesOut=self._bytesOut + sum(going for _, going in traffic),
        )

    # Pages

    def pages(self) -> Pages:
        """What the port serves."""
        return Pages(
            {
                "/metrics": self._metricsPage,
                "/healthz": self._healthPage,
                "/readyz": self._readyPage,
            }
        )

    def _metricsPage(self, request: Request) -> Response:
        accept = (request.headers.get(b"accept") or b"").decode("latin-1")
        page, kind = exposition(self.metrics.registry, accept)
        return Response(200, [(b"Content-Type", kind.encode("ascii"))], page)

    def _healthPage(self, request: Request) -> Response:
        return Response(200, PLAIN, b"ok\n")

    def _readyPage(self, request: Request) -> Response:
        away = self.away()
        if away:
            raise Problem(
                503,
                f"Not connected: {', '.join(sorted(away))}.",
                headers=[(b"Retry-After", b"1")],
            )
        return Response(200, PLAIN, b"connected\n")


class ObservedServers:
    """
    A way to a server, and what comes of going it.
    """

    def __init__(self, path: ControlPath, metrics: AgentMetrics) -> None:
        self._path = path
        self._metrics = metrics

    @property
    def server(self) -> Any:
        """The server that was tried last."""
        return self._path.server

    async def connectControl(self, listener: Listener) -> ControlSession:
        """
        Log in and register.

        @raise Refused: The server does not want us.
        """
        try:
            session = await self._path.connectControl(listener)
        except Refused:
            self._metrics.attempts.add("refused")
            raise
        except TokenUnusable:
            self._metrics.attempts.add("no-token")
            raise
        except CancelledError:
            # Its time was up, or the agent stops.
            self._metrics.attempts.add("timed-out")
            raise
        except Exception:
            self._metrics.attempts.add("unreachable")
            raise
        self._metrics.attempts.add("connected")
        session.closed.addCallback(self._closed)
        return session

    def _closed(self, closed: Closed) -> Closed:
        self._metrics.ended.add(closed.reason)
        return closed


class MetricsPort(Service):
    """
    Serves the pages of an observation.
    """

    _log = Logger()

    def __init__(self, reactor: Any, observation: AgentObservation, endpoint: str) -> None:
        """
        @param endpoint: A Twisted server endpoint string.
        @raise ValueError: It is none.
        """
        self._observation = observation
        self._name = endpoint
        self._endpoint = serverFromString(reactor, endpoint)
        self._factory = HTTPFactory(observation.pages(), reactor, log=_UNHEARD)
        self._factory.noisy = False
        self._listening: Deferred[IListeningPort | None] | None = None

    def startService(self) -> None:
        """
        Listen.  A port that cannot be had is an error in the log, and no reason for an
        agent not to do its work.
        """
        super().startService()
        self._observation.start()
        self._listening = self._endpoint.listen(self._factory)
        self._listening.addCallbacks(self._opened, self._failed)

    def _opened(self, port: IListeningPort) -> IListeningPort:
        self._log.info("metrics are at {endpoint}, /metrics", endpoint=self._name)
        return port

    def _failed(self, failure: Any) -> None:
        self._log.error(
            "no metrics: cannot listen on {endpoint}: {why}",
            endpoint=self._name,
            why=failure.getErrorMessage(),
        )

    def stopService(self) -> Deferred[None]:
        """
        Close the port.

        @return: Fires when nothing is left.
        """
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._observation.stop()
        listening, self._listening = self._listening, None
        if listening is None:
            return
        port = await listening
        if port is not None:
            await maybeDeferred(port.stopListening)
        await self._factory.stop(STOP_TIMEOUT)


class ObservedAgents(LoggingService, MultiService):
    """The agents of a process, and the port at which they are seen."""


def observedAgents(
    reactor: Any,
    runners: Sequence[AgentSettings],
    environment: Mapping[str, str],
    endpoint: str,
    logObserver: ILogObserver | None = None,
) -> ObservedAgents:
    """
    Put the agents of a process together, watched.

    @param runners: What each is told.
    @param environment: Where a service manager says how to inform it.
    @param endpoint: Where metrics are to be.
    @param logObserver: How C{twistd} is to log.
    @raise ValueError: C{endpoint} is none.
    """
    service = ObservedAgents()
    service.logObserver = logObserver
    observation = AgentObservation(reactor, service.logWriter)
    MetricsPort(reactor, observation, endpoint).setServiceParent(service)
    agentsService(reactor, runners, environment, observation).setServiceParent(service)
    return service


__all__ = ["AgentObservation", "MetricsPort", "ObservedAgents", "ObservedServers", "observedAgents"]
