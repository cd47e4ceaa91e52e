"""psql and a database beside an agent, through C{helix forward} and a port of the server."""

from __future__ import annotations

import json
import random
import signal
import subprocess
from typing import Any

from tests.needs import needsProgram
from tests.storage.postgresql import cluster, needsPostgreSQL

from .fleet import LIMIT, FleetCase, freePort
from .test_forward import ForwardCase

ROWS = 40_000
"""Lines of a table of some megabytes."""


@needsPostgreSQL
@needsProgram("psql", package="postgresql")
class PsqlTests(ForwardCase):
    """What people do with a database, by each way."""

    def setUp(self) -> None:
        FleetCase.setUp(self)
        port = freePort()
        self.fleet = self.server(doors=f'[forwards]\nports = "{port}"\n')
        self.runner = self.token(self.fleet, kind="runner", patterns=["wolf-*"])
        self.operator = self.token(self.fleet, kind="user", user="ann", role="operator")
        self.wolf(f"db=unix://{cluster().directory}/.s.PGSQL.5432")

    def forwarded(self) -> int:
        """A port of C{helix forward}."""
        line = self.start("forward", "wolf-1", "db").stdout.readline().decode()
        return int(line.split()[0].rpartition(":")[2])

    def served(self) -> int:
        """A port of the server."""
        status, body = self.fleet.request(
            "POST",
            "/api/v1/admin/forwards",
            self.fleet.admin,
            {"listen": "tcp:0", "runner": "wolf-1", "target": "db"},
        )
        self.assertEqual(status, 201, body)
        return int(json.loads(body)["listen"].split(":")[1])

    def psql(self, port: int, *arguments: str) -> list[str]:
        return [
            "psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "-vON_ERROR_STOP=1",
            f"host=127.0.0.1 port={port} user=helix dbname=postgres connect_timeout={LIMIT:g}",
            *arguments,
        ]  # fmt: skip

    def run_(self, port: int, *arguments: str, given: bytes = b"") -> bytes:
        done = subprocess.run(
            self.psql(port, *arguments),
            input=given, capture_output=True, env=self.environment(), timeout=4 * LIMIT,
        )  # fmt: skip
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        return done.stdout

    def reading(self, port: int) -> Any:
        """A psql that reads statements."""
        process = subprocess.Popen(
            self.psql(port), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=self.environment(),
        )  # fmt: skip

        def end() -> None:
            process.kill()
            process.communicate()

        self.addCleanup(end)
        return process

    def say(self, process: Any, statement: str) -> bytes:
        """@return: The next line that it prints."""
        process.stdin.write(statement.encode() + b"\n")
        process.stdin.flush()
        line: bytes = process.stdout.readline()
        return line

    def test_psql(self) -> None:
        """A query, a table both ways, an idle listener, a statement that is cancelled."""
        chance = random.Random(5)
        table = b"".join(
            b"%d\t%s\n" % (number, chance.randbytes(40).hex().encode()) for number in range(ROWS)
        )
        for way in (self.forwarded, self.served):
            port = way()
            with self.subTest(way.__name__):
                self.assertEqual(self.run_(port, "-c", "SELECT 6 * 7"), b"42\n")
                # On the one connection, since the table is a temporary one.
                found = self.run_(
                    port,
                    "-c", "CREATE TEMPORARY TABLE things (number int, word text)",
                    "-c", "COPY things FROM STDIN",
                    "-c", "COPY things TO STDOUT",
                    given=table,
                )  # fmt: skip
                self.assertTrue(found == table, f"{len(found):,} bytes of {len(table):,}")
                listener = self.reading(port)
                self.assertEqual(self.say(listener, "LISTEN news; SELECT 'hears';"), b"hears\n")
                self.run_(port, "-c", "NOTIFY news, 'hello'")
                self.assertEqual(self.say(listener, "SELECT 'still there';"), b"still there\n")
                self.assertIn(b'"news" with payload "hello"', listener.stdout.readline())
                sleeper = self.reading(port)
                self.assertEqual(self.say(sleeper, "SELECT 'sleeps';"), b"sleeps\n")
                sleeper.stdin.write(b"SELECT pg_sleep(600);\n")
                sleeper.stdin.flush()
                self.asleep(port)
                # psql asks for it on a connection of its own.
                sleeper.send_signal(signal.SIGINT)
                _, said = sleeper.communicate(timeout=LIMIT)
                self.assertIn(b"canceling statement due to user request", said)

    def asleep(self, port: int) -> None:
        """Wait until the statement runs."""
        statement = (
            "DO $$ BEGIN FOR i IN 1..1500 LOOP"
            " EXIT WHEN EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
            " AND query LIKE 'SELECT pg_sleep(600)%');"
            " PERFORM pg_sleep(0.01), pg_stat_clear_snapshot(); END LOOP; END $$"
        )
        self.run_(port, "-c", statement)
