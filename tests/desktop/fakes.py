"""Programs that run nowhere: a test says what each one does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from twisted.internet.defer import Deferred, maybeDeferred

from helix_revdial.desktop.pictures import Picture
from helix_revdial.programs import Finished, IRunning, ProgramMissing


def atOnce(function: Callable[[], Picture]) -> Awaitable[Picture]:
    """Stands in for a thread pool."""
    return maybeDeferred(function)


def png(marker: bytes = b"") -> bytes:
    """Bytes that begin as a PNG does; C{marker} makes them tell apart."""
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(29) + marker


@dataclass
class FakeProgram:
    """A program that was started, and runs until the test ends it."""

    arguments: tuple[str, ...]
    standardInput: bytes
    result: Finished | None = None
    killed: bool = False
    waiters: list[Deferred[Finished]] = field(default_factory=list)

    def alive(self) -> bool:
        return self.result is None

    def whenEnded(self) -> Deferred[Finished]:
        waiter: Deferred[Finished] = Deferred(self.waiters.remove)
        if self.result is not None:
            waiter.callback(self.result)
        else:
            self.waiters.append(waiter)
        return waiter

    def end(self, exitCode: int | None = 0, errors: bytes = b"") -> None:
        self.result = Finished(exitCode, b"", errors)
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter.callback(self.result)

    def kill(self) -> None:
        if self.result is None:
            self.killed = True
            self.end(None)


@dataclass
class FakeRun:
    """A program that was run, and has not ended."""

    arguments: tuple[str, ...]
    outputLimit: int
    deadline: float
    result: Deferred[Finished]

    def end(self, output: bytes = b"", exitCode: int = 0, errors: bytes = b"") -> None:
        self.result.callback(Finished(exitCode, output, errors))


class FakePrograms:
    """
    Records what is run; L{answers} may answer at once.

    @ivar answers: Given the arguments, how the program ended, or L{None} to
        leave it running until the test ends it.
    """

    def __init__(self) -> None:
        self.installed: set[str] = {"grim", "wl-copy", "wl-paste", "xclip", "python3"}
        self.runs: list[FakeRun] = []
        self.started: list[FakeProgram] = []
        self.stopped = False
        self.answers: Callable[[tuple[str, ...]], Finished | Exception | None] = lambda _: None

    def find(self, name: str) -> str | None:
        return f"/usr/bin/{name}" if name in self.installed else None

    def start(
        self, arguments: Sequence[str], *, standardInput: bytes = b"", outputLimit: int = 0
    ) -> IRunning:
        if self.find(arguments[0]) is None:
            raise ProgramMissing(f"the program {arguments[0]} is not installed")
        program = FakeProgram(tuple(arguments), standardInput)
        self.started.append(program)
        return program

    def run(
        self,
        arguments: Sequence[str],
        *,
        outputLimit: int,
        deadline: float,
        standardInput: bytes = b"",
    ) -> Deferred[Finished]:
        run = FakeRun(tuple(arguments), outputLimit, deadline, Deferred())
        self.runs.append(run)
        answer = self.answers(run.arguments)
        if self.find(arguments[0]) is None:
            run.result.errback(ProgramMissing(f"the program {arguments[0]} is not installed"))
        elif isinstance(answer, Exception):
            run.result.errback(answer)
        elif answer is not None:
            run.result.callback(answer)
        return run.result

    def stop(self) -> Deferred[None]:
        self.stopped = True
        for program in self.started:
            program.kill()
        nothing: Deferred[None] = Deferred()
        nothing.callback(None)
        return nothing
