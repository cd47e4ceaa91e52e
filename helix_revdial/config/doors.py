# -*- test-case-name: tests.test_config -*-
"""Who may connect, and how much all connections may cost."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from .kinds import Count, Seconds, Section, Size, snake


class TLSSection(Section, frozen=True, rename=snake):
    """TLS on one door; certificates are read again when the settings are."""

    certificate: str | None = None
    """PEM file: the certificate, then the chain; the key too, where C{key} is not given."""

    key: str | None = None
    """PEM file of the private key, without a passphrase."""

    directory: str | None = None
    """Directory of certificates, of which each caller gets the one that it names (SNI)."""

    minimumVersion: Literal["1.2", "1.3"] = "1.2"
    """The oldest version of TLS that is spoken."""

    clientCa: str | None = None
    """PEM file of the authorities whose client certificates are accepted."""

    clientCertificates: Literal["required", "optional"] = "required"
    """Whether a caller must have a certificate, where C{client_ca} is given."""

    mapClients: bool = False
    """Whether a certificate says who asks, as C{[[access.client_certificate]]} has it."""


class ProxySection(Section, frozen=True, rename={"sources": "from"}):
    """A door behind proxies that begin each connection with a PROXY header (v1, v2)."""

    sources: tuple[str, ...]
    """Networks or addresses of the proxies, or C{"unix"}; nobody else is let in."""


class ListenSection(Section, frozen=True, rename=snake):
    """One door. Several may stand in the file, each under C{[[listen]]}."""

    endpoint: str = "tcp:8080:interface=127.0.0.1"
    """A Twisted server endpoint string: C{tcp:}, C{unix:}, C{systemd:}."""

    tls: TLSSection | None = None
    """TLS; without it, plain HTTP."""

    proxyProtocol: ProxySection | None = None
    """PROXY headers; without it, a connection's address is its caller's."""


class HttpSection(Section, frozen=True, rename=snake):
    """What a peer may cost before and after it has shown who it is."""

    maxConnections: Count = 20_000
    """Open connections in all, tunnels included."""

    maxUnauthenticated: Count = 4096
    """Connections that have not yet shown a valid token, in all."""

    maxUnauthenticatedPerAddress: Count = 1024
    """The same for one address."""

    headTimeout: Seconds = 10.0
    """Seconds within which a whole request head must have arrived."""

    idleTimeout: Seconds = 75.0
    """Seconds that a kept-alive connection may be idle between requests."""


class LimitsSection(Section, frozen=True, rename=snake):
    """What all callers and agents together may cost."""

    handshakesPerSecond: Annotated[float, msgspec.Meta(gt=0, le=1_000_000)] = 200.0
    """Control connections that are made in a second, over any longer time."""

    handshakeBurst: Count = 200
    """Control connections at once, after a quiet time."""

    connectionsPerAddress: Count = 10_000
    """Open connections from one address, tunnels included."""

    connectionsPerTenant: Count = 20_000
    """Control and data connections of one tenant's agents."""

    streamsPerRunner: Count = 4096
    """Streams open to one runner."""

    streamsPerUser: Count = 1000
    """Streams that one user may have open through the stream gateway, dials included."""

    dials: Count = 5000
    """Dials that wait, or are not answered yet, in all."""

    bufferedBytes: Size = 512 * 1024 * 1024
    """Bytes that wait for peers to read, over all connections."""

    descriptorReserve: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)] = 0
    """Descriptors kept for control connections; 0 for a tenth of all."""
