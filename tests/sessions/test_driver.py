"""Tests for L{helix_revdial.sessions.driver}, on a synthetic executor."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any

from sqlalchemy import select
from twisted.internet.defer import Deferred

from helix_revdial.sessions.driver import Driver
from helix_revdial.sessions.events import Event
from helix_revdial.sessions.executor import (
    ExecutorRefused,
    ExecutorUnreachable,
    HostSession,
    LaunchSpec,
    Prompt,
    Report,
    Verb,
)
from helix_revdial.sessions.lifecycle import TERMINAL, TRANSITIONS, Illegal
from helix_revdial.sessions.records import Session
from helix_revdial.sessions.run import DriverSettings
from helix_revdial.sessions.synthetic import SyntheticExecutor
from helix_revdial.storage.tables import moments, snapshots
from tests.sessions.worlds import DrivenTestCase, prepare
from tests.storage.postgresql import OnPostgreSQL


class FlakyExecutor(SyntheticExecutor):
    """
    One whose connection breaks.

    @ivar away: whether it cannot be reached now.
    @ivar after: reports, after which a connection breaks once more; or C{None}.
    @ivar asked: the verbs that it was asked.
    """

    away = False
    after: int | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.asked: list[Verb] = []
        self.deaf: set[Verb] = set()

    def _check(self) -> None:
        if self.away:
            raise ExecutorUnreachable("the connection is gone")

    async def launch(self, session: str, spec: LaunchSpec) -> None:
        self._check()
        await super().launch(session, spec)

    async def control(
        self, session: str, verb: Verb, *, deadline: float, prompt: Prompt | None = None
    ) -> None:
        self._check()
        self.asked.append(verb)
        if verb not in self.deaf:
            await super().control(session, verb, deadline=deadline, prompt=prompt)

    async def reports(self, session: str, after: int) -> AsyncIterator[Report]:
        self._check()
        told = 0
        async for report in super().reports(session, after):
            self._check()
            yield report
            told += 1
            if told == self.after:
                raise ExecutorUnreachable("the connection broke")

    async def describe(self, session: str) -> HostSession | None:
        self._check()
        return await super().describe(session)

    async def forget(self, session: str) -> None:
        self._check()
        await super().forget(session)


class DriverTests(DrivenTestCase):
    def messages(self, session: Session) -> list[str]:
        events = self.get(self.events.read(session.id, types=["log"]))
        return [str(event.data["message"]) for event in events]

    def test_aTaskRuns(self) -> None:
        """From the queue to the end, with everything that its executor reports."""
        session = self.run_(delivery={"mode": "patch"})
        done = self.until(session, *TERMINAL)
        self.assertEqual(
            self.statuses(session.id), ["queued", "provisioning", "running", "completed"]
        )
        self.assertEqual((done.exitCode, done.error, done.executor), (0, None, "host-1"))
        assert done.started is not None
        assert done.ended is not None
        self.assertLess(session.created, done.started)
        self.assertLess(done.started, done.ended)
        self.assertEqual(
            dict(done.workspace or {}),
            {"snapshotProvider": "copy", "mountPath": "/workspace", "host": "synthetic"},
        )
        self.assertEqual((done.delivery or {})["url"], f"/api/v1/sessions/{session.id}/patch")
        events = self.get(self.events.read(session.id))
        self.assertEqual([event.seq for event in events], list(range(1, len(events) + 1)))
        kinds = {event.type for event in events}
        self.assertEqual(
            kinds,
            {"status", "log", "moment", "delivery"}
            | {"timeline.sessionMoment", "timeline.fsSnapshot.created"},
        )
        self.assertEqual(events[-1].data["status"], "completed")
        self.assertTrue(events[-1].ends)
        self.assertEqual(self.ended, [session.id])
        self.assertEqual((self.driver.driven, self.driver.queued), (0, 0))

    def test_momentsBelongToSnapshots(self) -> None:
        """A moment names the snapshot that was made for it."""
        session = self.run_()
        self.until(session, *TERMINAL)

        def look(connection: Any) -> tuple[Any, Any]:
            return (
                connection.execute(select(moments.c.snapshot)).scalar_one(),
                connection.execute(select(snapshots.c.id)).scalar_one(),
            )

        moment, snapshot = self.successResultOf(self.database.read(look))
        self.assertEqual(moment, snapshot)
        (event,) = self.get(self.events.read(session.id, types=["moment"]))
        self.assertEqual(event.data["snapshotId"], snapshot)

    def test_exitCodes(self) -> None:
        """Defect 6: an agent that fails makes a session that failed, with its code."""
        session = self.run_(prompt="exit=3")
        done = self.until(session, *TERMINAL)
        self.assertEqual((done.status, done.exitCode), ("failed", 3))
        self.assertIn("exit code 3", str(done.error))
        (*_, last) = self.get(self.events.read(session.id))
        self.assertEqual((last.data["status"], last.data["exitCode"]), ("failed", 3))

    def test_hostsThatFail(self) -> None:
        """What the host says of its own failure is the session's error."""
        done = self.until(self.run_(prompt="crash"), *TERMINAL)
        self.assertEqual((done.status, done.error), ("failed", "the synthetic host failed"))
        done = self.until(self.run_(prompt="refuse"), *TERMINAL)
        self.assertEqual(done.status, "failed")
        self.assertIn("refuse", str(done.error))

    def test_pauseAndResume(self) -> None:
        """Defect 6: a pause pauses, and a resume goes on."""
        session = self.run_(prompt="forever")
        self.until(session, "running")
        self.assertEqual(self.get(self.driver.pause(session.id)).status, "pausing")
        self.until(session, "paused")
        before = self.look(session).lastSeq
        self.pass_(30)
        self.assertEqual(self.look(session).lastSeq, before)
        self.fails(self.driver.pause(session.id), Illegal)
        self.get(self.driver.resume(session.id, "go on"))
        self.until(session, "running")
        self.pass_(10)
        self.assertGreater(self.look(session).lastSeq, before + 5)
        self.assertIn("The prompt was taken.", self.messages(session))
        self.assertEqual(
            self.statuses(session.id)[2:], ["running", "pausing", "paused", "resuming", "running"]
        )

    def test_stop(self) -> None:
        """Defect 6: a stop stops; the deadline is in the row until then."""
        session = self.run_(prompt="forever")
        self.until(session, "running")
        stopping = self.get(self.driver.end(session.id, reason="enough"))
        self.assertEqual((stopping.status, stopping.goal), ("stopping", "stopped"))
        self.assertEqual(stopping.stopBy, self.wallClock() + 10)
        self.assertEqual(self.get(self.driver.end(session.id)).status, "stopping")
        done = self.until(session, *TERMINAL)
        self.assertEqual((done.status, done.error, done.stopBy), ("stopped", None, None))
        events = self.get(self.events.read(session.id, types=["status"]))
        self.assertEqual(events[-2].data, {"status": "stopping", "reason": "enough"})
        self.fails(self.driver.end(session.id), Illegal)
        self.assertIsNot(self.get(self.host.describe(session.id)), None)

    def test_cancelCleansUp(self) -> None:
        """Defect 6: a cancelled session leaves nothing with its executor."""
        session = self.run_(prompt="forever")
        self.until(session, "running")
        self.get(self.driver.end(session.id, cancel=True))
        done = self.until(session, *TERMINAL)
        self.assertEqual(done.status, "cancelled")
        self.assertIs(self.get(self.host.describe(session.id)), None)
        self.assertIsNot(self.look(session).forgotten, None)

    def test_cancelWhileStopping(self) -> None:
        """A deletion makes an end of what was only being stopped."""
        session = self.run_(prompt="forever hang")
        self.until(session, "running")
        self.get(self.driver.end(session.id))
        self.pass_(1)
        self.assertEqual(self.look(session).status, "stopping")
        self.get(self.driver.end(session.id, cancel=True))
        self.pass_(0.2)
        self.assertEqual(self.look(session).status, "cancelled")

    def test_stopWhileQueued(self) -> None:
        """What waits for an executor is stopped at once, and no executor hears of it."""
        self.executors.remove("host-1")
        session = self.run_()
        self.assertEqual(self.driver.queued, 1)
        self.assertEqual(self.get(self.driver.end(session.id)).status, "stopped")
        self.assertEqual(self.driver.queued, 0)
        self.executors.add("host-1", self.host)
        self.pass_(20)
        self.assertEqual(self.host.launched, {})
        self.assertEqual(self.statuses(session.id), ["queued", "stopping", "stopped"])

    def test_queue(self) -> None:
        """Sessions beyond the room of all executors wait, and begin in their order."""
        made = [self.run_(prompt="forever") for _ in range(7)]
        self.pass_(3)
        self.assertEqual([self.look(one).status for one in made], ["running"] * 5 + ["queued"] * 2)
        self.get(self.driver.end(made[0].id))
        self.until(made[5], "running")
        self.assertEqual(self.look(made[6]).status, "queued")

    def test_theHostThatIsAskedFor(self) -> None:
        """A session that names its host gets that one or waits for it."""
        session = self.run_(workspace={"executionHostId": "host-2"})
        self.pass_(10)
        self.assertEqual(self.look(session).status, "queued")
        other = SyntheticExecutor(self.clock, self.wallClock)
        self.executors.add("host-2", other)
        self.assertEqual(self.until(session, *TERMINAL).executor, "host-2")
        self.assertEqual(self.host.launched, {})

    def test_othersHosts(self) -> None:
        """A tenant's own host takes no other tenant's sessions."""
        self.executors.remove("host-1")
        self.executors.add("host-3", self.host, tenant="other")
        session = self.run_()
        self.pass_(10)
        self.assertEqual(self.look(session).status, "queued")

    def test_prompt(self) -> None:
        """A running session is told more; any other is not."""
        session = self.run_(prompt="forever")
        running = self.until(session, "running")
        self.get(self.driver.prompt(running, "and this"))
        self.pass_(1)
        self.assertIn("The prompt was taken.", self.messages(session))
        self.get(self.driver.pause(session.id))
        self.fails(self.driver.prompt(self.until(session, "paused"), "x"), Illegal)

    def test_delete(self) -> None:
        """A session that has ended is removed with what its host has of it."""
        session = self.run_()
        done = self.until(session, *TERMINAL)
        self.assertIsNot(self.get(self.host.describe(session.id)), None)
        self.get(self.driver.delete(done))
        self.pass_(1)
        self.assertIs(self.get(self.host.describe(session.id)), None)
        self.assertIs(self.get(self.sessions.get(session.id)), None)

    def test_largeReports(self) -> None:
        """A report beyond an event's size is left out, told of, and stops nothing."""
        session = self.run_(prompt="forever")
        self.until(session, "running")
        run = self.host._runs[session.id]
        run._report("log", level="info", stream="s" * 10, message="m" * 300_000)
        run._report("moment", label="l", note="n" * 300_000)
        run._log("info", "afterwards")
        self.pass_(0.1)
        messages = self.messages(session)
        self.assertIn("afterwards", messages)
        self.assertTrue([text for text in messages if "262144 bytes at most" in text])

    def test_keysLineByLine(self) -> None:
        """F1: a private key whose lines are reported one by one is not stored."""
        session = self.run_(prompt="forever")
        self.until(session, "running")
        run = self.host._runs[session.id]
        for line in ("-----BEGIN RSA PRIVATE KEY-----", "Ab1+" * 16, "Cd2/" * 16):
            run._log("info", line)
            self.pass_(0.1)
        run._log("info", "-----END RSA PRIVATE KEY----- and so on")
        self.pass_(0.1)
        said = "\n".join(self.messages(session))
        for secret in ("Ab1+", "Cd2/", "KEY"):
            self.assertNotIn(secret, said)
        self.assertIn("*** and so on", said)


