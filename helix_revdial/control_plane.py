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

The rooms are tied together here and nowhere else: a token that ends cuts what
it holds, a session that is deleted cuts its tunnel, and what the connections
refuse goes to the audit log.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import ILogObserver, Logger
from twisted.python.failure import Failure

from helix_revdial import __version__
from helix_revdial.access.audit import AuditLog
from helix_revdial.access.generations import Generations
from helix_revdial.access.idempotency import freeKeys
from helix_revdial.access.policy import Expose, sessionOf
from helix_revdial.access.principals import Principal
from helix_revdial.access.records import TokenError
from helix_revdial.access.tokens import TokenConflict, Tokens
from helix_revdial.access.watch import TokenWatch
from helix_revdial.api.authority import Authority
from helix_revdial.api.document import operationTable, translate
from helix_revdial.api.first_look import FirstLook
from helix_revdial.api.forwards import restoreForwards
from helix_revdial.api.load import Load
from helix_revdial.api.metrics import MetricsService
from helix_revdial.api.proxy import ByName
from helix_revdial.api.services import Services, cutWhatEnds, patchLimits, proxyLimits
from helix_revdial.api.tracing import traced
from helix_revdial.config import (
    ConfigError,
    ListenSection,
    ServerConfig,
)
from helix_revdial.drain import Drain
from helix_revdial.gateways.tcp_forward import ForwardRefused
from helix_revdial.http.factory import HTTPFactory, IdentifyingFactory
from helix_revdial.http.operations import OperationTable
from helix_revdial.http.problem import Problem
from helix_revdial.http.request import Request
from helix_revdial.http.response import HandedOver, Response
from helix_revdial.imported_tokens import (
    NotImported,
    importAdminToken,
    importRunnerToken,
    runnerTokenUnusable,
)
from helix_revdial.keeping import Keeping
from helix_revdial.listening.door import Door
from helix_revdial.listening.errors import ListenError, NeedsRestart
from helix_revdial.programs import Programs
from helix_revdial.reload import HangupSignal, Reload, Reloaded, Unreloadable
from helix_revdial.revdial.connections import Connections
from helix_revdial.revdial.features import parseFeatures
from helix_revdial.revdial.kept import KeptState
from helix_revdial.revdial.remembered import Remembered
from helix_revdial.revdial.sockets import SocketRelays
from helix_revdial.revdial.watching import Watchers
from helix_revdial.runner_hosts import TARGET, RunnerHosts
from helix_revdial.sessions.git_refs import ENVIRONMENT as GIT_ENVIRONMENT
from helix_revdial.sessions.git_refs import GitRefs
from helix_revdial.sessions.retention import Retention
from helix_revdial.sessions.sessions import Sessions
from helix_revdial.sessions.synthetic import SyntheticExecutor
from helix_revdial.sessions.webhook_calls import Calls
from helix_revdial.sessions.webhooks import Webhooks
from helix_revdial.settings import (
    callSettings,
    certificateGrants,
    declaredAgents,
    doorSettings,
    forwardSettings,
    gitAccess,
    httpLimits,
    issuers,
    liveness,
    rateSettings,
    retentionSettings,
    tunnelLimits,
    uploadSettings,
    webhookSettings,
)
from helix_revdial.storage.database import (
    Database,
    DatabaseUnavailable,
    WrongRevision,
    openDatabase,
)
from helix_revdial.storage.threads import ReactorThreads, SameThread
from helix_revdial.systemd.credentials import CredentialUnusable
from helix_revdial.systemd.signals import SecondSignal
from helix_revdial.systemd.store import DescriptorStore
from helix_revdial.systemd.supervision import Supervision
from helix_revdial.telemetry.logs import LoggingService

MAX_GIT = 8
"""Repositories that are asked for their branches at one time."""

FILE_THREADS = 4
"""Pieces of uploads that are written or read at one time."""

STOP_TIMEOUT = 10.0
"""Seconds, beyond those for what may finish, in which a server that stops is gone."""


class CannotStart(SystemExit):
    """
    The server cannot do its work.  Its text, which says what to do, is the last
    line of the log; a process that does not catch it ends with status 1.

    Not left to the interpreter to print: C{twistd} has standard error by then.
    """

    _log = Logger()

    def __init__(self, text: str) -> None:
        super().__init__(1)
        self.text = text
        self._log.critical("{text}", text=text)

    def __str__(self) -> str:
        return self.text


