# -*- test-case-name: tests.listening.test_certificates -*-
"""
Certificates and keys as they lie in files.

What is read here is checked here: that a key belongs to its certificate, that
there is no passphrase, that a name is served by one certificate.  Errors name
the file and never hold what stands in it.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from helix_revdial.listening.errors import ListenError

MAX_FILE = 1024 * 1024
"""Bytes of a file; a bundle of all the public authorities has a quarter of that."""

MAX_CERTIFICATES = 1000
"""Certificates of a directory."""

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)


@dataclass(frozen=True)
class Certified:
    """
    A certificate with its key.

    @ivar path: The file it is from.
    @ivar chain: What follows it, up to an authority.
    @ivar names: The DNS names it is for, in lower case; C{*.} begins a wildcard.
    @ivar keyPath: The file that the key is from.
    @ivar exposed: Whether everybody on this machine can read the key.
    """

    path: Path
    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    key: Any
    names: tuple[str, ...]
    keyPath: Path
    exposed: bool

    @property
    def ends(self) -> datetime:
        """When it expires, in UTC."""
        return self.certificate.not_valid_after_utc

    def complaints(self, now: datetime) -> Iterator[str]:
        """What is suspicious, though it can be used."""
        if now > self.ends:
            yield f"{self.path}: the certificate expired on {self.ends:%Y-%m-%d}"
        if now < self.certificate.not_valid_before_utc:
            yield f"{self.path}: the certificate is not valid yet"
        if self.exposed:
            yield f"{self.keyPath}: everybody on this machine can read this private key"


def readCertified(certificateFile: Path, keyFile: Path | None = None) -> Certified:
    """
    Read a certificate, its chain and its key.

    @param keyFile: L{None} when the key stands in the certificate's file.
    @raise ListenError: With the file that is wrong.
    """
    data = _read(certificateFile)
    certificates = _certificates(certificateFile, data)
    if not certificates:
        raise ListenError(f"{certificateFile}: there is no certificate in it")
    keyPath = keyFile or certificateFile
    key = _key(keyPath, data if keyFile is None else _read(keyFile))
    if _publicBytes(key.public_key()) != _publicBytes(certificates[0].public_key()):
        raise ListenError(
            f"{keyPath}: the key does not belong to the first certificate of {certificateFile}"
        )
    return Certified(
        certificateFile,
        certificates[0],
        tuple(certificates[1:]),
        key,
        _names(certificates[0]),
        keyPath,
        _exposed(keyPath),
    )


def readAuthorities(path: Path) -> list[x509.Certificate]:
    """
    Read the certificates of authorities.

    @raise ListenError: There is none, or the file cannot be read.
    """
    certificates = _certificates(path, _read(path))
    if not certificates:
        raise ListenError(f"{path}: there is no certificate in it")
    return certificates


def readDirectory(directory: Path) -> list[Certified]:
    """
    Read every certificate of a directory.

    It holds C{NAME.pem} with certificate, chain and key; or C{NAME.pem} or
    C{NAME.crt} beside C{NAME.key}; or C{NAME/fullchain.pem} with
    C{NAME/privkey.pem}, as ACME clients leave them.  Other files are left alone.

    @return: The default one first: it is called C{default}, or is the first by name.
    @raise ListenError: One of them is wrong, or there is none.
    """
    try:
        entries = sorted(directory.iterdir())
        pairs = [pair for entry in entries if (pair := _pair(entry)) is not None]
    except OSError as error:
        raise ListenError(f"{directory}: {error.strerror or error}") from None
    if not pairs:
        raise ListenError(
            f"{directory}: there is no certificate in it (NAME.pem with its key, NAME.pem or "
            "NAME.crt with NAME.key, or NAME/fullchain.pem with NAME/privkey.pem)"
        )
    if len(pairs) > MAX_CERTIFICATES:
        raise ListenError(f"{directory}: more than {MAX_CERTIFICATES} certificates")
    pairs.sort(key=lambda pair: pair[0] != "default")
    return [readCertified(certificate, key) for _, certificate, key in pairs]


def _pair(entry: Path) -> tuple[str, Path, Path | None] | None:
    """Name, certificate and key, if that is what the entry stands for."""
    if entry.name.startswith("."):
        return None
    if entry.is_dir():
        chain, key = entry / "fullchain.pem", entry / "privkey.pem"
        return (entry.name, chain, key) if chain.exists() and key.exists() else None
    if entry.suffix not in (".pem", ".crt"):
        return None
    key = entry.with_suffix(".key")
    return entry.stem, entry, key if key.exists() else None


def byName(certified: Sequence[Certified]) -> dict[str, Certified]:
    """Which one serves a name: of several, the one that is valid longest."""
    found: dict[str, Certified] = {}
    for one in certified:
        for name in one.names:
            other = found.get(name)
            if other is None or one.ends > other.ends:
                found[name] = one
    return found


def select(names: dict[str, Certified], wanted: bytes | None) -> Certified | None:
    """
    The certificate for the name that a caller asks for (RFC 6066, 3): its own, or
    a wildcard's, which stands for one label (RFC 9525, 6.3).
    """
    if wanted is None:
        return None
    try:
        name = wanted.decode("ascii").lower().rstrip(".")
    except UnicodeDecodeError:
        return None
    _, _, parent = name.partition(".")
    return names.get(name) or names.get(f"*.{parent}")


def now() -> datetime:
    """The time of day, which certificates are judged by."""
    return datetime.now(UTC)


def _exposed(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False  # replaced since it was read: the next reading tells


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ListenError(f"{path}: {error.strerror or error}") from None
    if len(data) > MAX_FILE:
        raise ListenError(f"{path}: more than {MAX_FILE:,} bytes: this is no certificate or key")
    return data


def _certificates(path: Path, data: bytes) -> list[x509.Certificate]:
    found = []
    for match in _BLOCK.finditer(data):
        if match[1] in (b"CERTIFICATE", b"X509 CERTIFICATE"):
            try:
                found.append(x509.load_pem_x509_certificate(match[0]))
            except ValueError:
                raise ListenError(f"{path}: a certificate in it cannot be read") from None
    return found


def _key(path: Path, data: bytes) -> Any:
    blocks = [match[0] for match in _BLOCK.finditer(data) if match[1].endswith(b"PRIVATE KEY")]
    if len(blocks) != 1:
        raise ListenError(f"{path}: there must be one private key in it; there are {len(blocks)}")
    try:
        return load_pem_private_key(blocks[0], None)
    except TypeError:
        raise ListenError(
            f"{path}: the private key has a passphrase; the server needs one without"
        ) from None
    except Exception:
        raise ListenError(f"{path}: the private key cannot be read") from None


def _publicBytes(key: Any) -> bytes:
    encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError):
        return ()
    return tuple(name.lower() for name in extension.value.get_values_for_type(x509.DNSName))
