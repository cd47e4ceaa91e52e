"""
The conformance vectors of C{tests/vectors}, against our own code.

C{docs/wire.md} says what each kind of file means.  Here is only what turns a
vector into a call of ours; the transcripts beside them are recordings of the Go
programs of 2025 and 2026.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from helix_revdial.revdial.data_websocket import dataServer
from helix_revdial.revdial.errors import DialError
from helix_revdial.revdial.features import formatFeatures, parseFeatures
from helix_revdial.revdial.messages import (
    MAX_LINE,
    Assign,
    Closing,
    Connected,
    ConnReady,
    ControlError,
    Echo,
    Goodbye,
    KeepAlive,
    Message,
    MessageReader,
    Park,
    PickupFailed,
    Unknown,
    dialIds,
    encode,
)
from helix_revdial.revdial.requests import Classified, RequestKind, classify, judge
from helix_revdial.revdial.table import (
    Claimed,
    ConnectionTable,
    Contested,
    Dial,
    Effect,
    Failed,
    Gone,
)
from helix_revdial.revdial.websocket import webSocketServer

VECTORS = Path(__file__).parents[1] / "vectors"
TRANSCRIPTS = VECTORS / "transcripts"

_NAMES: dict[type, str] = {
    KeepAlive: "keep-alive",
    Echo: "echo",
    ConnReady: "conn-ready",
    PickupFailed: "pickup-failed",
    Park: "park",
    Assign: "dial",
    Connected: "connected",
    Goodbye: "goodbye",
    Closing: "closing",
}
_TYPES: dict[str, Callable[..., Message]] = {name: type_ for type_, name in _NAMES.items()}

_HEAD = b"GET / HTTP/1.1\r\nHost: cp.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
_HEAD += b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"


def vectors(kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((VECTORS / f"{kind}.json").read_text())["vectors"]
    return found


def text(piece: Any) -> str:
    return piece if isinstance(piece, str) else piece["repeat"] * piece["times"]


def octets(pieces: list[Any]) -> bytes:
    return b"".join(
        bytes.fromhex(piece["hex"])
        if isinstance(piece, dict) and "hex" in piece
        else text(piece).encode()
        for piece in pieces
    )


def shown(message: Message) -> dict[str, object]:
    """A message as the vectors write it."""
    if isinstance(message, Unknown):
        return {"ignored": message.command}
    fields = {name: getattr(message, name) for name in message.__dataclass_fields__}
    return {
        "command": _NAMES[type(message)],
        **{name: value for name, value in fields.items() if value is not None},
    }


def parseHead(lines: list[str]) -> tuple[list[str], list[tuple[bytes, bytes]]]:
    """The words of the first line, and the fields with names in lower case."""
    fields = []
    for line in lines[1:]:
        name, _, value = line.partition(":")
        fields.append((name.lower().encode(), value.strip().encode()))
    return lines[0].split(" ", 2), fields


def classifyHead(lines: list[str]) -> Classified:
    (method, target, version), fields = parseHead(lines)
    query = parse_qsl(target.partition("?")[2], keep_blank_values=True)
    return classify(method, fields, query, httpVersion=version.removeprefix("HTTP/"))


def kindNamed(word: str) -> RequestKind:
    return RequestKind[word.replace("-", "_").upper()]


class ControlLinesTests(SynchronousTestCase):
    """C{control-lines.json} and C{control-writes.json}."""

    def read(self, chunks: list[bytes]) -> tuple[list[dict[str, object]], str | None]:
        reader = MessageReader()
        found: list[dict[str, object]] = []
        try:
            for chunk in chunks:
                for message in reader.feed(chunk):
                    found.append(shown(message))
        except ControlError as error:
            return found, self.faultWord(str(error))
        return found, None

    def faultWord(self, reason: str) -> str:
        for words, word in (
            ("longer than 4096 bytes", "too-long"),
            ("not UTF-8", "not-utf8"),
            ("not JSON", "not-json"),
            ("not a JSON object", "not-object"),
        ):
            if reason.endswith(words):
                return word
        return "bad-field"

    def test_lines(self) -> None:
        """Each vector gives its messages and its fault, whole and byte by byte."""
        for vector in vectors("control-lines"):
            data = octets(vector["bytes"])
            expected = (vector["messages"], vector["fault"])
            name = vector["name"]
            self.assertEqual(self.read([data]), expected, name)
            self.assertEqual(self.read([bytes([b]) for b in data]), expected, f"{name}, by byte")

    def test_linesAtEverySplit(self) -> None:
        """C11: cut in two at any point, the verdict is the same."""
        for vector in vectors("control-lines"):
            data = octets(vector["bytes"])
            if len(data) > 400:
                continue
            expected = (vector["messages"], vector["fault"])
            for cut in range(len(data) + 1):
                found = self.read([data[:cut], data[cut:]])
                self.assertEqual(found, expected, f"{vector['name']}, cut at {cut}")

    def test_writes(self) -> None:
        """Each message becomes just these bytes."""
        for vector in vectors("control-writes"):
            fields = {
                name: text(value) if isinstance(value, dict) else value
                for name, value in vector["message"].items()
            }
            line = encode(_TYPES[fields.pop("command")](**fields))
            self.assertEqual(line, octets(vector["bytes"]), vector["name"])
            self.assertLessEqual(len(line), MAX_LINE)


class HeadTests(SynchronousTestCase):
    """C{features.json}, C{requests.json} and C{answers.json}."""

    def test_features(self) -> None:
        """Each offer is answered with the words that both ends know."""
        for vector in vectors("features"):
            agreed = parseFeatures([value.encode() for value in vector["values"]])
            self.assertEqual(sorted(agreed), vector["agreed"], vector["name"])
            self.assertEqual(formatFeatures(agreed).decode(), ", ".join(vector["agreed"]))

    def test_requests(self) -> None:
        """D17: each head asks for the form that the vector names, in any spelling."""
        for vector in vectors("requests"):
            expected = Classified(
                kindNamed(vector["kind"]),
                vector.get("runnerId"),
                vector.get("dialer"),
                vector.get("request"),
                vector.get("ticket"),
                frozenset(vector.get("features", [])),
                vector.get("offered", False),
            )
            self.assertEqual(classifyHead(vector["head"]), expected, vector["name"])

    def test_secretsAreNotShown(self) -> None:
        """F1: what was read from a head shows neither ticket nor ids."""
        for vector in vectors("requests"):
            found = repr(classifyHead(vector["head"]))
            for name in ("ticket", "dialer", "request"):
                if vector.get(name):
                    self.assertNotIn(vector[name], found)

    def test_answers(self) -> None:
        """Each answer is judged as the vector says."""
        for vector in vectors("answers"):
            (_, status, _), fields = parseHead(vector["head"])
            verdict = judge(int(status), fields, asked=kindNamed(vector["asked"]))
            self.assertEqual(verdict.name.lower(), vector["verdict"], vector["name"])


@implementer(IHalfCloseableProtocol)
class Sink(Protocol):
    """Notes what a carrier delivers."""

    def __init__(self) -> None:
        self.data = b""
        self.ended = False

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def readConnectionLost(self) -> None:
        self.ended = True

    def writeConnectionLost(self) -> None:
        """Never without our own doing."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended = self.ended or reason.check(ConnectionDone) is not None


