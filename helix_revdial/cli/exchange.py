# -*- test-case-name: tests.cli.test_exchange -*-
"""
One HTTP exchange with the server: sent, answered, measured, or one clear error.

Owns what every request has in common: the C{Authorization} field, the deadline
for the whole exchange (connecting, the request, the last byte of the answer),
the limit on the answer's size, and the sentence that each way of failing
becomes.  Knows no operation of the API.

Invariants:

  - No redirect is followed: the credential goes to the server that was named
    and nowhere else.
  - An answer that was cut short is never taken for a whole one.
  - When an exchange ends early, its connection is closed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import quote, urlencode, urlsplit

from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import (
    ConnectError,
    ConnectionClosed,
    DNSLookupError,
)
from twisted.internet.error import ConnectionRefusedError as NothingListens
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers

from helix_revdial import __version__
from helix_revdial.cli.edge import CommandError, plain
from helix_revdial.cli.profile import KEY_VARIABLE, URL_VARIABLE, Settings

DEFAULT_TIMEOUT = 30.0
"""Seconds for a whole exchange, unless a command says otherwise."""

MAX_JSON = 8 * 1024 * 1024
"""Bytes of a JSON answer that are taken."""

MAX_PROBLEM = 64 * 1024
"""Bytes of an error's body that are taken; the rest of it is not waited for."""


class Unreachable(CommandError):
    """No answer came: nothing listens there, the name is unknown, TLS failed, it broke off."""


class TimedOut(CommandError):
    """The deadline passed before the last byte of the answer."""


class BadAnswer(CommandError):
    """Something answered, but not as the API does."""


