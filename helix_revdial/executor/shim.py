# -*- test-case-name: tests.integration.test_executor -*-
"""
The process that holds a L{Supervisor <helix_revdial.executor.supervisor.Supervisor>}: one
for each session, C{python -m helix_revdial.executor.shim DIRECTORY}.

The executor starts it and may go: it leads a session of its own, and whoever comes
after finds it by its socket.  It holds a lock for as long as it lives, so that there
are never two, and so that it is known when there is none.

The socket speaks lines of JSON.  In: C{{"id", "verb", "deadline", "text", "number"}}, and how far
the reports have come, C{{"fetched": seq}} and C{{"acknowledge": seq}}.  Out: C{{"id",
"answer"}} or C{{"id", "refused"}}; with each, at the beginning and whenever it is another,
C{{"state", "seq"}}.  The socket's directory is
root's alone, or the executor's.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger, globalLogBeginner, textFileLogObserver
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from .layout import Layout
from .process_table import becomeSubreaper
from .record import RecordUnusable, readRecord
from .supervisor import Refused, Supervisor

MAX_LINE = 512 * 1024
"""Bytes of a line in either direction."""

LINGER = 2.0
"""Seconds for which the socket stays after the end, so that the answers arrive."""


class Command(msgspec.Struct, omit_defaults=True):
    """What comes in: a verb with an id, or how far the reports have come."""

    id: int | None = None
    verb: str | None = None
    deadline: float | None = None
    text: str | None = None
    number: int | None = None
    acknowledge: int | None = None
    fetched: int | None = None


class Answer(msgspec.Struct, omit_defaults=True):
    """What goes out: an answer with its id, or news."""

    id: int | None = None
    answer: dict[str, Any] | None = None
    refused: str | None = None
    state: str | None = None
    seq: int | None = None


_decode = msgspec.json.Decoder(Command).decode


class _Control(LineOnlyReceiver):
    """The executor's connection."""

    _log = Logger()
    delimiter = b"\n"
    MAX_LENGTH = MAX_LINE

    def __init__(self, server: _ControlFactory) -> None:
        self._server = server

    def connectionMade(self) -> None:
        self._server.connections.add(self)
        self.news()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._server.connections.discard(self)

    def lineReceived(self, line: bytes) -> None:
        try:
            command = _decode(line)
        except msgspec.DecodeError as error:
            self._log.warn("a line that is none: {error}", error=error)
            self.transport.loseConnection()  # type: ignore[union-attr]
            return
        if command.acknowledge is not None:
            self._server.supervisor.acknowledge(command.acknowledge)
        if command.fetched is not None:
            self._server.supervisor.fetched(command.fetched)
        if command.verb is not None:
            Deferred.fromCoroutine(self._carryOut(command, command.verb)).addErrback(
                lambda failure: self._log.failure("a command was not carried out", failure)
            )

    async def _carryOut(self, command: Command, verb: str) -> None:
        answer = Answer(id=command.id)
        try:
            answer.answer = await self._server.supervisor.command(
                verb, deadline=command.deadline, text=command.text, number=command.number
            )
        except Refused as error:
            answer.refused = str(error)
        except Exception:
            self._log.failure("{verb} failed", verb=verb)
            answer.refused = "the host failed: its operator finds the reason in its log"
        # Who has the answer and asks how it is finds what he asked for.
        supervisor = self._server.supervisor
        answer.state, answer.seq = supervisor.state, supervisor.journal.lastSeq
        self.say(answer)

    def news(self) -> None:
        supervisor = self._server.supervisor
        self.say(Answer(state=supervisor.state, seq=supervisor.journal.lastSeq))

    def say(self, answer: Answer) -> None:
        if self in self._server.connections:
            self.sendLine(msgspec.json.encode(answer))


class _ControlFactory(Factory):
    """
    @ivar supervisor: Whom the commands are for; put there once it is made.
    """

    noisy = False
    supervisor: Supervisor

    def __init__(self, reactor: Any) -> None:
        self.connections: set[_Control] = set()
        self._reactor = reactor
        self._told = False

    def buildProtocol(self, addr: object) -> _Control:
        return _Control(self)

    def notify(self) -> None:
        """There is news; said once for all that happens in one turn."""
        if not self._told:
            self._told = True
            self._reactor.callLater(0, self._tell)

    def _tell(self) -> None:
        self._told = False
        for connection in list(self.connections):
            connection.news()


async def supervise(reactor: Any, layout: Layout) -> None:
    """
    Run the session of a directory to its end.

    @raise RecordUnusable: There is none.
    """
    record = readRecord(layout)
    control = _ControlFactory(reactor)
    supervisor = Supervisor(reactor, record, layout, time.time, control.notify)
    control.supervisor = supervisor
    if supervisor.journal.ended is not None or supervisor.journal.lastSeq:
        # It was supervised before: what is left is the executor's to clear away.
        return
    layout.control.unlink(missing_ok=True)
    port = reactor.listenUNIX(str(layout.control), control, mode=0o600)

    def asked(*_: object) -> None:
        reactor.callFromThread(_stop, supervisor)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, asked)
    await supervisor.run()
    control.notify()
    end = reactor.seconds() + LINGER
    while control.connections and reactor.seconds() < end:
        await deferLater(reactor, 0.02)
    await port.stopListening()
    layout.control.unlink(missing_ok=True)


def _stop(supervisor: Supervisor) -> None:
    """The host is shutting down."""
    Deferred.fromCoroutine(supervisor.command("stop")).addErrback(lambda f: f.trap(Refused))


def main(arguments: list[str]) -> int:
    """
    Supervise.

    @return: The exit code.
    """
    layout = Layout(Path(arguments[0]))
    lock = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return 0
    # For whoever has to kill us, should we hang.
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    becomeSubreaper()
    from twisted.internet import reactor

    code = 1

    def done(result: object) -> None:
        nonlocal code
        if isinstance(result, Failure):
            if result.check(RecordUnusable):
                sys.stderr.write(f"{result.getErrorMessage()}\n")
            else:
                Logger().failure("the session is no longer supervised", result)
        else:
            code = 0
        reactor.stop()

    def begin() -> None:
        Deferred.fromCoroutine(supervise(reactor, layout)).addBoth(done)

    reactor.callWhenRunning(begin)
    reactor.run()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
