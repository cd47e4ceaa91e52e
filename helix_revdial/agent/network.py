# -*- test-case-name: tests.agent.test_network_settings -*-
"""
How an agent gets from its host to its servers: addresses, proxy, TLS.

L{NetworkSettings} is what the operator said; L{serversOf} makes the way to the
servers of it.

Invariants:

  - Control and data connections go the same way: one place makes the endpoints of
    both.
  - A server's name is resolved for each control connection, by the host; data
    connections go to where that one led, and ask for the name again only where nothing
    accepts there.  Where a proxy is used, names are its own business.
  - Every TLS connection to a server is judged by one L{Trust}, every one to a proxy
    by another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint

from ..revdial.client import ServerPath, ServerURL
from ..revdial.exchange import addressEndpoint
from ..revdial.offered import OfferedTarget
from ..revdial.server_peer import KnownPeer
from ..revdial.tls_endpoints import TLSClientEndpoint
from .failures import connectReason
from .proxies import CredentialsFile, ProxyChoice, ProxyURL
from .proxy import ProxyEndpoint
from .servers import Servers
from .trust import Trust, TrustPolicy


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """
    What an operator says about the way to the servers.

    @ivar servers: The addresses, the preferred first.
    @ivar trust: Which servers are trusted.
    @ivar proxies: Which proxy leads to which server.
    @ivar proxyCredentials: A file with a proxy's user and password.
    @ivar proxyTrust: Which proxies over TLS are trusted.
    @ivar zeroKey: Whether to offer the zero masking key.
    """

    servers: tuple[ServerURL, ...]
    trust: TrustPolicy = field(default_factory=TrustPolicy)
    proxies: ProxyChoice = field(default_factory=ProxyChoice)
    proxyCredentials: str | None = None
    proxyTrust: TrustPolicy = field(default_factory=TrustPolicy)
    zeroKey: bool = False

    def proxyOf(self, server: ServerURL) -> ProxyURL | None:
        """
        The proxy on the way to C{server}.

        @raise ValueError: The environment names one that cannot be.
        """
        return self.proxies.forServer(server.host, server.port, server.secure)

    def describe(self) -> list[tuple[str, str]]:
        """Rows for people, without secrets."""
        rows = []
        for server in self.servers:
            proxy = self.proxyOf(server)
            rows.append(("server", str(server) + (f" through the proxy {proxy}" if proxy else "")))
        rows.append(("trust", self.trust.describe()))
        return rows


def serversOf(
    reactor: Any,
    settings: NetworkSettings,
    token: Callable[[], str],
    key: str,
    targets: Sequence[OfferedTarget] = (),
) -> Servers:
    """
    The way to the servers.

    @param reactor: Opens sockets, resolves names and tells the time.
    @param token: Gives the token, at each attempt.
    @param key: The runner's key.
    @param targets: What the servers are told of its targets.
    @raise TrustUnusable: A file of certificates cannot be used.
    """
    trust = Trust(settings.trust)
    proxyTrust: Trust | None = None
    ways = []
    for server in settings.servers:
        proxy = settings.proxyOf(server)
        if proxy is not None and proxy.secure and proxyTrust is None:
            proxyTrust = Trust(settings.proxyTrust)
        peer = KnownPeer()
        endpoint = _endpoints(
            reactor, server, trust, proxy, settings.proxyCredentials, proxyTrust, peer
        )
        path = ServerPath(
            reactor,
            server,
            token,
            key=key,
            endpoint=endpoint,
            peer=peer,
            zeroKey=settings.zeroKey,
            targets=targets,
            # Many a proxy ends a tunnel when one direction ends.
            direct=proxy is None,
        )
        ways.append((server, path))
    return Servers(cast(IReactorTime, reactor), ways)


def wayTo(
    reactor: Any, server: ServerURL, settings: NetworkSettings, *, tls: bool = True
) -> Callable[[], IStreamClientEndpoint]:
    """
    What makes an endpoint for each connection to one of the servers.

    @param tls: Whether to speak TLS with a server that wants it.
    @raise TrustUnusable: A file of certificates cannot be used.
    @raise ValueError: The environment names a proxy that cannot be.
    """
    proxy = settings.proxyOf(server)
    proxyTrust = Trust(settings.proxyTrust) if proxy is not None and proxy.secure else None
    trust = Trust(settings.trust)
    seen = server if tls else replace(server, secure=False)
    return _endpoints(reactor, seen, trust, proxy, settings.proxyCredentials, proxyTrust)


def _endpoints(
    reactor: Any,
    server: ServerURL,
    trust: Trust,
    proxy: ProxyURL | None,
    credentials: str | None,
    proxyTrust: Trust | None,
    peer: KnownPeer | None = None,
) -> Callable[[], IStreamClientEndpoint]:
    """What makes an endpoint for each connection to C{server}."""
    # One for each host, so that its TLS session can be taken up again.
    toServer = trust.towards(server.host) if server.secure else None
    toProxy = proxyTrust.towards(proxy.host) if proxy and proxy.secure and proxyTrust else None
    login: Callable[[], bytes] | None = None
    if proxy is not None and credentials is not None:
        login = CredentialsFile(credentials)
    elif proxy is not None and proxy.credentials is not None:
        own = proxy.credentials

        def login() -> bytes:
            return own.reveal().encode()

    def endpoint() -> IStreamClientEndpoint:
        way: IStreamClientEndpoint
        if proxy is None:
            way = addressEndpoint(reactor, server.host, server.port, peer)
        else:
            way = addressEndpoint(reactor, proxy.host, proxy.port)
            if toProxy is not None:
                way = TLSClientEndpoint(reactor, toProxy, way)
            way = ProxyEndpoint(
                cast(IReactorTime, reactor),
                way,
                str(proxy),
                server.host,
                server.port,
                credentials=login,
                explain=connectReason,
            )
        return way if toServer is None else TLSClientEndpoint(reactor, toServer, way)

    return endpoint


__all__ = ["NetworkSettings", "serversOf", "wayTo"]
