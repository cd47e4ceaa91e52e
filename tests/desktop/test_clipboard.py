"""Tests for L{helix_revdial.desktop.clipboard}."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.desktop.clipboard import (
    EMPTY,
    HOLDER_GRACE,
    MAX_CONTENT,
    READ_DEADLINE,
    WRITE_DEADLINE,
    Content,
    MemoryClipboard,
    ProgramClipboard,
    clipboardOf,
)
from helix_revdial.desktop.display import NoDisplayFound, X11Display
from helix_revdial.desktop.errors import NoDisplay
from helix_revdial.programs import Finished, OutputTooLarge, ProgramTimedOut
from tests.desktop.fakes import FakePrograms, png

NOTHING = Finished(1, b"", b"Error: target TARGETS not available\n")


class ProgramClipboardTests(SynchronousTestCase):
    """The clipboard of an X display, with programs that a test answers for."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.programs = FakePrograms()
        self.clipboard = ProgramClipboard(self.programs, X11Display(":5"), self.clock)

    def offer(self, contents: dict[str, bytes]) -> None:
        """Let the clipboard hold these types."""

        def answer(arguments: tuple[str, ...]) -> Finished:
            wanted = arguments[-1]
            if wanted == "TARGETS" and contents:
                return Finished(0, "\n".join(["TARGETS", *contents]).encode() + b"\n", b"")
            if wanted in contents:
                return Finished(0, contents[wanted], b"")
            return NOTHING

        self.programs.answers = answer

    def read(self) -> Content:
        return self.successResultOf(self.clipboard.read())

    def test_types(self) -> None:
        """Text goes before images, UTF-8 before Latin-1; other things are nothing."""
        for contents, expected in [
            ({}, EMPTY),
            ({"UTF8_STRING": "é".encode()}, Content("text", "é".encode())),
            ({"STRING": b"\xe9"}, Content("text", "é".encode())),
            ({"STRING": b"?", "UTF8_STRING": "日".encode()}, Content("text", "日".encode())),
            ({"image/png": png()}, Content("image", png())),
            ({"image/png": png(), "text/plain": b"cells"}, Content("text", b"cells")),
            ({"text/html": b"<b>"}, EMPTY),
            ({"UTF8_STRING": b"\xff"}, Content("text", "\ufffd".encode())),
        ]:
            self.offer(contents)
            self.assertEqual(self.read(), expected, contents)

    def test_goneBetweenTheQuestions(self) -> None:
        """An owner that leaves after it named its types leaves nothing."""
        self.programs.answers = lambda arguments: (
            Finished(0, b"UTF8_STRING\n", b"") if arguments[-1] == "TARGETS" else NOTHING
        )
        self.assertEqual(self.read(), EMPTY)

    def test_failures(self) -> None:
        """A display that fails, an owner that hangs, and too much are told apart."""
        answers: list[tuple[Finished | Exception, type[Exception], str]] = [
            (Finished(1, b"", b"Error: Can't open display: :5\n"), NoDisplay, "Can't open display"),
            (ProgramTimedOut("xclip"), ProgramTimedOut, "did not hand it over"),
            (OutputTooLarge("xclip"), OutputTooLarge, "16 MiB"),
        ]
        for answer, kind, words in answers:

            def give(_: object, given: Finished | Exception = answer) -> Finished | Exception:
                return given

            self.programs.answers = give
            error = self.failureResultOf(self.clipboard.read(), kind).value
            self.assertIn(words, str(error))

    def test_readsAreShared(self) -> None:
        """Ten reads during one cost one more."""
        reads: list[Deferred[Content]] = [self.clipboard.read() for _ in range(11)]
        self.assertEqual(len(self.programs.runs), 1)
        self.programs.runs[0].result.callback(NOTHING)
        self.assertEqual(self.successResultOf(reads[0]), EMPTY)
        self.assertEqual(len(self.programs.runs), 2)
        self.programs.runs[1].result.callback(NOTHING)
        self.assertEqual({self.successResultOf(each) for each in reads[1:]}, {EMPTY})
        self.assertEqual({run.deadline for run in self.programs.runs}, {READ_DEADLINE})

    def held(self) -> Callable[[], None]:
        """Let the clipboard hold what the newest holder was given."""

        def answer(_: tuple[str, ...]) -> Finished:
            return Finished(0, self.programs.started[-1].standardInput, b"")

        def switch() -> None:
            self.programs.answers = answer

        return switch

    def test_writeWaitsUntilOthersCanRead(self) -> None:
        """A write is done when it can be read back, however long the program takes."""
        self.programs.answers = lambda _: NOTHING
        writing = self.clipboard.write(Content("text", b"abc"))
        self.clock.pump([0.1] * 10)
        self.assertNoResult(writing)
        self.held()()
        self.clock.advance(0.3)
        self.assertIsNone(self.successResultOf(writing))
        (holder,) = self.programs.started
        self.assertEqual(holder.arguments[-2:], ("-t", "UTF8_STRING"))
        self.assertIn("-quiet", holder.arguments)
        self.assertTrue(holder.alive())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_writeIsNotFooledByWhatWasThere(self) -> None:
        """What another program holds is no proof of ours."""
        self.offer({"UTF8_STRING": b"old"})
        writing = self.clipboard.write(Content("text", b"new"))
        self.clock.advance(0.5)
        self.assertNoResult(writing)

    def test_imageType(self) -> None:
        """An image is offered as a PNG."""
        self.held()()
        self.successResultOf(self.clipboard.write(Content("image", png())))
        self.assertEqual(self.programs.started[0].arguments[-1], "image/png")

    def test_writeTimesOut(self) -> None:
        """A holder that never takes the clipboard is killed."""
        self.programs.answers = lambda _: NOTHING
        writing = self.clipboard.write(Content("text", b"abc"))
        self.clock.pump([0.25] * int(WRITE_DEADLINE * 4 + 2))
        self.failureResultOf(writing, ProgramTimedOut)
        self.assertTrue(self.programs.started[0].killed)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_holderFails(self) -> None:
        """What a holder complains of is the reason."""
        self.programs.answers = lambda _: NOTHING
        writing = self.clipboard.write(Content("text", b"abc"))
        self.programs.started[0].end(1, b"no such display\n")
        self.clock.advance(0.1)
        error = self.failureResultOf(writing, NoDisplay).value
        self.assertIn("no such display", str(error))

    def test_supersededAtOnce(self) -> None:
        """Somebody who copies right after us ends our holder: the write took place."""
        self.programs.answers = lambda _: NOTHING
        writing = self.clipboard.write(Content("text", b"abc"))
        self.programs.started[0].end(0)
        self.clock.advance(0.1)
        self.assertIsNone(self.successResultOf(writing))

    def test_formerHolder(self) -> None:
        """The holder before is waited for, and killed when it stays."""
        self.held()()
        self.successResultOf(self.clipboard.write(Content("text", b"1")))
        second = self.clipboard.write(Content("text", b"2"))
        first = self.programs.started[0]
        self.assertNoResult(second)
        self.assertFalse(first.killed)
        self.clock.advance(HOLDER_GRACE)
        self.successResultOf(second)
        self.assertTrue(first.killed)
        self.assertTrue(self.programs.started[1].alive())

    def test_formerHolderEnds(self) -> None:
        """A holder that lost the clipboard and ends is not killed."""
        self.held()()
        self.successResultOf(self.clipboard.write(Content("text", b"1")))
        second = self.clipboard.write(Content("text", b"2"))
        self.programs.started[0].end()
        self.successResultOf(second)
        self.assertFalse(self.programs.started[0].killed)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop(self) -> None:
        """The holder goes with the service."""
        self.held()()
        self.successResultOf(self.clipboard.write(Content("text", b"1")))
        self.successResultOf(self.clipboard.stop())
        self.assertTrue(self.programs.started[0].killed)

    def test_limit(self) -> None:
        """More than the limit is refused before a program is started."""
        self.assertRaises(ValueError, self.clipboard.write, Content("text", bytes(MAX_CONTENT + 1)))
        self.assertEqual(self.programs.started, [])


class OtherClipboardsTests(SynchronousTestCase):
    """Clipboards without a display."""

    def test_memory(self) -> None:
        """What was written is read, until the stop."""
        clipboard = MemoryClipboard()
        self.assertEqual(self.successResultOf(clipboard.read()), EMPTY)
        self.successResultOf(clipboard.write(Content("text", b"a")))
        self.assertEqual(self.successResultOf(clipboard.read()), Content("text", b"a"))
        self.successResultOf(clipboard.stop())
        self.assertEqual(self.successResultOf(clipboard.read()), EMPTY)

    def test_none(self) -> None:
        """Without a display everything fails with the reason."""
        clipboard = clipboardOf(NoDisplayFound("none here"), FakePrograms(), Clock())
        for asked in [clipboard.read(), clipboard.write(EMPTY)]:
            self.assertEqual(str(self.failureResultOf(asked, NoDisplay).value), "none here")
        self.successResultOf(clipboard.stop())

    def test_contentIsNotShown(self) -> None:
        """A log line cannot hold what was copied."""
        self.assertNotIn("hunter2", repr(Content("text", b"hunter2")))
