"""The C{helix} process itself, against an API on loopback: output, exit codes, signals, TLS."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trustme
from OpenSSL import crypto
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone
from twisted.internet.protocol import Factory, ProcessProtocol, Protocol
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent, HTTPConnectionPool, readBody
from twisted.web.server import Site

from tests.cli.fake import HANG, KEY, PNG, FakeAPI, Given, connection, picture, problem

reactor: Any = _reactor

CONNECTION = "/api/v1/external-agents/ses_1/connection"
SCREENSHOT = "/api/v1/external-agents/ses_1/screenshot"


HELIX = (sys.executable, "-m", "helix_revdial.cli")


class Process(ProcessProtocol):
    """
    A running C{helix}.

    @ivar ended: Fires with the exit code, or the negative number of the signal.
    """

    def __init__(self) -> None:
        self.out = b""
        self.err = b""
        self.ended: Deferred[int] = Deferred()
        self._awaited: list[tuple[bytes, Deferred[None]]] = []

    def outReceived(self, data: bytes) -> None:
        """Collect, and tell who waits for it."""
        self.out += data
        self._tell()

    def errReceived(self, data: bytes) -> None:
        """Collect, and tell who waits for it."""
        self.err += data
        self._tell()

    def _tell(self) -> None:
        for waiting in list(self._awaited):
            if waiting[0] in self.out + self.err:
                self._awaited.remove(waiting)
                waiting[1].callback(None)

    def says(self, text: str) -> Deferred[None]:
        """Fires when the process has written this; fails after 10 seconds."""
        waiting: Deferred[None] = Deferred()
        self._awaited.append((text.encode(), waiting))
        self._tell()
        return waiting.addTimeout(10, reactor)

    def processEnded(self, reason: Failure) -> None:
        """Tell how it ended."""
        if self.ended.called:
            return
        status: Any = reason.value
        if reason.check(ProcessDone):
            self.ended.callback(0)
        elif status.signal is not None:
            self.ended.callback(-status.signal)
        else:
            self.ended.callback(status.exitCode)


class ProcessTestCase(TestCase):
    """Starts C{python -m helix_revdial.cli}, and an API on loopback for it."""

    timeout = 30

    def setUp(self) -> None:
        """The API, and a home of its own for the command."""
        self.home = Path(self.mktemp()).absolute()
        self.home.mkdir()
        self.api = FakeAPI()
        site = Site(self.api)
        site.displayTracebacks = False
        self.port = reactor.listenTCP(0, site, interface="127.0.0.1")
        self.addCleanup(self.port.stopListening)
        self.url = f"http://127.0.0.1:{self.port.getHost().port}"

    def start(
        self,
        *arguments: str,
        terminal: bool = False,
        program: tuple[str, ...] = HELIX,
        **environment: str,
    ) -> Process:
        """
        Start the command; it is killed at the end of the test if it still runs.

        @param terminal: Whether it runs at a terminal of its own.
        @param program: What runs it.
        """
        process = Process()
        transport = reactor.spawnProcess(
            process,
            program[0],
            [*program, *arguments],
            env={
                "PATH": os.environ.get("PATH", ""),
                "HOME": str(self.home),
                "HELIX_URL": self.url,
                "HELIX_API_KEY": KEY,
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                **environment,
            },
            path=str(self.home),
            usePTY=terminal,
        )

        def kill() -> Deferred[Any] | None:
            if process.ended.called:
                return None
            transport.signalProcess("KILL")
            return process.ended

        self.addCleanup(kill)
        return process

    async def helix(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        """Run the command to its end."""
        process = self.start(*arguments, terminal=False, program=HELIX, **environment)
        code = await process.ended
        return code, process.out.decode(), process.err.decode()

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for at most 10 seconds until this holds."""
        for _ in range(500):
            if condition():
                return
            await deferLater(reactor, 0.02)
        self.fail(f"not within 10 s: {what}")


