"""How a session's events are shown."""

from __future__ import annotations

import io
import json
import re
from typing import Any
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.cli.event_reader import SessionEvent
from helix_revdial.cli.output import Output, harmless
from helix_revdial.cli.session_view import (
    KEPT_LINES,
    JSONView,
    LineView,
    LiveView,
    View,
    told,
    viewFor,
)
from tests.cli.events import ID, STORY, event
from tests.cli.fake import Terminal

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\b\x7f\u202egnp\u2066\x00"


class Screen:
    """An output, at a terminal or not, and what was written to it."""

    def __init__(self, terminal: bool) -> None:
        self.raw = io.BytesIO()
        kind = Terminal if terminal else io.TextIOWrapper
        self.errors = io.StringIO()
        self.output = Output(
            kind(self.raw, encoding="utf-8", errors="replace", write_through=True), self.errors
        )

    @property
    def text(self) -> str:
        """What was written."""
        return self.raw.getvalue().decode()


def events(*raws: dict[str, Any]) -> list[SessionEvent]:
    """As a reader gives them."""
    return [SessionEvent(raw["type"], raw["seq"], raw) for raw in raws]


class HarmlessTests(SynchronousTestCase):
    """What a terminal is given."""

    @settings(deadline=None, max_examples=200)
    @given(st.text(max_size=50))
    def test_nothingDrivesATerminal(self, text: str) -> None:
        """Whatever the text, no control character is left but line feeds."""
        left = harmless(text)
        self.assertIsNone(
            re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", left)
        )
        self.assertEqual(harmless(left), left)

    def test_shown(self) -> None:
        """What was taken away can be seen; ordinary text is as it was."""
        self.assertEqual(harmless("\x1b[1m a\tb\r\nc\x7f\x9b"), "\u241b[1m a    b\nc\u2421<U+009B>")
        self.assertEqual(harmless("naïve 漢字 😀"), "naïve 漢字 😀")

    def test_json(self) -> None:
        """JSON at a terminal is still JSON, and harmless."""
        screen = Screen(terminal=True)
        screen.output.json({"a": EVIL, "b": ["ü"]})
        self.assertEqual(json.loads(screen.text), {"a": EVIL, "b": ["ü"]})
        for mark in "\x1b\x07\x9b\x7f\u202e\u2066":
            self.assertNotIn(mark, screen.text)


class LineViewTests(SynchronousTestCase):
    """Events as lines."""

    def shown(self, view: View, *raws: dict[str, Any]) -> None:
        """Show these."""
        for one in events(*raws):
            view.event(one)

    def test_story(self) -> None:
        """A line for each, its time first."""
        screen = Screen(terminal=False)
        self.shown(LineView(screen.output), *STORY)
        self.assertEqual(
            screen.text.splitlines(),
            [
                "2026-01-02T03:04:01Z status queued",
                "2026-01-02T03:04:02Z status running",
                "2026-01-02T03:04:03Z info  Reading",
                "2026-01-02T03:04:04Z error Oh",
                "2026-01-02T03:04:05Z moment half-way (snapshot snap_1)",
                f"2026-01-02T03:04:06Z delivery patch (2.0 KiB) helix session patch {ID}",
                "2026-01-02T03:04:07Z status completed (exit code 0)",
            ],
        )

    def test_logs(self) -> None:
        """Of the log only, from a level on, or the messages alone."""
        for flags, expected in (
            ({"logsOnly": True, "raw": True}, "Reading\nOh\n"),
            ({"logsOnly": True, "raw": True, "level": "warn"}, "Oh\n"),
            (
                {"logsOnly": True, "prefix": "x "},
                "x 2026-01-02T03:04:03Z info  Reading\nx 2026-01-02T03:04:04Z error Oh\n",
            ),
        ):
            screen = Screen(terminal=False)
            more: dict[str, Any] = flags
            self.shown(LineView(screen.output, **more), *STORY)
            self.assertEqual(screen.text, expected)

    def test_rawIntoAPipeOnly(self) -> None:
        """A pipe gets a message as it is; a terminal is not driven by it."""
        log = event(1, "log", level="info", message=f"a\n{EVIL}")
        piped, seen = Screen(terminal=False), Screen(terminal=True)
        self.shown(LineView(piped.output, raw=True), log)
        self.assertEqual(piped.text, f"a\n{EVIL}\n")
        for raw in (True, False):
            self.shown(LineView(seen.output, raw=raw), log)
        for mark in "\x1b\x07\x9b\r\b\x7f\u202e\u2066\x00":
            self.assertNotIn(mark, seen.text)
        self.assertIn("owned", seen.text)

    def test_everythingElseIsOneLine(self) -> None:
        """Events of all types, the unknown too, are one harmless line wherever they go."""
        for kind in (
            "moment",
            "delivery",
            "resync",
            "timeline.fsSnapshot.created",
            "timeline.sessionMoment",
            "x\x1by",
        ):
            one = events(
                event(1, kind, note=EVIL, label=EVIL, url=EVIL, provider="a\nb", firstAvailable=3)
            )[0]
            self.assertTrue(told(one).isprintable(), repr(told(one)))

    def test_json(self) -> None:
        """The server's own object, on one line; what is wrong meanwhile is not among them."""
        screen = Screen(terminal=False)
        view = JSONView(screen.output)
        self.shown(view, *STORY)
        view.trouble("away")
        view.back()
        self.assertEqual([json.loads(line) for line in screen.text.splitlines()], list(STORY))
        self.assertEqual(screen.errors.getvalue().count("\n"), 2)

    def test_whichView(self) -> None:
        """A picture only where it can be redrawn, and nobody said otherwise."""
        for terminal, noColor, asJSON, environment, expected in (
            (True, False, False, {"TERM": "xterm"}, LiveView),
            (True, False, False, {"TERM": "dumb"}, LineView),
            (True, False, False, {}, LineView),
            (True, False, False, {"TERM": "xterm", "NO_COLOR": "1"}, LineView),
            (True, True, False, {"TERM": "xterm"}, LineView),
            (True, False, True, {"TERM": "xterm"}, JSONView),
            (False, False, False, {"TERM": "xterm"}, LineView),
        ):
            output = Screen(terminal).output
            output.noColor = noColor
            with patch.dict("os.environ", environment, clear=True):
                view = viewFor(output, Clock(), asJSON=asJSON)
            self.assertIs(type(view), expected)


