# -*- test-case-name: tests.http.test_connection -*-
"""
How an answer becomes bytes: its head, its body, and the ready-made ones.

L{answerHead} says what every answer carries, and what none may.  L{writeAnswer} has
h11 frame the body in pieces of a limited size, and waits between them until the peer
takes more.  L{refusal} and L{BUSY} are whole answers to what is no request.  Nothing
here knows whose connection it is.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterable, Awaitable, Callable
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


async def writeAnswer(
    framing: h11.Connection,
    head: h11.Response,
    body: bytes | AsyncIterable[bytes],
    *,
    write: Callable[[list[bytes]], None],
    writable: Callable[[], Awaitable[None]],
    pieceBytes: int,
) -> None:
    """
    Write an answer to the end.

    @param framing: The request's own.
    @param head: What comes first.
    @param body: What follows; empty where the answer has none.
    @param write: Given pieces to write.
    @param writable: Fires when the peer takes more.
    @param pieceBytes: Bytes between two waits, at most.
    """
    start = framing.send(head) or b""
    if isinstance(body, bytes):
        write([start, *_framed(framing, body[:pieceBytes])])
        for offset in range(pieceBytes, len(body), pieceBytes):
            await writable()
            write(_framed(framing, body[offset : offset + pieceBytes]))
    else:
        write([start])
        await writable()
        async for piece in body:
            for offset in range(0, len(piece), pieceBytes):
                write(_framed(framing, piece[offset : offset + pieceBytes]))
                await writable()
    end = framing.send(h11.EndOfMessage())
    if end:
        write([end])


def _framed(framing: h11.Connection, piece: bytes) -> list[bytes]:
    if not piece:
        return []
    return framing.send_with_data_passthrough(h11.Data(data=piece)) or []


def refusal(problem: Problem, requestId: str, *, date: bytes, server: bytes) -> list[bytes]:
    """
    The answer to what is no request; the connection closes after it.

    @param date: The C{Date} field.
    @param server: The C{Server} field.
    """
    answer = problem.response(requestId)
    head = answerHead(answer, date=date, server=server, requestId=requestId, close=True)
    framing = h11.Connection(h11.SERVER)
    data = [framing.send(head), framing.send(h11.Data(data=cast(bytes, answer.body)))]
    return [piece for piece in data if piece]


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
    # No secret: a system call would give the interpreter away to another thread.
    return f"{random.getrandbits(128):032x}"
