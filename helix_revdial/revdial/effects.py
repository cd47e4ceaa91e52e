# -*- test-case-name: tests.revdial.test_table -*-
"""
What the L{connection table <helix_revdial.revdial.table.ConnectionTable>} says.

Values only: what it wants done outside (the L{Effect}s), how a claim came out,
and views of what it holds.  The views are copies; they do not change later.
"""

from __future__ import annotations

from dataclasses import dataclass

from helix_revdial.revdial.dials import Dial
from helix_revdial.revdial.errors import DialError


@dataclass(frozen=True, slots=True)
class Failed:
    """Tell the caller of C{dial} that it failed with C{error}."""

    dial: Dial
    error: DialError


@dataclass(frozen=True, slots=True)
class Close:
    """Close the control connection of this generation, and its streams."""

    key: str
    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Gone:
    """Nothing is awaited under C{key} any more; C{generation} was its last."""

    key: str
    generation: int


Effect = Failed | Close | Gone


@dataclass(frozen=True, slots=True)
class Claimed:
    """
    The key belongs to the new generation.

    @ivar superseded: The generation whose connection is to be closed, if one
        was live.
    @ivar resumed: Dials that the new connection is to be asked for, in order.
    @ivar failed: Dials that the new connection cannot serve.
    """

    superseded: int | None
    resumed: list[Dial]
    failed: list[Failed]


@dataclass(frozen=True, slots=True)
class Contested:
    """
    Too many takeovers: find out whether C{generation} still answers, and claim
    again with what was found.
    """

    generation: int


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a key; C{graceEnds} is C{None} while the connection lives."""

    key: str
    owner: str
    credential: str
    generation: int
    features: frozenset[str]
    graceEnds: float | None
    pendingDials: int


@dataclass(frozen=True, slots=True)
class TableStats:
    """Counts, and the keys that are connected, sorted."""

    connected: int
    grace: int
    pendingDials: int
    keys: list[str]
