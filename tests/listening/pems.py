"""Certificates for the tests: one authority for each process, since keys take time to make."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)


@cache
def authority() -> trustme.CA:
    """Signs what these tests use."""
    return trustme.CA(organization_name="helix_revdial tests")


@cache
def otherAuthority() -> trustme.CA:
    """Nobody believes this one."""
    return trustme.CA(organization_name="strangers")


@cache
def leaf(*names: str, ends: datetime | None = None, number: int = 0) -> trustme.LeafCert:
    """
    A certificate for these names.

    @param number: Another number, another certificate.
    """
    return authority().issue_cert(*names, not_after=ends)


def write(path: Path, *pieces: bytes) -> Path:
    """A file of these pieces, private; its directory is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(pieces))
    path.chmod(0o600)
    return path


def chain(certificate: trustme.LeafCert) -> bytes:
    """Its certificates as PEM."""
    return b"".join(pem.bytes() for pem in certificate.cert_chain_pems)


def key(certificate: trustme.LeafCert) -> bytes:
    """Its key as PEM."""
    return certificate.private_key_pem.bytes()


def whole(certificate: trustme.LeafCert) -> bytes:
    """Certificates and key in one."""
    return chain(certificate) + key(certificate)


def authorityFile(path: Path) -> Path:
    """The authority's certificate as a file."""
    return write(path, authority().cert_pem.bytes())


def locked(certificate: trustme.LeafCert) -> bytes:
    """Its key with a passphrase."""
    return load_pem_private_key(key(certificate), None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
