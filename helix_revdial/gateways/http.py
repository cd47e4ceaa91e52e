# -*- test-case-name: tests.gateways.test_http -*-
"""
One HTTP exchange with a service beside an agent.

This is for exchanges whose answer is small enough to hold and is held: the
answer's size is capped, the caller's deadline bounds the whole exchange (the
dial, the request, the last byte of the answer), and whichever ends it, the
connection waits for the next request, where all is in order, or is gone.

What went wrong is either the dial (a L{DialError
<helix_revdial.revdial.errors.DialError>}, which passes through), the time, the
tunnel, or an answer that is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import h11
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from helix_revdial.gateways.backend import Backend, fieldsOf
from helix_revdial.gateways.backends import Backends, Wanted
from helix_revdial.gateways.forwarding import BadAnswer, answerFields
from helix_revdial.http.request import Headers
from helix_revdial.revdial.errors import DialError, TargetTimeout


class AnswerTooLarge(Exception):
    """The service's answer is larger than the caller takes."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the answer is larger than {limit:,} bytes")
        self.limit = limit


@dataclass(frozen=True)
class Answer:
    """
    A whole answer.

    @ivar reused: Whether it came by a connection of before.
    @ivar phases: What is known of the dial that it came by: seconds since it
        began, by the names of L{Stream.phases
        <helix_revdial.revdial.streams.Stream>}; nothing where there was none.
    """

    status: int
    headers: Headers
    body: bytes
    reused: bool
    phases: Mapping[str, float]

    def contentType(self) -> str:
        """The media type without parameters, in lower case; empty if none is given."""
        first = self.headers.get(b"content-type") or b""
        return first.partition(b";")[0].strip().lower().decode("latin-1")


async def fetch(
    backends: Backends,
    wanted: Wanted,
    method: bytes,
    path: bytes,
    *,
    deadline: float,
    maxBody: int,
    headers: Sequence[tuple[bytes, bytes]] = (),
    body: bytes | None = None,
    dialTimedOut: Callable[[], DialError],
) -> Answer:
    """
    Ask a service beside an agent, and take its whole answer.

    @param backends: Has the connections.
    @param wanted: The service.
    @param path: The request target in origin form, query included.
    @param deadline: Seconds for the whole exchange.
    @param maxBody: Bytes of the answer's body that are taken.
    @param headers: Further header fields of the request.
    @param body: The request's body, if it has one; such a request never goes by a
        connection of before.
    @param dialTimedOut: Makes the error for a deadline that passes before the
        service is connected: only the caller knows what was waited for.

    @raise DialError: The dial failed, the time was up, or the tunnel broke.
    @raise BadAnswer: The answer is no HTTP.
    @raise AnswerTooLarge: The answer is larger than C{maxBody}.
    @raise ValueError: The request is none.
    """
    fields = [(b"Host", b"localhost"), *headers]
    if body is not None:
        fields.append((b"Content-Length", b"%d" % len(body)))
    try:
        request = h11.Request(method=method, target=path, headers=fields)
    except h11.LocalProtocolError as error:
        raise ValueError(f"this request cannot be sent: {error}") from None
    backend: Backend | None = None

    async def exchange(chosen: Backend) -> Answer:
        nonlocal backend
        backend = chosen
        reused = chosen.served > 0
        chosen.begin(request)
        if body:
            chosen.write(body)
        chosen.end()
        head = await chosen.answer()
        if isinstance(head, h11.InformationalResponse):
            raise BadAnswer("it switched protocols, which nobody asked for")
        found = fieldsOf(head)
        # One that could be read in two ways is not read at all.
        answerFields(head.status_code, found, version=head.http_version)
        announced = found.get(b"content-length")
        if announced is not None and int(announced) > maxBody:
            raise AnswerTooLarge(maxBody)
        # One block: thousands of small ones would leave the process with holes that
        # it cannot give back.
        content = bytearray()
        while piece := await chosen.piece():
            content += piece
            if len(content) > maxBody:
                raise AnswerTooLarge(maxBody)
        phases = {} if reused else chosen.phases
        return Answer(head.status_code, found, bytes(content), reused, phases)

    def timedOut(result: Answer | Failure, timeout: float) -> Failure:
        isConnected = backend is not None and not backend.endedSilently
        return Failure(TargetTimeout() if isConnected else dialTimedOut())

    asking = backends.ask(wanted, exchange, repeatable=method == b"GET" and body is None)
    try:
        answer = await Deferred.fromCoroutine(asking).addTimeout(
            deadline, backends.clock, onTimeoutCancel=timedOut
        )
    except BaseException:
        if backend is not None:
            backend.close()
        raise
    assert backend is not None
    backends.over(wanted, backend)
    return answer


__all__ = ["Answer", "AnswerTooLarge", "fetch"]
