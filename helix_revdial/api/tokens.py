# -*- test-case-name: tests.api.test_operations -*-
"""
Tokens: made, rotated, revoked, imported.

An administrator does all of it for the tenant.  A user makes and revokes
tokens for sessions of their own, and rotates the token in hand and those.  A secret is
in the answer of the call that made it, and nowhere else.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from helix_revdial.access.policy import owns, within
from helix_revdial.access.principals import Principal
from helix_revdial.access.records import TokenError, TokenRecord
from helix_revdial.access.store import UnknownToken
from helix_revdial.access.tokens import DEFAULT_OVERLAP, MAX_OVERLAP, TokenConflict
from helix_revdial.api.authority import asking
from helix_revdial.api.services import Services
from helix_revdial.api.sessions import Page
from helix_revdial.api.token_audit import noteToken
from helix_revdial.http.openapi import NO_CONTROLS
from helix_revdial.http.operations import Call, Operation
from helix_revdial.http.problem import Problem, validationProblem
from helix_revdial.telemetry.timestamps import timestamp

PATH = "/api/v1/tokens"

Kind = Literal["user", "runner", "session"]
Role = Literal["admin", "operator", "viewer"]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400 * 3660)]


class TokenDocument(msgspec.Struct, rename="camel", omit_defaults=True):
    """A token without its secret."""

    id: str
    family: str
    kind: Kind
    name: str
    tenant: str
    created: str
    user: str | None = None
    role: Role | None = None
    patterns: list[str] = []
    session: str | None = None
    expires: str | None = None
    revoked: str | None = None
    replacement: str | None = None
    token: str | None = None
    """The secret: only in the answer of the call that made it."""


class TokenPurpose(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """What a token is for."""

    kind: Kind
    name: Annotated[
        str,
        msgspec.Meta(min_length=1, max_length=200, extra_json_schema={"pattern": NO_CONTROLS}),
    ]
    user: Annotated[str, msgspec.Meta(extra_json_schema={"pattern": r"^[!-~]{1,128}$"})] | None = (
        None
    )
    role: Role | None = None
    patterns: Annotated[list[str], msgspec.Meta(max_length=64)] = []
    session: str | None = None
    expiresIn: Seconds | None = None


class ImportedToken(TokenPurpose, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """A secret that exists already, and what it is for."""

    token: Annotated[
        str,
        msgspec.Meta(
            min_length=8, max_length=512, extra_json_schema={"pattern": r"^[!-~]{8,512}$"}
        ),
    ]


class Rotation(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """For how many seconds the old token is still valid."""

    overlap: Annotated[float, msgspec.Meta(ge=0, le=MAX_OVERLAP)] = DEFAULT_OVERLAP


class TokenQuery(Page, rename="camel"):
    """Which tokens."""

    kind: Kind | None = None
    ended: bool = False


class TokenList(msgspec.Struct, rename="camel", omit_defaults=True):
    """One page; C{nextPage} is absent on the last."""

    items: list[TokenDocument]
    total: int
    nextPage: str | None = None


_NOTHING = {"type": "null"}

RULES: dict[str, Any] = {
    "oneOf": [
        {
            "properties": {
                "kind": {"const": "user"},
                "patterns": {"maxItems": 0},
                "session": _NOTHING,
            }
        },
        {
            "properties": {
                "kind": {"const": "runner"},
                "role": _NOTHING,
                "patterns": {
                    "minItems": 1,
                    "items": {"pattern": r"^(?:\*|[A-Za-z0-9][A-Za-z0-9._-]{0,127}\*?)$"},
                },
                "session": _NOTHING,
            },
            "required": ["patterns"],
        },
        {
            "properties": {
                "kind": {"const": "session"},
                "role": _NOTHING,
                "patterns": {"maxItems": 0},
                "session": {"type": "string", "pattern": "^ses_[0-9A-HJKMNP-TV-Z]{26}$"},
            },
            "required": ["session"],
        },
    ]
}
"""What goes with each kind of token."""


def operations(services: Services) -> list[Operation]:
    """The rows."""

    async def purpose(call: Call) -> dict[str, object]:
        """The checked parameters of a new token."""
        principal, body = asking(call), call.body
        if body.kind == "session" and body.session is not None:
            await ownsSession(principal, body.session)
        elif not principal.administers:
            raise Problem(
                403, "Only an administrator makes tokens for users and runners.", code="not-allowed"
            )
        user = body.user
        if user is None and body.kind == "user":
            user = principal.user
        role = body.role
        if role is None and body.kind == "user":
            role = "operator"
        return {
            "name": body.name,
            "tenant": principal.tenant,
            "user": principal.user if body.kind != "user" else user,
            "role": role,
            "patterns": body.patterns,
            "session": body.session,
            "expires": None if body.expiresIn is None else services.wallClock() + body.expiresIn,
        }

    async def ownsSession(principal: Principal, name: str) -> None:
        session = await services.sessions.get(name, tenant=principal.tenant)
        if session is None or not (
            owns(principal, session) or (principal.hasRole("admin") and within(principal, session))
        ):
            raise validationProblem({"session": ["is no session of yours"]})

    async def create(call: Call) -> TokenDocument:
        record, secret = await services.tokens.create(
            call.body.kind,
            **await purpose(call),  # type: ignore[arg-type]
        )
        noteToken(services.audit, call, "token-created", record)
        return _document(record, secret)

    async def importToken(call: Call) -> TokenDocument:
        record = await services.tokens.importSecret(
            call.body.token,
            call.body.kind,
            **await purpose(call),  # type: ignore[arg-type]
        )
        noteToken(services.audit, call, "token-imported", record)
        return _document(record)

    async def listAll(call: Call) -> TokenList:
        principal, query = asking(call), call.query
        found, total = await services.tokens.list(
            tenant=principal.tenant,
            user=None if principal.administers else principal.user,
            kind=query.kind,
            ended=query.ended,
            page=query.page,
            perPage=query.perPage,
        )
        more = query.page * query.perPage < total
        return TokenList(
            [_document(one) for one in found], total, str(query.page + 1) if more else None
        )

    async def rotate(call: Call) -> TokenDocument:
        await mayChange(call)
        body = call.body
        record, secret = await services.tokens.rotate(
            call.params["token"], body.overlap, tenant=asking(call).tenant
        )
        noteToken(services.audit, call, "token-rotated", record)
        return _document(record, secret)

    async def revoke(call: Call) -> None:
        await mayChange(call)
        ended = await services.tokens.revoke(call.params["token"], tenant=asking(call).tenant)
        for record in ended:
            noteToken(services.audit, call, "token-revoked", record)

    async def mayChange(call: Call) -> None:
        """
        An administrator may; others may change the token in hand, and tokens of
        sessions that they made.  Not other tokens of the same user: one of them
        may have a higher role, and rotating it would give its secret away.
        """
        principal, name = asking(call), call.params["token"]
        if principal.administers or name in (principal.tokenId, principal.family):
            return
        record = await services.tokens.get(name, tenant=principal.tenant)
        if principal.user is None or record.user != principal.user or record.kind != "session":
            raise Problem(404, "There is no such token.")

    return [
        Operation(
            name="createToken",
            method="POST",
            path=PATH,
            run=create,
            access="operator",
            body=TokenPurpose,
            rules=RULES,
            response=TokenDocument,
            status=201,
            secret=True,
            errors=(401, 403),
            summary="Make a token; the answer holds its secret, this once.",
            tags=("tokens",),
        ),
        Operation(
            name="importToken",
            method="POST",
            path=PATH + "/import",
            run=importToken,
            access="admin",
            body=ImportedToken,
            rules=RULES,
            response=TokenDocument,
            status=201,
            errors=(401, 403, 409),
            summary="Take a secret that exists already, such as a RUNNER_TOKEN.",
            tags=("tokens",),
        ),
        Operation(
            name="listTokens",
            method="GET",
            path=PATH,
            run=listAll,
            access="user",
            query=TokenQuery,
            response=TokenList,
            errors=(401, 403),
            summary="The tokens that the caller made, newest first; an administrator's tenant.",
            tags=("tokens",),
        ),
        Operation(
            name="rotateToken",
            method="POST",
            path=PATH + "/{token}/rotate",
            run=rotate,
            access="self-token",
            body=Rotation,
            response=TokenDocument,
            status=201,
            secret=True,
            errors=(401, 403, 404, 409),
            summary="Give a token a successor of the same family.",
            tags=("tokens",),
        ),
        Operation(
            name="revokeToken",
            method="DELETE",
            path=PATH + "/{token}",
            run=revoke,
            access="self-token",
            status=204,
            errors=(401, 403, 404),
            summary="End a token (or a family) and cut what it holds, at once.",
            tags=("tokens",),
        ),
    ]


def translate(error: Exception) -> Problem | None:
    """What the errors of the token store mean to a caller."""
    match error:
        case TokenError():
            return validationProblem({error.field: [str(error)]})
        case UnknownToken():
            return Problem(404, "There is no such token.")
        case TokenConflict():
            return Problem(409, f"{str(error)[:1].upper()}{str(error)[1:]}.")
        case _:
            return None


def _document(record: TokenRecord, secret: str | None = None) -> TokenDocument:
    return TokenDocument(
        id=record.id,
        family=record.family,
        kind=record.kind,
        name=record.name,
        tenant=record.tenant,
        created=timestamp(record.created),
        user=record.user,
        role=record.role,  # type: ignore[arg-type]
        patterns=list(record.patterns),
        session=record.session,
        expires=None if record.expires is None else timestamp(record.expires),
        revoked=None if record.revoked is None else timestamp(record.revoked),
        replacement=record.replacement,
        token=secret,
    )
