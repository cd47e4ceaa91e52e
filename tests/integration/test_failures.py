"""
Either end dies, hangs, or is cut off: who notices and when, what is lost, and
that nothing is left.  The table in docs/operating.md says the same in words.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import threading
import time
from typing import Any

from tests.needs import needsProgram

from .fleet import (
    LIMIT,
    FleetCase,
    Program,
    Server,
    Service,
    Session,
    desktop,
    echo,
    inParallel,
    receive,
    until,
)

LISTENER = "helix_revdial.revdial.listener.Listener"

AT_ONCE = 8.0
"""
Seconds that "at once" may take where two processors serve many; what it is told from
(silence, a handshake, a desktop that does not answer) takes longer, or for ever.
"""


class Waiting:
    """A dial that waits, in a thread."""

    def __init__(
        self, server: Server, runner: str, target: str | None = None, timeout: float | None = None
    ) -> None:
        self.answer: dict[str, Any] = {}
        self.stream: socket.socket | None = None
        self.began = time.monotonic()
        self.took = 0.0
        self._arguments = (server, runner, target, timeout)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        server, runner, target, timeout = self._arguments
        try:
            self.answer, self.stream = server.dial(runner, target, timeout)
        except OSError as error:
            self.answer = {"error": type(error).__name__, "status": 0}
        self.took = time.monotonic() - self.began

    def result(self) -> dict[str, Any]:
        """What came of it."""
        self._thread.join(30)
        assert self.answer, "the dial has not ended"
        return self.answer


class FailureCase(FleetCase):
    """What the tests here have in common."""

    def grace(self, server: Server, limit: float = AT_ONCE) -> float:
        """Wait until the server knows that the runner is gone."""
        return until(lambda: server.look()["table"]["grace"], "the runner is in grace", limit)

    def outstanding(self, server: Server, number: int) -> None:
        """Wait until dials wait."""
        until(lambda: server.look()["table"]["pending"] == number, f"{number} dials wait")


class AgentGoesTests(FailureCase):
    """The agent's end."""

    def test_killed(self) -> None:
        """
        A killed agent's kernel ends its connections: the server knows at once,
        streams end, dials wait and are answered by the agent that comes back.
        """
        server = self.server(tunnel__grace_period=30)
        session = self.session(server)
        server.settle()
        agent = self.agent(server, session.key, session.token, desktop, echo)
        self.screenshot(server, session)
        _, stream = server.dial(session.key, "echo")
        self.echoes(stream)
        agent.kill()
        self.grace(server)
        with stream:
            self.assertEqual(receive(stream, AT_ONCE), b"")
        waiting = [Waiting(server, session.key, "echo", 25) for _ in range(5)]
        self.outstanding(server, 5)
        detail = server.get(f"/api/v1/external-agents/{session.id}/connection")
        self.assertEqual(detail["status"], "grace")
        agent.start()
        for dial in waiting:
            self.assertIsNone(dial.result()["error"])
            assert dial.stream is not None
            with dial.stream:
                self.echoes(dial.stream)
        self.screenshot(server, session)
        agent.end()
        self.asBefore(server)

    def test_killedForGood(self) -> None:
        """An agent that does not come back: "reconnect timeout" when grace ends, 503."""
        server = self.server(tunnel__grace_period=8)
        session = self.session(server)
        server.settle()
        agent = self.agent(server, session.key, session.token, desktop)
        agent.kill()
        self.grace(server)
        dial = Waiting(server, session.key)
        status, body = self.picture(server, session)
        self.assertEqual((status, json.loads(body)["code"]), (503, "reconnect-timeout"), body)
        self.assertEqual(dial.result()["error"], "reconnect-timeout")
        self.assertLess(dial.took, 8 + AT_ONCE)
        self.asBefore(server)
        status, body = self.picture(server, session)
        self.assertEqual((status, json.loads(body)["code"]), (503, "not-connected"), body)

    def test_frozen(self) -> None:
        """
        A frozen agent: dials time out with 504; the same owner takes the name over
        at once; what thaws hears that it is superseded, and stays away.
        """
        server = self.server()
        session = self.session(server)
        server.settle()
        frozen = self.agent(server, session.key, session.token, desktop)
        frozen.freeze()
        status, body = self.picture(server, session)
        self.assertEqual((status, json.loads(body)["code"]), (504, "timed-out"), body)
        began = time.monotonic()
        agent = self.agent(server, session.key, session.token, desktop)
        self.screenshot(server, session)
        self.assertLess(time.monotonic() - began, LIMIT)
        at = len(frozen.text)
        frozen.thaw()
        frozen.says("superseded", after=at)
        frozen.says("connecting again in", after=at)
        wait = float(frozen.text[at:].partition("connecting again in ")[2].split()[0])
        self.assertGreaterEqual(wait, 30)
        self.screenshot(server, session)
        frozen.end()
        self.assertEqual(server.look()["table"]["active"], 1)
        agent.end()
        self.asBefore(server)

    def test_frozenForGood(self) -> None:
        """B1: without a successor, the server's silence limit ends a frozen agent."""
        server = self.server(
            tunnel__grace_period=4, liveness__keep_alive=0.5, liveness__silence=4.0
        )
        session = self.session(server)
        server.settle()
        agent = self.agent(server, session.key, session.token, desktop)
        agent.freeze()
        self.grace(server, 4 + AT_ONCE)
        server.says("silence")
        self.asBefore(server)
        at = len(agent.text)
        agent.thaw()
        agent.says("connected as", after=at)
        self.screenshot(server, session)

    def test_manyTimes(self) -> None:
        """A8: an agent that is killed and started over and over leaves one entry."""
        server = self.server()
        session = self.session(server)
        server.settle()
        agent = self.agent(server, session.key, session.token, desktop)
        for _ in range(5):
            agent.kill()
            at = len(agent.text)
            agent.start()
            agent.says("connected as", after=at)
        self.screenshot(server, session)
        table = server.look()["table"]
        self.assertEqual((table["active"], table["registrations"], table["grace"]), (1, 1, 0))
        agent.end()
        self.asBefore(server)


