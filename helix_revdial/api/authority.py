# -*- test-case-name: tests.api.test_authority -*-
"""
Who asks, and whether they may: the operation table's two questions, answered
by the rooms that know.

Every refusal of a token that was shown goes to the audit log.
"""

from __future__ import annotations

from helix_revdial.access.audit import AuditLog
from helix_revdial.access.authorization import parseAuthorization
from helix_revdial.access.principals import Principal
from helix_revdial.access.table import ACCESS, Decision, decide
from helix_revdial.access.tokens import Tokens
from helix_revdial.http.operations import Call
from helix_revdial.http.problem import Problem
from helix_revdial.http.request import Request
from helix_revdial.sessions.sessions import Session, Sessions

_CHALLENGE = [(b"WWW-Authenticate", b'Bearer realm="helix"')]


class Authority:
    """Authenticates requests and authorises calls."""

    def __init__(self, tokens: Tokens, sessions: Sessions, audit: AuditLog) -> None:
        self._tokens = tokens
        self._sessions = sessions
        self._audit = audit

    async def authenticate(self, request: Request) -> Principal | None:
        """
        Who asks.

        @return: C{None} for a request without an C{Authorization} header.
        @raise Problem: 401 for a header that names nobody.
        """
        given = request.headers.getAll(b"authorization")
        if not given:
            return None
        secret = parseAuthorization(given[0]) if len(given) == 1 else None
        if secret is None:
            raise self._unknown(
                request, "The Authorization header must be: Bearer TOKEN, or: ApiKey TOKEN."
            )
        principal = await self._tokens.authenticate(secret)
        if principal is None:
            raise self._unknown(request, "The token is unknown, revoked or expired.")
        return principal

    def _unknown(self, request: Request, detail: str) -> Problem:
        self._audit.record("unauthenticated", subject=request.clientHost, path=request.path)
        return Problem(401, detail, headers=_CHALLENGE, code="unauthenticated")

    async def authorise(self, call: Call, word: str) -> None:
        """
        Check the access table.  Leaves the session that the path names in
        C{call.resource}, where the row is about one.

        @raise Problem: 401, 403 or 404.
        """
        principal: Principal | None = call.principal
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
                detail = (
                    f"The session {name} belongs to somebody else."
                    if session is not None
                    else f"This token may not {call.operation.summary[:1].lower()}"
                    f"{call.operation.summary[1:].rstrip('.')}."
                )
                raise Problem(403, detail, code="not-allowed")
