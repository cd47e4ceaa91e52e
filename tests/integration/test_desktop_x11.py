"""The desktop service on a real X server."""

from __future__ import annotations

import base64
import io
import json
import os
import signal

from PIL import Image

from helix_revdial.desktop import clipboard
from helix_revdial.desktop.encoding import encode
from helix_revdial.desktop.pictures import PictureRequest
from tests.integration.desktops import DesktopTestCase, children, paintX11, until
from tests.needs import needsProgram

IMAGE = encode(Image.effect_noise((300, 200), 60), PictureRequest()).data


@needsProgram("Xvfb", package="xvfb")
class X11ScreenshotTests(DesktopTestCase):
    """What is on the screen is in the picture."""

    async def test_screenshot(self) -> None:
        """A PNG shows the colour that is on the screen, exactly, and the one after it."""
        display = await self.startXvfb("640x480")
        await self.startDesktop(environment={"DISPLAY": display})
        for colour in (0x3366CC, 0xFF8001):
            window = paintX11(display, colour)
            self.addCleanup(window.close)
            status, body, kind = await self.ask("GET", "/screenshot")
            self.assertEqual((status, kind), (200, "image/png"), body[:500])
            picture = Image.open(io.BytesIO(body)).convert("RGB")
            self.assertEqual(picture.size, (640, 480))
            rgb = (colour >> 16, colour >> 8 & 255, colour & 255)
            self.assertEqual(picture.getcolors(), [(640 * 480, rgb)])

    async def test_jpegAndHealth(self) -> None:
        """A JPEG is one; health says that the display answers."""
        display = await self.startXvfb("320x200")
        await self.startDesktop(environment={"DISPLAY": display})
        self.addCleanup(paintX11(display, 0x10C010).close)
        status, body, kind = await self.ask(
            "GET", "/screenshot?format=jpeg&quality=60&include_cursor=true"
        )
        self.assertEqual((status, kind), (200, "image/jpeg"), body[:500])
        pixel = Image.open(io.BytesIO(body)).getpixel((100, 100))
        assert isinstance(pixel, tuple)
        self.assertTrue(pixel[1] > 180 and pixel[0] < 30 and pixel[2] < 30, pixel)
        status, body, _ = await self.ask("GET", "/health")
        health = json.loads(body)
        self.assertEqual(health["display"], {"kind": "x11", "name": display})
        self.assertIsNotNone(health["tools"]["python"])

    async def test_serverGoesAway(self) -> None:
        """An X server that is not there is a 503 that names it, in the picture and in health."""
        await self.startDesktop(environment={"DISPLAY": ":7654"})
        status, body, kind = await self.ask("GET", "/screenshot")
        self.assertEqual((status, kind), (503, "application/problem+json"))
        problem = json.loads(body)
        self.assertEqual(problem["code"], "no-display")
        self.assertIn(":7654", problem["detail"])
        status, body, _ = await self.ask("GET", "/health")
        health = json.loads(body)
        self.assertEqual((status, health["status"]), (200, "unavailable"))
        self.assertIn("nobody answers", health["reason"])


@needsProgram("Xvfb", package="xvfb")
@needsProgram("xclip", package="xclip")
class X11ClipboardTests(DesktopTestCase):
    """The clipboard is the one that other programs use."""

    async def test_roundTrips(self) -> None:
        """
        Text of every kind, an image, a megabyte, and nothing at all come back
        as they were written, and one program at most holds them.
        """
        display = await self.startXvfb()
        await self.startDesktop(environment={"DISPLAY": display})
        self.assertEqual(await self.read(), {"type": "text", "data": ""})
        before = children()
        for text in ["plain", "grüße 東京 🚀\n\ttwo lines\n", "x" * 1024**2, "", "-o", "é" * 1000]:
            await self.roundTrip("text", text)
        await self.roundTrip("image", base64.b64encode(IMAGE).decode("ascii"))
        await self.roundTrip("text", "after the image")
        await until(lambda: len(children() - before) <= 1, "the older holders end")

    async def test_otherPrograms(self) -> None:
        """What we write others paste; what others copy we read; their copy ends our holder."""
        display = await self.startXvfb()
        environment = {"DISPLAY": display}
        await self.startDesktop(environment=environment)
        before = children()
        await self.roundTrip("text", "from the API ✓")
        pasted = await self.runProgram(
            environment, "xclip", "-selection", "clipboard", "-o", "-t", "UTF8_STRING"
        )
        self.assertEqual(pasted.decode(), "from the API ✓")
        copy = ("xclip", "-selection", "clipboard", "-i")
        await self.runProgram(environment, *copy, standardInput=b"copied", background=True)
        await until(lambda: children() <= before, "our holder ends")
        self.assertEqual(await self.read(), {"type": "text", "data": "copied"})

    async def test_stopLeavesNoProcess(self) -> None:
        """The holder is ended with the service."""
        display = await self.startXvfb()
        before = children()
        service = await self.startDesktop(environment={"DISPLAY": display})
        await self.roundTrip("text", "secret")
        self.assertEqual(len(children() - before), 1)
        await service.stopService()
        self.assertEqual(children() - before, set())

    async def test_ownerHangs(self) -> None:
        """A program that copied and then hangs is told apart, and nothing is left running."""
        display = await self.startXvfb()
        service = await self.startDesktop(environment={"DISPLAY": display})
        await self.roundTrip("text", "x")
        before = children()
        ((holder, _),) = [each for each in before if each[1] == "xclip"]
        os.kill(holder, signal.SIGSTOP)
        self.patch(clipboard, "READ_DEADLINE", 0.5)
        status, body, _ = await self.ask("GET", "/clipboard")
        problem = json.loads(body)
        self.assertEqual((status, problem["code"]), (504, "timed-out"))
        self.assertIn("did not hand it over", problem["detail"])
        await until(lambda: children() == before, "the reader is killed")
        await service.stopService()
        await until(lambda: holder not in {pid for pid, _ in children()}, "the holder is killed")
