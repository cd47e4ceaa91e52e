"""
Recorded Go servers, with our agent in the place of the recording's script.
"""

from __future__ import annotations

from typing import Any, cast

import txaio
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from helix_revdial.revdial.client import ControlSession, Refused, ServerPath, ServerURL
from helix_revdial.revdial.errors import TargetRefused
from helix_revdial.revdial.features import ALL, RAW
from helix_revdial.revdial.interfaces import ITarget
from helix_revdial.revdial.listener import Listener
from tests.integration.gorilla import PONG, TOKEN
from tests.integration.recordings import (
    Caller,
    Event,
    Wire,
    body,
    field,
    frames,
    messages,
    payload,
    recording,
    withAccept,
)


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
