# -*- test-case-name: tests.integration.test_diagnosis -*-
"""
Whether TLS with a server comes about, who it shows that it is, and what to do where it
is not trusted.

A second handshake, which trusts everybody, looks at the certificate that was refused; no
byte of the agent's goes over it.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address

from cryptography import x509
from OpenSSL import SSL
from twisted.internet import error
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.endpoints import wrapClientTLS
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint

from ..revdial.client import ServerURL
from .failures import connectReason
from .findings import Finding, plain
from .probes import ANSWER, Handshake, Unverified, quiet
from .trust import NotTrusted, TrustPolicy, formatPin, pinOf

SOON = 14
"""Days before the end of a certificate from which on it is worth a warning."""


class TLSDiagnosis:
    """
    Of one server.
    """

    def __init__(
        self,
        clock: IReactorTime,
        server: ServerURL,
        trust: TrustPolicy,
        *,
        secured: Callable[[], IStreamClientEndpoint],
        plain: Callable[[], IStreamClientEndpoint],
        wallClock: Callable[[], float],
    ) -> None:
        """
        @param secured: The way to it, with TLS if the server has it.
        @param plain: The same way, without.
        @param wallClock: Seconds since 1970.
        """
        self._clock = clock
        self._server = server
        self._trust = trust
        self._open = secured
        self._plain = plain
        self._wallClock = wallClock

    async def finding(self) -> Finding:
        """How it is."""
        if not self._server.secure:
            return self._without()
        try:
            connection = await self._handshake(self._open())
        except Exception as failed:
            return await self._failed(failed)
        certificate = connection.certificate
        version = connection.version
        if certificate is None:
            return Finding("tls", "ok", version)
        about = certificate.to_cryptography()
        days = int((about.not_valid_after_utc.timestamp() - self._wallClock()) // 86_400)
        seen = f"{version}, {_described(about)} ({days} days)"
        if self._trust.insecure:
            return Finding(
                "tls",
                "warning",
                f"{seen}; NOT verified",
                f"trust this key in place of --insecure: --pin {formatPin(pinOf(certificate))}",
            )
        if days < SOON and not self._trust.pins:
            return Finding(
                "tls", "warning", seen, "have the server's certificate renewed, before it expires"
            )
        return Finding("tls", "ok", f"{seen}, trusted")

    def _without(self) -> Finding:
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

    async def _failed(self, failed: Exception) -> Finding:
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
            return Finding("tls", "failed", plain(seen), _advice(seen, pin))
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
        return Finding(
            "tls",
            "failed",
            f"no handshake: {plain(reason)}",
            "the port is open, and the handshake does not come through: what listens there is not "
            "the server, or hangs; or large packets get lost on the way, as over a VPN or tunnel: "
            "lower this host's MTU, or let ICMP pass",
        )

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


def _advice(seen: str, pin: str) -> str:
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
