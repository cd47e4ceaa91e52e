"""
Recordings of the Go programs, and what tests of the wire do with bytes.

The files in C{tests/vectors/transcripts} hold what a real Go program and the script
that it talked to put on the wire, connection by connection.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from tests.integration.gorilla import BINARY, ERA_2025, ERA_2026, FrameReader, accept

TRANSCRIPTS = Path(__file__).parents[1] / "vectors" / "transcripts"


@dataclass(frozen=True)
class Event:
    """
    Something that happened on one connection of a recording.

    @ivar number: Which connection, in the order of their arrival.
    @ivar role: C{"control"} or C{"data"}.
    @ivar side: Who did it: C{"agent"} or C{"server"}.
    @ivar data: Bytes, or nothing.
    @ivar close: A FIN.
    @ivar pause: Seconds of silence.
    """

    seq: int
    number: int
    role: str
    side: str
    data: bytes
    close: bool
    pause: float


def recording(name: str) -> list[Event]:
    """The events of a recording, in their order."""
    found = [
        Event(
            event["seq"],
            number,
            connection["role"],
            event["from"],
            bytes.fromhex(event.get("hex", "")),
            event.get("close", False),
            event.get("pause_ms", 0) / 1000,
        )
        for number, connection in enumerate(
            json.loads((TRANSCRIPTS / f"{name}.json").read_text())["connections"]
        )
        for event in connection["events"]
    ]
    return sorted(found, key=lambda event: event.seq)


def recordings(side: str) -> list[str]:
    """The names of the recordings whose real Go program was C{side}."""
    found = sorted(path.stem for path in TRANSCRIPTS.glob(f"{side}_*.json"))
    assert found, "the recordings are missing"
    return found


def eraOf(name: str) -> str:
    return ERA_2025 if "2025_11" in name else ERA_2026


def frames(data: bytes) -> list[tuple[int, bool, bytes]]:
    """The frames in C{data}: opcode, whether it is the last of its message, payload."""
    return list(FrameReader().feed(data))


def payload(data: bytes) -> bytes:
    """What the data frames in C{data} carry."""
    return b"".join(piece for opcode, _, piece in frames(data) if opcode in (0, BINARY))


def body(data: bytes) -> bytes:
    """What follows the head."""
    return data.partition(b"\r\n\r\n")[2]


def messages(data: bytes) -> list[dict[str, Any]]:
    """The control messages in C{data}, with or without frames around them."""
    if data[:1] != b"{":
        data = payload(data)
    return [json.loads(line) for line in data.splitlines()]


def messageOf(data: bytes) -> list[bytes]:
    """The payloads of the messages in C{data}, put together from their frames."""
    found = []
    for opcode, _, piece in frames(data):
        if opcode == BINARY:
            found.append(piece)
        elif opcode == 0:
            found[-1] += piece
    return found


def settled(head: bytes) -> bytes:
    """A head without what differs from run to run."""
    return re.sub(rb"(?m)^(Sec-WebSocket-Key|Sec-WebSocket-Accept|Date): .*$", rb"\1: -", head)


def field(head: bytes, name: str) -> str:
    found = re.search(rf"(?mi)^{name}: *(.*?)\r?$", head.decode("latin-1"))
    assert found is not None, f"no {name} in {head!r}"
    return found[1]


def withAccept(answer: bytes, request: bytes) -> bytes:
    """A recorded answer, for the key in C{request}."""
    if b"101 Switching" not in answer:
        return answer
    told = accept(field(request, "Sec-WebSocket-Key")).encode()
    return re.sub(
        rb"(Sec-WebSocket-Accept: )[^\r]*", lambda found: found[1] + told, answer, count=1
    )


class Wire(StringTransport):
    """
    A transport as far as both programs and ours use it.

    @ivar writes: What was written, write by write.
    @ivar ended: Whether its protocol was told of the end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.protocol: Any = None
        self.writes: list[bytes] = []
        self.taken = 0
        self.ended = False
        self.aborted = False

    def connect(self, protocol: Any) -> Wire:
        self.protocol = protocol
        protocol.makeConnection(self)
        return self

    def write(self, data: bytes) -> None:
        super().write(data)
        self.writes.append(data)

    def take(self) -> bytes:
        """What was written since the last call."""
        written: bytes = self.value()
        found, self.taken = written[self.taken :], len(written)
        return found

    def setTcpNoDelay(self, enabled: bool) -> None:
        """There is no TCP here."""

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Nor here."""

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def loseWriteConnection(self) -> None:
        """The peer does not look."""

    def abortConnection(self) -> None:
        self.aborted = self.disconnecting = True

    def end(self) -> None:
        """The connection is over."""
        if not self.ended:
            self.ended = True
            self.protocol.connectionLost(Failure(ConnectionDone()))


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
