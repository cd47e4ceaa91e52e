# -*- test-case-name: tests.integration.test_diagnosis -*-
"""
Why an agent does not get through, or that it would.

L{diagnose} goes the way to a server one step after another, as an agent does, and
yields a L{Finding} for each: the name, each address, the proxy, TLS, HTTP, the
clock, the token, the upgrade in both forms, whether the path lets a connection be
idle; and the targets.  It is what C{helix diag} and C{--check} print.

Invariants:

  - A runner that is connected is not disturbed: upgrades are tried by a check
    (L{helix_revdial.revdial.checks}), which registers nobody and which servers that
    do not know it refuse.
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

from cryptography import x509
from OpenSSL import SSL
from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import (
    IProtocol,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Protocol
from twisted.internet.task import LoopingCall

from ..revdial.checks import CHECK_QUERY, Check, connectCheck
from ..revdial.client import ServerURL
from ..revdial.errors import DialError
from ..revdial.exchange import (
    CarrierURL,
    MalformedAnswer,
    UpgradeRefused,
)
from .failures import connectReason
from .findings import Finding, Heard, Outcome, judgeToken, judgeUpgrade, judgeVersion, plain
from .network import NetworkSettings, wayTo
from .probes import ANSWER, Addresses, Handshake, Leaving, Unverified, getPage, quiet
from .proxy import ProxyFailed
from .targets import LocalTarget, TargetAddress
from .token import TokenSource, TokenUnusable
from .trust import NotTrusted, TrustUnusable, formatPin, pinOf

STEP = 5.0
"""Seconds for a step: a name, a connection, an answer."""

MAX_ADDRESSES = 8
"""Addresses of a name that are tried."""

SOON = 14
"""Days before the end of a certificate from which on it is worth a warning."""

SKEW = 30.0
"""Seconds that two clocks may differ without a warning."""

KEEP_ALIVE = 15.0
"""Seconds between an agent's signs of life."""


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
        finding = await self._tls()
        yield finding
        if finding.outcome == "failed":
            return
        heard, finding = await self._version()
        yield finding
        if heard is not None:
            yield self._clocks(heard)
        if finding.outcome == "failed":
            return
        async for finding in self._upgrades():
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
        return _Tried(address, f"connected in {_milliseconds(self._clock.seconds() - began)}", "")

    async def _throughProxy(self, proxy: str | None) -> Finding:
        if proxy is None:
            return Finding("proxy", "ok", "none is configured")
        try:
            await self._plain().connect(quiet(Leaving))
        except ProxyFailed as failed:
            return Finding(
                "proxy",
                "failed",
                plain(str(failed)),
                "have the proxy allow CONNECT to the server's host and port; its user and password "
                "stand in --proxy-credentials; a server that needs no proxy belongs into "
                "NO_PROXY",
            )
        except Exception as failed:
            reason = connectReason(failed) or type(failed).__name__
            return Finding(
                "proxy", "failed", f"{proxy}: {plain(reason)}", "correct the proxy's URL (--proxy)"
            )
        return Finding("proxy", "ok", f"{proxy} leads to {self._server.host}:{self._server.port}")

    # TLS

    async def _tls(self) -> Finding:
        if not self._server.secure:
            return self._withoutTLS()
        try:
            connection = await self._handshake(self._open())
        except Exception as failed:
            return await self._tlsFailed(failed)
        certificate = connection.certificate
        version = connection.version
        if certificate is None:
            return Finding("tls", "ok", version)
        about = certificate.to_cryptography()
        days = int((about.not_valid_after_utc.timestamp() - self._wallClock()) // 86_400)
        seen = f"{version}, {_described(about)} ({days} days)"
        if self._subject.network.trust.insecure:
            return Finding(
                "tls",
                "warning",
                f"{seen}; NOT verified",
                f"trust this key in place of --insecure: --pin {formatPin(pinOf(certificate))}",
            )
        if days < SOON and not self._subject.network.trust.pins:
            return Finding(
                "tls", "warning", seen, "have the server's certificate renewed, before it expires"
            )
        return Finding("tls", "ok", f"{seen}, trusted")

    def _withoutTLS(self) -> Finding:
        host = self._server.host
        try:
            local = ip_address(host).is_loopback
        except ValueError:
            local = host == "localhost"
        if local:
            return Finding("tls", "ok", "not used, on this host's own address")
        return Finding(
            "tls",
            "warning",
            "not used: who listens on the way can read the token and the streams",
            "write https:// in the server URL, beyond a network of your own",
        )

    async def _tlsFailed(self, failed: Exception) -> Finding:
        if isinstance(failed, NotTrusted):
            seen = str(failed)
            try:
                other = await self._handshake(
                    wrapClientTLS(Unverified(self._server.host), self._plain())
                )
            except Exception:
                other = None
            pin = ""
            if other is not None and other.certificate is not None:
                seen += f"; it shows {_described(other.certificate.to_cryptography())}"
                pin = formatPin(pinOf(other.certificate))
            return Finding("tls", "failed", plain(seen), _tlsAdvice(seen, pin))
        if isinstance(failed, SSL.Error | error.ConnectionDone | error.ConnectionLost):
            reason = connectReason(failed) or "the connection was closed"
            return Finding(
                "tls",
                "failed",
                f"no handshake: {plain(reason)}",
                "does the port speak TLS? If not, write http:// or the right port. If it does, "
                "the server and the agent have no version of TLS in common, the server wants a "
                "client certificate (--client-certificate), or something in between cuts TLS off",
            )
        reason = connectReason(failed) or type(failed).__name__
        return Finding("tls", "failed", plain(reason), "see that the port is the server's")

    async def _handshake(self, endpoint: IStreamClientEndpoint) -> Handshake:
        protocol = Handshake()
        connecting = endpoint.connect(quiet(lambda: protocol))
        try:
            await connecting.addTimeout(ANSWER, self._clock)
            await protocol.done.addTimeout(ANSWER, self._clock)
        except DeferredTimeoutError:
            raise error.TimeoutError(f"no handshake within {ANSWER:g} s") from None
        finally:
            protocol.leave()
        return protocol

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
            return None, self._noAnswer("http", failed)
        return heard, judgeVersion(heard)

    def _noAnswer(self, what: str, failed: Exception) -> Finding:
        """Why there was no answer at all, though the port is open."""
        if isinstance(failed, MalformedAnswer):
            return Finding(
                what,
                "failed",
                f"what answers does not speak HTTP: {failed}",
                "see that host and port are the API's; a port for TLS needs https://",
            )
        if isinstance(failed, error.TimeoutError | DeferredTimeoutError):
            return Finding(
                what,
                "failed",
                f"connected, but no answer within {ANSWER:g} s",
                "the server hangs, or something in between swallows what it does not know: ask "
                "from another network, or over https",
            )
        reason = plain(connectReason(failed) or str(failed) or type(failed).__name__)
        return Finding(
            what,
            "failed",
            f"connected, then: {reason}",
            "something closes the connection instead of answering: a port for TLS needs https://; "
            "else a firewall or proxy in between does not let this through",
        )

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

    # The token and the upgrade

    async def _upgrades(self) -> AsyncIterator[Finding]:
        source, key = self._subject.token, self._subject.key
        if source is None:
            yield Finding("token", "skipped", "none was given", "give --token-file")
            yield Finding("upgrade", "skipped", "it needs a token")
            return
        try:
            token = source()
        except TokenUnusable as unusable:
            yield Finding("token", "failed", str(unusable), "put the token there, mode 0600")
            yield Finding("upgrade", "skipped", "it needs a token")
            return
        raw = await self._check("upgrade raw", token, webSocket=False)
        webSocket = await self._check("upgrade websocket", token, webSocket=True)
        try:
            yield self._token(key, raw, webSocket)
            for finding in self._weighed(raw, webSocket):
                yield finding
            if self._idle > 0:
                async for finding in self._idles(token, raw, webSocket):
                    yield finding
        finally:
            for each in (raw, webSocket):
                if each.check is not None:
                    await each.check.leave()

    async def _check(self, what: str, token: str, *, webSocket: bool) -> _Upgrade:
        url = self._server.carrierURL(f"?{CHECK_QUERY}={self._subject.key}")
        headers = [(b"Authorization", b"Bearer " + token.encode("ascii"))]
        try:
            check = await connectCheck(
                self._reactor, self._open(), url, headers, webSocket=webSocket, timeout=ANSWER
            )
        except UpgradeRefused as refused:
            heard = Heard(refused.status, refused.reason, refused.headers, refused.body)
            return _Upgrade(judgeUpgrade(heard, what), heard=heard)
        except Exception as failed:
            return _Upgrade(self._noAnswer(what, failed))
        try:
            roundTrip = await check.ask().addTimeout(STEP, self._clock)
        except Exception:
            await check.leave()
            return _Upgrade(
                Finding(
                    what,
                    "failed",
                    "it is answered, and then nothing comes through",
                    "something in between holds bytes back after the upgrade: have it pass "
                    "upgraded connections on as they are, without buffering (nginx: "
                    "proxy_buffering off)",
                )
            )
        if not check.isCheck:
            await check.leave()
            seen = "something other than a helix_revdial server took it"
            return _Upgrade(Finding(what, "failed", seen, "correct the server URL"))
        seen = f"passes; an answer takes {_milliseconds(roundTrip)}"
        return _Upgrade(Finding(what, "ok", seen), check=check)

    def _token(self, key: str, *upgrades: _Upgrade) -> Finding:
        for upgrade in upgrades:
            if upgrade.check is not None:
                if not key:
                    seen = "the server knows it; for which runners was not asked"
                    return Finding("token", "ok", seen, "")
                state = _STATES.get(upgrade.check.state, "")
                return Finding("token", "ok", f"may register {key}{state}")
            if upgrade.heard is not None:
                finding = judgeToken(upgrade.heard, key)
                if finding is not None:
                    return finding
        return Finding("token", "skipped", "the server was not asked: no upgrade came through")

    def _weighed(self, raw: _Upgrade, webSocket: _Upgrade) -> tuple[Finding, Finding]:
        """An upgrade that fails is no harm where the other does its work."""
        first, second = raw.finding, webSocket.finding
        if first.outcome == "failed" and second.outcome == "ok":
            advice = "agents use WebSocket here by themselves"
            first = Finding(first.check, "warning", first.seen, advice)
        if second.outcome == "failed" and first.outcome == "ok" and not self._server.secure:
            second = Finding(second.check, "warning", second.seen, "agents use raw bytes here")
        return first, second

    # Being idle

    async def _idles(
        self, token: str, raw: _Upgrade, webSocket: _Upgrade
    ) -> AsyncIterator[Finding]:
        """One connection says nothing; another, as an agent does, a word now and then."""
        silent = raw.check or webSocket.check
        if silent is None:
            yield Finding("idle", "skipped", "no connection came through")
            return
        other = await self._check("idle", token, webSocket=silent is webSocket.check)
        results = await gatherResults(
            [
                Deferred.fromCoroutine(self._hold(silent, None)),
                Deferred.fromCoroutine(self._hold(other.check, KEEP_ALIVE)),
            ]
        )
        if other.check is not None:
            await other.check.leave()
        for name, held, outcome, advice in (
            (
                "idle kept alive",
                results[1],
                "failed",
                "agents send a sign of life as often, and would be cut all the same: raise the "
                "limits of what stands in between (nginx: proxy_read_timeout 1h; HAProxy: "
                "timeout tunnel 1h)",
            ),
            (
                "idle silent",
                results[0],
                "warning",
                "control connections are kept alive, but a stream that is silent for as long is "
                "cut: raise the limits of what stands in between (nginx: proxy_read_timeout "
                "1h; HAProxy: timeout tunnel 1h)",
            ),
        ):
            if held is None:
                yield Finding(name, "skipped", "no connection came through")
            elif held.survived:
                yield Finding(name, "ok", f"held for {held.seconds:.0f} s")
            else:
                seen = f"cut after {held.seconds:.0f} s"
                yield Finding(name, cast(Outcome, outcome), seen, advice)

    async def _hold(self, check: Check | None, interval: float | None) -> _Held | None:
        if check is None:
            return None
        began = self._clock.seconds()
        loop: LoopingCall | None = None
        if interval is not None:
            loop = LoopingCall(check.askForLife)
            loop.clock = self._clock
            loop.start(interval).addErrback(lambda _: None)
        try:
            await check.whenLost().addTimeout(self._idle, self._clock)
        except DeferredTimeoutError:
            pass
        except Exception:
            return _Held(self._clock.seconds() - began, survived=False)
        finally:
            if loop is not None and loop.running:
                loop.stop()
        try:
            # A middlebox may have forgotten the connection and told nobody.
            await check.ask().addTimeout(STEP, self._clock)
        except Exception:
            return _Held(self._clock.seconds() - began, survived=False)
        return _Held(self._clock.seconds() - began, survived=True)


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


@dataclass(frozen=True, slots=True)
class _Upgrade:
    """How an upgrade came out."""

    finding: Finding
    check: Check | None = None
    heard: Heard | None = None


@dataclass(frozen=True, slots=True)
class _Held:
    """How long a connection lived."""

    seconds: float
    survived: bool


_STATES = {
    "connected": ", which is connected now",
    "grace": ", which was lost a moment ago and is awaited",
    "free": ", which is not connected now",
}


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def _described(about: x509.Certificate) -> str:
    """A certificate for people."""
    try:
        names = about.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        said = [str(each.value) for each in names]
    except (x509.ExtensionNotFound, ValueError):
        said = []
    more = f" and {len(said) - 4} more" if len(said) > 4 else ""
    named = ", ".join(said[:4]) + more if said else "no name"
    return (
        f"a certificate for {plain(named)} by {plain(about.issuer.rfc4514_string())[:100]}, valid "
        f"until {about.not_valid_after_utc:%Y-%m-%d}"
    )


def _tlsAdvice(seen: str, pin: str) -> str:
    if "another name" in seen:
        return "use a name of the certificate in the server URL, or have it made for this one"
    if "pinned" in seen:
        return (
            "if the server's key was changed on purpose, pin the new one; if not, somebody stands "
            "in between"
        )
    if "expired" in seen:
        return "have the server's certificate renewed; is this host's clock right?"
    if "not valid yet" in seen:
        return "set the clock of this host, or of the server that made the certificate"
    return (
        "name the file of the authority that signed it (--ca-file)"
        + (f", or, if you know that the key is the server's, --pin {pin}" if pin else "")
        + "; if neither is known, something in between may be opening TLS up"
    )


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
    took = _milliseconds(clock.seconds() - began)
    return Finding(f"target {name}", "ok", f"{address} accepts, in {took}")


__all__ = ["Finding", "Subject", "diagnose"]