class ServerGoesTests(FailureCase):
    """The server's end."""

    def inFlight(self, server: Server, session: Session) -> list[Waiting]:
        """Streams that are up, and dials that wait for an agent that dawdles."""
        dials = [Waiting(server, session.key, "echo") for _ in range(10)]
        for dial in dials:
            self.assertIsNone(dial.result()["error"], dial.result())
        return dials

    def test_killed(self) -> None:
        """
        A killed server: callers get an error at once; the agent drops what was
        under way, comes back with jitter, and has nothing left of before.
        """
        server = self.server()
        session = self.session(server)
        agent = self.agent(server, session.key, session.token, desktop, echo)
        self.screenshot(server, session)
        agent.settle()
        dials = self.inFlight(server, session)
        self.assertEqual(agent.look()["table"]["streams"], 10)
        agent.freeze()
        waiting = [Waiting(server, session.key, "echo", 20) for _ in range(10)]
        pictures: list[Any] = []
        asking = threading.Thread(
            target=lambda: pictures.extend(
                inParallel(3, lambda number: self.picture(server, session))
            )
        )
        asking.start()
        self.outstanding(server, 13)
        agent.thaw()
        server.kill()
        for dial in waiting:
            dial.result()
        asking.join()
        for picture in pictures:
            self.assertTrue(isinstance(picture, Exception) or picture[0] == 200, picture)
        for dial in (*dials, *waiting):
            if dial.stream is not None:
                dial.stream.close()
        at = len(agent.text)
        until(lambda: agent.look()["table"]["connected"] == 0, "the agent knows", AT_ONCE)
        until(lambda: agent.look()["table"]["streams"] == 0, "the streams ended", AT_ONCE)
        self.startServer(server)
        agent.says("connected as", after=at)
        self.screenshot(server, session)
        self.asBefore(agent)
        self.assertEqual(server.look()["table"]["active"], 1)

    def test_restartUnderLoad(self) -> None:
        """
        SIGTERM with requests and dials in flight: every caller gets an answer or an
        error, agents hear why, and are back when the server is.
        """
        server = self.server()
        session = self.session(server)
        agents = [self.agent(server, session.key, session.token, desktop, echo)]
        others = [self.session(server) for _ in range(3)]
        agents += [self.agent(server, each.key, each.token, desktop) for each in others]
        self.screenshot(server, session)
        for agent in agents:
            agent.settle()
        streams = self.inFlight(server, session)
        over = threading.Event()

        def load(_: int) -> list[object]:
            found: list[object] = []
            while not over.is_set():
                try:
                    found.append(self.picture(server, session)[0])
                except OSError as error:
                    found.append(type(error))
                    time.sleep(0.01)
            return found

        outcomes: list[Any] = []
        loading = threading.Thread(target=lambda: outcomes.extend(inParallel(8, load)))
        loading.start()
        marks = [len(agent.text) for agent in agents]
        try:
            time.sleep(0.5)
            began = time.monotonic()
            server.end()
            stopped = time.monotonic() - began
            self.startServer(server)
            for agent, at in zip(agents, marks, strict=True):
                agent.says("connected as", after=at)
            began = time.monotonic()
            until(lambda: self.picture(server, session)[0] == 200, "pictures are back")
        finally:
            over.set()
            loading.join()
        self.assertLess(stopped, 8)
        self.assertEqual(server.process.poll(), None)
        seen = {each for one in outcomes for each in one}
        self.assertIn(200, seen)
        self.assertLessEqual(
            {each for each in seen if isinstance(each, int)}, {200, 502, 503, 504}, seen
        )
        for dial in streams:
            assert dial.stream is not None
            dial.stream.close()
        for agent, at, each in zip(agents, marks, (session, *others), strict=True):
            self.assertRegex(agent.text[at:], r"ended after \d+ s: (goodbye|shutdown)")
            self.screenshot(server, each)
            self.asBefore(agent)
        table = server.look()["table"]
        self.assertEqual(
            (table["active"], table["pending"], table["calls"], table["streams"]), (4, 0, 0, 0)
        )

    def test_frozen(self) -> None:
        """
        B1: a frozen server: the agent's own silence limit ends the connection; it
        tries again and again, and is there when the server thaws.
        """
        server = self.server()
        session = self.session(server)
        agent = self.agent(
            server,
            session.key,
            session.token,
            desktop,
            limits={
                LISTENER: {"silence": 4.0, "pingInterval": 0.5},
                "helix_revdial.revdial.client.ServerPath": {"timeout": 0.5},
            },
        )
        self.screenshot(server, session)
        agent.settle()
        at = len(agent.text)
        server.freeze()
        took = agent.says("silent server", after=at, limit=4 + AT_ONCE)
        self.assertGreater(took, 0.5)
        agent.says("cannot connect", after=at)
        server.thaw()
        agent.says("connected as", after=at)
        self.screenshot(server, session)
        self.asBefore(agent)
        until(lambda: server.look()["table"]["registrations"] == 1, "one registration is left")


