# -*- test-case-name: tests.http.test_request -*-
"""
Errors as callers of the API see them: Problem+JSON (RFC 9457).

Anything below a dispatch may raise a L{Problem}; the connection answers with
it.  C{detail} is a sentence for people and never carries a secret.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus

import msgspec

from helix_revdial.http.response import Response

TYPE_BASE = "https://docs.example.com/errors/"
"""What the C{type} of every problem begins with, as the REST service names them."""

_SLUGS: Mapping[int, str] = {
    400: "bad-request",
    401: "auth",
    403: "authz",
    404: "not-found",
    405: "method-not-allowed",
    406: "not-acceptable",
    408: "timeout",
    409: "conflict",
    410: "gone",
    413: "payload-too-large",
    415: "unsupported-media-type",
    422: "idempotency-key-reuse",
    426: "upgrade-required",
    429: "rate-limited",
    431: "header-too-large",
    500: "internal",
    501: "not-implemented",
    502: "bad-gateway",
    503: "unavailable",
    504: "timeout",
    505: "http-version",
    507: "insufficient-storage",
}


class ProblemDocument(msgspec.Struct, omit_defaults=True, rename={"kind": "type"}):
    """The body of every error answer."""

    kind: str
    title: str
    status: int
    detail: str = ""
    errors: dict[str, list[str]] | None = None
    """What is wrong with which field, a dotted path (C{"repo.url"})."""
    code: str | None = None
    """One word for programs, where there is one (C{"not-connected"})."""
    requestId: str | None = None


class Problem(Exception):
    """
    An answer that is an error.

    @ivar status: The HTTP status, 400 to 599.
    @ivar detail: A sentence for people.
    @ivar errors: Per field (a dotted path), the sentences that say what is
        wrong with it.
    @ivar headers: More header fields, such as C{(b"Retry-After", b"1")}.
    """

    def __init__(
        self,
        status: int,
        detail: str = "",
        *,
        title: str | None = None,
        type: str | None = None,  # noqa: A002 - the member's name in RFC 9457
        errors: Mapping[str, Sequence[str]] | None = None,
        headers: Iterable[tuple[bytes, bytes]] = (),
        code: str | None = None,
    ) -> None:
        """
        @param title: What this kind of problem is called; by default the
            status's own phrase.
        @param type: The slug of its kind; by default one that fits the status.
        @param code: One word for programs.
        """
        super().__init__(detail or title or str(status))
        self.status = status
        self.detail = detail
        self.title = title if title is not None else phraseOf(status)
        self.type = type if type is not None else _SLUGS.get(status, "error")
        self.errors = {name: list(texts) for name, texts in (errors or {}).items()}
        self.headers = list(headers)
        self.code = code

    def response(self, requestId: str | None = None) -> Response:
        """The answer that carries this problem."""
        document = ProblemDocument(
            kind=TYPE_BASE + self.type,
            title=self.title,
            status=self.status,
            detail=self.detail,
            errors=self.errors or None,
            code=self.code,
            requestId=requestId,
        )
        headers = [(b"Content-Type", b"application/problem+json"), *self.headers]
        return Response(self.status, headers, msgspec.json.encode(document))


class PayloadTooLarge(Problem):
    """A request body is longer than its reader takes."""

    def __init__(self, limit: int) -> None:
        """@param limit: The bytes that would have been taken."""
        super().__init__(413, f"The request body is larger than {limit} bytes.")
        self.limit = limit


def validationProblem(errors: Mapping[str, Sequence[str]]) -> Problem:
    """The 400 that says what is wrong with which field."""
    text = "; ".join(f"{name}: {texts[0]}" for name, texts in errors.items() if texts)
    return Problem(400, f"The request is not valid: {text}.", type="validation", errors=errors)


def phraseOf(status: int) -> str:
    """The reason phrase of a status, empty where the standards name none."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
