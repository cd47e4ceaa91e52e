"""
A server and agents as processes, for tests of what they do to each other.

L{FleetCase} starts them (L{tests.integration.inspected}, L{forked
<tests.integration.forked>} where nothing stands in front), gives out
sessions and tokens, dials, takes screenshots, and compares what is in the
processes before and after.  Everything here blocks, with limits: the tests are
about other processes, and need no reactor of their own.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from twisted.trial.unittest import SynchronousTestCase

from .forked import INSPECTED, Forked, Running
from .scripted import ROOT

LIMIT = 30.0
"""Seconds that anything may take before a test says what it waited for."""

LONG = bool(os.environ.get("HELIX_TEST_LONG"))
"""Whether the long forms of the tests are wanted."""

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40
"""What the desktop of these tests shows."""


def until(condition: Callable[[], Any], what: str, limit: float = LIMIT) -> float:
    """
    Wait for C{condition}.

    @return: The seconds that it took.
    """
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > limit:
            raise AssertionError(f"after {limit:g} s still not: {what}")
        time.sleep(0.02)
    return time.monotonic() - began


def freePort() -> int:
    """
    A port that nothing uses now, on any address.  It is none of those that the
    kernel gives to outgoing connections, of which the tests beside make many.
    """
    while True:
        port = random.randrange(10_240, 32_768)
        with socket.socket() as probe:
            # As servers do: a connection of before that lingers is none of theirs.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                continue
            return port


def receive(connection: socket.socket, limit: float = LIMIT) -> bytes:
    """Everything up to the end of a connection, however it ends."""
    connection.settimeout(limit)
    data = b""
    try:
        while piece := connection.recv(65536):
            data += piece
    except ConnectionError:
        pass
    return data


def reset(connection: socket.socket) -> None:
    """Close with an RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class Service:
    """
    A service beside an agent: each connection in a thread.

    @ivar address: As an agent names it.
    """

    def __init__(self, serve: Callable[[socket.socket], None], path: str | None = None) -> None:
        self._serve = serve
        self._open: set[socket.socket] = set()
        if path is None:
            self._socket = socket.create_server(("127.0.0.1", 0), backlog=1024)
            self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        else:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.bind(path)
            self._socket.listen(1024)
            self.address = f"unix://{path}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self._open.add(connection)
            threading.Thread(target=self._run, args=(connection,), daemon=True).start()

    def _run(self, connection: socket.socket) -> None:
        try:
            self._serve(connection)
        except OSError:
            pass
        finally:
            self._open.discard(connection)
            connection.close()

    def stop(self) -> None:
        """Close all."""
        # A close alone leaves the accepting thread in accept().
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def desktop(connection: socket.socket) -> None:
    """Answers one HTTP request with L{PICTURE}."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return
        data += piece
    connection.sendall(
        b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: %d\r\n"
        b"Connection: close\r\n\r\n%s" % (len(PICTURE), PICTURE)
    )


def echo(connection: socket.socket) -> None:
    """Sends back what comes."""
    while data := connection.recv(65536):
        connection.sendall(data)


class Program:
    """
    One process.

    @ivar log: Where it writes.
    @ivar baseline: What was in it when it was quiet.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        arguments: list[str],
        environment: dict[str, str],
        limits: dict[str, dict[str, Any]] | None,
        prefix: list[str],
    ) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        self.door = str(directory / f"{name}.door")
        self.baseline: dict[str, Any] = {}
        self._arguments = arguments
        self._environment = environment
        self._limits = limits or {}
        self._prefix = prefix
        self.process: Running

    def start(self) -> None:
        """Start it, again if need be; it goes on with the same log."""
        Path(self.door).unlink(missing_ok=True)
        arguments = ["-n", "--pidfile=", "--logfile=-", *self._arguments]
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "PYTHONUNBUFFERED": "1",
            "HELIX_TEST_DOOR": self.door,
            "HELIX_TEST_LIMITS": json.dumps(self._limits),
            **self._environment,
        }
        with self.log.open("ab") as log:
            if self._prefix:
                self.process = subprocess.Popen(
                    [*self._prefix, sys.executable, "-m", INSPECTED, *arguments],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    cwd=ROOT,
                    env=environment,
                )
            else:
                self.process = Forked(INSPECTED, arguments, output=log, environment=environment)

    @property
    def text(self) -> str:
        """All that it has said."""
        return self.log.read_text(errors="replace")

    def says(self, words: str, *, after: int = 0, limit: float = LIMIT) -> float:
        """Wait until its log has C{words} behind the first C{after} characters."""
        try:
            return until(lambda: words in self.text[after:], f"{self.name} says {words!r}", limit)
        except AssertionError as error:
            raise AssertionError(f"{error}; it said:\n{self.text[-4000:]}") from None

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """Stop it where it stands; L{thaw} lets it go on."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.signal(signal.SIGCONT)

    def end(self) -> None:
        """SIGTERM; when that does not help it says where it is, and is killed."""
        if self.process.poll() is None:
            self.thaw()
            self.process.terminate()
            try:
                self.process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                self.signal(signal.SIGABRT)
                try:
                    self.process.wait(LIMIT)
                except subprocess.TimeoutExpired:
                    self.kill()
                raise AssertionError(
                    f"{self.name} did not stop; it said:\n{self.text[-4000:]}"
                ) from None

    def ask(self, words: dict[str, Any]) -> tuple[dict[str, Any], socket.socket]:
        """The side door: its answer, and the connection."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(2 * LIMIT)
        try:
            connection.connect(self.door)
            connection.sendall(json.dumps(words).encode() + b"\n")
            line = b""
            while not line.endswith(b"\n"):
                # The stream follows: not a byte more than the line.
                piece = connection.recv(1 if words["do"] == "dial" else 65536)
                if not piece:
                    raise ConnectionError("the side door closed")
                line += piece
        except BaseException:
            connection.close()
            raise
        return json.loads(line), connection

    def look(self) -> dict[str, Any]:
        """What is in it."""
        seen, connection = self.ask({"do": "look"})
        connection.close()
        # News of addresses come from the kernel whenever a test beside makes a network.
        seen["timers"].pop("AddressWatch._settled", None)
        return seen

    def status(self, name: str) -> int:
        """A number of kB from its C{/proc} status, such as C{VmHWM}."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
        assert found is not None, text
        return int(found.group(1))

    def settle(self) -> None:
        """Take what is in it now, when that has come to rest, for what must be there later."""
        self.baseline = self.look()

        def same() -> bool:
            time.sleep(0.1)
            before, self.baseline = self.baseline, self.look()
            return before == self.baseline

        until(same, f"{self.name} is quiet")


class Server(Program):
    """
    The server.

    @ivar url: Where it is.
    @ivar port: Its port on loopback.
    """

    host = "127.0.0.1"
    port: int
    admin: str

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def request(
        self,
        method: str,
        path: str,
        token: str | None = None,
        body: object = None,
        timeout: float = LIMIT,
    ) -> tuple[int, bytes]:
        """@return: The status and the body of an answer, refusals included."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def get(self, path: str, token: str | None = None) -> Any:
        """The JSON of an answer that must be 200."""
        status, body = self.request("GET", path, token or self.admin)
        assert status == 200, (path, status, body)
        return json.loads(body)

    def answers(self) -> bool:
        """Whether it serves."""
        if self.process.poll() is not None:
            raise AssertionError(f"{self.name} ended:\n{self.text[-4000:]}")
        try:
            return self.request("GET", "/readyz", timeout=2)[0] == 200
        except OSError:
            return False

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        """A connection to its port."""
        connection = socket.create_connection(
            (self.host, self.port), timeout=LIMIT, source_address=(source, 0)
        )
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def upgrade(
        self, query: str, token: str, *fields: str, form: str = "revdial", source: str = "127.0.0.1"
    ) -> tuple[bytes, socket.socket]:
        """
        Ask for an upgrade, as an agent does.

        @param form: C{revdial}, C{websocket}, or C{hijack}.
        @return: The answer's head, and the connection behind it.
        """
        lines = [
            f"GET /api/v1/revdial{query} HTTP/1.1",
            "Host: cp.example",
            f"Authorization: Bearer {token}",
            "Connection: Upgrade",
            *([] if form == "hijack" else [f"Upgrade: {form}"]),
            *(
                ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
                if form == "websocket"
                else []
            ),
            *fields,
        ]
        connection = self.connect(source)
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            # The stream follows: not a byte more than the head.
            piece = connection.recv(1)
            if not piece:
                break
            head += piece
        return head, connection

    def exchange(self, data: bytes, limit: float = LIMIT) -> bytes:
        """Send C{data}; all that comes back."""
        with self.connect() as connection:
            try:
                connection.sendall(data)
            except ConnectionError:
                pass
            return receive(connection, limit)

    def dial(
        self, runner: str, target: str | None = None, timeout: float | None = None
    ) -> tuple[dict[str, Any], socket.socket]:
        """A dial: what came of it, and the stream."""
        return self.ask({"do": "dial", "runner": runner, "target": target, "timeout": timeout})


