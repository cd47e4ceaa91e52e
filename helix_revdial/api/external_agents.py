# -*- test-case-name: tests.api.test_external_agents -*-
"""
Screenshot and clipboard of a session's desktop: through the tunnel or a clean
error, never around it.

What comes from a sandbox is not trusted: only pictures of three kinds are
passed on, with C{nosniff}, and only up to a size; of what the sandbox says
about itself nothing but the media type, and what a known word for an error
means, reaches the caller.
"""

from __future__ import annotations

import msgspec

from helix_revdial.access.policy import mayDial
from helix_revdial.api.authority import asking
from helix_revdial.api.observation import aboutOf
from helix_revdial.api.problems import problemOf
from helix_revdial.api.services import Services
from helix_revdial.api.tracing import traceOf
from helix_revdial.api.waiting import waitOf
from helix_revdial.desktop.operations import ClipboardDocument
from helix_revdial.gateways.backends import Service
from helix_revdial.gateways.forwarding import BadAnswer
from helix_revdial.gateways.http import Answer, AnswerTooLarge, fetch
from helix_revdial.http.operations import Call, Operation
from helix_revdial.http.problem import Problem
from helix_revdial.http.response import Response
from helix_revdial.revdial.errors import DialError, DialTimeout, ReconnectTimeout

PICTURES = ("image/png", "image/jpeg", "image/webp")

_MAGIC = {
    "image/png": lambda body: body.startswith(b"\x89PNG\r\n\x1a\n"),
    "image/jpeg": lambda body: body.startswith(b"\xff\xd8\xff"),
    "image/webp": lambda body: body[:4] == b"RIFF" and body[8:12] == b"WEBP",
}

MAX_QUERY = 2048
"""Bytes of the query that is passed on to the desktop."""

ANYBODY = "desktop"
"""Whose connections to desktops are: those of all callers."""

_PATH = "/api/v1/external-agents/{session}"


def operations(services: Services) -> list[Operation]:
    """The three rows."""

    async def ask(
        call: Call,
        method: bytes,
        path: bytes,
        maxBody: int,
        body: bytes | None = None,
    ) -> tuple[Answer, list[tuple[bytes, bytes]]]:
        # Dials that wait are few: none for callers that have gone away.
        call.request.endWithCaller()
        runner = services.runnerOf(call.resource.id)
        trace = traceOf(call.request)
        deadline = services.config.desktop.requestTimeout
        deadline = min(deadline, waitOf(call.request) or deadline)
        principal = asking(call)
        desktop = Service(
            # Whoever asks, the request is ours, and has nothing of his.
            caller=ANYBODY,
            runner=runner,
            target=None,
            allow=lambda expose: mayDial(principal, runner, expose, call.resource),
            about=aboutOf(call.request.requestId, trace),
            wait=deadline,
        )
        began = services.clock.seconds()
        fields = trace.headers()
        if body is not None:
            fields.append((b"Content-Type", b"application/json"))

        def dialTimedOut() -> DialError:
            if services.connections.status(runner) == "connected":
                return DialTimeout()
            return ReconnectTimeout()

        try:
            answer = await fetch(
                services.proxy.backends,
                desktop,
                method,
                path,
                deadline=deadline,
                maxBody=maxBody,
                headers=fields,
                body=body,
                dialTimedOut=dialTimedOut,
            )
        except DialError as error:
            raise problemOf(error) from None
        except BadAnswer as error:
            raise Problem(
                502,
                f"The sandbox's desktop service gave an answer that is none: {error}.",
                code="bad-answer",
            ) from None
        except AnswerTooLarge as error:
            raise Problem(
                502, f"The sandbox's answer is too large: {error}.", code="too-large"
            ) from None
        if not 200 <= answer.status < 300:
            # Its own words may be anything: the caller gets the number, and what it means.
            status = answer.status if 400 <= answer.status < 600 else 502
            raise Problem(
                status if status in _PASSED_ON else 502,
                "The sandbox's desktop service answered with status "
                f"{answer.status}{_why(answer)}.",
                code="desktop-error",
            )
        timing = _serverTiming(answer, services.clock.seconds() - began)
        return answer, [(b"Server-Timing", timing), *_PRIVATE]

    async def screenshot(call: Call) -> Response:
        query = call.request.rawQuery
        if len(query) > MAX_QUERY:
            raise Problem(400, f"The query is longer than {MAX_QUERY} bytes.")
        path = b"/screenshot" + (b"?" + query if query else b"")
        limit = services.config.desktop.maxScreenshotBytes
        answer, headers = await ask(call, b"GET", path, limit)
        kind = answer.contentType()
        if kind not in _MAGIC or not _MAGIC[kind](answer.body):
            raise Problem(
                502,
                "The sandbox's desktop service answered with something that is no PNG, JPEG "
                "or WebP picture.",
                code="not-a-picture",
            )
        return Response(200, [(b"Content-Type", kind.encode()), *headers], answer.body)

    async def getClipboard(call: Call) -> Response:
        limit = services.config.desktop.maxClipboardBytes
        answer, headers = await ask(call, b"GET", b"/clipboard", limit)
        return Response(200, [(b"Content-Type", b"application/json"), *headers], answer.body)

    async def setClipboard(call: Call) -> Response:
        limit = services.config.desktop.maxClipboardBytes
        body = await call.request.body.read(limit)
        _, headers = await ask(call, b"POST", b"/clipboard", limit, body)
        return Response(200, headers, b"")

    common = (401, 403, 404, 502, 503, 504)
    return [
        Operation(
            name="getScreenshot",
            method="GET",
            path=_PATH + "/screenshot",
            run=screenshot,
            access="session-reader",
            media=PICTURES,
            errors=(400, *common),
            summary="A picture of the session's desktop; the query is passed on to it.",
            tags=("external-agents",),
        ),
        Operation(
            name="getClipboard",
            method="GET",
            path=_PATH + "/clipboard",
            run=getClipboard,
            access="session-owner",
            media=("application/json",),
            mediaShape=ClipboardDocument,
            errors=common,
            summary="What the session's clipboard holds.",
            tags=("external-agents",),
        ),
        Operation(
            name="setClipboard",
            method="POST",
            path=_PATH + "/clipboard",
            run=setClipboard,
            access="session-owner",
            body=("application/json",),
            bodyShape=ClipboardDocument,
            maxBody=services.config.desktop.maxClipboardBytes,
            media=("application/json",),
            errors=(400, 413, 415, *common),
            summary="Put something on the session's clipboard.",
            tags=("external-agents",),
        ),
    ]


