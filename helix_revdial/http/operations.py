# -*- test-case-name: tests.http.test_operations -*-
"""
The operation table: every operation of the API is one row.

A row says by what method and path it is reached, who may, what it takes and
gives, and how it fails.  From the rows come the routing, the validation, the
authorisation and the OpenAPI document, so that none of them can disagree.

L{OperationTable} is a dispatch for L{HTTPFactory
<helix_revdial.http.factory.HTTPFactory>}.  The order of its checks is fixed: the
path (404), the method (405), who asks (401), whether they may (403, or 404 where
existence is a secret), what they accept (406), the query (400), the body's type
(415), size (413) and content (400), and whether the call was made before (409, 422).
So a stranger learns nothing of a row but that it exists, and no body is read for
somebody who may not send it.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from twisted.logger import Logger
from werkzeug.datastructures import MIMEAccept
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.http import parse_accept_header
from werkzeug.routing import Map, RequestRedirect, Rule

from helix_revdial.http.body import Body
from helix_revdial.http.problem import PayloadTooLarge, Problem
from helix_revdial.http.request import Request
from helix_revdial.http.response import HandedOver, Response, jsonResponse
from helix_revdial.http.validation import decodeJSON, decodeQuery

JSON = "application/json"

MAX_PARAMETER = 256
"""Characters of a path parameter that is a segment; nothing of ours has a longer name."""

ANY = "*"
"""Stands for every method, known or not."""

_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(:path)?\}")


@dataclass(frozen=True)
class HeaderField:
    """
    A header field that an operation reads itself; for the description.

    @ivar pattern: What its value looks like.
    @ivar required: Whether the call fails without it.
    """

    name: str
    description: str
    pattern: str = "^[!-~]{1,255}$"
    required: bool = True


@dataclass(frozen=True)
class Operation:
    """
    One row.

    @ivar name: Unique; the C{operationId} of the OpenAPI document.
    @ivar method: The HTTP method.  HEAD comes with GET.  L{ANY}: whatever it is.
    @ivar path: Such as C{"/api/v1/sessions/{session}"}; C{"{rest:path}"} takes
        slashes too.
    @ivar run: Carries it out.  What it returns is encoded as JSON, unless it is
        a L{Response} or L{HandedOver}.
    @ivar access: The word given to C{authorise}; C{None}: open to all, nobody is
        asked who they are.
    @ivar query: A msgspec struct; parameters it does not name are ignored unless
        it forbids unknown fields.
    @ivar body: A msgspec struct, read as JSON; or the media types that C{run}
        reads from the request itself; or C{None}.
    @ivar rules: A JSON schema for the description only: what a struct's types do not
        say of a C{body}.
    @ivar maxBody: The bytes of a body at most.
    @ivar response: The type of a JSON answer.
    @ivar media: The media types of any other answer.
    @ivar bodyShape: What a body that C{run} reads itself looks like where it is JSON;
        for the description only.
    @ivar mediaShape: The same for an answer of C{media}; of server-sent events, what the
        data of each is.
    @ivar status: The status of success.
    @ivar otherStatuses: Other statuses of success that C{run} answers with; a 204 has
        no content, any other what C{status} has.
    @ivar errors: The statuses it fails with, beyond those that the table gives.
    @ivar secret: Whether its answer holds what nobody is told twice.
    @ivar headers: Header fields that C{run} reads, beside those of HTTP and of the table;
        for the description only.
    @ivar rate: What of its caller's rate a call costs one of; C{None}: nothing.
    """

    name: str
    method: str
    path: str
    run: Callable[[Call], Awaitable[object]]
    access: str | None = None
    query: type[msgspec.Struct] | None = None
    body: type[msgspec.Struct] | tuple[str, ...] | None = None
    maxBody: int = 64 * 1024
    response: Any = None
    media: tuple[str, ...] = ()
    bodyShape: type[msgspec.Struct] | None = None
    mediaShape: Any = None
    status: int = 200
    otherStatuses: tuple[int, ...] = ()
    errors: tuple[int, ...] = ()
    summary: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()
    secret: bool = False
    rules: dict[str, Any] | None = None
    headers: tuple[HeaderField, ...] = ()
    rate: str | None = "calls"

    @property
    def takesKey(self) -> bool:
        """
        Whether a call may be named with an C{Idempotency-Key}, so that its repetition
        gets the first one's answer: every POST of somebody who says who they are.
        """
        return self.method == "POST" and self.access is not None

    @property
    def parameters(self) -> list[str]:
        """The names of the path's parameters, in order."""
        return [matched[0] for matched in _PARAMETER.findall(self.path)]

    @property
    def segments(self) -> list[str]:
        """Those of them that are one segment of the path each."""
        return [matched[0] for matched in _PARAMETER.findall(self.path) if not matched[1]]

    @property
    def openAPIPath(self) -> str:
        """The path as OpenAPI writes it."""
        return _PARAMETER.sub(r"{\1}", self.path)


