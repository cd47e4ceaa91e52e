# -*- test-case-name: tests.cli.test_exchange -*-
"""
Why an exchange with the server failed, as one sentence that says what to do.

The errors that L{exchange <helix_revdial.cli.exchange>} raises, and the
reading of what lies behind them: the errors that HTTP clients nest in each
other, and the bodies of error answers.  No text made here holds a credential.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from twisted.internet.error import ConnectError, ConnectionClosed, DNSLookupError
from twisted.internet.error import ConnectionRefusedError as NothingListens
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.python.failure import Failure

from helix_revdial.cli.edge import CommandError, plain
from helix_revdial.cli.profile import URL_VARIABLE


class Unreachable(CommandError):
    """
    No answer came: nothing listens there, the name is unknown, TLS failed, it broke off.

    @ivar sent: Whether the request may have arrived.
    """

    sent = True


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
    @ivar fields: The fields of the request that were wrong, by their dotted paths.
    @ivar retryAfter: Seconds after which another try makes sense, where stated.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        code: str | None = None,
        fields: tuple[str, ...] = (),
        retryAfter: float | None = None,
        hint: str = "",
    ) -> None:
        self.status = status
        self.short = f"{status} - {detail}"
        self.code = code
        self.fields = fields
        self.retryAfter = retryAfter
        super().__init__(self.short.rstrip(".") + hint if hint else self.short)


def unreachable(url: str, error: Exception) -> Unreachable:
    """
    What an HTTP client raised, as the error of a command.

    @param url: The server's base URL.
    """
    found = Unreachable(whyNoAnswer(url, error))
    before = (ConnectError, DNSLookupError)
    found.sent = not any(isinstance(cause, before) for cause in _causes(error))
    return found


def whyNoAnswer(url: str, error: Exception) -> str:
    """
    Why there was no answer, and what to do, in one sentence.

    @param url: The server's base URL.
    @param error: What the HTTP client raised.
    """
    causes = list(_causes(error))
    names = {type(cause).__name__ for cause in causes}
    if any(isinstance(cause, NothingListens) for cause in causes):
        return (
            f"nothing listens at {url} (connection refused): is the server running "
            f"there? {URL_VARIABLE} or --url says where it is"
        )
    if any(isinstance(cause, DNSLookupError) for cause in causes):
        return (
            f"the host of {url} has no address (DNS): check {URL_VARIABLE} or --url, "
            "and the network"
        )
    if "VerificationError" in names:
        return f"the certificate of {url} is for another name: check {URL_VARIABLE} or --url"
    for cause in causes:
        if type(cause).__module__.startswith("OpenSSL"):
            reason = _tlsReason(cause)
            if "certificate" in reason:
                return (
                    f"the certificate of {url} is not trusted ({reason}): "
                    "for a CA of your own, name its file in SSL_CERT_FILE"
                )
            return (
                f"TLS with {url} failed ({reason}): does it speak https? "
                f"Check {URL_VARIABLE} or --url"
            )
    if any(isinstance(cause, ConnectTimeout) for cause in causes):
        return f"{url} does not accept the connection (timed out): check the network"
    for cause in causes:
        if isinstance(cause, ConnectError):
            return f"cannot connect to {url}: {plain(cause).rstrip('.')}"
    if "ParseError" in names:
        return f"what answers at {url} does not speak HTTP: check {URL_VARIABLE} or --url"
    if any(isinstance(cause, ConnectionClosed) for cause in causes):
        return f"{url} closed the connection before it answered"
    return f"no answer from {url}: {plain(causes[-1]) or type(causes[-1]).__name__}"


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


def phrase(status: int) -> str:
    """The standard words for a status."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "unknown error"


def problemDetail(contentType: str, content: bytes) -> tuple[str | None, str | None]:
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


def problemFields(content: bytes) -> tuple[str, ...]:
    """The names of the fields that an error's body (Problem+JSON) says are wrong."""
    try:
        problem: Any = json.loads(content)
    except (ValueError, RecursionError):
        return ()
    errors = problem.get("errors") if isinstance(problem, dict) else None
    return tuple(errors) if isinstance(errors, dict) else ()


__all__ = [
    "BadAnswer",
    "Refused",
    "TimedOut",
    "Unreachable",
    "phrase",
    "problemDetail",
    "problemFields",
    "unreachable",
    "whyNoAnswer",
]
