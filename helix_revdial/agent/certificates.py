# -*- test-case-name: tests.agent.test_trust -*-
"""
Certificates and pins, as files and settings have them.

Nothing here says whom to trust, which is L{helix_revdial.agent.trust}'s.

Invariants:

  - What cannot be used is a L{TrustUnusable} that names the file; no text has any
    of a file's content.
  - Of a file and of a directory a limited amount is read.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Iterator

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from OpenSSL import crypto
from twisted.internet.ssl import (
    Certificate,
)

MAX_FILE = 4 * 1024 * 1024
"""Bytes of a file of certificates that are read; a whole system's have under one MiB."""

MAX_DIRECTORY = 1000
"""Files that are read of a directory of certificates."""

_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----\s.*?\s-----END CERTIFICATE-----", re.DOTALL)


class TrustUnusable(Exception):
    """A file that trust is to come from cannot be used; the text says why."""


def parsePin(text: str) -> bytes:
    """
    Read C{sha256/BASE64}, as curl, Chromium and RFC 7469 write the hash of a key.

    @raise ValueError: It is not that.
    """
    kind, _, value = text.strip().partition("/")
    if len(value) == 45 and value.startswith("/"):
        # curl writes two slashes; base64 itself may begin with one.
        value = value[1:]
    try:
        digest = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if kind.lower() != "sha256" or len(digest) != hashlib.sha256().digest_size:
        raise ValueError(
            f"{text[:100]!r}: a pin is sha256/ and the base64 of the SHA-256 of the server's "
            "public key, 44 characters"
        )
    return digest


def formatPin(digest: bytes) -> str:
    """The other way."""
    return "sha256/" + base64.b64encode(digest).decode("ascii")


def pinOf(certificate: crypto.X509) -> bytes:
    """The SHA-256 of a certificate's SubjectPublicKeyInfo."""
    key = certificate.to_cryptography().public_key()
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).digest()


def certificatesIn(path: str) -> list[Certificate]:
    """
    Read a file of certificates.

    @param path: A PEM file of one or more.
    @raise TrustUnusable: It cannot be read or holds none.
    """
    content = readFile(path)
    try:
        found = [Certificate.loadPEM(block) for block in _BLOCK.findall(content)]
    except (crypto.Error, ValueError):
        raise TrustUnusable(f"{path}: a certificate in it is damaged") from None
    if not found:
        raise TrustUnusable(f"{path}: holds no certificate (PEM)")
    return found


def certificatesBelow(path: str) -> list[Certificate]:
    """
    Read the C{.pem} and C{.crt} files of a directory.

    @raise TrustUnusable: It cannot be read, holds no such file, or one of them
        cannot be used.
    """
    files = list(_filesBelow(path))
    if not files:
        raise TrustUnusable(f"{path}: holds no .pem or .crt file")
    return [each for file in files for each in certificatesIn(file)]


def _filesBelow(path: str) -> Iterator[str]:
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        raise TrustUnusable(f"{path}: {_reason(error)}") from None
    found = [name for name in names if name.endswith((".pem", ".crt"))]
    if len(found) > MAX_DIRECTORY:
        raise TrustUnusable(f"{path}: holds more than {MAX_DIRECTORY} files")
    return (os.path.join(path, name) for name in found)


def readFile(path: str) -> bytes:
    """
    Read the beginning of a file, L{MAX_FILE} bytes at most.

    @raise TrustUnusable: It cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read(MAX_FILE)
    except OSError as error:
        raise TrustUnusable(f"{path}: {_reason(error)}") from None


def _reason(error: OSError) -> str:
    return (error.strerror or "cannot be read").lower()


__all__ = [
    "TrustUnusable",
    "certificatesBelow",
    "certificatesIn",
    "formatPin",
    "parsePin",
    "pinOf",
    "readFile",
]
