# -*- test-case-name: tests.revdial.test_offered -*-
"""
What an agent says of its targets when it registers: their names, which one is the
default, and whom each is for.

Sans-I/O; the C{Revdial-Targets} field of C{docs/wire.md}, section 3.1.

What cannot be read opens nothing: an entry that is wrong is left out, a word for
C{expose} that is not known means C{internal}, and a target that is named twice is
for the fewer.  An agent that sends no such field is of an earlier time, and its
one service is for the session's owner.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Expose = Literal["internal", "operator", "owner"]
"""Whom a target is for: the server alone, operators, or the session's owner too."""

MAX_TARGETS = 64
"""Targets of one agent; what stands beyond is not read."""

MAX_TARGETS_HEADER = 8192
"""Bytes of the field that are read; what stands beyond is not."""

TARGET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""What a target may be called; to be matched in full."""

_BY_WIDTH: tuple[Expose, ...] = ("internal", "operator", "owner")


@dataclass(frozen=True, slots=True)
class OfferedTarget:
    """
    One target, as its agent describes it.

    @ivar default: Whether a dial that names none reaches it.
    """

    name: str
    expose: Expose
    default: bool = False


def parseTargets(values: Iterable[bytes]) -> tuple[OfferedTarget, ...] | None:
    """
    Read what an agent says.

    @param values: The values of every such field, in order.
    @return: The targets in order; C{None} where there is no field.
    """
    given = list(values)
    if not given:
        return None
    joined = b",".join(given)
    if len(joined) > MAX_TARGETS_HEADER:
        # The entry that the limit cuts through is not read as a shorter one.
        joined = joined[:MAX_TARGETS_HEADER].rpartition(b",")[0]
    found: dict[str, OfferedTarget] = {}
    default: str | None = None
    for entry in joined.decode("latin-1").split(","):
        name, *words = (word.strip() for word in entry.split(";"))
        if TARGET_NAME.fullmatch(name) is None:
            continue
        if name not in found and len(found) >= MAX_TARGETS:
            continue
        said = [word.partition("=")[2].strip().lower() for word in words if _isExpose(word)]
        expose: Expose = "internal"
        for known in _BY_WIDTH:
            if said == [known]:
                expose = known
        before = found.get(name)
        if before is not None:
            expose = min(expose, before.expose, key=_BY_WIDTH.index)
        if default is None and any(word.lower() == "default" for word in words):
            default = name
        found[name] = OfferedTarget(name, expose)
    return tuple(
        OfferedTarget(each.name, each.expose, each.name == default) for each in found.values()
    )


def formatTargets(targets: Iterable[OfferedTarget]) -> bytes:
    """The value of the field that says so."""
    return ", ".join(
        f"{each.name};expose={each.expose}" + (";default" if each.default else "")
        for each in targets
    ).encode("ascii")


def exposeOf(targets: tuple[OfferedTarget, ...] | None, name: str | None) -> Expose:
    """
    Whom a dial's target is for.

    @param targets: What the agent said, C{None} for nothing.
    @param name: The target that the dial names, C{None} for the default one.
    """
    if targets is None:
        return "owner" if name is None else "internal"
    for each in targets:
        if each.default if name is None else each.name == name:
            return each.expose
    return "internal"


def _isExpose(word: str) -> bool:
    return word.partition("=")[0].strip().lower() == "expose"


__all__ = [
    "MAX_TARGETS",
    "Expose",
    "OfferedTarget",
    "exposeOf",
    "formatTargets",
    "parseTargets",
]
