# -*- test-case-name: tests.integration.test_pool -*-
"""
How the agent opens a connection that is to be parked.

It leaves HTTP as any data connection does (L{helix_revdial.revdial.switching}), which is
also how the server answers.  What follows the heads is
L{helix_revdial.revdial.framed}'s, on a raw connection and on a WebSocket.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IProtocol, IStreamClientEndpoint
from twisted.internet.protocol import Factory

from .exchange import Answer, CarrierForm, CarrierURL, UpgradeExchange, checkedHeaders
from .framed import FramedConnection, FrameUser
from .masks import Keys
from .switching import SwitchForm, askHead


class _ParkForm(SwitchForm):
    """What is asked for is a carrier for many streams."""

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
    head = askHead(url, checkedHeaders(headers), webSocket=webSocket)
    form: CarrierForm = _ParkForm(head, webSocket=webSocket)
    exchange = UpgradeExchange(reactor, form, _Given(connection), timeout=timeout, ready=None)
    return cast("Deferred[FramedConnection]", exchange.connect(endpoint))


class _Given(Factory):
    """Gives the connection's protocol."""

    noisy = False

    def __init__(self, connection: FramedConnection) -> None:
        self._connection = connection

    def buildProtocol(self, addr: IAddress | None) -> FramedConnection:
        return self._connection


__all__ = ["park"]
