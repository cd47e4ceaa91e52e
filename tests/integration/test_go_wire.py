"""
The stand-ins of the Go programs say what the real programs said, byte by byte.

The recordings are in C{tests/vectors/transcripts}.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, cast

from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.integration.go_agent import GoAgent
from tests.integration.go_server import GoServer
from tests.integration.gorilla import ERA_2025, ERA_2026
from tests.integration.recordings import (
    Event,
    Wire,
    body,
    eraOf,
    field,
    frames,
    messageOf,
    payload,
    recording,
    recordings,
    settled,
    withAccept,
)


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
