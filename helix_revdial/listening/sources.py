# -*- test-case-name: tests.listening.test_sources -*-
"""Which proxies are believed: networks, single addresses, unix sockets."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from twisted.internet.interfaces import IAddress

from helix_revdial.listening.errors import ListenError

UNIX = "unix"
"""Stands for whoever may connect to a unix socket: its mode says who that is."""


class ProxySources:
    """The proxies that are believed."""

    def __init__(self, sources: Iterable[str], setting: str = "proxy_protocol") -> None:
        """
        @param sources: Such as C{"10.0.0.0/8"}, C{"192.0.2.7"}, C{"unix"}.
        @param setting: Where they stand, for whoever has to correct them.
        @raise ListenError: One of them is nothing of the kind, or there is none.
        """
        self._unix = False
        self._networks: list[IPv4Network | IPv6Network] = []
        for source in sources:
            if source == UNIX:
                self._unix = True
                continue
            try:
                self._networks.append(ip_network(source))
            except ValueError as error:
                raise ListenError(
                    f"{setting}: {source!r} is no network or address: {error}"
                ) from None
        if not self._unix and not self._networks:
            raise ListenError('proxy_protocol: "from" names no proxy: nobody could connect')

    def trusts(self, address: IAddress | None) -> bool:
        """Whether the peer of that address, as the socket has it, is one of the proxies."""
        host = getattr(address, "host", None)
        if not isinstance(host, str):
            return self._unix
        try:
            parsed = ip_address(host.partition("%")[0])
        except ValueError:
            return False
        if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
            # What a socket of both families calls an IPv4 peer.
            parsed = parsed.ipv4_mapped
        return any(parsed in network for network in self._networks)