class Refused(CommandError):
    """
    The server answered with an error.

    @ivar status: The HTTP status.
    @ivar short: Status and detail, such as C{"503 - Sandbox not connected: no connection"}.
    @ivar code: The one word for the reason, where the server gave one.
    @ivar retryAfter: Seconds after which another try makes sense, where stated.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        code: str | None = None,
        retryAfter: float | None = None,
        hint: str = "",
    ) -> None:
        self.status = status
        self.short = f"{status} - {detail}"
        self.code = code
        self.retryAfter = retryAfter
        super().__init__(self.short.rstrip(".") + hint if hint else self.short)


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


class _Body(Protocol):
    """
    Collects a body, up to a limit.

    @ivar finished: Fires once, with the bytes and whether they are all;
        cancelling it closes the connection.
    """

    def __init__(self, limit: int, *, cut: bool) -> None:
        self._limit = limit
        self._cut = cut
        self._parts: list[bytes] = []
        self._size = 0
        self._over = False
        self.finished: Deferred[bytes] = Deferred(self._cancelled)

    def dataReceived(self, data: bytes) -> None:
        if self._over:
            return
        self._size += len(data)
        self._parts.append(data)
        if self._size > self._limit:
            if self._cut:
                self._end(b"".join(self._parts)[: self._limit])
            else:
                self._end(
                    Failure(BadAnswer(f"the answer is larger than {self._limit:,} bytes: refused"))
                )
            self._close()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if reason.check(ResponseDone):
            self._end(b"".join(self._parts))
        elif reason.check(PotentialDataLoss):
            self._end(
                Failure(BadAnswer("the answer did not say where it ends: it may have been cut"))
            )
        else:
            self._end(Failure(Unreachable(f"the answer broke off after {self._size:,} bytes")))

    def _cancelled(self, deferred: Deferred[bytes]) -> None:
        self._over = True
        self._parts.clear()
        self._close()
        deferred.errback(Failure(CancelledError()))

    def _close(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()

    def _end(self, result: bytes | Failure) -> None:
        if self._over:
            return
        self._over = True
        self._parts = []
        self.finished.callback(result)


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

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        body: object = None,
        accept: str = "application/json",
        deadline: float = DEFAULT_TIMEOUT,
        limit: int = MAX_JSON,
    ) -> Answer:
        """
        Make one exchange.

        @param path: Below the base URL, its segments already quoted.
        @param body: Sent as JSON unless L{None}.
        @param deadline: Seconds for the whole exchange.
        @param limit: Bytes of the answer's body that are taken.

        @raise Refused: The server answered with an error.
        @raise Unreachable: It did not answer.
        @raise TimedOut: Not within C{deadline}.
        @raise BadAnswer: It answered as no API does, or with too much.
        """
        expired = False

        def onTimeout(result: object, seconds: float) -> object:
            nonlocal expired
            expired = True
            return result

        exchanging = Deferred.fromCoroutine(
            self._exchange(method, path, query, body, accept, limit)
        )
        exchanging.addTimeout(max(deadline, 0.001), self._clock, onTimeoutCancel=onTimeout)
        try:
            return await exchanging
        except CommandError:
            raise
        except Exception as error:
            if expired:
                raise TimedOut(
                    f"no whole answer from {self.url} within {deadline:.3g} s; "
                    "the server is overloaded, or something on the way holds it up"
                ) from None
            if isinstance(error, CancelledError):
                raise
            raise Unreachable(self._why(error)) from None

    async def _exchange(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]],
        body: object,
        accept: str,
        limit: int,
    ) -> Answer:
        headers = Headers()
        headers.setRawHeaders("accept", [accept])
        headers.setRawHeaders("user-agent", [f"helix/{__version__}"])
        if self._settings.apiKey is not None:
            headers.setRawHeaders("authorization", [f"Bearer {self._settings.apiKey}"])
        data: bytes | None = None
        if body is not None:
            headers.setRawHeaders("content-type", ["application/json"])
            data = json.dumps(body).encode()
        url = str(self._settings.url) + path
        if query:
            url += "?" + urlencode(query, quote_via=quote)
        started = self.monotonic()
        response = await self._http.request(
            method,
            url,
            headers=headers,
            data=data,
            allow_redirects=False,
            unbuffered=True,
            reactor=cast(Any, self._clock),
        )
        success = 200 <= response.code < 300
        collector = _Body(limit if success else MAX_PROBLEM, cut=not success)
        response.deliverBody(collector)
        content = await collector.finished
        seconds = self.monotonic() - started
        (first, *_) = response.headers.getRawHeaders("content-type", [""])
        contentType = first.partition(";")[0].strip().lower()
        if not success:
            raise self._refused(response.code, response.headers, contentType, content)
        return Answer(response.code, response.headers, contentType, content, seconds)

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
        detail, code = _detail(contentType, content)
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
            status, detail or _phrase(status), code=code, retryAfter=retryAfter, hint=hint
        )

    def _keyHint(self) -> str:
        if self._settings.apiKey is not None:
            return f"; check {KEY_VARIABLE}, --token-file or the profile"
        if self._settings.keyHint is not None:
            return f"; {self._settings.keyHint}: set {KEY_VARIABLE} or give --token-file"
        return f"; no key was sent: set {KEY_VARIABLE} or give --token-file"

    def _why(self, error: Exception) -> str:
        """Why there was no answer, and what to do, in one sentence."""
        causes = list(_causes(error))
        names = {type(cause).__name__ for cause in causes}
        if any(isinstance(cause, NothingListens) for cause in causes):
            return (
                f"nothing listens at {self.url} (connection refused): is the server running "
                f"there? {URL_VARIABLE} or --url says where it is"
            )
        if any(isinstance(cause, DNSLookupError) for cause in causes):
            return (
                f"the host of {self.url} has no address (DNS): check {URL_VARIABLE} or --url, "
                "and the network"
            )
        if "VerificationError" in names:
            return (
                f"the certificate of {self.url} is for another name: check {URL_VARIABLE} or --url"
            )
        for cause in causes:
            if type(cause).__module__.startswith("OpenSSL"):
                reason = _tlsReason(cause)
                if "certificate" in reason:
                    return (
                        f"the certificate of {self.url} is not trusted ({reason}): "
                        "for a CA of your own, name its file in SSL_CERT_FILE"
                    )
                return (
                    f"TLS with {self.url} failed ({reason}): does it speak https? "
                    f"Check {URL_VARIABLE} or --url"
                )
        if any(isinstance(cause, ConnectTimeout) for cause in causes):
            return f"{self.url} does not accept the connection (timed out): check the network"
        for cause in causes:
            if isinstance(cause, ConnectError):
                return f"cannot connect to {self.url}: {plain(cause).rstrip('.')}"
        if "ParseError" in names:
            return f"what answers at {self.url} does not speak HTTP: check {URL_VARIABLE} or --url"
        if any(isinstance(cause, ConnectionClosed) for cause in causes):
            return f"{self.url} closed the connection before it answered"
        return f"no answer from {self.url}: {plain(causes[-1]) or type(causes[-1]).__name__}"


def _causes(error: BaseException) -> list[BaseException]:
    """An error, and the reasons that HTTP clients nest in it."""
    found = [error]
    for reason in getattr(error, "reasons", None) or ():
        cause = reason.value if isinstance(reason, Failure) else reason
        if isinstance(cause, BaseException):
            found += _causes(cause)
    return found


def _tlsReason(error: BaseException) -> str:
    """OpenSSL's own words: the last of the three that each entry has."""
    try:
        return plain("; ".join(entry[2] for entry in error.args[0])) or "handshake failed"
    except (IndexError, TypeError):
        return plain(error) or "handshake failed"


def _phrase(status: int) -> str:
    from http import HTTPStatus

    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "unknown error"


def _detail(contentType: str, content: bytes) -> tuple[str | None, str | None]:
    """The sentence and the word of an error's body: Problem+JSON (RFC 9457) or plain text."""
    if contentType == "text/plain":
        return plain(content.decode("utf-8", "replace")) or None, None
    try:
        problem: Any = json.loads(content)
    except (ValueError, RecursionError):
        return None, None
    if not isinstance(problem, dict):
        return None, None
    text = plain(problem.get("detail") or problem.get("title") or "")
    errors = problem.get("errors")
    if isinstance(errors, dict) and errors:
        reasons = [
            f"{name}: {', '.join(map(str, why)) if isinstance(why, list) else why}"
            for name, why in errors.items()
            # A server that says it in its sentence need not be repeated.
            if not all(str(one) in text for one in (why if isinstance(why, list) else [why]))
        ]
        if reasons:
            fields = "; ".join(reasons)
            text = plain(f"{text.rstrip('.')} ({fields})" if text else fields)
    code = problem.get("code")
    return text or None, code if isinstance(code, str) else None


__all__ = [
    "DEFAULT_TIMEOUT",
    "MAX_JSON",
    "MAX_PROBLEM",
    "Answer",
    "BadAnswer",
    "Exchange",
    "Refused",
    "TimedOut",
    "Unreachable",
]
