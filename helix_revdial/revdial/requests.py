# -*- test-case-name: tests.revdial.test_vectors -*-
"""
What a request to C{/api/v1/revdial} asks for, and what an answer to it means.

Sans-I/O, over request and response heads that are parsed already.  Says which
form of the wire is meant; who may have it is decided elsewhere, and whether a
WebSocket handshake is complete is for the WebSocket library to say.

Header names are lower case, values as received.  Any letter case of the words in
C{Connection} and C{Upgrade} is right, they may stand in lists, and the fields may
be repeated (RFC 9110, 5.3, 7.6.1 and 7.8).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from helix_revdial.revdial.features import (
    FEATURES_HEADER,
    TARGETS,
    TARGETS_HEADER,
    TICKET_HEADER,
    parseFeatures,
)
from helix_revdial.revdial.offered import OfferedTarget, parseTargets

Headers = Sequence[tuple[bytes, bytes]]

RUNNER_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""To be matched in full."""

_FEATURES = FEATURES_HEADER.lower()
_TICKET = TICKET_HEADER.lower()
_TARGETS = TARGETS_HEADER.lower()


class RequestKind(Enum):
    """Which form of the wire a request asks for."""

    CONTROL_RAW = auto()
    CONTROL_WEBSOCKET = auto()
    CONTROL_HIJACK = auto()
    DATA_RAW = auto()
    DATA_WEBSOCKET = auto()

    CHECK_RAW = auto()
    """An upgrade that registers nobody; see L{helix_revdial.revdial.checks}."""

    CHECK_WEBSOCKET = auto()

    UPGRADE_REQUIRED = auto()
    """None of these: answer C{426} with C{Upgrade: revdial, websocket}."""

    BAD_RUNNER = auto()
    """A control connection without a runner key, or with a bad one: answer C{400}."""


@dataclass(frozen=True, slots=True)
class Classified:
    """
    @ivar kind: The form.
    @ivar runnerId: The runner key of a control connection, if it is good; of a
        check, C{None} where it asks about no runner.
    @ivar dialer: C{revdial.dialer} of a data connection of the old wire.
    @ivar request: C{revdial.req} of the same.
    @ivar ticket: What a data connection presents, where it does.
    @ivar features: What the peer offers.
    @ivar offered: Whether it sent the features header at all: only then it
        knows our messages.
    @ivar targets: What a control connection says of its targets; C{None} where
        it says nothing, or does not offer C{targets}.
    """

    kind: RequestKind
    runnerId: str | None = None
    dialer: str | None = field(default=None, repr=False)
    request: str | None = field(default=None, repr=False)
    ticket: str | None = field(default=None, repr=False)
    features: frozenset[str] = frozenset()
    offered: bool = False
    targets: tuple[OfferedTarget, ...] | None = None


def classify(
    method: str,
    headers: Headers,
    query: Iterable[tuple[str, str]],
    *,
    httpVersion: str = "1.1",
) -> Classified:
    """
    Tell what a request asks for.

    @param method: The request method.
    @param headers: The fields of the head, names in lower case.
    @param query: The decoded query, in order.
    @param httpVersion: A peer of C{1.0} can have the hijack form only.
    """
    query = list(query)
    offers = [value for name, value in headers if name == _FEATURES]
    tickets = [value for name, value in headers if name == _TICKET]
    features = parseFeatures(offers)
    upgrade = upgradeAsked(method, headers, httpVersion=httpVersion)
    if tickets or any(name == "revdial.dialer" and value for name, value in query):
        return Classified(
            _DATA.get(upgrade, RequestKind.UPGRADE_REQUIRED),
            dialer=_only(query, "revdial.dialer"),
            request=_only(query, "revdial.req"),
            ticket=_ticket(tickets),
            features=features,
            offered=bool(offers),
        )
    checked = [value for name, value in query if name == "revdial.check"]
    isCheck = bool(checked) and not any(name == "runnerid" for name, _ in query)
    if isCheck and checked == [""]:
        kind = _CHECK.get(upgrade, RequestKind.UPGRADE_REQUIRED)
        return Classified(kind, features=features, offered=bool(offers))
    runnerId = _only(query, "revdial.check" if isCheck else "runnerid")
    if runnerId is None or RUNNER_KEY.fullmatch(runnerId) is None:
        return Classified(RequestKind.BAD_RUNNER, features=features, offered=bool(offers))
    if isCheck:
        kind = _CHECK.get(upgrade, RequestKind.UPGRADE_REQUIRED)
        return Classified(kind, runnerId, features=features, offered=bool(offers))
    control = _CONTROL.get(upgrade)
    if control is None:
        hijack = method == "GET" and not offers and _isHijack(headers)
        control = RequestKind.CONTROL_HIJACK if hijack else RequestKind.UPGRADE_REQUIRED
    targets = None
    if TARGETS in features:
        targets = parseTargets(value for name, value in headers if name == _TARGETS)
    return Classified(control, runnerId, features=features, offered=bool(offers), targets=targets)


