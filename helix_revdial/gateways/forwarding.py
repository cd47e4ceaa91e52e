# -*- test-case-name: tests.gateways.test_forwarding -*-
"""
Which header fields cross a reverse proxy, and which it writes itself.

Sans-I/O.  What belongs to one connection (RFC 9110, 7.6.1) never crosses: the
hop-by-hop fields and whatever C{Connection} names.  The framing is each
connection's own.  Of what says who the caller is nothing is taken from the caller,
unless it is a proxy that the operator trusts: not from C{X-Forwarded-For}, and not
from C{X_Forwarded_For} either, which many a service cannot tell from it.

Our own token never crosses.  A service behind a prefix shares its origin with the
API and with other services; what it says is kept from reaching beyond the prefix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from helix_revdial.http.request import Headers

Fields = list[tuple[bytes, bytes]]

OWN_AUTHORIZATION = b"x-helix-authorization"
"""Where a caller puts our token so that C{Authorization} is for the service."""

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Fields of one connection; C{Trailer} among them, since trailers do not cross."""

_WRITTEN = frozenset(
    {
        b"host",
        b"content-length",
        b"expect",
        b"traceparent",
        b"tracestate",
        b"x-request-id",
        OWN_AUTHORIZATION,
    }
)
"""Fields of a request that the proxy writes itself, or leaves out."""

_ABOUT_CALLER = frozenset({b"forwarded", b"x-real-ip"})

_WHOLE_ORIGIN = frozenset(
    {
        b"alt-svc",
        b"clear-site-data",
        b"public-key-pins",
        b"public-key-pins-report-only",
        b"service-worker-allowed",
        b"strict-transport-security",
    }
)
"""Fields of an answer that are about all of an origin."""

SANDBOX = (
    b"Content-Security-Policy",
    b"sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts",
)
"""Makes a page behind a prefix a stranger to the API's origin."""

