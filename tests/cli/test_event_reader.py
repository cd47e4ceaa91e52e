"""A session's events over as many connections as it takes."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from helix_revdial.cli.edge import CommandError
from helix_revdial.cli.event_reader import SILENCE, EventReader
from helix_revdial.cli.failures import BadAnswer, Refused
from tests.cli.events import EVENTS, ID, NO_MORE, STORY, event, stream
from tests.cli.fake import HANG, CommandTestCase, Given, problem


class EventReaderTests(CommandTestCase):
    """What comes through."""

    def setUp(self) -> None:
        """Somewhere for what is told."""
        super().setUp()
        self.told: list[str] = []

    def read(self, *answers: Any, after: int = 0, **more: Any) -> list[int]:
        """The numbers of the events that these answers make."""
        self.api.on("GET", EVENTS, *answers)
        self.reader = EventReader(
            self.client,
            ID,
            after=after,
            onTrouble=self.told.append,
            onBack=lambda: self.told.append("back"),
            chance=lambda: 0.5,
            **more,
        )
        self.seqs: list[int] = []

        async def collect() -> None:
            async for one in self.reader.events():
                self.seqs.append(one.seq)

        self.settle(Deferred.fromCoroutine(collect()))
        return self.seqs

    def cursors(self) -> list[str | None]:
        """From where on each connection asked."""
        return [asked.headers.get("last-event-id") for asked in self.api.asked]

    def test_whole(self) -> None:
        """One connection is enough; the session's end is the end."""
        self.assertEqual(self.read(stream(*STORY)), [1, 2, 3, 4, 5, 6, 7])
        self.assertEqual((self.reader.ended, self.cursors()), ("completed", [None]))

    def test_resumes(self) -> None:
        """Where a connection ends, in the middle of an event too, the next one goes on."""
        seqs = self.read(
            stream(*STORY[:2], retry=100),
            stream(*STORY[2:5], cut=20),
            stream(*STORY[4:]),
        )
        self.assertEqual(seqs, [1, 2, 3, 4, 5, 6, 7])
        self.assertEqual(self.cursors(), [None, "2", "4"])

    def test_nothingTwice(self) -> None:
        """A server that repeats itself is not repeated."""
        seqs = self.read(stream(*STORY[:3]), stream(*STORY))
        self.assertEqual(seqs, [1, 2, 3, 4, 5, 6, 7])

    def test_noMore(self) -> None:
        """204 ends it."""
        self.assertEqual(self.read(stream(*STORY[:3]), NO_MORE), [1, 2, 3])
        self.assertEqual(self.read(NO_MORE, after=7), [])
        self.assertEqual(self.cursors()[-1], "7")

    def test_resync(self) -> None:
        """Where events are not kept any more that is an event, and what is left follows."""
        lost = {"type": "resync", "seq": 4, "sessionId": ID, "firstAvailable": 5}
        self.assertEqual(self.read(stream(lost, *STORY[4:]), after=2), [4, 5, 6, 7])

    def test_serverThatIsAway(self) -> None:
        """It is told once that there is no connection, and once that there is one again."""
        seqs = self.read(
            stream(*STORY[:2]), problem(503, "going"), problem(502, "gone"), stream(*STORY[2:])
        )
        self.assertEqual(seqs, [1, 2, 3, 4, 5, 6, 7])
        self.assertEqual(self.told, ["503 - going", "back"])

    def test_firstConnection(self) -> None:
        """That the first one fails is told at once, unless it may be waited for."""
        with self.assertRaises(Refused):
            self.read(problem(503, "no"))
        self.assertEqual(self.read(problem(503, "no"), stream(*STORY), tolerant=True)[-1], 7)

    def test_refused(self) -> None:
        """What another attempt does not change ends it: deleted, or the key was revoked."""
        for status in (401, 403, 404):
            with self.assertRaises(Refused):
                self.read(stream(*STORY[:2]), problem(status, "no"))
            self.assertEqual(self.seqs, [1, 2])

    def test_silence(self) -> None:
        """A stream without even a heartbeat is asked for again."""
        started = self.clock.seconds()
        with self.assertRaises(CommandError):
            self.read(stream(*STORY[:2]), HANG, patience=90)
        self.assertGreater(self.clock.seconds() - started, 30)
        self.assertGreater(SILENCE, 45)

    def test_patience(self) -> None:
        """A server that stays away is given up."""
        started = self.clock.seconds()
        with self.assertRaises(Refused):
            self.read(stream(*STORY[:2]), problem(503, "no"), patience=60)
        self.assertTrue(60 < self.clock.seconds() - started < 130)

    def test_heartbeats(self) -> None:
        """They are no events, whatever form they have."""
        beat = b': hb x\n\nevent: heartbeat\ndata: {"type":"heartbeat"}\n\n'
        body = stream(*STORY).body
        assert isinstance(body, bytes)
        self.assertEqual(self.read(Given(beat + body, 200, "text/event-stream"))[-1], 7)

    def test_noStream(self) -> None:
        """Something else than events is an error that says so."""
        for answer in (
            Given({"a": 1}),
            Given(b"data: [1]\n\n", 200, "text/event-stream"),
            Given(b"data: {\n\n", 200, "text/event-stream"),
        ):
            with self.assertRaises(BadAnswer):
                self.read(answer)

    def test_eventsOfAnotherTime(self) -> None:
        """A type that this version does not know is given out as it is."""
        new = event(1, "fleet.moved", host="x")
        self.assertEqual(self.read(stream(new), NO_MORE), [1])
