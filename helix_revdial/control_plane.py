# -*- test-case-name: tests.test_control_plane -*-
"""
The server, assembled from its rooms.

Start: the ports are opened first (so that a privileged one can be had before
privileges are dropped), then the state is prepared: directory, schema, first
tokens.  Whatever of it fails ends the process with one line that says why; a
server never runs half.  What is prepared is done in the starting thread, before
the reactor runs; afterwards no query is on the reactor's thread.

Stop: ports first, then tunnels, then what they were counted and recorded in.

The rooms are tied together here and nowhere else: a token that ends cuts what
it holds, a session that is deleted cuts its tunnel, and what the connections
refuse goes to the audit log.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from helix_revdial import __version__
from helix_revdial.access.audit import AuditLog
from helix_revdial.access.generations import Generations
from helix_revdial.access.records import TokenError
from helix_revdial.access.tokens import TokenConflict, Tokens
from helix_revdial.access.watch import TokenWatch
from helix_revdial.api.authority import Authority
from helix_revdial.api.document import operationTable, translate
from helix_revdial.api.services import Services, cutWhatEnds
from helix_revdial.config import RUNNER_TOKEN_VARIABLE, ListenSection, ServerConfig
from helix_revdial.http.factory import HTTPFactory
from helix_revdial.http.operations import OperationTable
from helix_revdial.http.problem import Problem
from helix_revdial.http.request import Request
from helix_revdial.http.response import HandedOver, Response
from helix_revdial.listening.door import Door
from helix_revdial.listening.errors import ListenError
from helix_revdial.revdial.connections import Connections
from helix_revdial.sessions.sessions import Sessions
from helix_revdial.settings import doorSettings, httpLimits
from helix_revdial.storage.database import (
    Database,
    DatabaseUnavailable,
    WrongRevision,
    openDatabase,
)
from helix_revdial.storage.threads import SameThread

STOP_TIMEOUT = 5.0
"""Seconds that requests under way have to finish when the server stops."""


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


class ControlPlane(Service):
    """
    The long-lived service behind C{twistd helix-revdial-server}.

    @ivar services: What the operations work with, once started.
    @ivar factory: The HTTP server's factory.
    """

    _log = Logger()

    services: Services

    def __init__(
        self,
        reactor: Any,
        config: ServerConfig,
        environment: Mapping[str, str],
        wallClock: Callable[[], float] = time.time,
    ) -> None:
        """
        @param reactor: Threads, time and sockets.
        @param config: The settings.
        @param environment: Only looked at for an existing C{RUNNER_TOKEN}.
        @param wallClock: Seconds since 1970.
        """
        self._reactor = reactor
        self._config = config
        self._environment = environment
        self._wallClock = wallClock
        self._table: OperationTable | None = None
        self._stopping = False
        self.factory = HTTPFactory(
            self._dispatch,
            reactor,
            httpLimits(config.http),
            serverHeader=f"helix_revdial/{__version__}".encode("ascii"),
            wallClock=wallClock,
        )
        self._ports = MultiService()
        self._doors = [self._door(section) for section in config.listen]

    def _door(self, section: ListenSection) -> Door:
        identifies = section.tls is not None and section.tls.mapClients
        try:
            door = Door(
                self._reactor,
                doorSettings(section),
                self.factory.identifying() if identifies else self.factory,
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
        for door in self._doors:
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
        self._ports.startService()
        super().startService()
        for door in self._doors:
            self._log.info("Listening on {endpoint}", endpoint=door.settings.endpoint)

    def _prepare(self) -> None:
        """Directory, schema and first tokens, done before the reactor runs."""
        Path(self._config.server.stateDirectory).mkdir(mode=0o700, parents=True, exist_ok=True)
        database = Database(self._config.databaseURL, SameThread())
        try:
            if database.engine.dialect.name == "sqlite":
                _now(Deferred.fromCoroutine(database.upgrade()))
            _now(Deferred.fromCoroutine(database.checkRevision()))
            tokens = Tokens(database, self._reactor, self._wallClock)
            written = _now(Deferred.fromCoroutine(tokens.ensureAdmin(self._config.adminTokenPath)))
            if written is not None:
                self._log.warn("The first admin token is in {path}", path=str(written))
            self._importRunnerToken(tokens)
        finally:
            _now(Deferred.fromCoroutine(database.close()))

    def _importRunnerToken(self, tokens: Tokens) -> None:
        secret = self._environment.get(RUNNER_TOKEN_VARIABLE, "")
        access = self._config.access
        if not secret or not access.importRunnerToken:
            return
        try:
            record = _now(
                Deferred.fromCoroutine(
                    tokens.importSecret(
                        secret,
                        "runner",
                        name=f"imported {RUNNER_TOKEN_VARIABLE}",
                        patterns=access.runnerTokenPatterns,
                    )
                )
            )
        except (TokenConflict, TokenError) as error:
            raise CannotStart(
                f"{RUNNER_TOKEN_VARIABLE} of the environment cannot be imported: {error}. "
                "Unset it, or set access.import_runner_token = false."
            ) from None
        self._log.info(
            "The {variable} of the environment is runner token {token}",
            variable=RUNNER_TOKEN_VARIABLE,
            token=record.id,
            patterns=list(access.runnerTokenPatterns),
        )

    def _assemble(self) -> None:
        config, clock = self._config, self._reactor
        database = openDatabase(
            config.databaseURL, self._reactor, threads=config.server.databaseThreads
        )
        tokens = Tokens(database, clock, self._wallClock)
        audit = AuditLog(database, clock, self._wallClock)
        sessions = Sessions(database, clock, self._wallClock)
        generations = Generations(database)
        connections = Connections(
            clock,
            generations.next,
            wallClock=self._wallClock,
            audit=lambda event, fields: _record(audit, event, fields),
            gracePeriod=config.tunnel.gracePeriod,
            maxPending=config.tunnel.maxPendingDials,
            dialTimeout=config.tunnel.dialTimeout,
            maxRunners=config.tunnel.maxRunners,
        )

        cutWhatEnds(tokens, sessions, connections)
        self._watch = TokenWatch(tokens, clock)
        self._watch.start()
        self.services = Services(
            clock,
            self._wallClock,
            config,
            database,
            tokens,
            audit,
            sessions,
            connections,
            ready=lambda: "shutting down" if self._stopping else "",
        )
        self._table = operationTable(self.services, Authority(tokens, sessions, audit))

    # Serve

    async def _dispatch(self, request: Request) -> Response | HandedOver:
        if self._table is None:
            raise Problem(503, "The server is starting.", headers=[(b"Retry-After", b"1")])
        try:
            return await self._table(request)
        except DatabaseUnavailable as error:
            problem = translate(error)
            assert problem is not None
            raise problem from error

    # Stop

    def stopService(self) -> Deferred[None]:
        """
        Take no more, let requests under way finish, end the tunnels, write what
        is still to be written.
        """
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._stopping = True
        for step in (
            self._ports.stopService,
            lambda: self.factory.stop(STOP_TIMEOUT),
            *self._stopAssembled(),
        ):
            # One step that fails must not keep the others from their work.
            try:
                await _awaitable(step())
            except Exception:
                self._log.failure("A step of the shutdown failed")

    def _stopAssembled(self) -> list[Callable[[], Any]]:
        if self._table is None:
            return []
        services = self.services
        return [
            self._watch.stop,
            lambda: Deferred.fromCoroutine(services.connections.stop()),
            lambda: Deferred.fromCoroutine(services.audit.stop()),
            lambda: Deferred.fromCoroutine(services.database.close()),
        ]


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
