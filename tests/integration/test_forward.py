"""C{helix connect} and C{helix forward}, with a server and an agent, all as processes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.needs import needsProgram

from .fleet import LIMIT, FleetCase, Server, Service, echo, receive, reset, until
from .scripted import ROOT
from .sshd import SSHServer

HELIX = [sys.executable, "-m", "helix_revdial.cli"]


def countdown(connection: socket.socket) -> None:
    """Answers the end of what comes with how much it was, and the digest of it."""
    digest = hashlib.sha256()
    size = 0
    while data := connection.recv(65536):
        digest.update(data)
        size += len(data)
    connection.sendall(f"{size} {digest.hexdigest()}".encode())


def source(connection: socket.socket) -> None:
    """Sends 8 MiB and ends, and reads on until the peer ends."""
    connection.sendall(bytes(range(256)) * 32768)
    connection.shutdown(socket.SHUT_WR)
    while connection.recv(65536):
        pass


def breaks(connection: socket.socket) -> None:
    """Sends something and breaks."""
    connection.sendall(b"half of it")
    connection.recv(1)
    reset(connection)


class ForwardCase(FleetCase):
    """A server, an agent with targets, and an operator, for whom they are."""

    def setUp(self) -> None:
        super().setUp()
        self.fleet = self.server()
        self.runner = self.token(self.fleet, kind="runner", patterns=["wolf-*"])
        self.operator = self.token(self.fleet, kind="user", user="ann", role="operator")

    def environment(self, server: Server | None = None, token: str | None = None) -> dict[str, str]:
        return {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(self.directory),
            "HELIX_URL": (server or self.fleet).url,
            "HELIX_API_KEY": token or self.operator,
            "PYTHONPATH": str(ROOT),
        }

    def helix(
        self, *arguments: str, given: bytes = b"", **words: Any
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end."""
        return subprocess.run(
            [*HELIX, *arguments],
            input=given,
            capture_output=True,
            env=self.environment(**words),
            timeout=3 * LIMIT,
        )

    def start(self, *arguments: str, **words: Any) -> Any:
        """Start a command; it is killed at the end of the test if it still runs."""
        process = subprocess.Popen(
            [*HELIX, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment(),
            **words,
        )

        def end() -> None:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()

        self.addCleanup(end)
        return process

    def wolf(self, *targets: Any) -> Any:
        """An agent whose targets are for operators."""
        return self.agent(self.fleet, "wolf-1", self.runner, *targets)


class ConnectTests(ForwardCase):
    """C{helix connect}."""

    def test_halfCloseBothWays(self) -> None:
        """D1: the end of standard input reaches the target, whose answer comes whole after it."""
        self.wolf(countdown, source)
        data = random.Random(1).randbytes(5_000_000)
        done = self.helix("connect", "wolf-1", "countdown", given=data)
        expected = f"{len(data)} {hashlib.sha256(data).hexdigest()}".encode()
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, expected, b""))
        done = self.helix("connect", "wolf-1", "source")
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertEqual(done.stdout, bytes(range(256)) * 32768)

    def test_theTargetEndsFirst(self) -> None:
        """The target's end closes standard output; standard input goes on until its own end."""
        self.wolf(source)
        process = self.start("connect", "wolf-1", "source")
        self.assertEqual(len(process.stdout.read()), 256 * 32768)
        time.sleep(0.2)
        self.assertIsNone(process.poll(), "it ended before its standard input did")
        process.stdin.write(b"still heard")
        process.stdin.close()
        self.assertEqual(process.wait(LIMIT), 0)

    def test_aReaderThatStops(self) -> None:
        """Backpressure: what nobody reads is not read from the target; all comes in the end."""
        self.wolf(source)
        process = self.start("connect", "wolf-1", "source")
        head = process.stdout.read(1)
        time.sleep(0.5)
        status = Path(f"/proc/{process.pid}/status").read_text()
        resident = int(status.partition("VmRSS:")[2].split()[0])
        self.assertEqual(len(head + process.stdout.read()), 256 * 32768)
        self.assertLess(resident, 150_000, "kB in memory while nobody read")
        process.stdin.close()
        self.assertEqual(process.wait(LIMIT), 0)

    def test_theTargetBreaks(self) -> None:
        """A stream that breaks is a failure with a sentence, after what had come."""
        self.wolf(breaks)
        process = self.start("connect", "wolf-1", "breaks")
        self.assertEqual(process.stdout.read(10), b"half of it")
        process.stdin.write(b"x")
        process.stdin.flush()
        self.assertEqual(process.wait(LIMIT), 1)
        self.assertRegex(process.stderr.read(), rb"\Ahelix: the stream broke off.*\n\Z")

    def test_nobodyReads(self) -> None:
        """The reader of standard output goes away: so does the command, as any in a pipe."""
        self.wolf(echo)
        process = self.start("connect", "wolf-1", "echo")
        process.stdin.write(b"x")
        process.stdin.flush()
        self.assertEqual(process.stdout.read(1), b"x")
        process.stdout.close()
        self.assertEqual(process.wait(LIMIT), 141)

    def test_refusals(self) -> None:
        """Exit code 1 and a sentence with status and word; D21: a port where nobody listens."""
        self.wolf("closed=127.0.0.1:9")
        for words, text in (
            (("wolf-9", "x"), "503 not-connected - Runner wolf-9 not connected: no connection"),
            (("wolf-1", "closed"), "502 target-refused - Runner wolf-1 connected, but its service"),
            (("wolf-1", "none"), "403 not-allowed - Runner wolf-1 has no target none for this"),
        ):
            done = self.helix("connect", *words)
            self.assertEqual((done.returncode, done.stdout), (1, b""), done)
            self.assertTrue(done.stderr.decode().startswith(f"helix: {text}"), done.stderr)
            self.assertEqual(done.stderr.count(b"\n"), 1, done.stderr)
        done = self.helix("connect", "wolf-1", "closed", token="hlx_" + "x" * 43)
        self.assertEqual(done.returncode, 1)
        self.assertTrue(done.stderr.startswith(b"helix: 401 - "), done.stderr)

    def test_theTokenIsRevoked(self) -> None:
        """F3: a revoked token ends its streams."""
        self.wolf(echo)
        process = self.start("connect", "wolf-1", "echo")
        process.stdin.write(b"x")
        process.stdin.flush()
        self.assertEqual(process.stdout.read(1), b"x")
        (record,) = [
            one for one in self.fleet.get("/api/v1/tokens")["items"] if one.get("user") == "ann"
        ]
        self.fleet.request("DELETE", f"/api/v1/tokens/{record['id']}", self.fleet.admin)
        self.assertEqual(process.wait(LIMIT), 1)

    def test_nothingIsLeft(self) -> None:
        """After streams that ended in each way, server and agent are what they were."""
        agent = self.wolf(echo, countdown, breaks)
        with self.nothingLeft(self.fleet, agent):
            self.helix("connect", "wolf-1", "echo", given=b"x" * 100_000)
            self.helix("connect", "wolf-1", "countdown", given=b"x")
            self.helix("connect", "wolf-1", "breaks", given=b"x")
            process = self.start("connect", "wolf-1", "echo")
            process.stdin.write(b"x")
            process.stdin.flush()
            process.stdout.read(1)
            process.kill()
            process.wait()


