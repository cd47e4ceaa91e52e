# -*- test-case-name: tests.integration.test_executor -*-
"""
What runs beside a task so that its screen can be seen: an X display, the desktop
service, and the tunnel agent that offers it to the server as C{sandbox-SESSION}.

The display and the desktop service are the session's own and hold no secret.  The
agent holds the session's token, so it runs as another user; it reads the token from a
file of mode 0600 that is that user's.  All three go on while the task is paused, are
started again when they die, and end with the session.

A session whose screen cannot be had runs all the same: what is missing is said in
its log.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from .confinement import PATH, Confinement
from .enter import CANNOT_ENTER, CANNOT_RUN, NOT_FOUND
from .layout import Layout
from .record import Record

DISPLAY_SECONDS = 15.0
"""How long a display may take to be there."""

SOCKET_SECONDS = 20.0
"""How long the desktop service may take to listen."""

STOP_SECONDS = 3.0
"""How long a companion may take to end by itself."""

AGAIN = (1.0, 2.0, 5.0, 15.0, 30.0)
"""Seconds before one that died is started again, the last one for ever."""

_CANNOT = (CANNOT_ENTER, CANNOT_RUN, NOT_FOUND)

KEPT = 2048
"""Bytes of what a companion said that are kept."""


class Companion(ProcessProtocol):
    """
    A program that is started again when it ends, until it is told to stop; not where it
    cannot be run at all.

    @ivar pid: Its process, or C{None}.
    @ivar impossible: Why it cannot be run, or C{None}.
    @ivar line: Fires with the first line that it writes to descriptor 3.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        name: str,
        argv: Sequence[str],
        environment: Mapping[str, str],
        *,
        ready: bool = False,
        again: bool = True,
    ) -> None:
        self.name = name
        self.pid: int | None = None
        self.impossible: str | None = None
        self.line: Deferred[bytes] = Deferred()
        self._reactor = reactor
        self._argv = list(argv)
        self._environment = dict(environment)
        self._ready = ready
        self._again = again
        self._first = b""
        self._said = b""
        self._tries = 0
        self._later: IDelayedCall | None = None
        self._stopping = False
        self._ended: Deferred[None] | None = None

    def start(self) -> None:
        """Start it."""
        self._later = None
        descriptors: dict[int, Any] = {0: "w", 1: "r", 2: "r"}
        if self._ready:
            descriptors[3] = "r"
        self._ended = Deferred()
        transport = self._reactor.spawnProcess(
            self, self._argv[0], self._argv, env=self._environment, path="/", childFDs=descriptors
        )
        self.pid = transport.pid
        transport.closeStdin()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        if childFD == 3 and not self.line.called:
            self._first = (self._first + data)[:KEPT]
            if b"\n" in self._first:
                self.line.callback(self._first.partition(b"\n")[0])
        elif childFD != 3:
            self._said = (self._said + data)[-KEPT:]

    def processEnded(self, reason: Failure) -> None:
        self.pid = None
        ended, self._ended = self._ended, None
        if not self._stopping:
            self._log.warn(
                "{name} ended: {reason}; it said: {said}",
                name=self.name,
                reason=reason.getErrorMessage(),
                said=self._said.decode("utf-8", "replace"),
            )
            if getattr(reason.value, "exitCode", None) in _CANNOT:
                self.impossible = self._said.decode("utf-8", "replace").strip()
            elif self._again:
                delay = AGAIN[min(self._tries, len(AGAIN) - 1)]
                self._tries += 1
                self._later = self._reactor.callLater(delay, self.start)
        if not self.line.called:
            self.line.errback(RuntimeError(f"{self.name} ended"))
        if ended is not None:
            ended.callback(None)

    def stop(self) -> Deferred[None]:
        """
        End it.

        @return: Fires when it has ended.
        """
        self._stopping = True
        self.line.addErrback(lambda _: b"")
        if self._later is not None:
            self._later.cancel()
            self._later = None
        result: Deferred[None] = Deferred()
        ended, transport = self._ended, self.transport
        if ended is None or transport is None:
            result.callback(None)
            return result
        overdue = self._reactor.callLater(STOP_SECONDS, transport.signalProcess, "KILL")

        def over(_: object) -> None:
            if overdue.active():
                overdue.cancel()
            result.callback(None)

        ended.addBoth(over)
        transport.signalProcess("TERM")
        return result


def magicCookie(display: str) -> bytes:
    """
    An X authority file (Xau, C{MIT-MAGIC-COOKIE-1}) for whatever host it is read on.
    """
    name, data = b"MIT-MAGIC-COOKIE-1", secrets.token_bytes(16)
    wild = 0xFFFF
    fields = (b"", display.encode("ascii"), name, data)
    entry = struct.pack(">H", wild)
    for each in fields:
        entry += struct.pack(">H", len(each)) + each
    return entry


