"""
A server of the wire that does what a test says, and the agent as a process.

L{ScriptedServer} is written against the wire alone: it shares no code with
C{helix_revdial}, so that what it accepts from the agent is what the wire says
and not what our own server happens to take.  Raw carriers only.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

from twisted.internet.defer import Deferred, DeferredQueue
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol, IProcessTransport
from twisted.internet.protocol import Factory, ProcessProtocol, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from helix_revdial.revdial.features import ALL, formatFeatures

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
"""The checkout."""

LIMIT = 15.0
"""Seconds that anything may take before a test says what it waited for."""


class Timeout(Exception):
    """Something did not happen in time."""


async def within(reactor: Any, waiting: Deferred[Any], what: str) -> Any:
    """Wait for C{waiting}; when it takes too long, fail naming C{what}."""

    def late(result: object, _: float) -> None:
        raise Timeout(f"waited {LIMIT:g} s for {what}")

    return await waiting.addTimeout(LIMIT, reactor, late)


@implementer(IHalfCloseableProtocol)
class ScriptedConnection(Protocol):
    """
    One connection of an agent: a control connection, a data connection, or refused.

    @ivar lines: The messages of a control connection but for signs of life.
    @ivar data: All bytes of a data connection.
    @ivar ended: Fires when the agent's direction of a data connection ends.
    @ivar lost: Fires when the connection is gone, with why.
    """

    def __init__(self, server: ScriptedServer) -> None:
        self.server = server
        self.lines: DeferredQueue[dict[str, Any]] = DeferredQueue()
        self.data = b""
        self.ended: Deferred[None] = Deferred()
        self.lost: Deferred[BaseException | None] = Deferred()
        self.query: dict[str, list[str]] = {}
        self.headers: dict[str, str] = {}
        self._kind = "head"
        self._buffer = b""

    @property
    def wire(self) -> Any:
        return self.transport

    def connectionMade(self) -> None:
        self.server.connections.append(self)

    def dataReceived(self, data: bytes) -> None:
        if self._kind == "data":
            self.data += data
            return
        self._buffer += data
        if self._kind == "head":
            head, end, rest = self._buffer.partition(b"\r\n\r\n")
            if not end:
                return
            self._buffer = rest
            self._begin(head.decode("ascii"))
        while self._kind == "control" and b"\n" in self._buffer:
            line, _, self._buffer = self._buffer.partition(b"\n")
            message = json.loads(line)
            if message["command"] == "keep-alive":
                self.send(command="echo", echo=message["echo"])
            elif message["command"] != "echo":
                self.lines.put(message)

    def _begin(self, head: str) -> None:
        request, *fields = head.split("\r\n")
        target = request.split(" ")[1]
        self.query = parse_qs(urlsplit(target).query)
        self.headers = {
            name.lower(): value.strip()
            for name, _, value in (each.partition(":") for each in fields)
        }
        self.server.requests.append(self)
        if self.server.refusal is not None:
            status, detail = self.server.refusal
            body = json.dumps({"status": status, "detail": detail}).encode()
            self.wire.write(
                b"HTTP/1.1 %d Refused\r\nContent-Type: application/problem+json\r\n"
                b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (status, len(body), body)
            )
            self.wire.loseConnection()
            return
        self.wire.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: revdial\r\nConnection: Upgrade\r\n"
            b"Revdial-Features: %s\r\n\r\n" % formatFeatures(ALL)
        )
        ticket = self.headers.get("revdial-ticket")
        if ticket is None:
            self._kind = "control"
            self.send(command="keep-alive", echo="first")
            self.server.controls.put(self)
        else:
            self._kind = "data"
            self.data, self._buffer = self._buffer, b""
            self.server.pickUps.pop(ticket).callback(self)

    def send(self, **message: object) -> None:
        """Send a control message."""
        self.wire.write(json.dumps(message).encode() + b"\n")

    def readConnectionLost(self) -> None:
        if not self.ended.called:
            self.ended.callback(None)
        if self._kind != "data":
            self.wire.loseConnection()

    def writeConnectionLost(self) -> None:
        pass

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.ended.called:
            self.ended.callback(None)
        self.lost.callback(reason.value)


class ScriptedServer(Factory):
    """
    @ivar refusal: A status and a sentence to refuse everybody with, or C{None}.
    @ivar controls: The control connections, as they come.
    @ivar requests: The connections that sent a request head.
    """

    noisy = False

    def __init__(self) -> None:
        self.refusal: tuple[int, str] | None = None
        self.controls: DeferredQueue[ScriptedConnection] = DeferredQueue()
        self.requests: list[ScriptedConnection] = []
        self.connections: list[ScriptedConnection] = []
        self.pickUps: dict[str, Deferred[ScriptedConnection]] = {}
        self._asked = 0

    def buildProtocol(self, addr: IAddress | None) -> ScriptedConnection:
        return ScriptedConnection(self)

    def ask(
        self, control: ScriptedConnection, target: str | None = None
    ) -> Deferred[ScriptedConnection]:
        """Ask for a stream; fires with its data connection."""
        self._asked += 1
        ticket = f"ticket-{self._asked}"
        picked: Deferred[ScriptedConnection] = Deferred()
        self.pickUps[ticket] = picked
        named = {} if target is None else {"target": target}
        control.send(
            command="conn-ready",
            connPath="/revdial",
            dial=f"{self._asked:032x}",
            ticket=ticket,
            **named,
        )
        return picked


class AgentProcess(ProcessProtocol):
    """
    The agent in a process of its own.

    @ivar output: All that it printed.
    @ivar ended: Fires when it is gone, with its exit code, or with the negative
        number of the signal that it ended by.
    """

    def __init__(self) -> None:
        self.output = ""
        self.ended: Deferred[int] = Deferred()
        self._waiting: list[tuple[str, Deferred[None]]] = []
        self._seen = 0

    def spawn(self, reactor: Any, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start C{python} with C{arguments}."""
        reactor.spawnProcess(
            self,
            sys.executable,
            [sys.executable, *arguments],
            env={
                "PATH": os.environ.get("PATH", ""),
                "PYTHONPATH": ROOT,
                "PYTHONUNBUFFERED": "1",
                **environment,
            },
        )

    def outReceived(self, data: bytes) -> None:
        self.output += data.decode("utf-8", "replace")
        for words, found in list(self._waiting):
            self._look(words, found)

    errReceived = outReceived

    def says(self, words: str) -> Deferred[None]:
        """Fires when C{words} are printed, behind what was waited for before."""
        found: Deferred[None] = Deferred()
        self._waiting.append((words, found))
        self._look(words, found)
        return found

    def _look(self, words: str, found: Deferred[None]) -> None:
        at = self.output.find(words, self._seen)
        if at >= 0:
            self._seen = at + len(words)
            self._waiting.remove((words, found))
            if not found.called:
                found.callback(None)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(cast(Any, self.transport).pid, number)

    def kill(self) -> None:
        """End it, if it has not ended."""
        try:
            cast(IProcessTransport, self.transport).signalProcess("KILL")
        except ProcessExitedAlready:
            pass

    def processExited(self, reason: Failure) -> None:
        """Required by the interface; what counts is that its pipes are closed too."""

    def processEnded(self, reason: Failure) -> None:
        value: Any = reason.value
        code = value.exitCode if value.exitCode is not None else -value.signal
        self.ended.callback(code)


TERMINATED = -signal.SIGTERM
"""How C{twistd} ends on SIGTERM: it hands the signal on to itself when all is done."""
