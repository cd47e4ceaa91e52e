# -*- test-case-name: tests.integration.test_executor -*-
"""
A supervisor as the executor sees it: started, found again, told what to do.

L{Supervised} holds the connection to one supervisor's socket.  The connection's end
is the supervisor's: it closes it only when it goes.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import sys
from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import Factory, ProcessProtocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from helix_revdial.sessions.executor import HostState

from .confinement import PATH
from .layout import Layout
from .shim import MAX_LINE, Answer, Command

START_SECONDS = 60.0
"""How long a supervisor may take to listen."""

LOOK = 0.05
"""Seconds between two looks for its socket."""

MAX_WAITING = 1000
"""Commands of one session that are under way."""


class SupervisorGone(Exception):
    """The supervisor ended before it answered."""


class CommandRefused(Exception):
    """The supervisor refuses; the text says why."""


class _Connection(LineOnlyReceiver):
    delimiter = b"\n"
    MAX_LENGTH = MAX_LINE

    def __init__(self, owner: Supervised) -> None:
        self._owner = owner

    def lineReceived(self, line: bytes) -> None:
        self._owner.heard(msgspec.json.decode(line, type=Answer))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._owner.lost()


class _Process(ProcessProtocol):
    """
    A supervisor that we started; its end is noticed by its socket's.

    @ivar ended: Whether it has.
    """

    ended = False

    def processEnded(self, reason: Failure) -> None:
        self.ended = True


def isAlive(layout: Layout) -> bool:
    """Whether a session has a supervisor: it holds the lock."""
    try:
        lock = os.open(layout.lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


class Supervised:
    """
    One session's supervisor.

    @ivar state: As it says.
    @ivar seq: The number of the session's newest report.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, layout: Layout, news: Callable[[], None], gone: Callable[[], None]
    ) -> None:
        """
        @param news: Called when there is a new report, or another state.
        @param gone: Called when the supervisor is no more.
        """
        self.state: HostState = "provisioning"
        self.seq = 0
        self._reactor = reactor
        self._layout = layout
        self._news = news
        self._gone = gone
        self._ids = itertools.count(1)
        self._waiting: dict[int, Deferred[dict[str, Any]]] = {}
        self._connection: _Connection | None = None
        self._process: _Process | None = None
        self._ready: Deferred[None] = Deferred()
        self._over = False

    def start(self) -> None:
        """Start the supervisor, unless there is one."""
        layout = self._layout
        log = os.open(layout.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        environment = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": "/"}
        if "PYTHONPATH" in os.environ:
            environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
        argv = ["setsid", sys.executable, "-m", "helix_revdial.executor.shim", str(layout.root)]
        self._process = _Process()
        try:
            self._reactor.spawnProcess(
                self._process,
                "/usr/bin/setsid",
                argv,
                env=environment,
                path="/",
                childFDs={0: null, 1: log, 2: log},
            )
        finally:
            os.close(log)
            os.close(null)

    async def connect(self) -> None:
        """
        Find the supervisor, once it listens.

        @raise SupervisorGone: It has ended, or there is none.
        """
        end = self._reactor.seconds() + START_SECONDS
        endpoint = UNIXClientEndpoint(self._reactor, str(self._layout.control), 5)
        while not self._over:
            if self._layout.control.exists():
                try:
                    factory = Factory.forProtocol(lambda: _Connection(self))
                    factory.noisy = False
                    self._connection = await endpoint.connect(factory)
                    self._ready.callback(None)
                    return
                except Exception as error:
                    self._log.debug("the supervisor does not answer yet: {e}", e=error)
            starting = self._process is not None and not self._process.ended
            if self._reactor.seconds() > end or not (starting or isAlive(self._layout)):
                break
            await deferLater(self._reactor, LOOK)
        self.lost()
        raise SupervisorGone("the session's supervisor is not there")

    def heard(self, answer: Answer) -> None:
        """It has said something."""
        if answer.state is not None and answer.seq is not None:
            self.state = answer.state  # type: ignore[assignment]
            self.seq = answer.seq
            self._news()
        waiting = None if answer.id is None else self._waiting.pop(answer.id, None)
        if waiting is not None and answer.refused is not None:
            waiting.errback(CommandRefused(answer.refused))
        elif waiting is not None:
            waiting.callback(answer.answer or {})
        connection = self._connection
        if self.state == "ended" and not self._waiting and connection is not None:
            # It waits for no more than that we have heard it.
            assert connection.transport is not None
            connection.transport.loseConnection()

    def lost(self) -> None:
        """It is gone."""
        if self._over:
            return
        self._over = True
        self._connection = None
        if not self._ready.called:
            self._ready.callback(None)
        waiting, self._waiting = self._waiting, {}
        for each in waiting.values():
            each.errback(SupervisorGone("the session's supervisor has ended"))
        self._gone()

    async def command(
        self,
        verb: str,
        *,
        deadline: float | None = None,
        text: str | None = None,
        number: int | None = None,
    ) -> dict[str, Any]:
        """
        Have it do something.

        @return: What it answers.
        @raise CommandRefused: It refuses.
        @raise SupervisorGone: It ended first.
        """
        ready: Deferred[None] = Deferred()
        self._ready.addBoth(ready.callback)
        await ready
        if self._connection is None:
            raise SupervisorGone("the session's supervisor has ended")
        if len(self._waiting) >= MAX_WAITING:
            raise CommandRefused("too much is asked of this session at once")
        identity = next(self._ids)
        answer = self._waiting[identity] = Deferred()
        command = Command(id=identity, verb=verb, deadline=deadline, text=text, number=number)
        self._connection.sendLine(msgspec.json.encode(command))
        return await answer

    def acknowledge(self, seq: int) -> None:
        """Reports up to C{seq} have been fetched for good."""
        if self._connection is not None:
            self._connection.sendLine(msgspec.json.encode(Command(acknowledge=seq)))

    def fetched(self, seq: int) -> None:
        """Reports up to C{seq} were sent."""
        if self._connection is not None:
            self._connection.sendLine(msgspec.json.encode(Command(fetched=seq)))

    def disconnect(self) -> None:
        """Leave it alone: it goes on without us."""
        self._over = True
        if self._connection is not None and self._connection.transport is not None:
            self._connection.transport.loseConnection()

    def kill(self) -> None:
        """Kill the supervisor that we started, if it never answered."""
        process = self._process
        if process is not None and process.transport is not None and not process.ended:
            try:
                process.transport.signalProcess("KILL")
            except ProcessExitedAlready:
                pass
