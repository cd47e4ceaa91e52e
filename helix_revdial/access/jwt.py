# -*- test-case-name: tests.access.test_jwt -*-
"""
JSON web tokens (RFC 7519) in the place of our own.

An issuer is declared by the operator, with one algorithm.  A token names its issuer,
and is believed only with that issuer's key, algorithm and audience; what its own head
says of keys and algorithms chooses nothing.

What holds:

  - C{iss}, C{aud}, C{exp} and C{sub} are required.  The expiry is exact; clocks may
    differ, by a limit, about when a token begins.
  - A token is a family of its own: what it holds open ends at the moment it expires,
    when its issuer is taken out of the settings, and nothing else does.
  - A token that is no good costs no more than reading it, and says nothing of why to a
    stranger beyond one word for its bearer.
  - What is remembered of tokens is bounded; who is forgotten is cut, never left open.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import jwt
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from helix_revdial.access.jwks import ALGORITHMS, KeySet
from helix_revdial.access.principals import DEFAULT_TENANT, ROLES, Principal

JWT_FAMILY: Final = "jwt_"
"""How the families of JSON web tokens begin, which are in no table of tokens."""

SECRET_ALGORITHMS: Final = {"HS256": 32, "HS384": 48, "HS512": 64}
"""What a shared secret can sign with, and the bytes it then has at least (RFC 7518, 3.2)."""

MAX_SKEW: Final = 300.0
"""Seconds by which an issuer's clock may be said to be ahead."""

MAX_NAME: Final = 128
"""Characters of a tenant or a project."""

MAX_SUBJECT: Final = 255

MAX_REMEMBERED: Final = 50_000
"""Tokens of which it is known when they expire."""

MAX_WAIT: Final = 86_400.0
"""Seconds that a timer is set for at most."""


class JWTInvalid(Exception):
    """The token is no good; the text says why, without repeating any of it."""


@dataclass(frozen=True)
class Issuer:
    """
    Whom to believe.

    @ivar issuer: The C{iss} of its tokens.
    @ivar audience: What must be in their C{aud}.
    @ivar algorithm: The one it signs with.
    @ivar secret: For the algorithms of L{SECRET_ALGORITHMS}.
    @ivar keys: For those of L{ALGORITHMS}.
    @ivar tenants: The tenants that its tokens may name; empty: any.
    @ivar defaultRole: For tokens that name no role that we know; C{None}: they are
        refused.
    @ivar skew: Seconds by which its clock may be ahead of ours.
    @ivar source: Where secret or keys come from; two issuers that differ in nothing
        but what was read there are the same.
    """

    issuer: str
    audience: str
    algorithm: str
    secret: bytes | None = field(default=None, repr=False)
    keys: KeySet | None = field(default=None, compare=False, repr=False)
    tenants: tuple[str, ...] = ()
    defaultRole: str | None = None
    skew: float = 30.0
    source: str = ""

    def check(self) -> None:
        """
        @raise ValueError: The issuer cannot be; says why.
        """
        if self.algorithm in SECRET_ALGORITHMS:
            if self.secret is None or self.keys is not None:
                raise ValueError(f"{self.algorithm} takes a secret, and nothing else")
            needed = SECRET_ALGORITHMS[self.algorithm]
            if len(self.secret) < needed:
                raise ValueError(f"the secret of {self.algorithm} has {needed} bytes at least")
        elif self.algorithm in ALGORITHMS:
            if self.keys is None or self.secret is not None:
                raise ValueError(f"{self.algorithm} takes a set of public keys, and nothing else")
        else:
            known = ", ".join(sorted({*SECRET_ALGORITHMS, *ALGORITHMS}))
            raise ValueError(f"{self.algorithm!r} is none of the algorithms: {known}")


