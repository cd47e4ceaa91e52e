"""
The words of the C{Revdial-Features} header, and the names of our headers.

Both ends offer what they can; what holds for a control connection and its
data connections is the intersection.  Unknown words are ignored, so that
either end may grow; no header at all means the old wire.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

RAW = "raw"
TARGETS = "targets"
ECHO = "echo"
EOF = "eof"
TICKETS = "tickets"
GOODBYE = "goodbye"
POOL = "pool"
ZERO_KEY = "zero-key"

ALL = frozenset({RAW, TARGETS, ECHO, EOF, TICKETS, GOODBYE, POOL})
"""What this version offers, as server and as agent, where nobody says otherwise."""

KNOWN = ALL | {ZERO_KEY}
"""What it knows: besides, what an operator has to choose."""

FEATURES_HEADER = b"Revdial-Features"
TICKET_HEADER = b"Revdial-Ticket"
TIMING_HEADER = b"Revdial-Timing"
"""On a data upgrade: C{target=<seconds>}, how long the local connection took."""

TARGETS_HEADER = b"Revdial-Targets"
"""On a control upgrade: the targets; see L{helix_revdial.revdial.offered}."""

CHECK_HEADER = b"Revdial-Check"
"""On the answer to a check: C{connected}, C{grace} or C{free}, or empty."""

_POOLED = frozenset({POOL, TARGETS, TICKETS})


def canPool(features: frozenset[str]) -> bool:
    """
    Whether data connections may be parked: C{pool} means nothing without targets that
    answer for themselves, and tickets.
    """
    return features >= _POOLED


MAX_HEADER = 1024
"""Bytes of a features header that are read; what stands beyond is ignored."""


def parseFeatures(values: Iterable[bytes]) -> frozenset[str]:
    """
    Read the features that a peer offers.

    @param values: The values of every C{Revdial-Features} header, in order.
    @return: The words known to this version, in lower case.
    """
    joined = b",".join(values)
    if len(joined) > MAX_HEADER:
        # The word that the limit cuts through is not read as a shorter one.
        joined = joined[:MAX_HEADER].rpartition(b",")[0]
    return _featuresIn(joined)


@lru_cache(maxsize=64)
def _featuresIn(joined: bytes) -> frozenset[str]:
    """
    The known words of a header.

    All agents of a kind send the same; each has its features for as long as it lives.
    """
    words = {word.strip().lower() for word in joined.decode("latin-1").split(",")}
    return frozenset(word for word in KNOWN if word in words)


def formatFeatures(features: Iterable[str]) -> bytes:
    """The header value that offers C{features}, in a stable order."""
    return ", ".join(sorted(features)).encode("ascii")