class LiveViewTests(SynchronousTestCase):
    """A picture that is redrawn."""

    def setUp(self) -> None:
        """A terminal."""
        environment = {"TERM": "xterm", "COLUMNS": "100", "LINES": "12"}
        patching = patch.dict("os.environ", environment)
        patching.start()
        self.addCleanup(patching.stop)
        self.screen = Screen(terminal=True)
        self.clock = Clock()
        self.view = LiveView(self.screen.output, self.clock)
        self.addCleanup(self.view.end)

    def test_drawsSeldom(self) -> None:
        """Many events in a moment are one drawing, and no timer is left at the end."""
        self.view.begin({"id": ID, "status": "queued", "agent": {"type": "mock"}})
        before = len(self.screen.raw.getvalue())
        for one in events(*STORY):
            self.view.event(one)
        self.assertEqual(len(self.screen.raw.getvalue()), before)
        self.clock.advance(0.1)
        drawn = self.screen.text[before:]
        for part in ("completed", "exit code 0", "6.0s", "Reading", "Oh", "half-way", "2.0 KiB"):
            self.assertIn(part, drawn)
        self.view.tick()
        self.view.end()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertTrue(self.screen.text.endswith("\x1b[?25h"))

    def test_trouble(self) -> None:
        """No connection is shown while there is none."""
        self.view.begin({"id": ID, "status": "running"})
        self.view.trouble("nothing listens")
        self.clock.advance(0.1)
        self.assertIn("nothing listens; trying again", self.screen.text)
        size = len(self.screen.text)
        self.view.back()
        self.clock.advance(0.1)
        self.assertNotIn("nothing listens", self.screen.text[size:])

    def test_limits(self) -> None:
        """Of a long log the end is kept, as much as there is room for; nothing drives it."""
        self.view.begin({"id": ID, "status": "running"})
        for number in range(KEPT_LINES * 3):
            message = f"{EVIL} [bold]line {number}[/bold]"
            self.view.event(events(event(1, "log", level="info", message=message))[0])
        size = len(self.screen.text)
        self.clock.advance(0.1)
        drawn = self.screen.text[size:]
        self.assertIn(f"[bold]line {KEPT_LINES * 3 - 1}", drawn)
        self.assertLess(drawn.count("\n"), 12)
        for mark in ("\x1b]", "\x9b", "\x07", "\u202e", "\b", "\x1b[2J"):
            self.assertNotIn(mark, drawn)
