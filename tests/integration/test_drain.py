"""
The server and the agent as processes that are told to stop while they work.

C{make suite} runs it; C{DRAIN_REPORT=1} prints what the restart under load measured.
"""

from __future__ import annotations

import http.client
import http.server
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from twisted.trial.unittest import SynchronousTestCase

from .fleet import freePort
from .forked import Running
from .service_manager import ServiceManager
from .test_server import DEADLINE

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 64

AT_ONCE = 12.0
"""
Seconds in which a process is gone that waits for nothing; the streams of these tests
would last 20 s, and a drain 30.
"""

GRACE = 30.0
"""Seconds for which a caller tries again: the grace period."""


class Desktop(http.server.BaseHTTPRequestHandler):
    """A desktop service: a picture after as many seconds as the query says, in two halves."""

    def do_GET(self) -> None:
        delay = float(parse_qs(urlsplit(self.path).query).get("delay", ["0"])[0])
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", str(len(PICTURE)))
        self.end_headers()
        self.wfile.write(PICTURE[:1000])
        self.wfile.flush()
        time.sleep(delay)
        self.wfile.write(PICTURE[1000:])

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing."""


class Service(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A peer that is cut off is what some tests want."""


class Tally:
    """What one caller saw: whole pictures, attempts that were put off, failures."""

    def __init__(self) -> None:
        self.requests = 0
        self.retries: dict[str, int] = {}
        self.failures: list[str] = []
        self.longest = 0.0

    def retry(self, why: str) -> None:
        self.retries[why] = self.retries.get(why, 0) + 1


