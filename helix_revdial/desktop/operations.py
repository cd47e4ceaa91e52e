# -*- test-case-name: tests.desktop.test_operations -*-
"""
The desktop's HTTP operations: C{GET /screenshot}, C{GET} and C{POST
/clipboard}, C{GET /health}.

Owns the JSON of the clipboard, the statuses of the errors, and who may ask: the
service listens on the loopback address or a unix socket and knows no users, so
whoever reaches it may ask, except a web page.  A page in a browser on the same
machine could reach it through a name of its own that resolves to 127.0.0.1;
L{guarded} refuses what arrives under such a name, and the clipboard is written
only by C{application/json}, which a foreign page cannot send unasked.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Literal

import msgspec

from helix_revdial import __version__
from helix_revdial.desktop.capture import IScreen
from helix_revdial.desktop.clipboard import Content, IClipboard
from helix_revdial.desktop.errors import DesktopError, NoDisplay
from helix_revdial.desktop.pictures import DEFAULT_QUALITY, PictureRequest, isPNG
from helix_revdial.http.operations import Call, Operation, OperationTable, openTable
from helix_revdial.http.problem import Problem, validationProblem
from helix_revdial.http.request import Request
from helix_revdial.http.response import HandedOver, Response, jsonResponse
from helix_revdial.programs import (
    OutputTooLarge,
    ProgramError,
    ProgramMissing,
    ProgramTimedOut,
    TooBusy,
)

MAX_BODY = 16 * 1024 * 1024
"""Bytes of a C{POST /clipboard} body."""

_PRIVATE = [
    (b"Cache-Control", b"no-store"),
    (b"X-Content-Type-Options", b"nosniff"),
]
"""On every picture and every clipboard: they are nobody else's."""

Dispatch = Callable[[Request], Awaitable[Response | HandedOver]]


class ScreenshotQuery(msgspec.Struct):
    """The parameters of C{GET /screenshot}, named as they are on the wire."""

    format: Literal["png", "jpeg"] = "png"
    quality: Annotated[int, msgspec.Meta(ge=1, le=100)] = DEFAULT_QUALITY
    include_cursor: bool = False


class ClipboardDocument(msgspec.Struct):
    """
    A clipboard, both ways.

    @ivar type: C{text} or C{image}.
    @ivar data: The text, or a PNG in base64.  Text without a character is an
        empty clipboard.
    """

    type: Literal["text", "image"]
    data: str


class DisplayDocument(msgspec.Struct):
    """
    Which display the service shows.

    @ivar kind: C{x11}, C{wayland}, C{test-card} or C{none}.
    @ivar name: C{:0}, the Wayland socket's name, or nothing.
    """

    kind: str
    name: str | None = None


class HealthDocument(msgspec.Struct):
    """
    How the service is.

    @ivar status: C{ok}, or C{unavailable}: then C{reason} says why pictures
        or the clipboard are not to be had.
    @ivar tools: The programs that the display needs, and where they are;
        null where one is missing.
    """

    status: Literal["ok", "unavailable"]
    display: DisplayDocument
    testCard: bool
    tools: dict[str, str | None]
    version: str
    reason: str | None = None


def translate(error: Exception) -> Problem | None:
    """
    The answer for a L{DesktopError} or L{ProgramError}; L{None} for any other exception.

    503 while the desktop has no display or lacks a program, or is busy (then
    with C{Retry-After}); 504 when the display or a clipboard's owner hangs.
    """
    text = str(error)
    text = text[:1].upper() + text[1:] + "."
    if isinstance(error, TooBusy):
        after = (b"Retry-After", str(error.retryAfter).encode("ascii"))
        return Problem(503, text, code="busy", headers=[after])
    if isinstance(error, NoDisplay):
        return Problem(503, text, code="no-display")
    if isinstance(error, ProgramMissing):
        return Problem(503, text, code="program-missing")
    if isinstance(error, ProgramTimedOut):
        return Problem(504, text, code="timed-out")
    if isinstance(error, OutputTooLarge):
        return Problem(503, text, code="too-large")
    if isinstance(error, DesktopError | ProgramError):
        return Problem(503, text, code="failed")
    return None


