# -*- test-case-name: tests.sessions.test_public_addresses -*-
"""
Where a server may connect to because a user said so.

A name that a user gives (a repository, a webhook) is resolved here, once, and
whoever connects uses the address that was found: a name that is resolved again
could lead elsewhere the second time.  Addresses that are not the Internet's
(loopback, private, link-local, those that only wrap one of them) are refused,
unless the operator has allowed their network.

Knows no HTTP and no git.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IReactorTime,
    IResolutionReceiver,
)
from twisted.python.failure import Failure
from zope.interface import implementer

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

RESOLVE_TIMEOUT: Final = 5.0
"""Seconds that a name may take to be resolved."""

MAX_ADDRESSES: Final = 32
"""Addresses of one name that are looked at."""

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


class AddressRefused(Exception):
    """A name leads nowhere, or where users may not send the server.  A sentence for people."""


def isPublic(address: Address, allowed: Sequence[Network] = ()) -> bool:
    """
    Whether the server may connect to an address on a user's word.

    @param allowed: networks that the operator has opened.
    """
    if any(address.version == network.version and address in network for network in allowed):
        return True
    if isinstance(address, ipaddress.IPv6Address):
        inner = _wrapped(address)
        if inner is not None:
            return isPublic(inner, allowed)
    return address.is_global and not address.is_multicast and not address.is_reserved


def _wrapped(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 one stands for, if it does."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


@implementer(IResolutionReceiver)
class _Addresses:
    """Collects what a resolver finds."""

    def __init__(self, done: Deferred[list[Address]]) -> None:
        self._done = done
        self._found: list[Address] = []
        self.resolution: IHostResolution | None = None

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        self.resolution = resolutionInProgress

    def addressResolved(self, address: IAddress) -> None:
        host = getattr(address, "host", None)
        if host is not None and len(self._found) < MAX_ADDRESSES:
            self._found.append(ipaddress.ip_address(host.partition("%")[0]))

    def resolutionComplete(self) -> None:
        if not self._done.called:
            self._done.callback(self._found)


async def publicAddress(
    resolver: IHostnameResolver,
    clock: IReactorTime,
    host: str,
    allowed: Sequence[Network] = (),
) -> Address:
    """
    The address to connect to for a host that a user named.

    @param host: a name, or an address as it stands in a URL (without brackets).
    @param allowed: networks that the operator has opened.
    @raise AddressRefused: when it has none, or one of them is not public: a
        name that leads both ways is a trick.
    """
    try:
        found = [ipaddress.ip_address(host)]
    except ValueError:
        found = await _resolve(resolver, clock, host)
    if not found:
        raise AddressRefused(f"the host {host} has no address")
    for address in found:
        if not isPublic(address, allowed):
            raise AddressRefused(
                f"the host {host} is at an address that is not public, which this server does "
                "not connect to"
            )
    return found[0]


async def _resolve(resolver: IHostnameResolver, clock: IReactorTime, host: str) -> list[Address]:
    done: Deferred[list[Address]] = Deferred()
    receiver = _Addresses(done)
    resolver.resolveHostName(receiver, host)

    def late(result: list[Address] | Failure, seconds: float) -> list[Address]:
        if receiver.resolution is not None:
            receiver.resolution.cancel()
        raise AddressRefused(f"the host {host} was not resolved within {seconds:g} seconds")

    return await done.addTimeout(RESOLVE_TIMEOUT, clock, onTimeoutCancel=late)
