"""Prompts are kept until the host has them, and handed over once."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from helix_revdial.sessions.executor import ExecutorRefused, ExecutorUnreachable, Prompt, Verb
from helix_revdial.sessions.lifecycle import TERMINAL
from helix_revdial.sessions.prompts import MAX_WAITING
from helix_revdial.sessions.records import Session
from helix_revdial.sessions.run import PROMPT_ANSWER
from helix_revdial.sessions.synthetic import SyntheticExecutor
from tests.sessions.worlds import DrivenTestCase
from tests.storage.postgresql import OnPostgreSQL


class Host(SyntheticExecutor):
    """
    One that takes prompts in its own time.

    @ivar fails: what comes of the next ones: C{"before"} they are taken the connection
        breaks, or C{"after"}; C{"refuse"}; C{"silent"}; or nothing of it.
    @ivar told: every prompt that came.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fails = ""
        self.told: list[Prompt] = []

    async def control(
        self, session: str, verb: Verb, *, deadline: float, prompt: Prompt | None = None
    ) -> None:
        if self.fails == "before":
            raise ExecutorUnreachable("the connection is gone")
        if prompt is not None:
            self.told.append(prompt)
            if self.fails == "silent":
                await Deferred()
            if self.fails == "refuse":
                raise ExecutorRefused("this agent takes no prompts")
        await super().control(session, verb, deadline=deadline, prompt=prompt)
        if self.fails == "after":
            raise ExecutorUnreachable("the answer broke off")


class PromptTests(DrivenTestCase):
    host: Host

    def newHost(self) -> Host:
        return Host(self.clock, self.wallClock)

    def running(self) -> Session:
        return self.until(self.run_(prompt="forever"), "running")

    def taken(self, session: Session) -> int:
        events = self.get(self.events.read(session.id, types=["log"]))
        return sum(event.data["message"] == "The prompt was taken." for event in events)

    def test_handedOver(self) -> None:
        """What was told and taken is no longer kept."""
        session = self.running()
        for text in ("one", "two"):
            self.get(self.driver.prompt(session, text))
        self.assertEqual(self.host.told, [Prompt(1, "one"), Prompt(2, "two")])
        self.pass_(1)
        self.assertEqual(self.taken(session), 2)
        self.assertEqual(list(self.look(session).prompts), [])

    def test_serverKilled(self) -> None:
        """
        A server that is killed before, or after, the host has a prompt hands it over when
        it is back, and the host takes it once: of a resume, too.
        """
        for fails in ("before", "after"):
            for resume in (False, True):
                session = self.running()
                if resume:
                    self.get(self.driver.pause(session.id))
                    self.until(session, "paused")
                self.host.fails = fails
                if resume:
                    self.get(self.driver.resume(session.id, "more"))
                else:
                    self.get(self.driver.prompt(session, "more"))
                self.stop()
                self.assertEqual([each["text"] for each in self.look(session).prompts], ["more"])
                self.host.fails = ""
                self.start()
                self.until(session, "running")
                self.pass_(15)
                self.assertEqual(self.taken(session), 1, (fails, resume))
                self.assertEqual(list(self.look(session).prompts), [])

    def test_away(self) -> None:
        """Prompts to a host that is away wait, in order, and only so many."""
        session = self.running()
        self.host.fails = "before"
        self.get(self.driver.prompt(session, "0"))
        for number in range(1, MAX_WAITING):
            self.get(self.sessions.prompt(session.id, str(number)))
        self.fails(self.driver.prompt(session, "too many"), ExecutorUnreachable)
        self.host.fails = ""
        self.pass_(15)
        self.assertEqual([each.text for each in self.host.told], list(map(str, range(MAX_WAITING))))
        self.get(self.driver.prompt(session, "again"))
        self.assertEqual(self.host.told[-1], Prompt(MAX_WAITING + 1, "again"))

    def test_refused(self) -> None:
        """What an agent does not take is told, and is not tried again; the next one is."""
        session = self.running()
        self.host.fails = "refuse"
        self.fails(self.driver.prompt(session, "one"), ExecutorRefused)
        self.host.fails = ""
        self.get(self.driver.prompt(session, "two"))
        self.assertEqual([each.text for each in self.host.told], ["one", "two"])

    def test_slow(self) -> None:
        """Nobody waits for long for a host that does not answer; the prompt is kept."""
        session = self.running()
        self.host.fails = "silent"
        told = Deferred.fromCoroutine(self.driver.prompt(session, "one"))
        self.clock.advance(PROMPT_ANSWER - 1)
        self.assertNoResult(told)
        self.clock.advance(1)
        self.successResultOf(told)
        self.assertEqual([each["text"] for each in self.look(session).prompts], ["one"])

    def test_moreUrgent(self) -> None:
        """A prompt that a host does not answer to holds up neither a stop nor who asked."""
        session = self.running()
        self.host.fails = "silent"
        told = Deferred.fromCoroutine(self.driver.prompt(session, "one"))
        self.assertNoResult(told)
        self.get(self.driver.end(session.id))
        self.successResultOf(told)
        self.assertEqual(self.until(session, *TERMINAL).status, "stopped")


class PostgreSQLPromptTests(OnPostgreSQL, PromptTests):
    """The same on PostgreSQL."""
