# -*- test-case-name: tests.integration.test_pool -*-
"""
How a connection that is to be parked leaves HTTP: the upgrade, both ends, by hand.

A raw connection is asked for and answered as any raw one is; a WebSocket by the
handshake of RFC 6455, section 4, without Autobahn, which would keep the frames for
itself.  What follows the heads is L{helix_revdial.revdial.framed}'s on both.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha1
from hmac import compare_digest
from secrets import token_bytes
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IProtocol, IStreamClientEndpoint
from twisted.internet.protocol import Factory

from .exchange import (
    USER_AGENT,
    Answer,
    CarrierForm,
    CarrierURL,
    MalformedAnswer,
    UpgradeExchange,
    checkedHeaders,
    firstHeader,
    requestHead,
)
from .framed import FramedConnection, FrameUser
from .masks import Keys

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


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


class _ParkForm:
    """How the agent asks, and what counts as a yes."""

    def __init__(
        self, url: CarrierURL, headers: Sequence[tuple[bytes, bytes]], webSocket: bool
    ) -> None:
        self._key = b64encode(token_bytes(16)) if webSocket else None
        fields = [
            (b"Host", url.hostHeader()),
            (b"User-Agent", USER_AGENT),
            (b"Connection", b"Upgrade"),
        ]
        if self._key is None:
            fields.append((b"Upgrade", b"revdial"))
        else:
            fields += [
                (b"Upgrade", b"websocket"),
                (b"Sec-WebSocket-Version", b"13"),
                (b"Sec-WebSocket-Key", self._key),
            ]
        self.head = requestHead(b"GET", url.path, [*fields, *checkedHeaders(headers)])

    def begin(self, transport: Any, head: bytes, seconds: float | None) -> None:
        transport.write(head)

    def accepts(self, answer: Answer) -> bool:
        if answer.status != 101:
            return False
        wanted = b"revdial" if self._key is None else b"websocket"
        if (firstHeader(answer.headers, b"upgrade") or b"").strip().lower() != wanted:
            raise MalformedAnswer("the server switched to another protocol")
        if self._key is not None:
            accepted = (firstHeader(answer.headers, b"sec-websocket-accept") or b"").strip()
            if not compare_digest(accepted, acceptKey(self._key)):
                raise MalformedAnswer("the server's WebSocket handshake is wrong")
            if firstHeader(answer.headers, b"sec-websocket-extensions"):
                raise MalformedAnswer("the server uses an extension that nobody offered")
        return True

    def open(self, transport: Any, answer: Answer, protocol: IProtocol) -> IProtocol:
        protocol.makeConnection(transport)
        return protocol


def park(
    reactor: Any,
    endpoint: IStreamClientEndpoint,
    url: CarrierURL,
    headers: Sequence[tuple[bytes, bytes]],
    user: FrameUser,
    keys: Keys,
    *,
    webSocket: bool,
    zeroKey: bool,
    timeout: float,
) -> Deferred[FramedConnection]:
    """
    Open a connection that waits for a dial.

    @param reactor: The clock.
    @param endpoint: Leads to the server.
    @param headers: Fields beside those of the upgrade.
    @param user: Hears of what arrives.
    @param zeroKey: Whether a zero masking key is agreed.
    @param timeout: Seconds for the connection, and again for the answer.
    @return: Fires when it is parked; fails as
        L{UpgradeEndpoint.connect <helix_revdial.revdial.exchange.UpgradeEndpoint>}.
    """
    connection = FramedConnection(
        reactor, user, keys, webSocket=webSocket, client=True, zeroKey=zeroKey
    )
    form: CarrierForm = _ParkForm(url, headers, webSocket)
    exchange = UpgradeExchange(reactor, form, _Given(connection), timeout=timeout, ready=None)
    return cast("Deferred[FramedConnection]", exchange.connect(endpoint))


class _Given(Factory):
    """Gives the connection's protocol."""

    noisy = False

    def __init__(self, connection: FramedConnection) -> None:
        self._connection = connection

    def buildProtocol(self, addr: IAddress | None) -> FramedConnection:
        return self._connection


__all__ = ["acceptKey", "park", "switchHead"]
