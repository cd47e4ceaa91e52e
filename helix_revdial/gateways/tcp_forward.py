# -*- test-case-name: tests.gateways.test_tcp_forward -*-
"""
TCP forwards: ports of the server that lead to targets.

Whoever can reach such a port reaches the target, without a token.  So a forward
listens only within the ports and interfaces that the operator set apart, beyond
loopback only with a list of who may come, and it has its target in the name of
whoever made it: each connection is judged, by what the agent then says of the target,
as if he had asked for the stream himself.

Each connection is a dial of its own, and is not read before its target is connected.

Invariants:

  - Where a forward is gone, its port is free and its connections are cut.
  - A forward has at most so many connections, dials that wait included.
  - A failure of one connection is counted, and changes nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredList, fail, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from helix_revdial.gateways.proxy_header import proxyHeader
from helix_revdial.revdial.connections import Connections
from helix_revdial.revdial.errors import DialError
from helix_revdial.revdial.keepalive import DATA_WATCH, watchPath
from helix_revdial.revdial.offered import TARGET_NAME, Expose
from helix_revdial.revdial.relay import RelayEnd, RelayProtocol, relayPair
from helix_revdial.revdial.requests import RUNNER_KEY
from helix_revdial.revdial.socket_accept import BACKLOG, SocketPort
from helix_revdial.revdial.sockets import SocketRelays

LOOPBACK = "127.0.0.1"
"""Where a forward listens that does not say."""

MAX_ALLOWED = 256
"""Networks of one forward's list."""

_LISTEN = re.compile(r"tcp:(?P<port>[0-9]{1,5})(?::interface=(?P<interface>(?:[^:\\]|\\.)+))?")

Network = IPv4Network | IPv6Network
Allow = Callable[[Expose], bool]
"""Whether the forward may have a target that is for these."""

Judge = Callable[[], Allow | Awaitable[Allow]]
"""Says it, for one connection, at once or after a look at what is stored."""


class ForwardRefused(Exception):
    """
    This forward cannot be; the text says why.

    @ivar field: Which part of it is wrong: C{listen}, C{runner}, C{target} or C{allow}.
    """

    def __init__(self, field: str, text: str) -> None:
        super().__init__(text)
        self.field = field


class ForwardTaken(ForwardRefused):
    """It could be, were others not there."""


@dataclass(frozen=True)
class Bounds:
    """
    What forwards may use.

    @ivar first: The first port; with C{last} below it, there are none.
    @ivar interfaces: Addresses that they may listen on.
    @ivar most: Forwards at once.
    @ivar connections: Connections of one forward at once.
    """

    first: int = 1
    last: int = 0
    interfaces: tuple[str, ...] = (LOOPBACK,)
    most: int = 100
    connections: int = 1000

    @classmethod
    def parsePorts(cls, text: str | None) -> tuple[int, int]:
        """
        Read C{"20000-20100"}, C{"20000"}, or C{None} for no ports.

        @raise ValueError: It is none of these.
        """
        if text is None:
            return 1, 0
        match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", text)
        if match is None:
            raise ValueError(f"{text!r}: expected FIRST-LAST")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 0 < first <= last < 65536:
            raise ValueError(f"{text!r}: expected FIRST-LAST within 1-65535")
        return first, last

    def check(self, settings: ForwardSettings) -> None:
        """
        @raise ForwardRefused: A forward is not within these.
        """
        if self.last < self.first:
            raise ForwardRefused("listen", "this server has no ports for forwards (forwards.ports)")
        if settings.interface not in self.interfaces:
            allowed = ", ".join(self.interfaces)
            raise ForwardRefused("listen", f"the interface is none of {allowed}")
        if settings.port and not self.first <= settings.port <= self.last:
            raise ForwardRefused("listen", f"the port is not within {self.first}-{self.last}")


