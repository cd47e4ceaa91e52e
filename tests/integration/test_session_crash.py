"""
A server that is killed in the middle of driving sessions, again and again on the
same database.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from helix_revdial.sessions.driver import Driver
from helix_revdial.sessions.events import EventLog
from helix_revdial.sessions.executors import Executors
from helix_revdial.sessions.sessions import Sessions
from helix_revdial.sessions.synthetic import SyntheticExecutor
from helix_revdial.storage.database import Database
from helix_revdial.storage.threads import SameThread
from tests.sessions.worlds import prepare
from tests.storage.databases import newURL
from tests.storage.postgresql import OnPostgreSQL

from .sound_logs import SoundLogsCase

T = TypeVar("T")

ROOT = Path(__file__).parents[2]

ROUNDS = 4


class SessionCrashTests(SoundLogsCase):
    """
    Each round starts the program on what the round before left behind, kills it
    with SIGKILL at some point, and looks at what is there.
    """

    def get(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    def crash(self, url: str, seconds: float) -> list[list[str]]:
        """Run the program, and kill it a moment after it has made a session."""
        writer = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.session_writer", url],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(writer.wait)
        self.addCleanup(writer.kill)
        assert writer.stdout is not None
        with writer.stdout as output:
            told = [output.readline()]
            time.sleep(seconds)
            writer.kill()
            told += output.readlines()
        self.assertEqual(writer.wait(10), -9, f"the writer ended by itself after {told}")
        return [line.split() for line in told if line.endswith("\n")]

    def finish(self, url: str) -> None:
        """A server that is let work brings every session to its end."""
        database = Database(url, SameThread())
        self.addCleanup(database.engine.dispose)
        clock = Clock()
        log = EventLog(database, time.time)
        made = Sessions(database, clock, time.time, log)
        executors = Executors(clock, time.time)
        executors.add("host-1", SyntheticExecutor(clock, time.time, slots=1000))
        driver = Driver(clock, time.time, made, executors, prepare)
        self.get(driver.start())
        clock.pump([1.0] * 40)
        for session in self.get(made.unfinished()):
            self.assertIn("forever", session.request.prompt, session)
        self.get(driver.stop())

    def test_killedAnywhere(self) -> None:
        """
        Killed at any point, the next start accepts what is there; nothing that was
        told is lost, no event is doubled or missing, and everything ends.
        """
        url = newURL(self)
        seed = random.randrange(1 << 32)
        chance = random.Random(seed)
        told: list[list[str]] = []
        try:
            for _ in range(ROUNDS):
                told += self.crash(url, chance.uniform(0.0, 0.6))
                self.check(url, told)
            self.finish(url)
            self.check(url, told)
        except AssertionError as error:
            raise AssertionError(f"with seed {seed}: {error}") from error
        self.assertGreater(len(told), 20)


class SessionCrashPostgreSQLTests(OnPostgreSQL, SessionCrashTests):
    """The same on PostgreSQL."""