class CommandTests(ProcessTestCase):
    """Real processes, real sockets."""

    async def test_selfTestPasses(self) -> None:
        """The whole self-test: the design's text, a measured latency, exit code 0."""
        self.api.on("GET", CONNECTION, connection())
        self.api.on("GET", SCREENSHOT, picture())
        code, out, err = await self.helix("spectask", "revdial", "ses_1")
        self.assertEqual((code, err), (0, ""))
        self.assertRegex(
            out,
            r"^Testing RevDial connectivity for session ses_1\.\.\.\n\n"
            r"Connection Status:\n"
            r"  Sandbox ID:     ses_1\n"
            r"  RevDial Key:    sandbox-ses_1\n"
            r"  Status:         ✅ Connected\n\n"
            r"Data Path Test \(screenshot\):\n"
            r"  Latency:        \d+ms\n"
            r"  Bytes received: 125,432\n"
            r"  Status:         ✅ Success\n\n"
            r"RevDial connectivity: PASSED\n$",
        )

    async def test_exitCodes(self) -> None:
        """1 failed, 2 usage, 3 in grace: as a shell sees them."""
        self.api.on("GET", CONNECTION, connection(status="none"))
        code, out, _ = await self.helix("spectask", "revdial", "ses_1")
        self.assertEqual(code, 1, out)
        code, _, err = await self.helix("spectask", "revdial")
        self.assertEqual(code, 2, err)
        self.api.on("GET", CONNECTION, connection(status="grace", left=30.0))
        code, out, _ = await self.helix("spectask", "revdial", "ses_1", "--timeout", "1", "--json")
        self.assertEqual(code, 3)
        self.assertEqual(json.loads(out)["error"], "Still in grace period after 1 s")

    async def test_latencyIsMeasured(self) -> None:
        """A picture that takes 0.3 s to come has a latency of at least that."""

        def slow() -> Given:
            time.sleep(0.3)
            return picture()

        self.api.on("GET", CONNECTION, connection())
        self.api.on("GET", SCREENSHOT, slow)
        code, out, _ = await self.helix("spectask", "revdial", "ses_1", "--json")
        value = json.loads(out)
        self.assertEqual((code, value["bytes"]), (0, len(PNG)))
        self.assertGreaterEqual(value["latency_ms"], 300)
        self.assertLess(value["latency_ms"], 5000)

    async def test_largePicture(self) -> None:
        """A picture of many reads arrives whole, on standard output too."""
        data = PNG[:8] + os.urandom(3_000_000)
        self.api.on("GET", SCREENSHOT, picture(data))
        process = self.start("spectask", "screenshot", "ses_1", "-o", "-")
        self.assertEqual(await process.ended, 0)
        self.assertEqual(process.out, data)
        code, _, err = await self.helix("spectask", "screenshot", "ses_1", "-o", "a.png")
        self.assertEqual((code, err), (0, ""))
        self.assertEqual((self.home / "a.png").read_bytes(), data)

    async def test_screenshotFails(self) -> None:
        """The known sentence, exit code 1, nothing left over."""
        self.api.on("GET", SCREENSHOT, problem(503, "Sandbox not connected: no connection"))
        code, _, err = await self.helix("spectask", "screenshot", "ses_1", "-o", "a.png")
        self.assertEqual(
            err, "helix: screenshot request failed: 503 - Sandbox not connected: no connection\n"
        )
        self.assertEqual((code, os.listdir(self.home)), (1, []))

    async def test_interruptedScreenshotLeavesNothing(self) -> None:
        """Ctrl-C during a screenshot: exit code 130, silent, no partial file."""
        (self.home / "a.png").write_bytes(b"old")
        self.api.on("GET", SCREENSHOT, HANG)
        process = self.start("spectask", "screenshot", "ses_1", "-o", "a.png")
        await self.until(lambda: self.api.asked, "the request")
        self.assertEqual(len(os.listdir(self.home)), 2)
        transport: Any = process.transport
        transport.signalProcess("INT")
        self.assertEqual(await process.ended, 130)
        self.assertEqual(process.err, b"")
        self.assertEqual(os.listdir(self.home), ["a.png"])
        self.assertEqual((self.home / "a.png").read_bytes(), b"old")

    async def test_terminatedIs143(self) -> None:
        """SIGTERM ends a command as cleanly, with its own exit code."""
        self.api.on("GET", SCREENSHOT, HANG)
        process = self.start("spectask", "screenshot", "ses_1", "-o", "a.png")
        await self.until(lambda: self.api.asked, "the request")
        os.kill(process.transport.pid, signal.SIGTERM)  # type: ignore[union-attr]
        self.assertEqual(await process.ended, 143)
        self.assertEqual((process.err, os.listdir(self.home)), (b"", []))

    async def test_watchUntilCtrlC(self) -> None:
        """C{--watch} writes lines on a pipe as they come; Ctrl-C ends it with 130."""
        status = {"active_connections": 0, "grace_period_entries": 0, "pending_dials_total": 0}
        self.api.on("GET", "/api/v1/admin/revdial/status", Given(status))
        process = self.start("revdial", "status", "--watch", "--interval", "0.1")
        await self.until(lambda: process.out.count(b"\n") >= 3, "three looks")
        transport: Any = process.transport
        transport.signalProcess("INT")
        self.assertEqual(await process.ended, 130)
        self.assertEqual(process.err, b"")

    async def test_watchAtATerminal(self) -> None:
        """A table is redrawn in place; a typed Ctrl-C gives the terminal back, exit code 130."""
        status = {"active_connections": 4, "grace_period_entries": 0, "pending_dials_total": 0}
        self.api.on("GET", "/api/v1/admin/revdial/status", Given(status))
        process = self.start(
            "revdial", "status", "--watch", "--interval", "0.1", terminal=True, TERM="xterm"
        )
        await self.until(lambda: process.out.count(b"Connections: 4 active") >= 3, "three looks")
        transport: Any = process.transport
        transport.write(b"\x03")
        self.assertEqual(await process.ended, 130)
        # Hidden while it is drawn, shown again at the end.
        self.assertEqual(process.out.count(b"\x1b[?25l"), 1)
        self.assertEqual(process.out.count(b"\x1b[?25h"), 1)
        self.assertNotIn(b"Traceback", process.out)

    async def test_readerThatGoesAway(self) -> None:
        """C{helix … | head}: no traceback."""
        status = {"active_connections": 0, "grace_period_entries": 0, "pending_dials_total": 0}
        self.api.on("GET", "/api/v1/admin/revdial/status", Given(status))
        process = self.start("revdial", "status", "--watch", "--interval", "0.05")
        await process.says("total")
        transport: Any = process.transport
        transport.closeStdout()
        self.assertEqual(await process.ended, 141)
        self.assertEqual(process.err, b"")

    async def shell(self, redirections: str, *arguments: str) -> tuple[int, str, str]:
        """Run the command with its standard streams as a shell gives them."""
        script = f'exec "$0" -m helix_revdial.cli "$@" {redirections}'
        process = self.start(*arguments, program=("/bin/sh", "-c", script, sys.executable))
        code = await process.ended
        return code, process.out.decode(), process.err.decode()

    async def test_fullDisk(self) -> None:
        """What standard output does not take is said in one line, exit code 1."""
        self.api.on("GET", "/api/v1/sessions", Given({"items": []}))
        for words in (("sessions", "list"), ("--help",)):
            found = await self.shell(">/dev/full", *words)
            line = "helix: standard output cannot be written: No space left on device\n"
            self.assertEqual(found, (1, "", line), words)
        self.assertEqual(await self.shell(">/dev/full 2>/dev/full", "version"), (1, "", ""))

    async def test_withoutStandardStreams(self) -> None:
        """A process that was started without some of its standard streams works all the same."""
        self.api.on("GET", "/api/v1/sessions", Given({"items": []}))
        for closed, words, code in (
            ("<&- >&- 2>&-", ("sessions", "list"), 0),
            (">&- 2>&-", ("bogus",), 2),
            ("<&- >&-", ("task", "--repo", "none"), 10),
        ):
            found = await self.shell(closed, *words)
            self.assertEqual(found[0], code, (closed, words, found))
            self.assertNotIn("unforeseen", found[2])

    async def test_nothingListens(self) -> None:
        """The server is not there: what to do, exit code 1, at once."""
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        code, out, err = await self.helix("spectask", "list", HELIX_URL=url)
        self.assertEqual(
            err,
            f"helix: nothing listens at {url} (connection refused): is the server running there? "
            "HELIX_URL or --url says where it is\n",
        )
        self.assertEqual((code, out), (1, ""))

    async def test_noKey(self) -> None:
        """Without a key: 401, and how to give one."""
        code, out, err = await self.helix("spectask", "list", HELIX_API_KEY="")
        self.assertEqual(
            err,
            "helix: 401 - no valid credential; no key was sent: "
            "set HELIX_API_KEY or give --token-file\n",
        )
        self.assertEqual((code, out), (1, ""))

    async def test_profile(self) -> None:
        """URL and key from the profile; others may not read it."""
        profile = self.home / ".config" / "helix" / "profile.toml"
        profile.parent.mkdir(parents=True)
        profile.write_text(f'url = "{self.url}/prefix"\napi_key = "{KEY}"\n')
        profile.chmod(0o600)
        self.api.on("GET", "/prefix/api/v1/sessions", Given({"items": []}))
        code, out, err = await self.helix("spectask", "list", HELIX_URL="", HELIX_API_KEY="")
        self.assertEqual((code, out, err), (0, "Found 0 session(s)\n", ""))
        profile.chmod(0o644)
        code, _, err = await self.helix("spectask", "list", HELIX_URL="", HELIX_API_KEY="")
        self.assertEqual(code, 2)
        self.assertIn("chmod 600", err)
        self.assertNotIn(KEY, err)

    async def test_serverThatClosesAtOnce(self) -> None:
        """A server that hangs up, or speaks something else, is told apart from one that is away."""
        for answer, text in (
            (b"", "closed the connection before it answered"),
            (b"SSH-2.0-OpenSSH_9.9\r\n\r\n", "does not speak HTTP"),
            (
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                b"Content-Length: 100\r\n\r\n{}",
                "the answer broke off after 2 bytes",
            ),
        ):

            class Rude(Protocol):
                reply = answer

                def dataReceived(self, data: bytes) -> None:
                    assert self.transport is not None
                    self.transport.write(self.reply)
                    self.transport.loseConnection()

            port = reactor.listenTCP(0, Factory.forProtocol(Rude), interface="127.0.0.1")
            self.addCleanup(port.stopListening)
            code, _, err = await self.helix(
                "revdial", "status", HELIX_URL=f"http://127.0.0.1:{port.getHost().port}"
            )
            self.assertEqual(code, 1)
            self.assertIn(text, err)
            self.assertEqual(err.count("\n"), 1, err)

    async def test_terminalWithoutUnicode(self) -> None:
        """Where a check mark cannot be shown the command still tells its verdict."""
        self.api.on("GET", CONNECTION, connection())
        self.api.on("GET", SCREENSHOT, picture())
        code, out, _ = await self.helix("spectask", "revdial", "ses_1", PYTHONIOENCODING="ascii")
        self.assertEqual(code, 0)
        self.assertIn("Status:         ? Connected", out)

    async def test_helpIsQuick(self) -> None:
        """Help comes without a server, and costs a fraction of a second of a processor."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        code, out, _ = await self.helix("--help", HELIX_URL="http://[::bad")
        self.assertEqual(code, 0)
        self.assertIn("spectask", out)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cost = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self.assertLess(cost, 1.0)

    async def test_completes(self) -> None:
        """What a shell asks for is answered."""
        code, out, _ = await self.helix(
            _HELIX_COMPLETE="bash_complete", COMP_WORDS="helix spectask r", COMP_CWORD="2"
        )
        self.assertEqual((code, out), (0, "plain,revdial\n"))


class TLSTests(ProcessTestCase):
    """C{https}: verified."""

    def serve(self, name: str) -> str:
        """Serve the API with a certificate for this name, by a CA of our own."""
        self.authority = trustme.CA()
        issued = self.authority.issue_cert(name)
        chain = [
            crypto.load_certificate(crypto.FILETYPE_PEM, blob.bytes())
            for blob in issued.cert_chain_pems
        ]
        key = crypto.load_privatekey(crypto.FILETYPE_PEM, issued.private_key_pem.bytes())
        options = CertificateOptions(
            privateKey=key,
            certificate=chain[0],
            extraCertChain=chain[1:],
        )
        site = Site(self.api)
        port = reactor.listenSSL(0, site, options, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.bundle = self.home / "ca.pem"
        self.authority.cert_pem.write_to_path(str(self.bundle))
        return f"https://localhost:{port.getHost().port}"

    async def test_verified(self) -> None:
        """A CA of one's own works when it is named; otherwise nothing is sent to it."""
        url = self.serve("localhost")
        self.api.on("GET", "/api/v1/sessions", Given({"items": []}))
        code, out, err = await self.helix(
            "spectask", "list", HELIX_URL=url, SSL_CERT_FILE=str(self.bundle)
        )
        self.assertEqual((code, out, err), (0, "Found 0 session(s)\n", ""))
        asked = len(self.api.asked)
        code, out, err = await self.helix("spectask", "list", HELIX_URL=url)
        self.assertEqual((code, out), (1, ""))
        self.assertIn(f"the certificate of {url} is not trusted (", err)
        self.assertIn("SSL_CERT_FILE", err)
        self.assertEqual(len(self.api.asked), asked)

    async def test_anotherName(self) -> None:
        """A trusted certificate for another name is refused before anything is sent."""
        url = self.serve("other.example")
        code, _, err = await self.helix(
            "spectask", "list", HELIX_URL=url, SSL_CERT_FILE=str(self.bundle)
        )
        self.assertEqual(code, 1)
        self.assertIn(f"the certificate of {url} is for another name", err)
        self.assertEqual(self.api.asked, [])

    async def test_plainServer(self) -> None:
        """C{https} to a server that speaks plain HTTP says so."""

        class PlainHTTP(Protocol):
            def dataReceived(self, data: bytes) -> None:
                assert self.transport is not None
                self.transport.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        port = reactor.listenTCP(0, Factory.forProtocol(PlainHTTP), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        url = f"https://127.0.0.1:{port.getHost().port}"
        code, _, err = await self.helix("spectask", "list", HELIX_URL=url)
        self.assertEqual(code, 1)
        self.assertIn(f"TLS with {url} failed (", err)
        self.assertIn("does it speak https?", err)


class DesktopTests(ProcessTestCase):
    """C{helix desktop serve}."""

    async def test_servesUntilItIsStopped(self) -> None:
        """It says where it listens, answers with a picture, and ends with 0 on SIGTERM."""
        process = self.start(
            "desktop", "serve", "--listen", "127.0.0.1:0", "--test-card", "--size", "320x200"
        )
        await process.says("Desktop service listening on ")
        address = process.out.decode().split()[-1]
        agent = Agent(reactor, pool=HTTPConnectionPool(reactor, persistent=False))
        response = await agent.request(b"GET", f"http://{address}/screenshot".encode())
        body = await readBody(response)
        self.assertEqual((response.code, body[:4]), (200, b"\x89PNG"))
        transport: Any = process.transport
        transport.signalProcess("TERM")
        self.assertEqual(await process.ended, 0, process.err.decode())

    async def test_cannotListen(self) -> None:
        """A port that is taken, and one that makes no sense."""
        taken = f"127.0.0.1:{self.port.getHost().port}"
        code, _, err = await self.helix("desktop", "serve", "--test-card", "--listen", taken)
        self.assertEqual(code, 1)
        self.assertIn(f"helix: cannot listen on {taken}: ", err)
        code, _, err = await self.helix("desktop", "serve", "--listen", "nonsense")
        self.assertEqual(code, 2)
        self.assertTrue(err.startswith("helix: --listen nonsense: "), err)
