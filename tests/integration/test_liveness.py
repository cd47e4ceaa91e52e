"""
Who notices, and when, that the other end is dead, out of reach, or played by somebody
else; and that a live one is never taken for dead.

The intervals are scaled down, but for those of the kernel, which are in whole seconds.
With C{HELIX_TEST_LONG=1} the same is done with the numbers that are delivered.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.needs import needsProgram

from .fleet import (
    FleetCase,
    Program,
    Server,
    Service,
    Session,
    echo,
    inParallel,
    until,
)
from .paths import Impostor, Middlebox, RoutedPath

LISTENER = "helix_revdial.revdial.listener.Listener"

ASK, SILENCE = 0.5, 4.0
"""The scaled numbers, in seconds."""

WATCHED = {LISTENER: {"pingInterval": ASK, "silence": SILENCE}}
PATIENT = {LISTENER: {"pingInterval": ASK, "silence": 600.0}}
"""Agents with scaled numbers, and agents that never give up."""

AT_ONCE = 8.0
"""
Seconds that "at once" may take where two processors serve many; whoever does not ask at
all notices after 40 s, or never.
"""

LONG = os.environ.get("HELIX_TEST_LONG") == "1"


class LivenessCase(FleetCase):
    """What the tests here have in common."""

    def watching(self, **settings: Any) -> Server:
        """A server with scaled numbers."""
        values: dict[str, Any] = {
            "liveness__keep_alive": ASK,
            "liveness__silence": SILENCE,
            "tunnel__grace_period": 60,
            **settings,
        }
        return self.server(**values)

    def lost(self, server: Server, limit: float) -> float:
        """Wait until the server knows that the runner is gone: the seconds that it took."""
        began = time.monotonic()
        until(lambda: server.look()["table"]["grace"], "the runner is in grace", limit)
        return time.monotonic() - began

    def notices(self, agent: Program, after: int, limit: float) -> float:
        """Wait until the agent knows that the server is gone: the seconds that it took."""
        began = time.monotonic()
        agent.says("ended after", after=after, limit=limit)
        return time.monotonic() - began

    def middlebox(self, server: Server, idle: float | None = None) -> Middlebox:
        """Something between agents and C{server} that ends TCP."""
        box = Middlebox(server.host, server.port, idle)
        self.addCleanup(box.stop)
        return box


@needsProgram("ip", package="iproute2")
class PathCase(LivenessCase):
    """Agents behind a router."""

    if os.geteuid() != 0:
        skip = "needs root: network namespaces are made"

    def setUp(self) -> None:
        super().setUp()
        self.path = RoutedPath()
        self.addCleanup(self.path.close)
        self.path.open()

    def beyond(self, limits: Any = WATCHED, **settings: object) -> tuple[Server, Session, Program]:
        """A server here, and an agent at the other end of the path."""
        server = self.watching(host="0.0.0.0", **settings)
        server.host = self.path.here
        session = self.session(server)
        where = str(self.directory / "echo")
        service = Service(echo, where)
        self.addCleanup(service.stop)
        agent = self.agent(
            server,
            session.key,
            session.token,
            f"echo=unix://{where}",
            prefix=self.path.prefix,
            limits=limits,
        )
        return server, session, agent


class PathTests(PathCase):
    """A path that swallows what goes one way or both, with both ends' sockets open."""

    def test_lostBothWays(self) -> None:
        """B1: a NAT forgets the connection: both ends know, each by its own timer."""
        server, _, agent = self.beyond()
        at = len(agent.text)
        self.path.lose("here")
        self.path.lose("there")
        agent.says("silent server", after=at, limit=SILENCE + AT_ONCE)
        self.lost(server, SILENCE + AT_ONCE)
        server.says("silence")
        self.path.mend()
        agent.says("connected as", after=at)

    def test_nothingArrivesAtTheAgent(self) -> None:
        """B2: what one end says still arrives, but it is not heard: both ends know."""
        self.oneWay("there")

    def test_nothingArrivesAtTheServer(self) -> None:
        """B2: the other way round."""
        self.oneWay("here")

    def oneWay(self, towards: str) -> None:
        server, _, agent = self.beyond()
        at = len(agent.text)
        self.path.lose(towards)
        # In its own time, or because the one that noticed first could still say so.
        agent.says("ended after", after=at, limit=SILENCE + AT_ONCE)
        self.lost(server, SILENCE + AT_ONCE)
        self.path.mend()
        agent.says("connected as", after=at)

    def test_theKernelKnows(self) -> None:
        """
        B1: with nobody asking, the kernel ends a control connection whose path is gone;
        a data connection waits for its path to come back.
        """
        server, session, _ = self.beyond(
            PATIENT,
            liveness__kernel_timeout=2,
            liveness__keep_alive=600,
            liveness__silence=3600,
        )
        _, stream = server.dial(session.key, "echo")
        self.echoes(stream)
        self.path.lose("here")
        self.path.lose("there")
        stream.sendall(b"across")
        took = self.lost(server, 2 + 2 * AT_ONCE)
        self.assertGreater(took, 0.9)
        self.path.mend()
        with stream:
            stream.settimeout(20)
            self.assertEqual(stream.recv(6), b"across", "the stream was cut as well")

    def test_aReaderThatStopsIsNotCut(self) -> None:
        """A stream whose reader stops outlives the kernel's limit for control connections."""
        server, session, _ = self.beyond(PATIENT, liveness__kernel_timeout=1)
        _, stream = server.dial(session.key, "echo")
        sent = b"x" * 4_000_000
        writer = threading.Thread(target=stream.sendall, args=(sent,))
        writer.start()
        time.sleep(4)
        got = b""
        while len(got) < len(sent):
            piece = stream.recv(1 << 20)
            self.assertTrue(piece, f"the stream ended after {len(got)} bytes")
            got += piece
        writer.join(10)
        stream.close()
        self.assertEqual(server.look()["table"]["grace"], 0)

    def test_anotherNetwork(self) -> None:
        """B4: an agent whose address has changed is back, and nothing of before is in its way."""
        server, session, agent = self.beyond()
        at = len(agent.text)
        self.path.move()
        agent.says("connected as", after=at, limit=SILENCE + 2 * AT_ONCE)
        _, stream = server.dial(session.key, "echo")
        with stream:
            self.echoes(stream)
        until(
            lambda: server.look()["table"]["registrations"] == 1,
            "the connection of before is gone",
            SILENCE + AT_ONCE,
        )


