"""The Go server of either era, as its bytes tell it; see L{tests.integration.gorilla}."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from tests.integration.gorilla import ERA_2026, PING, TOKEN, Lines, Peer, accept, frame, line


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
