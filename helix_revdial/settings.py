# -*- test-case-name: tests.test_settings -*-
"""
The settings in the words of the rooms: what a section of the file means to the
room that it is about.  The rooms know no file, so this is said here.
"""

from __future__ import annotations

import re
from typing import TypedDict

from helix_revdial.access.certificates import CertificateGrants, GrantError, grant
from helix_revdial.config import (
    ConfigError,
    GatewaysSection,
    HttpSection,
    LimitsSection,
    ListenSection,
    LivenessSection,
    ServerConfig,
    TLSSection,
    TunnelSection,
)
from helix_revdial.http.limits import HTTPLimits
from helix_revdial.listening.door import DoorSettings, prepare
from helix_revdial.listening.errors import ListenError
from helix_revdial.listening.sources import ProxySources
from helix_revdial.listening.tls import TLSSettings
from helix_revdial.revdial.keepalive import KernelWatch, Liveness
from helix_revdial.revdial.overload import OverloadLimits

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
    except ListenError as error:
        raise ConfigError(str(error)) from None
    if config.gateways.baseDomain is not None:
        checkBaseDomain(config.gateways.baseDomain)
    certificateGrants(config)


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


def tunnelLimits(section: TunnelSection, limits: LimitsSection) -> TunnelLimits:
    """The C{[tunnel]} section, and what C{[limits]} says of one runner."""
    return {
        "gracePeriod": section.gracePeriod,
        "maxPending": section.maxPendingDials,
        "dialTimeout": section.dialTimeout,
        "maxRunners": section.maxRunners,
        "maxStreams": limits.streamsPerRunner,
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
