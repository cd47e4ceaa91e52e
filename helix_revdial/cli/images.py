# -*- test-case-name: tests.cli.test_spectask -*-
"""
Which of the three kinds of picture some bytes are.

The first bytes decide (PNG: RFC 2083 section 3.1; JPEG: ITU-T T.81 annex B,
start of image followed by a marker; WebP: a RIFF container of form WEBP).  Nothing here decodes.
"""

from __future__ import annotations

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
"""The media type that fits each kind."""

SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
"""How a file of each kind is named."""


def imageKind(data: bytes) -> str | None:
    """
    The kind of picture that C{data} begins as.

    @return: C{"png"}, C{"jpeg"}, C{"webp"}, or L{None} if it is none of them.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return None


__all__ = ["MEDIA_TYPES", "SUFFIXES", "imageKind"]
