# -*- test-case-name: tests.desktop.test_capture -*-
"""
Screenshots of a real display, taken by programs.

Owns which program takes the picture and with which arguments: C{grim} on
Wayland (compositors with wlr-screencopy, such as sway), on X11 a Python of
our own that uses Pillow (L{helix_revdial.desktop.x11_grab}).  C{grim} always
writes a PNG, as distributions build it without JPEG; a JPEG is made of that
in a thread.  One capture runs at a time; equal requests share it
(L{SharedRuns}).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Protocol as Shape

from twisted.internet.defer import Deferred

from helix_revdial.desktop import x11_grab
from helix_revdial.desktop.display import NoDisplayFound, WaylandDisplay, X11Display
from helix_revdial.desktop.encoding import InThread, encodeAgain
from helix_revdial.desktop.errors import NoDisplay
from helix_revdial.desktop.pictures import Picture, PictureRequest, looksLike
from helix_revdial.desktop.sharing import SharedRuns
from helix_revdial.programs import IPrograms

CAPTURE_DEADLINE = 10.0
"""How long one capture may take, in seconds."""

MAX_PICTURE = 64 * 1024 * 1024
"""Bytes of one encoded picture."""


class IScreen(Shape):
    """What can be looked at."""

    def capture(self, request: PictureRequest) -> Deferred[Picture]:
        """Take a picture; fails with L{DesktopError}."""

    def tools(self) -> Mapping[str, str | None]:
        """What takes the picture, and where it is; L{None} where missing."""


class NoScreen:
    """
    The screen of a desktop that has none.

    @param reason: Why, and what to do.
    """

    def __init__(self, reason: str) -> None:
        self._reason = reason

    async def _refuse(self) -> Picture:
        raise NoDisplay(self._reason)

    def capture(self, request: PictureRequest) -> Deferred[Picture]:
        """Always fails with L{NoDisplay}."""
        return Deferred.fromCoroutine(self._refuse())

    def tools(self) -> Mapping[str, str | None]:
        """Nothing takes pictures."""
        return {}


class ProgramScreen:
    """
    A display whose picture a program takes.

    @param programs: Starts programs in the display's environment.
    @param display: The display.
    @param python: The interpreter that runs the X11 capture.
    @param inThread: Runs a function outside the reactor's thread.
    """

    def __init__(
        self,
        programs: IPrograms,
        display: X11Display | WaylandDisplay,
        *,
        python: str,
        inThread: InThread,
    ) -> None:
        self._inThread = inThread
        self._programs = programs
        self._display = display
        self._python = python

    def tools(self) -> Mapping[str, str | None]:
        """What takes the picture, and where it is; L{None} where missing."""
        if isinstance(self._display, WaylandDisplay):
            return {"grim": self._programs.find("grim")}
        return {"python": self._programs.find(self._python)}

    def command(self, request: PictureRequest) -> Sequence[str]:
        """What writes this picture (on Wayland, as a PNG) to standard output."""
        if isinstance(self._display, X11Display):
            script = os.path.abspath(x11_grab.__file__)
            # -P: the script's own directory must not shadow other modules.
            wanted = (request.format, str(request.quality))
            return (self._python, "-P", script, self._display.name, *wanted)
        cursor = ["-c"] if request.includeCursor else []
        return ("grim", *cursor, "-t", "png", "-l", "1", "-")

    async def _capture(self, request: PictureRequest) -> Picture:
        absent = self._display.absence()
        if absent is not None:
            raise NoDisplay(absent)
        command = self.command(request)
        finished = await self._programs.run(
            command, outputLimit=MAX_PICTURE, deadline=CAPTURE_DEADLINE
        )
        name = "the X11 capture" if isinstance(self._display, X11Display) else command[0]
        where = f"the {self._display.kind} display {self._display.name}"
        if finished.exitCode != 0:
            raise NoDisplay(f"{name} took no picture of {where}: {finished.complaint()}")
        written = "png" if isinstance(self._display, WaylandDisplay) else request.format
        if not looksLike(finished.output, written):
            raise NoDisplay(f"{name} answered for {where} with something that is no picture")
        if written != request.format:
            return await self._inThread(lambda: encodeAgain(finished.output, request))
        return Picture(finished.output, request.format)

    def capture(self, request: PictureRequest) -> Deferred[Picture]:
        """
        Take a picture.

        @return: Fails with L{NoDisplay}, L{helix_revdial.programs.ProgramMissing},
            L{helix_revdial.programs.ProgramTimedOut} or
            L{helix_revdial.programs.OutputTooLarge}.
        """
        return Deferred.fromCoroutine(self._capture(request))


class SharedScreen:
    """
    A screen of which one picture is taken at a time.

    @param screen: Takes the pictures.
    """

    def __init__(self, screen: IScreen) -> None:
        self._screen = screen
        self._runs: SharedRuns[Picture] = SharedRuns("screenshots")

    def tools(self) -> Mapping[str, str | None]:
        """As the screen that is shared says."""
        return self._screen.tools()

    def capture(self, request: PictureRequest) -> Deferred[Picture]:
        """
        Take a picture, or share one that is about to be taken.

        @return: A picture taken after this call; fails as the screen does,
            and with L{helix_revdial.programs.TooBusy}.
        """
        # A PNG has no quality: two that differ in it only are the same.
        key = request
        if request.format == "png":
            key = PictureRequest("png", includeCursor=request.includeCursor)
        return self._runs.request(key, lambda: self._screen.capture(request))

    def stop(self) -> None:
        """Fail what waits, and take no more pictures."""
        self._runs.stop()


def screenOf(
    display: X11Display | WaylandDisplay | NoDisplayFound,
    programs: IPrograms,
    *,
    python: str,
    inThread: InThread,
) -> IScreen:
    """The screen of a display."""
    if isinstance(display, NoDisplayFound):
        return NoScreen(display.reason)
    return ProgramScreen(programs, display, python=python, inThread=inThread)