@dataclass(frozen=True)
class Session:
    """A session: its id, its runner's key, its token."""

    id: str
    key: str
    token: str


class FleetCase(SynchronousTestCase):
    """Starts a server, agents and services, and ends them with the test."""

    SETTINGS: dict[str, str] = {
        "tunnel.grace_period": "6",
        "tunnel.dial_timeout": "4",
        "desktop.request_timeout": "8",
        "http.head_timeout": "2",
        "drain.timeout": "1",
        # Who counts what is left behind has nothing parked.
        "pool.per_runner": "0",
    }

    def setUp(self) -> None:
        # A short path: unix sockets have no room for a test's own directory.
        self.directory = Path(tempfile.mkdtemp(prefix="helix-fleet-"))
        self.addCleanup(shutil.rmtree, self.directory, True)
        self.programs: list[Program] = []
        self.secrets: list[str] = []
        self._services: dict[Any, Service] = {}
        self.addCleanup(self.checkLogs)
        self.addCleanup(self.endPrograms)

    def endPrograms(self) -> None:
        """End every process, agents first."""
        failures = []
        for program in reversed(self.programs):
            try:
                program.end()
            except AssertionError as error:
                failures.append(str(error))
        for service in self._services.values():
            service.stop()
        self.assertEqual(failures, [])

    def checkLogs(self) -> None:
        """F1, F10: no log has a traceback or a secret, whatever was done."""
        for program in self.programs:
            text = program.text
            for mark in ("Traceback", "Unhandled", "never awaited"):
                at = text.find(mark)
                self.assertEqual(
                    at, -1, f"{program.name} logged:\n{text[max(0, at - 500) :][:3000]}"
                )
            for secret in self.secrets:
                self.assertNotIn(secret, text, f"F1: a secret is in the log of {program.name}")

    # Processes

    def server(
        self,
        *flags: str,
        doors: str = "",
        host: str = "127.0.0.1",
        limits: dict[str, dict[str, Any]] | None = None,
        **settings: object,
    ) -> Server:
        """
        A server that serves, with the settings of L{SETTINGS} and C{settings}
        (C{tunnel__grace_period=1}), and with more C{doors} in its file.
        """
        port = freePort()
        values = {**self.SETTINGS}
        values.update({name.replace("__", "."): str(each) for name, each in settings.items()})
        config = self.directory / "server.toml"
        config.write_text(f'[[listen]]\nendpoint = "tcp:{port}:interface={host}"\n{doors}')
        server = Server(
            f"server{len(self.programs)}",
            self.directory,
            [
                "helix-revdial-server", f"--config={config}",
                f"--state-directory={self.directory / 'state'}",
                *(part for name, value in values.items() for part in ("--set", f"{name}={value}")),
                *flags,
            ],
            {},
            limits,
            [],
        )  # fmt: skip
        server.port = port
        server.host = host
        self.programs.append(server)
        self.startServer(server)
        server.admin = (self.directory / "state" / "admin.token").read_text().strip()
        self.secrets.append(server.admin)
        return server

    def startServer(self, server: Server) -> None:
        """Start a server, and wait until it serves and its side door is open."""
        server.start()
        until(lambda: server.answers() and os.path.exists(server.door), "the server serves")

    def agent(
        self,
        server: Server,
        key: str,
        token: str,
        *targets: Callable[[socket.socket], None] | str,
        url: str | None = None,
        limits: dict[str, dict[str, Any]] | None = None,
        wait: bool = True,
        flags: tuple[str, ...] = (),
        prefix: tuple[str, ...] = (),
        reconnect: float = 0.2,
    ) -> Program:
        """An agent that is connected, with services that do what C{targets} say."""
        names = [f"--target={self.named(target)}" for target in targets]
        agent = Program(
            f"agent{len(self.programs)}",
            self.directory,
            [
                "helix-revdial-agent", f"--server={url or server.url}", f"--runner-id={key}",
                f"--reconnect={reconnect}", "--drain=1", *names, *flags,
            ],
            {"RUNNER_TOKEN": token},
            limits,
            list(prefix),
        )  # fmt: skip
        self.programs.append(agent)
        agent.start()
        if wait:
            agent.says("connected as")
            until(lambda: os.path.exists(agent.door), "the agent's side door is open")
        return agent

    def named(self, target: Callable[[socket.socket], None] | str) -> str:
        """C{NAME=ADDRESS} of a service, started at its first use."""
        if isinstance(target, str):
            return target
        if target not in self._services:
            self._services[target] = Service(target)
        name = getattr(target, "__name__", "service")
        return f"{name}={self._services[target].address}"

    # Sessions

    def session(self, server: Server) -> Session:
        """A session with a token of its own."""
        status, body = server.request("POST", "/api/v1/sessions", server.admin, {"name": "a"})
        self.assertEqual(status, 201, body)
        name = json.loads(body)["id"]
        token = self.token(server, kind="session", session=name)
        return Session(name, f"sandbox-{name}", token)

    def token(self, server: Server, **words: Any) -> str:
        """A new token's secret."""
        status, body = server.request(
            "POST", "/api/v1/tokens", server.admin, {"name": "test", **words}
        )
        self.assertEqual(status // 100, 2, body)
        secret = cast(str, json.loads(body)["token"])
        self.secrets.append(secret)
        return secret

    def screenshot(self, server: Server, session: Session) -> float:
        """
        Take a picture of a session's desktop.

        @return: The seconds that it took.
        """
        began = time.monotonic()
        status, body = self.picture(server, session)
        self.assertEqual(status, 200, body)
        self.assertEqual(body, PICTURE)
        return time.monotonic() - began

    def picture(self, server: Server, session: Session) -> tuple[int, bytes]:
        """The answer to a request for a picture, whatever it is."""
        path = f"/api/v1/external-agents/{session.id}/screenshot"
        return server.request("GET", path, server.admin)

    def echoes(self, stream: socket.socket, word: bytes = b"hello") -> None:
        """A stream to L{echo} works."""
        stream.settimeout(LIMIT)
        stream.sendall(word)
        data = b""
        while len(data) < len(word):
            piece = stream.recv(len(word) - len(data))
            self.assertTrue(piece, f"the stream ended after {data!r}")
            data += piece
        self.assertEqual(data, word)

    # What is left

    @contextmanager
    def nothingLeft(self, *programs: Program) -> Iterator[None]:
        """What is done within leaves no socket, timer, entry or object in C{programs}."""
        for program in programs:
            program.settle()
        yield
        for program in programs:
            self.asBefore(program)

    def asBefore(self, program: Program, limit: float = LIMIT) -> None:
        """A process is what it was when it L{settle}d."""
        found: dict[str, Any] = {}

        def same() -> bool:
            nonlocal found
            found = program.look()
            return found == program.baseline

        try:
            until(same, "", limit)
        except AssertionError:
            self.fail(
                f"{program.name} is not what it was.\nBefore: {program.baseline}\n"
                f"Now:    {found}\nIts log ends:\n{program.text[-3000:]}"
            )


def inParallel(count: int, work: Callable[[int], Any]) -> list[Any]:
    """
    C{work(0)} … C{work(count - 1)}, each in a thread.

    @return: What they returned, or the exceptions that they raised.
    """
    results: list[Any] = [None] * count

    def one(number: int) -> None:
        try:
            results[number] = work(number)
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
