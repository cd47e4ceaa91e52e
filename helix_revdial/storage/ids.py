# -*- test-case-name: tests.storage.test_ids -*-
"""
Identifiers of rows: a prefix that says what the row is, and a ULID.

C{ses_01HF7YAT31JSPVDRNZKB7MQJ5K}: 48 bits of milliseconds and 80 random bits
in Crockford's base 32 (the ULID specification), so that identifiers sort by
the time they were made to the millisecond, and cannot be guessed.  They are
names, not secrets: knowing one grants nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PREFIX = re.compile(r"[a-z]{2,8}")
_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")


def newId(prefix: str, seconds: float, random: Callable[[int], bytes] = os.urandom) -> str:
    """
    Make an identifier.

    @param prefix: two to eight lower-case letters, such as C{"ses"}.
    @param seconds: the time now, in seconds since the epoch.
    @param random: gives as many random bytes as asked for.
    @raise ValueError: for a prefix of another form, or a time that 48 bits of
        milliseconds cannot hold.
    """
    if _PREFIX.fullmatch(prefix) is None:
        raise ValueError(f"an identifier's prefix is 2 to 8 lower-case letters, not {prefix!r}")
    milliseconds = int(seconds * 1000)
    if not 0 <= milliseconds < 1 << 48:
        raise ValueError(f"{seconds!r} s is no time that an identifier can hold")
    number = milliseconds << 80 | int.from_bytes(random(10), "big")
    digits = "".join(ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))
    return f"{prefix}_{digits}"


def isId(text: str, prefix: str) -> bool:
    """
    Whether C{text} has the form of an identifier with this prefix.
    """
    start, separator, digits = text.partition("_")
    return start == prefix and separator == "_" and _ULID.fullmatch(digits) is not None
