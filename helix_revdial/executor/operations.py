# -*- test-case-name: tests.integration.test_executor -*-
"""
The executor's HTTP operations: what a control plane asks of a runner host.

Whoever reaches the socket may ask for everything: that is the agent beside it, which
offers it to the control plane alone (C{expose = internal}).  A web page cannot reach a
unix socket.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec
from twisted.internet.threads import deferToThreadPool

from helix_revdial import __version__
from helix_revdial.http.operations import Call, Operation, OperationTable, openTable
from helix_revdial.http.problem import PayloadTooLarge, Problem
from helix_revdial.http.request import Request
from helix_revdial.http.response import Response, jsonResponse
from helix_revdial.sessions.executor import HostHealth, HostSession, LaunchSpec, SnapshotMade

from .held import OtherSpec, Refused
from .journal import JournalGone
from .sessions import Busy, LocalSessions, NoSuchSession

MAX_SPEC = 1024 * 1024
"""Bytes of a specification."""

PIECE = 256 * 1024
"""Bytes of a patch that are read at a time."""

UPLOAD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""What an upload may be called: it becomes a file."""

VERBS = ("pause", "resume", "stop", "cancel", "prompt")


class HostDocument(HostHealth, frozen=True, kw_only=True):
    """
    How the host is, and what keeps its sessions apart.

    @ivar isolation: Of C{user}, C{control-group} and C{mounts}.
    """

    isolation: list[str]


class SessionList(msgspec.Struct):
    """Every session on the host."""

    items: list[HostSession]


class ReportsQuery(msgspec.Struct):
    """Which reports are wanted."""

    after: Annotated[int, msgspec.Meta(ge=0)] = 0


class ControlDocument(msgspec.Struct):
    """What is asked of a session."""

    deadline: Annotated[float, msgspec.Meta(ge=0, le=3600)] | None = None
    prompt: str | None = None
    number: Annotated[int, msgspec.Meta(ge=1)] | None = None


class SnapshotDocument(msgspec.Struct):
    """What a snapshot is called."""

    label: Annotated[str, msgspec.Meta(max_length=200)] = ""


class UploadDocument(msgspec.Struct):
    """Where an upload is: what a specification's C{repo.uploadPath} says."""

    uploadPath: str
    size: int


def translate(error: Exception) -> Problem | None:
    """The answer for what the sessions raise."""
    text = str(error)
    text = text[:1].upper() + text[1:] + "."
    if isinstance(error, NoSuchSession):
        return Problem(404, text, code="no-session")
    if isinstance(error, OtherSpec):
        return Problem(409, text, code="other-spec")
    if isinstance(error, Refused):
        return Problem(409, text, code=error.word)
    if isinstance(error, Busy):
        return Problem(503, text, code="busy", headers=[(b"Retry-After", b"2")])
    if isinstance(error, JournalGone):
        return Problem(410, text, code="gone")
    return None


async def _pieces(file: BinaryIO) -> AsyncIterator[bytes]:
    with file:
        while piece := file.read(PIECE):
            yield piece


