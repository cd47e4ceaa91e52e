# -*- test-case-name: tests.integration.test_desktop_service -*-
"""
Run programs: bounded output, a deadline, nothing left behind.

Owns the processes that are started through it, in whatever service.  Invariants:

  - no shell, ever: a program and its arguments are a tuple;
  - what a program writes is kept up to a limit; one byte more kills it;
  - each program leads a process group of its own (through C{setsid} of
    util-linux, which replaces itself by the program, so that the pid is the
    program's), and is killed with all its children;
  - the number of programs at any time is limited;
  - after L{Programs.stop} none is alive.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol as Shape

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import ProcessDone
from twisted.internet.interfaces import (
    IDelayedCall,
    IProcessTransport,
    IReactorProcess,
    IReactorTime,
)
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

MAX_RUNNING = 16
"""Programs alive at one time."""

ERROR_LIMIT = 4096
"""Bytes of a program's standard error that are kept; the rest is dropped."""

STOP_TIMEOUT = 2.0
"""How long L{Programs.stop} waits for killed programs, in seconds."""

PACKAGES = {
    "git": "git",
    "grim": "grim",
    "wl-copy": "wl-clipboard",
    "wl-paste": "wl-clipboard",
    "xclip": "xclip",
}
"""Debian's package for each program that we run, for the advice in errors."""


class ProgramError(Exception):
    """A program did not do what it was started for.  The message is a sentence for people."""


class ProgramMissing(ProgramError):
    """A program that is needed is not installed."""


class ProgramTimedOut(ProgramError):
    """A program did not end within its deadline, and was killed."""


class OutputTooLarge(ProgramError):
    """A program wrote more than the limit for what it was asked."""


class TooBusy(ProgramError):
    """
    As many run, or wait, as may.

    @ivar retryAfter: When to ask again, in seconds.
    """

    def __init__(self, message: str, *, retryAfter: int = 1) -> None:
        super().__init__(message)
        self.retryAfter = retryAfter


class ReactorForPrograms(IReactorProcess, IReactorTime):
    """What L{Programs} needs of a reactor."""


@dataclass(frozen=True, slots=True)
class Finished:
    """
    How a program ended.

    @ivar exitCode: Its exit code, or L{None} when a signal ended it.
    @ivar output: What it wrote to standard output.
    @ivar errors: The first L{ERROR_LIMIT} bytes of its standard error.
    """

    exitCode: int | None
    output: bytes
    errors: bytes

    def complaint(self) -> str:
        """The first line of standard error that says something, for people."""
        for line in self.errors.decode("utf-8", "replace").splitlines():
            # Before git says what became of a push it says where it goes.
            if line.strip() and not line.startswith("To "):
                return "".join(c for c in line.strip() if c.isprintable())[:300]
        return "it was killed" if self.exitCode is None else f"exit code {self.exitCode}"


class IRunning(Shape):
    """A program that was started."""

    def alive(self) -> bool:
        """Whether it still runs."""

    def whenEnded(self) -> Deferred[Finished]:
        """Fires when it has ended; never fails, except with L{OutputTooLarge}."""

    def kill(self) -> None:
        """Kill it and its children; harmless when it has ended."""


class IPrograms(Shape):
    """What starts programs; stands here so that tests bring their own."""

    def find(self, name: str) -> str | None:
        """The path of a program, or L{None} when it is not installed."""

    def start(
        self, arguments: Sequence[str], *, standardInput: bytes = b"", outputLimit: int = 0
    ) -> IRunning:
        """Start a program that ends when it likes."""

    def run(
        self,
        arguments: Sequence[str],
        *,
        outputLimit: int,
        deadline: float,
        standardInput: bytes = b"",
    ) -> Deferred[Finished]:
        """Run a program to its end."""

    def stop(self) -> Deferred[None]:
        """Kill whatever runs."""


def signalGroup(pid: int, number: int) -> None:
    """
    Signal a process and, where it leads its own group, the whole group.

    @param pid: The process that was started.
    @param number: The signal.
    """
    try:
        leads = os.getpgid(pid) == pid
    except ProcessLookupError:
        # Reaped already; children that it left behind keep the group alive,
        # and while they do, nobody else can get this number.
        leads = True
    try:
        if leads:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


class _Program(ProcessProtocol):
    """One running program: collects what it writes, within the limits."""

    transport: IProcessTransport

    def __init__(
        self,
        standardInput: bytes,
        outputLimit: int,
        signalGroup: Callable[[int, int], None],
        ended: Callable[[_Program], None],
    ) -> None:
        self._input = standardInput
        self._outputLimit = outputLimit
        self._signalGroup = signalGroup
        self._onEnd = ended
        self._pid: int | None = None
        self._output: list[bytes] = []
        self._outputSize = 0
        self._errors = b""
        self._tooLarge = False
        self._result: Finished | OutputTooLarge | None = None
        self._waiters: list[Deferred[Finished]] = []
        self.name = ""

    def alive(self) -> bool:
        return self._result is None

    def whenEnded(self) -> Deferred[Finished]:
        waiter: Deferred[Finished] = Deferred(self._waiters.remove)
        self._waiters.append(waiter)
        if self._result is not None:
            self._tell(self._result)
        return waiter

    def kill(self) -> None:
        if self._result is None and self._pid is not None:
            self._signalGroup(self._pid, signal.SIGKILL)

    def _tell(self, result: Finished | OutputTooLarge) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if isinstance(result, OutputTooLarge):
                waiter.errback(Failure(result))
            else:
                waiter.callback(result)

    # ProcessProtocol

    def connectionMade(self) -> None:
        self._pid = self.transport.pid
        if self._input:
            self.transport.writeToChild(0, self._input)
            self._input = b""
        self.transport.closeChildFD(0)

    def outReceived(self, data: bytes) -> None:
        if self._tooLarge:
            return
        self._outputSize += len(data)
        if self._outputSize > self._outputLimit:
            self._tooLarge = True
            self._output.clear()
            self.kill()
        else:
            self._output.append(data)

    def errReceived(self, data: bytes) -> None:
        if len(self._errors) < ERROR_LIMIT:
            self._errors = (self._errors + data)[:ERROR_LIMIT]

    def processExited(self, reason: Failure) -> None:
        # A child that it left behind would hold our pipes open, and then
        # processEnded never comes.
        if self._pid is not None:
            self._signalGroup(self._pid, signal.SIGKILL)

    def processEnded(self, reason: Failure) -> None:
        exitCode = 0 if reason.check(ProcessDone) else getattr(reason.value, "exitCode", None)
        if self._tooLarge:
            self._result = OutputTooLarge(
                f"{self.name} wrote more than {self._outputLimit} bytes and was stopped"
            )
        else:
            self._result = Finished(exitCode, b"".join(self._output), self._errors)
        self._output.clear()
        self._onEnd(self)
        self._tell(self._result)


