"""Tests for L{helix_revdial.desktop.testcard}."""

from __future__ import annotations

import io
from datetime import UTC, datetime

from PIL import Image
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.desktop.pictures import Picture, PictureRequest
from helix_revdial.desktop.testcard import (
    BACKGROUND,
    BARS,
    EXPLANATION,
    CardScreen,
    cardLines,
    drawTestCard,
)
from tests.desktop.fakes import atOnce

WHEN = datetime(2026, 11, 21, 7, 30, 5, tzinfo=UTC)


class DrawTests(SynchronousTestCase):
    """What the card shows."""

    def test_words(self) -> None:
        """The card says that it is no desktop, the time in UTC, and whose it is."""
        self.assertEqual(
            cardLines("ses_1", WHEN), [EXPLANATION, "2026-11-21 07:30:05 UTC", "session ses_1"]
        )
        self.assertEqual(cardLines(None, WHEN)[1:], ["2026-11-21 07:30:05 UTC"])

    def test_hostileSessionName(self) -> None:
        """A session's name is cut, and cannot break the line."""
        line = cardLines("a\nb" + "x" * 500, WHEN)[2]
        self.assertTrue(line.startswith("session a?bx"))
        self.assertEqual(len(line), len("session ") + 128)

    def test_bars(self) -> None:
        """The colour bars stand in the upper third, in order, to the last pixel."""
        card = drawTestCard((700, 300), "ses_1", WHEN)
        self.assertEqual(card.size, (700, 300))
        for index, colour in enumerate(BARS):
            self.assertEqual(card.getpixel((index * 100, 0)), colour)
            self.assertEqual(card.getpixel((index * 100 + 99, 99)), colour)
        self.assertEqual(card.getpixel((0, 100)), BACKGROUND)

    def test_textIsDrawn(self) -> None:
        """
        There is writing below the bars at every size, within the card, and it
        differs by session and by time.
        """
        for size in [(64, 48), (320, 200), (1280, 720), (200, 1000)]:
            card = drawTestCard(size, "ses_1", WHEN)
            below = card.crop((0, size[1] // 3, *size))
            self.assertGreater(len(below.getcolors(10**6) or []), 1, size)
        other = drawTestCard((1280, 720), "ses_2", WHEN)
        self.assertNotEqual(card.tobytes(), other.tobytes())
        edge = other.crop((0, 240, 8, 720)).getcolors()
        self.assertEqual(edge, [(8 * 480, BACKGROUND)])


class CardScreenTests(SynchronousTestCase):
    """The card as a screen."""

    def capture(self, request: PictureRequest) -> Picture:
        screen = CardScreen((320, 200), "ses_1", WHEN.timestamp, atOnce)
        capturing: Deferred[Picture] = screen.capture(request)
        return self.successResultOf(capturing)

    def test_png(self) -> None:
        """A PNG is exactly what was drawn."""
        picture = self.capture(PictureRequest())
        decoded = Image.open(io.BytesIO(picture.data))
        self.assertEqual(decoded.format, "PNG")
        self.assertEqual(
            decoded.convert("RGB").tobytes(), drawTestCard((320, 200), "ses_1", WHEN).tobytes()
        )

    def test_jpeg(self) -> None:
        """A JPEG of a lower quality is smaller."""
        good = self.capture(PictureRequest("jpeg", 95))
        poor = self.capture(PictureRequest("jpeg", 5))
        self.assertEqual(Image.open(io.BytesIO(good.data)).format, "JPEG")
        self.assertLess(len(poor.data), len(good.data))
