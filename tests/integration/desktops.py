"""Real displays for tests, and a client of the desktop service that shows them."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import struct
import sys
import tempfile
from itertools import count
from typing import Any

from twisted.internet import reactor as globalReactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.python.filepath import FilePath
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent, FileBodyProducer, readBody
from twisted.web.http_headers import Headers

from helix_revdial.desktop.options import DesktopOptions
from helix_revdial.desktop.service import DesktopService

reactor: Any = globalReactor

NOBODY = 65534


class Server(ProcessProtocol):
    """A display server that runs until the test ends."""

    def __init__(self) -> None:
        self.output = b""
        self.errors = b""
        self.line: Deferred[bytes] = Deferred()
        self.ended: Deferred[None] = Deferred()

    def outReceived(self, data: bytes) -> None:
        self.output += data
        if b"\n" in self.output and not self.line.called:
            self.line.callback(self.output.partition(b"\n")[0])

    def errReceived(self, data: bytes) -> None:
        self.errors = (self.errors + data)[-4096:]

    def processEnded(self, reason: Failure) -> None:
        if not self.line.called:
            self.line.errback(RuntimeError(self.errors.decode("utf-8", "replace")))
            self.line.addErrback(lambda _: None)
        self.ended.callback(None)

    async def end(self) -> None:
        if self.ended.called:
            return
        # Asked first: it removes its socket and its lock.
        self.transport.signalProcess("TERM")  # type: ignore[union-attr]
        overdue = reactor.callLater(3, self.transport.signalProcess, "KILL")  # type: ignore[union-attr]
        await self.ended
        if overdue.active():
            overdue.cancel()


async def until(condition: Any, what: str, seconds: float = 8.0) -> None:
    """Wait for something that has no event."""
    end = reactor.seconds() + seconds
    while not condition():
        if reactor.seconds() > end:
            raise AssertionError(f"did not happen within {seconds} s: {what}")
        await deferLater(reactor, 0.02)


def children() -> set[tuple[int, str]]:
    """Every process that this one started, directly or not, with its name."""
    parents: dict[int, tuple[int, str]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as f:
                    text = f.read()
            except OSError:
                continue
            name = text[text.index("(") + 1 : text.rindex(")")]
            state, parent = text[text.rindex(")") + 2 :].split()[:2]
            if state != "Z":
                parents[int(entry)] = (int(parent), name)
    found = set()
    for pid, (_, name) in parents.items():
        ancestor = pid
        while ancestor in parents:
            ancestor = parents[ancestor][0]
            if ancestor == os.getpid():
                found.add((pid, name))
                break
    return found


_displays = count(1)


class DesktopTestCase(TestCase):
    """Starts a display server and a desktop service, and ends both."""

    timeout = 30

    @staticmethod
    def clock() -> float:
        """Seconds, for limits."""
        return float(reactor.seconds())

    async def startXvfb(self, size: str = "640x480") -> str:
        """@return: The name of a fresh X display."""
        server = Server()
        path = shutil.which("Xvfb")
        assert path is not None
        # A number of this process's own: servers that look for a free one at the same
        # time may both take the one whose last owner is just removing its socket.
        name = f":{200 + os.getpid() % 500 * 100 + next(_displays)}"
        command = [path, name, "-displayfd", "1", "-screen", "0", f"{size}x24", "-nolisten", "tcp"]
        # Without the last client it would begin anew, and refuse who comes meanwhile.
        command.append("-noreset")
        reactor.spawnProcess(server, path, command, env={"PATH": os.environ["PATH"]})
        self.addCleanup(lambda: Deferred.fromCoroutine(server.end()))
        return ":" + (await server.line).decode("ascii")

    async def startSway(self, colour: str, size: str = "640x480") -> str:
        """@return: The path of a fresh Wayland compositor's socket."""
        # A short path: sockets have no room for a test's own directory.
        runtime = tempfile.mkdtemp(prefix="helix-sway-")
        self.addCleanup(shutil.rmtree, runtime, True)
        config = os.path.join(runtime, "config")
        lines = [f"output HEADLESS-1 resolution {size} bg {colour} solid_color", "xwayland disable"]
        FilePath(config).setContent("\n".join(lines).encode() + b"\n")
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": runtime,
            "XDG_RUNTIME_DIR": runtime,
            "WLR_BACKENDS": "headless",
            "WLR_RENDERER": "pixman",
            "WLR_LIBINPUT_NO_DEVICES": "1",
        }
        user: dict[str, int] = {}
        if os.geteuid() == 0:
            # sway refuses to run as root.
            os.chown(runtime, NOBODY, NOBODY)
            user = {"uid": NOBODY, "gid": NOBODY}
        server = Server()
        path = shutil.which("sway")
        assert path is not None
        reactor.spawnProcess(
            server, path, [path, "-c", config], env=environment, path=runtime, **user
        )
        self.addCleanup(lambda: Deferred.fromCoroutine(server.end()))
        wayland = os.path.join(runtime, "wayland-1")
        await until(lambda: os.path.exists(wayland) or server.ended.called, "sway's socket")
        self.assertFalse(server.ended.called, server.errors)
        return wayland

    async def startDesktop(self, **options: Any) -> DesktopService:
        """Start a desktop service on a port of its own."""
        base = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
        environment = {**base, **options.pop("environment", {})}
        service = DesktopService(
            reactor,
            DesktopOptions(
                **{
                    "listen": "127.0.0.1:0",
                    "environment": environment,
                    "python": sys.executable,
                    **options,
                }
            ),
        )
        service.startService()
        self.addCleanup(service.stopService)
        self.address = await service.whenListening()
        return service

    async def ask(self, method: str, path: str, document: object = None) -> tuple[int, bytes, str]:
        """@return: Status, body and content type of an answer."""
        headers = {}
        body = None
        if document is not None:
            headers["Content-Type"] = ["application/json"]
            body = FileBodyProducer(io.BytesIO(json.dumps(document).encode()), readSize=1 << 18)
        response = await Agent(reactor).request(
            method.encode(), f"http://{self.address}{path}".encode(), Headers(headers), body
        )
        content = await readBody(response)
        kind = (response.headers.getRawHeaders("content-type") or [""])[0]
        return response.code, content, kind

    async def read(self) -> dict[str, str]:
        """What the service says is on the clipboard."""
        status, body, _ = await self.ask("GET", "/clipboard")
        self.assertEqual(status, 200, body)
        document: dict[str, str] = json.loads(body)
        return document

    async def roundTrip(self, kind: str, data: str) -> None:
        """Write the clipboard, and read it back."""
        document = {"type": kind, "data": data}
        status, body, _ = await self.ask("POST", "/clipboard", document)
        self.assertEqual((status, body), (200, b""))
        found = await self.read()
        self.assertEqual(found["type"], kind)
        self.assertTrue(found["data"] == data, f"{found['data'][:80]!r}, not {data[:80]!r}")

    async def runProgram(
        self,
        environment: dict[str, str],
        *command: str,
        standardInput: bytes = b"",
        background: bool = False,
    ) -> bytes:
        """What another program prints; C{environment} names its display."""
        done: Deferred[bytes] = Deferred()

        class Program(ProcessProtocol):
            output = b""

            def connectionMade(self) -> None:
                self.transport.write(standardInput)  # type: ignore[union-attr]
                self.transport.closeStdin()  # type: ignore[union-attr]

            def outReceived(self, data: bytes) -> None:
                self.output += data

            def processExited(self, reason: Failure) -> None:
                if background:
                    # What it left behind keeps our pipes.
                    self.transport.loseConnection()  # type: ignore[union-attr]

            def processEnded(self, reason: Failure) -> None:
                if reason.check(ProcessTerminated):
                    done.errback(reason)
                else:
                    done.callback(self.output)

        path = shutil.which(command[0])
        assert path is not None, command[0]
        full = {"PATH": os.environ["PATH"], **environment}
        reactor.spawnProcess(Program(), path, list(command), env=full)
        return await done


