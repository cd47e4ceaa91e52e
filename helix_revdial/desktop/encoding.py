# -*- test-case-name: tests.desktop.test_encoding -*-
"""
Pictures into files, by Pillow.  Blocks: callers run it outside the reactor's
thread.
"""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable

from PIL import Image

from helix_revdial.desktop.errors import NoDisplay
from helix_revdial.desktop.pictures import Picture, PictureRequest

InThread = Callable[[Callable[[], Picture]], Awaitable[Picture]]
"""Runs a function outside the reactor's thread."""


def encode(image: Image.Image, request: PictureRequest) -> Picture:
    """The picture as a file of the format that was asked for."""
    out = io.BytesIO()
    if request.format == "jpeg":
        image.convert("RGB").save(out, "JPEG", quality=request.quality)
    else:
        # The fastest level: a picture of a desktop is sent once.
        image.save(out, "PNG", compress_level=1)
    return Picture(out.getvalue(), request.format)


def encodeAgain(png: bytes, request: PictureRequest) -> Picture:
    """
    Turn a PNG into the format that was asked for.

    @raise NoDisplay: The PNG is broken.
    """
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            return encode(image, request)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        raise NoDisplay(f"the picture that was taken of the display is broken: {e}") from None
