# -*- test-case-name: tests.access.test_secrets -*-
"""
The secrets of tokens: how they are made, recognised, and kept out of texts.

A secret is C{hlx_} and 256 random bits in base64url (RFC 4648 section 5): 47
characters that fit in a header and a shell word, with a prefix by which
scanners for leaked secrets find it.

What is stored is its SHA-256.  With 256 random bits no slow hash is needed:
there is nothing to guess.  For imported secrets, which people may have chosen,
their length is up to whoever imports them.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Callable
from typing import Final

PREFIX: Final = "hlx_"

SECRET_BYTES: Final = 32

MIN_IMPORTED: Final = 8
MAX_IMPORTED: Final = 512

_ANYWHERE = re.compile(r"hlx_[A-Za-z0-9_-]{8,}")
_SECRET = re.compile(rf"[\x21-\x7e]{{{MIN_IMPORTED},{MAX_IMPORTED}}}")


def newSecret(random: Callable[[int], bytes] = os.urandom) -> str:
    """
    @param random: gives as many cryptographically random bytes as asked for.
    """
    encoded = base64.urlsafe_b64encode(random(SECRET_BYTES)).rstrip(b"=")
    return PREFIX + encoded.decode("ascii")


def isSecret(text: str) -> bool:
    """
    Whether C{text} can be the secret of any token, ours or imported: what
    cannot is refused without asking the database.
    """
    return _SECRET.fullmatch(text) is not None


def digestOf(secret: str) -> str:
    """The SHA-256 of a secret, in hexadecimal: what is stored and looked up."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def redact(text: str) -> str:
    """C{text} without any secret of ours that got into it."""
    return _ANYWHERE.sub("hlx_[redacted]", text)