def _rememberNothing(answer: Response) -> Callable[[Any], None]:
    return lambda transaction: None


@dataclass
class Call:
    """
    One call of an operation.

    @ivar params: The path's parameters, decoded.
    @ivar query: What the row's C{query} made of the query.
    @ivar body: What the row's C{body} made of the body, where it is a struct.
    @ivar principal: What C{authenticate} returned.
    @ivar resource: What the path names, where C{authorise} had to find it.
    @ivar content: The bytes that C{body} was made of; for another body the bytes
        themselves, where they had to be read before the call is carried out.
    @ivar remember: Given the answer to come, gives what writes it down for repetitions
        of this call, to be called with the transaction (of the database) that has the
        call's effect.  Needed only where a crash between the two must not lead to
        doing it twice.
    """

    request: Request
    operation: Operation
    params: dict[str, str] = field(default_factory=dict)
    query: Any = None
    body: Any = None
    principal: Any = None
    resource: Any = None
    content: bytes = b""
    remember: Callable[[Response], Callable[[Any], None]] = field(default=_rememberNothing)


Authenticate = Callable[[Request], Awaitable[object | None]]
Authorise = Callable[[Call, str], Awaitable[None]]
Run = Callable[[], Awaitable[Response | HandedOver]]
Once = Callable[[Call, Run], Awaitable[Response | HandedOver]]