def upgradeAsked(method: str, headers: Headers, *, httpVersion: str = "1.1") -> bytes | None:
    """
    Which carrier a request asks for: C{b"revdial"}, C{b"websocket"}, or C{None} for none
    that we know.
    """
    return _upgrade(headers) if method == "GET" and httpVersion != "1.0" else None


class AnswerKind(Enum):
    """What an agent makes of the answer to its upgrade."""

    RAW = auto()
    """The bytes behind the head are the stream."""

    WEBSOCKET = auto()
    """Frames follow, once the accept key has been checked."""

    HIJACK = auto()
    """
    An old server took a control connection in the old form: what follows are
    control lines as they are, whatever the head says about chunks.
    """

    REFUSED = auto()
    """The server itself said no; another carrier would hear the same."""

    FRONTEND = auto()
    """Something that is not the API answered with a page."""

    OTHER = auto()
    """Nothing that the API says to this request: perhaps a proxy in between."""


def judge(
    status: int, headers: Headers, *, asked: RequestKind = RequestKind.CONTROL_RAW
) -> AnswerKind:
    """
    Tell what an answer to an upgrade means.

    @param status: The status code.
    @param headers: The fields of the answer's head, names in lower case.
    @param asked: Which form the request asked for.
    """
    if status == 101:
        wanted = b"websocket" if asked in _OVER_WEBSOCKET else b"revdial"
        if _upgrade(headers) != wanted:
            return AnswerKind.OTHER
        return AnswerKind.WEBSOCKET if asked in _OVER_WEBSOCKET else AnswerKind.RAW
    names = {name for name, _ in headers}
    media = _first(headers, b"content-type").partition(b";")[0].strip().lower()
    if status == 200:
        if media:
            return AnswerKind.FRONTEND
        if asked is RequestKind.CONTROL_RAW and _FEATURES not in names and _isChunked(headers):
            return AnswerKind.HIJACK
    if status >= 400 and status != 426 and media == b"application/problem+json":
        return AnswerKind.REFUSED
    return AnswerKind.OTHER


_CONTROL: dict[bytes | None, RequestKind] = {
    b"revdial": RequestKind.CONTROL_RAW,
    b"websocket": RequestKind.CONTROL_WEBSOCKET,
}
_DATA: dict[bytes | None, RequestKind] = {
    b"revdial": RequestKind.DATA_RAW,
    b"websocket": RequestKind.DATA_WEBSOCKET,
}
_CHECK: dict[bytes | None, RequestKind] = {
    b"revdial": RequestKind.CHECK_RAW,
    b"websocket": RequestKind.CHECK_WEBSOCKET,
}
_OVER_WEBSOCKET = {
    RequestKind.CONTROL_WEBSOCKET,
    RequestKind.DATA_WEBSOCKET,
    RequestKind.CHECK_WEBSOCKET,
}


def _words(headers: Headers, wanted: bytes) -> list[bytes]:
    """The members of a list field, in lower case and order, without parameters."""
    joined = b",".join(value for name, value in headers if name == wanted)
    words = (word.partition(b"/")[0].strip().lower() for word in joined.split(b","))
    return [word for word in words if word]


def _upgrade(headers: Headers) -> bytes | None:
    """The first of our protocols that the peer would change to."""
    if b"upgrade" not in _words(headers, b"connection"):
        return None
    ours = (word for word in _words(headers, b"upgrade") if word in (b"revdial", b"websocket"))
    return next(ours, None)


def _isHijack(headers: Headers) -> bool:
    """The form of November 2025: Connection: Upgrade, and nothing to upgrade to."""
    names = {name for name, _ in headers}
    return (
        b"upgrade" in _words(headers, b"connection")
        and b"upgrade" not in names
        and b"sec-websocket-key" not in names
    )


def _isChunked(headers: Headers) -> bool:
    return b"chunked" in _words(headers, b"transfer-encoding")


def _first(headers: Headers, wanted: bytes) -> bytes:
    return next((value for name, value in headers if name == wanted), b"")


def _only(query: list[tuple[str, str]], wanted: str) -> str | None:
    """A parameter that is given just once and not empty."""
    values = [value for name, value in query if name == wanted]
    return values[0] if len(values) == 1 and values[0] else None


def _ticket(values: list[bytes]) -> str | None:
    if not values:
        return None
    # An ambiguous ticket opens nothing, and is still no reason to look at the ids.
    return values[0].strip().decode("latin-1") if len(values) == 1 else ""
