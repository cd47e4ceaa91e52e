# -*- test-case-name: tests.agent.test_trust -*-
"""
Which servers an agent trusts, and who it says it is itself: one policy for every
TLS connection that it makes, control and data.

L{TrustPolicy} is what the operator said.  L{Trust} is that policy at work: it
reads the files, makes the TLS context once, and gives each host its own
L{IOpenSSLClientConnectionCreator}.  What the files and the pins say is read in
L{helix_revdial.agent.certificates}.

What is verified:

  - Without more: the certificate is for the host of the URL (RFC 9525, by
    service-identity), it is valid today, and an authority of the system signed
    it.
  - With a file or directory of authorities: one of those signed it, and no other.
  - With pins alone: the certificate's key is one of the pinned ones.  Who signed
    it, its name and its dates say nothing more than the key does, and are not
    looked at, so that a self-signed server can be used.
  - With pins and authorities: both.
  - C{insecure}: nothing, and each connection says so in the log.

Invariants:

  - There is no other way to a connection that is not verified.
  - A session is resumed only with the host, and under the policy, for which its
    first handshake was verified.
  - A file that changes is read anew at the next connection; where it has become
    unusable, what was read before stays, and the log says so.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from weakref import ref

from OpenSSL import SSL, crypto
from service_identity import VerificationError
from service_identity.hazmat import DNS_ID, IPAddress_ID, verify_service_identity
from service_identity.pyopenssl import extract_patterns
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    platformTrust,
    trustRootFromCertificates,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ..revdial.tls_endpoints import ISocketTLS
from .certificates import (
    TrustUnusable,
    certificatesBelow,
    certificatesIn,
    formatPin,
    parsePin,
    pinOf,
    readFile,
)

_KEY = re.compile(rb"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----")

_ENCRYPTED = re.compile(rb"-----BEGIN ENCRYPTED PRIVATE KEY-----|Proc-Type: 4,ENCRYPTED")

_NOT_YET = 9
_EXPIRED = 10

_CHAIN_ERRORS = {
    _NOT_YET: "is not valid yet; is a clock wrong?",
    _EXPIRED: "has expired",
    18: "is self-signed, and neither it nor its key is trusted here",
    19: "is signed by an authority that is not trusted here",
    20: "is signed by an authority that is not trusted here",
    21: "is signed by an authority that is not trusted here, or comes without the "
    "certificates in between",
    23: "has been revoked",
    26: "is not made for servers",
}
"""What OpenSSL's verification errors (X509_V_ERR of openssl/x509_vfy.h) mean."""


class NotTrusted(Exception):
    """A server's certificate is not what the policy wants; the text says why."""


@dataclass(frozen=True, slots=True)
class TrustPolicy:
    """
    Whom an operator wants trusted.

    @ivar caFile: Authorities to trust instead of the system's.
    @ivar caDirectory: A directory of files of such.
    @ivar pins: SHA-256 of the keys (SubjectPublicKeyInfo) that a server may have.
    @ivar clientCertificate: A file with the agent's own certificate, and those
        between it and its authority.
    @ivar clientKey: The file with its key, if that is another.
    @ivar insecure: Whether to trust everybody.
    """

    caFile: str | None = None
    caDirectory: str | None = None
    pins: tuple[bytes, ...] = ()
    clientCertificate: str | None = None
    clientKey: str | None = None
    insecure: bool = False

    def describe(self) -> str:
        """One line for people."""
        if self.insecure:
            return "everybody: TLS is NOT verified (--insecure)"
        parts = [each for each in (self.caFile, self.caDirectory) if each is not None]
        if self.pins:
            parts.append("the pinned keys " + ", ".join(formatPin(pin) for pin in self.pins))
        said = " and ".join(parts) or "the system's certificate authorities"
        if self.clientCertificate is not None:
            said += f"; own certificate {self.clientCertificate}"
        return said

    def warnings(self, credentials: str | None = None) -> list[str]:
        """
        What an operator should change, one line each.

        @param credentials: The service manager's directory of credentials, whose
            files are guarded otherwise than by their mode.
        """
        found = []
        if self.insecure:
            found.append(
                "--insecure: TLS certificates are NOT verified; whoever stands between this "
                "agent and its server can read its token and answer in the server's place"
            )
        key = self.clientKey or self.clientCertificate
        if key is not None:
            try:
                mode = stat.S_IMODE(os.stat(key).st_mode)
            except OSError:
                return found
            directory = os.path.dirname(os.path.realpath(key))
            guarded = credentials and directory == os.path.realpath(credentials)
            if mode & 0o077 and not guarded:
                found.append(f"the key {key}: mode {mode:04o} lets others use it; chmod 0600 {key}")
        return found


