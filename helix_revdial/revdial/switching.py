# -*- test-case-name: tests.revdial.test_data_websocket,tests.integration.test_pool -*-
"""
How a data connection leaves HTTP: the upgrade, both ends, by hand.

A dial is little more than its upgrade, and there is one for each.  A raw connection is
asked for and answered with the stream's bytes to follow; a WebSocket by the handshake
of RFC 6455, section 4.  What follows the heads is a carrier's
(L{helix_revdial.revdial.upgrade}, L{helix_revdial.revdial.data_websocket},
L{helix_revdial.revdial.framed}).

Invariants:

  - Each handshake has a key of its own, from the system's randomness, and a C{101}
    counts only with the answer to it.
  - Neither a subprotocol nor an extension is ever offered or agreed to.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha1
from hmac import compare_digest
from secrets import token_bytes
from typing import Any

from .exchange import (
    USER_AGENT,
    Answer,
    CarrierURL,
    Headers,
    MalformedAnswer,
    checkedHeaders,
    firstHeader,
    requestHead,
)
from .features import TIMING_HEADER

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

_UNASKED = {
    b"sec-websocket-extensions": "an extension",
    b"sec-websocket-protocol": "a subprotocol",
}


def acceptKey(key: bytes) -> bytes:
    """What answers a C{Sec-WebSocket-Key} (RFC 6455, section 4.2.2)."""
    return b64encode(sha1(key + _GUID, usedforsecurity=False).digest())


def switchHead(key: bytes | None, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """
    The head of the server's answer.

    @param key: The request's C{Sec-WebSocket-Key}; C{None} for a raw connection.
    @param headers: Fields beside those of the upgrade.
    @raise ValueError: A header field that is not fit for a head.
    """
    lines = [b"HTTP/1.1 101 Switching Protocols"]
    if key is None:
        lines += [b"Upgrade: revdial", b"Connection: Upgrade"]
    else:
        lines += [
            b"Upgrade: websocket",
            b"Connection: Upgrade",
            b"Sec-WebSocket-Accept: " + acceptKey(key),
        ]
    lines.extend(name + b": " + value for name, value in checkedHeaders(headers))
    return b"\r\n".join(lines) + b"\r\n\r\n"


def askHead(url: CarrierURL, headers: Headers, *, webSocket: bool = False) -> bytes:
    """
    The head of a request for an upgrade; of a WebSocket's, all but the key.

    @param headers: Fields beside those that make it one, checked already.
    """
    fields = [
        (b"Host", url.hostHeader()),
        (b"User-Agent", USER_AGENT),
        (b"Connection", b"Upgrade"),
        (b"Upgrade", b"websocket" if webSocket else b"revdial"),
    ]
    if webSocket:
        fields.append((b"Sec-WebSocket-Version", b"13"))
    return requestHead(b"GET", url.path, [*fields, *headers])


def withFields(head: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A head with more fields, which are checked already."""
    lines = b"".join(b"%s: %s\r\n" % field for field in headers)
    return b"%s%s\r\n" % (head[:-2], lines)


def timing(seconds: float) -> bytes:
    """What the timing header says of a target that took so long."""
    return b"target=%.6f" % seconds


class SwitchForm:
    """
    How the dialling end asks, and what counts as a yes; for one exchange.

    What a carrier makes of the connection is added by whoever has the carrier.
    """

    def __init__(self, head: bytes, *, webSocket: bool) -> None:
        """@param head: See L{askHead}."""
        self._key = b64encode(token_bytes(16)) if webSocket else None
        if self._key is not None:
            head = withFields(head, [(b"Sec-WebSocket-Key", self._key)])
        self.head = head

    def begin(self, transport: Any, head: bytes, seconds: float | None) -> None:
        """Send the request; C{seconds} is what the target took."""
        if seconds is not None:
            head = withFields(head, [(TIMING_HEADER, timing(seconds))])
        transport.write(head)

    def accepts(self, answer: Answer) -> bool:
        """
        Whether this answer switches.

        @raise MalformedAnswer: It claims to, but to something else, or without proof
            that our key was read.
        """
        if answer.status != 101:
            return False
        wanted = b"revdial" if self._key is None else b"websocket"
        if (firstHeader(answer.headers, b"upgrade") or b"").strip().lower() != wanted:
            raise MalformedAnswer(
                f"the server switched to another protocol than {wanted.decode('ascii')}"
            )
        if self._key is not None:
            self._check(self._key, answer.headers)
        return True

    def _check(self, key: bytes, headers: Headers) -> None:
        """RFC 6455, section 4.1: what the client has to look at."""
        words = b",".join(value for name, value in headers if name == b"connection")
        accepted = [value for name, value in headers if name == b"sec-websocket-accept"]
        if (
            b"upgrade" not in [word.strip().lower() for word in words.split(b",")]
            or len(accepted) != 1
            or not compare_digest(accepted[0].strip(), acceptKey(key))
        ):
            raise MalformedAnswer("the server's WebSocket handshake is wrong")
        for name, what in _UNASKED.items():
            if firstHeader(headers, name) is not None:
                raise MalformedAnswer(f"the server uses {what} that nobody offered")


__all__ = ["SwitchForm", "acceptKey", "askHead", "switchHead", "timing", "withFields"]