@dataclass(frozen=True)
class ForwardSettings:
    """
    What a forward is to do.

    @ivar port: 0 for any that is free, within the bounds.
    @ivar allow: Who may connect; empty for everybody who can.
    @ivar proxyProtocol: Whether the target is told who connected, before anything else.
    """

    interface: str
    port: int
    runner: str
    target: str | None
    allow: tuple[Network, ...] = ()
    proxyProtocol: bool = False

    @property
    def listen(self) -> str:
        """Where it is to listen."""
        interface = self.interface.replace(":", "\\:")
        return f"tcp:{self.port}:interface={interface}"

    @classmethod
    def parse(
        cls,
        listen: str,
        runner: str,
        target: str | None,
        allow: Iterable[str] = (),
        proxyProtocol: bool = False,
    ) -> ForwardSettings:
        """
        @param listen: C{tcp:PORT}, and C{:interface=ADDRESS} (colons behind backslashes).
        @param allow: Networks or addresses.
        @raise ForwardRefused: One of them makes no sense.
        """
        match = _LISTEN.fullmatch(listen)
        if match is None or int(match["port"]) > 65535:
            raise ForwardRefused("listen", "expected tcp:PORT or tcp:PORT:interface=ADDRESS")
        interface = re.sub(r"\\(.)", r"\1", match["interface"] or LOOPBACK)
        try:
            interface = str(ip_address(interface))
        except ValueError:
            raise ForwardRefused("listen", "the interface is no IP address") from None
        if RUNNER_KEY.fullmatch(runner) is None:
            raise ForwardRefused("runner", "expected a runner's key")
        if target is not None and TARGET_NAME.fullmatch(target) is None:
            raise ForwardRefused("target", "expected a target's name")
        networks: list[Network] = []
        for text in allow:
            try:
                networks.append(ip_network(text))
            except ValueError as error:
                raise ForwardRefused("allow", f"not a network or an address: {error}") from None
        if len(networks) > MAX_ALLOWED:
            raise ForwardRefused("allow", f"more than {MAX_ALLOWED} networks")
        if not networks and not ip_address(interface).is_loopback:
            raise ForwardRefused(
                "allow", "a forward beyond loopback needs a list of who may connect"
            )
        return cls(interface, int(match["port"]), runner, target, tuple(networks), proxyProtocol)


@dataclass(eq=False)
class Forward:
    """
    One forward that listens.

    @ivar by: Whose it is: the id of a token, or C{None} for the configuration's.
    @ivar family: The token family that ends it; C{None} for none.
    @ivar accepted: Connections so far, those below included.
    @ivar refused: Of these, those that were not on the list, or too many.
    @ivar failed: Of these, those whose target was not connected.
    @ivar lastError: Why the last of these failed.
    @ivar about: What its streams' records say of on whose behalf they are.
    """

    id: str
    settings: ForwardSettings
    judge: Judge
    by: str | None
    family: str | None
    port: IListeningPort = field(init=False)
    connections: set[_Connection] = field(init=False, default_factory=set)
    accepted: int = field(init=False, default=0)
    refused: int = field(init=False, default=0)
    failed: int = field(init=False, default=0)
    lastError: str | None = field(init=False, default=None)
    about: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.about = {"forward": self.id}

    @property
    def listen(self) -> str:
        """Where it listens, with the port that it has."""
        host: Any = self.port.getHost()
        return replace(self.settings, port=host.port).listen