class Companions:
    """
    Those of one session.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        record: Record,
        layout: Layout,
        confinement: Confinement,
        say: Callable[[str], None],
    ) -> None:
        """
        @param say: Told, for the session's log, what cannot be had.
        """
        self._reactor = reactor
        self._record = record
        self._layout = layout
        self._confinement = confinement
        self._say = say
        self._running: list[Companion] = []
        self._stopped = False
        self._token = "" if record.spec.sandbox is None else record.spec.sandbox.token
        self.environment: dict[str, str] = {}

    @property
    def processes(self) -> set[int]:
        """The processes that are none of the task's."""
        return {each.pid for each in self._running if each.pid is not None}

    async def start(self) -> None:
        """Start what the session is to have."""
        terms, sandbox = self._record.terms, self._record.spec.sandbox
        if sandbox is None or terms.display is None:
            return
        try:
            await self._startDisplay(terms.display)
            await self._startDesktop()
            await self._startAgent(terms.serverUrl or sandbox.serverUrl)
        except (OSError, RuntimeError) as error:
            self._say(f"the session has no screen: {error}")

    async def _startDisplay(self, size: str) -> None:
        if shutil.which("Xvfb", path=PATH) is None:
            raise RuntimeError("Xvfb is not installed on this host")
        self._displayDirectory()
        authority = self._layout.home / ".Xauthority"
        # The display's number is not known before it runs: an empty one fits all.
        self._write(authority, magicCookie(""), self._record.user)
        argv = [
            "Xvfb", "-displayfd", "3", "-screen", "0", size, "-nolisten", "tcp",
            "-auth", str(authority), "-noreset",
            # Each program of a session has shared memory of its own.
            "-extension", "MIT-SHM",
        ]  # fmt: skip
        display = await self._run("the display", argv, {}, ready=True)
        number = await self._line(display)
        self.environment = {
            "DISPLAY": f":{int(number)}",
            "XAUTHORITY": str(authority),
        }

    def _displayDirectory(self) -> None:
        """The directory of X sockets, which only root makes as it should be."""
        if os.geteuid() != 0:
            return
        directory = Path(self._confinement.temporary or "/tmp", ".X11-unix")  # noqa: S108
        directory.mkdir(exist_ok=True)
        os.chmod(directory, 0o1777)  # noqa: S103 - as X itself makes it

    async def _line(self, display: Companion) -> bytes:
        overdue = self._reactor.callLater(DISPLAY_SECONDS, display.line.cancel)
        try:
            return await display.line
        except Exception:
            raise RuntimeError("the display did not start") from None
        finally:
            if overdue.active():
                overdue.cancel()

    async def _startDesktop(self) -> None:
        path = self._layout.desktop
        argv = [self._record.terms.python, "-m", "helix_revdial.cli", "desktop", "serve"]
        argv += ["--listen", f"unix:{path}"]
        desktop = await self._run("the desktop service", argv, self.environment)
        end = self._reactor.seconds() + SOCKET_SECONDS
        while not self._hand(path):
            if desktop.impossible is not None:
                raise RuntimeError(f"the desktop service: {desktop.impossible}")
            if self._stopped or self._reactor.seconds() > end:
                raise RuntimeError("the desktop service did not start")
            await deferLater(self._reactor, 0.05)

    def _hand(self, path: Any) -> bool:
        """
        Let the tunnel's user connect to the desktop's socket, once it is there.

        The directory is the session's: what is found there is given away only if it is
        a socket, the session's own.
        """
        try:
            found = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            about = os.fstat(found)
            if not stat.S_ISSOCK(about.st_mode) or about.st_nlink != 1:
                return False
            user, tunnel = self._record.user, self._record.tunnelUser
            if user is not None and tunnel is not None:
                if about.st_uid == tunnel:
                    return True
                if about.st_uid != user:
                    return False
                os.chown(f"/proc/self/fd/{found}", tunnel, tunnel)
            return True
        finally:
            os.close(found)

    def setToken(self, token: str) -> None:
        """Another token holds from now on; the agent reads it when it connects again."""
        self._token = token
        if self._tokenFile.exists():
            self._writeToken()

    @property
    def _tokenFile(self) -> Path:
        return self._layout.tunnel / "token"

    def _writeToken(self) -> None:
        draft = self._layout.tunnel / "token.new"
        self._write(draft, self._token.encode() + b"\n", self._record.tunnelUser)
        draft.rename(self._tokenFile)

    async def _startAgent(self, url: str) -> None:
        self._writeToken()
        run = "from twisted.scripts.twistd import run; run()"
        argv = [
            self._record.terms.python, "-c", run, "--nodaemon", "--pidfile=", "helix-revdial-agent",
            "--runner-id", f"sandbox-{self._record.spec.session}",
            "--api-url", url, "--token-file", str(self._tokenFile),
            "--local", f"unix://{self._layout.desktop}",
        ]  # fmt: skip
        if self._record.terms.caFile is not None:
            argv += ["--ca-file", self._record.terms.caFile]
        await self._run("the tunnel agent", argv, {}, user=self._record.tunnelUser)

    @staticmethod
    def _write(path: Any, content: bytes, user: int | None) -> None:
        """Write a file that is C{user}'s alone."""
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            if user is not None:
                os.fchown(file.fileno(), user, user)

    async def _run(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        ready: bool = False,
        user: int | None = None,
    ) -> Companion:
        if self._stopped:
            raise RuntimeError("the session ends")
        home = str(self._layout.tunnel if user is not None else self._layout.home)
        temporary = home if user is not None else str(self._layout.temporary)
        companion = Companion(
            self._reactor,
            name,
            self._confinement.argv(command, "side", "/", newSession=True, user=user),
            self._confinement.environment(home, temporary, environment),
            ready=ready,
            # Another display would have another number.
            again=not ready,
        )
        self._running.append(companion)
        companion.start()
        return companion

    def tend(self) -> None:
        """See to it that the tunnel reaches a desktop that was started again."""
        if self._running and not self._stopped:
            self._hand(self._layout.desktop)

    async def stop(self) -> None:
        """End them all, the agent first."""
        self._stopped = True
        await DeferredList([each.stop() for each in reversed(self._running)])
        self._tokenFile.unlink(missing_ok=True)