class SSHTests(ForwardCase):
    """C6: ssh, scp and rsync with C{helix connect} for a ProxyCommand."""

    def setUp(self) -> None:
        super().setUp()
        self.sshd = SSHServer(self.directory)
        self.addCleanup(self.sshd.stop)
        self.wolf(f"ssh=127.0.0.1:{self.sshd.port}")
        self.proxy = [
            "-o",
            "ProxyCommand=" + shlex.join(HELIX) + " connect %h ssh",
            *self.sshd.options,
        ]

    def run_(self, *argv: str, given: bytes = b"") -> bytes:
        """What a program prints that must succeed."""
        done = subprocess.run(
            argv, input=given, capture_output=True, env=self.environment(), timeout=6 * LIMIT
        )
        log = self.sshd.log.read_text()[-1500:]
        self.assertEqual(done.returncode, 0, f"{done.stderr.decode()}\nsshd:\n{log}")
        return done.stdout

    def file(self, name: str, size: int) -> Path:
        path = self.directory / name
        path.write_bytes(random.Random(size).randbytes(size))
        return path

    def same(self, one: Path, other: Path) -> None:
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (one, other)]
        self.assertEqual(*digests)

    @needsProgram("sshd", package="openssh-server")
    def test_ssh(self) -> None:
        """A command's output, its input with its end, and its exit code."""
        self.assertEqual(
            self.run_("ssh", *self.proxy, "wolf-1", "echo", "beside it"), b"beside it\n"
        )
        data = random.Random(3).randbytes(300_000)
        found = self.run_("ssh", *self.proxy, "wolf-1", "sha256sum", given=data)
        self.assertEqual(found.split()[0].decode(), hashlib.sha256(data).hexdigest())
        done = subprocess.run(
            ["ssh", *self.proxy, "wolf-1", "exit 7"],
            env=self.environment(), stdin=subprocess.DEVNULL, timeout=LIMIT,
        )  # fmt: skip
        self.assertEqual(done.returncode, 7)

    @needsProgram("sshd", package="openssh-server")
    def test_scp(self) -> None:
        """50 MB there and back are the same bytes."""
        big = self.file("big", 50_000_000)
        self.run_("scp", "-q", *self.proxy, str(big), f"wolf-1:{self.directory}/there")
        self.run_("scp", "-q", *self.proxy, f"wolf-1:{self.directory}/there", str(big) + ".back")
        self.same(big, self.directory / "there")
        self.same(big, self.directory / "big.back")

    @needsProgram("rsync", package="rsync")
    def test_rsync(self) -> None:
        """A tree is the same on the other side, and again after a change."""
        tree = self.directory / "tree"
        tree.mkdir()
        for number in range(30):
            (tree / f"{number}").write_bytes(random.Random(number).randbytes(number * 10_000))
        shell = shlex.join(["ssh", *self.proxy])
        for change in (b"", b"changed"):
            (tree / "0").write_bytes(change)
            self.run_("rsync", "-a", "-e", shell, f"{tree}/", f"wolf-1:{self.directory}/copy/")
            for number in range(30):
                self.same(tree / f"{number}", self.directory / "copy" / f"{number}")


