# -*- test-case-name: tests.api.test_operations -*-
"""
Sessions, as far as ownership needs them: whose sandbox is whose.

Deleting a session ends its tokens and cuts its tunnel at once.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from helix_revdial.api.authority import asking
from helix_revdial.api.services import Services
from helix_revdial.http.operations import Call, Operation
from helix_revdial.http.response import Response
from helix_revdial.sessions.sessions import Session
from helix_revdial.telemetry.timestamps import timestamp

PATH = "/api/v1/sessions"


class SessionDocument(msgspec.Struct, rename="camel"):
    """One session."""

    id: str
    tenant: str
    owner: str
    name: str
    status: str
    created: str


class NewSession(msgspec.Struct, forbid_unknown_fields=True):
    """What a session is made from."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class Page(msgspec.Struct, rename="camel"):
    """Which part of a list."""

    page: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1
    perPage: Annotated[int, msgspec.Meta(ge=1, le=200)] = 20


class SessionList(msgspec.Struct, rename="camel", omit_defaults=True):
    """One page; C{nextPage} is absent on the last."""

    items: list[SessionDocument]
    total: int
    nextPage: str | None = None


def operations(services: Services) -> list[Operation]:
    """Create, list, get, delete."""

    async def create(call: Call) -> Response:
        principal = asking(call)
        assert principal.user is not None
        session = await services.sessions.create(
            name=call.body.name,
            tenant=principal.tenant,
            owner=principal.user,
            project=principal.project,
            also=lambda connection, session: call.remember(_created(session))(connection),
        )
        return _created(session)

    async def listAll(call: Call) -> SessionList:
        principal = asking(call)
        query = call.query
        found = await services.sessions.list(
            tenant=principal.tenant,
            owner=None if principal.hasRole("admin") else principal.user,
            project=principal.project,
            page=query.page,
            perPage=query.perPage,
        )
        return SessionList(
            [_document(one) for one in found.items],
            found.total,
            None if found.nextPage is None else str(found.nextPage),
        )

    async def get(call: Call) -> SessionDocument:
        return _document(call.resource)

    async def delete(call: Call) -> None:
        session = call.resource
        # The control plane cuts the tunnel when it is told of the deletion.
        await services.sessions.delete(session.id, tenant=session.tenant)
        await services.tokens.revokeSession(session.id)

    return [
        Operation(
            name="createSession",
            method="POST",
            path=PATH,
            run=create,
            access="operator",
            body=NewSession,
            response=SessionDocument,
            status=201,
            errors=(401, 403),
            summary="Make a session, owned by the caller.",
            tags=("sessions",),
        ),
        Operation(
            name="listSessions",
            method="GET",
            path=PATH,
            run=listAll,
            access="user",
            query=Page,
            response=SessionList,
            errors=(401, 403),
            summary="The caller's sessions, newest first; an administrator's whole tenant.",
            tags=("sessions",),
        ),
        Operation(
            name="getSession",
            method="GET",
            path=PATH + "/{session}",
            run=get,
            access="session-reader",
            response=SessionDocument,
            errors=(401, 403, 404),
            summary="One session.",
            tags=("sessions",),
        ),
        Operation(
            name="deleteSession",
            method="DELETE",
            path=PATH + "/{session}",
            run=delete,
            access="session-owner",
            status=204,
            errors=(401, 403, 404),
            summary="End a session: its tokens are revoked and its tunnel is cut.",
            tags=("sessions",),
        ),
    ]


def _created(session: Session) -> Response:
    return Response(
        201,
        [
            (b"Content-Type", b"application/json; charset=utf-8"),
            (b"Location", f"{PATH}/{session.id}".encode("ascii")),
        ],
        msgspec.json.encode(_document(session)),
    )


def _document(session: Session) -> SessionDocument:
    return SessionDocument(
        session.id,
        session.tenant,
        session.owner,
        session.name,
        session.status,
        timestamp(session.created),
    )
