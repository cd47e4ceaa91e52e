# -*- test-case-name: tests.api.test_first_look -*-
"""
Data connections of our agents, recognised before anything else is done.

There is one for each dial, so that the way through tracing, routing, access and
validation is most of what a dial costs the server.  L{FirstLook} is the HTTP factory's
first look: it knows the one form of request that our agents send for a dial, and gives
what it recognises to the same L{pickUp <helix_revdial.api.tunnel.pickUp>} that the
operation calls.

Invariants:

  - It hands over, or it has done nothing: every question here is one that changes
    nothing, and whatever it does not answer with yes is the operation's to judge, to
    refuse, to count and to audit.
  - What it hands over, the operation would have handed over, in the same words.  A test
    compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from helix_revdial.access.authorization import parseAuthorization
from helix_revdial.access.table import Decision, decide
from helix_revdial.api.services import Services
from helix_revdial.api.tracing import traceOf
from helix_revdial.api.tunnel import ACCESS, PATH, pickUp
from helix_revdial.http.request import Request
from helix_revdial.revdial.requests import Classified, RequestKind

_KINDS = {b"revdial": RequestKind.DATA_RAW, b"websocket": RequestKind.DATA_WEBSOCKET}

_KNOWN = frozenset(
    {
        b"host",
        b"user-agent",
        b"connection",
        b"upgrade",
        b"authorization",
        b"revdial-ticket",
        b"revdial-timing",
        b"sec-websocket-key",
        b"sec-websocket-version",
        b"pragma",
        b"cache-control",
    }
)
"""What our agents send; any other field may mean something to somebody."""

_KEY = re.compile(rb"[A-Za-z0-9+/]{21}[AQgw]==")
"""16 bytes in base64."""


class FirstLook:
    """
    Takes the data connections that need no second look.
    """

    def __init__(
        self, services: Services, isElsewhere: Callable[[Request], bool] = lambda request: False
    ) -> None:
        """
        @param isElsewhere: Whether a request is for somebody else than the API, or to be
            watched in a way that only the whole of it can be.
        """
        self._services = services
        self._isElsewhere = isElsewhere

    def __call__(self, request: Request) -> None:
        """Hand the connection over, or do nothing."""
        if request.path != PATH or request.rawQuery or request.method != "GET":
            return
        fields = dict(request.headers)
        if len(fields) != len(request.headers) or not _KNOWN.issuperset(fields):
            return
        ticket = fields.get(b"revdial-ticket")
        kind = _KINDS.get(fields.get(b"upgrade", b"").lower())
        if not ticket or kind is None or fields.get(b"connection", b"").lower() != b"upgrade":
            return
        if request.httpVersion != b"1.1" or not _isHandshake(kind, fields):
            return
        services = self._services
        secret = parseAuthorization(fields.get(b"authorization"))
        principal = None if secret is None else services.tokens.known(secret)
        if principal is None or decide(ACCESS, principal) is not Decision.ALLOWED:
            return
        if services.load.tenants.spent(principal.tenant) or self._isElsewhere(request):
            return
        presented = ticket.decode("latin-1")
        if not services.connections.isAsked(principal.family, presented):
            return
        request.authenticated()
        request.logged["trace"] = traceOf(request).traceId
        pickUp(services, request, principal, Classified(kind, ticket=presented))


def _isHandshake(kind: RequestKind, fields: dict[bytes, bytes]) -> bool:
    key, version = fields.get(b"sec-websocket-key"), fields.get(b"sec-websocket-version")
    if kind is RequestKind.DATA_RAW:
        return key is None and version is None
    return version == b"13" and key is not None and _KEY.fullmatch(key) is not None


__all__ = ["FirstLook"]