class JWTs:
    """
    The tokens of all issuers.
    """

    def __init__(
        self,
        clock: IReactorTime,
        wallClock: Callable[[], float],
        ended: Callable[[Iterable[str]], None],
        issuers: Iterable[Issuer] = (),
        *,
        maxRemembered: int = MAX_REMEMBERED,
    ) -> None:
        """
        @param clock: When tokens expire.
        @param wallClock: Seconds since 1970.
        @param ended: Told the families that end.
        """
        self._clock = clock
        self._wallClock = wallClock
        self._ended = ended
        self._maxRemembered = maxRemembered
        self._issuers: dict[str, Issuer] = {}
        # By family: when it expires, and whose it is; the latest shown last.
        self._known: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self._expiries: list[tuple[float, str]] = []
        self._timer: IDelayedCall | None = None
        self.setIssuers(issuers)

    def setIssuers(self, issuers: Iterable[Issuer]) -> None:
        """From now on, believe these; the tokens of others end."""
        before, now = self._issuers, {one.issuer: one for one in issuers}
        same = {name: one for name, one in before.items() if now.get(name) == one}
        # One that has not changed keeps the keys that it has.
        self._issuers = now | same
        gone = before.keys() - same.keys()
        self._end([family for family, (_, whose) in self._known.items() if whose in gone])

    def sizes(self) -> Mapping[str, int]:
        """Entries of the tables in memory."""
        return {"json_web_tokens": len(self._known)}

    def stop(self) -> None:
        """Have no timer any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def looksLike(self, secret: str) -> bool:
        """Whether this is a JSON web token, if anything; ours never do."""
        return bool(self._issuers) and secret.count(".") == 2 and secret.startswith("eyJ")

    def stillValid(self, principal: Principal) -> bool:
        """Whether a principal of a moment ago has neither expired nor lost its issuer since."""
        return principal.family in self._known and (principal.expires or 0) > self._wallClock()

    def resume(self, principal: Principal) -> bool:
        """
        Go on with what a token made in a process before.

        @return: Whether it has not expired.
        """
        if principal.expires is None or principal.expires <= self._wallClock():
            return False
        self._remember(principal, "")
        return True

    async def authenticate(self, token: str) -> Principal:
        """
        Who shows this token.

        @raise JWTInvalid: Nobody.
        @raise KeysUnavailable: It cannot be told now.
        """
        try:
            unverified = jwt.decode_complete(token, options={"verify_signature": False})
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise JWTInvalid("it cannot be read") from None
        head, claims = unverified["header"], unverified["payload"]
        name = claims.get("iss")
        issuer = self._issuers.get(name) if isinstance(name, str) else None
        if issuer is None:
            raise JWTInvalid("its issuer is unknown here")
        # Nothing of the head is used before it agrees with the settings.
        if head.get("alg") != issuer.algorithm:
            raise JWTInvalid("its algorithm is not that of its issuer")
        if "crit" in head or "b64" in head:
            raise JWTInvalid("it has a header that we do not know")
        claims = self._verified(token, issuer, await self._key(issuer, head.get("kid")))
        if self._issuers.get(issuer.issuer) is not issuer:
            raise JWTInvalid("its issuer is unknown here")
        principal = self._principal(token, issuer, claims)
        self._remember(principal, issuer.issuer)
        return principal

    @staticmethod
    async def _key(issuer: Issuer, name: object) -> Any:
        if issuer.keys is None:
            return issuer.secret
        if name is not None and not isinstance(name, str):
            raise JWTInvalid("the name of its key is none")
        key = await issuer.keys.key(name)
        if key is None:
            raise JWTInvalid("its key is unknown")
        return key

    @staticmethod
    def _verified(token: str, issuer: Issuer, key: Any) -> dict[str, Any]:
        try:
            return jwt.decode(
                token,
                key,
                algorithms=[issuer.algorithm],
                audience=issuer.audience,
                issuer=issuer.issuer,
                options={
                    "require": ["iss", "aud", "exp", "sub"],
                    # By the clock that we are given, below.
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except jwt.InvalidSignatureError:
            raise JWTInvalid("its signature does not fit") from None
        except jwt.InvalidAudienceError:
            raise JWTInvalid("it is for another audience") from None
        except jwt.MissingRequiredClaimError as error:
            raise JWTInvalid(f"it lacks {error.claim}") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            raise JWTInvalid("it cannot be verified") from None

    def _principal(self, token: str, issuer: Issuer, claims: dict[str, Any]) -> Principal:
        now = self._wallClock()
        expires = _moment(claims, "exp")
        assert expires is not None
        if expires <= now:
            raise JWTInvalid("it has expired")
        for name in ("nbf", "iat"):
            begins = _moment(claims, name)
            if begins is not None and begins > now + issuer.skew:
                raise JWTInvalid("it is not valid yet")
        subject = _text(claims, "sub", MAX_SUBJECT)
        if not subject:
            raise JWTInvalid("its sub is empty")
        tenant = _text(claims, "tenant_id", MAX_NAME) or DEFAULT_TENANT
        if issuer.tenants:
            if "tenant_id" not in claims and len(issuer.tenants) == 1:
                tenant = issuer.tenants[0]
            if tenant not in issuer.tenants:
                raise JWTInvalid("its issuer does not speak for its tenant")
        identity = JWT_FAMILY + hashlib.sha256(token.encode("ascii")).hexdigest()[:32]
        return Principal(
            "user",
            identity,
            identity,
            tenant,
            user=subject,
            roles=_roles(claims, issuer.defaultRole),
            expires=expires,
            project=_text(claims, "project_id", MAX_NAME) or None,
        )

    # What expires

    def _remember(self, principal: Principal, issuer: str) -> None:
        family, expires = principal.family, principal.expires
        assert expires is not None
        if family in self._known:
            self._known.move_to_end(family)
            return
        self._known[family] = (expires, issuer)
        heapq.heappush(self._expiries, (expires, family))
        if len(self._known) > self._maxRemembered:
            self._end([next(iter(self._known))])
        self._schedule()

    def _schedule(self) -> None:
        while self._expiries and self._expiries[0][1] not in self._known:
            heapq.heappop(self._expiries)
        self.stop()
        if self._expiries:
            # The clock that tells the day may be set; the other is asked again.
            wait = min(max(self._expiries[0][0] - self._wallClock(), 0.0), MAX_WAIT)
            self._timer = self._clock.callLater(wait, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = self._wallClock()
        over = []
        while self._expiries and self._expiries[0][0] <= now:
            over.append(heapq.heappop(self._expiries)[1])
        self._end(family for family in over if family in self._known)
        self._schedule()

    def _end(self, families: Iterable[str]) -> None:
        ended = list(families)
        for family in ended:
            del self._known[family]
        if len(self._expiries) > 2 * len(self._known) + 100:
            self._expiries = [one for one in self._expiries if one[1] in self._known]
            heapq.heapify(self._expiries)
        if ended:
            self._ended(ended)


def _moment(claims: dict[str, Any], name: str) -> float | None:
    """A NumericDate (RFC 7519, 2)."""
    value = claims.get(name)
    if value is None and name != "exp":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise JWTInvalid(f"its {name} is no time")
    try:
        moment = float(value)
    except OverflowError:
        moment = math.inf
    if not math.isfinite(moment) or moment > 1e11:
        raise JWTInvalid(f"its {name} is no time")
    return moment


def _text(claims: dict[str, Any], name: str, limit: int) -> str:
    value = claims.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > limit or not value.isprintable():
        raise JWTInvalid(f"its {name} is none")
    if not value.strip():
        # Not the same as none: that would be the whole tenant, for a project.
        raise JWTInvalid(f"its {name} is empty")
    return value


def _roles(claims: dict[str, Any], default: str | None) -> frozenset[str]:
    named = claims.get("roles")
    if named is None:
        named = []
    if not isinstance(named, list) or not all(isinstance(role, str) for role in named):
        raise JWTInvalid("its roles are no list of words")
    known = frozenset(named) & frozenset(ROLES)
    if not known and default is not None:
        known = frozenset({default})
    if not known:
        raise JWTInvalid("it names no role that is known here")
    return known


__all__ = [
    "JWT_FAMILY",
    "MAX_REMEMBERED",
    "MAX_SKEW",
    "SECRET_ALGORITHMS",
    "Issuer",
    "JWTInvalid",
    "JWTs",
]
