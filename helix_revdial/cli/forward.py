# -*- test-case-name: tests.cli.test_forward,tests.integration.test_forward -*-
"""
C{helix forward}: ports and unix sockets of this machine that lead to targets.

Each connection that is accepted is a dial of its own: nothing is kept open between
them, so that an agent or a server that goes away and returns is noticed by the
connections of that time only.  A connection is not read before its target is connected.

Invariants:

  - What listens at the end is what listened at the beginning: no failure of a
    connection ends the command.
  - When it ends, nothing is left: no port, no socket file, no connection.
"""

from __future__ import annotations

import os
import re
import socket
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from helix_revdial.cli.connecting import TIMEOUT, gatewayOf, whyNoStream
from helix_revdial.cli.edge import CommandError, ReaderGone, plain
from helix_revdial.cli.invocation import (
    CLOSE_TIMEOUT,
    Identifier,
    Invocation,
    Timeout,
    jsonFlag,
    passInvocation,
)

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from helix_revdial.cli.output import Output
    from helix_revdial.cli.profile import Settings
    from helix_revdial.revdial.gateway import GatewayEndpoint
    from helix_revdial.revdial.relay import RelayEnd, RelayProtocol
    from helix_revdial.revdial.sockets import SocketRelays

MAX_CONNECTIONS = 1000
"""Connections at once, over everything that listens; one more is closed."""

MAX_WAIT = 60.0
"""Seconds that a connection waits for its dial's turn."""

DIALS = 50
"""Dials at once: more of them wait for a turn here than are refused for their number there."""

_TARGET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HOST = re.compile(r"\[(?P<six>[0-9A-Fa-f:.%a-z]+)\]|(?P<name>[A-Za-z0-9._-]+)")


@dataclass(frozen=True)
class Local:
    """
    Where one forward listens, and where it leads.

    @ivar path: A unix socket; else C{host} and C{port}, 0 for any that is free.
    @ivar target: C{None} for the agent's default.
    """

    target: str | None
    host: str = "127.0.0.1"
    port: int = 0
    path: str | None = None

    @classmethod
    def parse(cls, text: str) -> Local:
        """
        Read C{[LOCAL:]TARGET}.

        @raise ValueError: It is not that; says what is.
        """
        where, colon, name = text.rpartition(":")
        if not colon and name.isdigit():
            raise ValueError(f"{name}: a port alone leads nowhere; expected {name}:TARGET")
        if name and _TARGET.fullmatch(name) is None:
            raise ValueError(
                f"{text}: expected [LOCAL:]TARGET; {plain(name)!r} is no target's name"
            )
        if not name and not where:
            raise ValueError("expected [LOCAL:]TARGET")
        target = name or None
        if not colon:
            return cls(target)
        if where.startswith("unix:"):
            path = where.removeprefix("unix:")
            path = path.removeprefix("//")
            if not path.startswith("/") or len(os.fsencode(path)) > 107:
                raise ValueError(f"{text}: expected unix:///PATH:TARGET, at most 107 bytes of path")
            return cls(target, path=path)
        host, _, port = where.rpartition(":")
        if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
            raise ValueError(f"{text}: expected PORT, HOST:PORT or unix:///PATH before the target")
        if not host:
            return cls(target, port=int(port))
        match = _HOST.fullmatch(host)
        if match is None:
            raise ValueError(f"{text}: {plain(host)!r} is no host; an IPv6 address has brackets")
        return cls(target, match["six"] or match["name"], int(port))


class _LocalParameter(click.ParamType[Any]):
    name = "forward"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Local:
        if isinstance(value, Local):
            return value
        try:
            return Local.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command("forward")
