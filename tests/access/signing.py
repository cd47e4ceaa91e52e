"""Keys, key sets and JSON web tokens for the tests; keys take time to make."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

SECRET = b"0123456789abcdef0123456789abcdef"

ISSUER = "https://id.example/"
AUDIENCE = "helix"


@cache
def rsaKey(number: int = 0, bits: int = 2048) -> rsa.RSAPrivateKey:
    """A key; another number, another key."""
    return rsa.generate_private_key(65537, bits)


@cache
def ecKey() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@cache
def edKey() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


def publicPEM(key: Any) -> bytes:
    """What an attacker would use for a secret."""
    found: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return found


_KINDS: Any = {
    rsa.RSAPrivateKey: jwt.algorithms.RSAAlgorithm,
    ec.EllipticCurvePrivateKey: jwt.algorithms.ECAlgorithm,
    ed25519.Ed25519PrivateKey: jwt.algorithms.OKPAlgorithm,
}


def jwk(key: Any, **members: Any) -> dict[str, Any]:
    """A public key as a key set has it."""
    kind = next(found for type_, found in _KINDS.items() if isinstance(key, type_))
    return {**kind.to_jwk(key.public_key(), as_dict=True), **members}


def keySet(*keys: dict[str, Any]) -> bytes:
    """What an issuer serves."""
    return json.dumps({"keys": keys}).encode()


def claims(now: float, **changed: Any) -> dict[str, Any]:
    """Those of a good token; C{None} takes one away."""
    found = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "ann",
        "exp": now + 60,
        "roles": ["operator"],
        **changed,
    }
    return {name: value for name, value in found.items() if value is not None}


def token(claims: dict[str, Any], key: Any = SECRET, algorithm: str = "HS256", **head: Any) -> str:
    """Sign them."""
    return jwt.encode(claims, key, algorithm, headers=head)
