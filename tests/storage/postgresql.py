"""
A PostgreSQL server that is thrown away: started from Debian's package by the first
test that wants one, once for each process, and gone when the process is.

It listens on a unix socket only, in a directory of its own that nobody else may
enter.  PostgreSQL refuses to run as root: then it runs as another user.
"""

from __future__ import annotations

import atexit
import glob
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote

from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.storage.engines import newEngine, parseURL
from helix_revdial.storage.tables import metadata
from tests.needs import needsProgram

T = TypeVar("T", bound=Callable[..., Any])

START_LIMIT = 60.0
"""Seconds in which the server must be there."""

_DIRECTORIES = sorted(glob.glob("/usr/lib/postgresql/*/bin"))


def needsPostgreSQL(decorated: T) -> T:
    """Mark a test (a method or a class) that runs on PostgreSQL."""
    return needsProgram("initdb", package="postgresql", directories=_DIRECTORIES)(decorated)


@needsPostgreSQL
class OnPostgreSQL(SynchronousTestCase):
    """
    Mixed into a test case, has all its databases be PostgreSQL's::

        class ThingTests(AccessTestCase): ...

        class ThingPostgreSQLTests(OnPostgreSQL, ThingTests): ...
    """

    databaseKind: Literal["postgresql"] = "postgresql"


class Cluster:
    """
    One server.

    @ivar url: its database, without a query string.
    """

    def __init__(self) -> None:
        """@raise AssertionError: it does not start; with what it said."""
        self._directory = Path(tempfile.mkdtemp(prefix="pg-"))
        self._programs = Path(_DIRECTORIES[-1])
        self._asUser: list[str] = []
        if os.geteuid() == 0:
            user = _user()
            os.chown(self._directory, user.pw_uid, user.pw_gid)
            self._asUser = ["--reuid", str(user.pw_uid), "--regid", str(user.pw_gid)]
            self._asUser += ["--clear-groups"]
        self._log = self._directory / "log"
        self._server: subprocess.Popen[bytes] | None = None
        atexit.register(self.stop)
        self._initialise()
        self.start()
        self._prepared = False

    @property
    def url(self) -> str:
        """Where the database is."""
        return f"postgresql+psycopg://helix@/postgres?host={quote(str(self._directory), safe='')}"

    @property
    def directory(self) -> Path:
        """Where its socket is."""
        return self._directory

    def schemaURL(self) -> tuple[str, Callable[[], None]]:
        """
        A schema of its own.

        @return: the URL by which it looks like an empty database, and what drops it.
        """
        schema = f"t_{secrets.token_hex(8)}"
        self.run(f"CREATE SCHEMA {schema}")
        options = quote(f"-c search_path={schema} -c lock_timeout=3000")
        return f"{self.url}&options={options}", lambda: self.run(f"DROP SCHEMA {schema} CASCADE")

    def emptied(self) -> str:
        """The URL of the one database that has every table, with nothing in them now."""
        if not self._prepared:
            engine = newEngine(parseURL(self.url), 1)
            with engine.begin() as connection:
                metadata.create_all(connection)
            engine.dispose()
            self._prepared = True
        else:
            self.run("; ".join(f"DELETE FROM {table}" for table in metadata.tables))
        return self.url

    def stop(self) -> None:
        """End it at once, and remove what it had."""
        if self._server is not None and self._server.poll() is None:
            self._server.send_signal(signal.SIGQUIT)
            try:
                self._server.wait(10)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def halt(self) -> None:
        """Cut all connections and end; L{start} finds what was committed."""
        assert self._server is not None
        # Killed outright it would lose that: it does not wait for its disk.
        self._server.send_signal(signal.SIGINT)
        self._server.wait(START_LIMIT)

    def run(self, statement: str) -> None:
        """Carry out a statement in it."""
        engine = create_engine(self.url)
        with engine.begin() as connection:
            connection.execute(text(statement))
        engine.dispose()

    def _command(self, program: str, *arguments: str) -> list[str]:
        # Should this process be killed, the server ends too.
        command = ["setpriv", "--pdeathsig", "QUIT", *self._asUser, "--"]
        return [*command, str(self._programs / program), *arguments]

    def _initialise(self) -> None:
        done = subprocess.run(
            self._command(
                "initdb",
                f"--pgdata={self._directory}/data",
                "--username=helix",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
                "--no-instructions",
            ),
            cwd=self._directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"initdb failed: {done.stdout}"

    def start(self) -> None:
        """Have it answer."""
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._directory),
            # It is thrown away: what survives a crash of the machine is no question.
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "autovacuum": "off",
            "shared_buffers": "16MB",
            "max_connections": "100",
        }
        options = [word for item in settings.items() for word in ("-c", "=".join(item))]
        with self._log.open("wb") as log:
            self._server = subprocess.Popen(
                self._command("postgres", "-D", f"{self._directory}/data", *options),
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_LIMIT
        while True:
            try:
                self.run("SELECT 1")
            except OperationalError as error:
                if self._server.poll() is not None or time.monotonic() > deadline:
                    said = self._log.read_text(errors="replace")
                    raise AssertionError(f"PostgreSQL does not answer: {said}") from error
                time.sleep(0.02)
            else:
                return


def _user() -> pwd.struct_passwd:
    """Whom to run as instead of root: the package's own user, where there is one."""
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise AssertionError("there is no user that PostgreSQL could run as")


@cache
def cluster() -> Cluster:
    """This process's server."""
    return Cluster()
