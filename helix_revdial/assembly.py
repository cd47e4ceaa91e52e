# -*- test-case-name: tests.integration.test_server,tests.integration.test_listening_server -*-
"""
The server's rooms, tied together.

Here and nowhere else: a token that ends cuts what it holds, a session that is
deleted cuts its tunnel, and what the connections refuse goes to the audit log.

Owns what the rooms were made from and the order in which they begin and end; the
ports, the signals and the process are the L{control plane's
<helix_revdial.control_plane.ControlPlane>}.  Settings are read from C{services.config}
each time: a reload replaces them.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from helix_revdial.access.audit import AuditLog
from helix_revdial.access.certificates import CertificateGrants
from helix_revdial.access.generations import Generations
from helix_revdial.access.jwt import Issuer
from helix_revdial.access.policy import Expose, sessionOf
from helix_revdial.access.principals import Principal
from helix_revdial.access.tokens import Tokens
from helix_revdial.access.watch import TokenWatch
from helix_revdial.api.authority import Authority
from helix_revdial.api.document import operationTable
from helix_revdial.api.first_look import FirstLook
from helix_revdial.api.forwards import restoreForwards
from helix_revdial.api.load import Load
from helix_revdial.api.metrics import MetricsService
from helix_revdial.api.proxy import ByName
from helix_revdial.api.services import Services, cutWhatEnds
from helix_revdial.api.tracing import traced
from helix_revdial.cannot_start import CannotStart
from helix_revdial.config import ServerConfig
from helix_revdial.gateways.tcp_forward import ForwardRefused
from helix_revdial.http.factory import HTTPFactory
from helix_revdial.http.request import Request
from helix_revdial.http.response import HandedOver, Response
from helix_revdial.keeping import Keeping
from helix_revdial.programs import Programs
from helix_revdial.reload import Reloaded
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
    forwardSettings,
    gitAccess,
    liveness,
    retentionSettings,
    tunnelLimits,
    webhookSettings,
)
from helix_revdial.storage.database import openDatabase
from helix_revdial.storage.sole import SoleUse
from helix_revdial.storage.threads import ReactorThreads
from helix_revdial.systemd.store import DescriptorStore
from helix_revdial.systemd.supervision import Supervision

MAX_GIT = 8
"""Repositories that are asked for their branches at one time."""

SOLE_INTERVAL = 5.0
"""Seconds between two looks whether the database is this server's alone."""

FILE_THREADS = 4
"""Pieces of uploads that are written or read at one time."""


