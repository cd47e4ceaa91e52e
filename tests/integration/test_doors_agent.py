"""
Bad input at the agent's doors, from a server that means no good, as processes; see
L{tests.integration.test_doors}.
"""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any

from tests.integration.doors import CLIENT_HELLO, OURS

from .fleet import (
    LIMIT,
    LONG,
    FleetCase,
    Program,
    echo,
    receive,
    until,
)


class EvilServer:
    """
    A server's port: each connection is the test's.

    @ivar url: Where it is.
    """

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=100)
        self._socket.settimeout(LIMIT)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._open: list[socket.socket] = []

    def accept(self) -> tuple[bytes, socket.socket]:
        """The next request's head, and its connection."""
        connection, _ = self._socket.accept()
        self._open.append(connection)
        connection.settimeout(LIMIT)
        head = b""
        while b"\r\n\r\n" not in head:
            piece = connection.recv(65536)
            if not piece:
                break
            head += piece
        return head, connection

    def waiting(self) -> bool:
        """Whether somebody connects within half a second."""
        self._socket.settimeout(0.5)
        try:
            self._open.append(self._socket.accept()[0])
        except TimeoutError:
            return False
        finally:
            self._socket.settimeout(LIMIT)
        return True

    def stop(self) -> None:
        """Close everything."""
        self._socket.close()
        for each in self._open:
            each.close()


SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: revdial\r\nConnection: Upgrade\r\n"
    + OURS.encode()
    + b"\r\n\r\n"
)


