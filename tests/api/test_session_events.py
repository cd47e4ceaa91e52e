"""Tests for L{helix_revdial.api.session_events}."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import msgspec
from jsonschema import Draft202012Validator
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from helix_revdial.api.event_document import EventDocument, ResyncEvent
from helix_revdial.config import EventsSection, ServerConfig
from helix_revdial.sessions.lifecycle import TERMINAL
from tests.api.harness import Wire, await_, parse, request
from tests.api.test_tasks import CONFIG, TaskTestCase
from tests.storage.postgresql import OnPostgreSQL


@dataclass
class Frame:
    """One server-sent event, as a client reads it."""

    id: str | None = None
    event: str = "message"
    data: list[str] = field(default_factory=list)

    @property
    def document(self) -> Any:
        return json.loads("\n".join(self.data))


class Client:
    """A client of an event stream, by the bytes that it was sent."""

    def __init__(self, transport: Wire, protocol: Any) -> None:
        self.transport = transport
        self.protocol = protocol

    @property
    def head(self) -> str:
        return bytes(self.transport.value()).partition(b"\r\n\r\n")[0].decode()

    @property
    def body(self) -> bytes:
        """What the chunks hold."""
        rest = self.transport.value().partition(b"\r\n\r\n")[2]
        found = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            count = int(size, 16)
            found, rest = found + rest[:count], rest[count + 2 :]
        return found

    @property
    def ended(self) -> bool:
        """Whether the answer is complete."""
        return bytes(self.transport.value()).endswith(b"0\r\n\r\n")

    @property
    def frames(self) -> list[Frame]:
        frames: list[Frame] = []
        for block in self.body.decode().split("\n\n"):
            frame = Frame()
            for line in block.split("\n"):
                name, _, value = line.partition(": ")
                if name == "id":
                    frame.id = value
                elif name == "event":
                    frame.event = value
                elif name == "data":
                    frame.data.append(value)
            if frame.data:
                frames.append(frame)
        return frames

    @property
    def seqs(self) -> list[int]:
        return [int(frame.id) for frame in self.frames if frame.id is not None]


class EventsTestCase(TaskTestCase):
    def open(self, session: str, query: str = "", **headers: str) -> Client:
        protocol, transport = self.server.connect()
        path = f"/api/v1/sessions/{session}/events{query}"
        protocol.dataReceived(request("GET", path, self.ann, headers=headers))
        return Client(transport, protocol)

    def last(self, session: str) -> int:
        return int(self.session(session)["lastSeq"])

    def log(self, session: str, message: str) -> None:
        await_(self.server.services.events.append(session, "log", {"message": message}))


class StreamTests(EventsTestCase):
    def test_historyAndThenLive(self) -> None:
        """Everything from the first event on, each once, in order; then the end."""
        session = self.task(prompt="steps=5")
        self.until(session, "running")
        client = self.open(session)
        self.assertIn("200 OK", client.head)
        self.assertIn("Content-Type: text/event-stream", client.head)
        self.assertIn("Cache-Control: no-store", client.head)
        self.assertTrue(client.body.startswith(b"retry: 3000\n\n"))
        self.assertEqual(client.seqs, list(range(1, self.last(session) + 1)))
        self.until(session, "completed")
        self.assertEqual(client.seqs, list(range(1, self.last(session) + 1)))
        self.assertTrue(client.ended)
        last = client.frames[-1]
        self.assertEqual((last.event, last.document["status"]), ("status", "completed"))
        kinds = {frame.event for frame in client.frames}
        self.assertLessEqual({"status", "log", "moment", "delivery"}, kinds)
        for frame in client.frames:
            document = frame.document
            self.assertEqual(len(frame.data), 1)
            self.assertEqual(document["type"], frame.event)
            self.assertEqual(
                (document["seq"], document["sessionId"]), (int(frame.id or 0), session)
            )
            self.assertRegex(document["ts"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        self.assertEqual(self.server.services.events._subscribers, {})

    def test_described(self) -> None:
        """Each kind of event is as the served description has it."""
        session = self.task(prompt="forever")
        self.until(session, "running")
        for path, body in (("fs-snapshots", {}), ("session-branch", {"name": "b", "fromTs": 1e6})):
            answer = self.do(session, path, body)
            self.assertEqual(answer.status, 201, answer.body)
        client = self.open(session, "?heartbeat=event")
        self.server.clock.advance(20)
        self.assertEqual(self.do(session, "stop", {"reason": "enough"}).status, 202)
        self.until(session, "stopped")
        whole = self.task(prompt="steps=2")
        self.until(whole, "completed")
        frames = client.frames + self.open(whole).frames
        document = self.server.get("/api/v1/openapi.json", self.ann).json()
        answers = document["paths"]["/api/v1/sessions/{session}/events"]["get"]["responses"]
        schema = answers["200"]["content"]["text/event-stream"]["schema"]["properties"]["data"]
        mapping = schema["contentSchema"]["discriminator"]["mapping"]
        for frame in frames:
            kind = {"$ref": mapping[frame.event], "components": document["components"]}
            Draft202012Validator(kind).validate(frame.document)
        # Of the last one test_resync tells.
        self.assertEqual({frame.event for frame in frames}, set(mapping) - {"resync"})

    def test_strings(self) -> None:
        """Defect 5: a message is a string, whatever is in it."""
        session = self.task(prompt="forever")
        self.log(session, "line\nbreak \u2028 日本 \x00 \r\n")
        client = self.open(session)
        self.assertEqual(client.frames[-1].document["message"], "line\nbreak \u2028 日本 \x00 \r\n")

    def test_resuming(self) -> None:
        """C{Last-Event-ID}, or C{since}, says what the client has seen."""
        session = self.task(prompt="forever")
        for number in range(9):
            self.log(session, str(number))
        everything = list(range(1, self.last(session) + 1))
        for query, headers, expected in (
            ("?since=4", {}, everything[4:]),
            ("", {"Last-Event-ID": "4"}, everything[4:]),
            ("?since=1", {"Last-Event-ID": "4"}, everything[4:]),
            ("?since=0", {}, everything),
            (f"?since={everything[-1]}", {}, []),
        ):
            self.assertEqual(self.open(session, query, **headers).seqs, expected, (query, headers))
        # A number that was never given: what comes is told.
        ahead = self.open(session, "?since=100000")
        self.log(session, "x")
        self.assertEqual(ahead.seqs, [everything[-1] + 1])
        for headers in ({"Last-Event-ID": "x"}, {"Last-Event-ID": "-1"}):
            self.assertIn(" 400 ", self.open(session, **headers).head)
        self.assertIn(" 400 ", self.open(session, "?since=x").head)

    def test_aBrokenStreamAtEveryPlace(self) -> None:
        """Wherever a client loses its stream, it goes on without a loss or a repetition."""
        session = self.task(prompt="steps=6")
        seen: list[int] = []
        for _ in range(200):
            client = self.open(session, **({"Last-Event-ID": str(seen[-1])} if seen else {}))
            self.server.clock.advance(0.7)
            seen += client.seqs
            client.protocol.connectionLost(_done())
            if self.session(session)["status"] in TERMINAL:
                break
        seen += self.open(session, f"?since={seen[-1]}").seqs
        self.assertEqual(seen, list(range(1, self.last(session) + 1)))

    def test_theEnd(self) -> None:
        """Defect 5: after the end a stream ends, and who has all of it gets 204."""
        session = self.task()
        self.until(session, "completed")
        client = self.open(session)
        self.assertTrue(client.ended)
        last = self.last(session)
        self.assertEqual(client.seqs, list(range(1, last + 1)))
        for query, headers in (("", {"Last-Event-ID": str(last)}), (f"?since={last}", {})):
            self.assertIn(" 204 ", self.open(session, query, **headers).head)
        self.assertEqual(self.open(session, f"?since={last - 1}").seqs, [last])

    def test_removed(self) -> None:
        """The stream of a sandbox, which nothing else would end, ends when it is deleted."""
        made = self.server.post("/api/v1/sessions", self.ann, {"name": "s"})
        session, other = made.json()["id"], self.task(prompt="forever")
        clients = [self.open(session), self.open(session, "?since=5"), self.open(other)]
        self.assertEqual([client.ended for client in clients], [False] * 3)
        self.assertEqual(self.server.delete(f"/api/v1/sessions/{session}", self.ann).status, 204)
        self.assertEqual([client.ended for client in clients], [True, True, False])
        self.assertIn(" 404 ", self.open(session).head)

    def test_unknown(self) -> None:
        """Defect 4: the events and the log of a session that is not there are 404."""
        for path in ("events", "logs"):
            answer = self.server.get(f"/api/v1/sessions/ses_0/{path}", self.ann)
            self.assertEqual(answer.status, 404)

    def test_resync(self) -> None:
        """Who asks for what is not kept any more is told where what is kept begins."""
        session = self.task(prompt="forever")
        for number in range(9):
            self.log(session, str(number))
        await_(self.server.services.events.trim(session, 6))
        client = self.open(session, "?since=2")
        first = client.frames[0]
        self.assertEqual((first.event, first.document["firstAvailable"]), ("resync", 6))
        self.assertIsInstance(msgspec.convert(first.document, EventDocument), ResyncEvent)
        self.assertEqual((first.document["type"], first.document["sessionId"]), ("resync", session))
        self.assertTrue(first.document["ts"].endswith("Z"), first.document)
        self.assertEqual(client.seqs, list(range(5, self.last(session) + 1)))
        self.assertNotIn("resync", [frame.event for frame in self.open(session, "?since=5").frames])

    def test_survivesTheServer(self) -> None:
        """Defect 5: events are in the database: another server has them."""
        session = self.task()
        self.until(session, "completed")
        events = self.server.services.events
        again = type(events)(self.server.database, self.server.wallClock)
        self.assertEqual(await_(again.read(session)), await_(events.read(session)))

    def test_heartbeats(self) -> None:
        """An idle stream has heartbeats that change no client's place."""
        self.server.services.executors.remove("host-1")
        session = self.task()
        comments = self.open(session)
        events = self.open(session, "?heartbeat=event")
        self.server.clock.pump([1] * 31)
        self.assertGreaterEqual(len(re.findall(rb"^: hb ", comments.body, re.MULTILINE)), 2)
        beats = [frame for frame in events.frames if frame.event == "heartbeat"]
        self.assertGreaterEqual(len(beats), 2)
        self.assertEqual([frame.id for frame in beats], [None] * len(beats))
        self.assertEqual(beats[0].document["type"], "heartbeat")

    def test_otherAnswersAreRefused(self) -> None:
        """Who takes no event stream gets 406."""
        session = self.task()
        self.assertIn(" 406 ", self.open(session, Accept="application/xml").head)

    def test_revoked(self) -> None:
        """A stream ends with the token that it was asked with."""
        session = self.task(prompt="forever")
        client = self.open(session)
        principal = await_(self.server.tokens.authenticate(self.ann))
        await_(self.server.tokens.revoke(principal.tokenId))
        self.assertTrue(client.transport.aborted)
        self.assertEqual(self.server.services.events._subscribers, {})


