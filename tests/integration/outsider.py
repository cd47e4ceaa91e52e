"""
A client that somebody else could have written: it knows a server's URL, and beyond
that only the description that the server serves and the HTML standard's words on
server-sent events.

It holds the server to its description: an answer with a status, a media type or a
document that the description does not have is a failure.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from jsonschema import Draft202012Validator

LIMIT = 15.0
"""Seconds that an answer, or anything on a stream, may take."""


@dataclass(frozen=True)
class Answer:
    """
    What a call was answered with.

    @ivar document: The body, where it is JSON.
    """

    status: int
    fields: http.client.HTTPMessage
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Message:
    """One event, as a browser hands it over."""

    id: str
    type: str
    data: str

    @property
    def document(self) -> Any:
        return json.loads(self.data)


class Outsider:
    """
    The client.

    @ivar description: What the server serves.
    """

    def __init__(self, url: str, token: str | None = None, scheme: str = "Bearer") -> None:
        """@param token: What is shown with each call, in that authorisation C{scheme}."""
        place = urlsplit(url)
        assert place.hostname is not None
        self._place = (place.hostname, place.port)
        self._authorization = {} if token is None else {"Authorization": f"{scheme} {token}"}
        status, _, body = self._exchange("GET", "/api/v1/openapi.json", {}, None)
        assert status == 200, (status, body)
        self.description = json.loads(body)
        self._operations = {
            operation["operationId"]: (method.upper(), path, operation)
            for path, item in self.description["paths"].items()
            for method, operation in item.items()
            if isinstance(operation, dict) and "operationId" in operation
        }

    def call(
        self,
        operation: str,
        path: Mapping[str, str] | None = None,
        *,
        query: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        body: object = None,
        raw: bytes | None = None,
    ) -> Answer:
        """
        Call an operation by its C{operationId}.

        @param body: What is sent as JSON; or C{raw}: the bytes.
        @raise AssertionError: The answer is not one that the description has.
        """
        method, place, described = self._operations[operation]
        for name, value in (path or {}).items():
            place = place.replace("{" + name + "}", quote(value, safe=""))
        target = place + ("?" + urlencode(query) if query else "")
        sent = {**self._authorization}
        if body is not None:
            raw = json.dumps(body).encode()
        if raw is not None:
            sent["Content-Type"] = "application/json"
        answer = Answer(*self._exchange(method, target, {**sent, **(headers or {})}, raw))
        self._check(operation, described, answer)
        return answer

    def events(
        self,
        session: str,
        *,
        last: str | None = None,
        query: Mapping[str, object] | None = None,
    ) -> EventSource:
        """
        Follow a session.

        @param last: What is sent as C{Last-Event-ID}.
        @raise AssertionError: There is no stream of events.
        """
        _, place, _ = self._operations["streamSessionEvents"]
        target = place.replace("{session}", session) + ("?" + urlencode(query) if query else "")
        headers = {**self._authorization, "Accept": "text/event-stream"}
        if last is not None:
            headers["Last-Event-ID"] = last
        connection = http.client.HTTPConnection(*self._place, timeout=LIMIT)
        connection.request("GET", target, headers=headers)
        return EventSource(connection, connection.getresponse())

    def _exchange(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection(*self._place, timeout=LIMIT)
        try:
            connection.request(method, target, body, dict(headers))
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def _check(self, operation: str, described: dict[str, Any], answer: Answer) -> None:
        what = f"{operation}: {answer.status} {answer.body[:1000]!r}"
        responses = described["responses"]
        assert str(answer.status) in responses, f"not described: {what}"
        assert answer.fields["X-Request-Id"], what
        content = responses[str(answer.status)].get("content")
        if not content:
            assert answer.body == b"", f"described without content: {what}"
            return
        media = answer.fields.get_content_type()
        assert media in content, f"{media} is not described: {what}"
        shape = content[media].get("schema")
        if shape is not None and media.endswith("json"):
            whole = {**shape, "components": self.description["components"]}
            faults = [
                f"{error.json_path}: {error.message}"
                for error in Draft202012Validator(whole).iter_errors(answer.document)
            ]
            assert not faults, f"not as described: {faults}: {what}"
        if answer.status >= 400:
            assert media == "application/problem+json", what
            assert answer.document["status"] == answer.status, what


@dataclass
class EventSource:
    """
    A stream of events, parsed as the standard (9.2.6) says.

    @ivar id: The last event id, which a browser would come back with.
    @ivar retry: Milliseconds that the server wants it to wait before.
    @ivar comments: What came between events, and is ignored by browsers.
    """

    _connection: http.client.HTTPConnection
    answer: http.client.HTTPResponse
    id: str = ""
    retry: int | None = None
    comments: list[str] = field(default_factory=list)

    def messages(self) -> Iterator[Message]:
        """Each event as it comes; the end of it is the clean end of the stream."""
        assert self.answer.status == 200, (self.answer.status, self.answer.read())
        assert self.answer.headers["Content-Type"] == "text/event-stream"
        kind = ""
        data: list[str] = []
        for line in iter(self.answer.readline, b""):
            text = line.decode().rstrip("\r\n")
            if not text:
                if data:
                    yield Message(self.id, kind or "message", "\n".join(data))
                kind, data = "", []
                continue
            name, _, value = text.partition(":")
            value = value.removeprefix(" ")
            match name:
                case "":
                    self.comments.append(value)
                case "event":
                    kind = value
                case "data":
                    data.append(value)
                case "id":
                    self.id = value
                case "retry":
                    self.retry = int(value)

    def close(self) -> None:
        """Read no more."""
        self.answer.close()
        self._connection.close()
