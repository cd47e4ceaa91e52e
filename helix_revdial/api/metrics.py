# -*- test-case-name: tests.api.test_observation -*-
"""
What makes a server seen: its observation, the door that Prometheus reads at, and
the spans, as one service that lives a little longer than what it watches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger, LogPublisher

from helix_revdial import __version__
from helix_revdial.api.observation import Observation, databaseFiles
from helix_revdial.config import ConfigError, ServerConfig
from helix_revdial.http.factory import HTTPFactory
from helix_revdial.http.pages import Page, Pages
from helix_revdial.http.request import Request
from helix_revdial.http.response import Response
from helix_revdial.listening.door import Door, DoorSettings
from helix_revdial.listening.errors import ListenError
from helix_revdial.telemetry.log_writer import LogWriter
from helix_revdial.telemetry.metrics import exposition
from helix_revdial.telemetry.traces import TracingUnavailable, exportingSpans

STOP_TIMEOUT = 2.0
"""Seconds for the last scrape to end, and for the last spans to be sent."""


_UNHEARD = Logger("helix_revdial.api.metrics", observer=LogPublisher())
"""For the lines about each scrape, which nobody needs."""


class MetricsService(Service):
    """
    Watches one server.

    @ivar observation: To be told what happens, and what to look at.
    @ivar door: Where Prometheus reads; C{None} where that is not wanted.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        config: ServerConfig,
        wallClock: Callable[[], float],
        logWriter: LogWriter | None = None,
    ) -> None:
        """
        @param reactor: Threads, time and sockets.
        @param wallClock: Seconds since 1970.
        @param logWriter: What the log is written by, where it is ours.
        @raise ConfigError: C{[metrics]} or C{[tracing]} cannot be so.
        """
        self._reactor = reactor
        spans = None
        if config.tracing.otlp:
            try:
                spans = exportingSpans(__version__, "helix-revdial-server")
            except TracingUnavailable as error:
                raise ConfigError(f"tracing.otlp: {error}") from None
        self.observation = Observation(
            reactor,
            wallClock,
            __version__,
            runnerLabels=config.metrics.runnerLabels,
            logStreams=config.logging.streams,
            spans=spans,
            logWriter=logWriter,
            files=databaseFiles(config.databaseURL),
        )
        self.factory = HTTPFactory(
            Pages(metricsPages(self.observation)),
            reactor,
            log=_UNHEARD,
            wallClock=wallClock,
        )
        self.door: Door | None = None
        if config.metrics.listen is not None:
            try:
                self.door = Door(
                    reactor,
                    DoorSettings(config.metrics.listen),
                    self.factory,
                    self.factory.admission,
                    lambda: self.factory.limits.headTimeout,
                )
            except ListenError as error:
                raise ConfigError(f"metrics.listen: {error}") from None

    def privilegedStartService(self) -> None:
        """
        Open the door.

        @raise ListenError: It cannot be had.
        """
        super().privilegedStartService()
        if self.door is not None:
            self.door.privilegedStartService()

    def startService(self) -> None:
        """Serve, and measure the event loop."""
        super().startService()
        self.observation.start()
        if self.door is not None:
            self.door.startService()
            self._log.info(
                "Metrics are at {endpoint}, /metrics", endpoint=self.door.settings.endpoint
            )

    def stopService(self) -> Deferred[None]:
        """
        Close the door and send what was not sent.

        @return: Fires when that is done.
        """
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self.observation.stop()
        if self.door is not None:
            await maybeDeferred(self.door.stopService)
            await self.factory.stop(STOP_TIMEOUT)
        spans = self.observation.spans
        if spans is None:
            return
        # The exporter waits for its collector, so not on this thread.
        sending: Deferred[Any] = deferToThreadPool(
            self._reactor, self._reactor.getThreadPool(), spans.close
        )
        try:
            await sending.addTimeout(STOP_TIMEOUT, self._reactor)
        except (DeferredTimeoutError, CancelledError):
            self._log.warn("The last spans were not sent: nobody took them in time")


def metricsPages(observation: Observation) -> dict[str, Page]:
    """The page that Prometheus reads."""

    def metrics(request: Request) -> Response:
        accept = (request.headers.get(b"accept") or b"").decode("latin-1")
        page, kind = exposition(observation.metrics.registry, accept)
        return Response(200, [(b"Content-Type", kind.encode("ascii"))], page)

    return {"/metrics": metrics}


__all__ = ["MetricsService", "metricsPages"]