@dataclass(frozen=True, slots=True)
class _Material:
    """
    What the files of a policy hold, ready for use.

    @ivar signature: What tells that a file has changed since.
    """

    options: CertificateOptions
    signature: tuple[object, ...]


class Trust:
    """
    A policy at work.
    """

    _log = Logger()

    def __init__(self, policy: TrustPolicy) -> None:
        """
        @param policy: What the operator said.
        @raise TrustUnusable: A file cannot be used.
        """
        self.policy = policy
        self._material = self._load()

    def towards(self, host: str) -> IOpenSSLClientConnectionCreator:
        """
        How to speak TLS with C{host}.

        @param host: The name or address that the certificate must carry.
        """
        return _Verifying(self, host)

    def options(self) -> CertificateOptions:
        """What connections are made from, up to date with the files."""
        signature = self._signature()
        if signature != self._material.signature:
            try:
                self._material = self._load()
                self._log.info("TLS: the certificates were read anew")
            except TrustUnusable as error:
                # Not again for the same state of the files.
                self._material = _Material(self._material.options, signature)
                self._log.error(
                    "TLS: changed certificates cannot be used, those from before stay: {why}",
                    why=str(error),
                )
        return self._material.options

    def refusal(
        self, host: str, certificate: crypto.X509, number: int, depth: int, ok: bool
    ) -> str | None:
        """
        Judge one step of OpenSSL's verification.

        @param host: Who the certificate must be for.
        @param certificate: The certificate of this step.
        @param number: OpenSSL's error, if it is not C{ok}.
        @param depth: 0 for the server's own certificate.
        @return: Why it is refused, or C{None}.
        """
        policy = self.policy
        if policy.insecure:
            return None
        chained = not policy.pins or policy.caFile is not None or policy.caDirectory is not None
        if chained and not ok:
            return self._chainRefusal(certificate, number, depth)
        if depth != 0:
            return None
        if policy.pins:
            found = pinOf(certificate)
            if found not in policy.pins:
                return f"the server's key is {formatPin(found)}, which is not a pinned one"
        if chained and not _isFor(certificate, host):
            return f"the server's certificate is for another name than {host}"
        return None

    def _chainRefusal(self, certificate: crypto.X509, number: int, depth: int) -> str:
        about = certificate.to_cryptography()
        if depth != 0 and number in (_NOT_YET, _EXPIRED):
            name = about.subject.rfc4514_string()[:100]
            return f"the authority {name} of the server's certificate {_CHAIN_ERRORS[number]}"
        said = _CHAIN_ERRORS.get(number, f"cannot be verified (OpenSSL's error {number})")
        if number == _EXPIRED and depth == 0:
            said = f"expired on {about.not_valid_after_utc:%Y-%m-%d}"
        return f"the server's certificate {said}"

    def _load(self) -> _Material:
        policy, signature = self.policy, self._signature()
        keywords: dict[str, Any] = {}
        if policy.clientCertificate is not None:
            keywords |= _ownCertificate(policy.clientCertificate, policy.clientKey)
        authorities: list[Certificate] = []
        if policy.caFile is not None:
            authorities += certificatesIn(policy.caFile)
        if policy.caDirectory is not None:
            authorities += certificatesBelow(policy.caDirectory)
        if authorities:
            keywords["trustRoot"] = trustRootFromCertificates(authorities)
        elif not policy.pins and not policy.insecure:
            keywords["trustRoot"] = platformTrust()
        options = CertificateOptions(enableSessions=True, **keywords)
        try:
            options.getContext()
        except SSL.Error:
            raise TrustUnusable(
                f"{policy.clientKey or policy.clientCertificate}: is not the key of "
                f"{policy.clientCertificate}"
            ) from None
        return _Material(options, signature)

    def _signature(self) -> tuple[object, ...]:
        """The state of the files, without reading them."""
        policy = self.policy
        files = [policy.caFile, policy.caDirectory, policy.clientCertificate, policy.clientKey]
        found: list[object] = []
        for path in files:
            if path is None:
                continue
            try:
                status = os.stat(path)
                found.append((status.st_ino, status.st_size, status.st_mtime_ns))
            except OSError as error:
                found.append(error.errno)
        return tuple(found)