class MiddleboxTests(LivenessCase):
    """Something between the two ends that is alive when the other end is not."""

    def through(
        self, idle: float | None = None, limits: Any = WATCHED, **settings: object
    ) -> tuple[Server, Middlebox, Session, Program]:
        """A server, and an agent that reaches it by way of a middlebox."""
        server = self.watching(**settings)
        box = self.middlebox(server, idle)
        session = self.session(server)
        agent = self.agent(server, session.key, session.token, echo, url=box.url, limits=limits)
        return server, box, session, agent

    def test_itSwallows(self) -> None:
        """B3: the kernels are told that all is well; the questions are never answered."""
        server, box, _, agent = self.through()
        at = len(agent.text)
        box.shut = box.pairs[0].swallow = True
        agent.says("silent server", after=at, limit=SILENCE + AT_ONCE)
        self.lost(server, SILENCE + AT_ONCE)
        server.says("silence")

    def test_itAnswersInThePeersPlace(self) -> None:
        """B3: it plays the other end to each, with keep-alives and the last token it saw."""
        server, box, _, agent = self.through()
        at = len(agent.text)
        impostor = Impostor()
        box.pairs[0].answer = impostor
        box.shut = box.pairs[0].swallow = True
        agent.says("silent server", after=at, limit=SILENCE + AT_ONCE)
        self.lost(server, SILENCE + AT_ONCE)
        self.assertGreater(impostor.said, 4, "it did not even try")

    def test_aBusyStreamBesideADeadControlConnection(self) -> None:
        """B7: streams prove nothing for the control connection, and do not end with it."""
        server, box, session, agent = self.through()
        _, stream = server.dial(session.key, "echo")
        stop = threading.Event()
        broken: list[BaseException] = []

        def use() -> None:
            try:
                while not stop.is_set():
                    self.echoes(stream, b"busy" * 1000)
            except BaseException as error:
                broken.append(error)

        user = threading.Thread(target=use)
        user.start()
        try:
            at = len(agent.text)
            until(lambda: len(box.pairs) > 1, "the stream is there")
            passed = box.pairs[1].bytes
            box.pairs[0].swallow = True
            agent.says("silent server", after=at, limit=SILENCE + AT_ONCE)
            agent.says("connected as", after=at)
            self.assertGreater(box.pairs[1].bytes, passed + 100_000)
        finally:
            stop.set()
            user.join(10)
        self.assertEqual(broken, [])
        self.echoes(stream)
        stream.close()

    def test_aDeadStreamBesideABusyControlConnection(self) -> None:
        """B7, the reverse: a stream that is swallowed is no reason to end anything else."""
        server, box, session, _ = self.through()
        _, dead = server.dial(session.key, "echo")
        until(lambda: len(box.pairs) > 1, "the stream is there")
        box.pairs[1].swallow = True
        dead.sendall(b"into the void")
        time.sleep(SILENCE + ASK)
        self.assertEqual(server.look()["table"]["grace"], 0)
        _, live = server.dial(session.key, "echo")
        with live:
            self.echoes(live)
        dead.close()

    def test_idleLimits(self) -> None:
        """B5: the questions keep an idle control connection alive through proxies' limits."""
        idle = 3.0
        server, box, _, agent = self.through(idle, PATIENT, liveness__silence=600)
        time.sleep(idle + 2)
        self.assertFalse(box.pairs[0].ended, "an idle connection was ended")
        self.assertNotIn("ended after", agent.text)
        self.assertEqual(server.look()["table"]["grace"], 0)