class ServerTransport(StringTransport):
    """What a WebSocket server wants of its transport beyond a string's."""

    def setTcpNoDelay(self, enabled: bool) -> None:
        """There is no TCP here."""

    def loseWriteConnection(self) -> None:
        """The peer does not look."""


class FrameTests(SynchronousTestCase):
    """C{frames.json}."""

    def run_(
        self, vector: dict[str, Any], chunks: list[bytes], byHand: bool
    ) -> tuple[str, bool, int | None]:
        sink, transport = Sink(), ServerTransport()
        server: Any
        if byHand:
            server = dataServer(sink, key=b"key", eof=vector["eof"], clock=Clock())
            server.makeConnection(transport)
        else:
            server = webSocketServer(sink, eof=vector["eof"], clock=Clock())
            server.makeConnection(transport)
            server.dataReceived(_HEAD)
        transport.clear()
        for chunk in chunks:
            server.dataReceived(chunk)
        if transport.disconnecting:
            server.connectionLost(connectionDone)
        code = None
        for opcode, payload in deframe(transport.value()):
            if opcode == 8:
                code = int.from_bytes(payload[:2], "big")
        return sink.data.hex(), sink.ended, code

    def test_frames(self) -> None:
        """D20: each row of frames gives its payload, its end and its close code."""
        for vector in vectors("frames"):
            data = bytes.fromhex("".join(vector["frames"]))
            expected = (vector["payload"], vector["ended"], vector["closeCode"])
            single = [bytes([byte]) for byte in data]
            for byHand in (False, True):
                name = f"{vector['name']}, {'by hand' if byHand else 'Autobahn'}"
                self.assertEqual(self.run_(vector, [data], byHand), expected, name)
                self.assertEqual(self.run_(vector, single, byHand), expected, f"{name}, by byte")


