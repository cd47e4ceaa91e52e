# -*- test-case-name: tests.listening.test_tls -*-
"""
TLS on a door: certificates by name, client certificates, replaced while it serves.

Everything of one reading of the files is one L{LoadedTLS}; L{ServerTLS} holds
the current one.  A connection keeps what it was accepted with, so a reload
disturbs nobody.

The options are those of Twisted's L{CertificateOptions
<twisted.internet.ssl.CertificateOptions>}: TLS 1.2 at least, ciphers with
forward secrecy, no compression (it would tell secrets by their length).  Sessions
are resumed by tickets, so that a dial does not pay for signatures; their key is that
of one reading of the files, and whom a session was verified as is part of it.  Only
the choice of an application protocol (RFC 7301) is ours: Twisted answers a caller that
offers any with an empty one, which OpenSSL takes for a fault, so that no browser could
come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from cryptography import x509
from OpenSSL import SSL
from OpenSSL.crypto import X509
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.ssl import CertificateOptions, TLSVersion
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from helix_revdial.listening import certificates
from helix_revdial.listening.certificates import Certified
from helix_revdial.listening.errors import ListenError
from helix_revdial.revdial.tls_endpoints import ISocketTLS

HTTP = b"http/1.1"

_MINIMUM = {"1.2": TLSVersion.TLSv1_2, "1.3": TLSVersion.TLSv1_3}


@dataclass(frozen=True)
class TLSSettings:
    """
    What TLS a door has.

    @ivar certificate: PEM file of a certificate and its chain.
    @ivar key: Its key's file; L{None} where it stands in the same file.
    @ivar directory: Instead: a directory, see
        L{certificates.readDirectory}.
    @ivar minimumVersion: C{"1.2"} or C{"1.3"}.
    @ivar clientCA: PEM file of the authorities whose client certificates are
        verified; without it none is asked for.
    @ivar clientCertificates: Whether a caller without one is turned away.
    """

    certificate: str | None = None
    key: str | None = None
    directory: str | None = None
    minimumVersion: str = "1.2"
    clientCA: str | None = None
    clientCertificates: Literal["required", "optional"] = "required"


@dataclass(frozen=True)
class LoadedTLS:
    """
    One reading of the files.

    @ivar options: Makes the connections, starting with the default certificate.
    @ivar certified: What was read, the default one first.
    @ivar complaints: What is suspicious; for the log.
    """

    options: CertificateOptions
    certified: tuple[Certified, ...]
    complaints: tuple[str, ...]


def load(settings: TLSSettings, now: Callable[[], datetime] = certificates.now) -> LoadedTLS:
    """
    Read the files and prepare everything that can fail.

    @raise ListenError: With what is wrong, and in which file.
    """
    if (settings.certificate is None) == (settings.directory is None):
        raise ListenError("tls: give either a certificate or a directory of certificates")
    if settings.key is not None and settings.certificate is None:
        raise ListenError("tls: a key belongs to a certificate; a directory has its own keys")
    if settings.minimumVersion not in _MINIMUM:
        raise ListenError(f"tls: minimum_version is one of {', '.join(_MINIMUM)}")
    if settings.certificate is not None:
        key = None if settings.key is None else Path(settings.key)
        certified = [certificates.readCertified(Path(settings.certificate), key)]
    else:
        certified = certificates.readDirectory(Path(settings.directory or ""))
    authorities: Sequence[x509.Certificate] = ()
    if settings.clientCA is not None:
        authorities = certificates.readAuthorities(Path(settings.clientCA))
    names = certificates.byName(certified)
    contexts: dict[int, SSL.Context] = {}

    def contextFor(name: bytes | None) -> SSL.Context | None:
        chosen = certificates.select(names, name)
        return None if chosen is None else contexts[id(chosen)]

    made = [_options(one, settings, authorities, contextFor) for one in certified]
    for one, options in zip(certified, made, strict=True):
        contexts[id(one)] = _context(one, options, authorities)
    moment = now()
    complaints = [text for one in certified for text in one.complaints(moment)]
    return LoadedTLS(made[0], tuple(certified), tuple(complaints))


def _options(
    certified: Certified,
    settings: TLSSettings,
    authorities: Sequence[x509.Certificate],
    contextFor: Callable[[bytes | None], SSL.Context | None],
) -> CertificateOptions:
    return CertificateOptions(
        privateKey=certified.key,
        # pyOpenSSL takes these as they are, and warns of its own; Twisted's types lag.
        certificate=certified.certificate,  # type: ignore[arg-type]
        extraCertChain=list(certified.chain),  # type: ignore[arg-type]
        verify=bool(authorities),
        requireCertificate=settings.clientCertificates == "required",
        caCerts=[X509.from_cryptography(one) for one in authorities] or None,
        raiseMinimumTo=_MINIMUM[settings.minimumVersion],
        contextForServerName=contextFor,
        # Sessions are resumed by what the caller keeps (RFC 8446, 2.2), not from here.
        enableSessionTickets=True,
    )


def _context(
    certified: Certified, options: CertificateOptions, authorities: Sequence[x509.Certificate]
) -> SSL.Context:
    try:
        context = options.getContext()
        context.set_alpn_select_callback(_protocolOf)
        for authority in authorities:
            # Told to the caller, so that one with several certificates can choose.
            context.add_client_ca(authority)
    except (SSL.Error, ValueError, TypeError) as error:
        raise ListenError(
            f"{certified.path}: OpenSSL does not take this certificate ({_reason(error)}); is its "
            "key long enough and its signature of today?"
        ) from None
    return context


def _protocolOf(connection: SSL.Connection, offered: list[bytes]) -> Any:
    """
    HTTP/1.1, which is what no protocol at all means, too.
    """
    return HTTP if HTTP in offered else SSL.NO_OVERLAPPING_PROTOCOLS


def _reason(error: Exception) -> str:
    queue = error.args[0] if error.args else ""
    if isinstance(queue, list) and queue:
        return str(queue[-1][-1])
    return str(queue) or type(error).__name__


@implementer(IOpenSSLServerConnectionCreator, ISocketTLS)
class ServerTLS:
    """
    What new connections of a door get.

    @ivar current: May be replaced at any time.
    """

    def __init__(self, current: LoadedTLS) -> None:
        self.current = current

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """See L{IOpenSSLServerConnectionCreator}."""
        return self.current.options.serverConnectionForTLS(tlsProtocol)

    def connectionOnSocket(self, transport: Any, socket: Any) -> SSL.Connection:
        """See L{ISocketTLS}."""
        return SSL.Connection(self.current.options.getContext(), socket)
