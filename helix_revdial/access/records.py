# -*- test-case-name: tests.access.test_records -*-
"""
What is stored of a token, and what one may be made for.

The rules for making a token are all here, so that whatever makes one (the API,
the first start, an import) cannot make one that means nothing, or more than
was meant.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from sqlalchemy import Row

from helix_revdial.access.principals import KINDS, ROLES, Kind, Principal, isPattern
from helix_revdial.storage.ids import isId

MAX_PATTERNS: Final = 64
"""Patterns of one runner token."""

_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,200}")
_WORD = re.compile(r"[^\x00-\x20\x7f-\xa0\ud800-\udfff]{1,128}")


class TokenError(ValueError):
    """
    What was asked of a token cannot be.  HTTP answers 400.

    @ivar field: the name of the wrong parameter.
    """

    def __init__(self, field: str, text: str) -> None:
        self.field = field
        super().__init__(text)


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """
    A token, without its secret.

    @ivar id: C{tok_...}.
    @ivar family: C{fam_...}: the token and its rotations.
    @ivar user: who a user token speaks for; of the others, who made them.
    @ivar created: seconds since the epoch, as are C{expires} and C{revoked}.
    @ivar replacement: the token that took its place, when it was rotated.
    """

    id: str
    family: str
    kind: Kind
    name: str
    tenant: str
    user: str | None
    role: str | None
    patterns: tuple[str, ...]
    session: str | None
    created: float
    expires: float | None = None
    revoked: float | None = None
    replacement: str | None = None

    def isLive(self, now: float) -> bool:
        """Whether the token is neither revoked nor expired."""
        return self.revoked is None and (self.expires is None or now < self.expires)

    def principal(self) -> Principal:
        """Who shows this token."""
        return Principal(
            kind=self.kind,
            tokenId=self.id,
            family=self.family,
            tenant=self.tenant,
            # Only a user token speaks for its user: the maker of a runner
            # token lends it nothing.
            user=self.user if self.kind == "user" else None,
            roles=frozenset() if self.role is None else frozenset({self.role}),
            patterns=self.patterns,
            session=self.session,
            expires=self.expires,
        )


def fromRow(row: Row[Any]) -> TokenRecord:
    """A row of the table as a record."""
    return TokenRecord(
        id=row.id,
        family=row.family,
        kind=row.kind,
        name=row.name,
        tenant=row.tenant,
        user=row.owner,
        role=row.role,
        patterns=tuple(row.patterns),
        session=row.session,
        created=row.created,
        expires=row.expires,
        revoked=row.revoked,
        replacement=row.replacement,
    )


def newRecord(
    *,
    id: str,  # noqa: A002
    family: str,
    kind: str,
    name: str,
    tenant: str,
    user: str | None,
    role: str | None,
    patterns: Sequence[str],
    session: str | None,
    created: float,
    expires: float | None,
) -> TokenRecord:
    """
    A record that keeps the rules.

    @raise TokenError: for one that would not; its text says what to do.
    """
    if kind not in KINDS:
        raise TokenError("kind", f"a token's kind is one of {', '.join(KINDS)}")
    if _NAME.fullmatch(name) is None:
        raise TokenError("name", "a name has 1 to 200 characters and no control characters")
    if _WORD.fullmatch(tenant) is None:
        raise TokenError("tenant", "a tenant has 1 to 128 characters and no spaces")
    if user is not None and _WORD.fullmatch(user) is None:
        raise TokenError("user", "a user has 1 to 128 characters and no spaces")
    if expires is not None and not created < expires < created + 100 * 366 * 86400:
        raise TokenError("expires", "a token expires after now, within a hundred years")
    _checkUser(kind, user, role)
    _checkPatterns(kind, patterns)
    if kind == "session":
        if session is None or not isId(session, "ses"):
            raise TokenError("session", "a session token needs the id of its session (ses_...)")
    elif session is not None:
        raise TokenError("session", "only a session token has a session")
    return TokenRecord(
        id=id,
        family=family,
        kind=cast(Kind, kind),
        name=name,
        tenant=tenant,
        user=user,
        role=role,
        patterns=tuple(patterns),
        session=session,
        created=created,
        expires=expires,
    )


def _checkUser(kind: str, user: str | None, role: str | None) -> None:
    if kind != "user":
        if role is not None:
            raise TokenError("role", "only a user token has a role")
        return
    if user is None:
        raise TokenError("user", "a user token needs the user it speaks for")
    if role not in ROLES:
        raise TokenError("role", f"a user token's role is one of {', '.join(ROLES)}")


def _checkPatterns(kind: str, patterns: Sequence[str]) -> None:
    if kind != "runner":
        if patterns:
            raise TokenError("patterns", "only a runner token has patterns")
        return
    if not 1 <= len(patterns) <= MAX_PATTERNS:
        raise TokenError("patterns", f"a runner token has 1 to {MAX_PATTERNS} patterns")
    for pattern in patterns:
        if not isPattern(pattern):
            raise TokenError(
                "patterns",
                f"{pattern[:130]!r} is no pattern: a runner key, or the beginning of one "
                "with * after it",
            )
