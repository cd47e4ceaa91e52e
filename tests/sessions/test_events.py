"""Tests for L{helix_revdial.sessions.events}."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, insert, select
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.sessions.event_data import MAX_EVENT, MAX_MESSAGE, EventTooLarge
from helix_revdial.sessions.events import (
    GROUP,
    Appender,
    Event,
    EventLog,
    UnknownSession,
)
from helix_revdial.sessions.lifecycle import TERMINAL, TRANSITIONS, Illegal
from helix_revdial.sessions.redaction import MARK
from helix_revdial.sessions.sessions import Sessions
from helix_revdial.storage.database import Database
from helix_revdial.storage.failures import DatabaseUnavailable
from helix_revdial.storage.ids import newId
from helix_revdial.storage.tables import counters, metadata, session_events
from helix_revdial.storage.threads import SameThread
from tests.sessions.test_lifecycle import INPUTS
from tests.sessions.worlds import SessionTestCase, task
from tests.storage.postgresql import OnPostgreSQL


class EventLogTests(SessionTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.session = self.newTask().id

    def log(self, message: str) -> Event:
        return self.get(self.events.append(self.session, "log", {"message": message}))

    def test_dense(self) -> None:
        """Events are numbered without a gap, one session apart from another."""
        other = self.newTask().id
        for number in range(2, 6):
            self.assertEqual(self.log(str(number)).seq, number)
            self.get(self.events.appendMany(other, [("log", {}), ("log", {})]))
        self.assertEqual(self.get(self.events.bounds(self.session)), (1, 5))
        self.assertEqual(self.get(self.events.bounds(other)), (1, 9))
        seqs = [event.seq for event in self.get(self.events.read(other))]
        self.assertEqual(seqs, list(range(1, 10)))

    def test_read(self) -> None:
        """What comes after a number, as much as wanted, of the types wanted."""
        for number in range(4):
            self.log(str(number))
        read = self.get(self.events.read(self.session, 2, 2))
        self.assertEqual([event.data["message"] for event in read], ["1", "2"])
        only = self.get(self.events.read(self.session, types=["status"]))
        self.assertEqual([event.type for event in only], ["status"])
        self.assertEqual(self.get(self.events.read(self.session, 5)), [])
        self.assertEqual(self.get(self.events.count(self.session, ["log"])), 4)

    def test_unknownSession(self) -> None:
        """Defect 4: what is said of a session that is not there is an error."""
        nobody = newId("ses", 1)
        self.fails(self.events.append(nobody, "log", {}), UnknownSession)
        self.fails(self.events.bounds(nobody), UnknownSession)
        self.assertEqual(self.get(self.events.read(nobody)), [])

    def test_allOrNothing(self) -> None:
        """Of several events with one that cannot be stored none is."""
        large = {"x": "y" * MAX_EVENT}
        items = [("log", {"message": "a"}), ("log", large)]
        self.fails(self.events.appendMany(self.session, items), EventTooLarge)
        self.assertEqual(self.get(self.events.bounds(self.session)), (1, 1))
        self.assertEqual(self.log("b").seq, 2)

    def test_longMessages(self) -> None:
        """A message beyond its limit is cut, and says so; no character is torn."""
        self.assertEqual(self.log("x" * MAX_MESSAGE).data["message"], "x" * MAX_MESSAGE)
        for text in ("x" * (MAX_MESSAGE + 1), "日" * MAX_MESSAGE, "\U0001f600" * MAX_MESSAGE):
            cut = str(self.log(text).data["message"])
            self.assertLessEqual(len(cut.encode()), MAX_MESSAGE)
            self.assertIn("cut]", cut)

    def test_strangeTexts(self) -> None:
        """NULs, halves of surrogate pairs and whatever else: stored and read back."""
        for text, stored in (
            ("a\x00b", "a\x00b"),
            ("a\ud800b", "a?b"),
            ("\x1b[31m日本\u2028", "\x1b[31m日本\u2028"),
        ):
            event = self.log(text)
            self.assertEqual(event.data["message"], stored)
            self.assertEqual(self.get(self.events.read(self.session, event.seq - 1)), [event])

    def test_redaction(self) -> None:
        """F1: secrets, known by their form or given to the session, are not stored."""
        session = self.newTask(
            agent={"type": "demo", "settings": {"apiKey": "swordfish", "model": "plaice"}},
            repo={"mode": "git", "url": "https://ann:hunter22@git.example/x"},
        ).id
        self.get(
            self.events.append(
                session,
                "log",
                {"message": "swordfish plaice hunter22 ghp_" + "a1" * 20, "deep": ["swordfish"]},
            )
        )
        (event,) = self.get(self.events.read(session, types=["log"]))
        self.assertEqual(event.data["message"], f"{MARK} plaice {MARK} {MARK}")
        self.assertEqual(event.data["deep"], [MARK])

        def rows(connection: Connection) -> str:
            return str(connection.execute(select(session_events.c.data)).all())

        stored = self.successResultOf(self.database.read(rows))
        for secret in ("swordfish", "hunter22", "ghp_"):
            self.assertNotIn(secret, stored)

    def test_redactionAfterARestart(self) -> None:
        """Another process knows the session's secrets too."""
        session = self.newTask(agent={"type": "demo", "settings": {"token": "swordfish"}}).id
        again = EventLog(self.database, self.wallClock)
        event = self.get(again.append(session, "log", {"message": "a swordfish"}))
        self.assertEqual(event.data["message"], f"a {MARK}")

    def test_declaredSettings(self) -> None:
        """What an agent's schema says is secret is, whatever its name."""
        events = EventLog(self.database, self.wallClock, secretSettings=lambda agent: ["pin"])
        session = self.newTask(agent={"type": "demo", "settings": {"pin": "swordfish"}}).id
        event = self.get(events.append(session, "log", {"message": "swordfish"}))
        self.assertEqual(event.data["message"], MARK)

    def test_lostDatabase(self) -> None:
        """What cannot be stored is told to nobody but the writer, and can be tried again."""
        told: list[Event] = []
        self.events.subscribe(self.session, told.append)
        self.lose()
        self.fails(self.events.append(self.session, "log", {}), DatabaseUnavailable)
        self.find()
        self.assertEqual(told, [])
        self.assertEqual(self.log("x").seq, 2)
        self.assertEqual([event.seq for event in told], [2])

    def test_trim(self) -> None:
        """The oldest leave; the numbers go on, and the first that is left is known."""
        for _ in range(5):
            self.log("x")
        self.assertEqual(self.get(self.events.trim(self.session, 4)), 3)
        self.assertEqual(self.get(self.events.bounds(self.session)), (4, 6))
        self.assertEqual(self.get(self.events.trim(self.session, 3)), 0)
        self.assertEqual(self.get(self.events.trim(self.session, 99)), 3)
        self.assertEqual(self.get(self.events.bounds(self.session)), (7, 6))
        self.assertEqual(self.log("y").seq, 7)

    def test_statusIsAlwaysTold(self) -> None:
        """Defect 5: a change of state is told whatever event came before it."""
        self.get(self.sessions.change(self.session, "provision"))
        self.log("between")
        self.get(self.sessions.change(self.session, "started"))
        self.log("between")
        self.get(self.sessions.change(self.session, "succeeded"))
        self.assertEqual(
            self.statuses(self.session), ["queued", "provisioning", "running", "completed"]
        )

    def test_aChangeIsWholeOrNotAtAll(self) -> None:
        """A change whose event cannot be stored has not happened."""
        large = {"x": "y" * MAX_EVENT}
        self.fails(self.sessions.change(self.session, "provision", large), EventTooLarge)
        found = self.get(self.sessions.get(self.session))
        assert found is not None
        self.assertEqual((found.status, found.lastSeq), ("queued", 1))
        self.fails(self.sessions.change(self.session, "pause"), Illegal)
        self.assertEqual(self.statuses(self.session), ["queued"])