class StreamPostgreSQLTests(OnPostgreSQL, StreamTests):
    """The same on PostgreSQL."""


class SlowTests(EventsTestCase):
    """A client that does not read."""

    def setUp(self) -> None:
        self.config = ServerConfig(agents=CONFIG.agents, events=EventsSection(queueBytes=65536))
        super().setUp()

    def stall(self, client: Client) -> None:
        """The client's connection takes no more."""
        producer = client.transport.producer
        assert producer is not None
        producer.pauseProducing()

    def test_oneSlowClient(self) -> None:
        """
        Defect 5: a client that does not keep up is closed, alone; the others miss
        nothing, and it finds everything when it comes back.
        """
        session = self.task(prompt="forever")
        slow, quick = self.open(session), self.open(session)
        self.stall(slow)
        for number in range(200):
            self.log(session, f"{number} " + "x" * 1000)
        self.assertTrue(slow.transport.aborted or slow.transport.disconnecting)
        self.assertFalse(quick.transport.aborted)
        last = self.last(session)
        self.assertEqual(quick.seqs, list(range(1, last + 1)))
        seen = slow.seqs
        again = self.open(session, f"?since={seen[-1] if seen else 0}")
        self.assertEqual(seen + again.seqs, list(range(1, last + 1)))

    def test_aLongHistoryFillsNoQueue(self) -> None:
        """History is read as fast as the client takes it; live events wait their turn."""
        session = self.task(prompt="forever")
        for number in range(300):
            self.log(session, f"{number} " + "x" * 1000)
        client = self.open(session)
        self.assertEqual(client.seqs, list(range(1, self.last(session) + 1)))
        self.log(session, "live")
        self.assertEqual(client.frames[-1].document["message"], "live")