class NamesTests(FailureCase):
    """Who has a name, when several want it."""

    def audit(self, event: str) -> list[str]:
        """The entries of the audit log for C{event}."""
        database = sqlite3.connect(self.directory / "state" / "helix.sqlite", timeout=5)
        try:
            rows = database.execute("SELECT * FROM audit WHERE event = ?", (event,)).fetchall()
        finally:
            database.close()
        return [str(row) for row in rows]

    def test_anotherOwner(self) -> None:
        """
        A4: another owner's claim is 409 and audited, live and in grace; nobody else
        notices; afterwards the name is free.
        """
        server = self.server(tunnel__grace_period=5)
        session = self.session(server)
        self.agent(server, session.key, session.token, desktop)
        mine, theirs = (self.token(server, kind="runner", patterns=["wolf-*"]) for _ in range(2))
        holder = self.agent(server, "wolf-1", mine, echo)
        holder.settle()
        claimant = self.agent(server, "wolf-1", theirs, echo, wait=False)
        claimant.says("409")
        self.assertIn("409", claimant.text)
        until(lambda: self.audit("claim-refused"), "the refusal is in the audit log")
        _, stream = server.dial("wolf-1", "echo")
        with stream:
            self.echoes(stream)
        self.asBefore(holder)
        holder.kill()
        until(lambda: server.look()["table"]["grace"] == 1, "the holder is in grace", AT_ONCE)
        head, connection = server.upgrade("?runnerid=wolf-1", theirs)
        connection.close()
        self.assertIn(b" 409 ", head)
        self.assertIn(b"\r\nRetry-After: ", head)
        claimant.says("connected as")
        _, stream = server.dial("wolf-1", "echo")
        with stream:
            self.echoes(stream)
        self.screenshot(server, session)

    def test_twoAgents(self) -> None:
        """
        A5: two agents with one token: the later one serves, the other hears that it is
        superseded and leaves it alone for at least 30 s.
        """
        server = self.server()
        session = self.session(server)
        server.settle()
        first = self.agent(server, session.key, session.token, desktop)
        second = self.agent(server, session.key, session.token, desktop)
        first.says("superseded")
        first.says("connecting again in")
        wait = float(first.text.rpartition("connecting again in ")[2].split()[0])
        self.assertGreaterEqual(wait, 30)
        until(lambda: self.audit("takeover"), "the takeover is in the audit log")
        self.screenshot(server, session)
        table = server.look()["table"]
        self.assertEqual((table["active"], table["registrations"], table["http"]), (1, 1, 1))
        first.end()
        self.screenshot(server, session)
        second.end()
        self.asBefore(server)

    def test_clonesThatDoNotListen(self) -> None:
        """
        A5: two programs of the old wire that connect again at once, whatever they are
        told: after three takeovers the one that is there stays, the other gets 409
        with Retry-After, however often it comes.
        """
        server = self.server(tunnel__grace_period=0.5)
        session = self.session(server)
        server.settle()
        held = {}
        refused = 0
        began = time.monotonic()
        for turn in range(4):
            head, connection = server.upgrade(
                f"?runnerid={session.key}", session.token, form="hijack"
            )
            self.addCleanup(connection.close)
            if b" 200 " in head:
                held[turn] = connection
            else:
                self.assertIn(b" 409 ", head)
                self.assertIn(b"\r\nRetry-After: 60\r\n", head)
                refused += 1
                connection.close()
        self.assertLess(time.monotonic() - began, 2 * LIMIT)
        self.assertEqual(sorted(held), [0, 1, 2])
        self.assertEqual(refused, 1)
        until(lambda: self.audit("clone-refused"), "the refusal is in the audit log")
        # The others were closed; the last one is asked for dials.
        for turn in (0, 1):
            receive(held[turn])
        dial = Waiting(server, session.key)
        self.outstanding(server, 1)
        held[2].settimeout(5)
        data = b""
        while b"conn-ready" not in data:
            data += held[2].recv(4096)
        self.assertEqual(dial.result()["error"], "timed-out")
        held[2].close()
        self.asBefore(server)