class EventLogPostgreSQLTests(OnPostgreSQL, EventLogTests):
    """The same on PostgreSQL."""

    def test_severalWriters(self) -> None:
        """Two processes write to one session: no number is given twice or left out."""
        others = [EventLog(self.database, self.wallClock) for _ in range(2)]
        for number in range(20):
            self.get(others[number % 2].append(self.session, "log", {"n": number}))
        seqs = [event.seq for event in self.get(self.events.read(self.session))]
        self.assertEqual(seqs, list(range(1, 22)))


class SubscriberTests(SessionTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.session = self.newTask().id
        self.told: list[Event] = []

    def test_toldAfterTheCommit(self) -> None:
        """A subscriber is told when the event can be read, not before."""
        seen: list[bool] = []

        def look(event: Event) -> None:
            self.workers.holding = False
            seen.append(event in self.get(self.events.read(self.session)))

        self.events.subscribe(self.session, look)
        self.workers.holding = True
        writing = Deferred.fromCoroutine(self.events.append(self.session, "log", {}))
        self.assertNoResult(writing)
        self.assertEqual(seen, [])
        self.workers.answer()
        self.successResultOf(writing)
        self.assertEqual(seen, [True])

    def test_onlyOnes(self) -> None:
        """Of one session, or of all; until the subscription ends."""
        every: list[Event] = []
        unsubscribe = self.events.subscribe(self.session, self.told.append)
        unsubscribeAll = self.events.subscribeAll(every.append)
        other = self.newTask().id
        self.get(self.events.append(self.session, "log", {}))
        self.assertEqual([event.session for event in self.told], [self.session])
        self.assertEqual([event.session for event in every], [other, self.session])
        for end in (unsubscribe, unsubscribe, unsubscribeAll, unsubscribeAll):
            end()
        self.get(self.events.append(self.session, "log", {}))
        self.assertEqual((len(self.told), len(every)), (1, 2))
        self.assertEqual(self.events._subscribers, {})

    def test_aBrokenSubscriberStopsNobody(self) -> None:
        """A subscriber that raises is logged; the writer and the others go on."""

        def broken(event: Event) -> None:
            raise ZeroDivisionError

        self.events.subscribe(self.session, broken)
        self.events.subscribe(self.session, self.told.append)
        self.get(self.events.append(self.session, "log", {}))
        self.assertEqual(len(self.told), 1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_writingWhenTold(self) -> None:
        """A subscriber may write: its event comes after the one that it was told of."""

        def answer(event: Event) -> None:
            self.told.append(event)
            if event.type == "log":
                writing = self.events.append(self.session, "note", {"of": event.seq})
                Deferred.fromCoroutine(writing)

        self.events.subscribe(self.session, answer)
        self.get(self.events.append(self.session, "log", {}))
        self.assertEqual([event.seq for event in self.told], [2, 3])


class GroupTests(SessionTestCase):
    """Writes that wait share a transaction."""

    def setUp(self) -> None:
        super().setUp()
        self.ids = [self.newTask().id for _ in range(3)]
        self.told: list[Event] = []
        self.events.subscribeAll(self.told.append)
        self.workers.holding = True

    def appends(self, session: str, data: dict[str, Any]) -> Deferred[Event]:
        return Deferred.fromCoroutine(self.events.append(session, "log", data))

    def letGo(self) -> None:
        self.workers.holding = False
        while self.workers.held:
            self.workers.answer()

    def test_oneTransactionForMany(self) -> None:
        """While one transaction runs the next gathers whatever comes."""
        before = self.workers.calls
        writing = [self.appends(self.ids[n % 3], {"n": n}) for n in range(61)]
        self.letGo()
        events = self.successResultOf(gatherResults(writing))
        self.assertEqual(self.workers.calls - before, 2)
        self.assertEqual([event.data["n"] for event in events], list(range(61)))
        for session in self.ids:
            own = [event.seq for event in self.told if event.session == session]
            self.assertEqual(own, list(range(2, len(own) + 2)))

    def test_oneThatFails(self) -> None:
        """A write that fails within a group takes nothing with it but itself."""
        first = self.appends(self.ids[0], {})
        good, bad, worse, good2 = (
            self.appends(self.ids[0], {"n": 1}),
            self.appends(self.ids[0], {"x": "y" * MAX_EVENT}),
            self.appends(newId("ses", 5), {}),
            self.appends(self.ids[0], {"n": 2}),
        )
        self.letGo()
        self.failureResultOf(bad, EventTooLarge)
        self.failureResultOf(worse, UnknownSession)
        seqs = [self.successResultOf(one).seq for one in (first, good, good2)]
        self.assertEqual(seqs, [2, 3, 4])

    def test_aGroupThatIsLost(self) -> None:
        """When the database is lost all who shared the transaction hear of it."""
        first = self.appends(self.ids[0], {})
        writing = [self.appends(session, {}) for session in self.ids]
        self.workers.holding = False
        self.lose()
        self.workers.answer()
        self.successResultOf(first)
        for one in writing:
            self.failureResultOf(one, DatabaseUnavailable)
        self.find()
        self.assertEqual(self.successResultOf(self.appends(self.ids[0], {})).seq, 3)

    def test_limits(self) -> None:
        """A group has a limit, and so has what waits."""
        events = EventLog(self.database, self.wallClock, maxWaiting=GROUP + 5)
        session = self.ids[0]
        writing = [
            Deferred.fromCoroutine(events.append(session, "log", {})) for _ in range(GROUP + 6)
        ]
        refused = Deferred.fromCoroutine(events.append(session, "log", {}))
        self.failureResultOf(refused, DatabaseUnavailable)
        before = self.workers.calls
        flushed = Deferred.fromCoroutine(events.flush())
        self.assertNoResult(flushed)
        self.letGo()
        self.successResultOf(flushed)
        self.assertEqual(self.workers.calls - before, 2)
        self.assertEqual(self.successResultOf(writing[-1]).seq, GROUP + 7)


class GroupPostgreSQLTests(OnPostgreSQL, GroupTests):
    """The same on PostgreSQL."""


class LogMachine(RuleBasedStateMachine):
    """
    Sessions and their events beside a model: lists of what was stored.
    """

    sessions = Bundle("sessions")

    def __init__(self) -> None:
        super().__init__()
        self.database = Database("sqlite://", SameThread())
        with self.database.engine.begin() as connection:
            metadata.create_all(connection)
        self.now = 1_790_000_000.0
        self.model: dict[str, list[tuple[str, Any]]] = {}
        self.states: dict[str, tuple[str, str | None]] = {}
        self.first: dict[str, int] = {}
        self.heard: list[tuple[str, int, list[int]]] = []
        self.restart()

    def teardown(self) -> None:
        self.database.engine.dispose()

    def get(self, awaitable: Any) -> Any:
        results: list[Any] = []
        Deferred.fromCoroutine(awaitable).addBoth(results.append)
        (result,) = results
        if hasattr(result, "raiseException"):
            result.raiseException()
        return result

    @rule()
    def restart(self) -> None:
        """Another process goes on with the same database; its readers come anew."""
        self.events = EventLog(self.database, lambda: self.now)
        self.log = Sessions(self.database, Clock(), lambda: self.now, self.events)
        self.heard = []

    @rule(target=sessions)
    def create(self) -> str:
        made = self.get(self.log.createTask(task(), tenant="acme", owner="ann"))
        self.model[made.id] = [("status", "queued")]
        self.states[made.id] = ("queued", None)
        self.first[made.id] = 1
        return str(made.id)

    @rule(session=sessions, count=st.integers(1, 5))
    def append(self, session: str, count: int) -> None:
        items = [("log", {"message": str(n)}) for n in range(count)]
        self.get(self.events.appendMany(session, items))
        self.model[session] += [("log", str(n)) for n in range(count)]

    @rule(session=sessions)
    def tooLarge(self, session: str) -> None:
        try:
            self.get(self.events.append(session, "log", {"x": "y" * MAX_EVENT}))
        except EventTooLarge:
            return
        raise AssertionError("it was stored")

    @rule(session=sessions, happened=st.sampled_from(INPUTS))
    def happen(self, session: str, happened: Any) -> None:
        status, _ = self.states[session]
        before = len(self.model[session])
        try:
            changed = self.get(self.log.change(session, happened))
        except Illegal:
            changed = self.get(self.log.get(session))
            assert changed.status == status
        new = self.get(self.events.read(session, before))
        for event in new:
            assert event.type == "status"
            assert event.data["status"] in TRANSITIONS[status]  # type: ignore[index]
            status = str(event.data["status"])
            self.model[session].append(("status", status))
        assert changed.status == status
        assert (changed.ended is not None) == (status in TERMINAL)
        self.states[session] = (status, changed.goal)

    @rule(session=sessions, keep=st.integers(0, 10))
    def trim(self, session: str, keep: int) -> None:
        last = len(self.model[session])
        self.get(self.events.trim(session, last + 1 - keep))
        self.first[session] = max(self.first[session], last + 1 - keep)

    @rule(session=sessions)
    def subscribe(self, session: str) -> None:
        seqs: list[int] = []
        self.heard.append((session, len(self.model[session]), seqs))
        self.events.subscribe(session, lambda event: seqs.append(event.seq))

    @invariant()
    def everythingIsThere(self) -> None:
        for session, model in self.model.items():
            first = self.first[session]
            stored = self.get(self.events.read(session))
            told = [(e.type, e.data.get("status", e.data.get("message"))) for e in stored]
            assert told == model[first - 1 :], (told, model)
            assert [e.seq for e in stored] == list(range(first, len(model) + 1))
            assert self.get(self.events.bounds(session)) == (first, len(model))

    @invariant()
    def everybodyHeardEachOnce(self) -> None:
        for session, since, seqs in self.heard:
            assert seqs == list(range(since + 1, len(self.model[session]) + 1)), seqs


class LogMachineTests(SynchronousTestCase):
    def test_machine(self) -> None:
        """Whatever happens in whatever order, the log is what the model says."""
        run_state_machine_as_test(
            LogMachine,
            settings=settings(deadline=None, max_examples=25, stateful_step_count=25),
        )


class WitnessTests(SessionTestCase):
    def test_witness(self) -> None:
        """What a witness writes is there exactly if the events are."""
        session = self.newTask().id

        def note(connection: Connection, events: Sequence[Event]) -> None:
            for event in events:
                connection.execute(
                    insert(counters).values(name=f"{event.type} {event.seq}", value=1)
                )
                if event.data.get("message") == "bad":
                    raise ZeroDivisionError

        self.events.witness(note)
        self.get(self.events.append(session, "log", {"message": "good"}))
        self.fails(self.events.append(session, "log", {"message": "bad"}), ZeroDivisionError)
        self.get(self.sessions.change(session, "provision"))
        noted = self.successResultOf(
            self.database.read(lambda c: list(c.execute(select(counters.c.name)).scalars()))
        )
        self.assertEqual(sorted(noted), ["log 2", "status 3"])


class AppenderTests(SessionTestCase):
    def test_whatWasWrittenWithIt(self) -> None:
        """A write that raises has changed nothing, whatever it had written."""
        session = self.newTask().id

        def spoil(connection: Connection, log: Appender) -> None:
            log.append("log", {})
            raise ZeroDivisionError

        self.failureResultOf(self.events.write(session, spoil), ZeroDivisionError)
        self.assertEqual(self.get(self.events.bounds(session)), (1, 1))
