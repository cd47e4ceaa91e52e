# -*- test-case-name: tests.agent.test_trust -*-
"""
Which certificate authorities an agent trusts.

The system's, unless the operator names a file: then those in the file and no
others.  There is no way to trust everybody.
"""

from __future__ import annotations

import re

from OpenSSL import crypto
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates

MAX_FILE = 4 * 1024 * 1024
"""Bytes of a file of certificates that are read; a whole system's have under one MiB."""

_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----\s.*?\s-----END CERTIFICATE-----", re.DOTALL)


class TrustUnusable(Exception):
    """The file of certificates cannot be used; the text says why."""


def certificatesIn(path: str) -> list[Certificate]:
    """
    Read a file of certificates.

    @param path: A PEM file of one or more.
    @raise TrustUnusable: It cannot be read or holds none.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_FILE)
    except OSError as error:
        reason = (error.strerror or "cannot be read").lower()
        raise TrustUnusable(f"{path}: {reason}") from None
    try:
        found = [Certificate.loadPEM(block) for block in _BLOCK.findall(content)]
    except (crypto.Error, ValueError):
        raise TrustUnusable(f"{path}: a certificate in it is damaged") from None
    if not found:
        raise TrustUnusable(f"{path}: holds no certificate (PEM)")
    return found


def tlsOptionsFor(host: str, caFile: str | None) -> IOpenSSLClientConnectionCreator:
    """
    How to speak TLS with a server: its name verified, its authority trusted.

    @param host: The name or address that the certificate must carry.
    @param caFile: Trust these authorities only, or the system's for C{None}.
    @raise TrustUnusable: The file cannot be used.
    """
    if caFile is None:
        return optionsForClientTLS(host)
    return optionsForClientTLS(host, trustRoot=trustRootFromCertificates(certificatesIn(caFile)))


__all__ = ["TrustUnusable", "certificatesIn", "tlsOptionsFor"]
