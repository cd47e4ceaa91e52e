# -*- test-case-name: tests.revdial.test_connections -*-
"""
Which runner is connected, and the way to it.

L{Connections} is the server's shell around the rules of L{ConnectionTable
<helix_revdial.revdial.table.ConnectionTable>}: it turns what the table decides
into closed connections, asked agents and fired Deferreds.  It owns the
L{Dialer}s (by generation), the L{Call}s (by dial) and one timer.

Invariants:

  - No rule of its own: who may register, wait or pick up is the table's say.
  - Every event carries its generation; what ends late ends nothing but itself.
  - The timer runs if and only if the table has a deadline.
  - Streams that are joined live on when their control connection dies; only
    L{Connections.revoke} and L{Connections.stop} end them from here.
  - An exception in a caller's code (factory, protocol, callback of the audit
    log) ends at most that caller's stream.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from twisted.internet import tcp
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IDelayedCall,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
)
from twisted.logger import Logger
from twisted.python.failure import Failure

from .checks import MAX_CHECKS, CheckPeer
from .departure import CLOSE_LIMIT, LEAVE_RATE, Quiet, departures
from .dialer import PROBE, Dialer
from .dials import Dial, DialState
from .endpoints import DialEndpoint
from .errors import (
    DialError,
    DialTimeout,
    HeldByAnother,
    NotAllowed,
    NotConnected,
    TooManyPendingDials,
    TunnelBroke,
)
from .keepalive import Liveness
from .messages import PickupFailed
from .offered import Expose, OfferedTarget, exposeOf
from .overload import Overload, Overloaded
from .pickups import Call, PickUp, errorFor, targetSeconds
from .registrations import ConnectionDetail, GraceEntry, Registration, Stats
from .remembered import Known
from .table import Claimed, Close, ConnectionTable, Contested, Effect, Failed, Gone
from .watching import Watching

SUPERSEDED_WAIT = 60.0
"""Seconds that a superseded agent is told to wait, so that two clones do not flap."""

CARRIER_WAIT = 15.0
"""Seconds from a pick-up to its carrier being up, at most."""


_LIVENESS = Liveness()


@dataclass(eq=False)
class _Claim:
    """A registration that waits for its number, or for the holder to be probed."""

    key: str
    owner: str
    credential: str
    revoked: bool = False
    before: str | None = None

    def matches(self, key: str | None, owner: str | None, credential: str | None) -> bool:
        """Whether a revocation means it too."""
        return (
            (key is None or key == self.key)
            and (owner is None or owner == self.owner)
            and (credential is None or credential == self.credential)
        )


class Connections:
    """
    Registers agents, and dials through them.
    """

    _log = Logger()

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
        """
        self._clock = clock
        self._generations = generations
        self._wallClock = wallClock
        self._audit = audit
        self._onGone = onGone
        self._onEnded = onEnded
        self._watching = watching if watching is not None else Watching()
        self._maxStreams = maxStreams
        self._dialTimeout = dialTimeout
        self._liveness = liveness
        self._overload = overload
        self._table = ConnectionTable(
            clock,
            gracePeriod=gracePeriod,
            maxPending=maxPending,
            dialTimeout=dialTimeout,
            maxRunners=maxRunners,
        )
        self._registrations: dict[int, Registration] = {}
        self._calls: dict[str, Call] = {}
        self._streams: dict[str, dict[str, Call]] = {}
        self._claims: set[_Claim] = set()
        self._checks: set[CheckPeer] = set()
        self._timer: IDelayedCall | None = None
        self._stopping = False
        self._settled = Quiet(clock, lambda: not self._calls)
        self._drained = Quiet(clock, lambda: not self._calls and not self._streams)
        self._empty = Quiet(clock, lambda: not self._registrations and not self._streams)

    def setLimits(
        self,
        *,
        gracePeriod: float,
        maxPending: int,
        dialTimeout: float,
        maxRunners: int,
        maxStreams: int,
    ) -> None:
        """From now on, other limits; what is under way keeps the time that it had."""
        self._dialTimeout = dialTimeout
        self._maxStreams = maxStreams
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
        self._schedule()
        return awaited

    def known(self) -> list[Known]:
        """Who is connected or in grace, for whoever starts after us."""
        return [
            {
                "key": holder.key,
                "owner": holder.owner,
                "credential": holder.credential,
                "generation": holder.generation,
            }
            for holder in self._table.holders()
        ]

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
        claim = _Claim(key, owner, credential)
        self._claims.add(claim)
        try:
            outcome, generation = await self._claim(claim, features, peer)
        except DialError as error:
            self._guarded(self._watching.registrationRefused, key, error)
            raise
        finally:
            self._claims.discard(claim)
        registration = self._claimed(
            outcome, key, owner, credential, generation, features, offered, peer, targets
        )
        self._guarded(self._watching.registered, registration, claim.before)
        return registration

    async def _claim(
        self, claim: _Claim, features: frozenset[str], peer: str
    ) -> tuple[Claimed, int]:
        key, owner, credential = claim.key, claim.owner, claim.credential
        answered: bool | None = None
        generation = await self._generations()
        while True:
            if self._stopping:
                raise _shuttingDown()
            if claim.revoked:
                raise NotAllowed("the credential was revoked")
            claim.before = self._table.status(key)
            try:
                outcome = self._table.claim(
                    key, owner, credential, generation, features, answered=answered
                )
            except HeldByAnother as error:
                self._claimRefused(error, key, owner, peer, probed=answered is not None)
                raise
            if isinstance(outcome, Claimed):
                return outcome, generation
            answered = await self._probe(outcome)

    async def _probe(self, contested: Contested) -> bool:
        holder = self._registrations.get(contested.generation)
        return False if holder is None else await holder.protocol.probe(PROBE)

    def _claimed(
        self,
        outcome: Claimed,
        key: str,
        owner: str,
        credential: str,
        generation: int,
        features: frozenset[str],
        offered: bool,
        peer: str,
        targets: tuple[OfferedTarget, ...] | None,
    ) -> Registration:
        registration = Registration(
            key, owner, credential, generation, features, peer, self._wallClock()
        )
        registration.targets = targets
        self._registrations[generation] = registration
        registration.protocol = Dialer(
            self._clock,
            features,
            generation=generation,
            offered=offered,
            onPickupFailed=lambda message: self._pickupFailed(registration, message),
            onGoodbye=lambda: self._left(registration),
            onLost=lambda reason: self._lost(registration, reason),
            liveness=self._liveness,
        )
        self._log.info(
            "Runner {runner} registered as generation {generation} from {peer}.",
            runner=key,
            generation=generation,
            peer=peer,
            features=sorted(features),
        )
        if outcome.superseded is not None:
            self._tell(
                "takeover",
                runner=key,
                owner=owner,
                generation=generation,
                superseded=outcome.superseded,
                peer=peer,
            )
            older = self._registrations.get(outcome.superseded)
            if older is not None:
                older.protocol.close("superseded", retryAfter=SUPERSEDED_WAIT)
        self._carryOut(outcome.failed)
        for dial in outcome.resumed:
            self._ask(dial)
        self._schedule()
        return registration

    def _claimRefused(
        self, error: HeldByAnother, key: str, owner: str, peer: str, *, probed: bool
    ) -> None:
        holder = self._table.holder(key)
        own = holder is not None and holder.owner == owner
        self._tell(
            "clone-refused" if own and probed else "claim-refused",
            runner=key,
            owner=owner,
            holder=None if holder is None else holder.owner,
            generation=None if holder is None else holder.generation,
            peer=peer,
            reason=str(error),
        )

    def _lost(self, registration: Registration, reason: Failure) -> None:
        self._registrations.pop(registration.generation, None)
        inGrace = self._table.lost(registration.key, registration.generation)
        if inGrace and self._stopping:
            # It will come back to another server.
            self._end(self._table.revoke(key=registration.key))
        self._log.info(
            "The control connection of {runner}, generation {generation}, ended: {reason}.",
            runner=registration.key,
            generation=registration.generation,
            reason=registration.protocol.ended or reason.getErrorMessage().rstrip("."),
            inGrace=inGrace,
        )
        self._guarded(self._watching.lost, registration, *_ending(registration, reason))
        self._schedule()
        self._checkIdle()

    def _left(self, registration: Registration) -> None:
        self._carryOut(self._table.left(registration.key, registration.generation))
        registration.protocol.close("goodbye")
        self._schedule()

    def _pickupFailed(self, registration: Registration, message: PickupFailed) -> None:
        dial = self._table.pickupFailed(registration.key, registration.generation, message)
        if dial is not None:
            self._carryOut([Failed(dial, errorFor(message))])
            self._schedule()

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
        if self._stopping:
            raise _shuttingDown()
        if len(self._checks) >= MAX_CHECKS:
            raise TooManyPendingDials("too many checks are open", retryAfter=10.0)
        holder = None if key is None else self._table.holder(key)
        if holder is not None and holder.owner != owner:
            raise HeldByAnother
        peer = CheckPeer(self._clock, features, self._checks.discard)
        self._checks.add(peer)
        return peer

    # Callers

    def endpoint(
        self,
        key: str,
        target: str | None = None,
        *,
        timeout: float | None = None,
        about: Mapping[str, str] | None = None,
        allow: Callable[[Expose], bool] | None = None,
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
        """
        dial = partial(self.dial, about=about, allow=allow)
        return DialEndpoint(dial, key, target, timeout)

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
            if self._stopping:
                raise _shuttingDown()
            if len(self._streams.get(key, ())) >= self._maxStreams:
                limit = "streams_per_runner"
                raise TooManyPendingDials("max open streams exceeded", retryAfter=1.0)
            if self._overload is not None:
                self._overload.check(len(self._calls))
            dial = self._table.dial(key, target, timeout)
        except DialError as error:
            hit = limit if isinstance(error, TooManyPendingDials) else None
            hit = error.limit if isinstance(error, Overloaded) else hit
            self._guarded(self._watching.dialRefused, key, error, hit)
            return fail(Failure())
        try:
            call = Call(
                self._clock, dial, factory, onCancelled=self._cancelled, onOver=self._callOver
            )
            if about is not None:
                call.stream.about = about
        except Exception:
            failure = Failure()
            self._table.cancel(dial)
            self._schedule()
            return fail(failure)
        call.allow = allow
        self._calls[dial.id] = call
        if dial.state is DialState.ASKED:
            self._ask(dial)
        self._schedule()
        return call.result

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
            self._tell(
                "pickup-refused",
                credential=credential,
                word=error.word,
                reason=str(error),
                peer=peer,
            )
            raise
        self._schedule()
        call = self._calls.pop(dial.id)
        registration = self._registrations.get(dial.generation or 0)
        if registration is not None:
            call.owner = registration.owner
            call.credential = registration.credential
            registration.protocol.dialAnswered()
        seconds = targetSeconds(timing)
        if seconds is not None:
            call.stream.phases["target"] = seconds
        self._streams.setdefault(dial.key, {})[dial.id] = call
        self._settled.look()
        limit = max(0.0, min(dial.deadline - self._clock.seconds(), CARRIER_WAIT))
        return PickUp(call, call.pickedUp(limit))

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
        registration.protocol.ask(dial.connReady())

    def _cancelled(self, call: Call) -> None:
        self._table.cancel(call.dial)
        self._schedule()

    def _callOver(self, call: Call) -> None:
        dial = call.dial
        self._calls.pop(dial.id, None)
        streams = self._streams.get(dial.key)
        if streams is not None and streams.pop(dial.id, None) is not None:
            if not streams:
                del self._streams[dial.key]
            registration = self._registrations.get(dial.generation or 0)
            if registration is not None:
                registration.endedIn += call.stream.bytesIn
                registration.endedOut += call.stream.bytesOut
        if self._onEnded is not None:
            self._guarded(self._onEnded, call)
        self._guarded(self._watching.ended, call)
        self._checkIdle()

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
        for claim in self._claims:
            # What ends here may let a claim through that waits for it.
            claim.revoked = claim.revoked or claim.matches(key, owner, credential)
        effects = self._table.revoke(key=key, owner=owner, credential=credential)
        cut = 0
        for effect in effects:
            if isinstance(effect, Close):
                cut += 1
        self._carryOut(effects, reason)
        for streams in list(self._streams.values()):
            for call in list(streams.values()):
                if (
                    (key is None or call.dial.key == key)
                    and (owner is None or call.owner == owner)
                    and (credential is None or call.credential == credential)
                ):
                    cut += 1
                    call.cut(Failure(TunnelBroke("the runner was cut off")))
        self._schedule()
        return cut

    def release(self, most: int) -> list[tuple[Registration, tcp.Connection, bytes]]:
        """
        Let go of control connections on plain sockets, for another process to go on
        with; see L{helix_revdial.revdial.kept}.

        @param most: How many, at most.
        """
        released: list[tuple[Registration, tcp.Connection, bytes]] = []
        for registration in list(self._registrations.values()):
            if len(released) >= most:
                break
            found = registration.protocol.release()
            if found is None:
                continue
            released.append((registration, *found))
            del self._registrations[registration.generation]
            self._end(self._table.revoke(key=registration.key))
        self._schedule()
        self._checkIdle()
        return released

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
        self._stopping = True
        registrations = []
        for registration in self._registrations.values():
            if keeping > 0 and registration.protocol.isPlain:
                keeping -= 1
            else:
                registrations.append(registration)
        for registration, delay in zip(
            registrations, departures(len(registrations), limit), strict=True
        ):
            registration.protocol.goodbye(delay)
        for holder in self._table.holders():
            if holder.graceEnds is not None:
                self._end(self._table.revoke(key=holder.key))
        self._schedule()

    async def settled(self, limit: float) -> bool:
        """
        Wait until every dial is picked up or over, for C{limit} seconds at most.

        @return: Whether that is so.
        """
        return await self._settled.within(limit)

    async def drained(self, limit: float) -> bool:
        """
        Wait until no dial is under way and no stream is open, for C{limit} seconds at most.

        @return: Whether that is so.
        """
        return await self._drained.within(limit)

    async def stop(self, delay: float = 0.0) -> None:
        """
        Take no more, let what runs finish for C{delay} seconds, then end the rest.

        Agents are told when to come again, spread as they would be by L{leave}.
        """
        if delay > 0:
            self.leave(delay)
            await self.drained(delay)
        self._stopping = True
        for place, registration in enumerate(list(self._registrations.values())):
            registration.protocol.close("shutdown", retryAfter=round(place / LEAVE_RATE, 3) or None)
        for check in list(self._checks):
            check.close("shutdown")
        for holder in self._table.holders():
            self._end(self._table.revoke(key=holder.key))
        for streams in list(self._streams.values()):
            for call in list(streams.values()):
                call.cut(Failure(TunnelBroke("the server is shutting down")))
        self._schedule()
        if not await self._empty.within(CLOSE_LIMIT):
            for registration in list(self._registrations.values()):
                registration.protocol.drop("shutdown")
            await self._empty.within(None)

    @property
    def openStreams(self) -> int:
        """Streams that are open, to all runners."""
        return sum(len(streams) for streams in self._streams.values())

    @property
    def dialsUnderWay(self) -> int:
        """Dials that wait, or were asked for and are not picked up."""
        return len(self._calls)

    def _end(self, effects: Iterable[Effect]) -> None:
        """Carry out what follows from the server's own end: a caller can try again soon."""
        for effect in effects:
            if isinstance(effect, Failed):
                effect = Failed(effect.dial, _shuttingDown())
            self._carryOut([effect], "shutdown")

    def _checkIdle(self) -> None:
        for quiet in (self._settled, self._drained, self._empty):
            quiet.look()

    def _carryOut(self, effects: Iterable[Effect], reason: str | None = None) -> None:
        for effect in effects:
            match effect:
                case Failed(dial, error):
                    call = self._calls.pop(dial.id, None)
                    if call is not None:
                        call.fail(Failure(error))
                case Close(_, generation, why):
                    registration = self._registrations.get(generation)
                    if registration is not None:
                        registration.protocol.close(reason or why)
                case Gone(key, generation):
                    if self._onGone is not None:
                        self._guarded(self._onGone, key, generation)
                    self._guarded(self._watching.gone, key, generation)

    # The timer

    def _schedule(self) -> None:
        when = self._table.nextDeadline()
        timer = self._timer
        if timer is not None and timer.active():
            # A timer that is too early costs one look at the table; one that is
            # moved at every dial costs more.
            if when is not None and timer.getTime() <= when:
                return
            timer.cancel()
        self._timer = None
        if when is not None:
            delay = max(0.0, when - self._clock.seconds())
            self._timer = self._clock.callLater(delay, self._expire)

    def _expire(self) -> None:
        self._timer = None
        try:
            effects = self._table.expire()
            for effect in effects:
                if isinstance(effect, Failed) and isinstance(effect.error, DialTimeout):
                    self._ranOut(effect.dial)
            self._carryOut(effects)
        finally:
            self._schedule()

    def _ranOut(self, dial: Dial) -> None:
        """An agent did not dial back; it had all the time that it is given?"""
        registration = self._registrations.get(dial.generation or 0)
        call = self._calls.get(dial.id)
        asked = None if call is None else call.stream.phases.get("asked")
        if registration is None or call is None or asked is None:
            return
        when = call.stream.started + asked
        # The table took the time a moment before it was noted as a phase.
        if self._clock.seconds() - when >= self._dialTimeout * 0.95:
            registration.protocol.dialRanOut(when)

    # Views

    def status(self, key: str) -> str | None:
        """C{"connected"}, C{"grace"}, or C{None}."""
        return self._table.status(key)

    def leadsTo(self, key: str, target: str | None) -> tuple[int, Expose] | None:
        """
        Where a dial would lead now, for whoever would use a stream of before again.

        @return: The generation that is connected as C{key}, and whom its target is
            for; C{None} where none is.
        """
        holder = self._table.holder(key)
        if holder is None or holder.graceEnds is not None:
            return None
        registration = self._registrations.get(holder.generation)
        if registration is None:
            return None
        return holder.generation, exposeOf(registration.targets, target)

    def stats(self) -> Stats:
        """The counts of the moment."""
        counts = self._table.stats()
        return Stats(counts.connected, counts.grace, counts.pendingDials, counts.keys)

    def details(self) -> list[ConnectionDetail]:
        """Every live control connection, by key."""
        found = (self.detail(key) for key in self._table.stats().keys)
        return [detail for detail in found if detail is not None]

    def detail(self, key: str) -> ConnectionDetail | None:
        """The live control connection of C{key}."""
        holder = self._table.holder(key)
        if holder is None or holder.graceEnds is not None:
            return None
        registration = self._registrations.get(holder.generation)
        if registration is None:
            return None
        dialer = registration.protocol
        streams = self._streams.get(key, {}).values()
        own = [call.stream for call in streams if call.dial.generation == holder.generation]
        return ConnectionDetail(
            key=key,
            generation=holder.generation,
            carrier=dialer.carrierName,
            features=registration.features,
            remoteAddress=registration.peer,
            connectedSince=registration.connectedSince,
            lastHeard=self._clock.seconds() - dialer.lastHeard,
            roundTrip=dialer.roundTrip,
            openStreams=len(streams),
            bytesIn=registration.endedIn + sum(stream.bytesIn for stream in own),
            bytesOut=registration.endedOut + sum(stream.bytesOut for stream in own),
            pendingDials=holder.pendingDials,
            targets=registration.targets,
        )

    def graceEntries(self) -> list[GraceEntry]:
        """Every runner that was lost and is awaited, by key."""
        now = self._clock.seconds()
        return [
            GraceEntry(
                holder.key, holder.generation, max(0.0, holder.graceEnds - now), holder.pendingDials
            )
            for holder in self._table.holders()
            if holder.graceEnds is not None
        ]

    def living(self) -> list[Call]:
        """Every call that is not over: those that wait, and those with a stream."""
        streams = [call for calls in self._streams.values() for call in calls.values()]
        return [*self._calls.values(), *streams]

    def carriers(self) -> dict[tuple[str, str], int]:
        """How many connections there are: C{"control"} or C{"data"}, by their carrier."""
        found: Counter[tuple[str, str]] = Counter(
            ("control", one.protocol.carrierName) for one in self._registrations.values()
        )
        found.update(
            ("data", call.stream.carrier or "none")
            for calls in self._streams.values()
            for call in calls.values()
        )
        return dict(found)

    def sizes(self) -> dict[str, int]:
        """How many entries there are in each table that is kept here."""
        table = self._table.stats()
        return {
            "runners": table.connected + table.grace,
            "registrations": len(self._registrations),
            "claims": len(self._claims),
            "dials": len(self._calls),
            "streams": sum(len(calls) for calls in self._streams.values()),
        }

    def unsentBytes(self) -> int:
        """Bytes of control lines that wait for agents that do not read."""
        return sum(one.protocol.unsentBytes for one in self._registrations.values())

    # Within

    def _tell(self, event: str, **fields: Any) -> None:
        self._log.info("For the audit: {event} {fields}", event=event, fields=fields)
        if self._audit is not None:
            self._guarded(self._audit, event, fields)

    def _guarded(self, call: Callable[..., object], *arguments: object) -> None:
        try:
            call(*arguments)
        except Exception:
            self._log.failure("A callback of the connections failed.")


def _ending(registration: Registration, reason: Failure) -> tuple[str, str]:
    """Why a control connection ended, in a word and in words."""
    ended = registration.protocol.ended
    if ended is not None:
        return ended, ended
    word = "closed" if reason.check(ConnectionDone) else "lost"
    return word, reason.getErrorMessage() or word


def _shuttingDown() -> NotConnected:
    return NotConnected("the server is shutting down", retryAfter=1.0)


__all__ = ["ConnectionDetail", "Connections", "GraceEntry", "Registration", "Stats"]
