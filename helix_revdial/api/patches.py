# -*- test-case-name: tests.api.test_patches -*-
"""
A task's work as a patch: from its host while that has it, and afterwards from the
server's own copy.

What a session that has ended delivered does not change any more, so that the copy goes
before the host.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator

from helix_revdial.api.asked_session import checkKept, taskOf
from helix_revdial.api.services import Services
from helix_revdial.api.session_document import PATH
from helix_revdial.http.operations import Call, Operation
from helix_revdial.http.problem import Problem
from helix_revdial.http.response import BrokenOff, Response
from helix_revdial.sessions.executor import ExecutorRefused, ExecutorUnreachable
from helix_revdial.sessions.lifecycle import TERMINAL
from helix_revdial.sessions.patches import Patch, PatchDamaged
from helix_revdial.sessions.records import Session

DIFF = "text/x-diff"


def operations(services: Services) -> list[Operation]:
    """The one."""

    async def patch(call: Call) -> Response:
        session = taskOf(call)
        kept = services.patches.get(session.id)
        if kept is not None and session.status in TERMINAL:
            answer = await _fromCopy(session, kept)
            if answer is not None:
                return answer
        if session.executor is None or session.workspace is None:
            raise Problem(
                409, f"The session is {session.status}: there is no work yet.", code="no-workspace"
            )
        checkKept(session)
        return await _fromHost(session, session.executor)

    async def _fromCopy(session: Session, kept: Patch) -> Response | None:
        pieces = services.patches.read(kept)
        try:
            first = await anext(pieces, b"")
        except PatchDamaged:
            # As if it had never been: the host may have it.
            await services.patches.remove(session.id)
            return None
        digest = base64.b64encode(bytes.fromhex(kept.sha256)).decode("ascii")
        headers = [
            *_headers(session),
            (b"Content-Length", b"%d" % kept.size),
            (b"ETag", f'"{kept.sha256}"'.encode("ascii")),
            (b"Repr-Digest", f"sha-256=:{digest}:".encode("ascii")),
        ]
        return Response(200, headers, _after(first, pieces))

    async def _fromHost(session: Session, executor: str) -> Response:
        pieces = services.executors.reach(executor).patch(session.id)
        first = await anext(pieces, b"")
        return Response(200, _headers(session), _after(first, pieces))

    return [
        Operation(
            name="getSessionPatch",
            method="GET",
            path=PATH + "/{session}/patch",
            run=patch,
            access="task-viewer",
            media=(DIFF,),
            errors=(401, 403, 404, 409, 410, 503),
            summary="The work of a task as a patch that git applies.",
            description="Of a task that delivers a patch it can be had after its host is gone.",
            tags=("sessions",),
        ),
    ]


def _headers(session: Session) -> list[tuple[bytes, bytes]]:
    return [
        (b"Content-Type", f"{DIFF}; charset=utf-8".encode("ascii")),
        (b"Content-Disposition", f'attachment; filename="{session.id}.patch"'.encode("ascii")),
    ]


async def _after(first: bytes, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        if first:
            yield first
        async for piece in pieces:
            yield piece
    except (PatchDamaged, ExecutorRefused, ExecutorUnreachable) as error:
        raise BrokenOff(f"the patch broke off: {error}") from error
    finally:
        close = getattr(pieces, "aclose", None)
        if close is not None:
            await close()