def deframe(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Opcode and unmasked payload of each frame; a simple reader for tests."""
    while data:
        opcode, length, start = data[0] & 15, data[1] & 127, 2
        if length == 126:
            length, start = int.from_bytes(data[2:4], "big"), 4
        key = b"\0\0\0\0"
        if data[1] & 128:
            key, start = data[start : start + 4], start + 4
        payload = data[start : start + length]
        yield opcode, bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))
        data = data[start + length :]


class OwnershipTests(SynchronousTestCase):
    """C{ownership.json}."""

    def test_ownership(self) -> None:
        """Each story of registrations, dials and pick-ups goes as the vector tells it."""
        for vector in vectors("ownership"):
            story = Story()
            for number, step in enumerate(vector["steps"]):
                found = story.step(**{k: v for k, v in step.items() if k != "expect"})
                where = f"{vector['name']}, step {number}: {step}"
                self.assertEqual(found, step.get("expect", "ok"), where)


class Story:
    """Steps of a vector as calls of the table."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.table = ConnectionTable(self.clock)
        self.dials: dict[str, Dial] = {}
        self.secrets: dict[str, tuple[str | None, str | None, str | None]] = {}

    def step(self, do: str, **words: Any) -> object:
        try:
            return getattr(self, "do_" + do.replace("-", "_"))(**words)
        except DialError as error:
            return error.word

    def note(self) -> None:
        for name, dial in self.dials.items():
            if dial.ticket is not None or dial.request is not None:
                self.secrets.setdefault(
                    f"{name}@{dial.generation}", (dial.ticket, dial.dialer, dial.request)
                )

    def names(self, dials: list[Dial]) -> list[str]:
        return [name for dial in dials for name, known in self.dials.items() if known is dial]

    def told(self, effects: list[Effect]) -> list[str]:
        said = []
        for effect in effects:
            if isinstance(effect, Failed):
                said.append(f"{self.names([effect.dial])[0]}: {effect.error.word}")
            else:
                said.append("gone" if isinstance(effect, Gone) else "close")
        return said

    def do_claim(
        self,
        owner: str,
        generation: int,
        features: list[str],
        credential: str = "c",
        key: str = "k",
        answered: bool | None = None,
    ) -> object:
        outcome = self.table.claim(
            key, owner, credential, generation, frozenset(features), answered=answered
        )
        self.note()
        if isinstance(outcome, Contested):
            return {"probe": outcome.generation}
        assert isinstance(outcome, Claimed)
        return {"superseded": outcome.superseded, "ask": self.names(outcome.resumed)}

    def do_lost(self, generation: int, key: str = "k") -> object:
        return "grace" if self.table.lost(key, generation) else "nothing"

    def do_goodbye(self, generation: int, key: str = "k") -> object:
        return self.told(self.table.left(key, generation))

    def do_revoke(self, credential: str) -> object:
        return self.told(self.table.revoke(credential=credential))

    def do_dial(self, name: str, key: str = "k", target: str | None = None) -> object:
        dial = self.dials[name] = self.table.dial(key, target)
        self.note()
        return dial.state.name.lower()

    def do_cancel(self, name: str) -> object:
        return "ok" if self.table.cancel(self.dials[name]) else "nothing"

    def do_pickup(self, secret: str, credential: str = "c") -> object:
        ticket, dialer, request = self.secrets[secret]
        dial = self.table.pickUp(credential, ticket=ticket, dialer=dialer, request=request)
        return self.names([dial])[0]

    def do_pickup_failed(self, name: str, generation: int, key: str = "k") -> object:
        ready = self.dials[name].connReady()
        found = self.table.pickupFailed(
            key, generation, PickupFailed(ready.connPath, "no", ready.dial)
        )
        return "nothing" if found is None else "ok"

    def do_wait(self, seconds: float) -> object:
        self.clock.advance(seconds)
        return self.told(self.table.expire())


class TranscriptTests(SynchronousTestCase):
    """What the Go programs really sent, read by our code."""

    def connections(self) -> Iterator[tuple[str, str, bytes, bytes]]:
        """Name, role, what the agent sent, what the server sent."""
        for path in sorted(TRANSCRIPTS.glob("*.json")):
            for connection in json.loads(path.read_text())["connections"]:
                sent = {"agent": b"", "server": b""}
                for event in connection["events"]:
                    sent[event["from"]] += bytes.fromhex(event.get("hex", ""))
                if sent["agent"]:
                    yield path.stem, connection["role"], sent["agent"], sent["server"]

    def test_requests(self) -> None:
        """Rows 3 and 4: each request of a Go agent is taken for what it is."""
        count = 0
        for name, role, agent, _ in self.connections():
            if "refusals" in name:
                continue
            found = classifyHead(agent.partition(b"\r\n\r\n")[0].decode().split("\r\n"))
            era = "HIJACK" if "2025_11" in name or "hijack" in name else "WEBSOCKET"
            expected = "DATA_WEBSOCKET" if role == "data" else f"CONTROL_{era}"
            self.assertEqual(found.kind.name, expected, name)
            self.assertFalse(found.offered)
            if role == "data":
                self.assertRegex(found.dialer or "", "^[0-9a-f]{32}$")
            count += 1
        self.assertGreater(count, 20)

    def test_answers(self) -> None:
        """Each answer of a Go server to a control request is taken for what it is."""
        for name, role, _, server in self.connections():
            if role != "control" or "refusals" in name:
                continue
            (_, status, _), fields = parseHead(
                server.partition(b"\r\n\r\n")[0].decode().split("\r\n")
            )
            hijack = "2025_11" in name or "hijack" in name
            asked = RequestKind.CONTROL_RAW if hijack else RequestKind.CONTROL_WEBSOCKET
            verdict = judge(int(status), fields, asked=asked)
            self.assertEqual(verdict.name, "HIJACK" if hijack else "WEBSOCKET", name)

    def test_controlLines(self) -> None:
        """Every control line of either side is a message that we know, byte by byte."""
        seen: dict[str, int] = {}
        for name, role, *directions in self.connections():
            if role != "control" or "refusals" in name:
                continue
            for data in directions:
                head, _, rest = data.partition(b"\r\n\r\n")
                if b"websocket" in head.lower():
                    rest = b"".join(payload for opcode, payload in deframe(rest) if opcode < 8)
                reader = MessageReader()
                for byte in rest:
                    for message in reader.feed(bytes([byte])):
                        word = type(message).__name__
                        seen[word] = seen.get(word, 0) + 1
                        if isinstance(message, ConnReady | PickupFailed):
                            dialer, request = dialIds(message.connPath)
                            self.assertIsNotNone(dialer)
                            if name.startswith("server_2026"):
                                self.assertIsNotNone(request)
        self.assertEqual(sorted(seen), ["ConnReady", "KeepAlive", "PickupFailed"])

    def test_ourConnReadyIsTheirs(self) -> None:
        """What we write for the old wire is, ids apart, what the Go server writes."""
        for name, role, _, server in self.connections():
            if name != "server_2026_08_control_hijack" or role != "control":
                continue
            lines = server.partition(b"\r\n\r\n")[2].splitlines(keepends=True)
            asked = [line for line in lines if b"conn-ready" in line]
            self.assertEqual(len(asked), 3)
            for line in asked:
                (message,) = MessageReader().feed(line)
                self.assertEqual(encode(message), line)
            self.assertIn(encode(KeepAlive()), lines)
