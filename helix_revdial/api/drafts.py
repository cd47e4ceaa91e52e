# -*- test-case-name: tests.api.test_drafts -*-
"""
Drafts of tasks, each for its owner alone.

A draft has the fields of a task, any of them missing.  Only its form is looked at: it
may name what is not there yet.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from helix_revdial.access.principals import Principal
from helix_revdial.api.authority import asking
from helix_revdial.api.services import Services
from helix_revdial.api.sessions import Page
from helix_revdial.http.openapi import NO_CONTROLS
from helix_revdial.http.operations import Call, Operation
from helix_revdial.http.problem import Problem, validationProblem
from helix_revdial.http.response import Response, jsonResponse
from helix_revdial.sessions.drafts import Draft, TooManyDrafts, UnknownDraft
from helix_revdial.sessions.tasks import CONTROL, MAX_PROMPT
from helix_revdial.telemetry.timestamps import timestamp

PATH: Final = "/api/v1/drafts"

MAX_DRAFT: Final = 128 * 1024
"""Bytes of a draft as JSON."""

_Object = dict[str, Any] | None


class DraftContent(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What there is of a task; its parts as C{POST /tasks} takes them."""

    prompt: Annotated[str, msgspec.Meta(max_length=MAX_PROMPT)] | None = None
    repo: _Object = None
    runtime: _Object = None
    agent: _Object = None
    tenantId: Annotated[str, msgspec.Meta(max_length=128)] | None = None
    projectId: (
        Annotated[str, msgspec.Meta(max_length=128, extra_json_schema={"pattern": NO_CONTROLS})]
        | None
    ) = None
    workspace: _Object = None
    delivery: _Object = None
    labels: dict[str, str] | None = None
    webhooks: list[dict[str, Any]] | None = None


class DraftDocument(DraftContent, omit_defaults=True, kw_only=True):
    """A draft."""

    id: str
    createdAt: str
    updatedAt: str


class DraftQuery(Page):
    """Which drafts, and which part of their list."""

    projectId: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None


class DraftList(msgspec.Struct, omit_defaults=True):
    """One page, the draft that was changed last first; C{nextPage} is absent on the last."""

    items: list[DraftDocument]
    total: int
    nextPage: str | None = None


def operations(services: Services) -> list[Operation]:
    """Create, list, get, replace, delete."""

    async def create(call: Call) -> Response:
        principal = asking(call)
        assert principal.user is not None
        draft = await services.drafts.create(
            _content(call),
            tenant=principal.tenant,
            owner=principal.user,
            project=_project(call, principal),
            also=lambda connection, draft: call.remember(_created(draft))(connection),
        )
        return _created(draft)

    async def listAll(call: Call) -> DraftList:
        principal = asking(call)
        assert principal.user is not None
        query = call.query
        project = query.projectId
        if principal.project is not None:
            if project not in (None, principal.project):
                return DraftList([], 0)
            project = principal.project
        found = await services.drafts.list(
            tenant=principal.tenant,
            owner=principal.user,
            project=project,
            page=query.page,
            perPage=query.perPage,
        )
        more = query.page * query.perPage < found.total
        return DraftList(
            [_document(one) for one in found.items],
            found.total,
            str(query.page + 1) if more else None,
        )

    async def own(call: Call) -> Draft:
        """The draft that the path names, if it is the caller's."""
        principal = asking(call)
        draft = call.params["draft"]
        assert principal.user is not None
        found = await services.drafts.get(draft, tenant=principal.tenant, owner=principal.user)
        if principal.project not in (None, found.project):
            raise UnknownDraft("there is no such draft")
        return found

    async def get(call: Call) -> DraftDocument:
        return _document(await own(call))

    async def put(call: Call) -> DraftDocument:
        principal = asking(call)
        draft = await own(call)
        changed = await services.drafts.put(
            draft.id,
            _content(call),
            tenant=draft.tenant,
            owner=draft.owner,
            project=_project(call, principal),
        )
        return _document(changed)

    async def delete(call: Call) -> None:
        draft = await own(call)
        await services.drafts.delete(draft.id, tenant=draft.tenant, owner=draft.owner)

    def row(name: str, method: str, path: str, **fields: Any) -> Operation:
        return Operation(
            name=name, method=method, path=path, access="task-creator", tags=("drafts",), **fields
        )

    one = PATH + "/{draft}"
    return [
        row(
            "createDraft",
            "POST",
            PATH,
            run=create,
            body=DraftContent,
            maxBody=MAX_DRAFT,
            response=DraftDocument,
            status=201,
            errors=(401, 403, 409),
            summary="Keep a task that is not handed in yet; it may be incomplete.",
        ),
        row(
            "listDrafts",
            "GET",
            PATH,
            run=listAll,
            query=DraftQuery,
            response=DraftList,
            errors=(401, 403),
            summary="The caller's drafts, the one that was changed last first.",
        ),
        row(
            "getDraft",
            "GET",
            one,
            run=get,
            response=DraftDocument,
            errors=(401, 403, 404),
            summary="One of the caller's drafts.",
        ),
        row(
            "putDraft",
            "PUT",
            one,
            run=put,
            body=DraftContent,
            maxBody=MAX_DRAFT,
            response=DraftDocument,
            errors=(401, 403, 404),
            summary="Replace what a draft holds.",
        ),
        row(
            "deleteDraft",
            "DELETE",
            one,
            run=delete,
            errors=(401, 403, 404),
            summary="Delete a draft.",
        ),
    ]


def translate(error: Exception) -> Problem | None:
    """What the errors of drafts mean to a caller."""
    match error:
        case UnknownDraft():
            return Problem(404, f"{_sentence(error)}.", code="no-draft")
        case TooManyDrafts():
            return Problem(409, f"{_sentence(error)}.", code="too-many-drafts")
        case _:
            return None


def _sentence(error: Exception) -> str:
    text = str(error)
    return text[:1].upper() + text[1:]


def _content(call: Call) -> dict[str, Any]:
    content: dict[str, Any] = msgspec.to_builtins(call.body)
    return content


def _project(call: Call, principal: Principal) -> str | None:
    wanted: str | None = call.body.projectId
    if wanted is not None and CONTROL.search(wanted) is not None:
        raise validationProblem({"projectId": ["has control characters"]})
    if principal.project is not None and wanted not in (None, principal.project):
        raise Problem(403, "The token is confined to another project.", code="not-allowed")
    return principal.project or wanted


def _document(draft: Draft) -> DraftDocument:
    return msgspec.convert(
        {
            **draft.data,
            "id": draft.id,
            "createdAt": timestamp(draft.created),
            "updatedAt": timestamp(draft.updated),
        },
        DraftDocument,
    )


def _created(draft: Draft) -> Response:
    return jsonResponse(201, _document(draft), location=f"{PATH}/{draft.id}")