NEEDED = os.geteuid() == 0


@needsProgram("ip", package="iproute2")
class BlackHoleTests(FailureCase):
    """A path that swallows everything, with both ends' sockets open."""

    if not NEEDED:
        skip = "needs root: a network namespace is made"

    def setUp(self) -> None:
        super().setUp()
        number = os.getpid()
        self.space = f"helix{number}"
        self.device = f"hx{number}"
        network = f"10.{201 + (number >> 8) % 50}.{number % 256}"
        self.here, there = f"{network}.1", f"{network}.2"
        self.ip("netns", "add", self.space)
        self.addCleanup(self.ip, "netns", "del", self.space)
        self.ip("link", "add", self.device, "type", "veth", "peer", "eth0", "netns", self.space)
        self.addCleanup(self.ip, "link", "del", self.device)
        self.ip("addr", "add", f"{self.here}/30", "dev", self.device)
        self.ip("link", "set", self.device, "up")
        self.ip("-n", self.space, "addr", "add", f"{there}/30", "dev", "eth0")
        self.ip("-n", self.space, "link", "set", "eth0", "up")

    def ip(self, *arguments: str) -> None:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, (arguments, done.stderr))

    def cut(self) -> None:
        """From now on nothing gets through, and nobody is told."""
        self.ip("-n", self.space, "link", "set", "eth0", "down")

    def mend(self) -> None:
        """Let everything through again."""
        self.ip("-n", self.space, "link", "set", "eth0", "up")

    def beyond(self, server: Server, session: Session, **words: Any) -> Program:
        """An agent behind the path."""
        path = str(self.directory / "desktop")
        if not os.path.exists(path):
            service = Service(desktop, path)
            self.addCleanup(service.stop)
        prefix = ("ip", "netns", "exec", self.space)
        target = f"desktop=unix://{path}"
        return self.agent(server, session.key, session.token, target, prefix=prefix, **words)

    def test_takeoverWhileHalfOpen(self) -> None:
        """
        A1: the server still believes in a connection that is dead; the agent has
        found another way, and serves within its handshake. The dead connection is
        gone from the server within the 5 s that a closing peer has.
        """
        server = self.server(host="0.0.0.0")
        server.host = self.here
        session = self.session(server)
        server.settle()
        old = self.beyond(server, session)
        self.screenshot(server, session)
        self.cut()
        self.assertEqual(server.look()["table"]["active"], 1)
        began = time.monotonic()
        new = self.agent(server, session.key, session.token, desktop)
        self.screenshot(server, session)
        self.assertLess(time.monotonic() - began, LIMIT)
        until(
            lambda: server.look()["table"]["registrations"] == 1,
            "the dead one is gone",
            5 + AT_ONCE,
        )
        self.screenshot(server, session)
        old.kill()
        new.end()
        self.asBefore(server)

    def test_bothSidesNotice(self) -> None:
        """B1: each side's own timer ends the connection, and the agent finds back."""
        server = self.server(
            host="0.0.0.0",
            liveness__keep_alive=0.5,
            liveness__silence=4.5,
            tunnel__grace_period=30,
        )
        server.host = self.here
        session = self.session(server)
        agent = self.beyond(
            server, session, limits={LISTENER: {"silence": 4.0, "pingInterval": 0.5}}
        )
        agent.settle()
        server.settle()
        at = len(agent.text)
        self.cut()
        agent.says("silent server", after=at, limit=4 + AT_ONCE)
        self.grace(server, 5 + AT_ONCE)
        dial = Waiting(server, session.key, timeout=25)
        self.outstanding(server, 1)
        self.mend()
        agent.says("connected as", after=at)
        self.assertIsNone(dial.result()["error"])
        assert dial.stream is not None
        dial.stream.close()
        self.screenshot(server, session)
        self.asBefore(agent)
        self.asBefore(server)
