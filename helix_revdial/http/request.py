# -*- test-case-name: tests.http.test_request -*-
"""
What a dispatch gets: a L{Request} whose head is parsed and checked, and whose
body, if any, is still on its way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol as Structural
from urllib.parse import unquote_to_bytes

from twisted.internet.interfaces import IAddress, IProtocol

from helix_revdial.http.body import Body
from helix_revdial.http.response import HANDED_OVER, HandedOver


class ConnectionGone(Exception):
    """The peer's connection ended before the request did."""


class Headers:
    """
    Header fields, found by name in any letter case.

    Iterating gives (lower-case name, value) pairs in the order received.
    """

    __slots__ = ("_items", "raw")

    def __init__(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        """@param raw: Names in their original letter case, and values."""
        self.raw = tuple(raw)
        self._items = tuple((name.lower(), value) for name, value in self.raw)

    def get(self, name: bytes, default: bytes | None = None) -> bytes | None:
        """The first value of that name."""
        wanted = name.lower()
        for found, value in self._items:
            if found == wanted:
                return value
        return default

    def getAll(self, name: bytes) -> list[bytes]:
        """Every value of that name, in order."""
        wanted = name.lower()
        return [value for found, value in self._items if found == wanted]

    def tokens(self, name: bytes) -> list[bytes]:
        """The lower-case elements of a comma-separated list such as C{Connection}."""
        joined = b",".join(self.getAll(name)).lower()
        return [token.strip(b" \t") for token in joined.split(b",") if token.strip(b" \t")]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, bytes) and self.get(name) is not None

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        names = ", ".join(name.decode("latin-1") for name, _ in self.raw)
        return f"<Headers {names}>"


class RequestOwner(Structural):
    """What a request asks of the connection that it came by."""

    def authenticated(self) -> None:
        """Whoever asks has shown who he is."""

    def whenLost(self, call: Callable[[], None]) -> None:
        """See L{Request.whenLost}."""

    def endWithCaller(self, *, whole: bool = False) -> None:
        """See L{Request.endWithCaller}."""

    def abort(self) -> None:
        """See L{Request.abort}."""

    def handOver(self, request: Request, build: Callable[[], IProtocol], replayHead: bool) -> None:
        """See L{Request.handOver}."""


class Request:
    """
    One request.

    @ivar method: As sent, such as C{"GET"}.
    @ivar path: The target's path, percent-decoded once, except that C{%2F} stays
        as it is: it is no separator.  Free of C{.} and C{..} segments.
    @ivar rawTarget: The target exactly as sent (origin form).
    @ivar rawQuery: What stands after the first C{?}, undecoded.
    @ivar query: The query's pairs, decoded, in order.
    @ivar peer: Whence the connection came.
    @ivar clientHost: The peer's address as text; C{"unix"} where it has none.
    @ivar secure: Whether the connection is TLS's.
    @ivar certificate: The peer's TLS certificate (DER), where the port verifies
        them and lets them say who asks.
    @ivar httpVersion: C{b"1.1"} or C{b"1.0"}.
    @ivar requestId: The caller's C{X-Request-Id} if that is well-formed, or a new one.
    @ivar purpose: What its connection is for once it is handed over, to those who count.
    @ivar logged: What the dispatch adds to the line in the access log.
    @ivar trace: What the dispatch keeps of the trace that the request is part of.
    """

    def __init__(
        self,
        *,
        method: str,
        rawTarget: bytes,
        path: str,
        rawQuery: bytes,
        headers: Headers,
        httpVersion: bytes,
        body: Body,
        peer: IAddress | None,
        secure: bool,
        requestId: str,
        owner: RequestOwner,
        certificate: bytes | None = None,
    ) -> None:
        self.method = method
        self.rawTarget = rawTarget
        self.path = path
        self.rawQuery = rawQuery
        self.query = parseQuery(rawQuery)
        self.headers = headers
        self.httpVersion = httpVersion
        self.body = body
        self.peer = peer
        host = getattr(peer, "host", None)
        self.clientHost = host if isinstance(host, str) else "unix"
        self.secure = secure
        self.certificate = certificate
        self.requestId = requestId
        self.purpose = "other"
        self.logged: dict[str, object] = {}
        self.trace: object = None
        self._owner = owner

    @property
    def head(self) -> bytes:
        """Request line and header fields, as another HTTP parser would take them."""
        lines = [b"%s %s HTTP/%s" % (self.method.encode(), self.rawTarget, self.httpVersion)]
        lines += [b"%s: %s" % pair for pair in self.headers.raw]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def authenticated(self) -> None:
        """
        The peer has proved who it is: its connection no longer counts among
        those of strangers.  Calling it again does nothing.
        """
        self._owner.authenticated()

    def whenLost(self, call: Callable[[], None]) -> None:
        """
        Have C{call} called when the connection of this request is lost, whoever
        it belongs to by then.
        """
        self._owner.whenLost(call)

    def endWithCaller(self, *, whole: bool = False) -> None:
        """
        From now on until the answer begins, the caller's end of its direction is taken
        for its going away, and cancels the dispatch.

        @param whole: Until the answer is complete: for one that may take for ever.

        For what holds something scarce while it waits.  TCP does not tell a caller
        that has closed its socket from one that only says that it has no more to send.
        """
        self._owner.endWithCaller(whole=whole)

    def abort(self) -> None:
        """
        Drop the connection now, so that its peer sees that the answer is not whole.
        """
        self._owner.abort()

    def handOver(
        self,
        successor: IProtocol | Callable[[], IProtocol],
        *,
        replayHead: bool = False,
    ) -> HandedOver:
        """
        Give the connection to another protocol, now and for good.

        C{successor} is connected to the transport, gets the head if asked for,
        then each byte that followed the head, once and in order, and from then on
        whatever the connection hears: data, the end of either direction (where it
        provides L{IHalfCloseableProtocol
        <twisted.internet.interfaces.IHalfCloseableProtocol>}; otherwise the
        connection is closed when the peer ends its direction), its loss.  No timer
        of HTTP's runs any more and the transport's producer slot is free.  Bytes
        that were already here are delivered even if the successor pauses the
        transport as it is connected.

        @param successor: The protocol, or a callable that builds it.
        @param replayHead: Whether the successor parses the request itself.
        @return: What the dispatch must return.
        @raise ConnectionGone: if the connection has ended; nothing was built.
        @raise Problem: (400) if the request carries a body that was not read.
        """
        if IProtocol.providedBy(successor):
            built = successor
            self._owner.handOver(self, lambda: built, replayHead)
        else:
            self._owner.handOver(self, successor, replayHead)
        return HANDED_OVER

    def __repr__(self) -> str:
        return f"<Request {self.requestId} {self.method} {self.path}>"


def parseQuery(raw: bytes) -> list[tuple[str, str]]:
    """
    The pairs of a query, as C{application/x-www-form-urlencoded} has them.

    Bytes that are no UTF-8 become replacement characters.
    """
    pairs = []
    for field in raw.split(b"&"):
        if field:
            name, _, value = field.replace(b"+", b" ").partition(b"=")
            pairs.append((_decoded(name), _decoded(value)))
    return pairs


def _decoded(quoted: bytes) -> str:
    return unquote_to_bytes(quoted).decode("utf-8", "replace")
