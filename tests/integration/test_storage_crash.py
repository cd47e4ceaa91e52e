"""
A process that is killed in the middle of its writes, again and again on the
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

from sqlalchemy import func, select
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.access.generations import Generations
from helix_revdial.access.tokens import Tokens
from helix_revdial.sessions.sessions import Sessions
from helix_revdial.storage.database import Database
from helix_revdial.storage.schema import upgrade
from helix_revdial.storage.tables import audit
from helix_revdial.storage.threads import SameThread

T = TypeVar("T")

ROOT = Path(__file__).parents[2]


class CrashTests(SynchronousTestCase):
    """
    Each round starts the writer on what the round before left behind, kills
    it with SIGKILL at some point, and looks at what is there.
    """

    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute()
        self.admin = self.path.with_name(self.path.name + ".admin")
        self.url = f"sqlite:///{self.path}"

    def get(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What a coroutine that does not wait returns."""
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    def crash(self, lines: int, seconds: float) -> list[list[str]]:
        """
        Run the writer, and kill it a moment after it has told so many lines.

        @return: what it had told, without the last line, which may be cut.
        """
        writer = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.storage_writer", self.url, str(self.admin)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(writer.wait)
        self.addCleanup(writer.kill)
        assert writer.stdout is not None
        with writer.stdout as output:
            told = [output.readline() for _ in range(lines)]
            time.sleep(seconds)
            writer.kill()
            told += output.readlines()
        self.assertEqual(writer.wait(10), -9, f"the writer ended by itself after {told}")
        return [line.split() for line in told if line.endswith("\n")]

    def check(self, told: list[list[str]]) -> None:
        """Everything that was told is there, and nothing is there by half."""
        upgrade(self.url)
        database = Database(self.url, SameThread())
        self.addCleanup(database.engine.dispose)
        self.get(database.checkRevision())

        def look(connection: Any) -> tuple[str, int]:
            pairs = connection.execute(select(func.count()).select_from(audit)).scalar()
            return connection.exec_driver_sql("PRAGMA integrity_check").scalar(), pairs

        integrity, pairs = self.successResultOf(database.read(look))
        self.assertEqual(integrity, "ok")
        self.assertEqual(pairs % 2, 0, "half of a transaction is there")

        clock = Clock()
        tokens = Tokens(database, clock, time.time)
        sessions = Sessions(database, clock, time.time)
        revoked = {words[1] for words in told if words[0] == "revoked"}
        secrets = [words[1] for words in told if words[0] == "token"]
        for index, secret in enumerate(secrets):
            found = self.get(tokens.authenticate(secret))
            if secret in revoked:
                self.assertIs(found, None, "a revoked token came back")
            elif index + 2 < len(secrets):
                self.assertIsNot(found, None, "a token was lost")
        for words in told:
            if words[0] == "session":
                self.assertIsNot(self.get(sessions.get(words[1])), None, "a session was lost")
        highest = max((int(w[1]) for w in told if w[0] == "generation"), default=0)
        self.assertGreater(self.get(Generations(database).next()), highest)
        # Whatever was cut short, there is an admin after the next start.
        self.get(tokens.ensureAdmin(self.admin))
        principal = self.get(tokens.authenticate(self.admin.read_text().strip()))
        assert principal is not None, "nobody can administer the server"
        self.assertTrue(principal.hasRole("admin"))

    def test_killedAnywhere(self) -> None:
        """
        Killed while it makes the tables, the admin token, or anything else:
        the next start accepts what is there, and nothing that was confirmed
        is lost.
        """
        seed = random.randrange(1 << 32)
        chance = random.Random(seed)
        told: list[list[str]] = []
        try:
            # The first rounds end somewhere in the first start.
            for lines, longest in ((1, 0.03), (1, 0.1), (2, 0.05), (10, 0.2), (40, 0.2)):
                told += self.crash(lines, chance.uniform(0, longest))
                self.check(told)
        except AssertionError as error:
            raise AssertionError(f"with seed {seed}: {error}") from error
        self.assertGreater(len(told), 40)