_VALUE = re.compile(rb"[\t \x21-\x7e\x80-\xff]*")
_HOST = re.compile(rb"[A-Za-z0-9._\[\]:-]{1,255}")
_URL = re.compile(rb"https?://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
_PROTO = re.compile(rb"https?", re.IGNORECASE)
_LIST = re.compile(rb"[A-Za-z0-9._\[\]:, -]{1,1024}")


class BadAnswer(Exception):
    """What a service answered is no HTTP that could be passed on; C{str()} says why."""


@dataclass(frozen=True, slots=True)
class Caller:
    """
    Who asks, as the service is told.

    @ivar address: The peer's address.
    @ivar secure: Whether it came by TLS.
    @ivar trusted: Whether it is a proxy of the operator's, whose word counts.
    @ivar prefix: What of the path was taken away; empty for an origin of its own.
    """

    address: str
    secure: bool
    trusted: bool = False
    prefix: bytes = b""


def requestFields(
    headers: Headers,
    caller: Caller,
    *,
    passAuthorization: bool = False,
    upgrade: bytes | None = None,
    written: Iterable[tuple[bytes, bytes]] = (),
) -> Fields:
    """
    The fields of the request to the service, but for those of its body.

    @param passAuthorization: Whether C{Authorization} is for the service.
    @param upgrade: The protocols to ask for, as the caller did.
    @param written: Further fields of ours.
    """
    drop = HOP_BY_HOP | _WRITTEN | set(headers.tokens(b"connection"))
    if not passAuthorization:
        drop |= {b"authorization"}
    fields: Fields = [(b"Host", headers.get(b"host", b"") or b"")]
    for raw, value in headers.raw:
        # A service that makes variables of fields takes the two letters for one.
        name = raw.lower().replace(b"_", b"-")
        if name in drop or name.startswith(b"x-forwarded-"):
            continue
        if name in _ABOUT_CALLER and (name == b"forwarded" or not caller.trusted):
            continue
        fields.append((raw, value))
    fields += _forwarded(headers, caller)
    fields += written
    if upgrade is not None:
        fields += [(b"Connection", b"Upgrade"), (b"Upgrade", upgrade)]
    return fields


def _forwarded(headers: Headers, caller: Caller) -> Fields:
    address = caller.address.encode("ascii", "replace")
    before, proto, host, prefix = [], None, None, None
    if caller.trusted:
        before = [each for each in headers.getAll(b"x-forwarded-for") if _LIST.fullmatch(each)]
        proto = _one(headers, b"x-forwarded-proto", _PROTO)
        host = _one(headers, b"x-forwarded-host", _HOST)
        prefix = _one(headers, b"x-forwarded-prefix", re.compile(rb"/[\x21-\x7e]{0,255}"))
    fields = [
        (b"X-Forwarded-For", b", ".join([*before, address])),
        (b"X-Forwarded-Proto", proto or (b"https" if caller.secure else b"http")),
        (b"X-Forwarded-Host", host or headers.get(b"host", b"") or b""),
    ]
    prefix = (prefix or b"").rstrip(b"/") + caller.prefix
    if prefix:
        fields.append((b"X-Forwarded-Prefix", prefix))
    return fields


def _one(headers: Headers, name: bytes, form: re.Pattern[bytes]) -> bytes | None:
    values = headers.getAll(name)
    return values[0] if len(values) == 1 and form.fullmatch(values[0]) else None


def asksUpgrade(headers: Headers, httpVersion: bytes) -> bytes | None:
    """
    The protocols that a request offers to change to, as it says it.

    C{Upgrade} counts only where C{Connection} names it (RFC 9110, 7.8); neither has
    a letter case.
    """
    if httpVersion == b"1.0" or b"upgrade" not in headers.tokens(b"connection"):
        return None
    offered = [
        each.strip(b" \t")
        for value in headers.getAll(b"upgrade")
        for each in value.split(b",")
        # h2c needs a field that ends here, and would hide requests from us.
        if each.strip(b" \t").lower() not in (b"", b"h2c")
    ]
    return b", ".join(offered) or None


def checkSwitch(asked: bytes, answer: Headers) -> bytes:
    """
    What a service switches to.

    @raise BadAnswer: Something that nobody asked for.
    """
    given = answer.tokens(b"upgrade")
    offered = {each.strip(b" \t") for each in asked.lower().split(b",")}
    if not given or not offered.issuperset(given):
        raise BadAnswer("it switched to a protocol that was not asked for")
    return b", ".join(answer.getAll(b"upgrade"))


def answerFields(
    status: int, answer: Headers, *, version: bytes, prefix: bytes = b"", host: bytes = b""
) -> Fields:
    """
    The fields of the answer to the caller, C{Content-Length} included where that is
    the framing.

    @param version: The service's version of HTTP.
    @param prefix: As in L{Caller}.
    @param host: The host that the service was asked for, which it may call itself by.
    @raise BadAnswer: It could be read in two ways.
    """
    codings = answer.getAll(b"transfer-encoding")
    lengths = answer.getAll(b"content-length")
    if codings and (lengths or version != b"1.1" or status == 204):
        raise BadAnswer("the length of its body is ambiguous")
    if not 200 <= status <= 599:
        raise BadAnswer(f"{status} is no status of an answer")
    drop = HOP_BY_HOP | set(answer.tokens(b"connection")) | {b"x-request-id"}
    drop -= {b"content-length"}  # the framing, whatever Connection names
    if status == 204:
        drop |= {b"content-length"}
    if prefix:
        drop |= _WHOLE_ORIGIN
    fields: Fields = []
    for raw, value in answer.raw:
        if _VALUE.fullmatch(value) is None:
            raise BadAnswer("a header field holds a control character")
        name = raw.lower()
        if name in drop:
            continue
        if prefix and name in (b"location", b"content-location"):
            value = _within(prefix, value, host)
        elif prefix and name == b"set-cookie":
            value = _cookieWithin(prefix, value)
        fields.append((raw, value))
    if prefix:
        fields.append(SANDBOX)
    return fields


def _within(prefix: bytes, location: bytes, host: bytes = b"") -> bytes:
    """
    A path of the service's, as the caller reaches it.

    @param host: What the service was asked for: a URL of that host is a path, too.
    """
    url = _URL.fullmatch(location)
    if host and url is not None and url[1].lower() == host.lower():
        location = url[2] if url[2].startswith(b"/") else b"/" + url[2]
    elif not location.startswith(b"/") or location.startswith(b"//"):
        return location
    if location == prefix or location.startswith(prefix + b"/"):
        return location
    return prefix + location


def _cookieWithin(prefix: bytes, cookie: bytes) -> bytes:
    """A cookie that comes back to this service only."""
    pair, *attributes = cookie.split(b";")
    path = b"/"
    kept = []
    for attribute in attributes:
        name, _, value = attribute.strip(b" \t").partition(b"=")
        word = name.strip(b" \t").lower()
        if word == b"path":
            path = value.strip(b" \t")
        elif word != b"domain":
            kept.append(attribute)
    if not path.startswith(b"/"):
        path = b"/"
    return b";".join([pair, b" Path=" + _within(prefix, path), *kept])


def switchHead(fields: Sequence[tuple[bytes, bytes]], upgrade: bytes) -> bytes:
    """The C{101} for the caller."""
    lines = [b"HTTP/1.1 101 Switching Protocols", b"Connection: Upgrade", b"Upgrade: " + upgrade]
    lines += [b"%s: %s" % field for field in fields]
    return b"\r\n".join(lines) + b"\r\n\r\n"


__all__ = [
    "OWN_AUTHORIZATION",
    "BadAnswer",
    "Caller",
    "answerFields",
    "asksUpgrade",
    "checkSwitch",
    "requestFields",
    "switchHead",
]
