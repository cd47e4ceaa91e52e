# -*- test-case-name: tests.integration.test_server,tests.integration.test_listening_server -*-
"""
The server, assembled from its rooms.

Start: the ports are opened first (so that a privileged one can be had before
privileges are dropped), then the state is prepared: directory, schema, first
tokens.  Whatever of it fails ends the process with one line that says why; a
server never runs half.  What is prepared is done in the starting thread, before
the reactor runs; afterwards no query is on the reactor's thread.

Stop: as L{Drain <helix_revdial.drain.Drain>} has it, then the tunnels that are
left, then what they were counted and recorded in.

What it serves with is the L{Assembly <helix_revdial.assembly.Assembly>}; here are
the process, its ports and its signals.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.logger import ILogObserver, Logger

from helix_revdial import __version__
from helix_revdial.api.document import translate
from helix_revdial.api.metrics import MetricsService
from helix_revdial.api.services import Services
from helix_revdial.assembly import Assembly
from helix_revdial.cannot_start import CannotStart
from helix_revdial.config import (
    ConfigError,
    ListenSection,
    ServerConfig,
)
from helix_revdial.drain import Drain
from helix_revdial.http.factory import HTTPFactory, IdentifyingFactory
from helix_revdial.http.problem import Problem
from helix_revdial.http.request import Request
from helix_revdial.http.response import HandedOver, Response
from helix_revdial.listening.door import Door
from helix_revdial.listening.errors import ListenError
from helix_revdial.reload import HangupSignal, Reload, Reloaded, Unreloadable
from helix_revdial.reload_parts import ReloadParts, identifies
from helix_revdial.settings import (
    callSettings,
    certificateGrants,
    declaredAgents,
    doorSettings,
    forwardSettings,
    gitAccess,
    httpLimits,
    issuers,
)
from helix_revdial.starting import prepareState
from helix_revdial.storage.failures import DatabaseUnavailable
from helix_revdial.systemd.signals import SecondSignal
from helix_revdial.systemd.supervision import Supervision
from helix_revdial.telemetry.logs import LoggingService

STOP_TIMEOUT = 10.0
"""Seconds, beyond those for what may finish, in which a server that stops is gone."""


class ControlPlane(LoggingService):
    """
    The long-lived service behind C{twistd helix-revdial-server}.

    @ivar factory: The HTTP server's factory.
    @ivar metrics: What makes the server seen.
    @ivar supervision: What keeps the service manager informed.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        config: ServerConfig,
        environment: Mapping[str, str],
        wallClock: Callable[[], float] = time.time,
        *,
        reread: Callable[[], ServerConfig] | None = None,
        signals: bool = False,
        handed: Mapping[str, list[int]] | None = None,
        logObserver: ILogObserver | None = None,
    ) -> None:
        """
        @param reactor: Threads, time and sockets.
        @param config: The settings.
        @param environment: Looked at for an existing C{RUNNER_TOKEN}, and for what
            a service manager hands over.
        @param wallClock: Seconds since 1970.
        @param logObserver: How C{twistd} is to log.
        @param reread: Reads the settings again, as they were read for C{config}.
        @param signals: Whether the process's signals are this service's: SIGHUP
            reloads, a second SIGTERM does not wait.
        @param handed: Control connections of the process before, as the service
            manager hands them over.
        @raise CannotStart: The settings cannot be used.
        """
        self._reactor = reactor
        self._config = config
        self._environment = environment
        self._wallClock = wallClock
        self._reread = reread or (lambda: config)
        self._assembly: Assembly | None = None
        self._stopping = False
        try:
            self._grants = certificateGrants(config)
            self._issuers = issuers(config.access, reactor)
            forwardSettings(config.forwards)
            declaredAgents(config.agents)
            gitAccess(config.git)
            callSettings(config.webhooks)
        except ConfigError as error:
            raise CannotStart(str(error)) from None
        self._hangup = HangupSignal(reactor, self._hungUp) if signals else None
        self._second = SecondSignal(reactor) if signals else None
        self._handed = handed or {}
        self.supervision = Supervision.fromEnvironment(reactor, environment, self._describe)
        self.factory = HTTPFactory(
            self._dispatch,
            reactor,
            httpLimits(config.http, config.limits),
            serverHeader=f"helix_revdial/{__version__}".encode("ascii"),
            wallClock=wallClock,
        )
        self._ports = MultiService()
        self._doors = [self._door(section) for section in config.listen]
        self.logObserver = logObserver
        try:
            self.metrics = MetricsService(reactor, config, wallClock, self.logWriter)
        except ConfigError as error:
            raise CannotStart(str(error)) from None

    @property
    def services(self) -> Services:
        """What the operations work with, once started."""
        assert self._assembly is not None, "not started"
        return self._assembly.services

    @property
    def _settings(self) -> ServerConfig:
        """The settings of now."""
        return self._config if self._assembly is None else self.services.config

    def _door(self, section: ListenSection) -> tuple[Door, IdentifyingFactory]:
        factory = IdentifyingFactory(self.factory, identifies(section))
        try:
            door = Door(
                self._reactor,
                doorSettings(section),
                factory,
                self.factory.admission,
                lambda: self.factory.limits.headTimeout,
            )
        except ListenError as error:
            raise CannotStart(str(error)) from None
        door.setServiceParent(self._ports)
        return door, factory

    # Start

    def privilegedStartService(self) -> None:
        """
        Open the ports.

        @raise CannotStart: One of them cannot be had.
        """
        super().privilegedStartService()
        for door in (*(door for door, _ in self._doors), self.metrics):
            try:
                door.privilegedStartService()
            except ListenError as error:
                raise CannotStart(str(error)) from None

    def startService(self) -> None:
        """
        Prepare the state and serve.

        @raise CannotStart: The state cannot be used.
        """
        config, environment = self._config, self._environment
        sole = prepareState(config, environment, self._reactor, self._wallClock)
        self._assembly = assembly = Assembly(
            self._reactor,
            config,
            environment,
            self._wallClock,
            sole=sole,
            factory=self.factory,
            metrics=self.metrics,
            supervision=self.supervision,
            certificates=self._grants,
            issuers=self._issuers,
            reload=self.reload,
            unready=self._unready,
        )
        parts = ReloadParts(self._reactor, environment, assembly, self.factory, self._doors)
        self._reload = Reload(config, self._reread, parts.all)
        handed, self._handed = self._handed, {}
        self._reactor.callWhenRunning(assembly.takeBack, handed)
        self._reactor.callWhenRunning(assembly.drive)
        self._ports.startService()
        self.metrics.startService()
        super().startService()
        if self._hangup is not None:
            self._hangup.arm()
        for door, _ in self._doors:
            self._log.info("Listening on {endpoint}", endpoint=door.settings.endpoint)
        if self._second is not None:
            self._second.watch()
        self.supervision.started()

    def _describe(self) -> str:
        """The server's state in a line, for the service manager."""
        if self._assembly is None:
            return "starting"
        connections = self.services.connections
        runners, streams = connections.stats().activeConnections, connections.openStreams
        return f"{'stopping: ' if self._stopping else ''}{runners} runners, {streams} streams"

    # Reload

    async def reload(self, by: str) -> Reloaded:
        """
        Read the settings and the certificates again, and take them on.

        @param by: Who wants it.
        @raise ConfigError: They are wrong; nothing has changed.
        @raise Unreloadable: A running server cannot; nothing has changed.
        """
        assembly = self._assembly
        if self._stopping or assembly is None:
            raise Unreloadable("the server is not running")
        self.supervision.reloading()
        try:
            done = await self._reload.run(by)
        finally:
            self.supervision.reloaded()
        # What was ended in the database by other hands is noticed now, too.
        await assembly.watch.look()
        return done

    def _hungUp(self) -> Deferred[None]:
        """SIGHUP; the result is in the log."""

        async def reload() -> None:
            try:
                await self.reload("SIGHUP")
            except (ConfigError, Unreloadable, DatabaseUnavailable):
                pass
            except Exception:
                self._log.failure("The reload failed")

        return Deferred.fromCoroutine(reload())

    # Serve

    def _unready(self) -> str:
        """Why the server should get no requests now."""
        return "shutting down" if self._stopping else ""

    async def _dispatch(self, request: Request) -> Response | HandedOver:
        if self._assembly is None:
            raise Problem(503, "The server is starting.", headers=[(b"Retry-After", b"1")])
        try:
            return await self._assembly.dispatch(request)
        except DatabaseUnavailable as error:
            problem = translate(error)
            assert problem is not None
            raise problem from error

    # Stop

    def stopService(self) -> Deferred[None]:
        """
        Take no more, let what is under way finish, end the tunnels, write what
        is still to be written.
        """
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._stopping = True
        if self._hangup is not None:
            self._hangup.disarm()
        drain, assembly = self._settings.drain, self._assembly
        self.supervision.stopping(drain.timeout + STOP_TIMEOUT)
        if assembly is not None:
            assembly.endStreams()
            leaving = Drain(
                self._reactor, self.factory, self.services.connections, self._closePorts
            )
            if self._second is not None:
                self._second.arm(leaving.hurry)
            keeping = drain.keepConnections if self.supervision.notifier.enabled else 0
            await leaving.run(drain.timeout, keeping=keeping)
            if keeping and not leaving.hurried:
                try:
                    await assembly.keeping.keep(keeping)
                except Exception:
                    self._log.failure("Control connections are not kept")
        for step in (
            self._closePorts,
            lambda: self.factory.stop(0),
            *(() if assembly is None else assembly.ending()),
        ):
            # One step that fails must not keep the others from their work.
            try:
                await _awaitable(step())
            except Exception:
                self._log.failure("A step of the shutdown failed")
        self.supervision.ended()

    def _closePorts(self) -> Deferred[Any]:
        closing = [maybeDeferred(self._ports.stopService)]
        if self._assembly is not None:
            closing.append(self.services.forwards.stopListening())
        return DeferredList(closing, fireOnOneErrback=True, consumeErrors=True)


async def _awaitable(result: Any) -> None:
    if isinstance(result, Deferred):
        await result
