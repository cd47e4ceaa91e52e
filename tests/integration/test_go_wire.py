"""
The Go programs of both eras, without Go: recordings of them, and stand-ins.

First the stand-ins (L{tests.integration.go_programs}) are held to the recordings
in C{tests/vectors/transcripts}, byte by byte.  Then our server and our agent
take the script's part in the same recordings.  In L{tests.integration.test_go_programs}
the stand-ins talk to ours over real sockets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, cast

import txaio
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from helix_revdial.revdial.client import ControlSession, Refused, ServerPath, ServerURL
from helix_revdial.revdial.errors import TargetRefused, TunnelBroke
from helix_revdial.revdial.features import ALL, RAW
from helix_revdial.revdial.interfaces import ITarget
from helix_revdial.revdial.listener import Listener
from tests.api.harness import Server as Api
from tests.api.harness import await_
from tests.integration.go_programs import (
    CLOSE,
    ERA_2025,
    ERA_2026,
    PONG,
    TOKEN,
    GoAgent,
    GoServer,
)
from tests.integration.recordings import (
    Event,
    Wire,
    body,
    eraOf,
    field,
    frames,
    messageOf,
    messages,
    payload,
    recording,
    recordings,
    settled,
    withAccept,
)

# The stand-ins against the recordings


class AgentStage:
    """Plays a recorded script to the stand-in of the agent."""

    def __init__(self, case: SynchronousTestCase, name: str) -> None:
        self.case = case
        self.name = name
        self.clock = Clock()
        self.events = recording(name)
        first = self.events[0].data
        runner = first.partition(b"runnerid=")[2].partition(b" ")[0].decode()
        self.host = field(first, "Host")
        self.wires: list[Wire] = []
        self.targets: dict[int, Wire] = {}
        self.down = "down" in name or "trap" in name
        self.agent = GoAgent(
            self.clock,
            eraOf(name),
            self.host,
            runner,
            dialServer=self.dialServer,
            dialTarget=self.dialTarget,
        )

    def dialServer(self, protocol: Protocol, failed: Callable[[str], None]) -> None:
        if "refused" in self.name and self.wires:
            failed(f"dial tcp {self.host}: connect: connection refused")
        else:
            self.wires.append(Wire().connect(protocol))

    def dialTarget(self, protocol: Protocol, failed: Callable[[str], None]) -> None:
        if self.down:
            failed("connection refused")
            return
        number = next(
            n for n, w in enumerate(self.wires) if w.protocol is cast(Any, protocol)._data
        )
        self.targets[number] = wire = Wire()
        wire.connect(protocol)

    def play(self) -> None:
        self.agent.start()
        for event in self.events:
            if event.number == len(self.wires):
                self.clock.advance(5.0 if eraOf(self.name) == ERA_2025 else 1.0)
            (self.agentSaid if event.side == "agent" else self.serverSaid)(
                event, self.wires[event.number]
            )
            self.clock.advance(0)

    def serverSaid(self, event: Event, wire: Wire) -> None:
        if event.data:
            wire.protocol.dataReceived(withAccept(event.data, wire.value()))
        elif event.close:
            wire.end()
        else:
            self.clock.advance(event.pause)

    def agentSaid(self, event: Event, wire: Wire) -> None:
        target = self.targets.get(event.number)
        where = f"{self.name}, event {event.seq}"
        if event.pause:
            self.clock.advance(event.pause)
        elif event.close:
            if not wire.disconnecting and not wire.ended and target is not None:
                target.end()
            self.case.assertTrue(wire.disconnecting or wire.ended, where)
        elif event.data.startswith(b"GET "):
            self.case.assertEqual(settled(wire.take()), settled(event.data), where)
        elif event.role == "data":
            assert target is not None
            target.protocol.dataReceived(payload(event.data))
            self.case.assertEqual(frames(wire.take()), frames(event.data), where)
        elif eraOf(self.name) == ERA_2026:
            self.case.assertEqual(frames(wire.take()), frames(event.data), where)
        else:
            self.case.assertEqual(wire.take(), event.data, where)


class ServerStage:
    """Plays a recorded script to the stand-in of the server."""

    def __init__(self, case: SynchronousTestCase, name: str) -> None:
        self.case = case
        self.name = name
        self.clock = Clock()
        self.events = recording(name)
        ids = self.recordedIds()
        self.server = GoServer(self.clock, ERA_2026, lambda: next(ids))
        self.wires: dict[int, Wire] = {}

    def recordedIds(self) -> Iterator[str]:
        """The ids that the real server made, in their order."""
        seen = set()
        for event in self.events:
            if event.side == "server" and event.role == "control":
                for found in re.findall(rb"revdial\.(?:dialer|req)=([0-9a-f]+)", event.data):
                    if found not in seen:
                        seen.add(found)
                        yield found.decode()

    def play(self) -> None:
        for event in self.events:
            if event.number not in self.wires:
                wire = self.wires[event.number] = Wire()
                wire.connect(self.server.buildProtocol(None))
            wire = self.wires[event.number]
            if event.pause:
                self.clock.advance(event.pause)
            elif event.side == "agent" and event.close:
                wire.end()
            elif event.side == "agent":
                wire.protocol.dataReceived(event.data)
            elif event.close:
                wire.protocol.close()
                self.case.assertTrue(wire.disconnecting or wire.ended, self.name)
            else:
                self.said(event, wire)

    def said(self, event: Event, wire: Wire) -> None:
        if b"conn-ready" in event.data:
            self.server.dial().addErrback(lambda failure: failure.trap(Exception) and None)
        if event.role == "data" and b"101 Switching" in event.data:
            for message in messageOf(body(event.data)):
                wire.protocol.send(message)
        found = wire.take()
        where = f"{self.name}, event {event.seq}"
        if event.data.startswith(b"HTTP/"):
            self.case.assertEqual(
                settled(found).partition(b"\r\n\r\n"),
                settled(event.data).partition(b"\r\n\r\n"),
                where,
            )
        else:
            self.case.assertEqual(found, event.data, where)


class StandInTests(SynchronousTestCase):
    """The stand-ins say what the real programs said."""

    def test_agents(self) -> None:
        """Each recording of a Go agent, its frames, pings, closes and reconnects."""
        for name in recordings("agent"):
            AgentStage(self, name).play()

    def test_servers(self) -> None:
        """Each recording of a Go server, to the byte but for dates."""
        for name in recordings("server"):
            ServerStage(self, name).play()


# Our server against recorded agents


class Caller(Protocol):
    """Who dialled: what it got, and how it ended."""

    def __init__(self) -> None:
        self.got = b""
        self.reason: BaseException | None = None

    @property
    def wire(self) -> Any:
        return self.transport

    def dataReceived(self, data: bytes) -> None:
        self.got += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.reason = reason.value


class ServerReplay:
    """
    Our whole server, behind its port, in place of a recording's script.

    @ivar callers: The streams that were joined, in order.
    @ivar errors: Why the other dials failed, in order.
    """

    def __init__(self, case: SynchronousTestCase, name: str, *, bytewise: bool = False) -> None:
        self.case = case
        self.name = name
        self.bytewise = bytewise
        self.events = recording(name)
        self.hijack = eraOf(name) == ERA_2025
        self.runner = self.events[0].data.partition(b"runnerid=")[2].partition(b" ")[0].decode()
        self.api = Api()
        await_(
            self.api.tokens.importSecret(
                TOKEN, "runner", name="imported", patterns=("sandbox-*", "desktop-*")
            )
        )
        self.connections: dict[int, tuple[Any, Any]] = {}
        self.taken: dict[int, int] = {}
        self.heads: dict[int, bytes] = {}
        self.asked: list[str] = []
        self.answered = 0
        self.callers: list[Caller] = []
        self.errors: list[BaseException] = []
        self.got = 0

    def play(self) -> ServerReplay:
        for event in self.events:
            self.where = f"{self.name}, event {event.seq}"
            if event.pause:
                self.api.clock.advance(event.pause)
            elif event.side == "agent":
                self.agentDid(event)
            else:
                self.serverDid(event)
        return self

    # The agent's part

    def agentDid(self, event: Event) -> None:
        if event.number not in self.connections:
            self.connections[event.number] = self.api.connect()
            self.taken[event.number] = 0
        protocol, wire = self.connections[event.number]
        if event.close:
            protocol.readConnectionLost()
            self.case.assertTrue(wire.disconnecting, f"{self.where}: the server keeps its end")
            protocol.connectionLost(Failure(ConnectionDone()))
        elif event.data.startswith(b"GET "):
            self.heads[event.number] = event.data
            self.feed(protocol, self.withOurIds(event))
        elif b"pickup-failed" in (event.data if self.hijack else payload(event.data)):
            (told,) = messages(event.data)
            told["connPath"] = self.asked[self.answered]
            self.answered += 1
            line = json.dumps(told).encode() + b"\n"
            if not self.hijack:
                # Masked with zeros, which leaves the payload as it is.
                size = bytes([0x80 | 126]) + len(line).to_bytes(2, "big")
                line = b"\x82" + size + b"\0\0\0\0" + line
            self.feed(protocol, line)
        else:
            self.feed(protocol, event.data)
            if event.role == "data":
                self.case.assertEqual(self.callers[-1].got, payload(event.data), self.where)

    def withOurIds(self, event: Event) -> bytes:
        """A recorded request, as the agent would send it to us."""
        if event.role == "control" or "500" in self.name:
            return event.data
        path = self.asked[self.answered].replace("/revdial", "/api/v1/revdial", 1)
        self.answered += 1
        return re.sub(rb"^GET \S+", lambda _: b"GET " + path.encode(), event.data)

    def feed(self, protocol: Any, data: bytes) -> None:
        if not self.bytewise:
            protocol.dataReceived(data)
            return
        for number in range(len(data)):
            protocol.dataReceived(data[number : number + 1])

    # The server's part

    def take(self, number: int) -> bytes:
        written: bytes = self.connections[number][1].value()
        found = written[self.taken[number] :]
        self.taken[number] = len(written)
        return found

    def serverDid(self, event: Event) -> None:
        protocol, wire = self.connections[event.number]
        if event.close:
            self.closes(event, protocol, wire)
        elif event.role == "data":
            self.data(event)
        else:
            self.control(event)

    def control(self, event: Event) -> None:
        said = event.data
        if said.startswith(b"HTTP/"):
            head, end, rest = self.take(event.number).partition(b"\r\n\r\n")
            self.sameHead(head + end, said, hijack=self.hijack)
            self.case.assertTrue(not rest or not self.hijack, "something came with the head")
            self.taken[event.number] -= len(rest)
            said = body(said)
        if self.hijack:
            told = messages(said)
        else:
            closing = [piece for opcode, _, piece in frames(said) if opcode == CLOSE]
            if closing:
                Deferred.fromCoroutine(self.api.connections.stop()).addErrback(self.unexpected)
                codes = [op for op, _, _ in frames(self.take(event.number))]
                self.case.assertIn(CLOSE, codes, self.where)
                return
            told = messages(said)
        for message in told:
            if message["command"] == "conn-ready":
                self.dial(event.number, message["connPath"])

    def dial(self, number: int, recorded: str) -> None:
        endpoint = self.api.connections.endpoint(self.runner)
        endpoint.connect(Factory.forProtocol(Caller)).addCallbacks(
            self.callers.append, lambda failure: self.errors.append(failure.value)
        )
        self.api.clock.advance(0.3)
        said = self.take(number)
        ready = [one for one in messages(said) if one["command"] == "conn-ready"]
        (one,) = ready
        self.case.assertEqual(set(one), {"command", "connPath"}, self.where)
        form = r"/revdial\?revdial\.dialer=[0-9a-f]{32}&revdial\.req=[0-9a-f]{32}"
        self.case.assertRegex(one["connPath"], f"^{form}$", self.where)
        self.case.assertIn(b"\\u0026revdial.req=", said)
        self.asked.append(one["connPath"])

    def sameHead(self, ours: bytes, theirs: bytes, *, hijack: bool) -> None:
        if hijack:
            # To the byte, but for the date.
            self.case.assertEqual(
                settled(ours), settled(theirs.partition(b"\r\n\r\n")[0]) + b"\r\n\r\n"
            )
            return
        self.case.assertEqual(ours.split(b"\r\n")[0].split()[1], b"101", self.where)
        for name in ("Upgrade", "Connection", "Sec-WebSocket-Accept"):
            self.case.assertEqual(
                field(ours, name).lower(), field(theirs, name).lower(), self.where
            )
        self.case.assertNotIn(b"revdial-features", ours.lower())
        self.case.assertNotIn(b"sec-websocket-extensions", ours.lower())

    def data(self, event: Event) -> None:
        found, said = self.take(event.number), event.data
        if said.startswith(b"HTTP/1.1 500"):
            self.case.assertTrue(found.startswith(b"HTTP/1.1 404"), found)
            return
        if said.startswith(b"HTTP/"):
            head, end, found = found.partition(b"\r\n\r\n")
            self.sameHead(head + end, said, hijack=False)
            said = body(said)
        wanted = payload(said)
        if wanted:
            self.callers[-1].wire.write(wanted)
            found += self.take(event.number)
        self.case.assertEqual(payload(found), wanted, self.where)

    def closes(self, event: Event, protocol: Any, wire: Any) -> None:
        if wire.disconnecting:
            return  # it had to, and did
        if event.role == "data":
            self.callers[-1].wire.loseConnection()
            codes = [opcode for opcode, _, _ in frames(body(wire.value()))]
            self.case.assertEqual(codes[-1], CLOSE, self.where)
        else:
            # The recorded server cut the connection.
            protocol.connectionLost(Failure(ConnectionDone()))
            wire.disconnecting = True
            self.case.assertEqual(self.api.connections.status(self.runner), "grace")
            self.connections[event.number] = (_Gone(), wire)

    def unexpected(self, failure: Failure) -> None:
        self.errors.append(failure.value or Exception("failed"))


class _Gone(Protocol):
    """In place of a connection that is gone already: what is still to come means nothing."""

    def readConnectionLost(self) -> None:
        """The recorded agent closed its end."""


class OurServerTests(SynchronousTestCase):
    """Recorded agents, answered by our server: HTTP, tokens, tunnel and all."""

    def replay(self, name: str) -> Iterator[ServerReplay]:
        """The recording as it is, and byte by byte."""
        yield ServerReplay(self, name).play()
        yield ServerReplay(self, name, bytewise=True).play()

    def nothingWaits(self, replay: ServerReplay) -> None:
        """No dial and no stream is left."""
        self.assertEqual(replay.api.connections.stats().pendingDialsTotal, 0)
        self.assertEqual(replay.api.connections._calls, {})
        self.assertEqual(replay.api.connections._streams, {})

    def test_everyRecordedAgentIsServed(self) -> None:
        """Both eras: control, three dials, each closed by another side, reconnect."""
        for name in ("agent_2025_11_hijack", "agent_2026_08_websocket"):
            for replay in self.replay(name):
                self.assertEqual(len(replay.callers), 3)
                self.assertEqual(replay.errors, [])
                for caller in replay.callers:
                    self.assertTrue(caller.got.startswith(b"HTTP/1.1 200 OK\r\n"))
                    self.assertIsInstance(caller.reason, ConnectionDone, name)
                self.nothingWaits(replay)

    def test_fragmentsOf4096(self) -> None:
        """100,000 bytes in masked fragments arrive whole, however the bytes are cut."""
        for replay in self.replay("agent_2026_08_large_body"):
            (caller,) = replay.callers
            _, _, content = caller.got.partition(b"\r\n\r\n")
            self.assertEqual(content, bytes(index % 251 for index in range(100_000)))
            self.nothingWaits(replay)

    def test_spentIdsAreRefusedAndTheAgentSaysSo(self) -> None:
        """A pick-up with ids that are not outstanding is 404; pickup-failed ends the dial."""
        for name in ("agent_2025_11_pickup_500", "agent_2026_08_pickup_500"):
            for replay in self.replay(name):
                self.assertEqual(replay.callers, [])
                self.assertGreater(len(replay.errors), 0)
                for error in replay.errors:
                    self.assertIsInstance(error, TunnelBroke)
                    self.assertIn("websocket: bad handshake", str(error))
                self.nothingWaits(replay)

    def test_refusedPickUp(self) -> None:
        """The words of Go's network errors reach the caller."""
        for name in ("agent_2025_11_pickup_refused", "agent_2026_08_pickup_refused"):
            for replay in self.replay(name):
                self.assertGreater(len(replay.errors), 0)
                for error in replay.errors:
                    self.assertIn("connect: connection refused", str(error))
                self.nothingWaits(replay)

    def test_targetDown(self) -> None:
        """101, then FIN: the caller has a stream that ends empty, at once and for good."""
        for name in ("agent_2025_11_target_down", "agent_2026_08_target_down"):
            for replay in self.replay(name):
                self.assertGreater(len(replay.callers), 0)
                for caller in replay.callers:
                    self.assertEqual(caller.got, b"")
                    self.assertIsNotNone(caller.reason)
                self.nothingWaits(replay)

    def test_theHeadGoesOutAloneEvenWithDialsWaiting(self) -> None:
        """
        The coalescing trap: dials that wait in the grace period are due at the very
        moment of the registration, and still nothing leaves with the head, or for a
        quarter of a second after it; then each line is a write of its own.
        """
        replay = ServerReplay(self, "agent_2025_11_trap_coalesced")
        request = replay.events[0].data
        first, _ = replay.api.connect()
        first.dataReceived(request)
        replay.api.clock.advance(1.0)
        first.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(replay.api.connections.status(replay.runner), "grace")
        waiting = [
            replay.api.connections.endpoint(replay.runner).connect(Factory.forProtocol(Caller))
            for _ in range(3)
        ]
        again, wire = replay.api.connect()
        writes: list[bytes] = []
        self.patch(wire, "write", writes.append)
        again.dataReceived(request)
        self.assertEqual(len(writes), 1)
        self.assertTrue(writes[0].endswith(b"\r\n\r\n"), writes)
        replay.api.clock.advance(0.2)
        self.assertEqual(len(writes), 1, f"not alone: {writes}")
        replay.api.clock.advance(0.1)
        self.assertEqual(writes[1], b'{"command":"keep-alive"}\n')
        self.assertEqual(len(writes), 5)
        for data in writes[1:]:
            self.assertTrue(data.startswith(b"{") and data.endswith(b"}\n"), data)
            self.assertEqual(data.count(b"\n"), 1)
        for dial in waiting:
            dial.addErrback(lambda _: None)
            dial.cancel()

    def test_agentsPingsAndOddPongs(self) -> None:
        """The agent's empty ping is answered alike; a pong nobody asked for means nothing."""
        replay = ServerReplay(self, "agent_2026_08_websocket")
        protocol, wire = replay.api.connect()
        protocol.dataReceived(replay.events[0].data)
        before = len(wire.value())
        protocol.dataReceived(b"\x8a\x82v\t\x0ep\x1ek" + b"\x89\x80\x02\x0b\xb5l")
        self.assertEqual(wire.value()[before:], b"\x8a\x00")
        self.assertEqual(replay.api.connections.status(replay.runner), "connected")