_PASSED_ON = {400, 404, 413, 415, 503}
"""Statuses of the desktop service that mean to our caller what they mean to us."""

_REASONS = {
    "busy": "it has too much to do",
    "no-display": "there is no display, or its programs cannot use it",
    "program-missing": "a program that it needs is not installed",
    "timed-out": "the display did not answer in time",
    "too-large": "the picture, or the clipboard, is larger than it takes",
    "failed": "the display gave nothing that it could use",
}
"""What our desktop service's words mean (docs/desktop.md)."""


class _Refusal(msgspec.Struct):
    """What is read of an error of the desktop service."""

    code: str = ""


def _why(answer: Answer) -> str:
    """What went wrong, in our words, where the desktop service used a word of ours."""
    if answer.contentType() != "application/problem+json":
        return ""
    try:
        code = msgspec.json.decode(answer.body, type=_Refusal).code
    except (msgspec.DecodeError, RecursionError):
        return ""
    return f": {_REASONS[code]}" if code in _REASONS else ""


_PRIVATE = [(b"X-Content-Type-Options", b"nosniff"), (b"Cache-Control", b"no-store")]


def _serverTiming(answer: Answer, total: float) -> bytes:
    """
    The phases of the dial in milliseconds since it began, as a
    C{Server-Timing} header (W3C Server Timing).  C{target} is a duration: how
    long the agent says that its service took to accept.  C{reused} stands there
    where a connection of before made a dial needless.
    """
    phases = answer.phases
    reused = [b"reused"] if answer.reused else []
    known = [
        (word, phases[name])
        for word, name in (
            ("asked", "asked"),
            ("dialback", "dialBack"),
            ("target", "target"),
            ("firstbyte", "firstByteIn"),
        )
        if name in phases
    ]
    timed = [
        b"%s;dur=%.3f" % (word.encode(), seconds * 1000)
        for word, seconds in (*known, ("total", total))
    ]
    return b", ".join(reused + timed)