class OldAgentTests(LivenessCase):
    """Agents of 2025 and 2026, played by their bytes."""

    def register(self, server: Server, form: str) -> tuple[str, socket.socket]:
        key = "wolf-1"
        token = self.token(server, kind="runner", patterns=["wolf-*"])
        head, connection = server.upgrade(f"?runnerid={key}", token, form=form)
        self.addCleanup(connection.close)
        self.assertIn(head.split(b" ")[1], (b"200", b"101"), head)
        until(lambda: server.look()["table"]["active"], "the runner is registered")
        return key, connection

    def test_aSpeechlessAgentThatIsStuck(self) -> None:
        """
        The hijacked connection of 2025: its kernel is well, its program is stuck. Two
        dials that run out, one after the other, put the runner in grace.
        """
        server = self.watching(tunnel__dial_timeout=0.5)
        key, _ = self.register(server, "hijack")
        time.sleep(SILENCE + ASK)
        self.assertEqual(server.look()["table"]["grace"], 0, "it was judged by its silence")
        for expected in (0, 1):
            answer, stream = server.dial(key)
            stream.close()
            self.assertEqual(answer["error"], "timed-out")
            self.assertEqual(server.look()["table"]["grace"], expected)
        server.says("in a row without an answer")

    def test_anAgentThatDoesNotPong(self) -> None:
        """WebSocket agents of 2026 are asked by ping, and given up without a pong."""
        server = self.watching()
        self.register(server, "websocket")
        self.lost(server, SILENCE + AT_ONCE)
        server.says("silence")


