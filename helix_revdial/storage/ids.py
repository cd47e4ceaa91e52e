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
from collections import deque
from collections.abc import Callable

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_RANDOM = 10
_PAIRS = [high + low for high in ALPHABET for low in ALPHABET]
_PREFIX = re.compile(r"[a-z]{2,8}")
_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")


class _Ahead:
    """
    Random bytes of the system, fetched ahead for many identifiers: each system call
    gives the interpreter away to another thread, and waits to have it back.
    """

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        # A child's identifiers are not its parent's.
        os.register_at_fork(after_in_child=self._pieces.clear)

    def __call__(self, size: int) -> bytes:
        if size != _RANDOM:
            return os.urandom(size)
        try:
            # No two threads get the same: that is one step of the interpreter.
            return self._pieces.pop()
        except IndexError:
            many = os.urandom(size * 256)
            self._pieces.extend(many[at : at + size] for at in range(size, len(many), size))
            return many[:size]


_ahead = _Ahead()


def newId(prefix: str, seconds: float, random: Callable[[int], bytes] = _ahead) -> str:
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
    number = milliseconds << 80 | int.from_bytes(random(_RANDOM), "big")
    digits = "".join([_PAIRS[number >> shift & 1023] for shift in range(120, -1, -10)])
    return f"{prefix}_{digits}"


def isId(text: str, prefix: str) -> bool:
    """
    Whether C{text} has the form of an identifier with this prefix.
    """
    start, separator, digits = text.partition("_")
    return start == prefix and separator == "_" and _ULID.fullmatch(digits) is not None
