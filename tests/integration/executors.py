"""
The executor as a process, for tests: started, killed, asked over its socket.

Everything blocks, with limits: the tests are about other processes.  As root each test has
users of its own; otherwise all is one user, and what needs more is skipped.
"""

from __future__ import annotations

import atexit
import functools
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec
from twisted.trial.unittest import SkipTest, SynchronousTestCase

import helix_revdial
from helix_revdial.executor import demonstration
from helix_revdial.executor.process_table import ofUser, processTable
from tests.needs import missing

from .forked import PLAIN, Forked, Running

ROOT = Path(helix_revdial.__file__).parent.parent
TWISTD = str(Path(sys.executable).with_name("twistd"))
LIMIT = 30.0
"""Seconds that anything may take before a test says what it waited for."""


def until(condition: Callable[[], Any], what: str, limit: float = LIMIT) -> Any:
    """Wait for C{condition}, and give what it gave."""
    end = time.monotonic() + limit
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"after {limit:g} s still not: {what}")
        time.sleep(0.02)


class _Connection(http.client.HTTPConnection):
    """HTTP on a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=LIMIT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(LIMIT)
        self.sock.connect(self._path)


@functools.cache
def copiedPackages() -> str:
    """
    The packages where every user reads them, for a checkout in somebody's home: copied
    once for all tests of a process, without those that no program of ours imports.
    """
    target = Path(tempfile.mkdtemp(prefix="hx-packages-"))
    atexit.register(shutil.rmtree, target, ignore_errors=True)
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    left = ("__pycache__", "*mypy*", "pip*", "ruff*", "schemathesis*", "hypothesis*", "pygments*")
    ignore = shutil.ignore_patterns(*left, "jsonschema_rs*", "pytest*", "test", "tests")
    shutil.copytree(packages, target, ignore=ignore, dirs_exist_ok=True)
    shutil.copytree(ROOT / "helix_revdial", target / "helix_revdial", dirs_exist_ok=True)
    shutil.copytree(
        ROOT / "twisted" / "plugins", target / "twisted" / "plugins", dirs_exist_ok=True
    )
    subprocess.run(["chmod", "-R", "a+rX", str(target)], check=True, timeout=LIMIT)
    return str(target)


def commonPython(directory: Path) -> str:
    """
    A Python that every user of the host can run: this one, or, where it is in somebody's
    home, the host's own of the same version, with the same packages.
    """
    nobody = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}

    def runs(python: str) -> bool:
        argv = [python, "-c", "import helix_revdial, twisted, msgspec"]
        try:
            done = subprocess.run(argv, cwd="/", capture_output=True, timeout=LIMIT, **nobody)  # type: ignore[call-overload]
        except OSError:
            return False
        return bool(done.returncode == 0)

    if runs(sys.executable):
        return sys.executable
    other = shutil.which(f"python3.{sys.version_info[1]}", path="/usr/bin:/usr/local/bin")
    if other is None:
        return ""
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    wrapper = directory / "python"
    for where in (lambda: f"{ROOT}:{packages}", copiedPackages):
        wrapper.write_text(f'#!/bin/sh\nPYTHONPATH="{where()}" exec {other} "$@"\n')
        wrapper.chmod(0o755)
        if runs(str(wrapper)):
            return str(wrapper)
    return ""


def unchanged(look: Callable[[], int], seconds: float = 0.4) -> bool:
    """Whether a number stays what it is for some time."""
    before = look()
    time.sleep(seconds)
    return look() == before


class ExecutorCase(SynchronousTestCase):
    """
    An executor of its own for each test.

    @ivar settings: More lines of its file.
    @ivar protocols: By which it takes repositories.
    @ivar unprivileged: Whether it runs as nobody, where the test runs as root.
    @ivar maxSessions: How many it keeps.
    """

    settings: ClassVar[str] = ""
    protocols: ClassVar[tuple[str, ...]] = ("file", "https")
    unprivileged: ClassVar[bool] = False
    maxSessions: ClassVar[int] = 16

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="hx-"))
        self.directory.chmod(0o711)
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.asRoot = os.geteuid() == 0 and not self.unprivileged
        self.firstUser = 400_000 + os.getpid() % 20_000 * 40
        self.python = commonPython(self.directory)
        self.script = self.directory / "demonstration.py"
        shutil.copy(demonstration.__file__, self.script)
        self.script.chmod(0o644)
        self.state = self.directory / "state"
        self.socket = str(self.directory / "executor.sock")
        self.log = self.directory / "log"
        self.config = self.directory / "executor.toml"
        self.config.write_text(
            f'listen = "{self.socket}"\nstate_directory = "{self.state}"\n'
            f'python = "{self.python or sys.executable}"\n'
            f"first_user = {self.firstUser}\nmax_sessions = {self.maxSessions}\n"
            f"protocols = {json.dumps(self.protocols)}\n"
            f"{self.moreSettings()}"
        )
        self.process: Running | None = None
        self.addCleanup(self.end)
        self.start()

    def moreSettings(self) -> str:
        """The lines of L{settings}, or what is known only now."""
        return self.settings

    # The program

    def program(self) -> list[str]:
        """How it is started."""
        arguments = ["-n", "--pidfile=", "helix-revdial-executor", "-c", str(self.config)]
        if not self.unprivileged or os.geteuid() != 0:
            return [TWISTD, *arguments]
        self.needPython()
        os.chown(self.directory, 65534, 65534)
        twistd = "from twisted.scripts.twistd import run; run()"
        drop = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
        return [*drop, self.python, "-c", twistd, *arguments]

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with self.log.open("ab") as log:
            program, *arguments = self.program()
            if program == TWISTD:
                self.process = Forked(
                    PLAIN,
                    arguments,
                    output=log,
                    environment=os.environ,
                    directory=self.directory,
                )
            else:
                self.process = subprocess.Popen(
                    [program, *arguments], stdout=log, stderr=log, cwd=self.directory
                )
        until(self._answers, "the executor answers")

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            self.fail(f"the executor did not start:\n{self.log.read_text()}")
        try:
            return self.ask("GET", "/v1/host")[0] == 200
        except OSError:
            return False

    def kill(self) -> None:
        """Kill it, as a crash does."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(LIMIT)

    def end(self) -> None:
        """Remove every session and end the program; nothing may be left of either."""
        process = self.process
        assert process is not None
        if process.poll() is not None:
            self.start()
            process = self.process
        assert process is not None
        for item in self.ask("GET", "/v1/sessions")[1]["items"]:
            self.ask("DELETE", f"/v1/sessions/{item['session']}")
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            self.fail(f"the executor did not stop:\n{self.log.read_text()}")
        self.assertEqual(self.left(), set(), f"processes are left:\n{self.log.read_text()}")
        self.assertEqual(list((self.state / "sessions").iterdir()), [])
        self.assertNotIn("Traceback", self.log.read_text())

    def left(self) -> set[int]:
        """Every process of the sessions' users, and every supervisor of ours."""
        table = processTable()
        users = range(self.firstUser, self.firstUser + 40)
        found = {pid for user in users for pid in ofUser(table, user)}
        for pid in table:
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if str(self.state).encode() in command and not table[pid].dead:
                found.add(pid)
        return found

    def needPython(self) -> None:
        """What follows is not to be had without a Python that every user may run."""
        if not self.python:
            missing("a Python of this version that every user may run", package="python3")

    def needRoot(self) -> None:
        """What follows is not to be had without users of one's own."""
        if not self.asRoot:
            raise SkipTest("sessions have users of their own only as root")

    # Asking it

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """@return: The status, and the document or the text."""
        connection = _Connection(self.socket)
        try:
            headers = {}
            content: bytes | None = None
            if isinstance(body, bytes):
                content, headers["Content-Type"] = body, "application/octet-stream"
            elif body is not None:
                content, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
            connection.request(method, path, content, headers)
            answer = connection.getresponse()
            data = answer.read()
            kind = answer.headers.get_content_type()
            return answer.status, json.loads(data) if kind.endswith("json") else data
        finally:
            connection.close()

    def spec(
        self,
        prompt: str,
        *,
        repo: dict[str, Any] | None = None,
        delivery: dict[str, Any] | None = None,
        command: list[str] | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """The specification of a session that runs the demonstration."""
        agent = {
            "type": "demonstration",
            "command": command or [self.hostPython, str(self.script), "--file", "{promptFile}"],
            "prompts": "input",
        }
        agent.update(more.pop("agent", {}))
        return {
            "session": f"ses_{os.urandom(10).hex()}",
            "prompt": prompt,
            "agent": agent,
            "repo": repo or {"mode": "none"},
            "runtime": {"type": "local"},
            **({"delivery": delivery} if delivery else {}),
            **more,
        }

    @property
    def hostPython(self) -> str:
        """A Python for the demonstration: the standard library does."""
        return self.python or shutil.which("python3", path="/usr/bin") or sys.executable

    def launch(self, prompt: str, **more: Any) -> str:
        """Begin a session: its id."""
        spec = self.spec(prompt, **more)
        status, document = self.ask("PUT", f"/v1/sessions/{spec['session']}", spec)
        self.assertEqual(status, 201, document)
        found: str = spec["session"]
        return found

    def describe(self, session: str) -> dict[str, Any]:
        """What the host knows of it."""
        status, document = self.ask("GET", f"/v1/sessions/{session}")
        self.assertEqual(status, 200, document)
        assert isinstance(document, dict)
        return document

    def order(self, session: str, verb: str, **body: Any) -> None:
        """Have it do something, which it must not refuse."""
        status, document = self.ask("POST", f"/v1/sessions/{session}/{verb}", body)
        self.assertEqual(status, 202, document)

    def reports(self, session: str, after: int = 0) -> list[dict[str, Any]]:
        """Every report up to the last one."""
        return list(self.follow(session, after))

    def follow(self, session: str, after: int = 0) -> Iterator[dict[str, Any]]:
        """The reports as they come, until the stream ends."""
        connection = _Connection(self.socket)
        connection.request("GET", f"/v1/sessions/{session}/reports?after={after}")
        answer = connection.getresponse()
        try:
            for line in answer:
                if line.strip():
                    yield json.loads(line)
        finally:
            connection.close()

    def said(self, session: str, message: str) -> dict[str, Any]:
        """Wait for a line of output."""
        found: list[dict[str, Any]] = []

        def look() -> None:
            try:
                for report in self.follow(session):
                    if report.get("message") == message:
                        found.append(report)
                        return
            except (OSError, http.client.HTTPException, json.JSONDecodeError):
                return

        looking = threading.Thread(target=look, daemon=True)
        looking.start()
        looking.join(LIMIT)
        if not found:
            self.fail(f"it did not say {message!r}: {self.tail(session)}")
        return found[0]

    def tail(self, session: str) -> str:
        """What is known of a session, for a test that fails."""
        place = self.state / "sessions" / session / "private"
        text = "".join(path.read_text() for path in sorted((place / "journal").glob("*")))
        log = place / "supervisor.log"
        return text[-3000:] + (log.read_text()[-3000:] if log.exists() else "")

    def ended(self, session: str) -> dict[str, Any]:
        """Wait for the end: the last report."""
        reports = self.reports(session)
        self.assertEqual([each["seq"] for each in reports], list(range(1, len(reports) + 1)))
        self.assertEqual(reports[-1]["kind"], "exit", self.tail(session))
        return reports[-1]

    @staticmethod
    def output(reports: list[dict[str, Any]], stream: str = "stdout") -> list[str]:
        """The messages of one stream."""
        return [each["message"] for each in reports if each.get("stream") == stream]

    def repository(self) -> Path:
        """A bare repository with one commit, that the sessions' users can fetch from."""
        work, bare = self.directory / "work", self.directory / "origin.git"
        work.mkdir()
        own = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "-C", str(work)]
        (work / "file.txt").write_text("one\n")
        (work / "gone.txt").write_text("to be removed\n")
        for argv in (
            ["git", "init", "-q", "-b", "main", str(work)],
            [*own, "add", "-A"],
            [*own, "commit", "-q", "-m", "first"],
            ["git", "clone", "-q", "--bare", str(work), str(bare)],
        ):
            subprocess.run(argv, check=True, timeout=LIMIT)
        return bare

    def give(self, path: Path, user: int) -> None:
        """Let a repository be a user's, as git demands of one that it reads."""
        if self.asRoot:
            subprocess.run(["chown", "-R", str(user), str(path)], check=True)


def document(value: Any) -> Any:
    """A struct as JSON's own types."""
    return json.loads(msgspec.json.encode(value))
