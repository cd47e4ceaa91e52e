"""
The Go programs of both eras, as far as they can be told by their bytes.

L{GoAgent} and L{GoServer} do on the wire what the real programs do, faults
included; C{tests.integration.test_go_wire} holds them to recordings of those
programs, byte by byte, and then lets our server and our agent talk to them.
They share no code with C{helix_revdial}.

What the eras differ in:

  - November 2025 (L{ERA_2025}): the agent's control connection is an HTTP request
    that the server answers with C{200}, then lines.  What comes in one read with
    the head is lost.  The server's dials carry no request id: whichever dial
    waits gets the connection, or the error, that comes.
  - August 2026 (L{ERA_2026}): the control connection is a WebSocket with pings;
    every dial has its request id.

Both write their data as gorilla/websocket does, and close TCP without a close
frame when a stream ends.
"""

from __future__ import annotations

import json
import os
import re
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterator
from hashlib import sha1
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

ERA_2025 = "2025-11"
ERA_2026 = "2026-08"

TOKEN = "test-token"

COPY = 32 * 1024
"""What Go's C{io.Copy} reads at a time; each read becomes one message."""

CLIENT_BUFFER = 4096
"""Payload bytes of a frame that gorilla's client sends."""

SERVER_BUFFER = 4096 - 14
"""The same of its server, whose buffer holds the head too."""

UNBUFFERED = 2 * 4096
"""A server's write of more than so many bytes goes out as it is, in one frame."""

BINARY, CLOSE, PING, PONG = 2, 8, 9, 10


def frame(opcode: int, payload: bytes, *, final: bool = True, mask: bool) -> bytes:
    """One frame."""
    length = len(payload)
    second = 0x80 if mask else 0
    if length < 126:
        head = bytes([second | length])
    elif length < 65536:
        head = bytes([second | 126]) + length.to_bytes(2, "big")
    else:
        head = bytes([second | 127]) + length.to_bytes(8, "big")
    head = bytes([(0x80 if final else 0) | opcode]) + head
    if not mask:
        return head + payload
    key = os.urandom(4)
    return head + key + masked(payload, key)


