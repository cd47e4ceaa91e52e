"""The desktop service on a real Wayland compositor: sway without a screen."""

from __future__ import annotations

import base64
import glob
import io
import json

from PIL import Image

from helix_revdial.desktop.encoding import encode
from helix_revdial.desktop.pictures import PictureRequest
from tests.integration.desktops import DesktopTestCase, children, until
from tests.needs import needsProgram

IMAGE = encode(Image.effect_noise((300, 200), 60), PictureRequest()).data


@needsProgram("sway", package="sway")
@needsProgram("grim", package="grim")
@needsProgram("wl-copy", package="wl-clipboard")
class WaylandTests(DesktopTestCase):
    """Pictures by grim, the clipboard by wl-clipboard."""

    async def test_screenshot(self) -> None:
        """PNG and JPEG show the colour that is on the screen; health names the tools."""
        wayland = await self.startSway("#336699", "640x480")
        runtime, _, name = wayland.rpartition("/")
        await self.startDesktop(
            environment={"WAYLAND_DISPLAY": name, "XDG_RUNTIME_DIR": runtime, "DISPLAY": ":9"}
        )

        async def pixel() -> object:
            status, body, kind = await self.ask("GET", "/screenshot")
            self.assertEqual((status, kind), (200, "image/png"), body[:500])
            picture = Image.open(io.BytesIO(body)).convert("RGB")
            self.assertEqual(picture.size, (640, 480))
            return picture.getpixel((320, 400))

        # The compositor paints its background some time after its socket is there.
        found = await pixel()
        end = self.clock() + 5
        while found != (0x33, 0x66, 0x99) and self.clock() < end:
            found = await pixel()
        self.assertEqual(found, (0x33, 0x66, 0x99))
        status, body, kind = await self.ask("GET", "/screenshot?format=jpeg&quality=90")
        self.assertEqual((status, kind), (200, "image/jpeg"), body[:500])
        jpeg = Image.open(io.BytesIO(body))
        self.assertEqual((jpeg.format, jpeg.size), ("JPEG", (640, 480)))
        status, body, _ = await self.ask("GET", "/health")
        health = json.loads(body)
        self.assertEqual(health["status"], "ok", health)
        self.assertEqual(health["display"], {"kind": "wayland", "name": name})
        self.assertEqual(set(health["tools"]), {"grim", "wl-copy", "wl-paste"})

    async def test_clipboard(self) -> None:
        """
        Text, an image and nothing at all come back as they were written; what
        others copy is read; the stop leaves no process and no file behind.
        """
        wayland = await self.startSway("#000000")
        environment = {"WAYLAND_DISPLAY": wayland, "XDG_RUNTIME_DIR": wayland.rpartition("/")[0]}
        buffers = set(glob.glob("/tmp/wl-copy-buffer-*"))
        before = children()
        service = await self.startDesktop(environment=environment)
        self.assertEqual(await self.read(), {"type": "text", "data": ""})
        for text in ["plain", "grüße 東京 🚀\n\ttwo lines\n", "x" * 1024**2, "", "--clear", "é\n"]:
            await self.roundTrip("text", text)
        await self.roundTrip("image", base64.b64encode(IMAGE).decode("ascii"))
        pasted = await self.runProgram(environment, "wl-paste", "-n", "-t", "image/png")
        self.assertTrue(pasted == IMAGE, f"{len(pasted)} bytes")
        copy = ("wl-copy", "-t", "text/plain")
        await self.runProgram(environment, *copy, standardInput=b"copied", background=True)
        await until(lambda: children() <= before, "our holder ends")
        self.assertEqual(await self.read(), {"type": "text", "data": "copied"})
        await self.roundTrip("text", "last")
        self.assertNotEqual(children() - before, set())
        await service.stopService()
        self.assertEqual(children() - before, set())
        self.assertEqual(set(glob.glob("/tmp/wl-copy-buffer-*")) - buffers, set())

    async def test_compositorMissing(self) -> None:
        """A socket that is not there is a 503 that names it, for everything."""
        await self.startDesktop(environment={"WAYLAND_DISPLAY": "/nowhere/wayland-0"})
        for method, path, document in [
            ("GET", "/screenshot", None),
            ("GET", "/clipboard", None),
            ("POST", "/clipboard", {"type": "text", "data": "x"}),
        ]:
            status, body, _ = await self.ask(method, path, document)
            self.assertEqual(status, 503, body)
            self.assertIn("/nowhere/wayland-0", json.loads(body)["detail"])
