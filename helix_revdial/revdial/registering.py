# -*- test-case-name: tests.revdial.test_registering -*-
"""
How a runner gets its name, and how its control connection ends.

L{Registering} has the table decide who may hold a name, asks the holder whether it
lives where two want the same one, and builds the L{Dialer}.  The claims that wait,
and what is registered, are the L{Roster <helix_revdial.revdial.roster.Roster>}'s.

Invariants:

  - No rule of its own: who may register is the table's say.
  - A revocation meets those that wait for their number as well.
  - Every event carries its generation; what ends late ends nothing but itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.internet.error import ConnectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from .checks import MAX_CHECKS, CheckPeer
from .dialer import PROBE, Dialer
from .dials import Dial
from .errors import DialError, HeldByAnother, NotAllowed, TooManyPendingDials, wordsOf
from .features import canPool
from .keepalive import Liveness
from .messages import PickupFailed
from .offered import OfferedTarget
from .pickups import errorFor
from .registrations import Claim, Registration
from .roster import Roster, shuttingDown
from .table import Claimed, Contested, Failed

SUPERSEDED_WAIT = 60.0
"""Seconds that a superseded agent is told to wait, so that two clones do not flap."""


class _Events:
    """What a dialer reports, with whose it is; there is one for each agent."""

    __slots__ = ("_registering", "_registration")

    def __init__(self, registering: Registering, registration: Registration) -> None:
        self._registering = registering
        self._registration = registration

    def pickupFailed(self, message: PickupFailed) -> None:
        """The agent could not answer a dial."""
        self._registering.pickupFailed(self._registration, message)

    def left(self) -> None:
        """The agent is going away."""
        self._registering.left(self._registration)

    def lost(self, reason: Failure) -> None:
        """The connection is gone, or never came."""
        self._registering.lost(self._registration, reason)


class Registering:
    """
    Gives names to control connections.
    """

    _log = Logger()

    def __init__(
        self,
        roster: Roster,
        generations: Callable[[], Awaitable[int]],
        *,
        wallClock: Callable[[], float],
        askAgent: Callable[[Dial], None],
        liveness: Liveness,
    ) -> None:
        """
        @param roster: What is connected.
        @param generations: Gives a number higher than any before it.
        @param wallClock: Seconds since 1970, for people.
        @param askAgent: Given each dial that waited for a runner that is back.
        @param liveness: How agents are watched.
        """
        self._roster = roster
        self._generations = generations
        self._wallClock = wallClock
        self._askAgent = askAgent
        self._liveness = liveness

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
        """See L{Connections.register}."""
        claim = Claim(key, owner, credential)
        self._roster.claims.add(claim)
        try:
            outcome, generation = await self._claim(claim, features, peer)
        except DialError as error:
            self._roster.guarded(self._roster.watching.registrationRefused, key, error)
            raise
        finally:
            self._roster.claims.discard(claim)
        registration = self._claimed(
            outcome, key, owner, credential, generation, features, offered, peer, targets
        )
        self._roster.guarded(self._roster.watching.registered, registration, claim.before)
        return registration

    async def _claim(
        self, claim: Claim, features: frozenset[str], peer: str
    ) -> tuple[Claimed, int]:
        key, owner, credential = claim.key, claim.owner, claim.credential
        answered: bool | None = None
        generation = await self._generations()
        while True:
            if self._roster.stopping:
                raise shuttingDown()
            if claim.revoked:
                raise NotAllowed("the credential was revoked")
            claim.before = self._roster.table.status(key)
            try:
                outcome = self._roster.table.claim(
                    key, owner, credential, generation, features, answered=answered
                )
            except HeldByAnother as error:
                self._claimRefused(error, key, owner, peer, probed=answered is not None)
                raise
            if isinstance(outcome, Claimed):
                return outcome, generation
            answered = await self._probe(outcome)

    async def _probe(self, contested: Contested) -> bool:
        holder = self._roster.registrations.get(contested.generation)
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
        self._roster.registrations[generation] = registration
        if canPool(features):
            self._roster.pool.begin(generation)
        events = _Events(self, registration)
        registration.protocol = Dialer(
            self._roster.clock,
            features,
            generation=generation,
            offered=offered,
            onPickupFailed=events.pickupFailed,
            onGoodbye=events.left,
            onLost=events.lost,
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
            self._roster.pool.end(outcome.superseded)
            self._roster.tell(
                "takeover",
                runner=key,
                owner=owner,
                generation=generation,
                superseded=outcome.superseded,
                peer=peer,
            )
            older = self._roster.registrations.get(outcome.superseded)
            if older is not None:
                older.protocol.close("superseded", retryAfter=SUPERSEDED_WAIT)
        self._roster.carryOut(outcome.failed)
        for dial in outcome.resumed:
            self._askAgent(dial)
        self._roster.schedule()
        return registration

    def _claimRefused(
        self, error: HeldByAnother, key: str, owner: str, peer: str, *, probed: bool
    ) -> None:
        holder = self._roster.table.holder(key)
        own = holder is not None and holder.owner == owner
        self._roster.tell(
            "clone-refused" if own and probed else "claim-refused",
            runner=key,
            owner=owner,
            holder=None if holder is None else holder.owner,
            generation=None if holder is None else holder.generation,
            peer=peer,
            reason=str(error),
        )

    def check(self, key: str | None, owner: str | None, features: frozenset[str]) -> CheckPeer:
        """See L{Connections.check}."""
        if self._roster.stopping:
            raise shuttingDown()
        if len(self._roster.checks) >= MAX_CHECKS:
            raise TooManyPendingDials("too many checks are open", retryAfter=10.0)
        holder = None if key is None else self._roster.table.holder(key)
        if holder is not None and holder.owner != owner:
            raise HeldByAnother
        peer = CheckPeer(self._roster.clock, features, self._roster.checks.discard)
        self._roster.checks.add(peer)
        return peer

    def lost(self, registration: Registration, reason: Failure) -> None:
        self._roster.registrations.pop(registration.generation, None)
        self._roster.pool.end(registration.generation)
        inGrace = self._roster.table.lost(registration.key, registration.generation)
        if inGrace and self._roster.stopping:
            # It will come back to another server.
            self._roster.end(self._roster.table.revoke(key=registration.key))
        self._log.info(
            "The control connection of {runner}, generation {generation}, ended: {reason}.",
            runner=registration.key,
            generation=registration.generation,
            reason=registration.protocol.ended or wordsOf(reason),
            inGrace=inGrace,
        )
        self._roster.guarded(
            self._roster.watching.lost, registration, *_ending(registration, reason)
        )
        self._roster.schedule()
        self._roster.look()

    def left(self, registration: Registration) -> None:
        self._roster.carryOut(self._roster.table.left(registration.key, registration.generation))
        registration.protocol.close("goodbye")
        self._roster.schedule()

    def pickupFailed(self, registration: Registration, message: PickupFailed) -> None:
        dial = self._roster.table.pickupFailed(registration.key, registration.generation, message)
        if dial is not None:
            self._roster.carryOut([Failed(dial, errorFor(message))])
            self._roster.schedule()


def _ending(registration: Registration, reason: Failure) -> tuple[str, str]:
    """Why a control connection ended, in a word and in words."""
    ended = registration.protocol.ended
    if ended is not None:
        return ended, ended
    word = "closed" if reason.check(ConnectionDone) else "lost"
    return word, wordsOf(reason)


__all__ = ["SUPERSEDED_WAIT", "Registering"]
