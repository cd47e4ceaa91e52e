# -*- test-case-name: tests.integration.test_forward -*-
"""
Everything that C{helix forward} listens on, and every connection that comes in: each is a
dial of its own, joined to what came in, and told of.

A connection is not read before its target is connected.  What listens goes on listening
whatever becomes of a connection; L{Forwarding.stop} leaves nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater

from helix_revdial.cli.connecting import whyNoStream
from helix_revdial.cli.edge import CommandError, ReaderGone, plain
from helix_revdial.cli.local_end import Local, addressOf, place, removeStale
from helix_revdial.revdial.relay import relayPair
from helix_revdial.revdial.socket_accept import BACKLOG
from helix_revdial.revdial.turns import Turns

if TYPE_CHECKING:
    from helix_revdial.cli.output import Output
    from helix_revdial.revdial.gateway import GatewayEndpoint
    from helix_revdial.revdial.relay import RelayEnd, RelayProtocol
    from helix_revdial.revdial.sockets import SocketRelays

MAX_CONNECTIONS = 1000
"""Connections at once, over everything that listens; one more is closed."""

MAX_WAIT = 60.0
"""Seconds that a connection waits for its dial's turn."""

DIALS = 50
"""Dials at once: more of them wait for a turn here than are refused for their number there."""


class Report:
    """
    Says what happens: lines for people, events for programs.

    @ivar runner: Where everything leads.
    @ivar readerGone: Fires when there is nobody to tell any more.
    """

    def __init__(self, output: Output, runner: str, asJSON: bool) -> None:
        self._output = output
        self.runner = runner
        self._asJSON = asJSON
        self.readerGone: Deferred[None] = Deferred()

    def say(self, event: str, text: str | None, **fields: object) -> None:
        """
        @param text: For people; C{None} where they need not hear of it.
        """
        try:
            if self._asJSON:
                self._output.json({"event": event, "runner": self.runner, **fields}, indent=None)
            elif event == "listening":
                self._output.line(str(text))
            elif text is not None:
                self._output.notice(f"helix: {plain(text)}")
        except (ReaderGone, BrokenPipeError):
            if not self.readerGone.called:
                self.readerGone.callback(None)


class Forwarding:
    """
    Everything that listens, and every connection.

    @ivar reactor: Listens, and tells the time.
    @ivar report: Is told what happens.
    @ivar sockets: Moves bytes between plain sockets.
    @ivar turns: Whose dial is next.
    """

    def __init__(self, reactor: Any, report: Report, sockets: SocketRelays | None) -> None:
        self.reactor = reactor
        self.report = report
        self.sockets = sockets
        self.turns = Turns(reactor, DIALS)
        self._ports: list[Any] = []
        self._open: set[_Connection] = set()

    def listen(self, local: Local, endpoint: GatewayEndpoint) -> None:
        """
        @raise CommandError: It cannot listen there.
        """
        forwarding = self

        class Accepting(Factory):
            noisy = False

            def buildProtocol(self, addr: Any) -> Any:
                return forwarding.accepted(local, endpoint, _peerOf(addr))

        try:
            if local.path is not None:
                removeStale(local.path)
                port = self.reactor.listenUNIX(local.path, Accepting(), backlog=BACKLOG, mode=0o600)
                where = f"unix://{local.path}"
            else:
                address = addressOf(local.host)
                port = self.reactor.listenTCP(
                    local.port, Accepting(), backlog=BACKLOG, interface=address
                )
                found = port.getHost()
                where = place(found.host, found.port)
        except CannotListenError as error:
            reason = getattr(error.socketError, "strerror", None) or error.socketError
            raise CommandError(f"cannot listen on {local}: {plain(reason)}") from None
        except OSError as error:
            raise CommandError(f"cannot listen on {local}: {error.strerror or error}") from None
        self._ports.append(port)
        name = local.target or "its default target"
        self.report.say(
            "listening",
            f"{where} -> {self.report.runner} {name}",
            local=where,
            target=local.target,
        )

    def accepted(self, local: Local, endpoint: GatewayEndpoint, peer: str) -> RelayProtocol | None:
        """A connection was accepted: dial."""
        if len(self._open) >= MAX_CONNECTIONS:
            self.report.say(
                "refused",
                f"{peer}: {MAX_CONNECTIONS:,} connections are open; this one was closed",
                peer=peer,
                target=local.target,
            )
            return None
        connection = _Connection(self, local, peer)
        self._open.add(connection)
        connection.dial(endpoint)
        return connection.left

    def over(self, connection: _Connection) -> None:
        """Nothing of it is left."""
        self._open.discard(connection)

    async def stop(self) -> None:
        """Close everything."""
        for port in self._ports:
            await maybeDeferred(port.stopListening)
        for connection in list(self._open):
            connection.cut()
        if self._ports:
            # What was cut takes effect in the next turn.
            await deferLater(self.reactor, 0)


class _Connection:
    """
    One accepted connection.

    @ivar left: Its half of the relay.
    """

    def __init__(self, forwarding: Forwarding, local: Local, peer: str) -> None:
        self._forwarding = forwarding
        self._local = local
        self._peer = peer
        self._dialling: Deferred[Any] | None = None
        self._failed = False
        self.left, self._right = relayPair(
            forwarding.reactor, onEnd=self._ended, sockets=forwarding.sockets
        )

    def dial(self, endpoint: GatewayEndpoint) -> None:
        """Connect to the target."""
        factory = Factory.forProtocol(lambda: self._right)
        factory.noisy = False
        self._url = endpoint.server
        self._dialling = self._forwarding.turns.take(
            None, lambda left: endpoint.connect(factory), MAX_WAIT
        )
        self._dialling.addCallbacks(self._connected, self._notConnected)

    def cut(self) -> None:
        """End it, in whatever state it is."""
        self._failed = True
        dialling = self._dialling
        if dialling is not None:
            dialling.cancel()
        self.left.abandon()

    def _connected(self, protocol: Any) -> None:
        self._dialling = None
        setNoDelay = getattr(self.left.transport, "setTcpNoDelay", None)
        if setNoDelay is not None:
            setNoDelay(True)
        self._say("connected", None)

    def _notConnected(self, failure: Any) -> None:
        self._dialling = None
        if not self._failed:
            self._failed = True
            error = failure.value
            text = whyNoStream(self._url, error)
            self._say(
                "failed",
                f"{self._peer} -> {self._local.target or 'default target'}: {text}",
                status=getattr(error, "status", None),
                code=getattr(error, "word", None) or getattr(error, "code", None),
                detail=plain(text),
            )
        self.left.abandon()

    def _ended(self, end: RelayEnd) -> None:
        self._forwarding.over(self)
        if self._dialling is not None:
            # Whoever connected here has gone.
            self._failed = True
            self._dialling.cancel()
        if self._failed:
            return
        text = None
        if end.why != "done":
            reason = "" if end.failure is None else f": {end.failure.getErrorMessage()}"
            what = "broke off" if end.why == "broken" else "was given up after a silence"
            text = f"{self._peer} -> {self._local.target or 'default target'}: {what}{reason}"
        self._say(
            "closed",
            text,
            why=end.why,
            bytesIn=end.fromRight,
            bytesOut=end.fromLeft,
            seconds=round(end.seconds, 3),
        )

    def _say(self, event: str, text: str | None, **fields: object) -> None:
        self._forwarding.report.say(
            event, text, peer=self._peer, target=self._local.target, **fields
        )


def _peerOf(address: Any) -> str:
    host = getattr(address, "host", None)
    return "unix" if host is None else place(host, address.port)


__all__ = ["Forwarding", "Report"]
