# -*- test-case-name: tests.cli.test_exchange -*-
"""
One HTTP exchange with the server: sent, answered, measured, or one clear error.

Owns what every request has in common: the C{Authorization} field, the deadline
for the whole exchange (connecting, the request, the last byte of the answer),
and the limit on the answer's size.  An answer without an end is taken piece by
piece (L{Exchange.open}): its deadline is for its head, and its reader says how long
it waits for each piece.  Bodies are
L{answer_bodies <helix_revdial.cli.answer_bodies>}' business; how each way of failing reads is
L{failures <helix_revdial.cli.failures>}'s business.  Knows no operation of the API.

Invariants:

  - No redirect is followed: the credential goes to the server that was named
    and nowhere else.
  - An answer that was cut short is never taken for a whole one.
  - When an exchange ends early, its connection is closed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar, cast
from urllib.parse import quote, urlencode, urlsplit

from hyperlink import EncodedURL
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.web.http_headers import Headers

from helix_revdial import __version__
from helix_revdial.cli.answer_bodies import Pieces, WholeBody
from helix_revdial.cli.edge import CommandError, plain
from helix_revdial.cli.failures import (
    BadAnswer,
    Refused,
    TimedOut,
    phrase,
    problemDetail,
    problemFields,
    unreachable,
)
from helix_revdial.cli.profile import KEY_VARIABLE, URL_VARIABLE, Settings

DEFAULT_TIMEOUT = 30.0
"""Seconds for a whole exchange, unless a command says otherwise."""

MAX_JSON = 8 * 1024 * 1024
"""Bytes of a JSON answer that are taken."""

MAX_PROBLEM = 64 * 1024
"""Bytes of an error's body that are taken; the rest of it is not waited for."""


T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """
    A whole answer with a status of success.

    @ivar contentType: The media type without parameters, in lower case.
    @ivar seconds: From just before the request to its last byte, on a
        monotonic clock.
    """

    status: int
    headers: Headers
    contentType: str
    body: bytes
    seconds: float


@dataclass(frozen=True)
class Opened:
    """
    An answer with a status of success, whose body is still to come.

    @ivar contentType: The media type without parameters, in lower case.
    """

    status: int
    headers: Headers
    contentType: str
    pieces: Pieces


class _AnyHost(EncodedURL):
    """A URL whose host may be an IPv6 address: hyperlink encodes that as if it were a name."""

    def to_uri(self) -> EncodedURL:
        """An address is what it is sent as."""
        return self if ":" in self.host else super().to_uri()


def _mediaType(response: Any) -> str:
    (first, *_) = response.headers.getRawHeaders("content-type", [""])
    return str(first).partition(";")[0].strip().lower()


