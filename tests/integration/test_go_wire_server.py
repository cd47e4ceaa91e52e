"""
Recorded Go agents of both eras, with our server in the place of the recording's script.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.errors import TunnelBroke
from tests.api.harness import Server as Api
from tests.api.harness import await_
from tests.integration.gorilla import CLOSE, ERA_2025, TOKEN
from tests.integration.recordings import (
    Caller,
    Event,
    body,
    eraOf,
    field,
    frames,
    messages,
    payload,
    recording,
    settled,
)


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
