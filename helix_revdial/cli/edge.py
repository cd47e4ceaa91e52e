# -*- test-case-name: tests.integration.test_cli -*-
"""
How a command ends: exit codes, the errors that become one line, and the reactor's run.

Owns the meaning of every exit code of C{helix}, and the one place where an
asynchronous command is run to its end.  Knows no command, no URL and no HTTP.

Invariants:

  - A command that fails raises L{CommandError}; nothing else decides what is
    written on standard error.
  - An interrupt (SIGINT, SIGTERM) cancels the running command, waits for it to
    clean up, and only then ends the process, with 130 or 143.
  - What a server or a file says never reaches a terminal unfiltered: see L{plain}.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

PASSED = 0
"""The command did what it was asked."""

FAILED = 1
"""It did not: refused, unreachable, timed out, or a self-test that did not pass."""

USAGE = 2
"""Flags, arguments or settings cannot be used; nothing was asked of a server."""

IN_GRACE = 3
"""C{spectask revdial}: the runner was in its grace period and did not return in time."""

INTERRUPTED = 130
"""Ctrl-C (SIGINT)."""

BROKEN_PIPE = 141
"""Whoever read standard output went away."""

TERMINATED = 143
"""SIGTERM."""


def plain(text: object, limit: int = 500) -> str:
    """
    Text from elsewhere as one harmless line.

    Control characters (which could drive a terminal) and line ends become
    spaces, and what is longer than a few lines is cut.

    @param limit: Characters that are kept.
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


class CommandError(Exception):
    """
    The command failed; the text is one sentence that says what to do.

    @ivar exitCode: What the process exits with.
    """

    exitCode = FAILED


class SettingsError(CommandError):
    """The settings (environment, profile, files named by flags) cannot be used."""

    exitCode = USAGE


class CannotWrite(CommandError):
    """
    Standard output does not take what is written: the disk is full, say.

    @param error: What the system said.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output cannot be written: {error.strerror or error}")


class ReaderGone(Exception):
    """Whoever read standard output or standard error went away: there is nobody to tell."""


class Interrupted(Exception):
    """
    A signal ended the command.

    @ivar exitCode: 130 or 143.
    """

    def __init__(self, exitCode: int) -> None:
        super().__init__(f"exit {exitCode}")
        self.exitCode = exitCode


Command = Callable[[Any], Coroutine["Deferred[Any]", Any, int]]
"""Takes the reactor; returns the exit code."""


def runCommand(command: Command, *, endsByItself: bool = False) -> int:
    """
    Run an asynchronous command under the reactor, to its end.

    @param endsByItself: Whether the command is a service, which ends well when
        the reactor shuts down: it is waited for then, and not cancelled.

    @return: What the command returned.

    @raise Interrupted: A signal ended it; it had the chance to clean up.
    @raise Exception: Whatever the command raised.
    """
    from twisted.internet.defer import Deferred
    from twisted.internet.task import react

    outcome: list[int | BaseException] = []
    signals: list[int] = []

    async def held(reactor: Any) -> None:
        running = Deferred.fromCoroutine(command(reactor))
        finished: Deferred[None] = Deferred()

        def interrupt() -> Deferred[None] | None:
            if outcome:
                return None
            if not signals:
                signals.append(signal.SIGINT)
            if not endsByItself:
                running.cancel()
            return finished

        reactor.callWhenRunning(_noteTermination, signals)
        reactor.addSystemEventTrigger("before", "shutdown", interrupt)
        try:
            outcome.append(await running)
        except BaseException as error:
            outcome.append(error)
        finished.callback(None)

    try:
        react(held)
    except SystemExit:
        # react ends every run this way; the outcome is what counts.
        pass
    if signals and not endsByItself:
        raise Interrupted(TERMINATED if signals[0] == signal.SIGTERM else INTERRUPTED)
    if not outcome:
        raise Interrupted(INTERRUPTED)
    (result,) = outcome
    if isinstance(result, BaseException):
        raise result
    return result


def _noteTermination(signals: list[int]) -> None:
    """Remember a SIGTERM before the reactor's own handler, which stays in charge, sees it."""
    ours = signal.getsignal(signal.SIGTERM)
    if not callable(ours):
        return

    def note(number: int, frame: FrameType | None) -> None:
        signals.append(signal.SIGTERM)
        ours(number, frame)

    signal.signal(signal.SIGTERM, note)


__all__ = [
    "BROKEN_PIPE",
    "FAILED",
    "INTERRUPTED",
    "IN_GRACE",
    "PASSED",
    "TERMINATED",
    "USAGE",
    "CannotWrite",
    "Command",
    "CommandError",
    "Interrupted",
    "ReaderGone",
    "SettingsError",
    "plain",
    "runCommand",
]
