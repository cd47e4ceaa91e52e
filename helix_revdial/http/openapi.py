# -*- test-case-name: tests.http.test_operations -*-
"""
The OpenAPI 3.1 document of an operation table.

Everything in it is read from the rows, and the schemas from the very types that
decode the requests, so that the document cannot promise what the server does not
do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from helix_revdial.http.events import EVENT_STREAM
from helix_revdial.http.operations import ANY, JSON, Operation, OperationTable
from helix_revdial.http.problem import ProblemDocument, phraseOf

METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
"""What stands for a row that takes any method; the document knows no others."""

_SEGMENT = "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
"""What every name is that is one segment of a path."""

_REST = "^(?:[A-Za-z0-9_~-][A-Za-z0-9._~-]*(?:/|$))*$"
"""What the rest of a path is promised to take; there is more that works."""

_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Names the call: made again with the same key, it is carried out once.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
}

NO_CONTROLS = r"^[^\u0000-\u001f\u007f-\u009f]*$"
"""Of a text for people: what a type does not say and the operation checks."""

_REF = "#/components/schemas/{name}"

_HEADER = "#/components/headers/"

_HEADERS = {
    "RetryAfter": {
        "description": "Seconds after which the call may be made again.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    },
    "Replayed": {
        "description": "That the call was carried out before, and this is its answer.",
        "schema": {"const": "true"},
    },
}


def openapi(table: OperationTable) -> dict[str, Any]:
    """
    Describe a table.

    @return: The document, of values that JSON has.
    """
    schemas = _Schemas(table.operations)
    paths: dict[str, dict[str, Any]] = {}
    for row in table.operations:
        described = paths.setdefault(row.openAPIPath, {})
        if row.method != ANY:
            described[row.method.lower()] = _operation(row, schemas)
            continue
        for method in METHODS:
            operation = _operation(row, schemas)
            described[method] = operation | {"operationId": row.name + method.capitalize()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": table.title,
            "version": table.version,
            **({"description": table.description} if table.description else {}),
        },
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "headers": _HEADERS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "ApiKey, a space, and the token.",
                },
            },
        },
    }


class _Schemas:
    """The schema of each type that the rows name."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        self._index: list[tuple[Any, dict[str, Any]]] = []
        wanted: list[Any] = [ProblemDocument]
        for row in operations:
            wanted += [type_ for type_ in _typesOf(row) if type_ not in wanted]
        found, self.components = msgspec.json.schema_components(wanted, ref_template=_REF)
        self._index = list(zip(wanted, found, strict=True))

    def of(self, type_: Any) -> dict[str, Any]:
        """The schema of one type, which refers to the components."""
        return next(schema for known, schema in self._index if known == type_)


def _typesOf(row: Operation) -> Iterator[Any]:
    if row.query is not None:
        for field in msgspec.structs.fields(row.query):
            yield field.type
    if row.body is not None and not isinstance(row.body, tuple):
        yield row.body
    for type_ in (row.response, row.bodyShape, row.mediaShape):
        if type_ is not None:
            yield type_


def _operation(row: Operation, schemas: _Schemas) -> dict[str, Any]:
    described: dict[str, Any] = {"operationId": row.name}
    if row.summary:
        described["summary"] = row.summary
    if row.description:
        described["description"] = row.description
    if row.tags:
        described["tags"] = list(row.tags)
    described["parameters"] = [*_pathParameters(row), *_queryParameters(row, schemas)]
    described["parameters"] += [
        {
            "name": header.name,
            "in": "header",
            "required": header.required,
            "description": header.description,
            "schema": {"type": "string", "pattern": header.pattern},
        }
        for header in row.headers
    ]
    if row.takesKey:
        described["parameters"].append(_KEY)
    if row.body is not None:
        described["requestBody"] = _requestBody(row, schemas)
    described["responses"] = _responses(row, schemas)
    described["security"] = [] if row.access is None else [{"bearer": []}, {"apiKey": []}]
    if row.access is not None:
        described["x-access"] = row.access
    return described


