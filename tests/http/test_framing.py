"""Where bodies end."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.http.framing import (
    MAX_CHUNK_LINE,
    MAX_TRAILERS,
    ChunkedFraming,
    LengthFraming,
    MalformedBody,
)

MALFORMED = {
    "no size": b"\r\n",
    "no hex": b"g\r\n",
    "prefix": b"0x3\r\nabc\r\n",
    "sign": b"+3\r\nabc\r\n",
    "underscore": b"1_0\r\n",
    "leading blank": b" 3\r\nabc\r\n",
    "trailing blank": b"3 \r\nabc\r\n",
    "too many digits": b"1" * 16 + b"\r\n",
    "bare LF after the size": b"3\nabc\r\n0\r\n\r\n",
    "bare LF in an extension": b"3;a\nabc\r\n0\r\n\r\n",
    "bare CR in an extension": b"3;a\rb\r\nabc\r\n0\r\n\r\n",
    "bare CR after the size": b"3\rabc\r\n",
    "extension without a name": b"3;=x\r\nabc\r\n",
    "extension with a blank": b"3; a\r\nabc\r\n",
    "extension with NUL": b"3;a\0\r\nabc\r\n",
    "extension, quote open": b'3;a="b\r\nabc\r\n',
    "endless line": b"3;" + b"a" * MAX_CHUNK_LINE,
    "chunk too long": b"3\r\nabcd\r\n",
    "chunk ends with LF": b"3\r\nabc\n0\r\n\r\n",
    "chunk ends with two bytes": b"3\r\nabcXX",
    "trailers end with LF": b"0\r\n\n",
    "trailer line ends with LF": b"0\r\nA: b\n\r\n",
    "trailer folded": b"0\r\nA: b\r\n c\r\n\r\n",
    "trailer without colon": b"0\r\nGET / HTTP/1.1\r\n\r\n",
    "trailer colon blank": b"0\r\nA : b\r\n\r\n",
    "trailers too long": b"0\r\n" + b"A: b\r\n" * MAX_TRAILERS,
}


class ChunkedTests(SynchronousTestCase):
    def test_malformed(self) -> None:
        """Everything but RFC 9112's grammar is refused, whole and byte by byte."""
        for name, data in MALFORMED.items():
            with self.assertRaises(MalformedBody, msg=name):
                ChunkedFraming().feed(data)
            if len(data) < 1000:
                framing = ChunkedFraming()
                with self.assertRaises(MalformedBody, msg=name):
                    for at in range(len(data)):
                        framing.feed(data[at : at + 1])

    @settings(deadline=None, max_examples=100)
    @given(
        st.lists(st.binary(min_size=1, max_size=40), max_size=6),
        st.sampled_from([b"", b";a", b";a=b;c", b';a="b \\" c"']),
        st.sampled_from([b"", b"A: b\r\n", b"A:\r\nB: c d\r\n"]),
        st.binary(max_size=20),
        st.lists(st.integers(0, 400), max_size=4),
    )
    def test_roundTrip(
        self,
        chunks: list[bytes],
        extension: bytes,
        trailers: bytes,
        following: bytes,
        cuts: list[int],
    ) -> None:
        """Payload and what follows come out the same however the bytes are split."""
        data = b"".join(b"%X%s\r\n%s\r\n" % (len(c), extension, c) for c in chunks)
        data += b"00" + extension + b"\r\n" + trailers + b"\r\n" + following
        framing = ChunkedFraming()
        payload = rest = b""
        edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
        for start, end in pairwise(edges):
            if framing.complete:
                rest += data[start:end]
            elif end > start:
                pieces, left = framing.feed(data[start:end])
                payload += b"".join(pieces)
                rest += left
        self.assertTrue(framing.complete)
        self.assertEqual(payload, b"".join(chunks))
        self.assertEqual(rest, following)

    @settings(deadline=None, max_examples=100)
    @given(st.binary(max_size=80))
    def test_neverAnythingElse(self, data: bytes) -> None:
        """Any bytes are a body, a part of one, or MalformedBody."""
        try:
            ChunkedFraming().feed(data)
        except MalformedBody:
            pass


class LengthTests(SynchronousTestCase):
    def test_everySplit(self) -> None:
        """Exactly as many bytes as announced belong to the body."""
        for position in range(8):
            framing = LengthFraming(5)
            data = b"bodyXrest"
            first, left = framing.feed(data[:position])
            if framing.complete:
                left += data[position:]
            else:
                more, left = framing.feed(data[position:])
                first += more
            self.assertEqual((b"".join(first), left), (b"bodyX", b"rest"))
