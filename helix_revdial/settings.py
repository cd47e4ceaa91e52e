# -*- test-case-name: tests.test_settings -*-
"""
The settings in the words of the rooms: what a section of the file means to the
room that it is about.  The rooms know no file, so this is said here.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Any, TypedDict

from OpenSSL import SSL
from twisted.internet.ssl import trustRootFromCertificates

from helix_revdial.access.certificates import CertificateGrants, GrantError, grant
from helix_revdial.access.jwks import KeySet, certificatesIn, httpsFetch
from helix_revdial.access.jwt import Issuer
from helix_revdial.access.principals import isPattern
from helix_revdial.access.rate_limits import Rate, RateSettings, Scope
from helix_revdial.config import (
    AccessSection,
    AgentsSection,
    ConfigError,
    ForwardsSection,
    GatewaysSection,
    GitSection,
    HttpSection,
    IssuerSection,
    LimitsSection,
    ListenSection,
    LivenessSection,
    PoolSection,
    RateLimitsSection,
    RetentionSection,
    ServerConfig,
    TLSSection,
    TunnelSection,
    UploadsSection,
    WebhooksSection,
)
from helix_revdial.gateways.tcp_forward import Bounds, ForwardRefused, ForwardSettings
from helix_revdial.http.limits import HTTPLimits
from helix_revdial.listening.door import DoorSettings, checkDescription, prepare
from helix_revdial.listening.errors import ListenError
from helix_revdial.listening.sources import ProxySources
from helix_revdial.listening.tls import TLSSettings
from helix_revdial.revdial.features import ALL as FEATURES
from helix_revdial.revdial.keepalive import KernelWatch, Liveness
from helix_revdial.revdial.overload import OverloadLimits
from helix_revdial.revdial.parked import PoolLimits
from helix_revdial.sessions.agents import (
    DEMONSTRATION,
    Agent,
    AgentDeclarationError,
    Agents,
)
from helix_revdial.sessions.git_refs import GitAccess
from helix_revdial.sessions.public_addresses import Network
from helix_revdial.sessions.retention import RetentionSettings
from helix_revdial.sessions.uploads import UploadSettings
from helix_revdial.sessions.webhook_calls import CallSettings
from helix_revdial.sessions.webhooks import WebhookSettings
from helix_revdial.storage.engines import parseURL

DAY = 86_400.0
"""Seconds."""

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")


def check(config: ServerConfig) -> None:
    """
    Check what the file's own form does not tell: certificates, proxies, grants.
    Opens nothing.

    @raise ConfigError: With what is wrong.
    """
    try:
        for section in config.listen:
            prepare(doorSettings(section))
        trustedProxies(config.gateways)
        forwardSettings(config.forwards)
        declaredAgents(config.agents)
        gitAccess(config.git)
        rateSettings(config.rateLimits)
        issuers(config.access, None)
        callSettings(config.webhooks)
    except ListenError as error:
        raise ConfigError(str(error)) from None
    try:
        if config.metrics.listen is not None:
            checkDescription(config.metrics.listen)
    except ListenError as error:
        raise ConfigError(f"metrics.listen: {error}") from None
    try:
        parseURL(config.databaseURL)
    except ValueError as error:
        raise ConfigError(f"server.database: {error}") from None
    for pattern in config.access.runnerTokenPatterns:
        if not isPattern(pattern):
            raise ConfigError(
                f"access.runner_token_patterns: {pattern[:130]!r} is no pattern: a runner key, or "
                "the beginning of one with * after it"
            )
    for word in config.tunnel.requireFeatures:
        if word not in FEATURES:
            raise ConfigError(
                f"tunnel.require_features: no agent offers {word[:50]!r}; the words are "
                f"{', '.join(sorted(FEATURES))}"
            )
    if config.liveness.silence <= config.liveness.keepAlive:
        raise ConfigError(
            "liveness.silence must be longer than liveness.keep_alive: an agent is given up "
            "before it is asked"
        )
    if config.gateways.baseDomain is not None:
        checkBaseDomain(config.gateways.baseDomain)
    certificateGrants(config)


def forwardBounds(section: ForwardsSection) -> Bounds:
    """
    What C{[forwards]} sets apart.

    @raise ConfigError: It makes no sense.
    """
    try:
        first, last = Bounds.parsePorts(section.ports)
        interfaces = tuple(str(ipaddress.ip_address(each)) for each in section.interfaces)
    except ValueError as error:
        raise ConfigError(f"forwards: {error}") from None
    return Bounds(first, last, interfaces, section.maxForwards, section.maxConnections)


def forwardSettings(section: ForwardsSection) -> list[ForwardSettings]:
    """
    The C{[[forwards.forward]]} tables.

    @raise ConfigError: One of them cannot be.
    """
    bounds = forwardBounds(section)
    found = []
    for each in section.forward:
        try:
            settings = ForwardSettings.parse(
                each.listen, each.runner, each.target, each.allow, each.proxyProtocol
            )
            bounds.check(settings)
        except ForwardRefused as error:
            raise ConfigError(f"forwards.forward {each.listen}: {error.field}: {error}") from None
        found.append(settings)
    return found


DEMONSTRATION_COMMAND = (
    "{python}",
    "-m",
    "helix_revdial.executor.demonstration",
    "--file",
    "{promptFile}",
)
"""Of the scripted agent; standard input is for the prompts that come later."""


def declaredAgents(section: AgentsSection) -> Agents:
    """
    The C{[agents]} section.

    @raise ConfigError: One of them cannot be.
    """
    found = [
        Agent(one.type, one.command, one.versions, one.environment, one.schema, one.prompts)
        for one in section.agent
    ]
    if section.demonstration:
        found.append(Agent(DEMONSTRATION, DEMONSTRATION_COMMAND, prompts="input"))
    try:
        return Agents(found)
    except AgentDeclarationError as error:
        raise ConfigError(f"agents.agent: {error}") from None


def gitAccess(section: GitSection) -> GitAccess:
    """
    The C{[git]} section.

    @raise ConfigError: A network that is none.
    """
    try:
        allowed = tuple(ipaddress.ip_network(one) for one in section.allow)
    except ValueError as error:
        raise ConfigError(f"git.allow: {error}") from None
    return GitAccess(allowed, section.sshKey, section.knownHosts, section.caFile)


def webhookNetworks(section: WebhooksSection) -> tuple[Network, ...]:
    """
    Where webhooks may go although it is not public.

    @raise ConfigError: A network that is none.
    """
    try:
        return tuple(ipaddress.ip_network(one) for one in section.allow)
    except ValueError as error:
        raise ConfigError(f"webhooks.allow: {error}") from None


def callSettings(section: WebhooksSection) -> CallSettings:
    """
    How the C{[webhooks]} section has other servers called.

    @raise ConfigError: A network, or certificates, that are none.
    """
    trust = None
    if section.caFile is not None:
        try:
            trust = trustRootFromCertificates(certificatesIn(Path(section.caFile).read_bytes()))
        except (OSError, ValueError, SSL.Error) as error:
            raise ConfigError(f"webhooks.ca_file: {section.caFile}: {error}") from None
    return CallSettings(webhookNetworks(section), section.timeout, trust)


def webhookSettings(section: WebhooksSection) -> WebhookSettings:
    """How much the C{[webhooks]} section allows at one time."""
    return WebhookSettings(section.giveUpAfter, section.atOnce, section.perTarget)


def retentionSettings(section: RetentionSection) -> RetentionSettings:
    """The C{[retention]} section."""
    return RetentionSettings(
        section.eventDays * DAY,
        section.eventsPerSession,
        section.sessionDays * DAY,
        section.deliveryDays * DAY,
        section.interval,
    )


def uploadSettings(section: UploadsSection) -> UploadSettings:
    """The C{[uploads]} section."""
    return UploadSettings(section.maxBytes, section.tenantBytes, section.lifetime, section.atOnce)


def doorSettings(section: ListenSection) -> DoorSettings:
    """A table of C{[[listen]]}."""
    proxies = section.proxyProtocol
    return DoorSettings(
        section.endpoint,
        None if section.tls is None else _tlsSettings(section.tls),
        None if proxies is None else proxies.sources,
    )


def _tlsSettings(section: TLSSection) -> TLSSettings:
    return TLSSettings(
        certificate=section.certificate,
        key=section.key,
        directory=section.directory,
        minimumVersion=section.minimumVersion,
        clientCA=section.clientCa,
        clientCertificates=section.clientCertificates,
    )


def httpLimits(section: HttpSection, limits: LimitsSection) -> HTTPLimits:
    """The C{[http]} section, and what C{[limits]} says of connections."""
    return HTTPLimits(
        headTimeout=section.headTimeout,
        idleTimeout=section.idleTimeout,
        maxConnections=section.maxConnections,
        maxUnauthenticated=section.maxUnauthenticated,
        maxUnauthenticatedPerAddress=section.maxUnauthenticatedPerAddress,
        maxConnectionsPerAddress=limits.connectionsPerAddress,
    )


class TunnelLimits(TypedDict):
    """What L{Connections} takes and can take anew."""

    gracePeriod: float
    maxPending: int
    dialTimeout: float
    maxRunners: int
    maxStreams: int
    pool: PoolLimits


def tunnelLimits(section: TunnelSection, limits: LimitsSection, pool: PoolSection) -> TunnelLimits:
    """The C{[tunnel]} and C{[pool]} sections, and what C{[limits]} says of one runner."""
    return {
        "gracePeriod": section.gracePeriod,
        "maxPending": section.maxPendingDials,
        "dialTimeout": section.dialTimeout,
        "maxRunners": section.maxRunners,
        "maxStreams": limits.streamsPerRunner,
        "pool": PoolLimits(pool.spare, pool.perRunner, pool.total, pool.refresh),
    }


def trustedProxies(section: GatewaysSection) -> ProxySources | None:
    """
    Whose word about callers counts; C{None} for nobody's.

    @raise ListenError: One of them is no network.
    """
    if not section.trustedProxies:
        return None
    return ProxySources(section.trustedProxies, "gateways.trusted_proxies")


def checkBaseDomain(name: str) -> None:
    """
    @raise ConfigError: It is no domain.
    """
    if len(name) > 180 or _DOMAIN.fullmatch(name) is None:
        raise ConfigError(
            f"gateways.base_domain: {name!r} is no domain in lower case, such as apps.example"
        )


def overloadLimits(section: LimitsSection) -> OverloadLimits:
    """What C{[limits]} says of all streams together."""
    return OverloadLimits(dials=section.dials, bufferedBytes=section.bufferedBytes)


def liveness(section: LivenessSection) -> Liveness:
    """The C{[liveness]} section."""
    return Liveness(
        ask=section.keepAlive,
        silence=section.silence,
        kernel=KernelWatch.within(section.kernelTimeout),
    )


def issuers(section: AccessSection, reactor: Any) -> list[Issuer]:
    """
    The C{[[access.issuer]]} tables.  Reads the files that they name.

    @param reactor: What keys are fetched with; C{None} to check only.
    @raise ConfigError: One of them cannot be.
    """
    found: dict[str, Issuer] = {}
    for one in section.issuer:
        if one.issuer in found:
            raise ConfigError(f"access.issuer: {one.issuer!r} stands there twice")
        try:
            found[one.issuer] = _issuer(one, reactor)
        except OSError as error:
            raise ConfigError(
                f"access.issuer: {one.issuer}: {error.filename}: {error.strerror}"
            ) from None
        except ValueError as error:
            raise ConfigError(f"access.issuer: {one.issuer}: {error}") from None
    return list(found.values())


def _issuer(section: IssuerSection, reactor: Any) -> Issuer:
    if not section.issuer or not section.audience:
        raise ValueError("issuer and audience are not empty")
    secret = keys = None
    authorities = b""
    if section.secretFile is not None:
        secret = Path(section.secretFile).read_bytes().strip()
    if section.jwksUrl is not None:
        if section.jwksCa is not None:
            authorities = Path(section.jwksCa).read_bytes()
        fetch = httpsFetch(reactor, section.jwksUrl, authorities or None)
        keys = KeySet(fetch, reactor, section.algorithm, section.issuer)
    issuer = Issuer(
        section.issuer,
        section.audience,
        section.algorithm,
        secret=secret,
        keys=keys,
        tenants=section.tenants,
        defaultRole=section.defaultRole,
        skew=section.clockSkew,
        source=f"{section.jwksUrl}\n{authorities.decode('latin-1')}",
    )
    issuer.check()
    return issuer


def rateSettings(section: RateLimitsSection) -> RateSettings:
    """
    The C{[rate_limits]} section.

    @raise ConfigError: An override is nobody's.
    """
    named: dict[tuple[Scope, str], Rate] = {}
    for override in section.override:
        scopes: dict[Scope, str | None] = {
            "tenant": override.tenant,
            "project": override.project,
            "user": override.user,
        }
        given = [(scope, name) for scope, name in scopes.items() if name is not None]
        if len(given) != 1:
            raise ConfigError("rate_limits.override: say one of tenant, project and user")
        scope, name = given[0]
        if scope != "tenant" and not all(name.partition("/")[::2]):
            raise ConfigError(
                f"rate_limits.override: {scope} = {name!r} must be TENANT/{scope.upper()}"
            )
        named[scope, name] = Rate(override.perSecond, override.burst)
    return RateSettings(
        {
            "tenant": Rate(section.tenantPerSecond, section.tenantBurst),
            "project": Rate(section.projectPerSecond, section.projectBurst),
            "user": Rate(section.userPerSecond, section.userBurst),
        },
        named,
    )


def certificateGrants(config: ServerConfig) -> CertificateGrants:
    """
    The C{[[access.client_certificate]]} tables.

    @raise ConfigError: One of them cannot be, or nothing could use them.
    """
    for section in config.listen:
        tls = section.tls
        if tls is not None and tls.mapClients and tls.clientCa is None:
            raise ConfigError(
                f"listen endpoint {section.endpoint!r}: tls.map_clients needs tls.client_ca, the "
                "authorities whose certificates say who asks"
            )
    try:
        return CertificateGrants(
            grant(
                fingerprint=one.fingerprint,
                subjectAltName=one.subjectAltName,
                kind=one.kind,
                patterns=one.patterns,
                user=one.user,
                role=one.role,
                tenant=one.tenant,
            )
            for one in config.access.clientCertificate
        )
    except GrantError as error:
        raise ConfigError(f"access.client_certificate: {error}") from None