class Forwards:
    """
    Every forward of the server.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        connections: Connections,
        newId: Callable[[], str],
        *,
        sockets: SocketRelays | None = None,
        linger: float = 60.0,
        scarce: Callable[[], bool] = lambda: False,
        onRefused: Callable[[Forward, str], None] = lambda forward, peer: None,
        onDeleted: Callable[[Forward], None] = lambda forward: None,
        count: Callable[[str], object] = lambda how: None,
    ) -> None:
        """
        @param reactor: Listens, and tells the time.
        @param connections: Leads to the runners.
        @param newId: Makes an id.
        @param sockets: Moves bytes between plain sockets.
        @param linger: Seconds of silence after the first end of a connection.
        @param scarce: Whether descriptors are running out.
        @param onRefused: Told of a peer that is not on a forward's list.
        @param onDeleted: Told of a forward that is deleted, or whose maker's token has
            ended; not of those that end with the server.
        @param count: Told of each connection that it was C{"accepted"}, and that it was
            C{"refused"} or C{"failed"} after that.
        """
        self.bounds = Bounds()
        self._reactor = reactor
        self._connections = connections
        self._newId = newId
        self._sockets = sockets
        self._linger = linger
        self._scarce = scarce
        self._onRefused = onRefused
        self._onDeleted = onDeleted
        self._count = count
        self._forwards: dict[str, Forward] = {}

    def list(self) -> list[Forward]:
        """Every forward, in the order in which they were made."""
        return list(self._forwards.values())

    @property
    def connectionCount(self) -> int:
        """Connections of all forwards, dials that wait included."""
        return sum(len(forward.connections) for forward in self._forwards.values())

    def get(self, name: str) -> Forward | None:
        """The forward of that id."""
        return self._forwards.get(name)

    def create(
        self,
        settings: ForwardSettings,
        judge: Judge,
        *,
        by: str | None = None,
        family: str | None = None,
        name: str | None = None,
    ) -> Forward:
        """
        Listen.

        @param name: The id of one that was there before; C{None} for a new one.
        @raise ForwardRefused: It is not within the bounds.
        @raise ForwardTaken: The port cannot be had, or there are too many.
        """
        bounds = self.bounds
        bounds.check(settings)
        if len(self._forwards) >= bounds.most:
            raise ForwardTaken("listen", f"there are {bounds.most} forwards already")
        forward = Forward(name or self._newId(), settings, judge, by, family)
        ports: Iterable[int] = [settings.port]
        if not settings.port:
            ports = range(bounds.first, bounds.last + 1)
        reason = f"no port of {bounds.first}-{bounds.last} is free"
        for port in ports:
            try:
                forward.port = self._listen(port, settings.interface, forward)
            except CannotListenError as error:
                if settings.port:
                    strerror = getattr(error.socketError, "strerror", None)
                    reason = f"port {port} cannot be had: {strerror or error.socketError}"
                continue
            self._forwards[forward.id] = forward
            self._log.info(
                "Forward {forward}: {listen} leads to {runner} {target}",
                forward=forward.id,
                listen=forward.listen,
                runner=settings.runner,
                target=settings.target,
            )
            return forward
        raise ForwardTaken("listen", reason)

    def _listen(self, port: int, interface: str, forward: Forward) -> IListeningPort:
        reactor = self._reactor
        if SocketPort.suits(reactor):
            # A connection is dialled for when it has its transport: what its caller has
            # sent by then goes with the first that is asked for it.
            factory = _Accepting(self, forward)
            made = SocketPort(reactor, port, factory, interface, factory.dial)
            made.startListening()
            listening: IListeningPort = made
        else:
            factory = _DiallingAtOnce(self, forward)
            listening = reactor.listenTCP(port, factory, backlog=BACKLOG, interface=interface)
        return listening

    async def delete(self, forward: Forward) -> None:
        """Listen no more, and cut its connections; its port is free afterwards."""
        if forward.id in self._forwards:
            self._onDeleted(forward)
            await self._end(forward)

    async def _end(self, forward: Forward) -> None:
        if self._forwards.pop(forward.id, None) is None:
            return
        self._log.info("Forward {forward} is gone", forward=forward.id)
        for connection in list(forward.connections):
            connection.cut()
        await maybeDeferred(forward.port.stopListening)

    def end(self, family: str) -> None:
        """Delete what was made with a token family."""
        for forward in self.list():
            if forward.family == family:
                Deferred.fromCoroutine(self.delete(forward)).addErrback(self._notDeleted)

    def _notDeleted(self, failure: Failure) -> None:
        self._log.failure("A forward could not be ended", failure)

    def stopListening(self) -> Deferred[Any]:
        """Take no more connections; those that are open go on."""
        return DeferredList([maybeDeferred(forward.port.stopListening) for forward in self.list()])

    async def stop(self) -> None:
        """End all, as the server does."""
        for forward in self.list():
            await self._end(forward)

    # One connection

    def accept(self, forward: Forward, address: IAddress) -> _Connection | None:
        """A connection was accepted: it is to be dialled for, or closed."""
        forward.accepted += 1
        self._count("accepted")
        host = getattr(address, "host", "")
        if not _isAllowed(forward.settings.allow, host):
            forward.refused += 1
            self._count("refused")
            self._onRefused(forward, host)
            return None
        if len(forward.connections) >= self.bounds.connections or self._scarce():
            forward.refused += 1
            self._count("refused")
            forward.lastError = "too many connections"
            return None
        connection = _Connection(self, forward, address)
        forward.connections.add(connection)
        return connection

    def failed(self, forward: Forward, why: str) -> None:
        """A connection has got no target."""
        forward.failed += 1
        forward.lastError = why
        self._count("failed")

    def pair(self, onEnd: Callable[[RelayEnd], None]) -> tuple[RelayProtocol, RelayProtocol]:
        """The two halves of a connection's relay."""
        return relayPair(self._reactor, linger=self._linger, onEnd=onEnd, sockets=self._sockets)

    def dial(self, connection: _Connection, allow: Allow) -> Deferred[IProtocol]:
        """
        Connect to the target.

        @return: As L{DialEndpoint.connect
            <helix_revdial.revdial.endpoints.DialEndpoint.connect>}.
        """
        forward = connection.forward
        settings = forward.settings
        factory = _Ready(connection.target, early=not settings.proxyProtocol)
        endpoint = self._connections.endpoint(
            settings.runner,
            settings.target,
            about=forward.about,
            allow=allow,
            patient=True,
        )
        return endpoint.connect(factory)