@click.argument("runner", type=Identifier())
@click.argument(
    "forwards", type=_LocalParameter(), metavar="[LOCAL:]TARGET...", nargs=-1, required=True
)
@click.option(
    "--timeout", type=Timeout(), default=TIMEOUT, show_default=True, help="Seconds for each dial."
)
@jsonFlag
@passInvocation
def forward(
    invocation: Invocation, runner: str, forwards: tuple[Local, ...], timeout: float, asJSON: bool
) -> int:
    """
    Listen here, and lead each connection to a target beside RUNNER.

    LOCAL is PORT (on 127.0.0.1), HOST:PORT or unix:///PATH; without it, a free port.
    RUNNER is a runner's key or a session's id. It goes on until Ctrl-C. With --json, each
    line is an event.

    \b
      helix forward wolf-1 5432:db 127.0.0.1:8080:web unix:///tmp/wolf.sock:wolf
    """

    async def command(reactor: Any, settings: Settings) -> int:
        from helix_revdial.revdial.sockets import SocketRelays

        report = _Report(invocation.output, runner, asJSON)
        forwarding = Forwarding(reactor, report, SocketRelays(reactor))
        ways = [gatewayOf(reactor, settings, runner, each.target, timeout) for each in forwards]
        await _greet(reactor, settings, report)
        try:
            for each, endpoint in zip(forwards, ways, strict=True):
                forwarding.listen(each, endpoint)
            await report.readerGone
        finally:
            await forwarding.stop()
        raise ReaderGone

    return invocation.withSettings(command)


async def _greet(reactor: Any, settings: Settings, report: _Report) -> None:
    """
    Ask the server before anything listens: a token that it does not take is no better
    later.  A server that is not there may come.

    @raise Refused: It knows no such token, or no such session, or the token may not.
    """
    from helix_revdial.cli.client import connect, segment
    from helix_revdial.cli.failures import Refused

    client, pool = connect(reactor, settings)
    kind = "sessions" if report.runner.startswith("ses_") else "runners"
    try:
        await client.exchange.request("GET", f"/api/v1/{kind}/{segment(report.runner)}/stream")
    except Refused as refused:
        # Whoever may have a stream is told how to ask for one (426).
        if refused.status in (401, 403, 404):
            raise
    except CommandError as error:
        text = plain(error)
        report.say("unreachable", f"{text}; connections fail until it answers", detail=text)
    finally:
        closing = pool.closeCachedConnections()
        await closing.addTimeout(CLOSE_TIMEOUT, reactor).addErrback(lambda failure: None)


class _Report:
    """
    Says what happens: lines for people, events for programs.

    @ivar runner: Where everything leads.
    @ivar readerGone: Fires when there is nobody to tell any more.
    """

    def __init__(self, output: Output, runner: str, asJSON: bool) -> None:
        from twisted.internet.defer import Deferred

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

    def __init__(self, reactor: Any, report: _Report, sockets: SocketRelays | None) -> None:
        from helix_revdial.revdial.turns import Turns

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
        from twisted.internet.error import CannotListenError
        from twisted.internet.protocol import Factory

        forwarding = self

        class Accepting(Factory):
            noisy = False

            def buildProtocol(self, addr: Any) -> Any:
                return forwarding.accepted(local, endpoint, _peerOf(addr))

        try:
            if local.path is not None:
                _removeStale(local.path)
                port = self.reactor.listenUNIX(local.path, Accepting(), mode=0o600)
                where = f"unix://{local.path}"
            else:
                address = _addressOf(local.host)
                port = self.reactor.listenTCP(local.port, Accepting(), interface=address)
                found = port.getHost()
                where = _place(found.host, found.port)
        except CannotListenError as error:
            reason = getattr(error.socketError, "strerror", None) or error.socketError
            raise CommandError(f"cannot listen on {_wanted(local)}: {plain(reason)}") from None
        except OSError as error:
            raise CommandError(
                f"cannot listen on {_wanted(local)}: {error.strerror or error}"
            ) from None
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
        from twisted.internet.defer import maybeDeferred
        from twisted.internet.task import deferLater

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
        from helix_revdial.revdial.relay import relayPair

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
        from twisted.internet.protocol import Factory

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
    return "unix" if host is None else _place(host, address.port)


def _place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _wanted(local: Local) -> str:
    return f"unix://{local.path}" if local.path is not None else _place(local.host, local.port)


def _addressOf(name: str) -> str:
    """
    The address of a name of this machine.

    @raise OSError: It has none.
    """
    return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])


def _removeStale(path: str) -> None:
    """
    Remove a socket file that nobody listens on any more.

    @raise OSError: Somebody does, or it is something else.
    """
    try:
        isSocket = stat.S_ISSOCK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if not isSocket:
        raise FileExistsError(17, "a file that is no socket is there")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise FileExistsError(98, "somebody listens there")


__all__ = ["Forwarding", "Local", "forward"]