class ForwardTests(ForwardCase):
    """C{helix forward}."""

    def forward(self, *arguments: str) -> tuple[Any, list[dict[str, Any]]]:
        """
        Start it with C{--json}.

        @return: The process, and its events as they come.
        """
        process = self.start("forward", "--json", "wolf-1", *arguments)
        events: list[dict[str, Any]] = []
        output = process.stdout

        def read() -> None:
            for line in output:
                events.append(json.loads(line))

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        self.addCleanup(reader.join, LIMIT)
        self.addCleanup(process.kill)

        def listens() -> bool:
            if process.poll() is not None:
                raise AssertionError(process.stderr.read())
            return len(arguments) == [one["event"] for one in events].count("listening")

        until(listens, "helix forward listens")
        return process, events

    def connection(self, place: str) -> socket.socket:
        if place.startswith("unix://"):
            found = socket.socket(socket.AF_UNIX)
            found.settimeout(LIMIT)
            found.connect(place.removeprefix("unix://"))
            return found
        host, _, port = place.rpartition(":")
        return socket.create_connection((host, int(port)), timeout=LIMIT)

    def test_severalAtOnce(self) -> None:
        """A port, a free port and a unix socket, each to its target, with half-close."""
        self.wolf(echo, countdown)
        path = str(self.directory / "echo.sock")
        _, events = self.forward("countdown", "127.0.0.1:0:countdown", f"unix://{path}:echo")
        places = [one["local"] for one in events]
        self.assertEqual(places[2], f"unix://{path}")
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
        for place in places[:2]:
            with self.connection(place) as found:
                found.sendall(b"x" * 1_000_000)
                found.shutdown(socket.SHUT_WR)
                digest = hashlib.sha256(b"x" * 1_000_000).hexdigest()
                self.assertEqual(receive(found), f"1000000 {digest}".encode())
        with self.connection(places[2]) as found:
            self.echoes(found)
        until(lambda: sum(one["event"] == "closed" for one in events) == 3, "three ends")
        closed = [one for one in events if one["event"] == "closed"]
        self.assertEqual([one["why"] for one in closed], ["done"] * 3, closed)
        self.assertEqual(closed[0]["bytesOut"], 1_000_000)

    def test_afterTheAgentWasAway(self) -> None:
        """A connection while the agent is away fails by itself; the next one works again."""
        agent = self.wolf(echo)
        _, events = self.forward("echo")
        place = events[0]["local"]
        agent.end()
        with self.connection(place) as found:
            self.assertEqual(receive(found), b"")
        until(lambda: events[-1]["event"] == "failed", "the failure is told")
        self.assertEqual((events[-1]["status"], events[-1]["code"]), (503, "not-connected"))
        said = len(agent.text)
        agent.start()
        agent.says("connected as", after=said)
        with self.connection(place) as found:
            self.echoes(found)

    def test_afterTheServerWasAway(self) -> None:
        """The same for the server: what listens goes on listening."""
        agent = self.wolf(echo)
        _, events = self.forward("echo")
        place = events[0]["local"]
        self.fleet.end()
        with self.connection(place) as found:
            self.assertEqual(receive(found), b"")
        until(lambda: events[-1]["event"] == "failed", "the failure is told")
        self.assertIn("nothing listens at", events[-1]["detail"])
        said = len(agent.text)
        self.startServer(self.fleet)
        agent.says("connected as", after=said)
        with self.connection(place) as found:
            self.echoes(found)

    def test_ctrlC(self) -> None:
        """A7: Ctrl-C ends it with 130; port and socket file are free, connections closed."""
        self.wolf(echo)
        path = str(self.directory / "s.sock")
        process, events = self.forward("echo", f"unix://{path}:echo")
        with self.connection(events[0]["local"]) as found:
            self.echoes(found)
            process.send_signal(signal.SIGINT)
            self.assertEqual(process.wait(LIMIT), 130)
            self.assertEqual(receive(found), b"")
        self.assertFalse(os.path.exists(path))
        port = int(events[0]["local"].rpartition(":")[2])
        socket.create_server(("127.0.0.1", port)).close()
        self.assertEqual(process.stderr.read(), b"")

    def test_notForThisToken(self) -> None:
        """A token that the server does not take, a session that it has not: the end at once."""
        for runner, token, text in (
            ("wolf-1", "hlx_" + "x" * 43, "401 - The token is unknown"),
            ("wolf-1", self.runner, "403 - "),
            ("ses_01HF7YAT31JSPVDRNZKB7MQJ5K", self.operator, "404 - "),
        ):
            done = self.helix("forward", runner, "echo", token=token)
            self.assertEqual((done.returncode, done.stdout), (1, b""), done)
            self.assertTrue(done.stderr.decode().startswith(f"helix: {text}"), done.stderr)
            self.assertEqual(done.stderr.count(b"\n"), 1, done.stderr)

    def test_beforeTheServer(self) -> None:
        """A server that is not there yet is told of, and used when it is."""
        agent = self.wolf(echo)
        self.fleet.end()
        process = self.start("forward", "wolf-1", "echo")
        self.assertRegex(
            process.stderr.readline(),
            rb"\Ahelix: nothing listens at .*; connections fail until it answers\n\Z",
        )
        place = process.stdout.readline().split()[0].decode()
        said = len(agent.text)
        self.startServer(self.fleet)
        agent.says("connected as", after=said)
        with self.connection(place) as found:
            self.echoes(found)

    def test_whereItCannotListen(self) -> None:
        """A port that is taken, a file in the way, a live socket: one line, exit code 1."""
        service = Service(echo, str(self.directory / "taken.sock"))
        self.addCleanup(service.stop)
        plain = self.directory / "plain"
        plain.write_text("")
        port = self.fleet.port
        for local, text in (
            (f"{port}:echo", f"cannot listen on 127.0.0.1:{port}: Address already in use"),
            (f"unix://{plain}:echo", f"cannot listen on unix://{plain}: a file that is no socket"),
            (f"{service.address}:echo", "somebody listens there"),
        ):
            done = self.helix("forward", "wolf-1", local)
            self.assertEqual(done.returncode, 1, done)
            self.assertIn(text, done.stderr.decode())
        self.assertTrue(plain.exists())
        left = self.directory / "left.sock"
        with socket.socket(socket.AF_UNIX) as gone:
            gone.bind(str(left))
        process = self.start("forward", "wolf-1", f"unix://{left}:echo")
        self.assertEqual(process.stdout.readline(), f"unix://{left} -> wolf-1 echo\n".encode())
