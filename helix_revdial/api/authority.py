# -*- test-case-name: tests.api.test_authority -*-
"""
Who asks, and whether they may: the operation table's two questions, answered
by the rooms that know.

Every refusal of a token that was shown goes to the audit log.
"""

from __future__ import annotations

from collections.abc import Callable

from helix_revdial.access.audit import AuditLog
from helix_revdial.access.authorization import parseAuthorization
from helix_revdial.access.certificates import fingerprintOf
from helix_revdial.access.jwks import KeysUnavailable
from helix_revdial.access.jwt import JWTInvalid, JWTs
from helix_revdial.access.principals import Principal
from helix_revdial.access.table import ACCESS, Decision, decide, refusal
from helix_revdial.access.tokens import Tokens
from helix_revdial.gateways.forwarding import OWN_AUTHORIZATION
from helix_revdial.http.operations import Call
from helix_revdial.http.problem import Problem
from helix_revdial.http.request import Request
from helix_revdial.sessions.records import Session
from helix_revdial.sessions.sessions import Sessions

_CHALLENGE = [(b"WWW-Authenticate", b'Bearer realm="helix"')]
_INVALID = [(b"WWW-Authenticate", b'Bearer realm="helix", error="invalid_token"')]
"""To who brought nothing, and to who brought what is no good (RFC 6750, 3.1)."""


class Authority:
    """Authenticates requests and authorises calls."""

    def __init__(
        self,
        tokens: Tokens,
        sessions: Sessions,
        audit: AuditLog,
        *,
        certificate: Callable[[bytes], Principal | None] = lambda der: None,
        admit: Callable[[Call], None] = lambda call: None,
        jwts: JWTs | None = None,
    ) -> None:
        """
        @param certificate: Whose a verified client certificate (DER) is.
        @param jwts: Reads JSON web tokens.
        @param admit: Counts a call, and raises L{Problem} where there are too many.
        """
        self._tokens = tokens
        self._sessions = sessions
        self._audit = audit
        self._certificate = certificate
        self._admit = admit
        self._jwts = jwts

    async def authenticate(self, request: Request) -> Principal | None:
        """
        Who asks.  An C{Authorization} header goes before a client certificate, and
        C{X-Helix-Authorization} before that: where it is given, C{Authorization} is
        for somebody else.

        @return: C{None} for a request with neither.
        @raise Problem: 401 for a header that names nobody.
        """
        given = request.headers.getAll(OWN_AUTHORIZATION)
        given = given or request.headers.getAll(b"authorization")
        if not given:
            return self._byCertificate(request)
        secret = parseAuthorization(given[0]) if len(given) == 1 else None
        if secret is None:
            raise self._unknown(
                request, "The Authorization header must be: Bearer TOKEN, or: ApiKey TOKEN."
            )
        if self._jwts is not None and self._jwts.looksLike(secret):
            return await self._byJWT(request, self._jwts, secret)
        principal = await self._tokens.authenticate(secret)
        if principal is None:
            raise self._unknown(request, "The token is unknown, revoked or expired.")
        return principal

    async def _byJWT(self, request: Request, jwts: JWTs, token: str) -> Principal:
        try:
            return await jwts.authenticate(token)
        except JWTInvalid as error:
            raise self._unknown(request, f"The JSON web token is no good: {error}.") from None
        except KeysUnavailable:
            raise Problem(
                503,
                "The keys of the token's issuer cannot be had now; try again.",
                headers=[(b"Retry-After", b"5")],
                code="keys-unavailable",
            ) from None

    def _byCertificate(self, request: Request) -> Principal | None:
        if request.certificate is None or _fromElsewhere(request):
            return None
        principal = self._certificate(request.certificate)
        if principal is None:
            # With what an operator needs to grant it.
            self._audit.record(
                "unknown-certificate",
                subject=fingerprintOf(request.certificate),
                peer=request.clientHost,
            )
        return principal

    def _unknown(self, request: Request, detail: str) -> Problem:
        self._audit.record("unauthenticated", subject=request.clientHost, path=request.path)
        return Problem(401, detail, headers=_INVALID, code="unauthenticated")

    async def authorise(self, call: Call, word: str) -> None:
        """
        Check the access table.  Leaves the session that the path names in
        C{call.resource}, where the row is about one.

        @raise Problem: 401, 403 or 404.
        """
        principal: Principal | None = call.principal
        if principal is not None:
            # Before anything is looked up for whoever asks too often.
            self._admit(call)
        session: Session | None = None
        name = call.params.get("session", "")
        if ACCESS[word].resource and principal is not None:
            session = call.resource = await self._sessions.get(name, tenant=principal.tenant)
        match decide(word, principal, session):
            case Decision.ALLOWED:
                return
            case Decision.UNAUTHENTICATED:
                raise Problem(
                    401,
                    "A token is needed: send Authorization: Bearer TOKEN.",
                    headers=_CHALLENGE,
                    code="unauthenticated",
                )
            case Decision.HIDDEN:
                raise Problem(404, f"There is no session {name}.", code="unknown-session")
            case Decision.FORBIDDEN:
                assert principal is not None
                self._audit.record(
                    "forbidden",
                    subject=principal.tokenId,
                    tenant=principal.tenant,
                    operation=call.operation.name,
                    session=name or None,
                    peer=call.request.clientHost,
                )
                detail = refusal(word, principal)
                raise Problem(403, detail, code="not-allowed")


def _fromElsewhere(request: Request) -> bool:
    """
    Whether a page of another site had a browser send this.

    A browser adds the user's certificate to whatever a page asks for, as it does
    cookies; a token it does not.  So where a browser says whose page it was
    (Fetch Metadata, C{Origin}), the certificate counts for our own only.
    """
    site = request.headers.get(b"sec-fetch-site")
    if site is not None and site not in (b"same-origin", b"none"):
        return True
    origin = request.headers.get(b"origin")
    return origin is not None and origin != b"https://" + (request.headers.get(b"host") or b"")


def asking(call: Call) -> Principal:
    """Who asks, where the table lets nobody through who does not say."""
    principal = call.principal
    assert isinstance(principal, Principal)
    return principal