def _ownCertificate(path: str, keyPath: str | None) -> dict[str, Any]:
    """The agent's certificate and key, for L{CertificateOptions}."""
    own, *between = certificatesIn(path)
    content = readFile(keyPath or path)
    if _ENCRYPTED.search(content):
        raise TrustUnusable(
            f"{keyPath or path}: the key has a passphrase, which nobody is there to type; "
            "store it without one, mode 0600"
        )
    if not _KEY.search(content):
        hint = "" if keyPath else "; is it in a file of its own (--client-key)?"
        raise TrustUnusable(f"{keyPath or path}: holds no private key (PEM){hint}")
    try:
        key = crypto.load_privatekey(crypto.FILETYPE_PEM, content)
    except (crypto.Error, ValueError, TypeError):
        raise TrustUnusable(f"{keyPath or path}: the key in it is damaged") from None
    return {
        "privateKey": key,
        "certificate": own.original,
        "extraCertChain": [each.original for each in between],
    }


def _isFor(certificate: crypto.X509, host: str) -> bool:
    service: DNS_ID | IPAddress_ID
    try:
        ip_address(host)
    except ValueError:
        service = DNS_ID(host)
    else:
        service = IPAddress_ID(host)
    patterns: Sequence[Any] = extract_patterns(certificate)
    try:
        verify_service_identity(patterns, [service], [])
    except VerificationError:
        return False
    return True


class _Connection(SSL.Connection):
    """
    A connection that does not keep what it carries: Twisted gives each its
    protocol as application data, and the last one is kept for its session.
    """

    def set_app_data(self, data: Any) -> None:
        super().set_app_data(None if data is None else ref(data))

    def get_app_data(self) -> Any:
        data = super().get_app_data()
        return None if data is None else data()


@implementer(IOpenSSLClientConnectionCreator, ISocketTLS)
class _Verifying:
    """
    Makes the TLS connections to one host.
    """

    _log = Logger()

    def __init__(self, trust: Trust, host: str) -> None:
        self._trust = trust
        self._host = host
        try:
            ip_address(host)
            self._serverName = None
        except ValueError:
            self._serverName = host.encode("ascii")
        self._session: SSL.Session | None = None
        self._before: SSL.Connection | None = None
        self._madeFrom: CertificateOptions | None = None

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        """See L{IOpenSSLClientConnectionCreator}."""
        return self.connectionOnSocket(tlsProtocol, None)

    def connectionOnSocket(self, transport: Any, socket: Any) -> SSL.Connection:
        """See L{ISocketTLS}; without a socket, between two buffers in memory."""
        options = self._trust.options()
        if self._trust.policy.insecure:
            self._log.warn(
                "--insecure: connecting to {host} without verifying that it is {host}; whoever "
                "stands between can read the token and answer in its place",
                host=self._host,
            )
        connection = _Connection(options.getContext(), socket)
        if self._serverName is not None:
            connection.set_tlsext_host_name(self._serverName)
        connection.set_verify(
            SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, self._verifier(transport)
        )
        self._resume(connection, options)
        return connection

    def _resume(self, connection: SSL.Connection, options: CertificateOptions) -> None:
        """Take the session up that the connection before this one had, if it had one."""
        before = self._before
        if self._madeFrom is not options:
            self._session = None
        elif before is not None and before.get_peer_finished() is not None:
            # Both ends have finished the handshake, so the server was verified. Since
            # TLS 1.3 what makes a session fit to be resumed comes only later: that is
            # why it is fetched now, and not then.
            self._session = before.get_session()
        if self._session is not None:
            connection.set_session(self._session)
        self._before, self._madeFrom = connection, options

    def _verifier(self, tlsProtocol: Any) -> Callable[..., bool]:
        # The connection may be kept for its session; what it carries is not.
        carried = ref(tlsProtocol)

        def verify(
            connection: SSL.Connection, certificate: crypto.X509, number: int, depth: int, ok: int
        ) -> bool:
            # OpenSSL calls this: nothing may be raised.
            try:
                refusal = self._trust.refusal(self._host, certificate, number, depth, bool(ok))
            except Exception:
                self._log.failure("while a certificate was verified")
                refusal = "the server's certificate cannot be understood"
            if refusal is None:
                return True
            protocol = carried()
            if protocol is not None:
                protocol.failVerification(Failure(NotTrusted(refusal)))
            return False

        return verify


__all__ = [
    "NotTrusted",
    "Trust",
    "TrustPolicy",
    "TrustUnusable",
    "certificatesBelow",
    "certificatesIn",
    "formatPin",
    "parsePin",
    "pinOf",
]