def _pathParameters(row: Operation) -> Iterator[dict[str, Any]]:
    for name in row.parameters:
        pattern = _SEGMENT if name in row.segments else _REST
        schema = {"type": "string", "pattern": pattern}
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _queryParameters(row: Operation, schemas: _Schemas) -> Iterator[dict[str, Any]]:
    if row.query is None:
        return
    for field in msgspec.structs.fields(row.query):
        schema = dict(schemas.of(field.type))
        if field.default is not msgspec.NODEFAULT and field.default is not None:
            schema["default"] = msgspec.to_builtins(field.default)
        described = {
            "name": field.encode_name,
            "in": "query",
            "required": field.required,
            "schema": schema,
        }
        if "description" in schema:
            described["description"] = schema.pop("description")
        yield described


def _requestBody(row: Operation, schemas: _Schemas) -> dict[str, Any]:
    if isinstance(row.body, tuple):
        content = _passedOn(row.body, row.bodyShape, schemas)
        return {"required": True, "content": content}
    assert row.body is not None
    required = any(field.required for field in msgspec.structs.fields(row.body))
    schema = schemas.of(row.body)
    if row.rules is not None:
        schema = {"allOf": [schema, row.rules]}
    return {"required": required, "content": {JSON: {"schema": schema}}}


def _passedOn(types: tuple[str, ...], shape: Any, schemas: _Schemas) -> dict[str, Any]:
    """Content that the operation does not make of a type of ours."""
    content: dict[str, Any] = {media: {} for media in types}
    if shape is not None and JSON in content:
        content[JSON] = {"schema": schemas.of(shape)}
    if shape is not None and EVENT_STREAM in content:
        content[EVENT_STREAM] = {"schema": _serverSentEvent(schemas.of(shape))}
    return content


def _serverSentEvent(data: dict[str, Any]) -> dict[str, Any]:
    """One event of a stream, with its data as JSON (as OpenAPI 3.2, 4.14.4, describes them)."""
    return {
        "type": "object",
        "description": "Each event of the stream.",
        "properties": {
            "id": {"type": "string"},
            "event": {"type": "string"},
            "data": {
                "type": "string",
                "contentMediaType": "application/json",
                "contentSchema": data,
            },
        },
        "required": ["event", "data"],
    }


def _responses(row: Operation, schemas: _Schemas) -> dict[str, Any]:
    content = _passedOn(row.media, row.mediaShape, schemas)
    if row.response is not None:
        content[JSON] = {"schema": schemas.of(row.response)}
    status = 204 if not content and row.status == 200 else row.status
    responses: dict[str, Any] = {
        str(status): {
            "description": phraseOf(status) or "Success",
            **({"content": content} if content else {}),
        }
    }
    for other in row.otherStatuses:
        responses[str(other)] = {
            "description": phraseOf(other),
            **({"content": content} if content and other != 204 else {}),
        }
    if row.takesKey and row.status == 201:
        replayed = {"description": "What was answered to the first call of this key."}
        responses["200"] = replayed | ({"content": content} if content else {})
        responses["200"]["headers"] = {"Idempotency-Replayed": {"$ref": _HEADER + "Replayed"}}
    problem = {"application/problem+json": {"schema": schemas.of(ProblemDocument)}}
    for error in sorted({*row.errors, *_ownErrors(row)}):
        responses[str(error)] = {"description": phraseOf(error), "content": problem}
        if error == 429:
            responses["429"]["headers"] = {"Retry-After": {"$ref": _HEADER + "RetryAfter"}}
    return responses


def _ownErrors(row: Operation) -> set[int]:
    """The statuses that the table itself answers with."""
    # Whatever is asked for, its head may be none, or too large.
    errors = {400, 431, 500}
    if row.access is not None:
        errors |= {401, 403, 503}
    if row.media or row.response is not None:
        errors.add(406)
    if row.body is not None:
        errors |= {413, 415}
    if row.takesKey:
        errors |= {409, 413, 422}
    if row.access is not None and row.rate is not None:
        errors.add(429)
    return errors
