"""Masking in place: the two ways agree, at any split."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.masks import (
    KEY_BATCH,
    SMALL,
    Keys,
    Masker,
    PortableMasker,
    mask,
    newMasker,
)


def reference(key: bytes, payload: bytes) -> bytes:
    """RFC 6455, 5.3, word for word."""
    return bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))


class MaskTests(SynchronousTestCase):
    """L{Masker} and L{PortableMasker}."""

    def test_anySplit(self) -> None:
        """Whatever the pieces, the result is that of the RFC."""

        @settings(deadline=None, max_examples=100)
        @given(st.binary(min_size=4, max_size=4), st.lists(st.binary(max_size=300), max_size=6))
        def check(key: bytes, pieces: list[bytes]) -> None:
            for kind in (newMasker, PortableMasker, Masker):
                masker = kind(key)
                done = b""
                for piece in pieces:
                    place = bytearray(piece)
                    masker.apply(memoryview(place))
                    done += place
                self.assertEqual(done, reference(key, b"".join(pieces)))

        check()

    def test_inPlaceOnly(self) -> None:
        """Only the range that is given is changed, at any alignment."""
        for start in range(9):
            place = bytearray(100_000)
            newMasker(b"abcd").apply(memoryview(place)[start : start + 70_001])
            self.assertEqual(place[:start], bytes(start))
            self.assertEqual(bytes(place[start : start + 70_001]), (b"abcd" * 17_501)[:70_001])
            self.assertEqual(place[start + 70_001 :], bytes(100_000 - start - 70_001))

    def test_whole(self) -> None:
        """A whole payload, of any size about the one where another way is taken."""
        for size in (*range(20), *range(SMALL - 5, SMALL + 6), 70_001):
            place = bytearray(range(256)) * (size // 256 + 1)
            payload = bytes(place[:size])
            mask(b"abcd", memoryview(place)[:size])
            self.assertEqual(place[:size], reference(b"abcd", payload), size)
            self.assertEqual(place[size:], (bytes(range(256)) * (size // 256 + 1))[size:])

    def test_portableBlocks(self) -> None:
        """The portable way carries its phase from block to block."""
        place = bytearray(70_003)
        PortableMasker(b"abcd").apply(memoryview(place))
        self.assertEqual(bytes(place), (b"abcd" * 17_501)[:70_003])


class KeysTests(SynchronousTestCase):
    """L{Keys}."""

    def test_strongAndFresh(self) -> None:
        """Keys come from the given source, batch after batch, none of them twice."""
        asked: list[int] = []
        number = iter(range(1_000_000))

        def random(size: int) -> bytes:
            asked.append(size)
            return b"".join(next(number).to_bytes(4, "big") for _ in range(size // 4))

        keys = Keys(random)
        found = [keys.key() for _ in range(KEY_BATCH // 4 + 1)]
        self.assertEqual(len(set(found)), len(found))
        self.assertEqual(asked, [KEY_BATCH, KEY_BATCH])