@needsProgram("prlimit", package="util-linux")
class DescriptorTests(LivenessCase):
    """B9, E8: a server that has no descriptors left."""

    LIMIT = 120

    def limited(self, **settings: object) -> Server:
        """A server with few descriptors."""
        before = Server.start

        def start(server: Program) -> None:
            server._prefix = ["prlimit", f"--nofile={self.LIMIT}:{self.LIMIT}"]
            before(server)

        self.patch(Server, "start", start)
        return self.watching(**settings)

    def cpu(self, program: Program) -> float:
        """Seconds of processor time so far."""
        fields = Path(f"/proc/{program.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self, program: Program) -> int:
        return len(os.listdir(f"/proc/{program.process.pid}/fd"))

    def test_theReserveIsForAgents(self) -> None:
        """E8: new streams and requests get 503; who registers is let in; then all is well."""
        server = self.limited(limits__descriptor_reserve=40)
        session = self.session(server)
        self.agent(server, session.key, session.token, echo, limits=WATCHED)
        held: list[socket.socket] = []

        def release() -> None:
            while held:
                held.pop().close()

        self.addCleanup(release)
        while self.descriptors(server) < self.LIMIT - 35:
            held.append(server.connect())
            until(lambda: self.descriptors(server) > len(held), "it is accepted")
        time.sleep(1.1)
        answer, stream = server.dial(session.key, "echo")
        stream.close()
        self.assertEqual((answer["error"], answer["status"]), ("busy", 503), answer)
        status, body = server.request("GET", "/api/v1/sessions", server.admin)
        self.assertEqual((status, json.loads(body)["code"]), (503, "busy"))
        self.assertEqual(server.request("GET", "/healthz")[0], 200)
        head, late = server.upgrade(
            f"?runnerid={session.key}", session.token, "Revdial-Features: echo, raw"
        )
        self.assertIn(b" 101 ", head)
        late.close()
        release()
        until(
            lambda: server.request("GET", "/api/v1/sessions", server.admin)[0] == 200,
            "it serves again",
        )

    def test_noDescriptorIsLeft(self) -> None:
        """
        B9: whoever connects is closed at once; nothing spins, nothing ends, and the
        agent that is connected stays so.
        """
        server = self.limited()
        session = self.session(server)
        agent = self.agent(server, session.key, session.token, echo, limits=WATCHED)
        held = [server.connect() for _ in range(self.LIMIT + 20)]
        try:
            until(
                lambda: "EMFILE" in server.text or self.descriptors(server) >= self.LIMIT,
                "there is none left",
            )
            before = self.cpu(server)
            time.sleep(2)
            self.assertLess(self.cpu(server) - before, 0.5, "it spins")
            self.assertIsNone(server.process.poll())
            self.assertNotIn("ended after", agent.text)
        finally:
            for each in held:
                each.close()
        until(lambda: server.answers(), "it serves again")
        _, stream = server.dial(session.key, "echo")
        with stream:
            self.echoes(stream)


class RestartTests(LivenessCase):
    def test_nobodyIsJudgedDeadBeforeTheSettleTime(self) -> None:
        """
        A9: a server that was killed and started again awaits the runners that it had:
        a dial waits, and is answered when the agent is back.
        """
        server = self.watching()
        session = self.session(server)
        agent = self.agent(server, session.key, session.token, echo, reconnect=4)
        written = self.directory / "state" / "runners.json"
        until(lambda: written.exists() and session.key in written.read_text(), "it is written down")
        self.assertNotIn(session.token, written.read_text())
        agent.freeze()
        server.kill()
        self.startServer(server)
        look = server.get(f"/api/v1/external-agents/{session.id}/connection")
        self.assertEqual(look["status"], "grace")
        thaw = threading.Timer(0.5, agent.thaw)
        thaw.start()
        answer, stream = server.dial(session.key, "echo", 20)
        with stream:
            self.assertIsNone(answer["error"], answer)
            self.echoes(stream)
        thaw.join()


class LongTests(PathCase):
    """The delivered numbers, in real time; minutes. They are printed."""

    if not LONG:
        skip = "takes minutes: HELIX_TEST_LONG=1"

    DELIVERED = {
        "liveness__keep_alive": 15,
        "liveness__silence": 40,
    }

    def report(self, text: str) -> None:
        sys.stderr.write(f"\n    {text}\n")

    def both(self, server: Server, agent: Program, cut: Callable[[], None]) -> list[float]:
        """Seconds from C{cut} until the server, and the agent, know."""
        time.sleep(3)
        at = len(agent.text)
        cut()
        found = inParallel(
            2,
            lambda number: self.notices(agent, at, 60) if number else self.lost(server, 60),
        )
        for each in found:
            if isinstance(each, Exception):
                raise each
        return found

    def test_lostBothWays(self) -> None:
        """B1: where the kernel can tell, about ten seconds; at both ends."""
        server, _, agent = self.beyond(None, **self.DELIVERED)

        def cut() -> None:
            self.path.lose("here")
            self.path.lose("there")

        times = self.both(server, agent, cut)
        self.report(f"black hole both ways: server {times[0]:.1f} s, agent {times[1]:.1f} s")
        self.assertLess(max(times), 16)

    def test_nothingArrivesAtTheAgent(self) -> None:
        """B2: one way only."""
        self.oneWay("there")

    def test_nothingArrivesAtTheServer(self) -> None:
        """B2: the other way round."""
        self.oneWay("here")

    def oneWay(self, towards: str) -> None:
        server, _, agent = self.beyond(None, **self.DELIVERED)
        times = self.both(server, agent, lambda: self.path.lose(towards))
        self.report(f"nothing arrives {towards}: server {times[0]:.1f} s, agent {times[1]:.1f} s")
        self.assertLess(max(times), 45)

    def test_middlebox(self) -> None:
        """B3: whatever is in between."""
        server = self.watching(**self.DELIVERED)
        box = self.middlebox(server)
        session = self.session(server)
        agent = self.agent(server, session.key, session.token, echo, url=box.url)

        def cut() -> None:
            box.pairs[0].answer = Impostor()
            box.shut = box.pairs[0].swallow = True

        times = self.both(server, agent, cut)
        self.report(f"an impostor in between: server {times[0]:.1f} s, agent {times[1]:.1f} s")
        self.assertLess(max(times), 45)

    def test_frozenPeers(self) -> None:
        """A stopped process, whose kernel is well."""
        server = self.watching(**self.DELIVERED)
        session = self.session(server)
        agent = self.agent(server, session.key, session.token, echo)
        time.sleep(3)
        agent.freeze()
        took = self.lost(server, 60)
        self.report(f"a frozen agent: server {took:.1f} s")
        self.assertLess(took, 45)
        at = len(agent.text)
        agent.thaw()
        agent.says("connected as", after=at, limit=60)
        at = len(agent.text)
        server.freeze()
        took = self.notices(agent, at, 60)
        server.thaw()
        self.report(f"a frozen server: agent {took:.1f} s")
        self.assertLess(took, 45)

    def test_idleLimits(self) -> None:
        """B5: proxies that end what is idle for 30 s."""
        server = self.watching(**self.DELIVERED)
        box = self.middlebox(server, 30)
        session = self.session(server)
        agent = self.agent(server, session.key, session.token, echo, url=box.url)
        time.sleep(95)
        self.assertFalse(box.pairs[0].ended)
        self.assertNotIn("ended after", agent.text)
        self.report("an idle control connection outlived three idle limits of 30 s")

    def test_anotherNetwork(self) -> None:
        """B4: with the delivered numbers."""
        _, _, agent = self.beyond(None, **self.DELIVERED)
        time.sleep(3)
        at = len(agent.text)
        began = time.monotonic()
        self.path.move()
        agent.says("connected as", after=at, limit=60)
        self.report(f"back from another network after {time.monotonic() - began:.1f} s")
