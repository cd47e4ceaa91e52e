# -*- test-case-name: tests.revdial.test_client -*-
"""
Where a server is: what an operator writes, and what a server may make of it.

Invariant: whatever a server sends, a data connection leads to the host, the port
and the base path that the operator wrote.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from .exchange import CarrierURL

API_PATH = "/api/v1/revdial"
"""The one URL of the protocol, below the server's base path."""

_CONN_PATH = re.compile(r"/(?:api/v1/)?revdial(?P<query>\?[!-\"$-\[\]-~]*)?")


@dataclass(frozen=True)
class ServerURL:
    """
    Where a server is.

    @ivar host: A name or an address, without brackets.
    @ivar port: The TCP port.
    @ivar secure: Whether TLS is spoken.
    @ivar basePath: What stands before C{/api/v1/revdial}: empty, or C{/prefix}.
    """

    host: str
    port: int
    secure: bool
    basePath: str = ""

    @classmethod
    def parse(cls, text: str) -> ServerURL:
        """
        Read an operator's URL.

        @param text: C{http}, C{https}, C{ws} or C{wss}; with or without
            C{/api/v1/revdial}, C{/api/v1} or C{/revdial} at its end.
        @raise ValueError: It is not such a URL; says why.
        """
        text = text.strip()
        try:
            parts = urlsplit(text)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ValueError(f"not a server URL ({error})") from None
        scheme = parts.scheme.lower()
        if scheme not in ("http", "https", "ws", "wss") or "//" not in text:
            raise ValueError(
                "a server URL begins with http://, https://, ws:// or wss://, "
                "for example https://cp.example"
            )
        if "@" in parts.netloc:
            raise ValueError("a server URL has no user or password; the token is given apart")
        if parts.query or parts.fragment or text.endswith(("?", "#")):
            raise ValueError("a server URL has no query and no fragment")
        if not host:
            raise ValueError("the server URL names no host")
        if ":" in host:
            # What a link-local address is on: %25 in a URL (RFC 6874, 2).
            host = host.replace("%25", "%", 1)
        secure = scheme in ("https", "wss")
        path = parts.path.rstrip("/")
        for ending in (API_PATH, "/api/v1", "/revdial"):
            if path.endswith(ending):
                path = path[: -len(ending)]
                break
        try:
            host = host if host.isascii() else host.encode("idna").decode("ascii")
        except UnicodeError:
            raise ValueError("the server URL's host is no name") from None
        found = cls(host, (443 if secure else 80) if port is None else port, secure, path)
        # A CarrierURL checks the characters of all three.
        found.carrierURL("")
        return found

    def __str__(self) -> str:
        host = f"[{self.host.replace('%', '%25', 1)}]" if ":" in self.host else self.host
        standard = 443 if self.secure else 80
        port = "" if self.port == standard else f":{self.port}"
        return f"{'https' if self.secure else 'http'}://{host}{port}{self.basePath}"

    def carrierURL(self, query: str) -> CarrierURL:
        """The protocol's URL, with C{query} (empty, or beginning with C{?})."""
        return CarrierURL(self.host, self.port, self.secure, self.basePath + API_PATH + query)

    def dataURL(self, connPath: str) -> CarrierURL:
        """
        Where a C{conn-ready} leads.

        @param connPath: C{/revdial} or C{/api/v1/revdial}, perhaps with a query.
        @raise ValueError: It is neither; a server cannot send us elsewhere.
        """
        match = _CONN_PATH.fullmatch(connPath)
        if match is None:
            raise ValueError("the server's connPath is not a path of its own")
        return self.carrierURL(match["query"] or "")
