# -*- test-case-name: tests.desktop.test_clipboard -*-
"""
The clipboard of a display, through the programs that desktops use.

On X11 and on Wayland what is copied stays with the program that copied it,
until another one copies.  So what we set is held by a program of ours,
C{xclip -quiet} or C{wl-copy --foreground}, which stays our child (neither
is let to fork into the background, where nobody would end it), ends by
itself when somebody else copies, and is ended with the service.

Invariants:

  - one operation at a time; equal reads share one;
  - L{ProgramClipboard.write} fires when another program can read what was
    written: neither program says when it holds the clipboard, so it is read
    back until it does;
  - at most one holder outlives an operation.

Text is UTF-8, images are PNG.  Of a clipboard that has both (a spreadsheet's
cells), text is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from typing import Protocol as Shape

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from helix_revdial.desktop.display import NoDisplayFound, WaylandDisplay, X11Display
from helix_revdial.desktop.errors import NoDisplay
from helix_revdial.desktop.sharing import SharedRuns
from helix_revdial.programs import IPrograms, IRunning, OutputTooLarge, ProgramTimedOut

MAX_CONTENT = 16 * 1024 * 1024
"""Bytes of clipboard content, read or written."""

READ_DEADLINE = 5.0
"""How long the program that holds the clipboard may take to hand it over, in seconds."""

WRITE_DEADLINE = 5.0
"""How long until what was written can be read back, in seconds."""

HOLDER_GRACE = 1.0
"""How long a holder may take to end after it lost the clipboard, in seconds."""

_FIRST_DELAY = 0.01
_LONGEST_DELAY = 0.25

_MAX_TYPES = 64 * 1024
"""Bytes of the list of types that a clipboard offers."""

PNG_TYPE = "image/png"


@dataclass(frozen=True, slots=True)
class Content:
    """
    What a clipboard holds.

    @ivar kind: C{text} or C{image}.
    @ivar data: UTF-8 text, or a PNG.  No bytes of text: an empty clipboard.
    """

    kind: Literal["text", "image"]
    data: bytes

    def __repr__(self) -> str:
        """Without the data: clipboards hold passwords."""
        return f"<Content {self.kind}, {len(self.data)} bytes>"


EMPTY = Content("text", b"")


class IClipboard(Shape):
    """A clipboard."""

    def read(self) -> Deferred[Content]:
        """What it holds; fails with L{DesktopError}."""

    def write(self, content: Content) -> Deferred[None]:
        """Replace what it holds; fails with L{DesktopError}."""

    def tools(self) -> Mapping[str, str | None]:
        """The programs behind it, and where they are; L{None} where missing."""

    def stop(self) -> Deferred[None]:
        """Let go of what was written."""


@dataclass(frozen=True, slots=True)
class ClipboardTool:
    """
    How the programs of one kind of display are called.

    @ivar programs: Their names.
    @ivar listTypes: Prints the types of what is there, one a line.
    @ivar read: Prints the content; the type is added.
    @ivar hold: Reads the content and holds it, without leaving for the
        background; the type is added.
    @ivar clear: Empties the clipboard; L{None} where no such program exists
        and holding nothing does the same.
    @ivar textTypes: Types of text, the best first, and how each is encoded.
    @ivar empty: What a program says on standard error, in lower case, when
        nothing (or nothing of that type) is there.
    """

    programs: tuple[str, ...]
    listTypes: tuple[str, ...]
    read: tuple[str, ...]
    hold: tuple[str, ...]
    clear: tuple[str, ...] | None
    textTypes: tuple[tuple[str, str], ...]
    empty: tuple[bytes, ...]


XCLIP = ClipboardTool(
    programs=("xclip",),
    listTypes=("xclip", "-selection", "clipboard", "-o", "-t", "TARGETS"),
    read=("xclip", "-selection", "clipboard", "-o", "-t"),
    hold=("xclip", "-selection", "clipboard", "-i", "-quiet", "-t"),
    clear=None,
    textTypes=(
        ("UTF8_STRING", "utf-8"),
        ("text/plain;charset=utf-8", "utf-8"),
        ("text/plain", "utf-8"),
        # ICCCM section 2.6.2: Latin-1 and two control characters.
        ("STRING", "latin-1"),
    ),
    empty=(b"not available",),
)

WL_CLIPBOARD = ClipboardTool(
    programs=("wl-copy", "wl-paste"),
    listTypes=("wl-paste", "--list-types"),
    read=("wl-paste", "--no-newline", "--type"),
    hold=("wl-copy", "--foreground", "--type"),
    clear=("wl-copy", "--clear"),
    textTypes=(
        ("text/plain;charset=utf-8", "utf-8"),
        ("UTF8_STRING", "utf-8"),
        ("text/plain", "utf-8"),
        ("STRING", "latin-1"),
    ),
    empty=(b"no selection", b"nothing is copied", b"no suitable type"),
)


class ProgramClipboard:
    """
    The clipboard of a real display.

    @param programs: Starts programs in the display's environment.
    @param display: The display.
    @param clock: Provides L{IReactorTime}.
    """

    _log = Logger()

    def __init__(
        self, programs: IPrograms, display: X11Display | WaylandDisplay, clock: IReactorTime
    ) -> None:
        self._programs = programs
        self._display = display
        self._clock = clock
        self._tool = XCLIP if isinstance(display, X11Display) else WL_CLIPBOARD
        self._runs: SharedRuns[Content] = SharedRuns("clipboard requests")
        self._holder: IRunning | None = None

    def tools(self) -> Mapping[str, str | None]:
        """The programs behind it, and where they are; L{None} where missing."""
        return {name: self._programs.find(name) for name in self._tool.programs}

    def read(self) -> Deferred[Content]:
        """
        What the clipboard holds.

        @return: L{EMPTY} for nothing, or nothing that is text or PNG.  Fails
            with L{NoDisplay}, L{ProgramTimedOut} (the program that copied
            does not hand it over), L{OutputTooLarge},
            L{helix_revdial.programs.ProgramMissing} or
            L{helix_revdial.programs.TooBusy}.
        """
        return self._runs.request("read", self._read)

    def write(self, content: Content) -> Deferred[None]:
        """
        Replace what the clipboard holds.

        @param content: At most L{MAX_CONTENT} bytes.
        @return: Fires when other programs can read it.  Fails as L{read} does.
        """
        if len(content.data) > MAX_CONTENT:
            raise ValueError("larger than a clipboard may be")
        # No two writes are the same: each has its place in the order.
        written = self._runs.request(object(), lambda: self._write(content))
        return written.addCallback(lambda _: None)

    async def _ask(self, command: Sequence[str], limit: int) -> bytes | None:
        """
        Ask a reading program.

        @return: What it printed, or L{None} when it says that nothing is there.
        """
        try:
            finished = await self._programs.run(command, outputLimit=limit, deadline=READ_DEADLINE)
        except ProgramTimedOut:
            raise ProgramTimedOut(
                "the program that holds the clipboard did not hand it over within"
                f" {READ_DEADLINE:g} seconds"
            ) from None
        except OutputTooLarge:
            raise OutputTooLarge(
                f"the clipboard holds more than the {MAX_CONTENT // 1024**2} MiB that can be read"
            ) from None
        if finished.exitCode == 0:
            return finished.output
        said = finished.errors.lower()
        if any(words in said for words in self._tool.empty):
            return None
        raise NoDisplay(
            f"{command[0]} could not use the clipboard of the {self._display.kind} display"
            f" {self._display.name}: {finished.complaint()}"
        )

    async def _read(self) -> Content:
        absent = self._display.absence()
        if absent is not None:
            raise NoDisplay(absent)
        listed = await self._ask(self._tool.listTypes, _MAX_TYPES)
        if listed is None:
            return EMPTY
        types = set(listed.decode("utf-8", "replace").splitlines())
        for name, encoding in self._tool.textTypes:
            if name in types:
                data = await self._ask((*self._tool.read, name), MAX_CONTENT)
                if data is None:
                    # It went away between the two questions.
                    return EMPTY
                return Content("text", data.decode(encoding, "replace").encode())
        if PNG_TYPE in types:
            data = await self._ask((*self._tool.read, PNG_TYPE), MAX_CONTENT)
            return EMPTY if data is None else Content("image", data)
        return EMPTY

    async def _write(self, content: Content) -> Content:
        absent = self._display.absence()
        if absent is not None:
            raise NoDisplay(absent)
        former = self._holder
        if not content.data and self._tool.clear is not None:
            await self._ask(self._tool.clear, _MAX_TYPES)
            self._holder = None
        else:
            self._holder = await self._hold(content)
        if former is not None:
            await self._end(former)
        return content

    async def _hold(self, content: Content) -> IRunning:
        """
        Start a holder, and wait until others can read from it.

        @return: The holder; already ended if somebody copied after us.
        """
        kind = PNG_TYPE if content.kind == "image" else self._tool.textTypes[0][0]
        holder = self._programs.start(
            (*self._tool.hold, kind), standardInput=content.data, outputLimit=_MAX_TYPES
        )
        try:
            until = self._clock.seconds() + WRITE_DEADLINE
            delay = _FIRST_DELAY
            while self._clock.seconds() < until:
                if not holder.alive():
                    finished = await holder.whenEnded()
                    if finished.exitCode == 0:
                        return holder
                    raise NoDisplay(
                        f"{self._tool.hold[0]} could not take the clipboard of the"
                        f" {self._display.kind} display {self._display.name}:"
                        f" {finished.complaint()}"
                    )
                readBack = await self._ask((*self._tool.read, kind), MAX_CONTENT)
                if readBack == content.data:
                    return holder
                await deferLater(self._clock, delay)
                delay = min(delay * 2, _LONGEST_DELAY)
            raise ProgramTimedOut(
                f"{self._tool.hold[0]} did not take the clipboard within {WRITE_DEADLINE:g} seconds"
            )
        except BaseException:
            holder.kill()
            raise

    async def _end(self, holder: IRunning) -> None:
        """
        Wait for a holder that lost the clipboard; kill it when it stays.

        Left to end by itself, wl-copy removes the file that it keeps the
        content in; killed it cannot.
        """
        if not holder.alive():
            return
        ended = holder.whenEnded()
        ended.addTimeout(HOLDER_GRACE, self._clock, onTimeoutCancel=lambda r, _: None)
        await ended
        holder.kill()

    async def _stop(self) -> None:
        self._runs.stop()
        holder, self._holder = self._holder, None
        if holder is None or not holder.alive():
            return
        if self._tool.clear is None:
            holder.kill()
            return
        try:
            await self._ask(self._tool.clear, _MAX_TYPES)
            await self._end(holder)
        except Exception as e:
            self._log.info("the clipboard could not be cleared: {reason}", reason=str(e))
            holder.kill()

    def stop(self) -> Deferred[None]:
        """
        Let go of what was written, and take nothing more.

        What another program copied since stays.

        @return: Fires when our holder has ended or was killed; never fails.
        """
        return Deferred.fromCoroutine(self._stop())


class MemoryClipboard:
    """A clipboard of nobody's desktop, beside the test card."""

    def __init__(self) -> None:
        self._content = EMPTY

    async def _read(self) -> Content:
        return self._content

    async def _write(self, content: Content) -> None:
        self._content = content

    def read(self) -> Deferred[Content]:
        """What was written last."""
        return Deferred.fromCoroutine(self._read())

    def write(self, content: Content) -> Deferred[None]:
        """Replace it."""
        return Deferred.fromCoroutine(self._write(content))

    def tools(self) -> Mapping[str, str | None]:
        """No programs."""
        return {}

    def stop(self) -> Deferred[None]:
        """Nothing to let go of."""
        return Deferred.fromCoroutine(self._write(EMPTY))


class NoClipboard:
    """
    The clipboard of a desktop that has none.

    @param reason: Why, and what to do.
    """

    def __init__(self, reason: str) -> None:
        self._reason = reason

    async def _refuse(self) -> Content:
        raise NoDisplay(self._reason)

    def read(self) -> Deferred[Content]:
        """Always fails with L{NoDisplay}."""
        return Deferred.fromCoroutine(self._refuse())

    def write(self, content: Content) -> Deferred[None]:
        """Always fails with L{NoDisplay}."""
        return Deferred.fromCoroutine(self._refuse()).addCallback(lambda _: None)

    def tools(self) -> Mapping[str, str | None]:
        """No programs."""
        return {}

    def stop(self) -> Deferred[None]:
        """Nothing to let go of."""
        nothing: Deferred[None] = Deferred()
        nothing.callback(None)
        return nothing


def clipboardOf(
    display: X11Display | WaylandDisplay | NoDisplayFound,
    programs: IPrograms,
    clock: IReactorTime,
) -> IClipboard:
    """The clipboard of a display."""
    if isinstance(display, NoDisplayFound):
        return NoClipboard(display.reason)
    return ProgramClipboard(programs, display, clock)
