"""Tests for L{helix_revdial.desktop.capture}."""

from __future__ import annotations

import io
import os
import socket

from PIL import Image
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.desktop.capture import (
    CAPTURE_DEADLINE,
    MAX_PICTURE,
    ProgramScreen,
    SharedScreen,
    screenOf,
)
from helix_revdial.desktop.display import NoDisplayFound, WaylandDisplay, X11Display
from helix_revdial.desktop.encoding import encode
from helix_revdial.desktop.errors import NoDisplay
from helix_revdial.desktop.pictures import Picture, PictureRequest
from helix_revdial.programs import ProgramMissing, ProgramTimedOut
from tests.desktop.fakes import FakePrograms, atOnce, png

X11 = X11Display(":5")


class ProgramScreenTests(SynchronousTestCase):
    """A program takes the picture."""

    def setUp(self) -> None:
        self.programs = FakePrograms()

    def x11(self) -> ProgramScreen:
        return ProgramScreen(self.programs, X11, python="python3", inThread=atOnce)

    def wayland(self) -> ProgramScreen:
        """A screen of a socket that is there."""
        path = os.path.abspath(self.mktemp())
        listening = socket.socket(socket.AF_UNIX)
        self.addCleanup(listening.close)
        # The test's own directory may be too deep for a socket's path.
        directory = os.open(os.path.dirname(path), os.O_PATH)
        self.addCleanup(os.close, directory)
        listening.bind(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
        return ProgramScreen(self.programs, WaylandDisplay(path), python="python3", inThread=atOnce)

    def test_x11Command(self) -> None:
        """The display, the format and the quality go to our own capture program."""
        self.x11().capture(PictureRequest("jpeg", 33))
        (run,) = self.programs.runs
        self.assertEqual(run.arguments[:2], ("python3", "-P"))
        self.assertTrue(os.path.isfile(run.arguments[2]), run.arguments[2])
        self.assertEqual(run.arguments[3:], (":5", "jpeg", "33"))
        self.assertEqual((run.outputLimit, run.deadline), (MAX_PICTURE, CAPTURE_DEADLINE))

    def test_waylandCommand(self) -> None:
        """C{grim} always writes a PNG, with the cursor where asked."""
        screen = self.wayland()
        for request, expected in [
            (PictureRequest(), ("grim", "-t", "png", "-l", "1", "-")),
            (PictureRequest("jpeg", 7), ("grim", "-t", "png", "-l", "1", "-")),
            (
                PictureRequest(includeCursor=True),
                ("grim", "-c", "-t", "png", "-l", "1", "-"),
            ),
        ]:
            screen.capture(request)
            self.assertEqual(self.programs.runs[-1].arguments, expected)

    def test_waylandJPEG(self) -> None:
        """A JPEG is made of the PNG that C{grim} wrote."""
        capturing = self.wayland().capture(PictureRequest("jpeg", 7))
        self.programs.runs[0].end(
            encode(Image.new("RGB", (30, 20), (255, 0, 0)), PictureRequest()).data
        )
        picture = self.successResultOf(capturing)
        decoded = Image.open(io.BytesIO(picture.data))
        self.assertEqual((picture.format, decoded.format), ("jpeg", "JPEG"))
        self.assertEqual(decoded.size, (30, 20))

    def test_waylandBrokenPNG(self) -> None:
        """A PNG that cannot be read fails as the display does."""
        capturing = self.wayland().capture(PictureRequest("jpeg", 7))
        self.programs.runs[0].end(png())
        self.assertIn("broken", str(self.failureResultOf(capturing, NoDisplay).value))

    def test_picture(self) -> None:
        """What the program writes is the picture."""
        capturing = self.x11().capture(PictureRequest())
        self.programs.runs[0].end(png(b"abc"))
        self.assertEqual(self.successResultOf(capturing), Picture(png(b"abc"), "png"))

    def test_failure(self) -> None:
        """What the program complains of is the reason, in one line."""
        capturing = self.x11().capture(PictureRequest())
        self.programs.runs[0].end(exitCode=1, errors=b"\n no such \x1b[31mserver\nmore\n")
        error = self.failureResultOf(capturing, NoDisplay).value
        self.assertEqual(
            str(error),
            "the X11 capture took no picture of the x11 display :5: no such [31mserver",
        )

    def test_silentFailure(self) -> None:
        """A program that says nothing is told by its exit code."""
        capturing = self.x11().capture(PictureRequest())
        self.programs.runs[0].end(exitCode=3)
        self.assertIn("exit code 3", str(self.failureResultOf(capturing, NoDisplay).value))

    def test_noPicture(self) -> None:
        """Success with something else than a picture is a failure."""
        for output in [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n"]:
            capturing = self.x11().capture(PictureRequest())
            self.programs.runs[-1].end(output)
            self.assertIn("no picture", str(self.failureResultOf(capturing, NoDisplay).value))

    def test_timeout(self) -> None:
        """A display that hangs is told apart."""
        self.programs.answers = lambda _: ProgramTimedOut("too long")
        self.failureResultOf(self.x11().capture(PictureRequest()), ProgramTimedOut)

    def test_waylandSocketMissing(self) -> None:
        """Without its socket nothing is run."""
        screen = ProgramScreen(
            self.programs, WaylandDisplay("/nowhere/w"), python="python3", inThread=atOnce
        )
        error = self.failureResultOf(screen.capture(PictureRequest()), NoDisplay).value
        self.assertIn("/nowhere/w", str(error))
        self.assertEqual(self.programs.runs, [])

    def test_programMissing(self) -> None:
        """A missing program is told apart, and shown among the tools."""
        screen = self.wayland()
        self.assertEqual(screen.tools(), {"grim": "/usr/bin/grim"})
        self.programs.installed.remove("grim")
        self.failureResultOf(screen.capture(PictureRequest()), ProgramMissing)
        self.assertEqual(screen.tools(), {"grim": None})
        self.assertEqual(self.x11().tools(), {"python": "/usr/bin/python3"})


class NoScreenTests(SynchronousTestCase):
    """A desktop without a display."""

    def test_reason(self) -> None:
        """Every picture fails with the reason."""
        screen = screenOf(
            NoDisplayFound("none here"), FakePrograms(), python="python3", inThread=atOnce
        )
        error = self.failureResultOf(screen.capture(PictureRequest()), NoDisplay).value
        self.assertEqual(str(error), "none here")


class SharedScreenTests(SynchronousTestCase):
    """One capture at a time."""

    def setUp(self) -> None:
        self.programs = FakePrograms()
        self.screen = SharedScreen(
            ProgramScreen(self.programs, X11, python="python3", inThread=atOnce)
        )

    def test_coalesced(self) -> None:
        """
        Twenty requests during a capture cost one more: they share a picture
        that was taken after they asked.
        """
        first = self.screen.capture(PictureRequest())
        others = [self.screen.capture(PictureRequest(quality=q)) for q in range(1, 21)]
        self.assertEqual(len(self.programs.runs), 1)
        self.programs.runs[0].end(png(b"1"))
        self.assertEqual(self.successResultOf(first).data, png(b"1"))
        self.assertEqual(len(self.programs.runs), 2)
        self.programs.runs[1].end(png(b"2"))
        self.assertEqual({self.successResultOf(each).data for each in others}, {png(b"2")})

    def test_differentPicturesAreNotShared(self) -> None:
        """A JPEG is never given to who asked for a PNG, nor another quality."""
        requests = [
            PictureRequest("jpeg", 10),
            PictureRequest("jpeg", 20),
            PictureRequest("png"),
            PictureRequest("png", includeCursor=True),
        ]
        captures: list[Deferred[Picture]] = [self.screen.capture(each) for each in requests]
        for _ in requests:
            run = self.programs.runs[-1]
            jpeg = b"\xff\xd8\xff" + run.arguments[-1].encode()
            run.end(png() if "png" in run.arguments else jpeg)
        pictures = [self.successResultOf(each) for each in captures]
        self.assertEqual([each.format for each in pictures], ["jpeg", "jpeg", "png", "png"])
        self.assertEqual([each.data[3:] for each in pictures[:2]], [b"10", b"20"])
        self.assertEqual(len(self.programs.runs), 4)