def paintX11(display: str, colour: int) -> socket.socket:
    """
    Cover an X display with one colour, by the X protocol itself.

    @param colour: 0xRRGGBB.
    @return: The connection; the window lives as long as it is open.
    """
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(5)
    connection.connect(f"/tmp/.X11-unix/X{display[1:]}")
    stream = connection.makefile("rb")
    connection.sendall(struct.pack("<BxHHHHxx", ord("l"), 11, 0, 0, 0))
    success, length = struct.unpack("<B5xH", stream.read(8))
    assert success == 1
    setup = stream.read(length * 4)
    (base,) = struct.unpack_from("<I", setup, 4)
    vendor, formats = struct.unpack_from("<H3xB", setup, 16)
    (root,) = struct.unpack_from("<I", setup, 32 + (vendor + 3) // 4 * 4 + formats * 8)
    backgroundPixel, overrideRedirect = 0x2, 0x200
    connection.sendall(
        struct.pack(
            "<BBHIIhhHHHHIIII",
            *(1, 0, 10, base, root, 0, 0, 4096, 4096, 0, 1, 0),
            backgroundPixel | overrideRedirect,
            colour,
            1,
        )
        + struct.pack("<BBHI", 8, 0, 2, base)  # MapWindow
        + struct.pack("<BBH", 43, 0, 1)  # GetInputFocus: answered when all above is done
    )
    answer = b""
    while not answer.startswith(b"\x01"):
        answer = stream.read(32)
        assert answer[:1] != b"\0", answer
    stream.close()
    return connection