class DriverPostgreSQLTests(OnPostgreSQL, DriverTests):
    """The same on PostgreSQL."""


class BrokenTests(DrivenTestCase):
    """Connections break, servers start again."""

    host: FlakyExecutor

    def newHost(self) -> FlakyExecutor:
        return FlakyExecutor(self.clock, self.wallClock, slots=5)

    def same(self, session: Session) -> None:
        """The log has each report of the host once, in order."""
        journal = self.host._runs[session.id].journal
        told = [report.message for report in journal if report.kind == "log"]
        events: list[Event] = []
        while more := self.get(self.events.read(session.id, len(events))):
            events += more
        self.assertEqual([event.data["message"] for event in events if event.type == "log"], told)
        self.assertEqual([event.seq for event in events], list(range(1, len(events) + 1)))
        status = "queued"
        for event in events[1:]:
            if event.type == "status":
                self.assertIn(event.data["status"], TRANSITIONS[status])  # type: ignore[index]
                status = str(event.data["status"])

    def test_aConnectionThatBreaksAllTheTime(self) -> None:
        """Each report is an event once, though the connection breaks after every other."""
        self.host.after = 2
        session = self.run_(prompt="steps=30")
        self.assertEqual(self.until(session, *TERMINAL).status, "completed")
        self.same(session)

    def test_restarts(self) -> None:
        """A server that is killed again and again finds each session as it is."""
        chance = random.Random(5)
        made = [self.run_(prompt=f"steps={n * 8} delay=0.3") for n in range(1, 5)]
        for _ in range(25):
            self.pass_(chance.uniform(0.1, 1.5))
            self.stop()
            self.clock.advance(chance.uniform(0, 1))
            self.start()
        for session in made:
            self.assertEqual(self.until(session, *TERMINAL).status, "completed")
            self.same(session)
            self.assertEqual(self.host.launched[session.id], 1)

    def test_restartsInTheMiddleOfEverything(self) -> None:
        """What was asked for before a restart is done after it."""
        for asked, expected in (
            ("pause", "paused"),
            ("stop", "stopped"),
            ("cancel", "cancelled"),
        ):
            session = self.run_(prompt="forever")
            self.until(session, "running")
            self.host.away = True
            if asked == "pause":
                self.get(self.driver.pause(session.id))
            else:
                self.get(self.driver.end(session.id, cancel=asked == "cancel"))
            self.stop()
            self.host.away = False
            self.start()
            self.until(session, expected)
            if asked == "pause":
                self.get(self.driver.resume(session.id))
                self.stop()
                self.start()
                self.until(session, "running")

    def test_restartBetweenDecisionAndLaunch(self) -> None:
        """A session whose launch nobody knows of is launched once."""
        self.host.away = True
        session = self.run_()
        self.until(session, "provisioning")
        self.stop()
        self.host.away = False
        self.start()
        self.assertEqual(self.until(session, *TERMINAL).status, "completed")
        self.assertEqual(self.host.launched, {session.id: 1})

    def test_aHostThatForgot(self) -> None:
        """A session that its host knows nothing of any more has failed."""
        session = self.run_(prompt="forever")
        self.until(session, "running")
        self.stop()
        self.get(self.host.forget(session.id))
        self.start()
        done = self.until(session, *TERMINAL)
        self.assertEqual(done.status, "failed")
        self.assertIn("knows nothing of it", str(done.error))

    def test_away(self) -> None:
        """A host may be away for a while: its sessions go on when it is back."""
        session = self.run_(prompt="steps=20 delay=5")
        self.until(session, "running")
        self.host.away = True
        self.pass_(200, 1)
        self.assertEqual(self.look(session).status, "running")
        self.host.away = False
        self.assertEqual(self.until(session, *TERMINAL).status, "completed")
        self.same(session)

    def test_awayForTooLong(self) -> None:
        """A host that does not come back has lost its sessions."""
        session = self.run_(prompt="forever")
        self.until(session, "running")
        self.host.away = True
        self.pass_(DriverSettings().unreachableLimit + 60, 5)
        done = self.look(session)
        self.assertEqual(done.status, "failed")
        self.assertIn("could not be reached", str(done.error))

    def test_givenUpAndBack(self) -> None:
        """What was given up and runs on when its host is back is cancelled there, and only that."""
        lost, other = self.run_(prompt="forever"), self.run_(prompt="forever")
        for session in (lost, other):
            self.until(session, "running")
        self.host.away = True
        self.get(self.driver.end(lost.id))
        self.until(lost, "failed")
        self.stop()
        self.host.away = False
        self.start()
        self.pass_(1)
        there = {each.session: each.state for each in self.get(self.host.sessions())}
        self.assertEqual(there, {lost.id: "ended", other.id: "running"})
        self.assertEqual(self.look(other).status, "running")

    def test_acknowledged(self) -> None:
        """A host is told that the last report of a session is stored: then, or when it returns."""
        told: list[tuple[str, int]] = []

        async def acknowledge(session: str, seq: int) -> None:
            told.append((session, seq))
            if len(told) == 1:
                raise ExecutorUnreachable("the connection is gone")

        self.host.acknowledge = acknowledge  # type: ignore[method-assign]
        session = self.run_()
        done = self.until(session, *TERMINAL)
        self.assertEqual(told, [(session.id, done.executorSeq)])
        self.stop()
        self.start()
        self.assertEqual(told, [(session.id, done.executorSeq)] * 2)

    def test_cancelWhileAway(self) -> None:
        """What is cancelled while its host is away is removed when it is back."""
        session = self.run_(prompt="forever")
        self.until(session, "running")
        self.host.away = True
        self.pass_(1)
        self.get(self.driver.end(session.id, cancel=True))
        self.pass_(100, 1)
        self.assertEqual(self.look(session).status, "failed")
        self.stop()
        self.host.away = False
        self.start()
        self.pass_(1)
        self.assertIs(self.get(self.host.describe(session.id)), None)

    def test_stopWhileAwayAndNotBegun(self) -> None:
        """What nobody has begun needs no host to end."""
        self.host.away = True
        session = self.run_()
        self.until(session, "provisioning")
        self.get(self.driver.end(session.id))
        self.pass_(15)
        self.assertEqual(self.look(session).status, "stopped")
        self.host.away = False
        self.pass_(15)
        self.assertEqual(self.host.launched, {})

    def test_stopHasADeadline(self) -> None:
        """A host that does not mind a stop is asked to cancel, and then given up."""
        session = self.run_(prompt="forever")
        self.until(session, "running")
        self.host.deaf = {"stop"}
        self.get(self.driver.end(session.id))
        self.pass_(14)
        self.assertEqual(self.look(session).status, "stopping")
        self.pass_(2)
        self.assertEqual(self.host.asked, ["stop", "cancel"])
        self.assertEqual(self.look(session).status, "stopped")

        session = self.run_(prompt="forever")
        self.until(session, "running")
        self.host.deaf = {"stop", "cancel"}
        self.get(self.driver.end(session.id))
        self.pass_(31)
        done = self.look(session)
        self.assertEqual((done.status, done.error), ("failed", "it could not be stopped"))
        self.pass_(1)
        self.assertEqual(self.driver.driven, 0)

    def test_theDatabaseIsAway(self) -> None:
        """Reports wait while the database is lost, and are stored once."""
        session = self.run_(prompt="steps=20")
        self.until(session, "running")
        self.lose()
        self.pass_(10)
        self.find()
        self.assertEqual(self.until(session, *TERMINAL).status, "completed")
        self.same(session)

    def test_aPauseThatIsRefused(self) -> None:
        """A session that its host does not pause runs on, and its log says why."""
        session = self.run_(prompt="forever")
        self.until(session, "running")

        async def refuse(*args: object, **fields: object) -> None:
            raise ExecutorRefused("there is no freezer here")

        self.patch(self.host, "control", refuse)
        self.get(self.driver.pause(session.id))
        self.pass_(1)
        self.assertEqual(self.look(session).status, "running")
        events = self.get(self.events.read(session.id, types=["log"]))
        self.assertTrue([e for e in events if "no freezer" in str(e.data["message"])])

    def test_manyReports(self) -> None:
        """A flood of reports is read only as fast as it is stored."""
        session = self.run_(prompt="forever")
        self.until(session, "running")
        run = self.host._runs[session.id]
        self.workers.holding = True
        for number in range(5000):
            run._log("info", str(number))
        read = self.driver._runs[session.id]
        self.assertLessEqual(len(read._buffer), 1000)
        self.workers.holding = False
        while self.workers.held:
            self.workers.answer()
        self.pass_(1)
        self.same(session)

    def test_stoppingTheDriver(self) -> None:
        """A driver that was stopped leaves no timer, and begins nothing."""
        session = self.run_(prompt="forever")
        self.until(session, "running")
        self.get(self.driver.end(session.id))
        self.stop()
        self.host.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.driver.submit(self.newTask())
        self.assertEqual(self.driver.queued, 0)
        self.start()

    def test_refusedLaunchesNeedNoHost(self) -> None:
        """A report that comes after the end changes nothing."""
        session = self.run_(prompt="forever")
        self.until(session, "running")
        stopped = Deferred.fromCoroutine(self.driver.end(session.id, cancel=True))
        self.assertEqual(self.successResultOf(stopped).status in ("stopping", "cancelled"), True)
        self.until(session, "cancelled")
        before = self.look(session).lastSeq
        self.get(self.sessions.change(session.id, "started"))
        self.assertEqual(self.look(session).lastSeq, before)