class DrainCase(SynchronousTestCase):
    """A server, an agent with a desktop, and somebody who wants pictures of it."""

    keepsPort: ClassVar[bool] = False
    """Whether the service manager owns the port."""

    def setUp(self) -> None:
        self.state = Path(self.mktemp()).absolute()
        self.manager = ServiceManager(f"{id(self)}-s")
        self.addCleanup(self.manager.close)
        self.agents = ServiceManager(f"{id(self)}-a")
        self.addCleanup(self.agents.close)
        self.port = self.manager.listen("http") if self.keepsPort else freePort()
        self.logs: list[Path] = []
        self.server = self.startServer()
        self.token = (self.state / "admin.token").read_text().strip()
        self.session = self.call("POST", "/api/v1/sessions", {"name": "one"})["id"]
        secret = self.call(
            "POST", "/api/v1/tokens", {"kind": "session", "name": "a", "session": self.session}
        )["token"]
        self.tokenFile = Path(self.mktemp()).absolute()
        self.tokenFile.touch(0o600)
        self.tokenFile.write_text(secret)
        self.desktop = Service(("127.0.0.1", 0), Desktop)
        threading.Thread(target=self.desktop.serve_forever, daemon=True).start()
        self.addCleanup(self.desktop.server_close)
        self.addCleanup(self.desktop.shutdown)

    def environment(self, **more: str) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if name != "RUNNER_TOKEN" and not name.startswith(("HELIX", "LISTEN", "NOTIFY"))
        }
        return kept | more

    def settings(self) -> list[str]:
        """More flags of the server."""
        return []

    def startServer(self) -> Running:
        """Start a server, and wait until it says that it is ready."""
        door = (
            "systemd:domain=INET:name=http"
            if self.keepsPort
            else f"tcp:{self.port}:interface=127.0.0.1"
        )
        after = len(self.manager.said)
        process = self.process(
            self.manager,
            [
                "--nodaemon", "--pidfile=", "--logfile=-", "helix-revdial-server",
                "--listen", door, "--state-directory", str(self.state), *self.settings(),
            ],
            {},
        )  # fmt: skip
        self.manager.wait("READY", "1", DEADLINE, after=after)
        return process

    def startAgent(self) -> Running:
        """Start an agent, and wait until it is connected."""
        after = len(self.agents.said)
        process = self.process(
            self.agents,
            ["--nodaemon", "--pidfile=", "--logfile=-", "helix-revdial-agent"],
            {
                "HELIX_API_BASE_URL": f"http://127.0.0.1:{self.port}",
                "HELIX_SESSION_ID": self.session,
                "HELIX_AGENT_TOKEN_FILE": str(self.tokenFile),
                "HELIX_AGENT_LOCAL": f"127.0.0.1:{self.desktop.server_address[1]}",
            },
        )
        self.agents.wait("STATUS", "connected to", DEADLINE, after=after)
        return process

    def process(self, manager: ServiceManager, argv: list[str], more: dict[str, str]) -> Running:
        log = Path(self.mktemp())
        self.logs.append(log)
        with log.open("w") as output:
            process = manager.start(argv, self.environment(**more), output)

        def end() -> None:
            if process.poll() is None:
                process.kill()
            process.wait()

        self.addCleanup(end)
        return process

    def said(self) -> str:
        """All logs."""
        return "\n".join(f"--- {log}\n{log.read_text()}" for log in self.logs)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(
                method,
                path,
                None if body is None else json.dumps(body),
                {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
            )
            answer = connection.getresponse()
            content = answer.read()
            if answer.status >= 300:
                raise AssertionError(f"{method} {path}: {answer.status} {content!r}")
            return json.loads(content)
        finally:
            connection.close()

    def ask(self, delay: float = 0.0) -> tuple[int, dict[str, str], bytes]:
        """One request for a picture: status, header fields and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=40)
        try:
            connection.request(
                "GET",
                f"/api/v1/external-agents/{self.session}/screenshot?delay={delay}",
                headers={"Authorization": f"Bearer {self.token}"},
            )
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def inThread(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """Run C{call} beside the test; call the result for its own, which may be an error."""
        results: list[Any] = []

        def run() -> None:
            try:
                results.append(call())
            except Exception as error:
                results.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()

        def result() -> Any:
            thread.join(60)
            self.assertTrue(results, "no answer in a minute")
            return results[0]

        return result

    def streams(self, number: int) -> None:
        """Wait until so many streams are open."""

        def open_() -> int:
            status = self.call("GET", "/api/v1/admin/revdial/status?detail=true")
            return sum(detail["open_streams"] for detail in status["details"])

        self.until(lambda: open_() == number, f"{number} streams")

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for what other processes bring about."""
        end = time.monotonic() + DEADLINE
        while not condition():
            if time.monotonic() > end:
                self.fail(f"after {DEADLINE:g} s still not {what}:\n{self.said()}")
            time.sleep(0.05)

    def ends(self, process: Running, limit: float) -> float:
        """How long the process took to end; it must have ended by SIGTERM's own doing."""
        began = time.monotonic()
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            self.fail(f"not gone after {limit} s:\n{self.said()}")
        self.assertEqual(process.returncode, -signal.SIGTERM, self.said())
        return time.monotonic() - began


class ServerTests(DrainCase):
    """SIGTERM at the server."""

    def test_nothingToDrain(self) -> None:
        """G2: with agents connected, and nothing under way, it exits at once."""
        self.startAgent()
        self.assertEqual(self.ask()[0], 200)
        self.server.terminate()
        self.ends(self.server, AT_ONCE)
        self.manager.wait("STOPPING", "1")
        self.agents.wait("STATUS", "not connected")
        self.assertNotIn("Traceback", self.said())

    def test_streamsFinish(self) -> None:
        """
        G1: a stream that is open at SIGTERM ends whole; meanwhile nobody new is let in,
        the agent is told to leave, and systemd is told why it takes long.
        """
        self.startAgent()
        asked = self.inThread(lambda: self.ask(4.0))
        self.streams(1)
        self.server.terminate()
        stopping = self.manager.wait("STOPPING", "1")
        self.assertEqual(stopping["STATUS"], "stopping: 1 runners, 1 streams")
        self.assertGreater(int(stopping["EXTEND_TIMEOUT_USEC"]), 1e6)
        # The agent leaves long before the stream is over.
        self.agents.wait("STATUS", "not connected", 3)
        with self.assertRaises(OSError):
            self.call("GET", "/readyz")
        self.assertIsNone(self.server.poll())
        status, _, picture = asked()
        self.assertEqual((status, picture), (200, PICTURE))
        self.ends(self.server, AT_ONCE)
        self.assertIn("goodbye", self.said())
        self.assertNotIn("Traceback", self.said())

    def test_secondSignal(self) -> None:
        """G2: a second SIGTERM ends the wait; what is cut does not look whole."""
        self.startAgent()
        asked = self.inThread(lambda: self.ask(20.0))
        self.streams(1)
        self.server.terminate()
        self.manager.wait("STOPPING", "1")
        self.server.terminate()
        self.ends(self.server, AT_ONCE)
        answer = asked()
        if isinstance(answer, tuple):
            self.assertIn(answer[0], (502, 503), answer)
        else:
            self.assertIsInstance(answer, OSError | http.client.HTTPException)
        self.assertNotIn("Traceback", self.said())


class ShortDrainTests(DrainCase):
    """A server that may take one second."""

    def settings(self) -> list[str]:
        return ["--set", "drain.timeout=1"]

    def test_limit(self) -> None:
        """G2: when the time is over, what is left is cut."""
        self.startAgent()
        asked = self.inThread(lambda: self.ask(20.0))
        self.streams(1)
        self.server.terminate()
        took = self.ends(self.server, AT_ONCE)
        self.assertGreater(took, 0.9)
        answer = asked()
        self.assertFalse(isinstance(answer, tuple) and answer[0] == 200, answer)
        self.assertIn("1 streams are cut", self.said())


class AgentTests(DrainCase):
    """SIGTERM at the agent."""

    def test_streamsFinish(self) -> None:
        """
        G1: the agent's open stream ends whole, and new dials are refused at once.
        A11: the session and the token are as they were: the next agent has the name.
        """
        agent = self.startAgent()
        asked = self.inThread(lambda: self.ask(3.0))
        self.streams(1)
        agent.terminate()
        self.agents.wait("STOPPING", "1")
        path = "/api/v1/admin/revdial/status"
        self.until(lambda: self.call("GET", path)["active_connections"] == 0, "gone")
        status, _, content = self.ask()
        self.assertEqual((status, json.loads(content)["code"]), (503, "not-connected"))
        status, _, picture = asked()
        self.assertEqual((status, picture), (200, PICTURE))
        self.ends(agent, AT_ONCE)
        self.startAgent()
        self.assertEqual(self.ask()[0], 200)

    def test_secondSignal(self) -> None:
        """G2: a second SIGTERM ends the agent at once."""
        agent = self.startAgent()
        asked = self.inThread(lambda: self.ask(20.0))
        self.streams(1)
        agent.terminate()
        self.agents.wait("STOPPING", "1")
        agent.terminate()
        self.ends(agent, AT_ONCE)
        answer = asked()
        self.assertFalse(isinstance(answer, tuple) and answer[0] == 200, answer)
        self.assertNotIn("Traceback", self.said())

    def test_crash(self) -> None:
        """G5: an agent that is killed and started again has its name at once."""
        agent = self.startAgent()
        agent.kill()
        agent.wait()
        self.startAgent()
        self.assertEqual(self.ask()[0], 200)


class RestartTests(DrainCase):
    """C{systemctl restart} of the server while callers work."""

    callers = 8

    def test_restartUnderLoad(self) -> None:
        """
        Callers that try again on 503, on a refused connection and on one that ends
        without an answer, for as long as the grace period, get every picture.
        """
        self.startAgent()
        over = threading.Event()
        tallies = [Tally() for _ in range(self.callers)]
        threads = [
            threading.Thread(target=self.load, args=(tally, over), daemon=True) for tally in tallies
        ]
        for thread in threads:
            thread.start()
        time.sleep(1.5)
        told = time.monotonic()
        self.server.terminate()
        self.ends(self.server, 20)
        gone = time.monotonic()
        self.server = self.startServer()
        ready = time.monotonic()
        self.until(lambda: self.attempt() == "", "a picture of the new server")
        back = time.monotonic()
        time.sleep(1.5)
        over.set()
        for thread in threads:
            thread.join(GRACE + 15)
            self.assertFalse(thread.is_alive(), "a caller got no answer")
        failures = [failure for tally in tallies for failure in tally.failures]
        self.assertEqual(failures, [], self.said())
        requests = sum(tally.requests for tally in tallies)
        retries: dict[str, int] = {}
        for tally in tallies:
            for why, count in tally.retries.items():
                retries[why] = retries.get(why, 0) + count
        longest = max(tally.longest for tally in tallies)
        self.assertGreater(requests, 10 * self.callers)
        self.assertLess(longest, GRACE)
        if os.environ.get("DRAIN_REPORT"):
            sys.stderr.write(
                f"\n{type(self).__name__}: {requests} requests by {self.callers} callers, "
                f"0 failed, put off {retries}, longest {longest:.2f} s; "
                f"drain {gone - told:.2f} s, start {ready - gone:.2f} s, "
                f"a picture {back - ready:.2f} s after that\n"
            )

    def load(self, tally: Tally, over: threading.Event) -> None:
        """Ask for one picture after the other, each until it is there."""
        while not over.is_set():
            began = time.monotonic()
            while True:
                why = self.attempt()
                if not why:
                    break
                if not why.startswith("retry ") or time.monotonic() - began > GRACE:
                    tally.failures.append(f"{why} after {time.monotonic() - began:.1f} s")
                    break
                tally.retry(why.removeprefix("retry "))
                time.sleep(0.1)
            tally.requests += 1
            tally.longest = max(tally.longest, time.monotonic() - began)

    def attempt(self) -> str:
        """One attempt: empty if there is a picture, else what is in its place."""
        try:
            status, _, body = self.ask()
        except ConnectionRefusedError:
            return "retry refused"
        except (ConnectionResetError, http.client.RemoteDisconnected, BrokenPipeError):
            return "retry unanswered"
        except (OSError, http.client.HTTPException) as error:
            return f"{type(error).__name__}: {error}"
        if status == 503:
            return "retry 503"
        if status != 200 or body != PICTURE:
            return f"{status}, {len(body)} bytes: {body[:200]!r}"
        return ""


class SocketActivatedRestartTests(RestartTests):
    """The same where systemd keeps the port: nobody is refused."""

    keepsPort = True


class KeptTests(DrainCase):
    """The control connection outlives the server's process."""

    keepsPort = True

    def settings(self) -> list[str]:
        return ["--set", "drain.keep_connections=100"]

    def restart(self) -> None:
        self.server.terminate()
        self.ends(self.server, 10)
        self.server = self.startServer()

    def agentSaid(self) -> list[str]:
        """What the agent, which was started last but for servers, logged of its connection."""
        lines = "\n".join(log.read_text() for log in self.logs).splitlines()
        return [line for line in lines if "AgentService" in line]

    def test_kept(self) -> None:
        """
        Over two restarts the agent logs nothing at all, and dials work; the runner has
        a new generation each time, and nothing is left in the store.
        """
        self.startAgent()
        self.assertEqual(self.ask()[0], 200)
        before = self.agentSaid()
        for time_ in (1, 2):
            stored = len(self.manager.said)
            self.restart()
            self.manager.wait("FDNAME", "hrc", after=stored)
            status, _, picture = self.ask()
            self.assertEqual((status, picture), (200, PICTURE), self.said())
            self.assertEqual(self.manager.stored, [])
            status_ = self.call("GET", "/api/v1/admin/revdial/status?detail=true")
            [detail] = status_["details"]
            self.assertEqual((detail["key"], detail["carrier"]), (f"sandbox-{self.session}", "raw"))
            self.assertEqual(detail["generation"] > time_, True, detail)
            self.assertEqual(self.agentSaid(), before)
        self.assertNotIn("Traceback", self.said())

    def test_streamFinishesFirst(self) -> None:
        """A stream that is open at SIGTERM ends whole, and then the connection is handed on."""
        self.startAgent()
        asked = self.inThread(lambda: self.ask(2.0))
        self.streams(1)
        before = self.agentSaid()
        self.restart()
        status, _, picture = asked()
        self.assertEqual((status, picture), (200, PICTURE))
        self.assertEqual(self.ask()[0], 200)
        self.assertEqual(self.agentSaid(), before)

    def test_revokedMeanwhile(self) -> None:
        """F3: who lost the token or the session while no server ran does not go on."""
        self.startAgent()
        self.server.terminate()
        self.ends(self.server, 10)
        self.assertEqual(sorted(name for name, _ in self.manager.stored), ["hrc", "hrs"])
        with sqlite3.connect(self.state / "helix.sqlite") as database:
            database.execute("UPDATE tokens SET revoked = 1 WHERE kind = 'session'")
        database.close()
        self.server = self.startServer()
        self.agents.wait("STATUS", "not connected", 10)
        self.assertEqual(self.manager.stored, [])
        status = self.call("GET", "/api/v1/admin/revdial/status")
        self.assertEqual(status["active_connections"], 0)
        words = "may not be connected any more"
        self.until(lambda: words in self.said(), "said in the log")

    def test_storeForgets(self) -> None:
        """Where systemd keeps nothing, the agent simply connects again."""
        self.startAgent()
        self.server.terminate()
        self.ends(self.server, 10)
        self.manager.forget()
        self.server = self.startServer()
        self.agents.wait("STATUS", "not connected", 10)
        self.until(lambda: self.ask()[0] == 200, "a picture")

    def test_secondSignal(self) -> None:
        """G2: whoever does not want to wait does not get to keep anything either."""
        self.startAgent()
        asked = self.inThread(lambda: self.ask(20.0))
        self.streams(1)
        self.server.terminate()
        self.manager.wait("STOPPING", "1")
        self.server.terminate()
        self.ends(self.server, AT_ONCE)
        self.assertEqual(self.manager.stored, [])
        asked()


class ManyKeptTests(DrainCase):
    """Many agents, each a socket of this process."""

    keepsPort = True
    agentCount = 300

    def settings(self) -> list[str]:
        return [
            *("--set", "drain.keep_connections=1000"),
            *("--set", "limits.handshake_burst=1000"),
        ]

    def connect(self, number: int, secret: str) -> socket.socket:
        """An agent that has just registered, old or new by turns."""
        agent = socket.create_connection(("127.0.0.1", self.port), 10)
        self.addCleanup(agent.close)
        fields = [
            f"GET /api/v1/revdial?runnerid=wolf-{number} HTTP/1.1",
            "Host: cp",
            f"Authorization: Bearer {secret}",
            "Connection: Upgrade",
        ]
        if number % 3:
            fields += ["Upgrade: revdial", "Revdial-Features: raw, echo, tickets, goodbye"]
        agent.sendall("\r\n".join([*fields, "", ""]).encode())
        return agent

    def read(self, agent: socket.socket) -> bytes:
        """What has come, up to the first keep-alive."""
        found = b""
        agent.settimeout(DEADLINE)
        while b'"keep-alive"' not in found:
            data = agent.recv(65536)
            self.assertNotEqual(data, b"", f"closed after {found!r}\n{self.said()[-3000:]}")
            found += data
        return found

    def test_many(self) -> None:
        """None of them is closed, and each hears of the next server at once."""
        secret = self.call(
            "POST", "/api/v1/tokens", {"kind": "runner", "name": "a", "patterns": ["wolf-*"]}
        )["token"]
        agents = [self.connect(number, secret) for number in range(self.agentCount)]
        for agent in agents:
            self.read(agent)
        told = time.monotonic()
        self.server.terminate()
        self.ends(self.server, 20)
        gone = time.monotonic()
        self.server = self.startServer()
        ready = time.monotonic()
        for agent in agents:
            self.assertTrue(self.read(agent).startswith(b'{"command":"keep-alive"'))
        taken = time.monotonic()
        status = self.call("GET", "/api/v1/admin/revdial/status")
        self.assertEqual(status["active_connections"], self.agentCount)
        if os.environ.get("DRAIN_REPORT"):
            sys.stderr.write(
                f"\n{self.agentCount} connections: {gone - told:.2f} s to give them away, "
                f"{taken - ready:.2f} s from ready until the last went on\n"
            )


class KeptUnderLoadTests(RestartTests):
    """A restart under load with the port and the control connection kept."""

    keepsPort = True

    def settings(self) -> list[str]:
        return ["--set", "drain.keep_connections=100"]