class LogTests(EventsTestCase):
    def logs(self, session: str, query: str = "") -> Any:
        answer = self.server.get(f"/api/v1/sessions/{session}/logs{query}", self.ann)
        self.assertEqual(answer.status, 200, answer.body)
        return answer.json()

    def test_logs(self) -> None:
        """Defect 4: the log is what the agent said, in order, with levels and times."""
        session = self.task(prompt="steps=6")
        self.until(session, "completed")
        told = self.logs(session)
        self.assertEqual(told["total"], len(told["items"]))
        self.assertGreaterEqual(told["total"], 6)
        self.assertNotIn("nextPage", told)
        seqs = [line["seq"] for line in told["items"]]
        self.assertEqual(seqs, sorted(seqs))
        self.assertEqual(set(told["items"][0]), {"level", "message", "ts", "seq", "stream"})

    def test_tail(self) -> None:
        """The last lines, the oldest of them first."""
        session = self.task(prompt="forever")
        for number in range(10):
            self.log(session, str(number))
        tail = self.logs(session, "?tail=3")
        self.assertEqual([line["message"] for line in tail["items"]], ["7", "8", "9"])
        self.assertNotIn("nextPage", tail)
        self.assertEqual(len(self.logs(session, "?tail=1000")["items"]), tail["total"])

    def test_manyLines(self) -> None:
        """Many lines at once are sent bit by bit, and are the same lines."""
        session = self.task(prompt="forever")
        events = self.server.services.events
        lines = [("log", {"level": "info", "message": f"{number} ☃"}) for number in range(450)]
        await_(events.appendMany(session, lines))
        every = [line for page in range(1, 6) for line in self.some(session, page)]
        for query, first, count in (
            ("?tail=430", -430, 430),
            ("?perPage=410", 0, 410),
            ("?perPage=200&page=2", 200, 200),
            ("?tail=200", -200, 200),
            ("?tail=201", -201, 201),
        ):
            protocol, transport = self.server.connect()
            path = f"/api/v1/sessions/{session}/logs{query}"
            protocol.dataReceived(request("GET", path, self.ann))
            client = Client(transport, protocol)
            self.assertIn("Content-Type: application/json", client.head)
            self.assertEqual("Content-Length" in client.head, count <= 200)
            told = json.loads(client.body if count > 200 else parse(transport.value()).body)
            first = first % len(every)
            self.assertEqual(told["items"], every[first : first + count], query)
            self.assertEqual(told["total"], len(every))
            more = {"?perPage=410": "2", "?perPage=200&page=2": "3"}
            self.assertEqual(told.get("nextPage"), more.get(query), query)

    def some(self, session: str, page: int) -> Any:
        return self.logs(session, f"?perPage=100&page={page}")["items"]

    def test_pagesLevelsAndTimes(self) -> None:
        """By page, from a level up, from a time on."""
        session = self.task(prompt="forever")
        events = self.server.services.events
        for number, level in enumerate(("debug", "info", "warn", "error")):
            await_(
                events.append(
                    session, "log", {"level": level, "message": level}, 1_800_000_000.0 + number
                )
            )
        for query, expected in (
            ("?level=debug", ["debug", "info", "warn", "error"]),
            ("?level=warn", ["warn", "error"]),
            ("?perPage=3", ["debug", "info", "warn"]),
            ("?perPage=3&page=2", ["error"]),
            ("?since=2027-01-15T08:00:02Z", ["warn", "error"]),
        ):
            told = self.logs(session, query)
            self.assertEqual([line["message"] for line in told["items"]], expected, query)
        self.assertEqual(self.logs(session, "?perPage=3")["nextPage"], "2")
        for query in (
            "?tail=0",
            "?level=loud",
            "?since=yesterday",
            "?since=0001-01-01T00:00:00",
            "?tail=x",
        ):
            answer = self.server.get(f"/api/v1/sessions/{session}/logs{query}", self.ann)
            self.assertEqual(answer.status, 400, query)


class LogPostgreSQLTests(OnPostgreSQL, LogTests):
    """The same on PostgreSQL."""


def _done() -> Failure:
    return Failure(ConnectionDone())