class Exchange:
    """
    Asks one server, with one credential.

    @param clock: Time for deadlines.
    @param http: The client that sends; given from outside so that tests need
        no socket.
    @param settings: The server and the credential.
    @param monotonic: Seconds on a clock that nobody sets.
    """

    def __init__(
        self,
        clock: IReactorTime,
        http: HTTPClient,
        settings: Settings,
        monotonic: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._http = http
        self._settings = settings
        self.monotonic = monotonic

    @property
    def url(self) -> str:
        """The server's base URL, for people."""
        return str(self._settings.url)

    @property
    def clock(self) -> IReactorTime:
        """The time of its deadlines."""
        return self._clock

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        body: object = None,
        headers: Mapping[str, str] | None = None,
        accept: str = "application/json",
        deadline: float = DEFAULT_TIMEOUT,
        limit: int = MAX_JSON,
    ) -> Answer:
        """
        Make one exchange.

        @param path: Below the base URL, its segments already quoted.
        @param body: Sent as JSON unless L{None}.
        @param headers: Fields beside those that every request has.
        @param deadline: Seconds for the whole exchange.
        @param limit: Bytes of the answer's body that are taken.

        @raise Refused: The server answered with an error.
        @raise Unreachable: It did not answer.
        @raise TimedOut: Not within C{deadline}.
        @raise BadAnswer: It answered as no API does, or with too much.
        """
        return await self._within(
            deadline, self._exchange(method, path, query, body, headers or {}, accept, limit)
        )

    async def open(
        self,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        accept: str = "application/json",
        deadline: float = DEFAULT_TIMEOUT,
    ) -> Opened:
        """
        Begin a C{GET} whose body is taken as it comes.

        @param deadline: Seconds until the answer's head.
        @return: Its C{pieces} are to be read to their end, or closed.

        @raise CommandError: As L{request}.
        """
        return await self._within(deadline, self._open(path, query, headers or {}, accept))

    async def _within(self, deadline: float, work: Coroutine[Any, Any, T]) -> T:
        """
        The work's result in time, and its errors as those of commands.

        Whoever cancels this gets C{CancelledError}: an HTTP client has names of its own for
        a request that was given up, which say that the server was not reached.
        """
        expired = cancelled = False

        def onTimeout(result: object, seconds: float) -> object:
            nonlocal expired
            expired = True
            return result

        exchanging = Deferred.fromCoroutine(work)
        exchanging.addTimeout(max(deadline, 0.001), self._clock, onTimeoutCancel=onTimeout)

        def cancel(deferred: Deferred[T]) -> None:
            nonlocal cancelled
            cancelled = True
            exchanging.cancel()

        outcome: Deferred[T] = Deferred(cancel)
        exchanging.chainDeferred(outcome)
        try:
            return await outcome
        except Exception as error:
            if cancelled:
                raise CancelledError() from None
            if isinstance(error, CommandError):
                raise
            if expired:
                raise TimedOut(
                    f"no whole answer from {self.url} within {deadline:.3g} s; "
                    "the server, or the service that it asked beside an agent, is slow or stuck"
                ) from None
            raise unreachable(self.url, error) from None

    async def _exchange(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]],
        body: object,
        headers: Mapping[str, str],
        accept: str,
        limit: int,
    ) -> Answer:
        started = self.monotonic()
        response = await self._send(method, path, query, body, headers, accept)
        if not 200 <= response.code < 300:
            await self._refuse(response)
        collector = WholeBody(limit, cut=False)
        response.deliverBody(collector)
        content = await collector.finished
        seconds = self.monotonic() - started
        return Answer(response.code, response.headers, _mediaType(response), content, seconds)

    async def _open(
        self, path: str, query: Sequence[tuple[str, str]], headers: Mapping[str, str], accept: str
    ) -> Opened:
        response = await self._send("GET", path, query, None, headers, accept)
        if not 200 <= response.code < 300:
            await self._refuse(response)
        pieces = Pieces(self._clock)
        response.deliverBody(pieces)
        return Opened(response.code, response.headers, _mediaType(response), pieces)

    async def _send(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]],
        body: object,
        more: Mapping[str, str],
        accept: str,
    ) -> Any:
        """Send a request, and wait for the head of its answer."""
        headers = Headers()
        headers.setRawHeaders("accept", [accept])
        headers.setRawHeaders("user-agent", [f"helix/{__version__}"])
        for name, value in more.items():
            headers.setRawHeaders(name, [value])
        if self._settings.apiKey is not None:
            headers.setRawHeaders("authorization", [f"Bearer {self._settings.apiKey}"])
        data: bytes | None = None
        if body is not None:
            headers.setRawHeaders("content-type", ["application/json"])
            data = json.dumps(body).encode()
        url = str(self._settings.url) + path
        if query:
            url += "?" + urlencode(query, quote_via=quote)
        return await self._http.request(
            method,
            _AnyHost.from_text(url),
            headers=headers,
            data=data,
            allow_redirects=False,
            unbuffered=True,
            reactor=cast(Any, self._clock),
        )

    async def _refuse(self, response: Any) -> NoReturn:
        """Raise the error that an answer without success is."""
        collector = WholeBody(MAX_PROBLEM, cut=True)
        response.deliverBody(collector)
        content = await collector.finished
        raise self._refused(response.code, response.headers, _mediaType(response), content)

    def _refused(
        self, status: int, headers: Headers, contentType: str, content: bytes
    ) -> CommandError:
        """The error that an answer without success is."""
        if 300 <= status < 400:
            (location, *_) = headers.getRawHeaders("location", [""])
            parts = urlsplit(location)
            target = ""
            if parts.hostname:
                target = plain(f" to {parts.scheme}://{parts.hostname}{parts.path}", 200)
            return BadAnswer(
                f"{self.url} answered {status}, a redirect {target or 'elsewhere'}; it is not "
                f"followed with a credential: give the right address in {URL_VARIABLE} or --url"
            )
        detail, code = problemDetail(contentType, content)
        if detail is None and contentType == "text/html":
            return BadAnswer(
                f"{status} - a web page answered in the API's place; "
                f"is {self.url} the server's address?"
            )
        (text, *_) = headers.getRawHeaders("retry-after", [""])
        retryAfter = float(text) if text.isdecimal() and len(text) < 8 else None
        hint = ""
        if status == 401:
            hint = self._keyHint()
        elif retryAfter is not None:
            hint = f"; try again in {retryAfter:.0f} s"
        return Refused(
            status,
            detail or phrase(status),
            code=code,
            fields=problemFields(content),
            retryAfter=retryAfter,
            hint=hint,
        )

    def _keyHint(self) -> str:
        if self._settings.apiKey is not None:
            return f"; check {KEY_VARIABLE}, --token-file or the profile"
        if self._settings.keyHint is not None:
            return f"; {self._settings.keyHint}: set {KEY_VARIABLE} or give --token-file"
        return f"; no key was sent: set {KEY_VARIABLE} or give --token-file"


__all__ = [
    "DEFAULT_TIMEOUT",
    "MAX_JSON",
    "MAX_PROBLEM",
    "Answer",
    "Exchange",
    "Opened",
]
