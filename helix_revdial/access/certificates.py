# -*- test-case-name: tests.access.test_certificates -*-
"""
Client certificates in the place of tokens: who shows which.

A grant names a certificate, by its fingerprint or by a name that it is for, and
says whose it is, as a token's record would.  TLS has verified the certificate
against the door's authorities before it is looked at here, so a name is worth
what those authorities are.

A grant is a token family of its own: what was registered with a certificate is
taken over with any other that the grant names, and is cut when the grant goes.
Its id is made from what it names, so it is the same after a restart.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address

from cryptography import x509

from helix_revdial.access.principals import Principal
from helix_revdial.access.records import TokenError, newRecord

CERTIFICATE_FAMILY = "crt_"
"""How the families of grants begin, which are in no table of tokens."""

_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")
_NAME = re.compile(r"(dns|uri|email|ip):(\S{1,1000})")


class GrantError(ValueError):
    """A grant cannot be.  The text says which and what to do."""


@dataclass(frozen=True)
class CertificateGrant:
    """
    Whose a certificate is.

    @ivar names: The certificate: C{sha256:…} or C{dns:…}, C{uri:…}, C{email:…},
        C{ip:…}.
    @ivar principal: Who shows it.
    """

    names: str
    principal: Principal


def grant(
    *,
    fingerprint: str | None = None,
    subjectAltName: str | None = None,
    kind: str,
    patterns: Sequence[str] = (),
    user: str | None = None,
    role: str | None = None,
    tenant: str = "default",
) -> CertificateGrant:
    """
    A grant that keeps the rules of tokens.

    @param fingerprint: C{sha256:} and 64 hexadecimal digits, colons between
        pairs allowed.
    @param subjectAltName: C{dns:}, C{uri:}, C{email:} or C{ip:} and a name.
    @raise GrantError: It would not.
    """
    if (fingerprint is None) == (subjectAltName is None):
        raise GrantError("a client certificate is named by fingerprint or by subject_alt_name")
    names = _fingerprint(fingerprint) if fingerprint is not None else _name(subjectAltName or "")
    if kind not in ("runner", "user"):
        raise GrantError(f"{names}: a client certificate's kind is runner or user")
    if kind == "runner" and user is not None:
        raise GrantError(f"{names}: only a user's certificate has a user")
    identity = CERTIFICATE_FAMILY + hashlib.sha256(f"{tenant}\n{names}".encode()).hexdigest()[:26]
    try:
        record = newRecord(
            id=identity,
            family=identity,
            kind=kind,
            name=names[:200],
            tenant=tenant,
            user=user,
            role=role,
            patterns=patterns,
            session=None,
            created=0.0,
            expires=None,
        )
    except TokenError as error:
        raise GrantError(f"{names}: {error}") from None
    return CertificateGrant(names, record.principal())


def _fingerprint(text: str) -> str:
    algorithm, _, digits = text.strip().lower().partition(":")
    found = f"{algorithm}:{digits.replace(':', '')}"
    if _FINGERPRINT.fullmatch(found) is None:
        raise GrantError(f"{text!r} is no fingerprint: sha256: and 64 hexadecimal digits")
    return found


def _name(text: str) -> str:
    match = _NAME.fullmatch(text.strip())
    if match is None:
        raise GrantError(f"{text!r} is no name: dns:, uri:, email: or ip:, then the name")
    kind, value = match.groups()
    if kind == "ip":
        try:
            value = str(ip_address(value))
        except ValueError:
            raise GrantError(f"{text!r} is no IP address") from None
    return f"{kind}:{_canonical(kind, value)}"


def _canonical(kind: str, value: str) -> str:
    """DNS names and mail addresses have no letter case here; URIs are what they are."""
    return value.lower() if kind in ("dns", "email") else value


def fingerprintOf(der: bytes) -> str:
    """What a grant calls that certificate, and no other."""
    return "sha256:" + hashlib.sha256(der).hexdigest()


def _namesOf(certificate: x509.Certificate) -> list[str]:
    """The names that a certificate is for, as a grant has them."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (ValueError, x509.ExtensionNotFound):
        return []
    names = []
    for name in extension.value:
        match name:
            case x509.DNSName(value=value):
                names.append(f"dns:{_canonical('dns', value)}")
            case x509.UniformResourceIdentifier(value=value):
                names.append(f"uri:{value}")
            case x509.RFC822Name(value=value):
                names.append(f"email:{_canonical('email', value)}")
            case x509.IPAddress(value=value):
                names.append(f"ip:{value}")
    return names


class CertificateGrants:
    """
    All grants.

    @ivar principals: Who they are for, by family.
    """

    def __init__(self, grants: Iterable[CertificateGrant] = ()) -> None:
        """
        @raise GrantError: Two name the same certificate.
        """
        self._grants: dict[str, Principal] = {}
        for one in grants:
            if one.names in self._grants:
                raise GrantError(f"{one.names}: there are two grants for this certificate")
            self._grants[one.names] = one.principal
        self.principals = {one.family: one for one in self._grants.values()}

    def principalOf(self, der: bytes, now: float) -> Principal | None:
        """
        Who shows this certificate, which has been verified.

        A grant by fingerprint goes before one by name; of several names the
        certificate's first counts.

        @param now: Seconds since 1970: a certificate that has expired since its
            connection was made is nobody's.
        """
        if not self._grants:
            return None
        try:
            certificate = x509.load_der_x509_certificate(der)
        except ValueError:
            return None
        ends = certificate.not_valid_after_utc.timestamp()
        for name in (fingerprintOf(der), *_namesOf(certificate)):
            principal = self._grants.get(name)
            if principal is not None:
                return replace(principal, expires=ends) if now < ends else None
        return None

    def stillValid(self, principal: Principal) -> bool:
        """
        Whether what a principal was granted a moment ago is granted still.
        """
        granted = self.principals.get(principal.family)
        return granted is not None and replace(granted, expires=principal.expires) == principal

    def endedIn(self, later: CertificateGrants) -> frozenset[str]:
        """The families that are not what they were in a later table of grants."""
        return frozenset(
            family
            for family, principal in self.principals.items()
            if later.principals.get(family) != principal
        )
