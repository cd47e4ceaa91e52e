# -*- test-case-name: tests.revdial.test_connections -*-
"""
Which runner is connected, and the way to it.

L{Connections} is the server's shell around the rules of L{ConnectionTable
<helix_revdial.revdial.table.ConnectionTable>}: it turns what the table decides
into closed connections, asked agents and fired Deferreds.  It is the one object
that other rooms have, and here is the way of a dial, from asking the agent to the
pick-up; its parts are

  - L{helix_revdial.revdial.roster}: what is connected, dialled and open, and the timer,
  - L{helix_revdial.revdial.registering}: who gets a name, and how a registration ends,
  - L{helix_revdial.revdial.leaving}: the server's own end,
  - L{helix_revdial.revdial.views}: what can be seen.

Invariants:

  - No rule of its own: who may register, wait or pick up is the table's say.
  - Every event carries its generation; what ends late ends nothing but itself.
  - Streams that are joined live on when their control connection dies; only
    L{Connections.revoke} and L{Connections.stop} end them from here.
  - An exception in a caller's code (factory, protocol, callback of the audit
    log) ends at most that caller's stream.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from hmac import compare_digest
from random import SystemRandom
from typing import Any

from twisted.internet import tcp
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import (
    IProtocol,
    IProtocolFactory,
    IReactorTime,
)
from twisted.python.failure import Failure

from .checks import CheckPeer
from .dials import Dial, DialState
from .endpoints import DialEndpoint
from .errors import (
    DialError,
    NotAllowed,
    TooManyPendingDials,
    TunnelBroke,
)
from .framed import FramedConnection
from .keepalive import Liveness
from .leaving import Leaving
from .messages import Park, PickupFailed
from .offered import Expose, OfferedTarget, exposeOf
from .overload import Overload, Overloaded
from .parked import Parked, PoolLimits
from .pickups import Call, PickUp, errorFor, targetSeconds
from .pool import Pool
from .registering import Registering
from .registrations import ConnectionDetail, GraceEntry, Registration, Stats
from .remembered import Known
from .roster import Roster, shuttingDown
from .table import Close, ConnectionTable, Failed
from .turns import Turns
from .views import Views
from .watching import Watching

CARRIER_WAIT = 15.0
"""Seconds from a pick-up to its carrier being up, at most."""


_LIVENESS = Liveness()
_POOL = PoolLimits()


def _turnsOf(maxPending: int) -> int:
    """Patient dials of one service at once: others, and other services, have room beside."""
    return max(1, maxPending // 2)


class Connections(Views):
    """
    Registers agents, and dials through them.
    """

    def __init__(
        self,
        clock: IReactorTime,
        generations: Callable[[], Awaitable[int]],
        *,
        wallClock: Callable[[], float],
        audit: Callable[[str, dict[str, Any]], None] | None = None,
        onGone: Callable[[str, int], None] | None = None,
        onEnded: Callable[[Call], None] | None = None,
        watching: Watching | None = None,
        gracePeriod: float = 30.0,
        maxPending: int = 100,
        dialTimeout: float = 20.0,
        maxRunners: int = 10_000,
        maxStreams: int = 4096,
        liveness: Liveness = _LIVENESS,
        overload: Overload | None = None,
        pool: PoolLimits = _POOL,
        scarce: Callable[[], bool] = lambda: False,
    ) -> None:
        """
        @param clock: Tells the time and calls later.
        @param generations: Gives a number higher than any before it.
        @param wallClock: Seconds since 1970, for people.
        @param audit: Told C{"takeover"}, C{"claim-refused"}, C{"clone-refused"}
            and C{"pickup-refused"}, each with what is known.
        @param onGone: Told key and generation when a runner is awaited no more.
        @param onEnded: Told each call when nothing of it is left; its
            C{stream} has the phases, the bytes and the reason.
        @param watching: Told what cannot be seen by looking later.
        @param gracePeriod: Seconds that a lost runner keeps its name.
        @param maxPending: Dials that may wait for one runner.
        @param dialTimeout: Seconds an agent has to dial back.
        @param maxRunners: Names that may be held.
        @param maxStreams: Streams that may be open to one runner.
        @param liveness: How agents are watched.
        @param overload: Asked before each dial; C{None} for no limit over all runners.
        @param pool: How many data connections are parked.
        @param scarce: Whether descriptors are running out: nothing is parked then.
        """
        self._clock = clock
        self._maxStreams = maxStreams
        self._overload = overload
        self._table = ConnectionTable(
            clock,
            gracePeriod=gracePeriod,
            maxPending=maxPending,
            dialTimeout=dialTimeout,
            maxRunners=maxRunners,
        )
        roster = Roster(
            clock,
            self._table,
            dialTimeout=dialTimeout,
            watching=watching if watching is not None else Watching(),
            audit=audit,
            onGone=onGone,
            onEnded=onEnded,
        )
        parked = Parked(clock, pool, random=SystemRandom().random, scarce=scarce)
        self._pool = roster.pool = Pool(clock, parked, _Dialling(self))
        self._scarce = scarce
        self._turns = roster.turns = Turns(clock, _turnsOf(maxPending))
        self._longestDial = dialTimeout + gracePeriod
        super().__init__(roster)
        self._registrations = roster.registrations
        self._calls = roster.calls
        self._streams = roster.streams
        self._registering = Registering(
            roster, generations, wallClock=wallClock, askAgent=self._ask, liveness=liveness
        )
        self._leaving = Leaving(roster)

    def setLimits(
        self,
        *,
        gracePeriod: float,
        maxPending: int,
        dialTimeout: float,
        maxRunners: int,
        maxStreams: int,
        pool: PoolLimits,
    ) -> None:
        """From now on, other limits; what is under way keeps the time that it had."""
        self._roster.dialTimeout = dialTimeout
        self._maxStreams = maxStreams
        self._pool.setLimits(pool)
        self._turns.most = _turnsOf(maxPending)
        self._longestDial = dialTimeout + gracePeriod
        self._table.setLimits(
            gracePeriod=gracePeriod,
            maxPending=maxPending,
            dialTimeout=dialTimeout,
            maxRunners=maxRunners,
        )

    # Agents

    def expect(self, known: Iterable[Known], seconds: float) -> int:
        """
        Await who was connected before a restart, for C{seconds}.

        @return: How many are awaited.
        """
        awaited = sum(self._table.expect(**each, seconds=seconds) for each in known)
        self._roster.schedule()
        return awaited

    async def register(
        self,
        key: str,
        owner: str,
        credential: str,
        *,
        features: frozenset[str],
        offered: bool,
        peer: str,
        targets: tuple[OfferedTarget, ...] | None = None,
    ) -> Registration:
        """
        Give C{key} to a new control connection.

        @param key: The runner's key.
        @param owner: Who may hold it: a token family or a session.
        @param credential: What a dial-back must carry: the token family that registers.
        @param features: What both ends agreed on.
        @param offered: Whether the agent sent a features header at all.
        @param peer: The agent's address, for people.
        @param targets: What the agent says of its targets.
        @return: Put its C{protocol} on the carrier, or C{abandon} it.
        @raise HeldByAnother: The name is another's, or its holder answered.
        @raise TooManyRunners: The table is full.
        @raise NotAllowed: It was revoked meanwhile.
        @raise NotConnected: The server is shutting down.
        """
        return await self._registering.register(
            key,
            owner,
            credential,
            features=features,
            offered=offered,
            peer=peer,
            targets=targets,
        )

    def check(self, key: str | None, owner: str | None, features: frozenset[str]) -> CheckPeer:
        """
        The server's end of a check; nothing is registered and nobody disturbed.

        @param key: The runner that is asked about, or C{None}.
        @param owner: Who would hold it.
        @param features: What both ends agreed on.
        @return: Put it on the carrier, or C{abandon} it.
        @raise HeldByAnother: Another owner has the name.
        @raise TooManyPendingDials: There are too many checks.
        @raise NotConnected: The server is shutting down.
        """
        return self._registering.check(key, owner, features)

    # Callers

    def endpoint(
        self,
        key: str,
        target: str | None = None,
        *,
        timeout: float | None = None,
        about: Mapping[str, str] | None = None,
        allow: Callable[[Expose], bool] | None = None,
        patient: bool = False,
    ) -> DialEndpoint:
        """
        A client endpoint that leads to a service beside the agent.

        @param key: The runner's key.
        @param target: The service's name; C{None} for the agent's default.
        @param timeout: Seconds for the whole dial, waiting for a lost runner included.
        @param about: For the record of the stream: on whose behalf, such as the
            C{request} and the C{trace}.
        @param allow: Whether whoever asks may have a target that is for these;
            asked of each generation that the dial is given to, since an agent that
            returns may say otherwise.  C{None} allows all.
        @param patient: Whether a dial of a connected runner waits for its turn, where
            half as many as may be under way are on their way to the same service.
        """
        dial = self._dialInTurn if patient else self.dial
        return DialEndpoint(partial(dial, about=about, allow=allow), key, target, timeout)

    def _dialInTurn(
        self,
        key: str,
        target: str | None,
        timeout: float | None,
        factory: IProtocolFactory,
        *,
        about: Mapping[str, str] | None,
        allow: Callable[[Expose], bool] | None,
    ) -> Deferred[IProtocol]:
        most = self._longestDial
        return self._turns.take(
            (key, target),
            lambda left: self.dial(key, target, left, factory, about=about, allow=allow),
            most if timeout is None else min(timeout, most),
            # Whoever awaits a runner that was lost is counted, and told when it is too many.
            atOnce=self._table.status(key) != "connected",
        )

    def dial(
        self,
        key: str,
        target: str | None,
        timeout: float | None,
        factory: IProtocolFactory,
        *,
        about: Mapping[str, str] | None = None,
        allow: Callable[[Expose], bool] | None = None,
    ) -> Deferred[IProtocol]:
        """
        Ask for a stream.

        @param allow: As for L{endpoint}; C{connect} fails with L{NotAllowed} where
            it does not.
        @return: As L{DialEndpoint.connect}.
        """
        limit = "pending_dials_per_runner"
        try:
            if self._roster.stopping:
                raise shuttingDown()
            if len(self._streams.get(key, ())) >= self._maxStreams:
                limit = "streams_per_runner"
                raise TooManyPendingDials("max open streams exceeded", retryAfter=1.0)
            if self._overload is not None:
                self._overload.check(len(self._calls), self.shedParked)
            dial = self._table.dial(key, target, timeout)
        except DialError as error:
            hit = limit if isinstance(error, TooManyPendingDials) else None
            hit = error.limit if isinstance(error, Overloaded) else hit
            self._roster.guarded(self._roster.watching.dialRefused, key, error, hit)
            return fail(Failure())
        try:
            call = Call(self._clock, dial, factory, self._roster)
            if about is not None:
                call.stream.about = about
        except Exception:
            failure = Failure()
            self._table.cancel(dial)
            self._roster.schedule()
            return fail(failure)
        result = call.result
        assert result is not None
        call.allow = allow
        self._calls[dial.id] = call
        if dial.state is DialState.ASKED:
            self._ask(dial)
        self._roster.schedule()
        return result

    def isAsked(self, credential: str, ticket: str) -> bool:
        """
        Whether C{ticket} picks up a dial now.

        @param credential: The token family that would present it.
        """
        return self._table.isAsked(credential, ticket)

    def pickUp(
        self,
        credential: str,
        *,
        ticket: str | None = None,
        dialer: str | None = None,
        request: str | None = None,
        timing: bytes | None = None,
        peer: str = "",
    ) -> PickUp:
        """
        A data connection has come.

        @param credential: The token family that it carries.
        @param ticket: From its ticket header.
        @param dialer: C{revdial.dialer} of its query.
        @param request: C{revdial.req} of its query.
        @param timing: Its timing header.
        @param peer: The agent's address, for people.
        @return: Put its C{protocol} on the carrier, or say that it C{failed}.
        @raise UnknownDial: No such dial is outstanding.
        @raise NotAllowed: It is another's.
        """
        try:
            dial = self._table.pickUp(credential, ticket=ticket, dialer=dialer, request=request)
        except DialError as error:
            self._roster.tell(
                "pickup-refused",
                credential=credential,
                word=error.word,
                reason=str(error),
                peer=peer,
            )
            raise
        self._roster.schedule()
        self._pool.withdraw(dial)
        call = self._answered(dial, targetSeconds(timing))
        limit = max(0.0, min(dial.deadline - self._clock.seconds(), CARRIER_WAIT))
        return PickUp(call, call.pickedUp(limit))

    def _answered(self, dial: Dial, seconds: float | None) -> Call:
        """An agent has answered C{dial}; its target took so many seconds."""
        call = self._calls.pop(dial.id)
        registration = self._registrations.get(dial.generation or 0)
        if registration is not None:
            call.owner = registration.owner
            call.credential = registration.credential
            registration.protocol.dialAnswered()
        if seconds is not None:
            call.stream.phases["target"] = seconds
        self._streams.setdefault(dial.key, {})[dial.id] = call
        self._roster.settled.look()
        return call

    # Parked connections

    def park(
        self,
        credential: str,
        ticket: str,
        *,
        webSocket: bool,
        head: Callable[[frozenset[str]], bytes],
    ) -> FramedConnection | None:
        """
        A data connection has come that is perhaps to be parked.

        @param credential: The token family that it carries.
        @param ticket: From its ticket header.
        @param webSocket: Which carrier it asks for.
        @param head: Makes the answer to its upgrade, of the features that its runner's
            control connection agreed on.
        @return: The protocol for the connection; C{None} where the ticket is for no
            such thing.
        @raise NotAllowed: Another credential registered the runner.
        """
        generation = self._pool.generationOf(ticket)
        registration = None if generation is None else self._registrations.get(generation)
        if registration is None:
            return None
        if not compare_digest(registration.credential.encode(), credential.encode()):
            raise NotAllowed("the connection was asked of a runner with another token")
        return self._pool.accept(ticket, webSocket=webSocket, head=head(registration.features))

    def shedParked(self) -> None:
        """Close what is parked, if descriptors are running out."""
        if self._pool.parked.idle and self._scarce():
            self._pool.shed()

    def answeredByPooled(self, dial: Dial, seconds: float | None) -> IProtocol | None:
        """See L{Dialling.answered <helix_revdial.revdial.pool.Dialling.answered>}."""
        if not self._table.answered(dial):
            return None
        self._roster.schedule()
        call = self._answered(dial, seconds)
        call.stream.pooled = True
        return call.pickedUp(None)

    def refusedByPooled(self, dial: Dial, message: PickupFailed) -> None:
        """See L{Dialling.failed <helix_revdial.revdial.pool.Dialling.failed>}."""
        if self._table.pickupFailed(dial.key, dial.generation or 0, message) is dial:
            self._roster.carryOut([Failed(dial, errorFor(message))])
            self._roster.schedule()

    def askAgain(self, dial: Dial) -> None:
        """See L{Dialling.askAgain <helix_revdial.revdial.pool.Dialling.askAgain>}."""
        if dial.state is DialState.ASKED and dial.id in self._calls:
            self._ask(dial)

    def askForDialBack(self, dial: Dial) -> None:
        """See L{Dialling <helix_revdial.revdial.pool.Dialling>}."""
        registration = self._registrations.get(dial.generation or 0)
        if registration is not None and dial.state is DialState.ASKED and dial.id in self._calls:
            registration.protocol.ask(dial.connReady())

    def _ask(self, dial: Dial) -> None:
        registration = self._registrations[dial.generation or 0]
        call = self._calls[dial.id]
        if call.allow is not None and not call.allow(exposeOf(registration.targets, dial.target)):
            self._table.cancel(dial)
            del self._calls[dial.id]
            call.fail(Failure(NotAllowed("the runner's target is not for this caller")))
            return
        stream = call.stream
        stream.generation = dial.generation
        stream.mark("asked")
        if not self._pool.assign(dial, call.early):
            registration.protocol.ask(dial.connReady())

    # The end of things

    def revoke(
        self,
        *,
        credential: str | None = None,
        owner: str | None = None,
        key: str | None = None,
        reason: str = "revoked",
    ) -> int:
        """
        Cut what matches every given word at once: control connections, dials
        that wait, streams.  There is no grace.

        @return: How many control connections and streams were cut.
        @raise ValueError: Nothing is given.
        """
        for claim in self._roster.claims:
            # What ends here may let a claim through that waits for it.
            claim.revoked = claim.revoked or claim.matches(key, owner, credential)
        effects = self._table.revoke(key=key, owner=owner, credential=credential)
        cut = 0
        for effect in effects:
            if isinstance(effect, Close):
                cut += 1
        self._roster.carryOut(effects, reason)
        for streams in list(self._streams.values()):
            for call in list(streams.values()):
                if (
                    (key is None or call.dial.key == key)
                    and (owner is None or call.owner == owner)
                    and (credential is None or call.credential == credential)
                ):
                    cut += 1
                    call.cut(Failure(TunnelBroke("the runner was cut off")))
        self._roster.schedule()
        return cut

    def release(self, most: int) -> list[tuple[Registration, tcp.Connection, bytes]]:
        """
        Let go of control connections on plain sockets, for another process to go on
        with; see L{helix_revdial.revdial.kept}.

        @param most: How many, at most.
        """
        return self._leaving.release(most)

    def leave(self, limit: float, *, keeping: int = 0) -> None:
        """
        Take no more registrations and no more dials, fail the dials that wait for a
        lost runner, and tell agents that understand C{goodbye} to leave, spread
        over at most half of the time.

        Dials that agents have been asked for go on, and so do streams.

        @param limit: Seconds until L{stop}.
        @param keeping: How many connections on plain sockets L{release} is to let
            go of: their agents are not told.
        """
        self._leaving.leave(limit, keeping=keeping)

    async def settled(self, limit: float) -> bool:
        """
        Wait until every dial is picked up or over, for C{limit} seconds at most.

        @return: Whether that is so.
        """
        return await self._roster.settled.within(limit)

    async def drained(self, limit: float) -> bool:
        """
        Wait until no dial is under way and no stream is open, for C{limit} seconds at most.

        @return: Whether that is so.
        """
        return await self._roster.drained.within(limit)

    async def stop(self, delay: float = 0.0) -> None:
        """
        Take no more, let what runs finish for C{delay} seconds, then end the rest.

        Agents are told when to come again, spread as they would be by L{leave}.
        """
        await self._leaving.stop(delay)


class _Dialling:
    """What the pool asks of the connections."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self.answered = connections.answeredByPooled
        self.askAgain = connections.askAgain
        self.askForDialBack = connections.askForDialBack

    def ask(self, generation: int, park: Park) -> None:
        """See L{Dialling <helix_revdial.revdial.pool.Dialling>}."""
        registration = self._connections._registrations.get(generation)
        if registration is not None:
            registration.protocol.askToPark(park)

    def failed(self, dial: Dial, message: PickupFailed) -> None:
        """See L{Dialling <helix_revdial.revdial.pool.Dialling>}."""
        self._connections.refusedByPooled(dial, message)


__all__ = ["ConnectionDetail", "Connections", "GraceEntry", "Registration", "Stats"]
