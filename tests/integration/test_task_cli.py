"""C{helix task}, C{session} and C{remote} as processes, against a C{helix serve --mock}."""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from twisted.trial.unittest import SynchronousTestCase

LIMIT = 60.0
HELIX = (sys.executable, "-m", "helix_revdial.cli")


def environment(**more: str) -> dict[str, str]:
    """Nothing of the tester's own settings."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    return {
        **kept,
        "HOME": "/nonexistent",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONUNBUFFERED": "1",
        **more,
    }


def freePort() -> int:
    """A port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class MockServer:
    """
    A running C{helix serve --mock}.

    @ivar url: Where it is.
    @ivar token: The first admin token, where this start has made it.
    """

    def __init__(self, port: int = 0, database: str | None = None, speed: float = 20.0) -> None:
        command = [*HELIX, "serve", "--mock", "--port", str(port), "--speed", str(speed)]
        if database is not None:
            command += ["--db", database]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(),
        )
        assert self.process.stdout is not None
        said = []
        for line in self.process.stdout:
            said.append(line)
            if "Listening on" in line:
                break
        else:
            self.process.stdout.close()
            self.process.wait(LIMIT)
            raise AssertionError(f"the server did not start: {''.join(said[-5:])}")
        self.url = said[0].removeprefix("URL: ").strip()
        tokenFile = Path(said[1].removeprefix("Token file: ").strip())
        self.token = tokenFile.read_text().strip() if tokenFile.exists() else ""
        self._directory = tokenFile.parent.parent
        # What it says is read, so that it never waits for its reader.
        self._reading = threading.Thread(target=self.process.stdout.read, daemon=True)
        self._reading.start()

    def kill(self) -> None:
        """As a crash does: the server itself, and what started it ends with it."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        for child in children.split():
            os.kill(int(child), signal.SIGKILL)
        self._gone()

    def end(self) -> None:
        """In good order."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self._gone()

    def _gone(self) -> None:
        self.process.wait(LIMIT)
        self._reading.join(LIMIT)
        assert self.process.stdout is not None
        self.process.stdout.close()
        shutil.rmtree(self._directory, ignore_errors=True)


