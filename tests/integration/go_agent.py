"""The Go agent of either era, as its bytes tell it; see L{tests.integration.gorilla}."""

from __future__ import annotations

import os
from base64 import b64encode
from collections import deque
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from tests.integration.gorilla import (
    COPY,
    ERA_2025,
    ERA_2026,
    PING,
    TOKEN,
    Connect,
    Lines,
    Peer,
    accept,
    frame,
    line,
)


class GoAgent:
    """
    C{revdial-client} of either era.

    @ivar control: The control connection of the moment.
    @ivar log: What the program would print, in words of ours.
    """

    def __init__(
        self,
        clock: Any,
        era: str,
        host: str,
        runner: str,
        *,
        dialServer: Connect,
        dialTarget: Connect,
        token: str = TOKEN,
        reconnect: float | None = None,
    ) -> None:
        """
        @param host: What stands in C{Host}.
        @param reconnect: Seconds before it connects again; the era's own if not given.
        @param dialServer: Opens connections to the server.
        @param dialTarget: Opens connections to the service beside it.
        """
        self.clock = clock
        self.era = era
        self.host = host
        self.token = token
        self.reconnect = reconnect or (5.0 if era == ERA_2025 else 1.0)
        self.dialServer = dialServer
        self.dialTarget = dialTarget
        self.log: list[str] = []
        self.control: AgentControl | None = None
        self._runner = runner
        self._again: IDelayedCall | None = None
        self._stopped = False
        self._accepted: deque[AgentData] = deque()
        self._dialling = False

    def start(self) -> None:
        """Connect, and connect again whenever that ends."""
        self._again = None
        control = self.control = AgentControl(self, self._runner)
        self.dialServer(control, control.failed)

    def stop(self) -> None:
        """As a kill: every socket closes, nothing is said."""
        self._stopped = True
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self.control is not None:
            self.control.close()

    def gone(self, control: AgentControl, why: str) -> None:
        """A control connection has ended."""
        self.log.append(why)
        if control is self.control and not self._stopped and self._again is None:
            self._again = self.clock.callLater(self.reconnect, self.start)

    def accepted(self, data: AgentData) -> None:
        """A data connection is up.  Targets are opened one after another."""
        self._accepted.append(data)
        self._next()

    def _next(self) -> None:
        if self._dialling or not self._accepted:
            return
        data = self._accepted.popleft()
        self._dialling = True
        self.dialTarget(AgentTarget(self, data), lambda why: self._noTarget(data, why))

    def _noTarget(self, data: AgentData, why: str) -> None:
        self.log.append(f"local: {why}")
        data.close()
        self.dialled()

    def dialled(self) -> None:
        """A target is open, or failed."""
        self._dialling = False
        self._next()


class AgentControl(Peer):
    """The agent's control connection."""

    def __init__(self, agent: GoAgent, runner: str) -> None:
        super().__init__()
        self.framed = agent.era == ERA_2026
        self._agent = agent
        self._runner = runner
        self._lines = Lines()
        self._key = b64encode(os.urandom(16)).decode()
        self._ping: IDelayedCall | None = None

    def failed(self, why: str) -> None:
        """There is no connection."""
        self.closed = True
        self._agent.gone(self, why)

    def connectionMade(self) -> None:
        super().connectionMade()
        self.wire.write(
            f"GET /api/v1/revdial?runnerid={self._runner} HTTP/1.1\r\n".encode()
            + _fields(self._agent, self._key if self.framed else None)
        )

    def headReceived(self, head: str) -> None:
        status = head.split(" ")[1]
        if status != ("101" if self.framed else "200"):
            self._agent.log.append(f"status {status}")
            self.close()
        elif self.framed:
            self._pingLater()

    def afterHead(self, rest: bytes) -> None:
        # The program of 2025 reads the head through a buffer, and drops the buffer.
        if self.framed:
            super().afterHead(rest)

    def _pingLater(self) -> None:
        self._ping = self._agent.clock.callLater(15.0, self._sendPing)

    def _sendPing(self) -> None:
        self.wire.write(frame(PING, b"", mask=True))
        self._pingLater()

    def received(self, data: bytes) -> None:
        try:
            for asked in self._lines.feed(data):
                if asked.get("command") == "conn-ready":
                    self._grab(asked["connPath"])
        except ValueError:
            self._agent.log.append("invalid JSON")
            self.close()

    def _grab(self, path: str) -> None:
        data = AgentData(self._agent, self, path)
        self._agent.dialServer(data, data.refused)

    def ended(self) -> None:
        if self._ping is not None:
            self._ping.cancel()
            self._ping = None
        self._agent.gone(self, "control ended")


class AgentData(Peer):
    """A dial-back of the agent's."""

    def __init__(self, agent: GoAgent, control: AgentControl, path: str) -> None:
        super().__init__()
        self.target: AgentTarget | None = None
        self.unread: list[bytes] = []
        self._agent = agent
        self._control = control
        self._path = path
        self._key = b64encode(os.urandom(16)).decode()

    def connectionMade(self) -> None:
        super().connectionMade()
        path = self._path.replace("/revdial", "/api/v1/revdial", 1)
        self.wire.write(f"GET {path} HTTP/1.1\r\n".encode() + _fields(self._agent, self._key))

    def refused(self, why: str) -> None:
        """The dial-back failed."""
        self._control.send(line(command="pickup-failed", connPath=self._path, err=why))

    def headReceived(self, head: str) -> None:
        wanted = f"sec-websocket-accept: {accept(self._key)}".lower()
        if head.split(" ")[1] == "101" and wanted in head.lower():
            self._agent.accepted(self)
        else:
            self.refused("websocket: bad handshake")
            self.close()

    def received(self, data: bytes) -> None:
        if self.target is None:
            self.unread.append(data)
        else:
            self.target.wire.write(data)

    def ended(self) -> None:
        if self.target is not None:
            self.target.close()


class AgentTarget(Protocol):
    """The agent's connection to the service beside it."""

    def __init__(self, agent: GoAgent, data: AgentData) -> None:
        self._agent = agent
        self._data = data
        self._closed = False

    @property
    def wire(self) -> Any:
        return self.transport

    def connectionMade(self) -> None:
        if self._data.closed:
            self.close()
        else:
            self._data.target = self
            for data in self._data.unread:
                self.wire.write(data)
            # io.Copy reads no faster than its other end takes.
            self._data.wire.registerProducer(self.wire, True)
        self._agent.dialled()

    def dataReceived(self, data: bytes) -> None:
        for at in range(0, len(data), COPY):
            self._data.send(data[at : at + COPY])

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.wire.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._closed = True
        if self._data.target is self:
            if not self._data.lost.called:
                self._data.wire.unregisterProducer()
            self._data.close()


def _fields(agent: GoAgent, key: str | None) -> bytes:
    """The header fields of the agent's requests, in the order of Go's writer."""
    fields = [
        f"Host: {agent.host}",
        "User-Agent: Go-http-client/1.1",
        f"Authorization: Bearer {agent.token}",
        "Connection: Upgrade",
    ]
    if key is not None:
        fields += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "Upgrade: websocket"]
    return "\r\n".join(fields).encode() + b"\r\n\r\n"
