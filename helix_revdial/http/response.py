# -*- test-case-name: tests.http.test_connection -*-
"""
What a dispatch returns: a L{Response}, or L{HandedOver} when the connection is
no longer HTTP's.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable
from typing import Final

import msgspec


class BrokenOff(Exception):
    """
    Raised by the body of an answer whose source has broken: no fault of the server's.
    """


class Response:
    """
    An answer.

    The connection adds C{Date}, C{Server}, C{X-Request-Id}, the framing
    (C{Content-Length} for bytes; for an iterable that gave none, chunks, or
    the connection's end towards HTTP/1.0) and C{Connection: close} where it
    must.  A HEAD request, a 204 and a 304 get the header fields only.

    @ivar status: 200 to 599.
    @ivar headers: Name and value pairs, in order; C{Connection: close} among
        them is honoured.
    @ivar body: All of it, or an asynchronous iterable of pieces.  The next piece
        is asked for when the peer has taken what went before; should it raise,
        the connection is aborted, so that the peer never takes the half for the
        whole.  It is closed (C{aclose}) whatever happens.
    """

    __slots__ = ("body", "headers", "status")

    def __init__(
        self,
        status: int = 200,
        headers: Iterable[tuple[bytes, bytes]] = (),
        body: bytes | AsyncIterable[bytes] = b"",
    ) -> None:
        self.status = status
        self.headers = list(headers)
        self.body = body

    def __repr__(self) -> str:
        return f"<Response {self.status}>"


def jsonResponse(
    status: int,
    document: object,
    *headers: tuple[bytes, bytes],
    location: str | None = None,
) -> Response:
    """
    An answer whose body is JSON.

    @param document: Whatever L{msgspec.json.encode} takes.
    @param headers: Fields besides its type.
    @param location: The path of what was made.
    """
    fields = [(b"Content-Type", b"application/json; charset=utf-8"), *headers]
    if location is not None:
        fields.append((b"Location", location.encode("ascii")))
    return Response(status, fields, msgspec.json.encode(document))


class HandedOver:
    """
    What a dispatch returns after L{Request.handOver
    <helix_revdial.http.request.Request.handOver>}: there is nothing to answer.
    """

    def __repr__(self) -> str:
        return "<HandedOver>"


HANDED_OVER: Final = HandedOver()
