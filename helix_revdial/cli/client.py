# -*- test-case-name: tests.cli.test_client -*-
"""
The API's operations as the command line uses them, typed.

Each method is one operation (or one operation's pages).  What commands reason
about comes back as a typed record; with it comes C{raw}, the server's own
JSON, so that C{--json} shows what this version of the client does not know.

Session, token and profile records that are only listed stay dictionaries.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import msgspec
from treq.client import HTTPClient
from twisted.web.client import Agent, HTTPConnectionPool

from helix_revdial.cli.edge import CommandError, plain
from helix_revdial.cli.exchange import DEFAULT_TIMEOUT, MAX_JSON, Answer, Exchange
from helix_revdial.cli.failures import BadAnswer
from helix_revdial.cli.images import MEDIA_TYPES, imageKind
from helix_revdial.cli.profile import Settings

CONNECT_TIMEOUT = 10.0
"""Seconds for a TCP connection to the server."""

MAX_IMAGE = 64 * 1024 * 1024
"""Bytes of a screenshot that are taken."""

PER_PAGE = 100
"""Items that are asked for at once."""

MAX_PAGES = 1000
"""Pages of a list that are fetched; a list that never ends is an error."""

Record = dict[str, Any]
"""A JSON object that is shown, not reasoned about."""

T = TypeVar("T")


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower()


class ConnectionDetail(msgspec.Struct, frozen=True, rename=_snake):
    """One control connection, as the status answer describes it."""

    key: str
    generation: int | None = None
    carrier: str | None = None
    features: tuple[str, ...] = ()
    remoteAddress: str | None = None
    connectedSince: str | float | None = None
    lastHeardSeconds: float | None = None
    roundTripMs: float | None = None
    openStreams: int = 0
    bytesIn: int = 0
    bytesOut: int = 0
    pendingDials: int = 0
    targets: tuple[RunnerTarget, ...] | None = None


class RunnerTarget(msgspec.Struct, frozen=True, rename=_snake):
    """A local service beside an agent, and whom it is for."""

    name: str
    expose: str | None = None
    default: bool = False


class GraceEntry(msgspec.Struct, frozen=True, rename=_snake):
    """A runner that was lost and may still return under its name."""

    key: str
    generation: int | None = None
    secondsLeft: float | None = None
    pendingDials: int = 0


class Status(msgspec.Struct, frozen=True, rename=_snake):
    """Every connection of the server."""

    activeConnections: int
    gracePeriodEntries: int
    pendingDialsTotal: int
    connections: tuple[str, ...] = ()
    details: tuple[ConnectionDetail, ...] = ()
    grace: tuple[GraceEntry, ...] = ()


class SessionConnection(msgspec.Struct, frozen=True, rename=_snake):
    """
    The connection that a session's data path uses.

    @ivar runner: The runner key that is really dialled.
    @ivar status: C{connected}, C{grace} or C{none}.
    """

    sessionId: str
    status: str
    runner: str | None = None
    detail: ConnectionDetail | None = None
    graceSecondsLeft: float | None = None


@dataclass(frozen=True)
class Reply(Generic[T]):
    """A typed answer, and the JSON that it was made from."""

    value: T
    raw: Record


@dataclass(frozen=True)
class Screenshot:
    """
    A picture that came through the tunnel.

    @ivar kind: C{png}, C{jpeg} or C{webp}.
    @ivar seconds: From just before the request to the last byte.
    @ivar phases: The phases that the server measured, in milliseconds.
    """

    data: bytes
    kind: str
    seconds: float
    phases: dict[str, float]


class NotAnImage(CommandError):
    """The bytes that came back are no picture, or not the one they claim to be."""


class Client:
    """
    The server's API.

    @param exchange: Makes the exchanges.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    @property
    def url(self) -> str:
        """The server's base URL, for people."""
        return self._exchange.url

    @property
    def exchange(self) -> Exchange:
        """What makes its exchanges."""
        return self._exchange

    def monotonic(self) -> float:
        """Seconds on the clock with which exchanges are measured."""
        return self._exchange.monotonic()

    async def connection(
        self, session: str, *, deadline: float = DEFAULT_TIMEOUT
    ) -> Reply[SessionConnection]:
        """C{GET /api/v1/external-agents/{session}/connection}."""
        answer = await self._exchange.request(
            "GET", f"/api/v1/external-agents/{segment(session)}/connection", deadline=deadline
        )
        return self._typed(answer, SessionConnection)

    async def screenshot(self, session: str, *, deadline: float = DEFAULT_TIMEOUT) -> Screenshot:
        """
        C{GET /api/v1/external-agents/{session}/screenshot}.

        @raise NotAnImage: What came is no PNG, JPEG or WebP picture, or its
            content type says another kind.
        """
        answer = await self._exchange.request(
            "GET",
            f"/api/v1/external-agents/{segment(session)}/screenshot",
            accept="image/png, image/jpeg, image/webp, application/json;q=0.1",
            deadline=deadline,
            limit=MAX_IMAGE,
        )
        kind = imageKind(answer.body)
        if kind is None:
            raise NotAnImage(
                f"the {len(answer.body):,} bytes of type {plain(answer.contentType) or 'unknown'} "
                "that came back are no PNG, JPEG or WebP picture"
            )
        if answer.contentType != MEDIA_TYPES[kind]:
            raise NotAnImage(
                f"the picture is {MEDIA_TYPES[kind]}, but its content type says "
                f"{plain(answer.contentType) or 'nothing'}"
            )
        timing = ",".join(answer.headers.getRawHeaders("server-timing", []))
        return Screenshot(answer.body, kind, answer.seconds, serverTiming(timing))

    async def status(self, *, deadline: float = DEFAULT_TIMEOUT) -> Reply[Status]:
        """C{GET /api/v1/admin/revdial/status?detail=true}."""
        answer = await self._exchange.request(
            "GET", "/api/v1/admin/revdial/status", query=[("detail", "true")], deadline=deadline
        )
        return self._typed(answer, Status)

    async def streams(
        self, *, runner: str | None = None, dial: str | None = None, limit: int
    ) -> Record:
        """C{GET /api/v1/admin/streams}: what happened to a runner's dials, or to one dial."""
        query = [("limit", str(limit))]
        query += [("runner", runner)] if runner is not None else []
        query += [("dial", dial)] if dial is not None else []
        return self.record(
            await self._exchange.request("GET", "/api/v1/admin/streams", query=query)
        )

    async def sessionStreams(self, session: str, limit: int) -> Record:
        """C{GET /api/v1/external-agents/{session}/streams}."""
        return self.record(
            await self._exchange.request(
                "GET",
                f"/api/v1/external-agents/{segment(session)}/streams",
                query=[("limit", str(limit))],
            )
        )

    async def ledger(self) -> Record:
        """C{GET /api/v1/admin/ledger}: what the server holds, by owner."""
        return self.record(await self._exchange.request("GET", "/api/v1/admin/ledger"))

    async def sessions(self) -> list[Record]:
        """C{GET /api/v1/sessions}, every page."""
        return await self.pages("/api/v1/sessions", [("perPage", str(PER_PAGE))])

    async def createSession(self, name: str) -> Record:
        """C{POST /api/v1/sessions}."""
        return self.record(
            await self._exchange.request("POST", "/api/v1/sessions", body={"name": name})
        )

    async def deleteSession(self, session: str) -> None:
        """C{DELETE /api/v1/sessions/{session}}."""
        await self._exchange.request("DELETE", f"/api/v1/sessions/{segment(session)}")

    async def tokens(self, *, ended: bool = False) -> list[Record]:
        """
        C{GET /api/v1/tokens}, every page; no record holds a secret.

        @param ended: Whether revoked and expired tokens are wanted, too.
        """
        query = [("perPage", str(PER_PAGE)), *([("ended", "true")] if ended else [])]
        return await self.pages("/api/v1/tokens", query)

    async def createToken(self, wanted: Record) -> Record:
        """C{POST /api/v1/tokens}; the record has the secret in C{token}."""
        return self.record(await self._exchange.request("POST", "/api/v1/tokens", body=wanted))

    async def rotateToken(self, token: str, overlap: float | None) -> Record:
        """C{POST /api/v1/tokens/{token}/rotate}; C{overlap} in seconds."""
        body: Record = {} if overlap is None else {"overlap": overlap}
        return self.record(
            await self._exchange.request(
                "POST", f"/api/v1/tokens/{segment(token)}/rotate", body=body
            )
        )

    async def revokeToken(self, token: str) -> None:
        """C{DELETE /api/v1/tokens/{token}}."""
        await self._exchange.request("DELETE", f"/api/v1/tokens/{segment(token)}")

    async def importToken(self, wanted: Record) -> Record:
        """C{POST /api/v1/tokens/import}; C{wanted} holds the secret in C{token}."""
        return self.record(
            await self._exchange.request("POST", "/api/v1/tokens/import", body=wanted)
        )

    async def forwards(self) -> list[Record]:
        """C{GET /api/v1/admin/forwards}."""
        return await self.pages("/api/v1/admin/forwards", [])

    async def createForward(self, wanted: Record) -> Record:
        """C{POST /api/v1/admin/forwards}."""
        return self.record(
            await self._exchange.request("POST", "/api/v1/admin/forwards", body=wanted)
        )

    async def deleteForward(self, forward: str) -> None:
        """C{DELETE /api/v1/admin/forwards/{forward}}."""
        await self._exchange.request("DELETE", f"/api/v1/admin/forwards/{segment(forward)}")

    async def reload(self) -> Record:
        """C{POST /api/v1/admin/reload}."""
        return self.record(await self._exchange.request("POST", "/api/v1/admin/reload"))

    async def version(self) -> Record:
        """C{GET /version}."""
        return self.record(await self._exchange.request("GET", "/version"))

    async def pages(
        self,
        path: str,
        query: list[tuple[str, str]],
        *,
        enough: int | None = None,
        limit: int = MAX_JSON,
    ) -> list[Record]:
        """
        The items of a list, of all its pages.

        @param enough: How many are wanted; no further page is asked for then.
        @param limit: Bytes that a page may have.
        @raise BadAnswer: It is no list, or one without an end.
        """
        items: list[Record] = []
        async with aclosing(self.eachPage(path, query, limit=limit)) as every:
            async for part in every:
                items += part
                if enough is not None and len(items) >= enough:
                    return items[:enough]
        return items

    async def eachPage(
        self, path: str, query: list[tuple[str, str]], *, limit: int = MAX_JSON
    ) -> AsyncGenerator[list[Record], None]:
        """
        The pages of a list, each asked for when it is wanted.

        @param limit: Bytes that a page may have.
        @raise BadAnswer: It is no list, or one without an end.
        """
        page: str | None = None
        for _ in range(MAX_PAGES):
            answer = await self._exchange.request(
                "GET", path, query=query if page is None else [*query, ("page", page)], limit=limit
            )
            wrapper = self.record(answer)
            part = wrapper.get("items")
            if not isinstance(part, list) or not all(isinstance(item, dict) for item in part):
                raise self._unexpected("no list of items")
            yield part
            following = wrapper.get("nextPage")
            if following is None or following == "":
                return
            if str(following) == page:
                raise self._unexpected("a page that names itself as the next")
            page = str(following)
        raise self._unexpected(f"more than {MAX_PAGES:,} pages")

    def record(self, answer: Answer) -> Record:
        """
        The JSON object of an answer.

        @raise BadAnswer: It is none.
        """
        if answer.contentType == "text/html":
            raise BadAnswer(
                f"a web page answered in the API's place; is {self.url} the server's address?"
            )
        try:
            value = json.loads(answer.body)
        except (ValueError, RecursionError):
            raise self._unexpected("no JSON") from None
        if not isinstance(value, dict):
            raise self._unexpected("no JSON object")
        return value

    def _typed(self, answer: Answer, kind: type[T]) -> Reply[T]:
        raw = self.record(answer)
        try:
            return Reply(msgspec.convert(raw, kind, strict=True), raw)
        except (msgspec.ValidationError, UnicodeError) as error:
            # msgspec takes no text that has half of a surrogate pair.
            raise self._unexpected(plain(error)) from None

    def _unexpected(self, what: str) -> BadAnswer:
        return BadAnswer(
            f"{self.url} answered with something that this helix does not understand ({what}); "
            "compare `helix version --server`"
        )


