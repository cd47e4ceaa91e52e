# -*- test-case-name: tests.revdial.test_refusals -*-
"""
What an operator reads when a control connection is refused.

Made of the last answer of an attempt.  Where the server itself speaks
(problem+json), its own words count.  Where something in between answered, or has
left its mark on the way, the text says what was seen and what to configure:

  - The server asks for an upgrade that was asked for: a proxy has taken it out.
  - A page, in place of the API's words: the URL leads to a frontend.
  - 502, 503 and 504 that are not the server's: a proxy does not reach it.
  - A redirect, which is never followed.

Invariants: no text contains the token, nor a character that a terminal would
obey, and none is longer than L{MAX_TEXT} characters and a status.
"""

from __future__ import annotations

import json
import re
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from .exchange import UpgradeRefused
from .requests import AnswerKind

MAX_TEXT = 300
"""Characters of a server's explanation that are repeated."""

MAX_NAME = 60
"""Characters of what a proxy calls itself that are repeated."""

_OWN_SERVER = "helix_revdial/"
"""How our server's C{Server} field begins."""


class Refused(Exception):
    """
    The server, or something in its place, refused the control connection.

    C{str} says why, for people.

    @ivar status: The HTTP status.
    @ivar text: What was said.
    @ivar retryAfter: Seconds the server wants us to wait, or C{None}.
    """

    def __init__(self, status: int, text: str, retryAfter: float | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.retryAfter = retryAfter


def refusal(refused: UpgradeRefused, kind: AnswerKind, token: str) -> Refused:
    """
    Say why a control connection was refused.

    @param refused: The answer.
    @param kind: What kind of answer it is.
    @param token: What must not be repeated.
    """
    wait = retryAfter(refused)
    # Before anything is cut, or a cut could leave a part of it.
    refused = _without(token, refused)
    if kind is AnswerKind.REFUSED:
        said = _status(refused, _detail(refused).replace(token or "\0", "<hidden>"))
    else:
        said = _seen(refused, kind) or _status(refused, _plainText(refused))
    return Refused(refused.status, _clean(said, MAX_TEXT + 100), wait)


def _without(token: str, refused: UpgradeRefused) -> UpgradeRefused:
    """The same answer with the token replaced wherever it stands as it is."""
    if not token:
        return refused
    secret = token.encode()
    return UpgradeRefused(
        refused.status,
        refused.reason.replace(token, "<hidden>"),
        tuple((name, value.replace(secret, b"<hidden>")) for name, value in refused.headers),
        refused.body.replace(secret, b"<hidden>"),
    )


def _detail(refused: UpgradeRefused) -> str:
    try:
        detail = json.loads(refused.body).get("detail")
    except (ValueError, AttributeError):
        return ""
    return detail if isinstance(detail, str) else ""


def _plainText(refused: UpgradeRefused) -> str:
    if _media(refused) not in ("text/plain", "application/json"):
        return ""
    return refused.body.decode("utf-8", "replace")


def _seen(refused: UpgradeRefused, kind: AnswerKind) -> str | None:
    """The diagnosis of an answer that is not the server's own refusal."""
    media, by = _media(refused), _answeredBy(refused)
    if refused.status == 426:
        between = f" ({by} is in between)" if by else ""
        return (
            f"{_status(refused, '')}: the request reached the server without its Upgrade "
            f"header, neither as revdial nor as WebSocket: a proxy takes it out{between}. Let it "
            "pass Upgrade and Connection on to the server over HTTP/1.1; docs/network.md has "
            "the lines for nginx and HAProxy"
        )
    if refused.status in (301, 302, 303, 307, 308):
        return (
            f"{_status(refused, '')}: redirects are not followed"
            f"{_leadsTo(refused)}; is the server URL right?"
        )
    if refused.status in (502, 503, 504):
        return (
            f"{_status(refused, '')}{f' from {by}' if by else ''}: what answered is not the "
            "server but something before it that does not reach it"
        )
    if b"plain HTTP request was sent to HTTPS port" in refused.body:
        return f"{_status(refused, '')}: this port speaks TLS; write https:// in the server URL"
    own = media == "text/html" and b"vite" not in refused.body.lower()
    if own and refused.status in (401, 403, 429):
        login = (refused.header(b"www-authenticate") or b"").split(b" ")[0].decode("latin-1")
        wants = f"wants a login of its own ({_clean(login, MAX_NAME)})" if login else "refuses this"
        return (
            f"{_status(refused, '')}{f' from {by}' if by else ''}: something before the server "
            f"{wants}, or puts a page of its own in the place of the server's answer"
        )
    if kind is AnswerKind.FRONTEND or media == "text/html":
        return (
            f"a frontend answered in the API's place ({refused.status} {media}"
            f"{f' from {by}' if by else ''}); is the server URL right?"
        )
    return None


def _status(refused: UpgradeRefused, said: str) -> str:
    status = f"{refused.status} {refused.reason}".rstrip()
    said = _clean(said, MAX_TEXT)
    return f"{status}: {said}" if said else status


def _media(refused: UpgradeRefused) -> str:
    value = refused.header(b"content-type") or b""
    return value.decode("latin-1").partition(";")[0].strip().lower()


def _answeredBy(refused: UpgradeRefused) -> str:
    """What stands in between, as far as it gives itself a name."""
    server = _clean((refused.header(b"server") or b"").decode("latin-1"), MAX_NAME)
    if server and not server.startswith(_OWN_SERVER):
        return server
    return _clean((refused.header(b"via") or b"").decode("latin-1"), MAX_NAME)


def _leadsTo(refused: UpgradeRefused) -> str:
    """Where a redirect leads, without path and query."""
    try:
        parts = urlsplit((refused.header(b"location") or b"").decode("latin-1"))
        host, port = parts.hostname, parts.port
    except ValueError:
        return ""
    if parts.scheme not in ("http", "https") or not host:
        return ""
    return f", and this one leads to {parts.scheme}://{host[:200]}{f':{port}' if port else ''}"


def _clean(text: str, limit: int) -> str:
    return "".join(c if c.isprintable() else " " for c in text).strip()[:limit]


def retryAfter(refused: UpgradeRefused) -> float | None:
    """A C{Retry-After} in seconds; a date is taken against the answer's own C{Date}."""
    value = (refused.header(b"retry-after") or b"").decode("latin-1").strip()
    if re.fullmatch(r"\d{1,6}", value):
        return float(value)
    try:
        now = (refused.header(b"date") or b"").decode("latin-1")
        return max(0.0, (parsedate_to_datetime(value) - parsedate_to_datetime(now)).total_seconds())
    except (ValueError, TypeError):
        return None


__all__ = ["MAX_TEXT", "Refused", "refusal", "retryAfter"]
