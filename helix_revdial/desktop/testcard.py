# -*- test-case-name: tests.desktop.test_testcard -*-
"""
A card that says that it is one, for demonstrations without a display.

The picture itself says so, in words, so that a screenshot of it that is
passed around deceives nobody.  Nothing is read from the system: no time, no
font files (Pillow's own font serves).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from PIL import Image, ImageDraw, ImageFont
from twisted.internet.defer import Deferred

from helix_revdial.desktop.encoding import InThread, encode
from helix_revdial.desktop.pictures import Picture, PictureRequest

BARS = (
    (235, 235, 235),
    (235, 235, 16),
    (16, 235, 235),
    (16, 235, 16),
    (235, 16, 235),
    (235, 16, 16),
    (16, 16, 235),
)
"""The colours of the bars, from left to right."""

BACKGROUND = (24, 28, 36)
FOREGROUND = (240, 240, 240)

TITLE = "TEST CARD"
EXPLANATION = "This is no desktop. It was drawn by helix desktop serve --test-card."


def cardLines(session: str | None, when: datetime) -> list[str]:
    """The words on the card below its title."""
    lines = [EXPLANATION, when.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")]
    if session:
        printable = "".join(c if c.isprintable() else "?" for c in session)
        lines.append(f"session {printable[:128]}")
    return lines


def drawTestCard(size: tuple[int, int], session: str | None, when: datetime) -> Image.Image:
    """
    Draw the card.

    @param size: Width and height, in pixels.
    @param session: Whose desktop it stands for.
    @param when: The time that it shows.
    """
    width, height = size
    card = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(card)
    barsHeight = height // 3
    for index, colour in enumerate(BARS):
        left = index * width // len(BARS)
        right = (index + 1) * width // len(BARS)
        draw.rectangle((left, 0, right - 1, barsHeight - 1), fill=colour)
    title = max(8, height // 9)
    _write(draw, TITLE, title, barsHeight + title // 2, width)
    top = barsHeight + 2 * title
    small = max(6, height // 28)
    for line in cardLines(session, when):
        _write(draw, line, small, top, width)
        top += small * 2
    return card


def _write(draw: ImageDraw.ImageDraw, text: str, height: int, top: int, width: int) -> None:
    """Write one line in the middle, smaller where it would not fit."""
    font = ImageFont.load_default(size=height)
    length = draw.textlength(text, font=font)
    if length > width * 0.94:
        font = ImageFont.load_default(size=max(4.0, height * width * 0.94 / length))
        length = draw.textlength(text, font=font)
    draw.text(((width - length) / 2, top), text, fill=FOREGROUND, font=font)


class CardScreen:
    """
    A screen that shows the test card.

    @param size: Width and height, in pixels.
    @param session: Whose desktop it stands for.
    @param wallClock: The time, in seconds since 1970.
    @param inThread: Runs a function outside the reactor's thread: drawing a
        large card takes a tenth of a second.
    """

    def __init__(
        self,
        size: tuple[int, int],
        session: str | None,
        wallClock: Callable[[], float],
        inThread: InThread,
    ) -> None:
        self._size = size
        self._session = session
        self._wallClock = wallClock
        self._inThread = inThread

    async def _capture(self, request: PictureRequest) -> Picture:
        when = datetime.fromtimestamp(self._wallClock(), UTC)
        return await self._inThread(
            lambda: encode(drawTestCard(self._size, self._session, when), request)
        )

    def capture(self, request: PictureRequest) -> Deferred[Picture]:
        """Draw the card with the time of now."""
        return Deferred.fromCoroutine(self._capture(request))

    def tools(self) -> Mapping[str, str | None]:
        """Nothing but ourselves."""
        return {}