class Assembly:
    """
    What a server that serves is made of.

    @ivar services: What the operations work with.
    @ivar webhooks: Tells other servers.
    @ivar retention: Removes what is over its time.
    @ivar watch: Notices what other hands have ended.
    @ivar keeping: Control connections that outlive the process.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        config: ServerConfig,
        environment: Mapping[str, str],
        wallClock: Callable[[], float],
        *,
        sole: SoleUse,
        factory: HTTPFactory,
        metrics: MetricsService,
        supervision: Supervision,
        certificates: CertificateGrants,
        issuers: list[Issuer],
        reload: Callable[[str], Awaitable[Reloaded]],
        unready: Callable[[], str],
    ) -> None:
        """
        @param environment: Of which the programs that look at repositories get C{PATH}.
        @param sole: What keeps other servers from the database; it is let go of at the end.
        @param factory: Whose requests are answered here.
        @param certificates: Whose client certificates are.
        @param issuers: Whose JSON web tokens are believed.
        @param reload: Reads the settings again.
        @param unready: Why the server should get no requests now; empty when it should.
        @raise CannotStart: A port that a forward must have cannot be had.
        """
        self._reactor = clock = reactor
        self._wallClock = wallClock
        self._metrics = metrics
        self._sole = sole
        self._soleWorker = ReactorThreads(reactor, 1, "sole use")
        self._soleWatch = LoopingCall(self._beSole)
        self._soleWatch.clock = clock
        self._synthetic: SyntheticExecutor | None = None
        database = openDatabase(config.databaseURL, reactor, threads=config.server.databaseThreads)
        tokens = Tokens(database, clock, wallClock)
        audit = AuditLog(database, clock, wallClock)
        sessions = Sessions(database, clock, wallClock)
        generations = Generations(database)
        observation = metrics.observation
        load = Load(
            clock,
            config.limits,
            factory=factory,
            buffered=observation.bufferedBytes,
            count=observation.metrics.limits.add,
            record=lambda event, fields: _record(audit, event, fields),
        )
        watchers = Watchers(observation)
        connections = Connections(
            clock,
            generations.next,
            wallClock=wallClock,
            audit=lambda event, fields: _record(audit, event, fields),
            watching=watchers,
            liveness=liveness(config.liveness),
            overload=load.overload,
            scarce=load.scarce,
            **tunnelLimits(config.tunnel, config.limits, config.pool),
        )
        self._await(connections, config)
        observation.watch(connections, factory, unready)
        self.keeping = Keeping(
            clock, connections, DescriptorStore(clock, supervision.notifier), self._mayGoOn
        )
        cutWhatEnds(tokens, sessions, connections)
        self.watch = TokenWatch(tokens, clock)
        self.watch.start()
        self._git = Programs(
            reactor,
            {"PATH": environment.get("PATH", os.defpath), **GIT_ENVIRONMENT},
            maxRunning=MAX_GIT,
        )
        self.services = services = Services(
            clock,
            wallClock,
            config,
            database,
            tokens,
            audit,
            sessions,
            connections,
            observation,
            load,
            ready=unready,
            certificates=certificates,
            reload=reload,
            sockets=SocketRelays(clock),
            gitRefs=GitRefs(
                self._git, reactor.nameResolver, clock, wallClock, gitAccess(config.git)
            ),
            fileWorkers=ReactorThreads(reactor, FILE_THREADS, "files"),
        )
        watchers.add(services.proxy.backends)
        watchers.add(
            RunnerHosts(
                reactor,
                services.executors,
                lambda key: connections.endpoint(key, TARGET, about={"request": "executor"}),
                self._tenantOf,
            )
        )
        self.webhooks = Webhooks(
            database,
            clock,
            wallClock,
            services.events,
            Calls(reactor, reactor.nameResolver, callSettings(config.webhooks)),
            webhookSettings(config.webhooks),
            mayWant=services.outbox.mayWant,
        )
        self.retention = Retention(
            database,
            clock,
            wallClock,
            services.events,
            services.driver.delete,
            services.uploads.sweep,
            retentionSettings(config.retention),
        )
        services.idempotency.start()
        services.jwts.setIssuers(issuers)
        authority = Authority(
            tokens,
            sessions,
            audit,
            certificate=self._principalOf,
            admit=services.admit,
            jwts=services.jwts,
        )
        self._byName = ByName(services, authority, lambda: services.config.gateways.baseDomain)
        self._table = operationTable(services, authority)
        factory.firstLook = FirstLook(services, self._needsDispatch)
        self._forward()

    def _await(self, connections: Connections, config: ServerConfig) -> None:
        """The runners of before the start are away, not gone; and so for the next start."""
        self._remembered = Remembered(
            self._reactor,
            Path(config.server.stateDirectory, "runners.json"),
            connections.known,
            self._wallClock,
        )
        settle = config.liveness.settleTime
        if settle:
            awaited = connections.expect(self._remembered.read(), settle)
            if awaited:
                self._log.info(
                    "{count} runners were connected before; they are awaited for {seconds:g} s",
                    count=awaited,
                    seconds=settle,
                )
        self._remembered.start()

    def _forward(self) -> None:
        """Open the ports of the configuration's forwards, and of those that were made since."""
        forwards = self.services.forwards
        for settings in forwardSettings(self.services.config.forwards):
            try:
                forwards.create(settings, _forOperators)
            except ForwardRefused as error:
                raise CannotStart(f"forward {settings.listen}: {error}") from None
        restoring = Deferred.fromCoroutine(restoreForwards(self.services))
        restoring.addErrback(
            lambda failure: self._log.failure("The forwards of before are not there", failure)
        )

    async def _mayGoOn(self, state: KeptState) -> bool:
        """Whether what let a runner register before the restart still does."""
        services = self.services
        session = sessionOf(state.key)
        if session is not None and await services.sessions.get(session) is None:
            return False
        features = parseFeatures([state.features.encode("ascii")])
        if not features.issuperset(services.config.tunnel.requireFeatures):
            return False
        if not await services.tokens.isLive(state.credential):
            return False
        return session is None or not services.sessions.wasDeleted(session)

    async def _tenantOf(self, credential: str) -> str | None:
        """Whose runners a token, or a client certificate, registers."""
        granted = self.services.certificates.principals.get(credential)
        if granted is not None:
            return granted.tenant
        return await self.services.tokens.tenantOf(credential)

    def _principalOf(self, certificate: bytes) -> Principal | None:
        return self.services.certificates.principalOf(certificate, self._wallClock())

    # Begin

    def takeBack(self, handed: Mapping[str, list[int]]) -> None:
        """Go on with the control connections of the process before."""
        Deferred.fromCoroutine(self.keeping.takeBack(handed)).addErrback(
            lambda failure: self._log.failure("What was kept is not taken up", failure)
        )

    def drive(self) -> None:
        """Go on with the tasks of the process before."""
        section = self.services.config.sessions
        if section.synthetic:
            self._synthetic = SyntheticExecutor(
                self._reactor, self._wallClock, speed=section.syntheticSpeed
            )
            self.services.executors.add("synthetic", self._synthetic)
        self.services.executors.start()
        if self._sole.canBeLost:
            self._soleWatch.start(SOLE_INTERVAL, now=False)
        self.webhooks.begin()
        self.retention.begin()
        self.services.driver.begin()
        self.services.patchCopies.begin()

    async def _isSole(self) -> None:
        try:
            if await self._soleWorker.call(self._sole.check):
                return
        except Exception:
            self._log.failure("It cannot be told whether another server uses the database")
            return
        self._log.critical(
            "Another server has taken this one's database while it could not be reached: this "
            "one ends. Give each server a database of its own."
        )
        self._soleWatch.stop()
        self._reactor.stop()

    def _beSole(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._isSole())

    # Serve

    def _needsDispatch(self, request: Request) -> bool:
        """Whether a request is not to be taken at first look, whatever it is."""
        return self._metrics.observation.spans is not None or self._byName.isFor(request)

    async def dispatch(self, request: Request) -> Response | HandedOver:
        """Answer a request."""
        self.services.load.shed(request)
        # A host that leads to a service is another origin: the API is not there.
        dispatch = self._byName if self._byName.isFor(request) else self._table
        return await traced(request, dispatch, self._metrics.observation.spans)

    # End

    def endStreams(self) -> None:
        """Begin to stop: let go of what would never finish by itself."""
        self._remembered.stop()
        self.services.proxy.stop()
        self.services.eventStreams.stop()

    def ending(self) -> list[Callable[[], Any]]:
        """The steps, in order, that end all of it."""
        services = self.services
        return [
            self.watch.stop,
            self.retention.stop,
            services.executors.stop,
            lambda: Deferred.fromCoroutine(services.patchCopies.stop()),
            lambda: Deferred.fromCoroutine(services.driver.stop()),
            *([] if self._synthetic is None else [self._synthetic.stop]),
            lambda: Deferred.fromCoroutine(services.events.flush()),
            lambda: Deferred.fromCoroutine(self.webhooks.stop()),
            self._git.stop,
            services.idempotency.stop,
            services.jwts.stop,
            lambda: Deferred.fromCoroutine(services.forwards.stop()),
            lambda: Deferred.fromCoroutine(services.connections.stop()),
            lambda: Deferred.fromCoroutine(services.audit.stop()),
            lambda: Deferred.fromCoroutine(services.database.close()),
            lambda: Deferred.fromCoroutine(self._leave()),
            self._metrics.stopService,
        ]

    async def _leave(self) -> None:
        """Let another server have the database."""
        if self._soleWatch.running:
            self._soleWatch.stop()
        # After a look that is under way.
        await self._soleWorker.call(self._sole.release)
        self._soleWorker.stop()


def _forOperators() -> Callable[[Expose], bool]:
    """What a forward of the configuration may have: what operators may."""
    return _isForOperators


def _isForOperators(expose: Expose) -> bool:
    return expose in ("operator", "owner")


def _record(audit: AuditLog, event: str, fields: dict[str, Any]) -> None:
    audit.record(event, **{"subject": fields.get("owner") or fields.get("credential"), **fields})