class BeginTests(DrivenTestCase):
    def test_theDatabaseIsAwayAtTheStart(self) -> None:
        """A server that starts while the database is lost takes its tasks up later."""
        session = self.run_(prompt="forever")
        self.until(session, "running")
        self.stop()
        self.get(self.host.forget(session.id))
        self.lose()
        self.driver = Driver(self.clock, self.wallClock, self.sessions, self.executors, prepare)
        self.driver.begin()
        self.pass_(12)
        self.find()
        self.assertEqual(self.until(session, *TERMINAL).status, "failed")

    def test_stoppedBeforeItBegan(self) -> None:
        """Who is stopped while waiting for the database waits no more."""
        self.stop()
        self.lose()
        self.driver = Driver(self.clock, self.wallClock, self.sessions, self.executors, prepare)
        self.driver.begin()
        self.get(self.driver.stop())
        self.host.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.find()


class TokenTests(DrivenTestCase):
    def test_whatEndedBeforeAKill(self) -> None:
        """A server that was killed before it ended a session's tokens does so when it starts."""
        session = self.run_()
        self.until(session, *TERMINAL)
        token, _ = self.get(self.tokens.create("session", name="s", session=session.id))
        self.ended.clear()
        self.stop()
        self.start()
        self.assertEqual(self.ended, [session.id])
        self.get(self.tokens.revoke(token.id))
        self.ended.clear()
        self.stop()
        self.start()
        self.assertEqual(self.ended, [])

    def test_anEndThatFails(self) -> None:
        """What cannot be ended is logged, and the session is cleaned up nevertheless."""

        async def fail(session: Session) -> None:
            raise ZeroDivisionError

        self.patch(self, "onEnded", fail)
        self.stop()
        self.start()
        session = self.run_(prompt="forever")
        self.until(session, "running")
        self.get(self.driver.end(session.id, cancel=True))
        self.until(session, "cancelled")
        self.assertIsNot(self.look(session).forgotten, None)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
