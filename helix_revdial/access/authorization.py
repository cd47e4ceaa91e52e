# -*- test-case-name: tests.access.test_authorization -*-
"""
Reading the C{Authorization} header, the one place where a token may be.

C{Bearer} is RFC 6750's scheme and what every Go client of this wire sends;
C{ApiKey} is what the REST service's clients send.  Scheme names have no case
(RFC 9110 section 11.1).
"""

from __future__ import annotations

import re
from typing import Final

MAX_CREDENTIALS: Final = 8192
"""Bytes of a token: ours have 47, a JSON web token may have thousands."""

_HEADER = re.compile(rb"[ \t]*(?:bearer|apikey)[ \t]+([\x21-\x7e]+)[ \t]*", re.IGNORECASE)


def parseAuthorization(header: bytes | None) -> str | None:
    """
    The token in an C{Authorization} header.

    @param header: the field's value, or C{None} where the request has none.
    @return: the token; C{None} when there is none, or the value has another
        form: another scheme, several words, bytes that no token has, or more
        than L{MAX_CREDENTIALS}.
    """
    if header is None or len(header) > MAX_CREDENTIALS + 64:
        return None
    match = _HEADER.fullmatch(header)
    if match is None or len(match[1]) > MAX_CREDENTIALS:
        return None
    return match[1].decode("ascii")
