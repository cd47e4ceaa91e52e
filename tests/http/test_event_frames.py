"""Frames of server-sent events, as a conforming parser reads them."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.http.event_frames import commentFrame, eventFrame, retryFrame
from tests.http.event_source import EventSource, Received


def lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


TEXT = st.text(
    alphabet=st.one_of(
        st.sampled_from("\r\n :\0a\ufeff\u2028é"), st.characters(exclude_categories=["Cs"])
    )
)
LINE = TEXT.map(lambda text: text.replace("\r", "").replace("\n", ""))


class FrameTests(SynchronousTestCase):
    """What is written is what a conforming parser reads."""

    @settings(deadline=None, max_examples=150)
    @given(
        st.lists(
            st.one_of(
                st.tuples(TEXT, LINE.filter(bool), LINE.map(lambda text: text.replace("\0", ""))),
                TEXT,
            ),
            max_size=5,
        ),
        st.lists(st.integers(0, 400), max_size=6),
    )
    def test_roundTrip(self, sent: list[tuple[str, str, str] | str], cuts: list[int]) -> None:
        """Any data, types, ids and comments arrive, wherever the bytes are split."""
        wire = b""
        expected = []
        comments: list[str] = []
        for one in sent:
            if isinstance(one, str):
                wire += commentFrame(one)
                comments += lines(one).split("\n")
            else:
                data, event, id_ = one
                wire += eventFrame(data, event=event, id=id_)
                expected.append(Received(event, lines(data), id_))
        source = EventSource()
        places = sorted({0, len(wire), *(cut for cut in cuts if cut < len(wire))})
        for begin, end in pairwise(places):
            source.feed(wire[begin:end])
        self.assertEqual(source.events, expected)
        self.assertEqual(source.comments, comments)

    def test_everySplit(self) -> None:
        """A few frames, split at every byte."""
        wire = retryFrame(3000) + eventFrame('{"a":1}', event="log", id="7") + commentFrame("hb")
        for at in range(len(wire)):
            source = EventSource()
            source.feed(wire[:at])
            source.feed(wire[at:])
            self.assertEqual(source.events, [Received("log", '{"a":1}', "7")])
            self.assertEqual((source.retry, source.comments), (3000, ["hb"]))

    def test_wire(self) -> None:
        """The bytes, as the specification of the service has them."""
        self.assertEqual(
            eventFrame('{"type":"log"}', event="log", id="7"),
            b'id: 7\nevent: log\ndata: {"type":"log"}\n\n',
        )

    def test_withoutId(self) -> None:
        """An event without an id leaves the place to resume from as it was."""
        source = EventSource()
        source.feed(eventFrame("a", id="7") + eventFrame("b", event="heartbeat"))
        self.assertEqual(source.events[1], Received("heartbeat", "b", "7"))

    def test_injection(self) -> None:
        """Data cannot make fields of its own; types and ids that would are refused."""
        source = EventSource()
        source.feed(eventFrame("x\nid: 99\n\nevent: y", id="1"))
        self.assertEqual(source.events, [Received("message", "x\nid: 99\n\nevent: y", "1")])
        for bad in ("a\nb", "a\rb", "a\r\n"):
            self.assertRaises(ValueError, eventFrame, "", event=bad)
            self.assertRaises(ValueError, eventFrame, "", id=bad)
        self.assertRaises(ValueError, eventFrame, "", id="a\0")
