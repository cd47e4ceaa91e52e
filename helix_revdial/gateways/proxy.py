# -*- test-case-name: tests.gateways.test_proxy -*-
"""
The HTTP gateway: a streaming reverse proxy to services beside agents.

A request goes to the service as it comes, and so does the answer: neither body is
held, each side is as fast as the slower of the two, and an event stream's events pass
when they come.  What the service answers is read by h11 and written anew, so that the
caller sees one meaning of it or a 502.  An upgrade that the service agrees to leaves
HTTP: caller and service are joined by the relay.

Invariants:

  - Only a request that can be repeated without harm, and has no body, goes by a
    connection of before (L{helix_revdial.gateways.backends}).
  - An answer that breaks off is broken off, never ended.
  - A caller has at most so many exchanges, and so has a runner; each is given back
    exactly once, whatever ends it.  A caller that goes away takes its exchange along.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from twisted.internet.interfaces import IReactorTime

from helix_revdial.access.shares import Shares
from helix_revdial.gateways.backends import Backends
from helix_revdial.gateways.exchange import Ended, Errand, Exchange
from helix_revdial.http.request import Request
from helix_revdial.http.response import HandedOver, Response
from helix_revdial.revdial.connections import Connections
from helix_revdial.revdial.errors import TooManyPendingDials
from helix_revdial.revdial.sockets import SocketRelays


@dataclass(frozen=True)
class ProxyLimits:
    """
    @ivar perCaller: Exchanges of one caller, upgraded ones included.
    @ivar perRunner: Exchanges with one runner.
    @ivar answerTimeout: Seconds from the end of a request to the head of its answer,
        where the caller does not say.
    @ivar idleTimeout: Seconds that a connection waits for another request.
    @ivar linger: Seconds of silence after the first end of an upgraded stream.
    """

    perCaller: int = 256
    perRunner: int = 512
    answerTimeout: float = 300.0
    idleTimeout: float = 15.0
    linger: float = 60.0


class HTTPProxy:
    """
    Forwards requests.
    """

    def __init__(
        self,
        clock: IReactorTime,
        connections: Connections,
        limits: ProxyLimits,
        *,
        sockets: SocketRelays | None = None,
        onLimit: Callable[[], None] = lambda: None,
        count: Callable[[str], object] = lambda how: None,
    ) -> None:
        """
        @param connections: Leads to the runners.
        @param sockets: Moves the bytes of upgraded streams between plain sockets.
        @param onLimit: Told when a caller or a runner has reached its limit.
        @param count: As L{Backends} has it.
        """
        self.clock = clock
        self.connections = connections
        self.limits = limits
        self.sockets = sockets
        self.backends = Backends(clock, connections, idleTimeout=limits.idleTimeout, count=count)
        self._onLimit = onLimit
        self._callers = Shares(limits.perCaller)
        self._runners = Shares(limits.perRunner)
        self._exchanges: set[Exchange] = set()

    def __len__(self) -> int:
        """Exchanges under way."""
        return len(self._exchanges)

    def setLimits(self, limits: ProxyLimits) -> None:
        """From now on, other limits; what is under way goes on."""
        self.limits = limits
        self._callers.limit = limits.perCaller
        self._runners.limit = limits.perRunner
        self.backends.idle.timeout = limits.idleTimeout

    def end(self, family: str) -> None:
        """Cut everything that was asked with a token family."""
        for exchange in [each for each in self._exchanges if each.errand.family == family]:
            exchange.cut()

    def stop(self) -> None:
        """Keep no idle connections from now on."""
        self.backends.idle.stop()

    async def forward(self, request: Request, errand: Errand) -> Response | HandedOver:
        """
        Pass a request on, and its answer back.

        @return: The answer, whose body is still on its way; or the connection has
            left HTTP.
        @raise DialError: There is no answer: no stream, no time, a broken tunnel.
        @raise BadAnswer: There is none that could be passed on.
        @raise Ended: The token family ended meanwhile.
        @raise Problem: The request's body is no good.
        """
        if self._callers.spent(errand.caller):
            self._onLimit()
            raise TooManyPendingDials("you have as many requests as you may have", retryAfter=1.0)
        if self._runners.spent(errand.runner):
            self._onLimit()
            raise TooManyPendingDials("it has as many requests as it may have", retryAfter=1.0)
        self._callers.take(errand.caller)
        self._runners.take(errand.runner)
        exchange = Exchange(self, request, errand)
        self._exchanges.add(exchange)
        try:
            return await exchange.run()
        except Exception:
            exchange.over()
            raise

    def over(self, exchange: Exchange) -> None:
        """An exchange has ended."""
        self._exchanges.remove(exchange)
        self._callers.release(exchange.errand.caller)
        self._runners.release(exchange.errand.runner)


__all__ = ["Ended", "Errand", "HTTPProxy", "ProxyLimits"]
