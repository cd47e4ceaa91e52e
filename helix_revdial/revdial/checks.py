# -*- test-case-name: tests.revdial.test_checks -*-
"""
The check: an upgrade that registers nobody.

Whether a path lets upgrades through, for how long it lets a connection be idle,
and whether a token may register a key: an agent cannot find out by connecting,
since that takes the name over from the agent that has it.  So there is a request
of its own (C{docs/wire.md}, section 4.5): C{revdial.check} in the place of
C{runnerid}.  A server that does not know it sees a control connection without a
runner, and refuses it; that is why it is a parameter and not a header.

L{CheckPeer} is the server's end: it answers what it is asked, says nothing of its
own accord, and ends after L{CHECK_LIFE}.  L{Check} is the asking end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IDelayedCall, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from .control import ControlConnection
from .exchange import CarrierURL
from .features import ALL, CHECK_HEADER, FEATURES_HEADER, formatFeatures, parseFeatures
from .messages import Goodbye, Message
from .upgrade import RawUpgradeEndpoint
from .websocket import WebSocketEndpoint

CHECK_QUERY = "revdial.check"
"""The query parameter whose value is the runner key that is asked about, or empty."""

CHECK_LIFE = 1800.0
"""Seconds after which the server ends a check."""

MAX_CHECKS = 64
"""Checks that a server has open at a time."""


class CheckPeer(ControlConnection):
    """
    The server's end of a check.
    """

    def __init__(
        self,
        clock: IReactorTime,
        features: frozenset[str],
        onOver: Callable[[CheckPeer], None],
        *,
        life: float = CHECK_LIFE,
    ) -> None:
        """
        @param features: What both ends agreed on.
        @param onOver: Told once, when the connection is gone or never came.
        @param life: Seconds from now until it ends, whether its carrier came or not.
        """
        super().__init__(clock, features)
        self._onOver = onOver
        self._end: IDelayedCall | None = clock.callLater(life, self._expired)

    def messageReceived(self, message: Message) -> None:
        if isinstance(message, Goodbye):
            self.close("goodbye")

    def lost(self, reason: Failure) -> None:
        end, self._end = self._end, None
        if end is not None:
            end.cancel()
        self._onOver(self)

    def abandon(self) -> None:
        """The carrier will not come."""
        if self.transport is None:
            self.close("abandoned")

    def _expired(self) -> None:
        self._end = None
        self.close("goodbye")


class Check(ControlConnection):
    """
    The asking end of a check, connected.

    @ivar state: What the server says of the runner: C{"connected"}, C{"grace"},
        C{"free"}; C{""} where it was asked about none.
    """

    def __init__(self, clock: IReactorTime, offered: frozenset[str]) -> None:
        super().__init__(clock, frozenset())
        self._offered = offered
        self._over: Failure | None = None
        self._waiters: list[Deferred[None]] = []
        self.state = ""

    @property
    def isCheck(self) -> bool:
        """Whether the server knows what a check is: it says so in its answer."""
        return self._answered(CHECK_HEADER) is not None

    def whenLost(self) -> Deferred[None]:
        """Errbacks with why, when the connection is gone."""
        if self._over is not None:
            return fail(self._over)
        waiter: Deferred[None] = Deferred(self._waiters.remove)
        self._waiters.append(waiter)
        return waiter

    def ask(self) -> Deferred[float]:
        """
        Have the server answer.

        @return: Fires with the round trip in seconds; errbacks when the connection
            ends first.
        """
        answer = self.signOfLife()
        return answer if answer is not None else fail(ConnectionLost("the connection is gone"))

    def leave(self) -> Deferred[None]:
        """Close; fires when the connection is gone."""
        self.close("left")
        if self._over is not None:
            return succeed(None)
        return self.whenLost().addErrback(lambda _: None)

    def started(self) -> None:
        self.features = self._offered & parseFeatures([self._answered(FEATURES_HEADER) or b""])
        self.state = (self._answered(CHECK_HEADER) or b"").decode("latin-1").strip()

    def lost(self, reason: Failure) -> None:
        self._over = reason
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.errback(reason)

    def _answered(self, name: bytes) -> bytes | None:
        for key, value in self._carrier().responseHeaders:
            if key == name.lower():
                return value
        return None


def connectCheck(
    reactor: Any,
    endpoint: IStreamClientEndpoint,
    url: CarrierURL,
    headers: Sequence[tuple[bytes, bytes]],
    *,
    webSocket: bool,
    timeout: float = 10.0,
    features: frozenset[str] = ALL,
) -> Deferred[Check]:
    """
    Open a check.

    @param reactor: The clock.
    @param endpoint: Leads to the server.
    @param url: The protocol's URL, with L{CHECK_QUERY} in its query.
    @param headers: Further fields of the request, C{Authorization} among them.
    @param webSocket: Whether over WebSocket, else raw.
    @param timeout: Seconds for the connection, and again for the answer.
    @param features: What to offer.
    @return: Fires with the check; errbacks as an upgrade does.
    """
    clock = cast(IReactorTime, reactor)
    fields = [*headers, (FEATURES_HEADER, formatFeatures(features))]
    upgrade: IStreamClientEndpoint
    if webSocket:
        upgrade = WebSocketEndpoint(reactor, endpoint, url, fields, eof=False, timeout=timeout)
    else:
        upgrade = RawUpgradeEndpoint(reactor, endpoint, url, fields, timeout=timeout)
    factory = Factory.forProtocol(lambda: Check(clock, features))
    factory.noisy = False
    return cast("Deferred[Check]", upgrade.connect(factory))


__all__ = ["CHECK_LIFE", "CHECK_QUERY", "MAX_CHECKS", "Check", "CheckPeer", "connectCheck"]
