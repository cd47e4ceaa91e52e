# -*- test-case-name: tests.revdial.test_table,tests.revdial.test_table_dials -*-
"""
Who is connected, who may take a name over, and who gets which stream.

L{ConnectionTable} is the rules alone.  It knows no socket, no Deferred and no
other thread; time comes from the clock it is given, generations from whoever
registers.  What is to be done outside (close a control connection, fail a
caller) it returns as small values, and L{Connections
<helix_revdial.revdial.connections.Connections>} does it.

Invariants:

  - A key has at most one generation at a time, and generations only grow.
    Whatever ends (a connection, a timer, a late dial-back) changes nothing but
    its own generation.

  - A key has one owner from its first registration until its grace is over.

  - A dial is held under exactly one key until it is picked up, fails or is
    cancelled, and is reported in exactly one of these ways.  An attempt to pick
    it up that fails leaves it as it was.

  - At most C{maxRunners} keys, C{maxPending} dials a key, C{takeoverLimit}
    takeovers remembered a key, and C{maxRunners} keys remembered that are gone.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Iterator
from typing import ClassVar

from twisted.internet.interfaces import IReactorTime

from helix_revdial.revdial.deadlines import Deadlines
from helix_revdial.revdial.dials import Askings, Dial, DialState
from helix_revdial.revdial.effects import (
    Claimed,
    Close,
    Contested,
    Effect,
    Failed,
    Gone,
    Holder,
    TableStats,
)
from helix_revdial.revdial.errors import (
    DialError,
    DialTimeout,
    HeldByAnother,
    NotAllowed,
    NotConnected,
    ReconnectTimeout,
    TargetRefused,
    TooManyPendingDials,
    UnknownDial,
)
from helix_revdial.revdial.features import TARGETS
from helix_revdial.revdial.messages import PickupFailed, dialIds
from helix_revdial.revdial.runner import Memory, Runner

__all__ = [
    "Claimed",
    "Close",
    "ConnectionTable",
    "Contested",
    "Dial",
    "DialState",
    "Effect",
    "Failed",
    "Gone",
    "Holder",
    "TableStats",
    "TooManyRunners",
]


class TooManyRunners(DialError):
    """The server holds as many runners as it may."""

    status: ClassVar[int] = 503
    word: ClassVar[str] = "busy"
    text: ClassVar[str] = "too many runners are connected"


class ConnectionTable:
    """
    The rules of registration, takeover, grace and pick-up.

    After every call that changes something, L{nextDeadline} may have changed:
    whoever owns the table keeps one timer, and calls L{expire} when it fires.
    """

    def __init__(
        self,
        clock: IReactorTime,
        *,
        gracePeriod: float = 30.0,
        maxPending: int = 100,
        dialTimeout: float = 20.0,
        maxRunners: int = 10_000,
        takeoverLimit: int = 3,
        takeoverWindow: float = 60.0,
    ) -> None:
        """
        @param clock: Gives the time.
        @param gracePeriod: Seconds that a lost runner keeps its name.
        @param maxPending: Dials that may wait for one runner, connected or not.
        @param dialTimeout: Seconds that an agent has from being asked to its
            dial-back.
        @param maxRunners: Keys held at a time, those in grace included.
        @param takeoverLimit: The takeover of a live connection that would be this
            many within C{takeoverWindow} is contested.
        @param takeoverWindow: Seconds.
        """
        self._clock = clock
        self._gracePeriod = gracePeriod
        self._maxPending = maxPending
        self._dialTimeout = dialTimeout
        self._maxRunners = maxRunners
        self._takeoverLimit = takeoverLimit
        self._takeoverWindow = takeoverWindow
        self._runners: dict[str, Runner] = {}
        self._memory: OrderedDict[str, Memory] = OrderedDict()
        self._askings = Askings()
        self._deadlines: Deadlines[Dial | Runner] = Deadlines()

    def setLimits(
        self, *, gracePeriod: float, maxPending: int, dialTimeout: float, maxRunners: int
    ) -> None:
        """
        From now on, others; see L{__init__}.

        Who is in grace, waits or is asked already keeps the time that it had; what
        is above a number that became smaller stays.
        """
        self._gracePeriod = gracePeriod
        self._maxPending = maxPending
        self._dialTimeout = dialTimeout
        self._maxRunners = maxRunners

    # Registration

    def expect(
        self, key: str, owner: str, credential: str, generation: int, seconds: float
    ) -> bool:
        """
        Await a runner that was connected before the server was started again, as if
        it had just been lost.

        @param generation: What it had then.
        @param seconds: How long it is awaited.
        @return: Whether it is; not if somebody has the name, or the table is full.
        """
        if key in self._runners or len(self._runners) >= self._maxRunners:
            return False
        runner = self._runners[key] = Runner(key, owner, [])
        runner.connect(credential, generation, frozenset())
        runner.graceEnds = self._clock.seconds() + seconds
        self._deadlines.schedule(runner, runner.graceEnds)
        return True

    def claim(
        self,
        key: str,
        owner: str,
        credential: str,
        generation: int,
        features: frozenset[str],
        *,
        answered: bool | None = None,
    ) -> Claimed | Contested:
        """
        Register a control connection.

        The same owner takes a live name over at once, except that too many
        takeovers in a short time, or one against a connection that has proven
        alive against such a takeover, are L{Contested}: two clones of one
        identity would go on for ever.

        @param key: The runner's key.
        @param owner: Who may hold the key: a token family or a session.
        @param credential: What a dial-back of the old wire must carry.
        @param generation: A number never used before, higher for later
            registrations.
        @param features: What both ends have agreed on.
        @param answered: After L{Contested}: whether the holder gave a sign of
            life.  Counts only if the holder is still the one that was probed.
        @raise HeldByAnother: Another owner has the name; or a later generation
            has; or the holder answered.  C{retryAfter} says when to try again,
            where that is known.
        @raise TooManyRunners: The key is new and the table full.
        """
        now = self._clock.seconds()
        runner = self._runners.get(key)
        if runner is None:
            return self._claimFree(key, owner, credential, generation, features)
        if runner.owner != owner:
            ends = runner.graceEnds
            raise HeldByAnother(retryAfter=None if ends is None else max(0.0, ends - now))
        if generation <= runner.generation:
            raise HeldByAnother("a later registration of this runner is here already")
        superseded = None
        if runner.graceEnds is None:
            if self._isContested(runner, answered):
                runner.probed = True
                return Contested(runner.generation)
            superseded = runner.generation
            runner.takeovers.append(now)
            del runner.takeovers[: -self._takeoverLimit]
            self._suspendDials(runner)
        self._deadlines.drop(runner)
        runner.connect(credential, generation, features)
        return Claimed(superseded, *self._resumeDials(runner))

    def _claimFree(
        self,
        key: str,
        owner: str,
        credential: str,
        generation: int,
        features: frozenset[str],
    ) -> Claimed:
        memory = self._memory.get(key)
        if memory is not None and generation <= memory.generation:
            raise HeldByAnother("a later registration of this runner was here already")
        if len(self._runners) >= self._maxRunners:
            raise TooManyRunners(retryAfter=self._gracePeriod)
        self._memory.pop(key, None)
        takeovers = [] if memory is None else memory.takeovers
        runner = self._runners[key] = Runner(key, owner, takeovers)
        runner.connect(credential, generation, features)
        return Claimed(None, [], [])

    def _isContested(self, runner: Runner, answered: bool | None) -> bool:
        """
        Whether the live C{runner} may not be taken over before it is probed.

        @raise HeldByAnother: It was probed, and it answered.
        """
        if runner.probed and answered is not None:
            if not answered:
                return False
            runner.contested = True
            raise HeldByAnother(
                "the runner is connected already, and that connection answers",
                retryAfter=self._takeoverWindow,
            )
        return runner.needsProbe(self._clock.seconds(), self._takeoverLimit, self._takeoverWindow)

    def lost(self, key: str, generation: int) -> bool:
        """
        A control connection has ended: its grace begins, and dials that it was
        asked for wait again.

        @return: C{False} if the generation does not hold the key live.
        """
        runner = self._live(key, generation)
        if runner is None:
            return False
        self._suspendDials(runner)
        runner.graceEnds = self._clock.seconds() + self._gracePeriod
        self._deadlines.schedule(runner, runner.graceEnds)
        return True

    def left(self, key: str, generation: int) -> list[Effect]:
        """
        A control connection ends for good (its agent said goodbye): there is no
        grace, and what waits fails.

        @return: What is to be done; nothing if the generation does not hold the
            key live.
        """
        runner = self._live(key, generation)
        if runner is None:
            return []
        return list(self._remove(runner, NotConnected("the agent went away")))

    def revoke(
        self, *, key: str | None = None, owner: str | None = None, credential: str | None = None
    ) -> list[Effect]:
        """
        Cut what matches every given word, in grace or not, at once.

        @return: What is to be done; a L{Close} for each live connection.
        @raise ValueError: Nothing is given.
        """
        if key is None and owner is None and credential is None:
            raise ValueError("revoke needs a key, an owner or a credential")
        if key is None:
            candidates = list(self._runners.values())
        else:
            candidates = [self._runners[key]] if key in self._runners else []
        effects: list[Effect] = []
        for runner in candidates:
            if owner is not None and runner.owner != owner:
                continue
            if credential is not None and runner.credential != credential:
                continue
            if runner.graceEnds is None:
                effects.append(Close(runner.key, runner.generation, "revoked"))
            effects.extend(self._remove(runner, NotConnected("the runner was cut off")))
        return effects

    def _live(self, key: str, generation: int) -> Runner | None:
        runner = self._runners.get(key)
        if runner is None or runner.generation != generation or runner.graceEnds is not None:
            return None
        return runner

    def _remove(self, runner: Runner, error: DialError) -> Iterator[Effect]:
        del self._runners[runner.key]
        self._deadlines.drop(runner)
        self._memory[runner.key] = Memory(runner.generation, runner.takeovers)
        while len(self._memory) > self._maxRunners:
            self._memory.popitem(last=False)
        for dial in list(runner.dials.values()):
            self._forget(dial, runner, DialState.OVER)
            yield Failed(dial, error)
        yield Gone(runner.key, runner.generation)

    # Dials

    def dial(self, key: str, target: str | None = None, timeout: float | None = None) -> Dial:
        """
        Ask for a stream.

        @param key: The runner's key.
        @param target: A named service of the agent; C{None} for its default.
        @param timeout: Seconds the caller has, waiting for a lost runner
            included; C{None} for what the table allows at most.
        @return: C{ASKED}, and then the agent is to be sent C{connReady()}; or
            C{WAITING}, and then it comes back from L{claim} or L{expire}.
        @raise NotConnected: Nobody holds the key.
        @raise TooManyPendingDials: C{maxPending} dials wait for it already.
        @raise TargetRefused: The connected agent knows no named targets.
        """
        runner = self._runners.get(key)
        if runner is None:
            raise NotConnected
        if len(runner.dials) >= self._maxPending:
            raise TooManyPendingDials(retryAfter=1.0)
        most = self._dialTimeout + self._gracePeriod
        allowed = most if timeout is None else min(timeout, most)
        dial = Dial(key, target, self._clock.seconds() + allowed)
        if runner.graceEnds is None:
            if not self._canServe(runner, dial):
                raise TargetRefused(_NO_TARGETS)
            self._ask(dial, runner)
        else:
            self._deadlines.schedule(dial, dial.deadline)
        runner.dials[dial.id] = dial
        return dial

    def isAsked(self, credential: str, ticket: str) -> bool:
        """Whether L{pickUp} would find the dial of C{ticket}; uses nothing up."""
        dial = self._askings.byTicket(ticket)
        if dial is None or self._isOverdue(dial):
            return False
        holder = self._runners[dial.key].credential
        return hmac.compare_digest(holder.encode(), credential.encode())

    def pickUp(
        self,
        credential: str,
        *,
        ticket: str | None = None,
        dialer: str | None = None,
        request: str | None = None,
    ) -> Dial:
        """
        A data connection has come: find the dial it is for, and use it up.

        A ticket decides alone if there is one.  Either way C{credential} must be
        the one that registered the generation that was asked.

        @return: The dial, now C{PICKED_UP}.
        @raise UnknownDial: No dial is outstanding under that ticket, or under
            those two ids; or its time is up.
        @raise NotAllowed: Another credential registered the runner.
        """
        dial = None
        if ticket is not None:
            dial = self._askings.byTicket(ticket)
        elif dialer is not None and request is not None:
            dial = self._askings.byIds(dialer, request)
        if dial is None:
            raise UnknownDial
        runner = self._runners[dial.key]
        if not hmac.compare_digest(runner.credential.encode(), credential.encode()):
            raise NotAllowed("the dial was asked of a runner with another token")
        if self._isOverdue(dial):
            raise UnknownDial
        self._forget(dial, runner, DialState.PICKED_UP)
        return dial

    def answered(self, dial: Dial) -> bool:
        """
        The target of C{dial} is connected, and says so on a parked connection of the
        generation that was asked: use the dial up.

        @return: C{False} if it was picked up or is over already.
        """
        runner = self._runners.get(dial.key)
        if runner is None or runner.dials.get(dial.id) is not dial:
            return False
        if dial.state is not DialState.ASKED or self._isOverdue(dial):
            return False
        self._forget(dial, runner, DialState.PICKED_UP)
        return True

    def pickupFailed(self, key: str, generation: int, message: PickupFailed) -> Dial | None:
        """
        An agent cannot answer a dial.

        @return: The dial, now C{OVER}, to be failed by the caller; C{None} if
            that generation has not been asked for it (any more).
        """
        runner = self._live(key, generation)
        if runner is None:
            return None
        dial: Dial | None
        if message.dial is not None:
            dial = runner.dials.get(message.dial)
        else:
            dialer, request = dialIds(message.connPath)
            if dialer is None or request is None:
                return None
            dial = self._askings.byIds(dialer, request)
        if dial is None or dial.key != key or dial.state is not DialState.ASKED:
            return None
        self._forget(dial, runner, DialState.OVER)
        return dial

    def cancel(self, dial: Dial) -> bool:
        """
        The caller wants C{dial} no more.

        @return: C{False} if it was picked up or over already.
        """
        runner = self._runners.get(dial.key)
        if runner is None or runner.dials.get(dial.id) is not dial:
            return False
        self._forget(dial, runner, DialState.OVER)
        return True

    def _canServe(self, runner: Runner, dial: Dial) -> bool:
        return dial.target is None or TARGETS in runner.features

    def _ask(self, dial: Dial, runner: Runner) -> None:
        dial.ask(runner.generation, runner.features, runner.dialer, self._askings)
        limit = min(dial.deadline, self._clock.seconds() + self._dialTimeout)
        self._deadlines.schedule(dial, limit)

    def _stopAsking(self, dial: Dial, state: DialState) -> None:
        dial.forgetAsking(state)

    def _forget(self, dial: Dial, runner: Runner, state: DialState) -> None:
        self._stopAsking(dial, state)
        self._deadlines.drop(dial)
        del runner.dials[dial.id]

    def _suspendDials(self, runner: Runner) -> None:
        for dial in runner.dials.values():
            self._stopAsking(dial, DialState.WAITING)
            self._deadlines.schedule(dial, dial.deadline)

    def _resumeDials(self, runner: Runner) -> tuple[list[Dial], list[Failed]]:
        now = self._clock.seconds()
        resumed: list[Dial] = []
        failed: list[Failed] = []
        for dial in list(runner.dials.values()):
            if not self._canServe(runner, dial):
                self._forget(dial, runner, DialState.OVER)
                failed.append(Failed(dial, TargetRefused(_NO_TARGETS)))
            elif dial.deadline > now:
                self._ask(dial, runner)
                resumed.append(dial)
        return resumed, failed

    # Time

    def nextDeadline(self) -> float | None:
        """When L{expire} has something to do, by the clock; C{None}: never."""
        return self._deadlines.next()

    def expire(self) -> list[Effect]:
        """Let everything end whose time is up."""
        effects: list[Effect] = []
        for thing in self._deadlines.due(self._clock.seconds()):
            if isinstance(thing, Runner):
                effects.extend(self._remove(thing, ReconnectTimeout()))
            else:
                asked = thing.state is DialState.ASKED
                self._forget(thing, self._runners[thing.key], DialState.OVER)
                effects.append(Failed(thing, DialTimeout() if asked else ReconnectTimeout()))
        return effects

    def _isOverdue(self, dial: Dial) -> bool:
        when = self._deadlines.when(dial)
        return when is not None and when <= self._clock.seconds()

    # Views

    def holder(self, key: str) -> Holder | None:
        """Who holds C{key}, connected or in grace."""
        runner = self._runners.get(key)
        return None if runner is None else runner.holder()

    def holders(self) -> list[Holder]:
        """Everybody who holds a key, connected or in grace, sorted by key."""
        return [self._runners[key].holder() for key in sorted(self._runners)]

    def status(self, key: str) -> str | None:
        """C{"connected"}, C{"grace"}, or C{None}."""
        runner = self._runners.get(key)
        if runner is None:
            return None
        return "connected" if runner.graceEnds is None else "grace"

    def stats(self) -> TableStats:
        """The counts of the moment."""
        live = sorted(key for key, runner in self._runners.items() if runner.graceEnds is None)
        pending = sum(len(runner.dials) for runner in self._runners.values())
        return TableStats(len(live), len(self._runners) - len(live), pending, live)


_NO_TARGETS = "the agent offers no named targets"
