"""Tests for L{helix_revdial.desktop.encoding}."""

from __future__ import annotations

import io

from PIL import Image
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.desktop.encoding import encode, encodeAgain
from helix_revdial.desktop.errors import NoDisplay
from helix_revdial.desktop.pictures import PictureRequest


class EncodingTests(SynchronousTestCase):
    """Pictures become files."""

    def test_jpegOfTransparentPicture(self) -> None:
        """A compositor's picture may have an alpha channel; a JPEG has none."""
        png = encode(Image.new("RGBA", (20, 10), (10, 200, 30, 255)), PictureRequest())
        picture = encodeAgain(png.data, PictureRequest("jpeg", 90))
        self.assertEqual(picture.mediaType, "image/jpeg")
        decoded = Image.open(io.BytesIO(picture.data))
        self.assertEqual((decoded.format, decoded.size, decoded.mode), ("JPEG", (20, 10), "RGB"))
        pixel = decoded.getpixel((5, 5))
        assert isinstance(pixel, tuple)
        for found, expected in zip(pixel, (10, 200, 30), strict=True):
            self.assertLess(abs(found - expected), 6, pixel)

    def test_quality(self) -> None:
        """A lower quality gives a smaller file."""
        png = encode(Image.effect_noise((200, 200), 80), PictureRequest())
        sizes = [
            len(encodeAgain(png.data, PictureRequest("jpeg", quality)).data)
            for quality in (1, 50, 100)
        ]
        self.assertEqual(sizes, sorted(sizes))
        self.assertLess(sizes[0] * 4, sizes[2])

    def test_broken(self) -> None:
        """A PNG that lacks its lower half is a failure with a reason."""
        png = encode(Image.effect_noise((20, 20), 80), PictureRequest()).data
        for length in range(0, len(png) // 2, 7):
            error = self.assertRaises(NoDisplay, encodeAgain, png[:length], PictureRequest("jpeg"))
            self.assertIn("broken", str(error))