class Background:
    """A C{helix} that runs while the test goes on."""

    def __init__(self, arguments: tuple[str, ...], variables: dict[str, str], cwd: str) -> None:
        self.process = subprocess.Popen(
            [*HELIX, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=variables,
            cwd=cwd,
        )
        self.out = b""
        self.err = b""
        self._readers = [
            threading.Thread(target=self._read, args=(name,), daemon=True)
            for name in ("out", "err")
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str) -> None:
        stream: Any = self.process.stdout if name == "out" else self.process.stderr
        while piece := os.read(stream.fileno(), 65536):
            setattr(self, name, getattr(self, name) + piece)

    def ended(self) -> int:
        """The exit code; fails after a minute."""
        code = self.process.wait(LIMIT)
        for reader in self._readers:
            reader.join(LIMIT)
        return code

    def close(self) -> None:
        """Leave nothing."""
        if self.process.poll() is None:
            self.process.kill()
        self.ended()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


class TaskTestCase(SynchronousTestCase):
    """Runs C{helix} in a directory that is no checkout."""

    url = ""
    token = ""

    def setUp(self) -> None:
        """A place of one's own, outside of any repository."""
        self.directory = tempfile.mkdtemp(prefix="helix-test-")
        self.addCleanup(shutil.rmtree, self.directory)

    def variables(self, **more: str) -> dict[str, str]:
        """The environment of a command."""
        return environment(HELIX_URL=self.url, HELIX_API_KEY=self.token, **more)

    def helix(
        self, *arguments: str, stdin: str = "", variables: dict[str, str] | None = None
    ) -> tuple[int, str, str]:
        """Run a command to its end: exit code, standard output, standard error."""
        done = subprocess.run(
            [*HELIX, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            env=variables or self.variables(),
            cwd=self.directory,
            timeout=LIMIT,
            check=False,
        )
        self.assertNotIn("Traceback", done.stderr)
        return done.returncode, done.stdout, done.stderr

    def start(self, *arguments: str) -> Background:
        """Start a command, and go on."""
        started = Background(arguments, self.variables(), self.directory)
        self.addCleanup(started.close)
        return started

    def until(self, condition: Callable[[], object], what: Callable[[], object]) -> None:
        """Wait until this holds."""
        deadline = time.monotonic() + LIMIT
        while not condition():
            if time.monotonic() > deadline:
                self.fail(f"not within {LIMIT} s: {what()}")
            time.sleep(0.02)

    def status(self, session: str) -> str:
        """A session's state, as C{helix session get} tells it."""
        code, out, err = self.helix("session", "get", session, "--json")
        self.assertEqual(code, 0, err)
        return str(json.loads(out)["status"])

    def terminal(
        self, *arguments: str, typed: tuple[tuple[str, bytes], ...] = (), term: str = "xterm"
    ) -> tuple[int, str]:
        """
        Run a command at a terminal of its own.

        @param typed: What is typed once the command has shown a text, in order.
        @return: The exit code, and what the terminal was sent.
        """
        leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
        process = subprocess.Popen(
            [*HELIX, *arguments],
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env=self.variables(TERM=term),
            cwd=self.directory,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(follower)
        out, waiting = b"", list(typed)
        deadline = time.monotonic() + LIMIT
        try:
            while time.monotonic() < deadline:
                if not select.select([leader], [], [], 0.5)[0]:
                    continue
                try:
                    piece = os.read(leader, 65536)
                except OSError:
                    break
                if not piece:
                    break
                out += piece
                if waiting and waiting[0][0].encode() in out:
                    os.write(leader, waiting.pop(0)[1])
            else:
                self.fail(f"still running: {out[-2000:]!r}")
            return process.wait(LIMIT), out.decode("utf-8", "replace")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            os.close(leader)


TASK = ("task", "--repo", "none", "--agent", "mock")


class MockTests(TaskTestCase):
    """One server for all: what people do with tasks."""

    server: ClassVar[MockServer | None] = None

    def setUp(self) -> None:
        """The server, started by the first test and ended with the process."""
        super().setUp()
        if MockTests.server is None:
            MockTests.server = MockServer()
            atexit.register(MockTests.server.end)
        self.url, self.token = MockTests.server.url, MockTests.server.token

    def test_happyPath(self) -> None:
        """
        A task is made, followed to its end, and its session, log, events, workspace and
        patch are there; C{events --json} is an object a line, numbered without a gap.
        """
        code, out, err = self.helix(*TASK, "--labels", "a=b", "--follow", stdin="hello delay=1")
        self.assertEqual(code, 0, err)
        self.assertIn("status completed (exit code 0)", out)
        found = re.search(r"session (ses_[0-9A-Z]{26})", err)
        assert found is not None, err
        session = found[1]
        code, out, err = self.helix("session", "get", session[4:], "--json")
        record = json.loads(out)
        self.assertEqual(record["prompt"], "hello delay=1")
        self.assertEqual(record["task"]["labels"], {"a": "b"})
        code, out, err = self.helix("session", "events", session, "--follow", "--json")
        events = [json.loads(line) for line in out.splitlines()]
        self.assertEqual((code, err), (0, ""))
        self.assertEqual([event["seq"] for event in events], list(range(1, len(events) + 1)))
        self.assertEqual({event["sessionId"] for event in events}, {session})
        self.assertEqual(events[-1]["status"], "completed")
        logs = [event for event in events if event["type"] == "log"]
        code, out, _ = self.helix("session", "logs", session, "--tail", "2", "--json")
        self.assertEqual(
            [json.loads(line)["seq"] for line in out.splitlines()],
            [event["seq"] for event in logs[-2:]],
        )
        code, out, _ = self.helix("session", "logs", session, "--raw")
        self.assertEqual(out.splitlines(), [event["message"] for event in logs])
        code, out, _ = self.helix("session", "workspace", session, "--json")
        self.assertEqual(json.loads(out)["mountPath"], "/workspace")
        code, out, _ = self.helix("session", "patch", session)
        self.assertIn("diff --git", out)
        code, out, _ = self.helix("session", "list", "--status", "completed")
        self.assertIn(session, out)

    def test_idIsUsable(self) -> None:
        """What is printed is the id alone; it is paused, prompted, resumed and stopped by it."""
        code, out, err = self.helix(*TASK, "-p", "forever delay=1")
        self.assertEqual((code, err), (0, ""))
        session = out.strip()
        self.assertRegex(session, r"^ses_[0-9A-Z]{26}$")
        self.until(lambda: self.status(session) == "running", lambda: self.status(session))
        self.assertEqual(
            self.helix("session", "pause", session, "--wait"), (0, f"{session} paused\n", "")
        )
        code, _, err = self.helix("session", "pause", session)
        self.assertEqual(code, 1)
        self.assertIn("The session is paused", err)
        code, out, err = self.helix("session", "resume", session, "go on", "--wait")
        self.assertEqual((code, out), (0, f"{session} running\n"), err)
        self.assertEqual(self.helix("session", "prompt", session, "and on")[0], 0)
        code, out, _ = self.helix("session", "stop", session, "--reason", "enough", "--wait")
        self.assertEqual((code, out), (0, f"{session} stopped\n"))
        code, out, _ = self.helix("session", "events", session, "-f")
        self.assertEqual(code, 11)
        self.assertIn("enough", out)
        code, _, err = self.helix("session", "cancel", session)
        self.assertEqual(code, 1)
        self.assertIn("has ended already: it is stopped", err)

    def test_cancelMidRun(self) -> None:
        """Who follows a session that somebody else cancels exits with 12."""
        following = self.start(*TASK, "-p", "forever delay=1", "--follow")
        self.until(lambda: b"info " in following.out, lambda: following.out + following.err)
        found = re.search(rb"ses_[0-9A-Z]{26}", following.err)
        assert found is not None
        session = found[0].decode()
        self.assertEqual(
            self.helix("session", "cancel", session, "--wait")[:2], (0, f"{session} cancelled\n")
        )
        self.assertEqual(following.ended(), 12, following.err)
        self.assertIn(b"status cancelled", following.out)

    def test_failedTask(self) -> None:
        """A task that fails is exit code 1, and says why."""
        code, out, _ = self.helix(*TASK, "-p", "exit=3 delay=1 steps=1", "--follow")
        self.assertEqual(code, 1)
        self.assertIn("status failed (exit code 3;", out)

    def test_exitCodes(self) -> None:
        """Each reason has its code, and is one line that says which field was wrong."""
        for arguments, expected, text in (
            (("--repo", "git@-x:y", "--agent", "mock", "-p", "x"), 2, "git@-x:y is no git address"),
            (("--repo", "https://h", "--agent", "mock", "-p", "x"), 2, "repo.url: names no repo"),
            (("--repo", "none", "--agent", "nix", "-p", "x"), 3, "agent.type: is not an agent"),
            (("--repo", "none", "-p", "x"), 3, "which agent? Give --agent"),
            (("--repo", "none", "--agent", "mock", "-p", "x", "--host", "nix"), 7, "executionHost"),
            (("--repo", "none", "--agent", "mock", "-p", " "), 7, "the prompt is empty"),
            (("--repo", "none", "--agent", "mock"), 10, "no prompt"),
            (("--bogus",), 7, "No such option"),
            (("a/b", "--repo", "https://h/x", "-p", "x"), 7, "BRANCH"),
        ):
            code, out, err = self.helix("task", *arguments)
            self.assertEqual((code, out), (expected, ""), err)
            self.assertIn(text, err)
            self.assertEqual(err.count("\n"), 1, err)
        wrong = {**self.variables(), "HELIX_API_KEY": "wrong"}
        self.assertEqual(self.helix("remote", "agents", variables=wrong)[0], 4)
        nowhere = {**self.variables(), "HELIX_URL": f"http://127.0.0.1:{freePort()}"}
        self.assertEqual(self.helix("remote", "agents", variables=nowhere)[0], 5)
        code, _, err = self.helix("session", "list", "--remote-server", "nix")
        self.assertEqual(code, 8)
        self.assertIn("no [[server]]", err)

    def test_serversOtherNames(self) -> None:
        """AW_REST_BASE and --remote-server name the server, its API's path included."""
        variables = {**self.variables(), "HELIX_URL": "", "AW_REST_BASE": f"{self.url}/api/v1"}
        code, out, err = self.helix("remote", "agents", "--json", variables=variables)
        self.assertEqual(code, 0, err)
        self.assertIn("mock", [one["type"] for one in json.loads(out)])
        variables["AW_REST_BASE"] = "http://127.0.0.1:1"
        code, out, err = self.helix(
            "remote", "runners", "--remote-server", self.url, variables=variables
        )
        self.assertEqual(code, 0, err)
        self.assertIn("synthetic", out)

    def test_interruptLeavesItRunning(self) -> None:
        """
        Ctrl-C at the picture: the terminal is given back, the session goes on, and how to
        come back is said.
        """
        code, out = self.terminal(
            *TASK, "-p", "forever delay=1", "-f", typed=(("running", b"\x03"),)
        )
        self.assertEqual(code, 130, out)
        self.assertIn("\x1b[?25h", out)
        found = re.search(r"(ses_[0-9A-Z]{26}) goes on without you; helix session attach", out)
        assert found is not None, out
        self.assertEqual(self.status(found[1]), "running")
        # Come back, and end it from there.
        code, out = self.terminal(
            "session", "attach", found[1], "--cancel-on-interrupt", typed=(("running", b"\x03"),)
        )
        self.assertEqual(code, 130, out)
        self.assertIn("cancelling", out)
        self.assertEqual(self.status(found[1]), "cancelled")

    def test_pictureOrLines(self) -> None:
        """
        A terminal gets a picture, one that cannot redraw (or is told so) and a pipe get
        lines; none is driven by what the task is called or says.
        """
        evil = "x\x1b]0;owned\x07\x9b31m\u202e steps=2 delay=1"
        code, out = self.terminal(*TASK, "-p", evil, "-f")
        self.assertEqual(code, 0, out)
        self.assertIn("\x1b[?25l", out)
        self.assertIn("completed", out)
        for arguments, term in ((("-f",), "dumb"), (("-f", "--no-color"), "xterm")):
            code, out = self.terminal(*TASK, "-p", evil, *arguments, term=term)
            self.assertEqual(code, 0, out)
            self.assertNotIn("\x1b", out)
            self.assertIn("status completed", out)
        for command in (("get",), ("get", "--json"), ("list",), ("list", "--json")):
            _, out = self.terminal("session", *command)
            # A table has styles of its own.
            self.assertNotIn("\x1b]0;", out)
            self.assertNotIn("\x9b", out)
            self.assertNotIn("\u202e", out)
            self.assertIn("owned", out)

    def test_readerThatGoesAway(self) -> None:
        """C{helix … | head}: no traceback, exit code 141."""
        following = self.start(*TASK, "-p", "forever delay=1", "--follow", "--json")
        self.until(lambda: b"\n" in following.out, lambda: following.err)
        session = json.loads(following.out.splitlines()[0])["sessionId"]
        done = subprocess.run(
            ["sh", "-c", '"$0" "$@" | head -n 1', *HELIX, "session", "events", session, "-f"],
            capture_output=True,
            env=self.variables(),
            timeout=LIMIT,
            check=True,
        )
        self.assertEqual((done.stdout.count(b"\n"), done.stderr), (1, b""))
        self.helix("session", "cancel", session)
        self.assertEqual(following.ended(), 12)

    def test_completion(self) -> None:
        """A shell is offered what the server knows, and nothing where there is no server."""
        session = self.helix(*TASK, "-p", "steps=1")[1].strip()

        def offered(*words: str, **more: str) -> str:
            code, out, err = self.helix(
                variables=self.variables(
                    _HELIX_COMPLETE="bash_complete",
                    COMP_WORDS=" ".join(("helix", *words)),
                    COMP_CWORD=str(len(words)),
                    **more,
                )
            )
            self.assertEqual((code, err), (0, ""))
            return out

        self.assertIn("plain,openhands\n", offered("task", "--agent", ""))
        self.assertEqual(offered("task", "--agent", "codex@"), "plain,codex@latest\n")
        words = ("task", "--instances", "x", "--host", "syn")
        self.assertEqual(offered(*words), "plain,synthetic\n")
        self.assertIn(f"plain,{session}\n", offered("session", "logs", "ses_"))
        self.assertEqual(
            offered("--url", f"http://127.0.0.1:{freePort()}", "session", "logs", "ses_"), "\n"
        )


class BrokenConnectionTests(TaskTestCase):
    """Servers that go away in the middle."""

    def test_serverKilledAndRestarted(self) -> None:
        """
        Two followers of a session whose server is killed: they wait, resume where they
        were, and have each event once when the new server tells how it ended.
        """
        port = freePort()
        database = f"sqlite:///{self.directory}/server.db"
        server = MockServer(port, database)
        self.addCleanup(lambda: server.end())
        self.url, self.token = server.url, server.token
        session = self.helix(*TASK, "-p", "forever delay=2")[1].strip()
        followers = [
            self.start("session", "events", session, "--follow", "--json", *more)
            for more in ((), ("--since", "2"))
        ]
        for one in followers:
            self.until(lambda one=one: one.out.count(b"\n") > 5, lambda one=one: one.err)  # type: ignore[misc]
        server.kill()
        for one in followers:
            self.until(lambda one=one: b"trying again" in one.err, lambda one=one: one.err)  # type: ignore[misc]
        server = MockServer(port, database)
        for one, first in zip(followers, (1, 3), strict=True):
            code = one.ended()
            events = [json.loads(line) for line in one.out.splitlines()]
            self.assertEqual(
                [event["seq"] for event in events], list(range(first, first + len(events)))
            )
            self.assertIn(b"connected again", one.err)
            # The executor of a mock server forgets with it.
            self.assertEqual((events[-1]["status"], code), ("failed", 1), one.err)

    def test_answerThatIsLost(self) -> None:
        """
        A task whose answer is cut off is sent again with the same key: one task, whose
        id is the first one's.
        """
        server = MockServer()
        self.addCleanup(server.end)
        self.token = server.token
        listening = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listening.close)
        target = int(server.url.rpartition(":")[2])
        posts: list[bytes] = []

        def serve() -> None:
            """Passes a request on; the first two answers to a task go no further."""
            while True:
                try:
                    client, _ = listening.accept()
                except OSError:
                    return
                with client, socket.create_connection(("127.0.0.1", target)) as upstream:
                    request = b""
                    while b"\r\n\r\n" not in request:
                        request += client.recv(65536)
                    head, _, body = request.partition(b"\r\n\r\n")
                    found = re.search(rb"(?i)content-length: (\d+)", head)
                    while found and len(body) < int(found[1]):
                        body += client.recv(65536)
                    head += b"\r\nConnection: close"
                    upstream.sendall(head + b"\r\n\r\n" + body)
                    answer = b""
                    while piece := upstream.recv(65536):
                        answer += piece
                    if b"POST /api/v1/tasks" in head:
                        key = re.search(rb"(?i)idempotency-key: (\S+)", head)
                        posts.append(key[1] if key else b"")
                        if len(posts) < 3:
                            client.sendall(answer[: len(answer) // 2 * (len(posts) - 1)])
                            continue
                    client.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        code, out, err = self.helix(*TASK, "-p", "steps=1")
        self.assertEqual(code, 0, err)
        self.assertEqual((len(posts), len(set(posts))), (3, 1))
        self.assertIn("trying again", err)
        self.url = server.url
        listed = json.loads(self.helix("session", "list", "--json")[1])
        self.assertEqual([one["id"] for one in listed], [out.strip()])
