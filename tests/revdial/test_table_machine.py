"""
The connection table against a model that is too simple to be wrong.

The model keeps plain facts: who holds what, which dial waits or is asked for and
until when, and every secret ever given out.  It has no heap, no index and no
history beyond lists, and searches them through each time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

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
from helix_revdial.revdial.features import ALL
from helix_revdial.revdial.messages import PickupFailed
from helix_revdial.revdial.table import (
    Claimed,
    Close,
    ConnectionTable,
    Contested,
    Dial,
    DialState,
    Effect,
    Failed,
    Gone,
    TooManyRunners,
)

GRACE = 30
DIAL = 20
PENDING = 4
RUNNERS = 3

keys = st.sampled_from(["k1", "k2", "k3", "k4"])
owners = st.sampled_from(["o1", "o1", "o1", "o2"])
features = st.sampled_from([ALL, ALL, frozenset[str](), frozenset({"targets"})])
picks = st.integers(0, 1000)


@dataclass
class ModelRunner:
    owner: str
    credential: str
    generation: int
    features: frozenset[str]
    graceEnds: float | None = None
    probed: bool = False
    proven: bool = False


@dataclass
class ModelDial:
    dial: Dial
    key: str
    deadline: float
    named: bool
    askedUntil: float | None = None
    """C{None} while it waits."""
    reports: list[str] = field(default_factory=list)


class TableMachine(RuleBasedStateMachine):
    """Every call, in any order, with right, wrong and outdated arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.table = ConnectionTable(
            self.clock,
            gracePeriod=GRACE,
            dialTimeout=DIAL,
            maxPending=PENDING,
            maxRunners=RUNNERS,
        )
        self.issued = 0
        self.runners: dict[str, ModelRunner] = {}
        self.last: dict[str, int] = {}
        self.takeovers: dict[str, list[float]] = {}
        self.gone: list[str] = []
        self.dials: list[ModelDial] = []
        self.allDials: list[ModelDial] = []
        self.spent: list[tuple[str | None, str | None, str | None]] = []

    # What the model knows

    @property
    def now(self) -> float:
        return self.clock.seconds()

    def of(self, key: str) -> list[ModelDial]:
        return [dial for dial in self.dials if dial.key == key]

    def over(self, dial: ModelDial, report: str) -> None:
        self.dials.remove(dial)
        dial.reports.append(report)

    def retire(self, dial: Dial) -> None:
        """Remember, before they are worthless, the secrets of a dial."""
        self.spent.append((dial.ticket, dial.dialer, dial.request))

    def retireAll(self) -> None:
        for known in self.dials:
            if known.askedUntil is not None:
                self.retire(known.dial)

    def stillGood(self, secrets: tuple[str | None, str | None, str | None]) -> bool:
        return any(
            (d.dial.ticket, d.dial.dialer, d.dial.request) == secrets
            for d in self.dials
            if d.askedUntil is not None
        )

    def live(self, key: str, generation: int) -> bool:
        runner = self.runners.get(key)
        return runner is not None and runner.generation == generation and runner.graceEnds is None

    def suspend(self, key: str) -> None:
        for dial in self.of(key):
            dial.askedUntil = None

    def drop(self, key: str, effects: list[Effect], error: type[DialError]) -> list[Effect]:
        """Check that C{effects} begin with the end of C{key}; return the others."""
        generation = self.runners.pop(key).generation
        self.gone.append(key)
        if len(self.gone) > RUNNERS:
            forgotten = self.gone.pop(0)
            del self.last[forgotten]
            self.takeovers.pop(forgotten, None)
        waiting = self.of(key)
        for dial, effect in zip(waiting, effects, strict=False):
            assert isinstance(effect, Failed), effect
            assert effect.dial is dial.dial
            assert type(effect.error) is error, effect
            self.over(dial, "failed")
        assert effects[len(waiting)] == Gone(key, generation), effects
        return effects[len(waiting) + 1 :]

    # Registration

    @rule(key=keys, owner=owners, features=features, credential=st.sampled_from(["c1", "c2"]))
    def connect(self, key: str, owner: str, features: frozenset[str], credential: str) -> None:
        self.issued += 1
        self.claim(key, owner, credential, self.issued, features, None)

    @rule(key=keys, owner=owners, answered=st.booleans())
    def connectAfterProbe(self, key: str, owner: str, answered: bool) -> None:
        self.issued += 1
        self.claim(key, owner, "c1", self.issued, ALL, answered)

    @precondition(lambda self: self.last)
    @rule(key=keys, back=st.integers(0, 3), answered=st.none() | st.booleans())
    def connectLate(self, key: str, back: int, answered: bool | None) -> None:
        """A generation that is not above what was seen never gets the key."""
        seen = self.last.get(key)
        if seen is None or seen - back < 1:
            return
        try:
            self.table.claim(key, "o1", "c1", seen - back, ALL, answered=answered)
        except HeldByAnother:
            return
        raise AssertionError("an outdated generation got the key")

    def claim(
        self,
        key: str,
        owner: str,
        credential: str,
        generation: int,
        features: frozenset[str],
        answered: bool | None,
    ) -> None:
        self.retireAll()
        outcome: Claimed | Contested | DialError
        try:
            outcome = self.table.claim(
                key, owner, credential, generation, features, answered=answered
            )
        except DialError as error:
            outcome = error
        runner = self.runners.get(key)
        superseded = None
        if runner is None:
            if len(self.runners) >= RUNNERS:
                assert isinstance(outcome, TooManyRunners)
                return
            if key in self.gone:
                self.gone.remove(key)
        elif runner.owner != owner:
            assert isinstance(outcome, HeldByAnother)
            return
        elif runner.graceEnds is None:
            recent = [at for at in self.takeovers.get(key, []) if self.now - at < 60]
            if runner.probed and answered:
                runner.proven = True
                assert isinstance(outcome, HeldByAnother)
                assert outcome.retryAfter == 60
                return
            if (len(recent) >= 2 or runner.proven) and not (runner.probed and answered is False):
                runner.probed = True
                assert outcome == Contested(runner.generation), outcome
                return
            self.takeovers.setdefault(key, []).append(self.now)
            superseded = runner.generation
        assert isinstance(outcome, Claimed), outcome
        assert outcome.superseded == superseded
        self.runners[key] = ModelRunner(owner, credential, generation, features)
        self.last[key] = generation
        self.suspend(key)
        resumed, failed = [], []
        for dial in self.of(key):
            if dial.named and "targets" not in features:
                failed.append(dial.dial)
                self.over(dial, "failed")
            elif dial.deadline > self.now:
                dial.askedUntil = min(dial.deadline, self.now + DIAL)
                resumed.append(dial.dial)
        assert outcome.resumed == resumed
        assert [effect.dial for effect in outcome.failed] == failed
        assert all(isinstance(effect.error, TargetRefused) for effect in outcome.failed)

    @rule(key=keys, back=st.sampled_from([0, 0, 0, 1, 2]))
    def lose(self, key: str, back: int) -> None:
        generation = self.last.get(key, 0) - back
        self.retireAll()
        assert self.table.lost(key, generation) == self.live(key, generation)
        if self.live(key, generation):
            self.runners[key].graceEnds = self.now + GRACE
            self.suspend(key)

    @rule(key=keys, back=st.sampled_from([0, 0, 1]))
    def leave(self, key: str, back: int) -> None:
        generation = self.last.get(key, 0) - back
        self.retireAll()
        effects = self.table.left(key, generation)
        if self.live(key, generation):
            effects = self.drop(key, effects, NotConnected)
        assert effects == []

    @rule(which=st.sampled_from(["key", "owner", "credential"]), pick=picks, key=keys)
    def revoke(self, which: str, pick: int, key: str) -> None:
        self.retireAll()
        if which == "key":
            effects = self.table.revoke(key=key)
            hit = [key] if key in self.runners else []
        elif which == "owner":
            effects = self.table.revoke(owner="o2")
            hit = [k for k, runner in self.runners.items() if runner.owner == "o2"]
        else:
            effects = self.table.revoke(credential="c2")
            hit = [k for k, runner in self.runners.items() if runner.credential == "c2"]
        closes = [effect for effect in effects if isinstance(effect, Close)]
        assert {(c.key, c.generation) for c in closes} == {
            (k, self.runners[k].generation) for k in hit if self.runners[k].graceEnds is None
        }
        rest: list[Effect] = [e for e in effects if not isinstance(e, Close)]
        while rest:
            first = next(effect for effect in rest if isinstance(effect, Gone))
            rest = self.drop(first.key, rest, NotConnected)
            hit.remove(first.key)
        assert hit == []

    # Dials

    @rule(
        key=keys,
        named=st.booleans(),
        timeout=st.sampled_from([None, None, 3.0, 25.0, 1000.0]),
    )
    def dial(self, key: str, named: bool, timeout: float | None) -> None:
        target = "api" if named else None
        runner = self.runners.get(key)
        outcome: Dial | DialError
        try:
            outcome = self.table.dial(key, target, timeout)
        except DialError as error:
            outcome = error
        if runner is None:
            assert isinstance(outcome, NotConnected)
            return
        if len(self.of(key)) >= PENDING:
            assert isinstance(outcome, TooManyPendingDials)
            return
        if runner.graceEnds is None and named and "targets" not in runner.features:
            assert isinstance(outcome, TargetRefused)
            return
        assert isinstance(outcome, Dial), outcome
        deadline = self.now + (GRACE + DIAL if timeout is None else min(timeout, GRACE + DIAL))
        known = ModelDial(outcome, key, deadline, named)
        if runner.graceEnds is None:
            known.askedUntil = min(deadline, self.now + DIAL)
        self.dials.append(known)
        self.allDials.append(known)

    @precondition(lambda self: self.allDials)
    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        known = self.allDials[pick % len(self.allDials)]
        waits = known in self.dials
        if waits and known.askedUntil is not None:
            self.retire(known.dial)
        assert self.table.cancel(known.dial) == waits
        if waits:
            self.over(known, "cancelled")

    @precondition(lambda self: self.dials)
    @rule(pick=picks, right=st.sampled_from([True, True, False]))
    def pickUp(self, pick: int, right: bool) -> None:
        known = self.dials[pick % len(self.dials)]
        if known.askedUntil is None:
            return
        dial = known.dial
        self.retire(dial)
        credential = self.runners[known.key].credential if right else "nobody's"
        try:
            found = self.table.pickUp(
                credential, ticket=dial.ticket, dialer=dial.dialer, request=dial.request
            )
        except NotAllowed:
            assert not right
        except UnknownDial:
            assert known.askedUntil <= self.now
        else:
            assert right
            assert found is dial
            assert known.askedUntil > self.now
            self.over(known, "picked up")

    @precondition(lambda self: self.spent)
    @rule(pick=picks)
    def pickUpSpent(self, pick: int) -> None:
        """A secret that is worth nothing any more never gets a dial."""
        secrets = self.spent[pick % len(self.spent)]
        if self.stillGood(secrets):
            return
        for credential in ("c1", "c2"):
            try:
                self.table.pickUp(
                    credential, ticket=secrets[0], dialer=secrets[1], request=secrets[2]
                )
            except UnknownDial:
                continue
            raise AssertionError("a spent secret picked a dial up")

    @precondition(lambda self: self.dials)
    @rule(pick=picks, sender=keys, back=st.sampled_from([0, 0, 1]))
    def failPickUp(self, pick: int, sender: str, back: int) -> None:
        known = self.dials[pick % len(self.dials)]
        if known.askedUntil is None:
            message = PickupFailed("/revdial", "no", known.dial.id)
        else:
            self.retire(known.dial)
            asked = known.dial.connReady()
            message = PickupFailed(asked.connPath, "no", asked.dial)
        generation = self.last.get(sender, 0) - back
        found = self.table.pickupFailed(sender, generation, message)
        counts = (
            known.askedUntil is not None and known.key == sender and self.live(sender, generation)
        )
        assert found is (known.dial if counts else None)
        if counts:
            self.over(known, "pickup failed")

    # Time

    @rule(seconds=st.sampled_from([0.0, 1.0, 3.0, 10.0, 20.0, 30.0, 61.0]))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([0.0, 2.0, 20.0, 30.0]))
    def expire(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.retireAll()
        for effect in self.table.expire():
            if isinstance(effect, Gone):
                ends = self.runners[effect.key].graceEnds
                assert ends is not None
                assert ends <= self.now
                assert self.of(effect.key) == []
                assert self.drop(effect.key, [effect], ReconnectTimeout) == []
                continue
            assert isinstance(effect, Failed), effect
            (known,) = (d for d in self.dials if d.dial is effect.dial)
            if known.askedUntil is None:
                ends = self.runners[known.key].graceEnds
                assert isinstance(effect.error, ReconnectTimeout)
                assert known.deadline <= self.now or (ends is not None and ends <= self.now)
            else:
                assert isinstance(effect.error, DialTimeout)
                assert known.askedUntil <= self.now
            self.over(known, "failed")
        assert all((d.askedUntil or d.deadline) > self.now for d in self.dials)
        assert all(
            runner.graceEnds is None or runner.graceEnds > self.now
            for runner in self.runners.values()
        )

    # What always holds

    @invariant()
    def sameHolders(self) -> None:
        assert {
            holder.key: (holder.owner, holder.credential, holder.generation, holder.graceEnds)
            for holder in self.table.holders()
        } == {
            key: (runner.owner, runner.credential, runner.generation, runner.graceEnds)
            for key, runner in self.runners.items()
        }

    @invariant()
    def sameCounts(self) -> None:
        stats = self.table.stats()
        live = sorted(key for key, r in self.runners.items() if r.graceEnds is None)
        assert stats.keys == live
        assert stats.connected == len(live)
        assert stats.grace == len(self.runners) - len(live)
        assert stats.pendingDials == len(self.dials)

    @invariant()
    def sameStates(self) -> None:
        for known in self.dials:
            assert known.dial.state is (
                DialState.WAITING if known.askedUntil is None else DialState.ASKED
            )
            assert known.reports == []
        for known in self.allDials:
            if known not in self.dials:
                assert len(known.reports) == 1
                picked = known.reports == ["picked up"]
                assert known.dial.state is (DialState.PICKED_UP if picked else DialState.OVER)
                assert (known.dial.ticket, known.dial.request) == (None, None)

    @invariant()
    def oneTimer(self) -> None:
        """The table always knows the next thing that happens."""
        times = [d.deadline if d.askedUntil is None else d.askedUntil for d in self.dials]
        times += [r.graceEnds for r in self.runners.values() if r.graceEnds is not None]
        assert self.table.nextDeadline() == min(times, default=None)

    @invariant()
    def bounded(self) -> None:
        assert len(self.table._runners) <= RUNNERS
        assert len(self.table._memory) <= RUNNERS
        # What picks a dial up is made when it is looked at.
        assert len(self.table._askings) <= sum(d.askedUntil is not None for d in self.dials)
        assert self.table._deadlines.held <= 2 * (RUNNERS + RUNNERS * PENDING) + 65


class TableMachineTests(SynchronousTestCase):
    """L{ConnectionTable} does what the model says."""

    def test_table(self) -> None:
        """In any order of calls, table and model agree on everything that can be seen."""
        run_state_machine_as_test(
            TableMachine,
            settings=settings(
                deadline=None,
                max_examples=120,
                stateful_step_count=40,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
            ),
        )
