"""Output becomes lines, however it is cut up."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.executor.output import OutputLines


class OutputLinesTests(SynchronousTestCase):
    def lines(self, *pieces: bytes, limit: int = 16) -> list[str]:
        stream = OutputLines(limit)
        found = [message for piece in pieces for message in stream.feed(piece)]
        return found + stream.flush()

    def test_lines(self) -> None:
        """Lines end with LF or CRLF; empty ones count; the last one needs no end."""
        self.assertEqual(self.lines(b"a\nb\r\n\nc"), ["a", "b", "", "c"])
        self.assertEqual(self.lines(b""), [])

    def test_progress(self) -> None:
        """What is written over itself is one line, with all that it was."""
        self.assertEqual(self.lines(b"\r10 %\r100 %\r\ndone"), ["\r10 %\r100 %", "done"])

    def test_everySplit(self) -> None:
        """The same, split at every point."""
        text = "ä\n€uro\r\n\n𝄞 x".encode()
        for cut in range(len(text) + 1):
            self.assertEqual(self.lines(text[:cut], text[cut:]), ["ä", "€uro", "", "𝄞 x"], cut)

    def test_noText(self) -> None:
        """What is no UTF-8 and what databases do not take becomes a replacement character."""
        self.assertEqual(self.lines(b"a\xffb\0c\n"), ["a�b�c"])

    def test_long(self) -> None:
        """A long line is cut between characters, before its end is there too."""
        stream = OutputLines(8)
        self.assertEqual(stream.feed("äöüäöü".encode()), ["äöüä"])
        self.assertEqual(stream.feed(b"\n"), ["öü"])
        self.assertEqual(stream.feed(b"x" * 20 + b"\n"), ["x" * 8, "x" * 8, "x" * 4])

    @settings(deadline=None, max_examples=60)
    @given(st.binary(max_size=200), st.integers(4, 40))
    def test_bounded(self, data: bytes, limit: int) -> None:
        """No message is longer than it may be, whatever the bytes are."""
        for message in self.lines(data, limit=limit):
            self.assertLessEqual(len(message.encode()), limit)
            self.assertNotIn("\n", message)
