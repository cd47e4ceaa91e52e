# -*- test-case-name: tests.http.test_connection -*-
"""
The head of an answer: what every answer carries, and what none may.
"""

from __future__ import annotations

import uuid
from typing import cast

import h11

from helix_revdial.http.problem import Problem, phraseOf
from helix_revdial.http.request import Headers
from helix_revdial.http.response import Response

MAX_REQUEST_ID = 64
"""Characters of an C{X-Request-Id} that is echoed."""

_NO_PLACE = (
    Problem(503, "The server has too many connections; try again later.", code="busy")
    .response()
    .body
)

BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\n"
    b"Retry-After: 1\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
    % (len(cast(bytes, _NO_PLACE)), _NO_PLACE)
)
"""
What a peer for whom there is no place gets, whatever it asks.  In the server's own
words: an agent that took it for a proxy's would try another carrier at once.
"""


def answerHead(
    answer: Response, *, date: bytes, server: bytes, requestId: str, close: bool
) -> h11.Response:
    """
    Complete the head of an answer.

    @param close: Whether the connection ends with it.
    @raise ValueError: if the answer sets what is not its own to set.
    @raise h11.LocalProtocolError: if a header field is none.
    """
    names = {name.lower() for name, _ in answer.headers}
    if b"transfer-encoding" in names:
        raise ValueError("the framing is the connection's business")
    if not 200 <= answer.status <= 599:
        raise ValueError("not a final status")
    headers = [(b"X-Request-Id", requestId.encode("ascii")), *answer.headers]
    # An answer that is passed on has those of its origin (RFC 9110, 6.6.1 and 10.2.4).
    if b"server" not in names:
        headers.insert(0, (b"Server", server))
    if b"date" not in names:
        headers.insert(0, (b"Date", date))
    hasBody = answer.status not in (204, 304)
    if isinstance(answer.body, bytes) and hasBody and b"content-length" not in names:
        headers.append((b"Content-Length", b"%d" % len(answer.body)))
    if close:
        headers.append((b"Connection", b"close"))
    return h11.Response(
        status_code=answer.status,
        headers=headers,
        reason=phraseOf(answer.status).encode("ascii"),
    )


async def closeBody(body: object) -> None:
    """Let the iterable of an answer release what it holds."""
    close = getattr(body, "aclose", None)
    if close is not None:
        await close()


def requestIdOf(headers: Headers) -> str:
    """The caller's own id for its request, if it is well-formed; else a new one."""
    given = headers.get(b"x-request-id") or b""
    if 0 < len(given) <= MAX_REQUEST_ID and all(0x21 <= byte <= 0x7E for byte in given):
        return given.decode("ascii")
    return newRequestId()


def newRequestId() -> str:
    """An id that finds a request in the log."""
    return uuid.uuid4().hex
