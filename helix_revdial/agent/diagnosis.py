# -*- test-case-name: tests.integration.test_diagnosis -*-
"""
Why an agent does not get through, or that it would.

L{diagnose} goes the way to a server one step after another, as an agent does, and
yields a L{Finding} for each: the name, each address, the proxy, TLS, HTTP, the
clock, the token, the upgrade in both forms, whether the path lets a connection be
idle; and the targets.  It is what C{helix diag} and C{--check} print.

Invariants:

  - A runner that is connected is not disturbed
    (L{UpgradeDiagnosis <helix_revdial.agent.upgrade_diagnosis.UpgradeDiagnosis>}).
  - The token goes where the agent would send it, after the same verification; where
    TLS failed it goes nowhere.  It is in no finding.
  - Each step has a time limit, and what it opened is closed when it is over.
  - A step that needs one that failed is not tried, and not reported as failed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any, cast

from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.interfaces import (
    IProtocol,
    IReactorTime,
)
from twisted.internet.protocol import Protocol

from ..revdial.client import ServerURL
from ..revdial.errors import DialError
from ..revdial.exchange import (
    CarrierURL,
)
from .failures import connectReason
from .findings import (
    Finding,
    Heard,
    judgeProxy,
    judgeVersion,
    milliseconds,
    plain,
)
from .network import NetworkSettings, wayTo
from .probes import (
    ANSWER,
    STEP,
    Addresses,
    Leaving,
    getPage,
    noAnswer,
    quiet,
)
from .proxy import ProxyFailed
from .targets import LocalTarget, TargetAddress
from .tls_diagnosis import TLSDiagnosis
from .token import TokenSource
from .trust import TrustUnusable
from .upgrade_diagnosis import UpgradeDiagnosis

MAX_ADDRESSES = 8
"""Addresses of a name that are tried."""

SKEW = 30.0
"""Seconds that two clocks may differ without a warning."""


@dataclass(frozen=True)
class Subject:
    """
    What is looked at: an agent's settings, or a part of them.

    @ivar network: The servers and the way there.
    @ivar key: The runner's key, or nothing.
    @ivar token: Gives the token, if there is one.
    @ivar targets: The local services by name.
    """

    network: NetworkSettings
    key: str = ""
    token: TokenSource | None = None
    targets: Mapping[str, TargetAddress] = field(default_factory=dict)


async def diagnose(
    reactor: Any, subject: Subject, *, wallClock: Callable[[], float], idle: float = 0.0
) -> AsyncIterator[Finding]:
    """
    Look at everything.

    @param reactor: Opens sockets, resolves names and tells the time.
    @param wallClock: Seconds since 1970.
    @param idle: Seconds to hold a connection idle; 0 for not at all.
    """
    for server in subject.network.servers:
        if len(subject.network.servers) > 1:
            yield Finding("server", "ok", str(server))
        way = _Way(reactor, subject, server, wallClock, idle)
        async for finding in way.findings():
            yield finding
    for name, address in subject.targets.items():
        yield await _target(reactor, name, address)


class _Way:
    """The way to one server."""

    def __init__(
        self,
        reactor: Any,
        subject: Subject,
        server: ServerURL,
        wallClock: Callable[[], float],
        idle: float,
    ) -> None:
        self._reactor = reactor
        self._clock = cast(IReactorTime, reactor)
        self._subject = subject
        self._server = server
        self._wallClock = wallClock
        self._idle = idle

    async def findings(self) -> AsyncIterator[Finding]:
        """One after the other, until one is in the way of the rest."""
        network, server = self._subject.network, self._server
        try:
            proxy = network.proxyOf(server)
            self._open = wayTo(self._reactor, server, network)
            self._plain = wayTo(self._reactor, server, network, tls=False)
        except (ValueError, TrustUnusable) as unusable:
            yield Finding("settings", "failed", str(unusable), "correct the settings")
            return
        host, port = (proxy.host, proxy.port) if proxy else (server.host, server.port)
        named = f"the proxy {proxy}" if proxy else str(server)
        addresses, finding = await self._resolve(host, port)
        yield finding
        if finding.outcome == "failed":
            return
        finding = await self._connect(addresses, port, named)
        yield finding
        if finding.outcome == "failed":
            return
        finding = await self._throughProxy(None if proxy is None else str(proxy))
        yield finding
        if finding.outcome == "failed":
            return
        finding = await TLSDiagnosis(
            self._clock,
            server,
            network.trust,
            secured=self._open,
            plain=self._plain,
            wallClock=self._wallClock,
        ).finding()
        yield finding
        if finding.outcome == "failed":
            return
        heard, finding = await self._version()
        yield finding
        if heard is not None:
            yield self._clocks(heard)
        if finding.outcome == "failed":
            return
        upgrades = UpgradeDiagnosis(
            self._reactor,
            server,
            self._open,
            key=self._subject.key,
            token=self._subject.token,
            idle=self._idle,
        )
        async for finding in upgrades.findings():
            yield finding

    # The name

    async def _resolve(self, host: str, port: int) -> tuple[list[str], Finding]:
        try:
            ip_address(host)
            return [host], Finding("name", "ok", f"{host} is an address")
        except ValueError:
            pass
        receiver = Addresses()
        self._reactor.nameResolver.resolveHostName(receiver, host, port)
        try:
            found = await receiver.done.addTimeout(STEP, self._clock)
        except (DeferredTimeoutError, CancelledError):
            return [], Finding(
                "name",
                "failed",
                f"{host}: no answer from the name servers within {STEP:g} s",
                "see that the host's name servers answer (/etc/resolv.conf)",
            )
        if not found:
            return [], Finding(
                "name",
                "failed",
                f"{host} does not resolve",
                "correct the name, or make it known to this host: DNS, /etc/hosts; in a container, "
                "the network's own names",
            )
        return found, Finding("name", "ok", f"{host} is {', '.join(found)}")

    # The addresses

    async def _connect(self, addresses: list[str], port: int, named: str) -> Finding:
        tried = addresses[:MAX_ADDRESSES]
        results: list[_Tried] = await gatherResults(
            [Deferred.fromCoroutine(self._try(address, port)) for address in tried]
        )
        seen = "; ".join(f"{each.address} {each.words}" for each in results)
        failures = {each.failure for each in results}
        if failures == {""}:
            return Finding("connect", "ok", f"port {port}: {seen}")
        advice = _CONNECT_ADVICE[max(failures, key=list(_CONNECT_ADVICE).index)]
        advice = advice.format(port=port, named=named)
        if "" in failures:
            return Finding(
                "connect",
                "warning",
                f"port {port}: {seen}",
                f"agents use the addresses that work; of the others: {advice}",
            )
        return Finding("connect", "failed", f"port {port}: {seen}", advice)

    async def _try(self, address: str, port: int) -> _Tried:
        kind = TCP6ClientEndpoint if ":" in address else TCP4ClientEndpoint
        began = self._clock.seconds()
        try:
            endpoint = kind(self._reactor, address, port, timeout=STEP)
            await endpoint.connect(quiet(Leaving))
        except Exception as failed:
            reason = connectReason(failed) or type(failed).__name__
            if isinstance(failed, error.TimeoutError):
                return _Tried(address, f"no answer within {STEP:g} s", "blocked")
            refused = isinstance(failed, error.ConnectionRefusedError)
            return _Tried(address, reason, "refused" if refused else "unreachable")
        return _Tried(address, f"connected in {milliseconds(self._clock.seconds() - began)}", "")

    async def _throughProxy(self, proxy: str | None) -> Finding:
        if proxy is None:
            return Finding("proxy", "ok", "none is configured")
        try:
            await self._plain().connect(quiet(Leaving))
        except ProxyFailed as failed:
            return judgeProxy(failed, f"{self._server.host}:{self._server.port}")
        except Exception as failed:
            reason = connectReason(failed) or type(failed).__name__
            return Finding(
                "proxy", "failed", f"{proxy}: {plain(reason)}", "correct the proxy's URL (--proxy)"
            )
        return Finding("proxy", "ok", f"{proxy} leads to {self._server.host}:{self._server.port}")

    # HTTP

    async def _version(self) -> tuple[Heard | None, Finding]:
        url = CarrierURL(
            self._server.host,
            self._server.port,
            self._server.secure,
            f"{self._server.basePath}/api/v1/version",
        )
        try:
            heard = await getPage(self._reactor, self._open(), url, limit=ANSWER)
        except Exception as failed:
            return None, noAnswer("http", failed)
        return heard, judgeVersion(heard)

    def _clocks(self, heard: Heard) -> Finding:
        try:
            theirs = parsedate_to_datetime(heard.header(b"date")).timestamp()
        except (ValueError, TypeError):
            return Finding("clock", "skipped", "the answer has no date")
        skew = self._wallClock() - theirs
        words = f"this host is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the server"
        if abs(skew) <= SKEW:
            return Finding("clock", "ok", words if abs(skew) >= 2 else "as the server's")
        return Finding(
            "clock",
            "warning",
            words,
            "set the clock (NTP): certificates and tokens that expire are judged by it",
        )


@dataclass(frozen=True, slots=True)
class _Tried:
    """@ivar failure: Empty for none, or a key of L{_CONNECT_ADVICE}."""

    address: str
    words: str
    failure: str


_CONNECT_ADVICE = {
    "": "",
    "refused": "nothing listens on port {port} there, or a firewall turns it away: is the server "
    "running, and is {named} the right address?",
    "unreachable": "there is no way from this host's network to that address: look at its routes, "
    "VPN and, for IPv6, whether it has any",
    "blocked": "packets get lost on the way: a firewall or security group blocks port {port}, or "
    "the address is wrong. Open the port outwards, or name a proxy (--proxy)",
}
"""What to do about an address, the graver the later."""


async def _target(reactor: Any, name: str, address: TargetAddress) -> Finding:
    """Whether a local service accepts."""
    clock = cast(IReactorTime, reactor)

    def pair(clock: IReactorTime, *, linger: float) -> tuple[IProtocol, IProtocol]:
        return cast(IProtocol, Leaving()), cast(IProtocol, Protocol())

    began = clock.seconds()
    try:
        await LocalTarget(reactor, address, timeout=STEP, pair=pair).open()
    except DialError as failed:
        return Finding(
            f"target {name}",
            "failed",
            plain(str(failed)),
            "start the service, or correct the target's address; on a unix socket, let the "
            "agent's user connect",
        )
    took = milliseconds(clock.seconds() - began)
    return Finding(f"target {name}", "ok", f"{address} accepts, in {took}")


__all__ = ["Finding", "Subject", "diagnose"]