class _Ready(Factory):
    """
    Gives the half of a relay that is there already.

    @ivar early: The same, where what the caller sends may go before anything else.
    """

    noisy = False  # two log lines for each stream say nothing

    def __init__(self, half: RelayProtocol, *, early: bool) -> None:
        self._half = half
        self.early = half if early else None

    def buildProtocol(self, addr: IAddress | None) -> RelayProtocol:
        return self._half


class _Accepting(Factory):
    """Takes the connections of one forward."""

    noisy = False

    def __init__(self, forwards: Forwards, forward: Forward) -> None:
        self._forwards = forwards
        self._forward = forward
        self._accepted: _Connection | None = None

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        assert addr is not None
        self._accepted = self._forwards.accept(self._forward, addr)
        return None if self._accepted is None else self._accepted.accepted

    def dial(self, protocol: object = None) -> None:
        """Dial for the connection that was accepted last."""
        accepted, self._accepted = self._accepted, None
        if accepted is not None:
            accepted.start()


class _DiallingAtOnce(_Accepting):
    """The same, where nobody says that a connection has its transport."""

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        protocol = super().buildProtocol(addr)
        self.dial()
        return protocol


class _Connection:
    """
    A connection to a forward's port, and the stream for it.

    @ivar accepted: The half of the relay for whoever connected.
    @ivar target: The half for the target.
    """

    __slots__ = ("_dialling", "_forwards", "_isOver", "_source", "accepted", "forward", "target")

    _log = Logger()

    def __init__(self, forwards: Forwards, forward: Forward, source: IAddress) -> None:
        self.forward = forward
        self._source = source
        self.accepted, self.target = forwards.pair(self._ended)
        self._isOver = False
        self._forwards = forwards
        self._dialling: Deferred[Any] | None = None

    def start(self) -> None:
        """Dial."""
        dialling: Deferred[Any]
        try:
            allow = self.forward.judge()
            if callable(allow):
                dialling = self._forwards.dial(self, allow)
            else:
                dialling = Deferred.fromCoroutine(self._afterJudging(allow))
        except Exception:
            dialling = fail(Failure())
        self._dialling = dialling
        dialling.addCallbacks(self._connected, self._failed)

    async def _afterJudging(self, judging: Awaitable[Allow]) -> None:
        await self._forwards.dial(self, await judging)

    def cut(self) -> None:
        """End it, in whatever state it is."""
        if self._dialling is not None:
            self._dialling.cancel()
        self.accepted.abandon()

    def _connected(self, _: object) -> None:
        self._dialling = None
        caller: Any = self.accepted.transport
        if self.forward.settings.proxyProtocol:
            stream: Any = self.target.transport
            stream.write(proxyHeader(self._source, caller.getHost()))
        if not getattr(caller, "isWatched", False):
            caller.setTcpNoDelay(True)
            watchPath(caller, DATA_WATCH)

    def _failed(self, failure: Failure) -> None:
        self._dialling = None
        if failure.check(CancelledError) is None and not self._isOver:
            self._forwards.failed(self.forward, failure.getErrorMessage())
            if failure.check(DialError, ForwardRefused) is None:
                self._log.failure("A forward's dial failed", failure)
        self.accepted.abandon()

    def _ended(self, end: RelayEnd) -> None:
        self._isOver = True
        self.forward.connections.discard(self)
        if self._dialling is not None:
            # Whoever connected has gone.
            self._dialling.cancel()


def _isAllowed(networks: tuple[Network, ...], host: str) -> bool:
    if not networks:
        return True
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is not None:
        address = mapped
    return any(address in network for network in networks)


__all__ = [
    "Bounds",
    "Forward",
    "ForwardRefused",
    "ForwardSettings",
    "ForwardTaken",
    "Forwards",
]
