"""Server-sent events, read from bytes."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.cli import event_stream
from helix_revdial.cli.event_stream import EventParser, EventTooLarge, ServerEvent
from helix_revdial.http.event_frames import commentFrame, eventFrame, retryFrame

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), max_size=9)


class EventParserTests(SynchronousTestCase):
    """The standard's rules."""

    def test_fields(self) -> None:
        """Types, ids that last, data of several lines, comments, a space that is no content."""
        parser = EventParser()
        found = parser.feed(
            b"\xef\xbb\xbfretry: 1500\n\nid: 1\nevent: log\ndata: a\ndata:b\ndata\n\n"
            b": comment\n\ndata:  c\r\n\r\nid: 2\r\rid: 3\0\nevent:x\n\ndata: d\rbogus: e\r\r"
            b"data: lost"
        )
        self.assertEqual(
            found,
            [
                ServerEvent("log", "a\nb\n", "1"),
                ServerEvent("message", " c", "1"),
                ServerEvent("message", "d", "2"),
            ],
        )
        self.assertEqual(parser.retry, 1500)

    def test_carriageReturnAtTheEnd(self) -> None:
        """A line end that is cut in two is one."""
        parser = EventParser()
        self.assertEqual(parser.feed(b"data: a\r"), [])
        self.assertEqual(parser.feed(b"\n\r"), [])
        self.assertEqual(parser.feed(b"\ndata: b\n\n")[0].data, "a")

    def test_badRetry(self) -> None:
        """What is no number is not a time."""
        parser = EventParser()
        parser.feed("retry: -1\nretry: 1e3\nretry: ٣\nretry:\nretry: 9999999999999\n".encode())
        self.assertIsNone(parser.retry)

    def test_limits(self) -> None:
        """An event, or a line without an end, that is larger than the limit is an error."""
        self.patch(event_stream, "MAX_EVENT", 100)
        for data in (b"data: " + b"x" * 101, b"data: xxxxxxxxxxxxxxxxxxxxxxxx\n" * 5):
            parser = EventParser()
            with self.assertRaises(EventTooLarge):
                for index in range(len(data)):
                    parser.feed(data[index : index + 1])
        parser = EventParser()
        for _ in range(50):
            self.assertEqual(len(parser.feed(b"data: " + b"x" * 90 + b"\n\n")), 1)

    @settings(deadline=None, max_examples=60)
    @given(
        st.lists(st.tuples(_TEXT, _LINE, st.integers(0, 99)), max_size=4), st.lists(st.integers(0))
    )
    def test_whateverItIsCutInto(self, events: list[tuple[str, str, int]], cuts: list[int]) -> None:
        """What our own server writes is read as it was meant, split at every point."""
        data = retryFrame(1)
        expected = []
        for text, kind, number in events:
            data += commentFrame("hb") + eventFrame(text, event=kind or None, id=str(number))
            lines = text.replace("\r\n", "\n").replace("\r", "\n")
            expected.append(ServerEvent(kind or "message", lines, str(number)))
        points = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
        for pieces in (
            [data[a:b] for a, b in pairwise(points)],
            [data[index : index + 1] for index in range(len(data))],
        ):
            parser = EventParser()
            found = [event for piece in pieces for event in parser.feed(piece)]
            self.assertEqual(found, expected)
