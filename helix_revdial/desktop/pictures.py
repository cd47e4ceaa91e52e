# -*- test-case-name: tests.desktop.test_pictures -*-
"""
Pictures as the service passes them on: bytes, and what they claim to be.

Nothing here decodes: what a program wrote is recognised by its first bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PictureFormat = Literal["png", "jpeg"]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
"""How every PNG begins (PNG specification, section 5.2)."""

JPEG_SIGNATURE = b"\xff\xd8\xff"
"""Start of image, and the first byte of the marker that follows."""

DEFAULT_QUALITY = 80
"""JPEG quality where none is asked for, 1 to 100."""


@dataclass(frozen=True, slots=True)
class PictureRequest:
    """
    What a caller wants to see.  Equal requests share one capture.

    @ivar format: C{png} or C{jpeg}.
    @ivar quality: Of a JPEG, 1 to 100; a PNG has none.
    @ivar includeCursor: Whether the pointer is drawn, where the display can.
    """

    format: PictureFormat = "png"
    quality: int = DEFAULT_QUALITY
    includeCursor: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """
    An encoded picture.

    @ivar data: The file's bytes.
    @ivar format: C{png} or C{jpeg}.
    """

    data: bytes
    format: PictureFormat

    @property
    def mediaType(self) -> str:
        """The media type, for C{Content-Type}."""
        return f"image/{self.format}"


def isPNG(data: bytes) -> bool:
    """Whether these bytes begin as a PNG does, with its header chunk."""
    return data.startswith(PNG_SIGNATURE) and data[12:16] == b"IHDR" and len(data) >= 45


def looksLike(data: bytes, format: PictureFormat) -> bool:  # noqa: A002 - the field's word
    """Whether these bytes begin as a file of this format does."""
    return isPNG(data) if format == "png" else data.startswith(JPEG_SIGNATURE)
