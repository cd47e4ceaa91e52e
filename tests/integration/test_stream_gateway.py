"""Streams through the server on real sockets: each form of carrier, TLS, endpoint strings."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import trustme

from .fleet import LIMIT, FleetCase, echo, freePort, inParallel, receive, reset, until
from .scripted import ROOT
from .test_forward import HELIX, breaks, countdown, source

CALLER = """
import sys
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import react
from zope.interface import implementer

@implementer(IHalfCloseableProtocol)
class Asking(Protocol):
    def __init__(self):
        self.got, self.ended = b"", Deferred()
    def connectionMade(self):
        self.transport.write(b"x" * 100_000)
        self.transport.loseWriteConnection()
    def dataReceived(self, data):
        self.got += data
    def readConnectionLost(self):
        self.ended.callback(None)
    def writeConnectionLost(self):
        pass

async def main(reactor):
    endpoint = clientFromString(reactor, sys.argv[1])
    try:
        asking = await endpoint.connect(Factory.forProtocol(Asking))
    except Exception as error:
        print(type(error).__name__, str(error))
        return
    await asking.ended
    print(asking.got.decode())

from twisted.internet.defer import Deferred as D
react(lambda reactor: D.fromCoroutine(main(reactor)))
"""


class GatewayCase(FleetCase):
    """A server, an agent and an operator."""

    def begin(self, *targets: Any, **words: Any) -> None:
        """Start them."""
        self.fleet = self.server(**words)
        self.operator = self.token(self.fleet, kind="user", user="ann", role="operator")
        runner = self.token(self.fleet, kind="runner", patterns=["wolf-*"])
        self.wolf = self.agent(self.fleet, "wolf-1", runner, *targets)

    def stream(
        self, target: str, *fields: str, early: bytes = b"", connection: Any = None
    ) -> tuple[bytes, Any]:
        """
        A raw stream.

        @param early: Sent in one piece with the request.
        @return: The answer's head, and the connection behind it.
        """
        connection = connection or self.fleet.connect()
        lines = [
            f"GET /api/v1/runners/wolf-1/stream?target={target} HTTP/1.1",
            "Host: cp.example",
            f"Authorization: Bearer {self.operator}",
            "Connection: Upgrade",
            "Upgrade: revdial",
            *fields,
        ]
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + early)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            piece = connection.recv(1)
            if not piece:
                break
            head += piece
        return head, connection


class RawTests(GatewayCase):
    """The raw form."""

    def test_halfCloseAndWhatCameEarly(self) -> None:
        """D1: bytes with the request, a FIN of the caller, the answer after it, whole."""
        self.begin(countdown, source)
        data = random.Random(2).randbytes(3_000_000)
        head, stream = self.stream("countdown", early=data[:1000])
        self.assertTrue(head.startswith(b"HTTP/1.1 101 "), head)
        stream.sendall(data[1000:])
        stream.shutdown(socket.SHUT_WR)
        expected = f"{len(data)} {hashlib.sha256(data).hexdigest()}".encode()
        self.assertEqual(receive(stream), expected)
        _, stream = self.stream("source")
        self.assertEqual(len(receive(stream)), 256 * 32768)
        stream.close()

    def test_resets(self) -> None:
        """A reset on one side is one on the other, and costs nobody else anything."""
        self.begin(breaks, echo)
        with self.fleet.connect() as other:
            _, other = self.stream("echo", connection=other)
            _, stream = self.stream("breaks")
            self.assertEqual(stream.recv(10), b"half of it")
            stream.sendall(b"x")
            with self.assertRaises(ConnectionResetError):
                while stream.recv(100):
                    pass
            _, stream = self.stream("echo")
            reset(stream)
            self.echoes(other)

    def test_nothingIsLeft(self) -> None:
        """Fifty streams at once, ended in each way, and callers that give up: nothing is left."""
        self.begin(echo, "silent=127.0.0.1:9")
        with self.nothingLeft(self.fleet, self.wolf):

            def one(number: int) -> None:
                head, stream = self.stream("echo" if number % 5 else "silent")
                if number % 5 == 0:
                    assert head.startswith(b"HTTP/1.1 502 "), head
                elif number % 2:
                    self.echoes(stream, b"x" * 70_000)
                else:
                    reset(stream)
                stream.close()

            for result in inParallel(50, one):
                self.assertIsNone(result)

    def test_aCallerThatStopsReading(self) -> None:
        """A caller that does not read costs a bounded buffer, and no other stream its time."""
        self.begin(source, echo)
        _, slow = self.stream("source")
        time.sleep(0.3)
        before = self.fleet.status("VmRSS")
        _, other = self.stream("echo")
        began = time.monotonic()
        for _ in range(50):
            self.echoes(other)
        self.assertLess(time.monotonic() - began, 30)
        self.assertLess(self.fleet.status("VmRSS") - before, 20_000)
        self.assertEqual(len(receive(slow)), 256 * 32768)
        other.close()
        slow.close()


class TLSTests(GatewayCase):
    """The same over TLS, as users have it."""

    def setUp(self) -> None:
        super().setUp()
        authority = trustme.CA()
        self.port = freePort()
        chain = self.directory / "chain.pem"
        authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
            str(chain)
        )
        self.authority = self.directory / "authority.pem"
        authority.cert_pem.write_to_path(str(self.authority))
        self.begin(
            countdown,
            source,
            "closed=127.0.0.1:9",
            doors=f'[[listen]]\nendpoint = "tcp:{self.port}:interface=127.0.0.1"\n'
            f'tls.certificate = "{chain}"\n',
        )
        self.secret = self.directory / "token"
        self.secret.write_text(self.operator + "\n")

    def helix(self, *arguments: str, given: bytes = b"", **environment: str) -> Any:
        return subprocess.run(
            [*HELIX, "--url", f"https://localhost:{self.port}", *arguments],
            input=given,
            capture_output=True,
            timeout=LIMIT,
            env={
                "PATH": os.environ.get("PATH", ""),
                "HOME": str(self.directory),
                "PYTHONPATH": str(ROOT),
                "HELIX_API_KEY": self.operator,
                **environment,
            },
        )

    def test_halfClose(self) -> None:
        """C{helix connect} half-closes over TLS, both ways."""
        trusted: Any = {"SSL_CERT_FILE": str(self.authority)}
        data = random.Random(4).randbytes(2_000_000)
        done = self.helix("connect", "wolf-1", "countdown", given=data, **trusted)
        expected = f"{len(data)} {hashlib.sha256(data).hexdigest()}".encode()
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, expected, b""))
        done = self.helix("connect", "wolf-1", "source", **trusted)
        self.assertEqual((done.returncode, len(done.stdout)), (0, 256 * 32768))

    def test_notTrusted(self) -> None:
        """A certificate of an unknown authority is refused, before a token is sent."""
        done = self.helix("connect", "wolf-1", "countdown")
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"is not trusted", done.stderr)

    def test_rawOverTLS(self) -> None:
        """The raw form over TLS carries the bytes; an end ends both directions."""
        context = ssl.create_default_context(cafile=str(self.authority))
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT)
        secure = context.wrap_socket(plain, server_hostname="localhost")
        head, stream = self.stream("source", connection=secure)
        self.assertTrue(head.startswith(b"HTTP/1.1 101 "), head)
        self.assertEqual(len(receive(stream)), 256 * 32768)
        stream.close()

    def ask(self, text: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", CALLER, text],
            capture_output=True, timeout=LIMIT, cwd=ROOT,
        )  # fmt: skip
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        return done.stdout.decode().strip()

    def string(self, target: str, authority: Path | None = None, host: str = "localhost") -> str:
        return (
            rf"revdial:https\://{host}\:{self.port}:wolf-1:target={target}"
            f":tokenFile={self.secret}" + (f":caFile={authority}" if authority else "")
        )

    def test_endpointString(self) -> None:
        """C{clientFromString} leads any program to a target, TLS verified, with half-close."""
        digest = hashlib.sha256(b"x" * 100_000).hexdigest()
        self.assertEqual(self.ask(self.string("countdown", self.authority)), f"100000 {digest}")
        self.assertTrue(self.ask(self.string("countdown")).startswith("Error "), "not verified")
        self.assertIn("TargetRefused", self.ask(self.string("closed", self.authority)))
        self.assertIn("NotAllowed", self.ask(self.string("none", self.authority)))
        self.secret.write_text("hlx_" + "x" * 43)
        self.assertIn("GatewayRefused", self.ask(self.string("countdown", self.authority)))
        self.secret.unlink()
        self.assertIn("TokenUnreadable", self.ask(self.string("countdown", self.authority)))


class SessionTests(GatewayCase):
    """A session's id in place of a runner's key."""

    def test_bySession(self) -> None:
        """The session's owner reaches its sandbox by the session's id."""
        self.begin(echo)
        session = self.session(self.fleet)
        agent = self.agent(self.fleet, session.key, session.token, countdown)
        until(lambda: "connected as" in agent.text, "the sandbox is connected")
        done = subprocess.run(
            [*HELIX, "connect", session.id, "countdown"],
            input=b"abc",
            capture_output=True,
            timeout=LIMIT,
            env={
                "PATH": os.environ.get("PATH", ""),
                "PYTHONPATH": str(ROOT),
                "HELIX_URL": self.fleet.url,
                "HELIX_API_KEY": self.fleet.admin,
            },
        )
        self.assertEqual(
            (done.returncode, done.stdout),
            (0, f"3 {hashlib.sha256(b'abc').hexdigest()}".encode()),
            done.stderr,
        )
