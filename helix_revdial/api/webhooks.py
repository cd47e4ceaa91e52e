# -*- test-case-name: tests.api.test_webhooks -*-
"""
What a tenant's webhooks are signed with, and what became of a session's.

A task says whom to tell of what (C{webhooks} of C{POST /api/v1/tasks}).
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from helix_revdial.api.authority import asking
from helix_revdial.api.services import Services
from helix_revdial.api.session_document import PATH as SESSIONS
from helix_revdial.api.sessions import Page
from helix_revdial.http.operations import Call, Operation
from helix_revdial.http.problem import Problem
from helix_revdial.http.response import Response, jsonResponse
from helix_revdial.sessions.records import Session
from helix_revdial.sessions.redaction import Redactor
from helix_revdial.sessions.webhook_outbox import Delivery
from helix_revdial.sessions.webhook_secrets import SecretRecord, TooManySecrets
from helix_revdial.telemetry.timestamps import timestamp

PATH: Final = "/api/v1/webhooks/secrets"


class NewSecret(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What becomes of the others: they stay, or sign for so many seconds more."""

    retireOthersIn: Annotated[float, msgspec.Meta(ge=0, le=365 * 86_400)] | None = None


class SecretDocument(msgspec.Struct, omit_defaults=True):
    """A secret; C{secret} itself is told only to whoever had it made."""

    id: str
    createdAt: str
    retiredAt: str | None = None
    secret: str | None = None


class SecretList(msgspec.Struct):
    """A tenant's secrets, newest first."""

    items: list[SecretDocument]
    total: int


class DeliveryDocument(msgspec.Struct, omit_defaults=True):
    """Something that is to be told, or was."""

    id: str
    event: str
    seq: int
    url: str
    status: str
    attempts: int
    createdAt: str
    nextAttemptAt: str | None = None
    lastError: str | None = None
    endedAt: str | None = None


class DeliveryList(msgspec.Struct, omit_defaults=True):
    """One page, newest first; C{nextPage} is absent on the last."""

    items: list[DeliveryDocument]
    total: int
    nextPage: str | None = None


def operations(services: Services) -> list[Operation]:
    """Secrets, and deliveries."""
    redactor = Redactor()

    def noted(call: Call, event: str, record: str) -> None:
        principal = asking(call)
        services.audit.record(
            event, tenant=principal.tenant, subject=principal.tokenId, webhookSecret=record
        )

    async def create(call: Call) -> Response:
        principal = asking(call)
        try:
            record, secret = await services.webhookSecrets.create(
                principal.tenant,
                retireOthersIn=call.body.retireOthersIn,
                also=lambda connection, record: call.remember(_made(record))(connection),
            )
        except TooManySecrets as error:
            text = str(error)
            raise Problem(409, text[:1].upper() + text[1:] + ".", code="too-many-secrets") from None
        noted(call, "webhook-secret-created", record.id)
        return _made(record, secret)

    async def listAll(call: Call) -> SecretList:
        found = await services.webhookSecrets.list(asking(call).tenant)
        return SecretList([_document(one) for one in found], len(found))

    async def retire(call: Call) -> None:
        secret = call.params["secret"]
        if not await services.webhookSecrets.retire(asking(call).tenant, secret):
            raise Problem(404, "There is no such secret.", code="no-secret")
        noted(call, "webhook-secret-retired", secret)

    async def deliveries(call: Call) -> DeliveryList:
        session: Session = call.resource
        query = call.query
        found, total = await services.outbox.list(
            session.id, page=query.page, perPage=query.perPage
        )
        more = query.page * query.perPage < total
        return DeliveryList(
            [_delivery(one, redactor) for one in found],
            total,
            str(query.page + 1) if more else None,
        )

    def row(name: str, method: str, path: str, **fields: Any) -> Operation:
        return Operation(name=name, method=method, path=path, tags=("webhooks",), **fields)

    return [
        row(
            "createWebhookSecret",
            "POST",
            PATH,
            run=create,
            access="admin",
            body=NewSecret,
            response=SecretDocument,
            status=201,
            secret=True,
            errors=(401, 403, 409),
            summary="Make a secret that the tenant's webhooks are signed with.",
            description="All that are not retired sign. It is told this once.",
        ),
        row(
            "listWebhookSecrets",
            "GET",
            PATH,
            run=listAll,
            access="admin",
            response=SecretList,
            errors=(401, 403),
            summary="The tenant's secrets, without what is secret of them.",
        ),
        row(
            "retireWebhookSecret",
            "DELETE",
            PATH + "/{secret}",
            run=retire,
            access="admin",
            errors=(401, 403, 404),
            summary="Have a secret sign no more.",
        ),
        row(
            "listSessionWebhooks",
            "GET",
            SESSIONS + "/{session}/webhooks",
            run=deliveries,
            access="session-reader",
            query=Page,
            response=DeliveryList,
            errors=(401, 403, 404),
            summary="What a session's webhooks were told, or are to be told, newest first.",
        ),
    ]


def _document(record: SecretRecord, secret: str | None = None) -> SecretDocument:
    return SecretDocument(
        record.id,
        timestamp(record.created),
        None if record.retired is None else timestamp(record.retired),
        secret,
    )


def _made(record: SecretRecord, secret: str | None = None) -> Response:
    document = _document(record, secret)
    return jsonResponse(201, document, (b"Cache-Control", b"no-store"), location=PATH)


def _delivery(one: Delivery, redactor: Redactor) -> DeliveryDocument:
    waits = one.status == "pending" and one.nextAttempt is not None
    return DeliveryDocument(
        one.id,
        one.event,
        one.seq,
        redactor.text(one.url),
        one.status,
        one.attempts,
        timestamp(one.created),
        timestamp(one.nextAttempt or 0.0) if waits else None,
        one.lastError,
        None if one.ended is None else timestamp(one.ended),
    )