class Programs:
    """
    Starts programs in one environment, and ends them.

    @param reactor: Provides L{IReactorProcess} and L{IReactorTime}.
    @param environment: The whole environment of every program; programs are
        looked up in its C{PATH}.
    @param maxRunning: Programs alive at one time.
    @param signalGroup: Signals a process and its group.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: ReactorForPrograms,
        environment: Mapping[str, str],
        *,
        maxRunning: int = MAX_RUNNING,
        signalGroup: Callable[[int, int], None] = signalGroup,
    ) -> None:
        self._reactor = reactor
        self._environment = dict(environment)
        self._maxRunning = maxRunning
        self._signalGroup = signalGroup
        self._running: set[_Program] = set()
        self._stopped = False
        self._setsid = self.find("setsid")

    def find(self, name: str) -> str | None:
        """
        The path of a program.

        @param name: Its name, or a path.
        @return: L{None} when it is not installed.
        """
        return shutil.which(name, path=self._environment.get("PATH") or os.defpath)

    def start(
        self, arguments: Sequence[str], *, standardInput: bytes = b"", outputLimit: int = 0
    ) -> IRunning:
        """
        Start a program that ends when it likes, or at L{stop}.

        @param arguments: The program's name and its arguments.
        @param standardInput: What it reads; then its standard input is closed.
        @param outputLimit: Bytes of standard output; one more kills it.
        @raise ProgramMissing: It is not installed.
        @raise TooBusy: Too many programs run, or the service stops.
        """
        name = os.path.basename(arguments[0])
        path = self.find(arguments[0])
        if path is None:
            package = PACKAGES.get(name)
            advice = f": install the package {package}" if package else ""
            raise ProgramMissing(f"the program {name} is not installed{advice}")
        if self._stopped:
            raise TooBusy("the service is stopping")
        if len(self._running) >= self._maxRunning:
            raise TooBusy(f"{self._maxRunning} programs are running already")
        program = _Program(standardInput, outputLimit, self._signalGroup, self._running.discard)
        program.name = name
        command = [path, *arguments[1:]]
        if self._setsid is not None:
            command.insert(0, self._setsid)
        self._running.add(program)
        try:
            self._reactor.spawnProcess(program, command[0], command, env=self._environment)
        except BaseException:
            self._running.discard(program)
            raise
        return program

    def run(
        self,
        arguments: Sequence[str],
        *,
        outputLimit: int,
        deadline: float,
        standardInput: bytes = b"",
    ) -> Deferred[Finished]:
        """
        Run a program to its end.

        @param arguments: The program's name and its arguments.
        @param outputLimit: Bytes of standard output; one more kills it.
        @param deadline: Seconds until it is killed.
        @param standardInput: What it reads; then its standard input is closed.
        @return: Fires with how it ended, whatever the exit code; fails with
            L{ProgramMissing}, L{TooBusy}, L{ProgramTimedOut} or
            L{OutputTooLarge}.  Cancelling kills the program.
        """
        try:
            program = self.start(arguments, standardInput=standardInput, outputLimit=outputLimit)
        except (ProgramMissing, TooBusy):
            result: Deferred[Finished] = Deferred()
            result.errback()
            return result
        ended = program.whenEnded()
        result = Deferred(lambda _: program.kill())

        def expire() -> None:
            # Told at once: a program in an uninterruptible wait may take long
            # to die, and nobody has to wait with it.
            program.kill()
            if not result.called:
                name = os.path.basename(arguments[0])
                result.errback(
                    ProgramTimedOut(f"{name} did not answer within {deadline:g} seconds")
                )
            ended.cancel()

        timer: IDelayedCall = self._reactor.callLater(deadline, expire)

        def done(outcome: Finished | Failure) -> None:
            if timer.active():
                timer.cancel()
            if not result.called:
                result.callback(outcome)

        ended.addBoth(done)
        return result

    async def _stop(self) -> None:
        self._stopped = True
        waits = []
        for program in list(self._running):
            program.kill()
            waits.append(program.whenEnded())
        if not waits:
            return
        everything = DeferredList(waits, consumeErrors=True)
        everything.addTimeout(STOP_TIMEOUT, self._reactor, onTimeoutCancel=lambda r, _: None)
        await everything
        if self._running:
            self._log.warn(
                "{count} programs were killed and have not ended", count=len(self._running)
            )

    def stop(self) -> Deferred[None]:
        """
        Kill whatever runs, and start nothing more.

        @return: Fires when all have ended, or after L{STOP_TIMEOUT} seconds.
        """
        return Deferred.fromCoroutine(self._stop())