def masked(payload: bytes, key: bytes) -> bytes:
    """C{payload} with the mask put on, or taken off."""
    length = len(payload)
    pad = int.from_bytes((key * (length // 4 + 1))[:length], "big")
    return (int.from_bytes(payload, "big") ^ pad).to_bytes(length, "big")


def message(data: bytes, *, mask: bool) -> bytes:
    """One write of gorilla's, in its frames."""
    if not mask and len(data) > UNBUFFERED:
        return frame(BINARY, data, final=False, mask=False) + frame(0, b"", mask=False)
    size = CLIENT_BUFFER if mask else SERVER_BUFFER
    pieces = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
    last = len(pieces) - 1
    return b"".join(
        frame(0 if number else BINARY, piece, final=number == last, mask=mask)
        for number, piece in enumerate(pieces)
    )


class FrameReader:
    """Takes a peer's frames apart: opcode, whether it is the last, payload."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bool, bytes]]:
        """The frames that are whole."""
        self._data += data
        while (size := self._size()) is not None:
            found, self._data = bytes(self._data[:size]), self._data[size:]
            yield _taken(found)

    def _size(self) -> int | None:
        if len(self._data) < 2:
            return None
        length, start = self._data[1] & 127, 2
        if length > 125:
            start = 4 if length == 126 else 10
            if len(self._data) < start:
                return None
            length = int.from_bytes(self._data[2:start], "big")
        size = start + (4 if self._data[1] & 128 else 0) + length
        return size if len(self._data) >= size else None


def _taken(found: bytes) -> tuple[int, bool, bytes]:
    start = {126: 4, 127: 10}.get(found[1] & 127, 2)
    payload = found[start:]
    if found[1] & 128:
        payload = masked(payload[4:], payload[:4])
    return found[0] & 15, bool(found[0] & 128), payload


def accept(key: str) -> str:
    """The answer to a WebSocket key (RFC 6455, section 4.2.2)."""
    told = (key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()
    return b64encode(sha1(told, usedforsecurity=False).digest()).decode()


class Peer(Protocol):
    """
    What every connection of either program is: a head, then frames or bytes.

    @ivar head: The peer's head, when it is here.
    @ivar lost: Fires when the connection is gone.
    """

    client = True
    framed = True

    def __init__(self) -> None:
        self.head: str | None = None
        self.lost: Deferred[None] = Deferred()
        self.closed = False
        self._early = b""
        self._frames = FrameReader()

    @property
    def wire(self) -> Any:
        return self.transport

    def connectionMade(self) -> None:
        self.wire.setTcpNoDelay(True)

    def dataReceived(self, data: bytes) -> None:
        if self.closed:
            return
        if self.head is None:
            self._early += data
            head, end, rest = self._early.partition(b"\r\n\r\n")
            if not end:
                return
            self.head = head.decode("latin-1")
            self.headReceived(self.head)
            if rest and not self.closed:
                self.afterHead(rest)
        elif self.framed:
            self._unframe(data)
        else:
            self.received(data)

    def afterHead(self, rest: bytes) -> None:
        """Bytes that came in one read with the head's end."""
        self.dataReceived(rest)

    def _unframe(self, data: bytes) -> None:
        for opcode, _, payload in self._frames.feed(data):
            if self.closed:
                return
            if opcode == PING:
                self.wire.write(frame(PONG, payload, mask=self.client))
            elif opcode == CLOSE:
                self.wire.write(frame(CLOSE, payload[:2], mask=self.client))
                self.close()
            elif opcode in (0, BINARY):
                if payload:
                    self.received(payload)
            elif opcode != PONG:
                self.close()  # the adapter takes binary messages only

    def send(self, data: bytes) -> None:
        """One write of the program."""
        if not self.closed:
            self.wire.write(message(data, mask=self.client) if self.framed else data)

    def close(self) -> None:
        """As Go closes: TCP, and no close frame."""
        if not self.closed:
            self.closed = True
            self.wire.loseConnection()
            self.ended()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.closed:
            self.closed = True
            self.ended()
        self.lost.callback(None)

    def headReceived(self, head: str) -> None:
        """The peer's head is here."""

    def received(self, data: bytes) -> None:
        """Payload."""

    def ended(self) -> None:
        """The connection is of no use any more; called once."""


class Lines:
    """Control messages out of bytes."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[dict[str, str]]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            yield json.loads(line)


def line(**fields: str) -> bytes:
    """A control message as Go's C{encoding/json} writes it."""
    text = json.dumps(fields, separators=(",", ":")).replace("&", "\\u0026")
    return text.encode() + b"\n"


Connect = Callable[[Protocol, Callable[[str], None]], None]
"""Opens a connection for a protocol, or says why not."""


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


class GoServer(Factory):
    """
    The control plane of either era: its C{/api/v1/revdial}, and its dials.

    @ivar controls: Every control connection that came.
    @ivar waiting: The dials that wait, by request id, oldest first.
    """

    noisy = False

    def __init__(
        self,
        clock: Any,
        era: str,
        newId: Callable[[], str] | None = None,
        *,
        token: str = TOKEN,
    ) -> None:
        """
        @param newId: Makes the ids; random ones if not given.
        """
        self.clock = clock
        self.token = token
        self.era = era
        self.newId = newId or (lambda: os.urandom(16).hex())
        self.controls: list[ServerConnection] = []
        self.connections: list[ServerConnection] = []
        self.dialers: dict[str, ServerConnection] = {}
        self.waiting: dict[str, Deferred[ServerConnection]] = {}

    def buildProtocol(self, addr: IAddress | None) -> ServerConnection:
        connection = ServerConnection(self)
        self.connections.append(connection)
        return connection

    def dial(self) -> Deferred[ServerConnection]:
        """Ask the newest control connection for a stream."""
        control = self.controls[-1]
        request = self.newId()
        path = f"/revdial?revdial.dialer={control.dialer}"
        if self.era == ERA_2026:
            path += f"&revdial.req={request}"
        waiting = self.waiting[request] = Deferred()
        control.send(line(command="conn-ready", connPath=path))
        control.keepAlive()
        return waiting

    def waiter(self, query: str) -> Deferred[ServerConnection] | None:
        """Whose connection, or whose error, this is; in 2025, anybody's."""
        if self.era == ERA_2026:
            found = re.search(r"revdial\.req=([0-9a-f]+)", query)
            return self.waiting.pop(found[1], None) if found else None
        request = next(iter(self.waiting), None)
        return None if request is None else self.waiting.pop(request)


class ServerConnection(Peer):
    """
    A connection to the server.

    @ivar dialer: The id that a control connection stands for.
    @ivar failures: The pickup-failed messages that came.
    @ivar data: All payload of a data connection.
    @ivar over: Fires when nothing more comes.
    """

    client = False

    def __init__(self, server: GoServer) -> None:
        super().__init__()
        self.dialer = ""
        self.failures: list[dict[str, str]] = []
        self.data = bytearray()
        self.over: Deferred[None] = Deferred()
        self._server = server
        self._lines = Lines()
        self._isData = False
        self._timers: list[IDelayedCall] = []

    def headReceived(self, head: str) -> None:
        request, *rest = head.split("\r\n")
        fields = {
            name.lower(): value.strip() for name, _, value in (each.partition(":") for each in rest)
        }
        path, _, query = request.split(" ")[1].partition("?")
        webSocket = fields.get("upgrade", "").lower() == "websocket"
        if path != "/api/v1/revdial":
            self._answer("404 Not Found", "404 page not found\n")
        elif fields.get("authorization") != f"Bearer {self._server.token}":
            self._answer("401 Unauthorized", "Unauthorized\n")
        elif webSocket and "revdial.dialer=" in query:
            self._pickUp(query, fields)
        elif not re.search(r"(^|&)runnerid=[^&]", query):
            self._answer("400 Bad Request", "runnerid is required\n")
        else:
            self._register(webSocket, fields)

    def _answer(self, status: str, body: str, media: str = "text/plain; charset=utf-8") -> None:
        sniff = "X-Content-Type-Options: nosniff\r\n" if media.startswith("text") else ""
        self.wire.write(
            f"HTTP/1.1 {status}\r\nContent-Type: {media}\r\n{sniff}"
            f"Date: Sat, 21 Nov 2026 02:02:22 GMT\r\nContent-Length: {len(body)}\r\n\r\n"
            f"{body}".encode()
        )
        self.closed = True
        self.wire.loseConnection()

    def _upgrade(self, fields: dict[str, str]) -> None:
        self.wire.write(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept(fields['sec-websocket-key'])}\r\n\r\n".encode()
        )

    def _pickUp(self, query: str, fields: dict[str, str]) -> None:
        dialer = re.search(r"revdial\.dialer=([0-9a-f]+)", query)
        if dialer is None or dialer[1] not in self._server.dialers:
            error = {
                "status_code": 500,
                "code": "INTERNAL_SERVER_ERROR",
                "message": "unknown dialer",
            }
            body = json.dumps(error, separators=(",", ":")) + "\n"
            self._answer("500 Internal Server Error", body, "application/json")
            return
        self._isData = True
        self._upgrade(fields)
        waiting = self._server.waiter(query)
        if waiting is None:
            self.close()
        else:
            waiting.callback(self)

    def _register(self, webSocket: bool, fields: dict[str, str]) -> None:
        self.framed = webSocket
        if webSocket:
            self._upgrade(fields)
            if self._server.era == ERA_2026:
                self._later(15.0, lambda: self.wire.write(frame(PING, b"", mask=False)))
        else:
            self.wire.write(
                b"HTTP/1.1 200 OK\r\nDate: Sat, 21 Nov 2026 02:02:22 GMT\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n"
            )
        self.dialer = self._server.newId()
        self._server.dialers[self.dialer] = self
        self._server.controls.append(self)
        self.keepAlive()

    def keepAlive(self) -> None:
        """Now, and again 18 s after whatever was last said."""
        for timer in self._timers:
            if timer.active() and getattr(timer, "keepAlive", False):
                timer.cancel()
        self.send(line(command="keep-alive"))
        again = self._server.clock.callLater(18.0, self.keepAlive)
        cast(Any, again).keepAlive = True
        self._timers.append(again)

    def _later(self, delay: float, call: Callable[[], Any]) -> None:
        def run() -> None:
            call()
            self._later(delay, call)

        self._timers.append(self._server.clock.callLater(delay, run))

    def received(self, data: bytes) -> None:
        if self._isData:
            self.data += data
            return
        for told in self._lines.feed(data):
            if told.get("command") == "pickup-failed":
                self.failures.append(told)
                waiting = self._server.waiter(told["connPath"])
                if waiting is not None:
                    waiting.errback(Failure(ConnectionLost(told["err"])))

    def ended(self) -> None:
        for timer in self._timers:
            if timer.active():
                timer.cancel()
        self._server.dialers.pop(self.dialer, None)
        self.over.callback(None)
