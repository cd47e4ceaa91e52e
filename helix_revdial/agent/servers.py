# -*- test-case-name: tests.agent.test_servers -*-
"""
Several addresses of one control plane, tried in turn.

L{Servers} stands where the way to a single server stands.  One call of
C{connectControl} tries every address that may be tried, beginning with the one
that worked last; how long to wait when none did is not decided here.

Invariants:

  - Each address has its own way, and so its own memory of which carrier gets
    through; a dial is answered at the address whose control connection asked.
  - An address that says when to come back is left alone until then, unless
    there is no other.
  - An address whose server goes away is the last to be tried next time.
  - Each address has its own time limit.
  - What is wrong with the agent itself (no token) ends the round at once.
  - Being cancelled ends the round: no further address is tried.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..revdial.client import Closed, ControlSession, Refused, ServerURL
from ..revdial.exchange import NoConnection
from ..revdial.framed import FramedConnection, FrameUser
from ..revdial.listener import Listener
from ..revdial.messages import ConnReady
from .failures import connectReason
from .proxies import CredentialsUnusable
from .token import TokenUnusable

T = TypeVar("T")

SERVER_LIMIT = 45.0
"""Seconds that one address may take, over all the carriers that are tried."""

MAX_SERVERS = 16
"""Addresses of one agent."""

GOING = ("goodbye", "shutdown")
"""Words for the end of a connection whose server goes away."""


class Way(Protocol):
    """The way to one address; L{ServerPath
    <helix_revdial.revdial.client.ServerPath>} is one."""

    def connectControl(self, listener: Listener) -> Awaitable[ControlSession]:
        """Log in and register."""

    def dataEndpoint(
        self, connReady: ConnReady, features: frozenset[str], ready: Deferred[float]
    ) -> IStreamClientEndpoint:
        """An endpoint that picks a dial up."""

    def park(
        self, ticket: str, features: frozenset[str], user: FrameUser
    ) -> Awaitable[FramedConnection]:
        """Open a data connection that waits for a dial."""

    def forget(self) -> None:
        """Try every carrier again."""


@dataclass(eq=False, slots=True)
class _Address:
    """
    @ivar notBefore: When this address wants to be tried again, by the clock.
    """

    server: ServerURL
    way: Way
    notBefore: float = 0.0


class Servers:
    """
    The way to whichever address answers.

    @ivar log: Where it tells that an address does not.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        ways: Sequence[tuple[ServerURL, Way]],
        *,
        limit: float = SERVER_LIMIT,
    ) -> None:
        """
        @param clock: Tells the time and calls later.
        @param ways: The addresses, the preferred first, each with the way there.
        @param limit: Seconds that one address may take.
        @raise ValueError: There is none.
        """
        if not ways:
            raise ValueError("no server")
        self._clock = clock
        self._limit = limit
        self._addresses = [_Address(server, way) for server, way in ways]
        self._current = self._addresses[0]

    @property
    def server(self) -> ServerURL:
        """The address that is used, or that was tried last."""
        return self._current.server

    @property
    def attemptLimit(self) -> float:
        """Seconds that C{connectControl} takes at most, and one more."""
        return self._limit * len(self._addresses) + 1

    async def connectControl(self, listener: Listener) -> ControlSession:
        """
        Log in and register at the first address that lets us.

        @raise Refused: None did; with how long to wait if every one of them said so.
        @raise Exception: Why the last one did not.
        """
        now = self._clock.seconds()
        inTurn = list(self._addresses)
        candidates = [each for each in inTurn if each.notBefore <= now]
        candidates = candidates or [min(inTurn, key=lambda each: each.notBefore)]
        failed: Exception | None = None
        for address in candidates:
            if failed is not None:
                self.log.info(
                    "{server}: {why}; trying {next}",
                    server=str(self._current.server),
                    why=_words(failed),
                    next=str(address.server),
                )
            self._current = address
            try:
                session = await self._connect(address, listener)
            except (CancelledError, TokenUnusable, CredentialsUnusable):
                raise
            except Exception as error:
                failed = error
                wait = error.retryAfter if isinstance(error, Refused) else None
                address.notBefore = self._clock.seconds() + (wait or 0.0)
                continue
            self._prefer(address)
            # Before whoever waits for it: the next round may begin at once.
            session.closed.addCallback(self._ended, address)
            return session
        assert failed is not None
        if isinstance(failed, Refused):
            soonest = min(each.notBefore for each in self._addresses) - self._clock.seconds()
            raise Refused(failed.status, failed.text, soonest if soonest > 0 else None)
        raise failed

    def dataEndpoint(
        self, connReady: ConnReady, features: frozenset[str], ready: Deferred[float]
    ) -> IStreamClientEndpoint:
        """An endpoint that picks a dial up, at the address that asked for it."""
        return self._current.way.dataEndpoint(connReady, features, ready)

    def park(
        self, ticket: str, features: frozenset[str], user: FrameUser
    ) -> Awaitable[FramedConnection]:
        """Open a data connection that waits for a dial, at the address that asked for it."""
        return self._current.way.park(ticket, features, user)

    def forget(self) -> None:
        """The network is another one: what was learned about carriers is void."""
        for each in self._addresses:
            each.way.forget()

    async def _connect(self, address: _Address, listener: Listener) -> ControlSession:
        connecting = _untilCancelled(address.way.connectControl(listener))
        return await connecting.addTimeout(self._limit, self._clock, self._tooSlow)

    def _tooSlow(self, result: object, limit: float) -> NoReturn:
        raise NoConnection(f"no answer within {limit:g} s")

    def _prefer(self, address: _Address) -> None:
        """Begin with this address, and go on with those that come after it."""
        at = self._addresses.index(address)
        self._addresses = self._addresses[at:] + self._addresses[:at]

    def _ended(self, closed: Closed, address: _Address) -> Closed:
        if closed.reason in GOING and self._addresses[0] is address:
            self._addresses.append(self._addresses.pop(0))
        return closed


def _words(failed: Exception) -> str:
    if isinstance(failed, Refused):
        return f"refused: {failed}"
    return connectReason(failed) or f"{failed or type(failed).__name__}"


def _untilCancelled(waiting: Awaitable[T]) -> Deferred[T]:
    """
    What C{waiting} brings, except that being cancelled is always C{CancelledError}:
    endpoints may fail with errors of their own then.
    """

    async def wait() -> T:
        return await waiting

    inner: Deferred[T] = Deferred.fromCoroutine(wait())
    cancelled = False

    def cancel(_: Deferred[T]) -> None:
        nonlocal cancelled
        cancelled = True
        inner.cancel()

    outer: Deferred[T] = Deferred(cancel)

    def done(result: T | Failure) -> None:
        if cancelled and isinstance(result, Failure):
            result = Failure(CancelledError())
        outer.callback(result)

    inner.addBoth(done)
    return outer


__all__ = ["MAX_SERVERS", "SERVER_LIMIT", "Servers", "Way"]