def contentOf(document: ClipboardDocument) -> Content:
    """
    What a document puts on the clipboard.

    @raise Problem: (400) for an image that is no PNG in base64, or text that
        has no UTF-8.
    """
    if document.type == "text":
        try:
            return Content("text", document.data.encode("utf-8"))
        except UnicodeEncodeError:
            raise validationProblem({"data": ["holds half a surrogate pair"]}) from None
    try:
        image = base64.b64decode("".join(document.data.split()), validate=True)
    except (binascii.Error, ValueError):
        raise validationProblem({"data": ["is no base64"]}) from None
    if not isPNG(image):
        raise validationProblem({"data": ["is no PNG: send images as PNG in base64"]})
    return Content("image", image)


def documentOf(content: Content) -> ClipboardDocument:
    """What is answered for a clipboard's content."""
    if content.kind == "image":
        return ClipboardDocument("image", base64.b64encode(content.data).decode("ascii"))
    return ClipboardDocument("text", content.data.decode("utf-8", "replace"))


def desktopOperations(
    screen: IScreen,
    clipboard: IClipboard,
    health: Callable[[], Awaitable[HealthDocument]],
) -> list[Operation]:
    """
    The rows of the desktop's operation table.

    @param screen: Takes the pictures, one at a time.
    @param clipboard: Reads and writes.
    @param health: Finds out how the service is.
    """

    async def screenshot(call: Call) -> Response:
        query: ScreenshotQuery = call.query
        picture = await screen.capture(
            PictureRequest(query.format, query.quality, query.include_cursor)
        )
        contentType = (b"Content-Type", picture.mediaType.encode("ascii"))
        return Response(200, [contentType, *_PRIVATE], picture.data)

    async def readClipboard(call: Call) -> Response:
        content = await clipboard.read()
        return jsonResponse(200, documentOf(content), *_PRIVATE)

    async def writeClipboard(call: Call) -> Response:
        await clipboard.write(contentOf(call.body))
        return Response(200, [(b"Cache-Control", b"no-store")])

    async def getHealth(call: Call) -> HealthDocument:
        return await health()

    return [
        Operation(
            name="screenshot",
            method="GET",
            path="/screenshot",
            run=screenshot,
            query=ScreenshotQuery,
            media=("image/png", "image/jpeg"),
            errors=(503, 504),
            summary="A picture of the whole desktop",
        ),
        Operation(
            name="readClipboard",
            method="GET",
            path="/clipboard",
            run=readClipboard,
            response=ClipboardDocument,
            errors=(503, 504),
            summary="What the clipboard holds",
        ),
        Operation(
            name="writeClipboard",
            method="POST",
            path="/clipboard",
            run=writeClipboard,
            body=ClipboardDocument,
            maxBody=MAX_BODY,
            errors=(503, 504),
            summary="Replace what the clipboard holds",
            description="Answered when other programs can paste it.",
        ),
        Operation(
            name="health",
            method="GET",
            path="/health",
            run=getHealth,
            response=HealthDocument,
            summary="Which display is shown, by which programs, and whether it answers",
        ),
    ]


def desktopTable(operations: list[Operation]) -> OperationTable:
    """The desktop's operation table, open to whoever reaches it."""
    return openTable(
        operations, translate=translate, title="helix_revdial desktop", version=__version__
    )


_PORT = re.compile(rb":[0-9]*\Z")


def isOwnName(host: bytes | None) -> bool:
    """
    Whether a C{Host} is one that no web site has: an IP address, or a name
    without a dot such as C{localhost}.
    """
    if host is None:
        return True
    name = _PORT.sub(b"", host.strip()).decode("latin-1")
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
    if "." not in name and ":" not in name:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.endswith((".localhost", ".invalid", ".internal"))
    return True


def guarded(table: Dispatch) -> Dispatch:
    """
    A dispatch that refuses web pages.

    It also tells the connection that this peer is no stranger: on this
    service there are none, and all come from one address.
    """

    async def dispatch(request: Request) -> Response | HandedOver:
        if not isOwnName(request.headers.get(b"host")):
            raise Problem(
                421,
                "This service is reached as localhost or by an IP address, not under a"
                " public name: set the Host header.",
            )
        request.authenticated()
        return await table(request)

    return dispatch
