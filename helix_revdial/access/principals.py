# -*- test-case-name: tests.access.test_principals -*-
"""
Who asks: what a valid token stands for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, get_args

Kind = Literal["user", "runner", "session"]
Role = Literal["admin", "operator", "viewer"]

KINDS: Final[tuple[str, ...]] = get_args(Kind)
ROLES: Final[tuple[str, ...]] = get_args(Role)

DEFAULT_TENANT: Final = "default"
"""Whose token says no tenant; and the tenant of the server's own people."""

RUNNER_KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""What a runner may be called; C{docs/wire.md} has the same rule."""

_PATTERN = re.compile(r"\*|[A-Za-z0-9][A-Za-z0-9._-]{0,127}\*?")


@dataclass(frozen=True, slots=True)
class Principal:
    """
    Somebody who has shown a valid token.  Holds no secret.

    @ivar kind: C{"user"} (a person or a program that acts for one),
        C{"runner"} (machines, by the patterns of their keys) or C{"session"}
        (one session's sandbox).
    @ivar tokenId: the token that was shown.
    @ivar family: that token and its rotations; revocation and the ownership
        of runner keys go by it.
    @ivar tenant: where it belongs.
    @ivar project: the one project of the tenant that it is confined to, or C{None}.
    @ivar user: for kind C{"user"}, who.
    @ivar roles: for kind C{"user"}, of C{"admin"}, C{"operator"} and
        C{"viewer"}, within the tenant.
    @ivar patterns: for kind C{"runner"}, the keys it may register: exact, or
        with a trailing C{*}.
    @ivar session: for kind C{"session"}, which.
    @ivar expires: seconds since the epoch, or C{None} for never.
    """

    kind: Kind
    tokenId: str
    family: str
    tenant: str
    user: str | None = None
    roles: frozenset[str] = frozenset()
    patterns: tuple[str, ...] = ()
    session: str | None = None
    expires: float | None = None
    project: str | None = None

    def hasRole(self, *roles: str) -> bool:
        """Whether this is a user with one of these roles."""
        return self.kind == "user" and not self.roles.isdisjoint(roles)

    @property
    def administers(self) -> bool:
        """Whether this is an administrator of the whole tenant."""
        return self.hasRole("admin") and self.project is None


def isPattern(text: str) -> bool:
    """
    Whether C{text} can be the pattern of a runner token: a runner key, the
    beginning of one with C{*} after it, or C{*} alone.
    """
    return _PATTERN.fullmatch(text) is not None