class AgentDoorTests(FleetCase):
    """The agent in the hands of a server that means no good."""

    def setUp(self) -> None:
        super().setUp()
        self.evil = EvilServer()
        self.addCleanup(self.evil.stop)
        self.elsewhere = EvilServer()
        self.addCleanup(self.elsewhere.stop)
        self.secret = "hl-a-token-that-is-secret-0123456789"
        self.secrets.append(self.secret)
        self.limits = {
            "helix_revdial.agent.reconnect.ReconnectPolicy": {"maxDelay": 0.1},
            "helix_revdial.revdial.client.ServerPath": {"timeout": 0.5},
        }

    def begin(self) -> None:
        """The agent comes, and is served as it should be."""
        address = self.named(echo)
        self.program = Program(
            "agent0",
            self.directory,
            [
                "helix-revdial-agent", f"--server={self.evil.url}", "--runner-id=wolf-1",
                "--reconnect=0.1", f"--target={address}",
            ],
            {"RUNNER_TOKEN": self.secret},
            self.limits,
            [],
        )  # fmt: skip
        self.programs.append(self.program)
        self.program.start()
        control = self.registered()
        self.serves(control)
        self.program.settle()
        control.close()

    def registered(self) -> socket.socket:
        """Let the agent's next control connection in, whichever form it tries."""
        while True:
            head, connection = self.evil.accept()
            if b"runnerid=wolf-1" in head and b"Upgrade: revdial" in head:
                connection.sendall(SWITCH)
                return connection
            connection.close()

    def ask(self, control: socket.socket, number: int, **words: Any) -> None:
        ready = {
            "command": "conn-ready",
            "connPath": "/revdial",
            "dial": f"{number:032x}",
            "ticket": f"ticket-{number}",
            **words,
        }
        control.sendall(json.dumps(ready).encode() + b"\n")

    def serves(self, control: socket.socket) -> None:
        """A dial works as it should."""
        self.ask(control, 7)
        while True:
            head, data = self.evil.accept()
            if b"ticket-7" in head:
                break
            data.close()
        data.sendall(SWITCH + b"he")
        data.sendall(b"llo")
        got = b""
        while len(got) < 5:
            piece = data.recv(5 - len(got))
            self.assertTrue(piece, "the stream ended")
            got += piece
        self.assertEqual(got, b"hello")
        data.shutdown(socket.SHUT_WR)
        self.assertEqual(receive(data), b"")
        data.close()

    def unharmed(self) -> None:
        """The agent is back, serves, and has nothing of what was before."""
        control = self.registered()
        self.serves(control)
        self.asBefore(self.program)
        self.assertFalse(self.elsewhere.waiting(), "the agent was led elsewhere")
        control.close()

    def test_answers(self) -> None:
        """What no server of ours answers: the agent says why, and tries again."""
        self.begin()
        elsewhere = self.elsewhere.url.encode()
        problem = json.dumps({"status": 401, "detail": f"bad token {self.secret}"}).encode()
        answers = [
            b"",
            os.urandom(5000),
            b"HTTP/1.1 101 Switch",
            CLIENT_HELLO,
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<h1>welcome</h1>",
            b"HTTP/1.1 302 Found\r\nLocation: " + elsewhere + b"/\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 307 Moved\r\nLocation: //"
            + elsewhere[7:]
            + b"/\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\n" + b"X: y\r\n" * 100_000,
            b"HTTP/1.1 200 OK\r\nX: " + b"x" * 5_000_000,
            b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000,
            b"HTTP/1.1 401 No\r\nContent-Type: application/problem+json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(problem), problem),
            b"HTTP/1.1 500 No\r\nContent-Type: text/plain\r\nContent-Length: 99999999\r\n\r\n"
            + b"\x1b[31m\r\n" * 100_000,
        ]
        for answer in answers:
            # Raw, and the WebSocket that may follow it in the same attempt.
            for _ in range(2):
                _, connection = self.evil.accept()
                try:
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_WR)
                except OSError:
                    pass
                connection.close()
        self.assertNotIn("\x1b", self.program.text)
        at = len(self.program.text)
        # That raw was refused is remembered: from now on only WebSocket would come.
        self.program.end()
        self.program.start()
        self.unharmed()
        self.assertNotIn("Traceback", self.program.text[at:])

    def test_silentAnswers(self) -> None:
        """Half a head, a byte now and then, nothing: the agent's own limit ends the attempt."""
        self.begin()
        for words in (b"", b"HTTP/1.1 10", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: rev"):
            for _ in range(2):
                _, connection = self.evil.accept()
                began = time.monotonic()
                connection.settimeout(0.1)
                while time.monotonic() - began < LIMIT:
                    try:
                        connection.sendall(words[:1])
                        words = words[1:]
                        if not connection.recv(1):
                            break
                    except TimeoutError:
                        continue
                    except OSError:
                        break
                self.assertLess(time.monotonic() - began, 10)
                connection.close()
        self.unharmed()

    def test_lines(self) -> None:
        """C11, F4, F5: bad lines and paths that lead elsewhere end their connection or dial."""
        self.begin()
        host = f"127.0.0.1:{self.elsewhere.port}"
        for line in (
            b"x" * 5_000_000,
            b'{"command":"keep-alive","echo":"' + b"x" * 5000 + b'"}\n',
            b"\0\n",
            b"\xff\xfe\n",
            b"[]\n",
            b"[" * 4000 + b"\n",
            b'{"command":"conn-ready"}\n',
            b'{"command":"goodbye","delay":"soon"}\n',
            b'{"command":"goodbye","delay":-1}\n',
            b'{"command":"closing","err":"\\u001b[31m%s","retryAfter":0.1}\n'
            % self.secret.encode(),
        ):
            control = self.registered()
            try:
                control.sendall(line)
            except OSError:
                pass
            receive(control)
            control.close()
        for path in (
            f"//{host}/revdial",
            f"http://{host}/revdial",
            f"\\\\{host}\\revdial",
            f"/\\{host}/revdial",
            "/etc/passwd",
            "/revdial/../../x",
            "/revdial?x#y",
            "/revdial?a b",
            "revdial",
            "",
            f"/revdial@{host}",
            f"/revdial\r\nHost: {host}",
        ):
            control = self.registered()
            self.ask(control, 1, connPath=path)
            # It ends the connection, or says that the dial cannot be answered.
            control.settimeout(LIMIT)
            said = b""
            while piece := control.recv(65536):
                said += piece
                if b"pickup-failed" in said:
                    break
            control.close()
        self.assertNotIn("\x1b", self.program.text)
        self.unharmed()

    def test_floods(self) -> None:
        """
        A hundred thousand keep-alives, and more dials than an agent takes at a time:
        answered or refused, and the next dial works.
        """
        self.begin()
        control = self.registered()
        began = time.monotonic()
        for _ in range(100):
            control.sendall(b'{"command":"keep-alive"}\n' * 1000)
        self.serves(control)
        took = time.monotonic() - began
        self.assertLess(took, LIMIT)
        control.close()
        control = self.registered()

        # Nobody reads: the agent must not keep what it would say.
        control.settimeout(5)
        try:
            for _ in range(100):
                control.sendall(b'{"command":"keep-alive","echo":"x"}\n' * 1000)
        except OSError:
            pass
        control.close()
        control = self.registered()
        before = self.program.status("VmHWM")
        for number in range(2000):
            self.ask(control, 100 + number, target="nowhere")
        said = b""
        while said.count(b"unknown-target") < 2000:
            said += control.recv(65536)
        self.serves(control)
        self.assertLess(self.program.status("VmHWM") - before, 32 * 1024)
        control.close()
        if LONG:
            print(f"\nagent: 100,000 keep-alives in {took:.2f} s")
        self.unharmed()

    def test_dataConnections(self) -> None:
        """A server that takes dial-backs and does not answer them, or with nonsense."""
        self.begin()
        control = self.registered()
        answers = [None, b"", os.urandom(500), b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"]
        for number, answer in enumerate(answers):
            self.ask(control, number)
            _, data = self.evil.accept()
            if answer is not None:
                data.sendall(answer)
                data.close()
        until(lambda: self.program.look()["table"]["dials"] == 0, "no dial is under way")
        control.close()
        self.program.end()
        self.program.start()
        self.unharmed()