class OperationTable:
    """
    Dispatches requests to operations.

    @ivar operations: The rows, in the order given.
    @ivar title: What the API is called.
    """

    _log = Logger()

    def __init__(
        self,
        operations: Sequence[Operation],
        *,
        authenticate: Authenticate,
        authorise: Authorise,
        translate: Callable[[Exception], Problem | None] | None = None,
        once: Once | None = None,
        title: str = "helix_revdial",
        version: str = "0",
        description: str = "",
    ) -> None:
        """
        @param authenticate: Who asks: any object, or C{None} for nobody.  Raises
            L{Problem} for a credential that is no good.  Called for rows with
            C{access} only.
        @param authorise: Raises L{Problem} (401, 403, 404) unless the call's
            principal may make it.
        @param translate: Makes a L{Problem} of an exception that an operation
            raised; C{None} from it leaves a 500.
        @param once: Answers calls of rows that take an C{Idempotency-Key} and have
            one; it is given what carries the call out.
        @raise ValueError: if two rows have one name, or one method and path.
        """
        self.operations = tuple(operations)
        self.title = title
        self.version = version
        self.description = description
        self._authenticate = authenticate
        self._authorise = authorise
        self._translate = translate
        self._once = once
        self._check()
        rules = [
            Rule(
                _werkzeugPath(row.path),
                methods=None if row.method == ANY else [row.method],
                endpoint=row.name,
            )
            for row in self.operations
        ]
        self._fixed: dict[str, set[str]] = {}
        for row in self.operations:
            if not row.parameters and row.method != ANY:
                methods = self._fixed.setdefault(row.path, set())
                methods |= {row.method, "HEAD"} if row.method == "GET" else {row.method}
        self._rows = {row.name: row for row in self.operations}
        self._routes = Map(rules, merge_slashes=False).bind("localhost")

    def _check(self) -> None:
        names: set[str] = set()
        places: set[tuple[str, str]] = set()
        for row in self.operations:
            place = (row.method, _PARAMETER.sub("{}", row.path))
            if row.name in names or place in places:
                raise ValueError(f"two operations are {row.name!r} or {row.method} {row.path}")
            names.add(row.name)
            places.add(place)

    def __getitem__(self, name: str) -> Operation:
        """The row of that name."""
        return self._rows[name]

    async def __call__(self, request: Request) -> Response | HandedOver:
        """
        Carry a request out.

        @raise Problem: for everything that the caller did wrong, and what the
            operation raised.
        """
        try:
            call = self._route(request)
        except MethodNotAllowed as refused:
            return self._otherMethod(request, list(refused.valid_methods or ()))
        operation = call.operation
        if operation.access is not None:
            call.principal = await self._authenticate(request)
            if call.principal is not None:
                request.authenticated()
            await self._authorise(call, operation.access)
        self._checkAccepted(call)
        if operation.query is not None:
            call.query = decodeQuery(request.query, operation.query)
        keyed = (
            self._once is not None and operation.takesKey and b"idempotency-key" in request.headers
        )
        await self._readBody(call, whole=keyed)
        if keyed and self._once is not None:
            return await self._once(call, lambda: self._run(call))
        return await self._run(call)

    async def _run(self, call: Call) -> Response | HandedOver:
        operation = call.operation
        try:
            result = await operation.run(call)
        except Problem:
            raise
        except Exception as error:
            problem = None if self._translate is None else self._translate(error)
            if problem is None:
                raise
            raise problem from error
        return self._answer(operation, result)

    def _route(self, request: Request) -> Call:
        # Methods have a letter case (RFC 9110, 9.1); werkzeug does not mind it.
        method = request.method if request.method.isupper() else "-"
        fixed = self._fixed.get(request.path)
        if fixed is not None and method not in fixed:
            # A name of the API's own is not also one that somebody gave.
            raise MethodNotAllowed(fixed)
        try:
            name, params = self._routes.match(request.path, method=method)
        except MethodNotAllowed:
            raise
        except (RequestRedirect, HTTPException):
            raise Problem(404, "There is nothing at this path.") from None
        row = self._rows[name]
        if any(len(str(params[name])) > MAX_PARAMETER for name in row.segments):
            raise Problem(404, "There is nothing at this path.")
        return Call(request, row, dict(params))

    @staticmethod
    def _otherMethod(request: Request, methods: Sequence[str]) -> Response:
        allow = (b"Allow", ", ".join(sorted({*methods, "OPTIONS"})).encode("ascii"))
        if request.method == "OPTIONS":
            return Response(204, [allow])
        raise Problem(405, f"This path does not take {request.method}.", headers=[allow])

    @staticmethod
    def _checkAccepted(call: Call) -> None:
        accepted = call.request.headers.getAll(b"accept")
        offered = _offered(call.operation)
        if not accepted or not offered:
            return
        given = parse_accept_header(b", ".join(accepted).decode("latin-1"), MIMEAccept)
        # A type's parameters ("charset=utf-8") choose nothing: there is one form of each.
        accept = MIMEAccept([(media.partition(";")[0].strip(), much) for media, much in given])
        if accept and accept.best_match(offered) is None:
            raise Problem(406, f"The answer would be {' or '.join(offered)}.")

    async def _readBody(self, call: Call, *, whole: bool) -> None:
        operation, request = call.operation, call.request
        if operation.body is None:
            if operation.takesKey and (request.body.length or 0) > operation.maxBody:
                # Nobody wants it; a caller that sends so much is wrong about what it calls.
                raise PayloadTooLarge(operation.maxBody)
            return
        media = (request.headers.get(b"content-type") or b"").partition(b";")[0]
        given = media.strip().lower().decode("latin-1")
        empty = request.body.length == 0
        if not isinstance(operation.body, tuple):
            taken: tuple[str, ...] = (JSON,)
        else:
            taken = operation.body
        if not empty or given:
            if not any(_matches(given, wanted) for wanted in taken):
                raise Problem(
                    415,
                    f"Send the request body as {' or '.join(taken)} (Content-Type).",
                    headers=[(b"Accept", ", ".join(taken).encode("ascii"))],
                )
            coding = request.headers.tokens(b"content-encoding")
            if coding and coding != [b"identity"]:
                raise Problem(415, "Send the request body without a Content-Encoding.")
        if isinstance(operation.body, tuple):
            if whole:
                # What a call is about is known before it is carried out.
                call.content = await request.body.read(operation.maxBody)
                request.body = Body.of(call.content)
            return
        call.content = await request.body.read(operation.maxBody)
        call.body = decodeJSON(call.content, operation.body)

    @staticmethod
    def _answer(operation: Operation, result: object) -> Response | HandedOver:
        if isinstance(result, Response | HandedOver):
            return result
        if result is None and operation.response is None:
            return Response(204 if operation.status == 200 else operation.status)
        return jsonResponse(operation.status, result)


async def _nobody(request: Request) -> None:
    return None


async def _everything(call: Call, access: str) -> None:
    return None


def openTable(
    operations: Sequence[Operation],
    *,
    translate: Callable[[Exception], Problem | None],
    title: str,
    version: str,
) -> OperationTable:
    """
    The table of a service that knows no users: whoever reaches it may call all of it.

    @raise ValueError: if a row has C{access}, for which nobody would be asked.
    """
    for row in operations:
        if row.access is not None:
            raise ValueError(f"{row.name!r} has access {row.access!r}, in a table open to all")
    return OperationTable(
        operations,
        authenticate=_nobody,
        authorise=_everything,
        translate=translate,
        title=title,
        version=version,
    )


def _offered(operation: Operation) -> list[str]:
    """The media types an operation may answer with; empty: it has nothing to say."""
    offered = list(operation.media)
    if operation.response is not None:
        offered.insert(0, JSON)
    return offered


def _matches(given: str, wanted: str) -> bool:
    if wanted.endswith("/*") and wanted != "*/*":
        return given.startswith(wanted[:-1])
    return wanted in ("*/*", given)


def _werkzeugPath(path: str) -> str:
    return _PARAMETER.sub(lambda matched: f"<{'path:' if matched[2] else ''}{matched[1]}>", path)