def executorOperations(
    sessions: LocalSessions,
    host: Callable[[], HostDocument],
    *,
    uploads: Path,
    uploadBytes: int,
    reactor: Any,
) -> list[Operation]:
    """
    The rows of the executor's operation table.

    @param host: How the host is.
    @param uploads: Where archives go.
    @param uploadBytes: How large one may be.
    """

    async def getHost(call: Call) -> HostDocument:
        return host()

    async def listSessions(call: Call) -> SessionList:
        return SessionList([sessions.find(each).describe() for each in sessions.ids()])

    async def launch(call: Call) -> Response:
        spec: LaunchSpec = call.body
        if spec.session != call.params["session"]:
            raise Problem(400, "The session is not the one that the path names.")
        new = await sessions.launch(spec)
        return jsonResponse(201 if new else 200, sessions.find(spec.session).describe())

    async def getSession(call: Call) -> HostSession:
        return sessions.find(call.params["session"]).describe()

    async def reports(call: Call) -> Response:
        lines = sessions.find(call.params["session"]).reports(call.query.after)
        return Response(200, [(b"Content-Type", b"application/x-ndjson")], lines)

    def control(verb: str) -> Operation:
        async def run(call: Call) -> None:
            asked: ControlDocument = call.body
            session = sessions.find(call.params["session"])
            await session.command(verb, asked.deadline, asked.prompt, asked.number)

        return Operation(
            name=f"{verb}Session",
            method="POST",
            path=f"/v1/sessions/{{session}}/{verb}",
            run=run,
            body=ControlDocument,
            maxBody=256 * 1024,
            status=202,
            errors=(404, 409),
            summary=f"{verb.capitalize()} a session",
        )

    async def snapshot(call: Call) -> SnapshotMade:
        return await sessions.find(call.params["session"]).snapshot(call.body.label)

    async def patch(call: Call) -> Response:
        made = await sessions.find(call.params["session"]).patch()
        # Opened at once: the next one who asks has another made in its place.
        file = made.path.open("rb")
        headers = [
            (b"Content-Type", b"text/x-diff"),
            (b"Content-Length", b"%d" % os.fstat(file.fileno()).st_size),
            (b"Digest", f"sha-256={made.sha256}".encode("ascii")),
        ]
        return Response(200, headers, _pieces(file))

    async def forget(call: Call) -> None:
        await sessions.forget(call.params["session"])

    async def upload(call: Call) -> UploadDocument:
        name = call.params["upload"]
        if UPLOAD.fullmatch(name) is None:
            raise Problem(400, "An upload's name has letters, digits, '_' and '-', at most 64.")
        return UploadDocument(name, await _receive(call.request, uploads / name))

    async def _receive(request: Request, target: Path) -> int:
        length = request.body.length
        if length is not None and length > uploadBytes:
            raise PayloadTooLarge(uploadBytes)
        draft = target.with_name(target.name + ".new")
        size = 0
        pool = reactor.getThreadPool()
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            try:
                async for piece in request.body.pieces():
                    size += len(piece)
                    if size > uploadBytes:
                        raise PayloadTooLarge(uploadBytes)
                    await deferToThreadPool(reactor, pool, file.write, piece)
            except BaseException:
                draft.unlink(missing_ok=True)
                raise
        draft.rename(target)
        return size

    return [
        Operation(
            name="host",
            method="GET",
            path="/v1/host",
            run=getHost,
            response=HostDocument,
            summary="What this host can do, and how much it does",
        ),
        Operation(
            name="listSessions",
            method="GET",
            path="/v1/sessions",
            run=listSessions,
            response=SessionList,
            summary="Every session on this host",
        ),
        Operation(
            name="launchSession",
            method="PUT",
            path="/v1/sessions/{session}",
            run=launch,
            body=LaunchSpec,
            maxBody=MAX_SPEC,
            response=HostSession,
            status=201,
            errors=(409, 503),
            summary="Begin a session",
            description="The same again changes nothing and is answered with 200.",
        ),
        Operation(
            name="getSession",
            method="GET",
            path="/v1/sessions/{session}",
            run=getSession,
            response=HostSession,
            errors=(404,),
            summary="What is known of a session",
        ),
        Operation(
            name="reports",
            method="GET",
            path="/v1/sessions/{session}/reports",
            run=reports,
            query=ReportsQuery,
            media=("application/x-ndjson",),
            errors=(404, 410),
            summary="What happens in a session, from a report on",
            description="Stays open until the last report; an empty line says that it lives.",
        ),
        *[control(verb) for verb in VERBS],
        Operation(
            name="snapshot",
            method="POST",
            path="/v1/sessions/{session}/snapshots",
            run=snapshot,
            body=SnapshotDocument,
            response=SnapshotMade,
            status=201,
            errors=(404, 409),
            summary="Keep the workspace as it is",
        ),
        Operation(
            name="patch",
            method="GET",
            path="/v1/sessions/{session}/patch",
            run=patch,
            media=("text/x-diff",),
            errors=(404, 409),
            summary="All that is different in the workspace",
        ),
        Operation(
            name="forgetSession",
            method="DELETE",
            path="/v1/sessions/{session}",
            run=forget,
            summary="Kill a session and remove what is left of it",
        ),
        Operation(
            name="upload",
            method="PUT",
            path="/v1/uploads/{upload}",
            run=upload,
            body=("application/octet-stream",),
            response=UploadDocument,
            errors=(413,),
            summary="An archive for a workspace",
        ),
    ]


def executorTable(operations: list[Operation]) -> OperationTable:
    """The executor's operation table, open to whoever reaches it."""
    return openTable(
        operations, translate=translate, title="helix_revdial executor", version=__version__
    )