class ControlPlane(LoggingService):
    """
    The long-lived service behind C{twistd helix-revdial-server}.

    @ivar services: What the operations work with, once started.
    @ivar factory: The HTTP server's factory.
    @ivar metrics: What makes the server seen.
    @ivar supervision: What keeps the service manager informed.
    """

    _log = Logger()

    services: Services

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
        self._table: OperationTable | None = None
        self._synthetic: SyntheticExecutor | None = None
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
        self._reload = Reload(
            config,
            reread or (lambda: config),
            (self._prepareDoors, self._prepareLimits, self._prepareAgents, self._prepareAccess),
        )
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
        self._factories: list[IdentifyingFactory] = []
        self._doors = [self._door(section) for section in config.listen]
        self.logObserver = logObserver
        try:
            self.metrics = MetricsService(reactor, config, wallClock, self.logWriter)
        except ConfigError as error:
            raise CannotStart(str(error)) from None

    def _newGitRefs(self, clock: IReactorTime) -> GitRefs:
        environment = {"PATH": self._environment.get("PATH", os.defpath), **GIT_ENVIRONMENT}
        self._git = Programs(self._reactor, environment, maxRunning=MAX_GIT)
        access = gitAccess(self._config.git)
        return GitRefs(self._git, self._reactor.nameResolver, clock, self._wallClock, access)

    def _door(self, section: ListenSection) -> Door:
        factory = IdentifyingFactory(self.factory, _identifies(section))
        self._factories.append(factory)
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
        return door

    # Start

    def privilegedStartService(self) -> None:
        """
        Open the ports.

        @raise CannotStart: One of them cannot be had.
        """
        super().privilegedStartService()
        for door in (*self._doors, self.metrics):
            try:
                door.privilegedStartService()
            except ListenError as error:
                raise CannotStart(str(error)) from None

    def startService(self) -> None:
        """
        Prepare the state and serve.

        @raise CannotStart: The state cannot be used.
        """
        try:
            self._prepare()
        except (DatabaseUnavailable, WrongRevision, TokenConflict, TokenError, OSError) as error:
            raise CannotStart(f"cannot start: {error}") from None
        except ValueError as error:
            raise CannotStart(f"database: {error}") from None
        self._assemble()
        self._reactor.callWhenRunning(self._takeBack)
        self._reactor.callWhenRunning(self._drive)
        self._ports.startService()
        self.metrics.startService()
        super().startService()
        if self._hangup is not None:
            self._hangup.arm()
        for door in self._doors:
            self._log.info("Listening on {endpoint}", endpoint=door.settings.endpoint)
        if self._second is not None:
            self._second.watch()
        self.supervision.started()

    def _takeBack(self) -> None:
        """Go on with the control connections of the process before."""
        handed, self._handed = self._handed, {}
        Deferred.fromCoroutine(self._keeping.takeBack(handed)).addErrback(
            lambda failure: self._log.failure("What was kept is not taken up", failure)
        )

    def _drive(self) -> None:
        """Go on with the tasks of the process before."""
        section = self._config.sessions
        if section.synthetic:
            self._synthetic = SyntheticExecutor(
                self._reactor, self._wallClock, speed=section.syntheticSpeed
            )
            self.services.executors.add("synthetic", self._synthetic)
        self.services.executors.start()
        self._webhooks.begin()
        self._retention.begin()
        self.services.driver.begin()
        self.services.patchCopies.begin()

    async def _mayGoOn(self, state: KeptState) -> bool:
        """Whether what let a runner register before the restart still does."""
        services = self.services
        session = sessionOf(state.key)
        if session is not None and await services.sessions.get(session) is None:
            return False
        features = parseFeatures([state.features.encode("ascii")])
        if not features.issuperset(self._config.tunnel.requireFeatures):
            return False
        if not await services.tokens.isLive(state.credential):
            return False
        return session is None or not services.sessions.wasDeleted(session)

    def _describe(self) -> str:
        """The server's state in a line, for the service manager."""
        if self._table is None:
            return "starting"
        connections = self.services.connections
        runners, streams = connections.stats().activeConnections, connections.openStreams
        return f"{'stopping: ' if self._stopping else ''}{runners} runners, {streams} streams"

    def _prepare(self) -> None:
        """Directory, schema and first tokens, done before the reactor runs."""
        Path(self._config.server.stateDirectory).mkdir(mode=0o700, parents=True, exist_ok=True)
        database = Database(self._config.databaseURL, SameThread())
        try:
            alone = database.engine.dialect.name == "sqlite"
            if alone:
                _now(Deferred.fromCoroutine(database.upgrade()))
            _now(Deferred.fromCoroutine(database.checkRevision()))
            if alone:
                # Whoever carried these calls out is gone.
                _now(Deferred.fromCoroutine(freeKeys(database)))
            tokens = Tokens(database, self._reactor, self._wallClock)
            environment = self._environment
            _now(Deferred.fromCoroutine(importAdminToken(tokens, environment)))
            written = _now(Deferred.fromCoroutine(tokens.ensureAdmin(self._config.adminTokenPath)))
            if written is not None:
                self._log.warn("The first admin token is in {path}", path=str(written))
            importing = importRunnerToken(tokens, self._config.access, environment)
            _now(Deferred.fromCoroutine(importing))
        except (NotImported, CredentialUnusable) as error:
            raise CannotStart(str(error)) from None
        finally:
            _now(Deferred.fromCoroutine(database.close()))

    def _assemble(self) -> None:
        config, clock = self._config, self._reactor
        database = openDatabase(
            config.databaseURL, self._reactor, threads=config.server.databaseThreads
        )
        tokens = Tokens(database, clock, self._wallClock)
        audit = AuditLog(database, clock, self._wallClock)
        sessions = Sessions(database, clock, self._wallClock)
        generations = Generations(database)
        observation = self.metrics.observation
        load = Load(
            clock,
            config.limits,
            factory=self.factory,
            buffered=observation.bufferedBytes,
            count=observation.metrics.limits.add,
            record=lambda event, fields: _record(audit, event, fields),
        )
        watchers = Watchers(observation)
        connections = Connections(
            clock,
            generations.next,
            wallClock=self._wallClock,
            audit=lambda event, fields: _record(audit, event, fields),
            watching=watchers,
            liveness=liveness(config.liveness),
            overload=load.overload,
            scarce=load.scarce,
            **tunnelLimits(config.tunnel, config.limits, config.pool),
        )
        self._await(connections)

        self.metrics.observation.watch(connections, self.factory, self._unready)
        self._keeping = Keeping(
            clock,
            connections,
            DescriptorStore(clock, self.supervision.notifier),
            self._mayGoOn,
        )
        cutWhatEnds(tokens, sessions, connections)
        self._watch = TokenWatch(tokens, clock)
        self._watch.start()
        self.services = services = Services(
            clock,
            self._wallClock,
            config,
            database,
            tokens,
            audit,
            sessions,
            connections,
            self.metrics.observation,
            load,
            ready=self._unready,
            certificates=self._grants,
            reload=self.reload,
            sockets=SocketRelays(clock),
            gitRefs=self._newGitRefs(clock),
            fileWorkers=ReactorThreads(self._reactor, FILE_THREADS, "files"),
        )
        watchers.add(services.proxy.backends)
        watchers.add(
            RunnerHosts(
                self._reactor,
                services.executors,
                lambda key: connections.endpoint(key, TARGET, about={"request": "executor"}),
                self._tenantOf,
            )
        )
        self._webhooks = Webhooks(
            database,
            clock,
            self._wallClock,
            services.events,
            Calls(self._reactor, self._reactor.nameResolver, callSettings(config.webhooks)),
            webhookSettings(config.webhooks),
            mayWant=services.outbox.mayWant,
        )
        self._retention = Retention(
            database,
            clock,
            self._wallClock,
            services.events,
            services.driver.delete,
            services.uploads.sweep,
            retentionSettings(config.retention),
        )
        services.idempotency.start()
        services.jwts.setIssuers(self._issuers)
        authority = Authority(
            tokens,
            sessions,
            audit,
            certificate=self._principalOf,
            admit=services.admit,
            jwts=services.jwts,
        )
        self._byName = ByName(self.services, authority, lambda: self._config.gateways.baseDomain)
        self._table = operationTable(self.services, authority)
        self.factory.firstLook = FirstLook(self.services, self._needsDispatch)
        self._forward()

    async def _tenantOf(self, credential: str) -> str | None:
        """Whose runners a token, or a client certificate, registers."""
        granted = self.services.certificates.principals.get(credential)
        if granted is not None:
            return granted.tenant
        return await self.services.tokens.tenantOf(credential)

    def _forward(self) -> None:
        """Open the ports of the configuration's forwards, and of those that were made since."""
        forwards = self.services.forwards
        for settings in forwardSettings(self._config.forwards):
            try:
                forwards.create(settings, _forOperators)
            except ForwardRefused as error:
                raise CannotStart(f"forward {settings.listen}: {error}") from None
        restoring = Deferred.fromCoroutine(restoreForwards(self.services))
        restoring.addErrback(
            lambda failure: self._log.failure("The forwards of before are not there", failure)
        )

    def _await(self, connections: Connections) -> None:
        """The runners of before the start are away, not gone; and so for the next start."""
        self._remembered = Remembered(
            self._reactor,
            Path(self._config.server.stateDirectory, "runners.json"),
            connections.known,
            self._wallClock,
        )
        settle = self._config.liveness.settleTime
        if settle:
            awaited = connections.expect(self._remembered.read(), settle)
            if awaited:
                self._log.info(
                    "{count} runners were connected before; they are awaited for {seconds:g} s",
                    count=awaited,
                    seconds=settle,
                )
        self._remembered.start()

    def _principalOf(self, certificate: bytes) -> Principal | None:
        return self.services.certificates.principalOf(certificate, self._wallClock())

    # Reload

    async def reload(self, by: str) -> Reloaded:
        """
        Read the settings and the certificates again, and take them on.

        @param by: Who wants it.
        @raise ConfigError: They are wrong; nothing has changed.
        @raise Unreloadable: A running server cannot; nothing has changed.
        """
        if self._stopping or self._table is None:
            raise Unreloadable("the server is not running")
        self.supervision.reloading()
        try:
            done = await self._reload.run(by)
        finally:
            self.supervision.reloaded()
        # What was ended in the database by other hands is noticed now, too.
        await self._watch.look()
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

    async def _prepareDoors(self, config: ServerConfig) -> Callable[[], None]:
        puts = []
        for door, factory, section in zip(self._doors, self._factories, config.listen, strict=True):
            try:
                puts.append(door.prepare(doorSettings(section)))
            except NeedsRestart as error:
                raise Unreloadable(str(error)) from None
            except ListenError as error:
                raise ConfigError(str(error)) from None
            puts.append(partial(setattr, factory, "identifies", _identifies(section)))

        def put() -> None:
            for each in puts:
                each()

        return put

    async def _prepareLimits(self, config: ServerConfig) -> Callable[[], None]:
        rates = rateSettings(config.rateLimits)

        def put() -> None:
            self._config = self.services.config = config
            self.factory.setLimits(httpLimits(config.http, config.limits))
            self.services.connections.setLimits(
                **tunnelLimits(config.tunnel, config.limits, config.pool)
            )
            self.services.load.setLimits(config.limits)
            self.services.streams.setLimit(config.limits.streamsPerUser)
            self.services.proxy.setLimits(proxyLimits(config.gateways))
            self.services.rates.setLimits(rates)
            self.services.uploads.settings = uploadSettings(config.uploads)
            self.services.patches.setLimits(**patchLimits(config.sessions))
            self.services.eventStreams.setLimits(
                heartbeat=config.events.heartbeat, queueBytes=config.events.queueBytes
            )

        return put

    async def _prepareAgents(self, config: ServerConfig) -> Callable[[], None]:
        agents, access = declaredAgents(config.agents), gitAccess(config.git)
        calls = callSettings(config.webhooks)

        def put() -> None:
            self.services.agents = agents
            self._webhooks.callAs(calls)
            self._webhooks.settings = webhookSettings(config.webhooks)
            self._retention.setSettings(retentionSettings(config.retention))
            if self.services.gitRefs is not None:
                self.services.gitRefs.access = access

        return put

    async def _prepareAccess(self, config: ServerConfig) -> Callable[[], None]:
        grants = certificateGrants(config)
        believed = issuers(config.access, self._reactor)
        before = self._config.access
        if (config.access.importRunnerToken, config.access.runnerTokenPatterns) != (
            before.importRunnerToken,
            before.runnerTokenPatterns,
        ):
            try:
                await importRunnerToken(self.services.tokens, config.access, self._environment)
            except NotImported as error:
                raise Unreloadable(str(error)) from None
            except CredentialUnusable as error:
                raise Unreloadable(runnerTokenUnusable(error)) from None

        def put() -> None:
            services = self.services
            services.jwts.setIssuers(believed)
            before, services.certificates = services.certificates, grants
            for family in before.endedIn(grants):
                services.connections.revoke(credential=family)
                services.streams.end(family)
                services.forwards.end(family)
                services.proxy.end(family)
                services.eventStreams.end(family)

        return put

    # Serve

    def _unready(self) -> str:
        """Why the server should get no requests now."""
        return "shutting down" if self._stopping else ""

    def _needsDispatch(self, request: Request) -> bool:
        """Whether a request is not to be taken at first look, whatever it is."""
        return self.metrics.observation.spans is not None or self._byName.isFor(request)

    async def _dispatch(self, request: Request) -> Response | HandedOver:
        if self._table is None:
            raise Problem(503, "The server is starting.", headers=[(b"Retry-After", b"1")])
        self.services.load.shed(request)
        try:
            # A host that leads to a service is another origin: the API is not there.
            dispatch = self._byName if self._byName.isFor(request) else self._table
            return await traced(request, dispatch, self.metrics.observation.spans)
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
        limit = self._config.drain.timeout
        self.supervision.stopping(limit + STOP_TIMEOUT)
        if self._table is not None:
            self._remembered.stop()
            self.services.proxy.stop()
            self.services.eventStreams.stop()
            drain = Drain(self._reactor, self.factory, self.services.connections, self._closePorts)
            if self._second is not None:
                self._second.arm(drain.hurry)
            keeping = self._config.drain.keepConnections if self.supervision.notifier.enabled else 0
            await drain.run(limit, keeping=keeping)
            if keeping and not drain.hurried:
                try:
                    await self._keeping.keep(keeping)
                except Exception:
                    self._log.failure("Control connections are not kept")
        for step in (
            self._closePorts,
            lambda: self.factory.stop(0),
            *self._stopAssembled(),
        ):
            # One step that fails must not keep the others from their work.
            try:
                await _awaitable(step())
            except Exception:
                self._log.failure("A step of the shutdown failed")
        self.supervision.ended()

    def _closePorts(self) -> Deferred[Any]:
        closing = [maybeDeferred(self._ports.stopService)]
        if self._table is not None:
            closing.append(self.services.forwards.stopListening())
        return DeferredList(closing, fireOnOneErrback=True, consumeErrors=True)

    def _stopAssembled(self) -> list[Callable[[], Any]]:
        if self._table is None:
            return []
        services = self.services
        return [
            self._watch.stop,
            self._retention.stop,
            services.executors.stop,
            lambda: Deferred.fromCoroutine(services.patchCopies.stop()),
            lambda: Deferred.fromCoroutine(services.driver.stop()),
            *([] if self._synthetic is None else [self._synthetic.stop]),
            lambda: Deferred.fromCoroutine(services.events.flush()),
            lambda: Deferred.fromCoroutine(self._webhooks.stop()),
            self._git.stop,
            services.idempotency.stop,
            services.jwts.stop,
            lambda: Deferred.fromCoroutine(services.forwards.stop()),
            lambda: Deferred.fromCoroutine(services.connections.stop()),
            lambda: Deferred.fromCoroutine(services.audit.stop()),
            lambda: Deferred.fromCoroutine(services.database.close()),
            self.metrics.stopService,
        ]


async def _forOperators() -> Callable[[Expose], bool]:
    """What a forward of the configuration may have: what operators may."""
    return lambda expose: expose in ("operator", "owner")


async def _awaitable(result: Any) -> None:
    if isinstance(result, Deferred):
        await result


def _now(deferred: Deferred[Any]) -> Any:
    """The result of what is done by the time it returns."""
    results: list[Any] = []
    deferred.addBoth(results.append)
    (result,) = results
    if isinstance(result, Failure):
        result.raiseException()
    return result


def _record(audit: AuditLog, event: str, fields: dict[str, Any]) -> None:
    audit.record(event, **{"subject": fields.get("owner") or fields.get("credential"), **fields})


def _identifies(section: ListenSection) -> bool:
    return section.tls is not None and section.tls.mapClients