def segment(text: str) -> str:
    """One segment of a path; dots alone would climb it."""
    try:
        if text.strip("."):
            return quote(text, safe="")
    except UnicodeEncodeError:
        pass
    raise CommandError(f"{plain(ascii(text), 80)} is no id")


def serverTiming(text: str) -> dict[str, float]:
    """
    The durations in a C{Server-Timing} field, in milliseconds, in their order.

    (W3C Server Timing section 2: metrics divided by commas, parameters by
    semicolons, values perhaps quoted.)  Metrics without a usable C{dur} are
    left out.
    """
    phases: dict[str, float] = {}
    for metric in re.findall(r'(?:[^,"]|"(?:[^"\\]|\\.)*")+', text[:4096]):
        name, *parameters = re.findall(r'(?:[^;"]|"(?:[^"\\]|\\.)*")+', metric) or [""]
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip().lower() != "dur":
                continue
            if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,12})?", number := value.strip().strip('"')):
                phases[plain(name, 40)] = float(number)
    return phases


def connect(reactor: Any, settings: Settings) -> tuple[Client, HTTPConnectionPool]:
    """
    A client on real sockets: TLS verified, connections kept between exchanges.

    @return: The client, and the pool whose C{closeCachedConnections} ends it.
    """
    pool = HTTPConnectionPool(reactor, persistent=True)
    agent = Agent(reactor, connectTimeout=CONNECT_TIMEOUT, pool=pool)
    exchange = Exchange(reactor, HTTPClient(agent), settings, time.monotonic)
    return Client(exchange), pool


__all__ = [
    "MAX_IMAGE",
    "Client",
    "ConnectionDetail",
    "GraceEntry",
    "NotAnImage",
    "Record",
    "Reply",
    "RunnerTarget",
    "Screenshot",
    "SessionConnection",
    "Status",
    "connect",
    "segment",
    "serverTiming",
]