# Our agent against recorded servers


@implementer(IStreamClientEndpoint)
class Doorway:
    """The way to a server that a test plays; every connection is kept."""

    def __init__(self) -> None:
        self.wires: list[Wire] = []

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        protocol = protocolFactory.buildProtocol(cast(Any, None))
        assert protocol is not None
        self.wires.append(Wire().connect(protocol))
        return succeed(protocol)


@implementer(ITarget)
class Played:
    """
    A service beside our agent that a test plays.

    @ivar opened: Every connection to it.
    @ivar refuses: Whether it is down.
    """

    def __init__(self) -> None:
        self.opened: list[Caller] = []
        self.refuses = False

    def open(self) -> Deferred[IProtocol]:
        if self.refuses:
            return fail(TargetRefused("127.0.0.1:9876: connection refused"))
        self.opened.append(Caller())
        return succeed(self.opened[-1])


class OurAgentTests(SynchronousTestCase):
    """Recorded servers, and our agent in place of the script that asked them."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.patch(txaio.config, "loop", self.clock)  # type: ignore[attr-defined]

    def begin(self, name: str) -> None:
        """Our agent, about to talk to the recorded server."""
        self.name = name
        self.events = recording(name)
        self.door = Doorway()
        self.target = Played()
        webSocket = b"Upgrade: websocket" in self.events[0].data
        self.path = ServerPath(
            self.clock,
            ServerURL.parse("http://" + field(self.events[0].data, "Host")),
            lambda: TOKEN,
            key=self.events[0].data.partition(b"runnerid=")[2].partition(b" ")[0].decode(),
            features=ALL - {RAW} if webSocket else ALL,
            endpoint=lambda: self.door,
        )
        self.listener = Listener(self.clock, self.path, {"default": self.target})
        self.connecting: Deferred[ControlSession] = Deferred.fromCoroutine(
            self.path.connectControl(self.listener)
        )

    def play(self, name: str, *, bytewise: bool) -> None:
        """The recording from its begin to its end."""
        self.begin(name)
        wires: dict[int, Wire] = {}
        # The dials of the recording, by what became of them.
        self.fates = [
            "refused" if event.role == "control" else "answered"
            for event in self.events
            if event.side == "agent"
            and (
                (event.role == "data" and event.data.startswith(b"GET "))
                or (event.role == "control" and event.seq > 1 and event.data)
            )
        ]
        for event in self.events:
            self.where = f"{name}, event {event.seq}"
            if event.number not in wires:
                wires[event.number] = self.door.wires[event.number]
            wire = wires[event.number]
            if event.pause:
                self.clock.advance(event.pause)
            elif event.side == "agent":
                self.agentDid(event, wire)
            elif event.close:
                wire.protocol.readConnectionLost()
                wire.end()
                self.clock.advance(0)
            else:
                self.serverSays(event, wire, bytewise)

    def serverSays(self, event: Event, wire: Wire, bytewise: bool) -> None:
        if b"conn-ready" in event.data:
            self.target.refuses = self.fates.pop(0) == "refused"
        data = withAccept(event.data, wire.value())
        for piece in [data[n : n + 1] for n in range(len(data))] if bytewise else [data]:
            wire.protocol.dataReceived(piece)
            self.clock.advance(0)
        if event.role == "data" and b"101 Switching" in data:
            self.assertEqual(self.target.opened[-1].got, payload(body(data)), self.where)

    def agentDid(self, event: Event, wire: Wire) -> None:
        if event.data.startswith(b"GET "):
            head = wire.take()
            self.assertEqual(head.split(b"\r\n")[0], event.data.split(b"\r\n")[0], self.where)
            for name in ("Host", "Authorization", "Connection"):
                self.assertEqual(field(head, name), field(event.data, name), self.where)
        elif event.role == "control" and event.data:
            (theirs,) = messages(event.data)
            ours = [one for one in messages(wire.take()) if one.get("command") == "pickup-failed"]
            self.assertEqual([one["connPath"] for one in ours], [theirs["connPath"]], self.where)
            self.assertIn("refused", ours[0]["err"])
        elif event.close and event.role == "control":
            self.assertEqual(len(self.flushed()), 0)
            assert self.listener.control is not None
            self.listener.control.leave()
        elif event.close:
            self.target.opened[-1].wire.loseConnection()
        else:
            self.target.opened[-1].wire.write(payload(event.data))
            self.clock.advance(0)
            found = wire.take()
            self.assertEqual(payload(found), payload(event.data), self.where)
            self.assertTrue(found[1] & 0x80, "a client masks")

    def flushed(self) -> list[object]:
        """What our agent has left open."""
        return [*self.listener._answers, *self.listener._streams]

    def test_everyRecordedServerIsServed(self) -> None:
        """
        Both control forms of a Go server: the answer with its first lines coalesced,
        C{\\u0026}, the head and the request in one segment, 1006 at the end of a stream,
        pings and keep-alives; one write of 32,768 bytes with its empty last frame.
        """
        for name in (
            "server_2026_08_control_hijack",
            "server_2026_08_control_websocket",
            "server_2026_08_large_write",
        ):
            for bytewise in (False, True):
                self.play(name, bytewise=bytewise)
                self.assertEqual(self.flushed(), [], name)
                for opened in self.target.opened:
                    self.assertIsInstance(opened.reason, ConnectionDone, name)

    def test_pingsOfTheServer(self) -> None:
        """The server's empty ping is answered, and counts as life."""
        self.play("server_2026_08_control_websocket", bytewise=False)
        control = self.door.wires[0]
        self.assertIn(PONG, [opcode for opcode, _, _ in frames(body(control.value()))])

    def test_unknownDialer(self) -> None:
        """500 to a data upgrade: one pickup-failed, and the target is given back."""
        answers = self.refusals()
        for number, status in enumerate((b"500", b"101", b"101")):
            self.begin("server_2026_08_control_websocket")
            control = self.door.wires[0]
            control.protocol.dataReceived(withAccept(self.events[1].data, control.value()))
            control.take()
            control.protocol.dataReceived(self.events[2].data)
            data = self.door.wires[1]
            self.assertIn(status, answers[number][:15])
            data.protocol.dataReceived(withAccept(answers[number], data.value()))
            data.protocol.readConnectionLost()
            data.end()
            self.clock.advance(0)
            said = [one["command"] for one in messages(control.take())]
            self.assertEqual(said, ["pickup-failed"] if status == b"500" else [], status)
            self.assertEqual(self.flushed(), [])
            self.assertEqual([opened.got for opened in self.target.opened], [b""])
            self.assertEqual(self.listener.dialsUnderWay, 0)

    def refusals(self) -> list[bytes]:
        """The answers of the recorded refusals, in order."""
        found = recording("server_2026_08_refusals")
        return [
            event.data for event in found if event.number and event.side == "server" and event.data
        ]

    def test_refusedLogin(self) -> None:
        """400 in the Go server's plain text reaches the operator, whichever form was asked."""
        plain = next(answer for answer in self.refusals() if b"400" in answer[:15])
        self.begin("server_2026_08_control_hijack")
        for number in (0, 1):
            self.door.wires[number].protocol.dataReceived(plain)
            self.door.wires[number].protocol.readConnectionLost()
            self.door.wires[number].end()
        error = self.failureResultOf(self.connecting, Refused).value
        self.assertIn("400", str(error))
        self.assertIn("runnerid is required", str(error))
