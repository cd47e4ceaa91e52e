"""The desktop service's life: where it listens, what it runs, what it leaves behind."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import stat
import tempfile
from typing import Any

from PIL import Image
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent, readBody

from helix_revdial.desktop.errors import CannotServe
from helix_revdial.desktop.options import DesktopOptions
from helix_revdial.desktop.service import DesktopService, serveDesktop
from helix_revdial.programs import (
    Finished,
    OutputTooLarge,
    ProgramMissing,
    Programs,
    ProgramTimedOut,
    TooBusy,
)
from tests.integration.desktops import DesktopTestCase, children, reactor, until


class ProgramsTests(TestCase):
    """Programs end, whatever they do."""

    timeout = 20

    def setUp(self) -> None:
        self.programs = Programs(reactor, {"PATH": os.environ["PATH"]}, maxRunning=2)
        self.addCleanup(self.programs.stop)
        self.before = children()

    async def run_(
        self, *command: str, deadline: float = 10.0, outputLimit: int = 100, given: bytes = b""
    ) -> Finished:
        return await self.programs.run(
            command, outputLimit=outputLimit, deadline=deadline, standardInput=given
        )

    async def test_outputAndExit(self) -> None:
        """Input, output, standard error and the exit code are all kept."""
        finished = await self.run_("sh", "-c", "cat; echo oops >&2; exit 3", given=b"in")
        self.assertEqual(finished, Finished(3, b"in", b"oops\n"))
        self.assertEqual(finished.complaint(), "oops")

    async def test_inputLargerThanAPipe(self) -> None:
        """A megabyte goes in and comes out; a program that reads none of it is no error."""
        data = os.urandom(1024**2)
        finished = await self.run_("cat", given=data, outputLimit=len(data))
        self.assertTrue(finished.output == data)
        self.assertEqual((await self.run_("true", given=data)).exitCode, 0)

    async def test_outputLimit(self) -> None:
        """Exactly the limit is taken; a program that writes on and on is killed."""
        self.assertEqual((await self.run_("printf", "x" * 100)).output, b"x" * 100)
        await self.assertFailure(Deferred.fromCoroutine(self.run_("yes")), OutputTooLarge)
        self.assertEqual(children() - self.before, set())

    async def test_deadlineKillsChildrenToo(self) -> None:
        """At the deadline the program and what it started are killed."""
        running = Deferred.fromCoroutine(self.run_("sh", "-c", "sleep 77 & sleep 78", deadline=0.3))
        await until(lambda: len(children() - self.before) == 3, "both sleeps run")
        await self.assertFailure(running, ProgramTimedOut)
        await until(lambda: children() <= self.before, "all are gone")

    async def test_childLeftBehind(self) -> None:
        """A program that ends and leaves a child with our pipes does not keep us waiting."""
        finished = await self.run_("sh", "-c", "sleep 77 & echo done")
        self.assertEqual(finished.output, b"done\n")
        await until(lambda: children() <= self.before, "the child is gone")

    async def test_cancel(self) -> None:
        """Who does not want the answer any more ends the program."""
        running = self.programs.run(("sleep", "77"), outputLimit=0, deadline=60)
        running.cancel()
        await self.assertFailure(running, CancelledError)
        await until(lambda: children() <= self.before, "it is gone")

    async def test_missing(self) -> None:
        """A missing program is named, with its package where we know it."""
        await self.assertFailure(Deferred.fromCoroutine(self.run_("no-such")), ProgramMissing)
        programs = Programs(reactor, {"PATH": "/nonexistent"})
        failed = programs.run(("grim",), outputLimit=0, deadline=1)
        error = await self.assertFailure(failed, ProgramMissing)
        self.assertIn("install the package grim", str(error))

    async def test_limitAndStop(self) -> None:
        """One program more than the limit is refused; the stop ends all, for good."""
        held = [self.programs.start(("sleep", "77")) for _ in range(2)]
        self.assertRaises(TooBusy, self.programs.start, ("true",))
        await self.programs.stop()
        self.assertEqual([each.alive() for each in held], [False, False])
        self.assertEqual(children() - self.before, set())
        self.assertRaises(TooBusy, self.programs.start, ("true",))


class TestCardTests(DesktopTestCase):
    """The service without a display, and with a card in its place."""

    async def test_card(self) -> None:
        """Pictures show the card, many at once too; the clipboard is in memory; health says so."""
        await self.startDesktop(testCard=True, size=(320, 200), session="ses_1")
        answers = await gatherResults(
            [Deferred.fromCoroutine(self.ask("GET", "/screenshot")) for _ in range(20)]
        )
        for status, body, kind in answers:
            self.assertEqual((status, kind), (200, "image/png"), body[:500])
            self.assertEqual(Image.open(io.BytesIO(body)).size, (320, 200))
        await self.roundTrip("text", "held in memory ✓")
        health = json.loads((await self.ask("GET", "/health"))[1])
        self.assertEqual((health["status"], health["testCard"]), ("ok", True))
        self.assertEqual(health["display"], {"kind": "test-card", "name": "320x200"})

    async def test_noDisplay(self) -> None:
        """Without a display everything is a 503 that says what to do; health answers."""
        await self.startDesktop()
        for method, path, document in [
            ("GET", "/screenshot", None),
            ("GET", "/clipboard", None),
            ("POST", "/clipboard", {"type": "text", "data": "x"}),
        ]:
            status, body, kind = await self.ask(method, path, document)
            self.assertEqual((status, kind), (503, "application/problem+json"))
            self.assertIn("--test-card", json.loads(body)["detail"])
        status, body, _ = await self.ask("GET", "/health")
        health = json.loads(body)
        self.assertEqual((status, health["status"]), (200, "unavailable"))
        self.assertIn("--test-card", health["reason"])

    async def test_badInput(self) -> None:
        """Each wrong parameter and document is a 400 that names the field; too much is a 413."""
        await self.startDesktop(testCard=True)
        for query, field in [
            ("format=gif", "format"),
            ("quality=0", "quality"),
            ("quality=101", "quality"),
            ("quality=x", "quality"),
            ("include_cursor=perhaps", "include_cursor"),
        ]:
            status, body, _ = await self.ask("GET", f"/screenshot?{query}")
            self.assertEqual((status, list(json.loads(body)["errors"])), (400, [field]), query)
        for document, field in [
            ({"type": "text"}, "data"),
            ({"type": "file", "data": ""}, "type"),
            ({"type": "image", "data": "!"}, "data"),
            ({"type": "image", "data": "R0lGODlh"}, "data"),
        ]:
            status, body, _ = await self.ask("POST", "/clipboard", document)
            self.assertEqual((status, list(json.loads(body)["errors"])), (400, [field]), document)
        large = {"type": "text", "data": "x" * 16 * 1024**2}
        status, _, _ = await self.ask("POST", "/clipboard", large)
        self.assertEqual(status, 413)
        self.assertEqual(await self.read(), {"type": "text", "data": ""})

    async def test_publicName(self) -> None:
        """A page under a name of its own cannot reach the service (DNS rebinding)."""
        await self.startDesktop(testCard=True)
        port = int(self.address.rpartition(":")[2])
        for host, expected in [
            (b"evil.example.com", b"421"),
            (b"localhost:9876", b"200"),
            (b"[::1]:9876", b"200"),
            (b"127.0.0.1", b"200"),
            (b"desktop", b"200"),
        ]:
            done = await _exchange(port, host)
            self.assertEqual(done.split(b" ")[1], expected, host)


async def _exchange(port: int, host: bytes) -> bytes:
    """The first line of the answer to a request with that C{Host}."""

    def exchange() -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(
                b"GET /health HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n"
            )
            return connection.makefile("rb").readline()

    return await deferToThread(exchange)


class ListenTests(DesktopTestCase):
    """Where the service listens."""

    def setUp(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="helix-desktop-")
        self.addCleanup(shutil.rmtree, self.directory, True)
        self.path = os.path.join(self.directory, "s")

    async def start(self) -> DesktopService:
        return await self.startDesktop(testCard=True, listen=f"unix:{self.path}")

    async def refused(self) -> str:
        service = DesktopService(reactor, DesktopOptions(listen=f"unix:{self.path}"))
        service.startService()
        error = await self.assertFailure(service.whenListening(), CannotServe)
        await service.stopService()
        self.flushLoggedErrors()
        return str(error)

    async def test_unixSocket(self) -> None:
        """A unix socket is for its owner only, answers, and is gone after the stop."""
        service = await self.start()
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o600)
        path = self.path

        class ByPath:
            def endpointForURI(self, uri: object) -> UNIXClientEndpoint:
                return UNIXClientEndpoint(reactor, path)

        agent = Agent.usingEndpointFactory(reactor, ByPath())
        response = await agent.request(b"GET", b"http://desktop/health")
        self.assertEqual(response.code, 200)
        await readBody(response)
        await service.stopService()
        self.assertEqual(os.listdir(self.directory), [])

    async def test_staleSocket(self) -> None:
        """A socket that nobody answers at is replaced."""
        left = socket.socket(socket.AF_UNIX)
        left.bind(self.path)
        left.close()
        await self.start()

    async def test_usedSocket(self) -> None:
        """A socket that somebody answers at is left alone."""
        await self.start()
        self.assertIn("another service answers", await self.refused())
        self.assertEqual(os.listdir(self.directory), ["s"])

    async def test_noSocket(self) -> None:
        """Anything else is left alone."""
        os.mkdir(self.path)
        self.assertIn("no socket", await self.refused())
        self.assertEqual(os.listdir(self.directory), ["s"])

    async def test_noDirectory(self) -> None:
        """A directory that is missing is told."""
        self.path = os.path.join(self.directory, "missing", "s")
        self.assertIn("No such file or directory", await self.refused())

    async def test_portTaken(self) -> None:
        """A port that is taken is told, with the address."""
        await self.startDesktop(testCard=True)
        taken = self.address
        done: Deferred[Any] = serveDesktop(reactor, DesktopOptions(listen=taken))
        error = await self.assertFailure(done, CannotServe)
        self.assertIn(f"cannot listen on {taken}", str(error))
        self.flushLoggedErrors()

    async def test_serve(self) -> None:
        """It says where it listens, serves until it is cancelled, and then is gone."""
        addresses: list[str] = []
        options = DesktopOptions(listen="127.0.0.1:0", testCard=True)
        done = serveDesktop(reactor, options, addresses.append)
        await until(lambda: addresses, "it listens")
        (self.address,) = addresses
        self.assertEqual((await self.ask("GET", "/health"))[0], 200)
        done.cancel()
        await self.assertFailure(done, CancelledError)
        again = await self.startDesktop(testCard=True, listen=self.address)
        self.assertTrue(again.running)
