# -*- test-case-name: tests.api.test_uploads -*-
"""
Archives that callers send for their tasks: promised with POST, sent with PUT.

The token of an upload is in a header, never in a URL, and does not replace the
caller's own: both have to be those of one user.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from helix_revdial.access.principals import Principal
from helix_revdial.api.authority import asking
from helix_revdial.api.services import Services
from helix_revdial.http.operations import Call, HeaderField, Operation
from helix_revdial.http.problem import Problem, validationProblem
from helix_revdial.http.response import Response, jsonResponse
from helix_revdial.sessions.uploads import (
    QuotaExceeded,
    StorageFull,
    UnknownUpload,
    Upload,
    UploadBusy,
    UploadExpired,
    UploadRefused,
    UploadSpent,
    UploadTooLarge,
)
from helix_revdial.telemetry.timestamps import timestamp

PATH: Final = "/api/v1/uploads"

TOKEN: Final = "Upload-Token"  # noqa: S105 (the header's name)

MEDIA: Final = "application/octet-stream"

MAX_TOKEN: Final = 200


class NewUpload(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What is known of an archive before it is sent: the bytes that it has, exactly."""

    size: Annotated[int, msgspec.Meta(ge=1, le=2**50)] | None = None


class UploadPromise(msgspec.Struct):
    """
    Where to send an archive, and how: C{method} and C{headers} as they stand here,
    beside the caller's own Authorization; C{url} is relative to this one.
    """

    id: str
    uploadToken: str
    url: str
    method: str
    headers: dict[str, str]
    expiresAt: str
    maxBytes: int


class UploadDocument(msgspec.Struct):
    """An archive that is here, for one task, until it expires."""

    id: str
    size: int
    sha256: str
    expiresAt: str


def operations(services: Services) -> list[Operation]:
    """Promise, and receive."""

    async def create(call: Call) -> Response:
        principal = asking(call)
        assert principal.user is not None
        upload, token = await services.uploads.create(
            tenant=principal.tenant,
            owner=principal.user,
            size=call.body.size,
            # A repetition learns where it is; the token is not kept.
            also=lambda connection, upload: call.remember(_promised(upload, ""))(connection),
        )
        return _promised(upload, token)

    async def receive(call: Call) -> UploadDocument:
        principal: Principal = asking(call)
        assert principal.user is not None
        tokens = call.request.headers.getAll(TOKEN.encode("ascii"))
        if len(tokens) != 1 or not 1 <= len(tokens[0]) <= MAX_TOKEN:
            raise validationProblem({TOKEN: ["is required once: the uploadToken of this upload"]})
        if call.request.headers.getAll(b"content-range"):
            # RFC 9110, 14.5: a part must not be taken for the whole.
            raise Problem(400, "An archive is sent whole, not in parts (Content-Range).")
        body = call.request.body
        pieces = body.pieces()
        try:
            upload = await services.uploads.receive(
                call.params["upload"],
                tokens[0].decode("latin-1"),
                pieces,
                tenant=principal.tenant,
                owner=principal.user,
                length=body.length,
            )
        finally:
            await pieces.aclose()
        return UploadDocument(
            upload.id, upload.size or 0, upload.sha256 or "", timestamp(upload.expires)
        )

    return [
        Operation(
            name="createUpload",
            method="POST",
            path=PATH,
            run=create,
            access="task-creator",
            body=NewUpload,
            response=UploadPromise,
            status=201,
            secret=True,
            errors=(401, 403, 413),
            summary="Get the token and the address to send an archive for a task to.",
            description="An archive is a tar file, compressed or not, or a zip file. The token is "
            "good for one archive, and then, as repo.uploadToken, for one task of this user.",
            tags=("uploads",),
        ),
        Operation(
            name="putUpload",
            method="PUT",
            path=PATH + "/{upload}",
            run=receive,
            access="task-creator",
            body=("*/*",),
            response=UploadDocument,
            headers=(HeaderField(TOKEN, "The uploadToken that the upload was promised with."),),
            errors=(400, 401, 403, 404, 409, 410, 413, 507),
            summary="Send an archive.",
            description="What breaks off leaves nothing, and may be sent again; so may what has "
            "another size than was promised, or none.",
            tags=("uploads",),
        ),
    ]


def translate(error: Exception) -> Problem | None:
    """What the errors of uploads mean to a caller."""
    if not isinstance(error, UploadRefused):
        return None
    headers: list[tuple[bytes, bytes]] = []
    match error:
        case UnknownUpload():
            status = 404
        case UploadTooLarge() | QuotaExceeded():
            status = 413
        case UploadSpent():
            status = 409
        case UploadBusy():
            status, headers = 409, [(b"Retry-After", b"2")]
        case UploadExpired():
            status = 410
        case StorageFull():
            status = 507
        case _:
            status = 400
    text = str(error)
    return Problem(status, text[:1].upper() + text[1:] + ".", code=error.word, headers=headers)


def _promised(upload: Upload, token: str) -> Response:
    path = f"{PATH}/{upload.id}"
    promise = UploadPromise(
        upload.id,
        token,
        path,
        "PUT",
        {TOKEN: token, "Content-Type": MEDIA},
        timestamp(upload.expires),
        upload.maxBytes,
    )
    return jsonResponse(201, promise, (b"Cache-Control", b"no-store"), location=path)
