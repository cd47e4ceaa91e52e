# -*- test-case-name: tests.integration.test_listening_server -*-
"""
What a reload means to a server that serves: the L{parts
<helix_revdial.reload.Part>} of its L{Reload <helix_revdial.reload.Reload>}.

Each prepares what can fail, and gives what puts it in place and cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from helix_revdial.api.services import patchLimits, proxyLimits
from helix_revdial.assembly import Assembly
from helix_revdial.config import ConfigError, ListenSection, ServerConfig
from helix_revdial.http.factory import HTTPFactory, IdentifyingFactory
from helix_revdial.imported_tokens import NotImported, importRunnerToken, runnerTokenUnusable
from helix_revdial.listening.door import Door
from helix_revdial.listening.errors import ListenError, NeedsRestart
from helix_revdial.reload import Part, Unreloadable
from helix_revdial.settings import (
    callSettings,
    certificateGrants,
    declaredAgents,
    doorSettings,
    gitAccess,
    httpLimits,
    issuers,
    rateSettings,
    retentionSettings,
    tunnelLimits,
    uploadSettings,
    webhookSettings,
)
from helix_revdial.systemd.credentials import CredentialUnusable


class ReloadParts:
    """
    The parts of one server.

    @ivar all: Them, in the order in which they prepare.
    """

    def __init__(
        self,
        reactor: Any,
        environment: Mapping[str, str],
        assembly: Assembly,
        factory: HTTPFactory,
        doors: Sequence[tuple[Door, IdentifyingFactory]],
    ) -> None:
        """
        @param environment: Looked at for C{RUNNER_TOKEN}.
        @param doors: In the order of the settings, each with the factory behind it.
        """
        self._reactor = reactor
        self._environment = environment
        self._assembly = assembly
        self._services = assembly.services
        self._factory = factory
        self._doors = doors
        self.all: tuple[Part, ...] = (self._openings, self._limits, self._agents, self._access)

    async def _openings(self, config: ServerConfig) -> Callable[[], None]:
        puts = []
        for (door, factory), section in zip(self._doors, config.listen, strict=True):
            try:
                puts.append(door.prepare(doorSettings(section)))
            except NeedsRestart as error:
                raise Unreloadable(str(error)) from None
            except ListenError as error:
                raise ConfigError(str(error)) from None
            puts.append(partial(setattr, factory, "identifies", identifies(section)))

        def put() -> None:
            for each in puts:
                each()

        return put

    async def _limits(self, config: ServerConfig) -> Callable[[], None]:
        rates = rateSettings(config.rateLimits)
        services = self._services

        def put() -> None:
            services.config = config
            self._factory.setLimits(httpLimits(config.http, config.limits))
            services.connections.setLimits(
                **tunnelLimits(config.tunnel, config.limits, config.pool)
            )
            services.load.setLimits(config.limits)
            services.streams.setLimit(config.limits.streamsPerUser)
            services.proxy.setLimits(proxyLimits(config.gateways))
            services.rates.setLimits(rates)
            services.uploads.settings = uploadSettings(config.uploads)
            services.patches.setLimits(**patchLimits(config.sessions))
            services.eventStreams.setLimits(
                heartbeat=config.events.heartbeat, queueBytes=config.events.queueBytes
            )

        return put

    async def _agents(self, config: ServerConfig) -> Callable[[], None]:
        agents, access = declaredAgents(config.agents), gitAccess(config.git)
        calls = callSettings(config.webhooks)
        services = self._services

        def put() -> None:
            services.agents = agents
            self._assembly.webhooks.callAs(calls)
            self._assembly.webhooks.settings = webhookSettings(config.webhooks)
            self._assembly.retention.setSettings(retentionSettings(config.retention))
            if services.gitRefs is not None:
                services.gitRefs.access = access

        return put

    async def _access(self, config: ServerConfig) -> Callable[[], None]:
        grants = certificateGrants(config)
        believed = issuers(config.access, self._reactor)
        before = self._services.config.access
        if (config.access.importRunnerToken, config.access.runnerTokenPatterns) != (
            before.importRunnerToken,
            before.runnerTokenPatterns,
        ):
            try:
                await importRunnerToken(self._services.tokens, config.access, self._environment)
            except NotImported as error:
                raise Unreloadable(str(error)) from None
            except CredentialUnusable as error:
                raise Unreloadable(runnerTokenUnusable(error)) from None

        def put() -> None:
            services = self._services
            services.jwts.setIssuers(believed)
            before, services.certificates = services.certificates, grants
            for family in before.endedIn(grants):
                services.connections.revoke(credential=family)
                services.streams.end(family)
                services.forwards.end(family)
                services.proxy.end(family)
                services.eventStreams.end(family)

        return put


def identifies(section: ListenSection) -> bool:
    """Whether a client certificate says who asks at this door."""
    return section.tls is not None and section.tls.mapClients
