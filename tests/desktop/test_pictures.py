"""Tests for L{helix_revdial.desktop.pictures}."""

from __future__ import annotations

import io

from PIL import Image
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.desktop.pictures import Picture, isPNG, looksLike


def encoded(name: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (1, 1)).save(out, name)
    return out.getvalue()


class PicturesTests(SynchronousTestCase):
    """Pictures are known by their first bytes."""

    def test_recognised(self) -> None:
        """A real file of each format is what it is, and not the other."""
        png, jpeg = encoded("PNG"), encoded("JPEG")
        self.assertTrue(looksLike(png, "png"))
        self.assertFalse(looksLike(png, "jpeg"))
        self.assertTrue(looksLike(jpeg, "jpeg"))
        self.assertFalse(looksLike(jpeg, "png"))

    def test_notPNG(self) -> None:
        """Every beginning of a PNG that lacks its header is none."""
        png = encoded("PNG")
        for length in range(45):
            self.assertFalse(isPNG(png[:length]), length)
        self.assertFalse(isPNG(b"x" + png))

    def test_mediaType(self) -> None:
        """The media type is the registered one."""
        self.assertEqual(Picture(b"", "jpeg").mediaType, "image/jpeg")
        self.assertEqual(Picture(b"", "png").mediaType, "image/png")
