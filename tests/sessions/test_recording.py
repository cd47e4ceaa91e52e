"""Tests for L{helix_revdial.sessions.recording}."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.sessions.events import Event
from helix_revdial.sessions.recording import Recording


def log(at: float, message: str, **more: Any) -> Event:
    return Event("ses_1", 1, at, "log", {"level": "info", "message": message, **more})


class RecordingTests(SynchronousTestCase):
    def test_head(self) -> None:
        """The first line says what it is, when it began and how large the terminal was."""
        head = json.loads(Recording("a title", 1000.7, maxBytes=100).head())
        self.assertEqual((head["version"], head["timestamp"]), (2, 1000))
        self.assertEqual((head["width"], head["height"]), (120, 40))
        self.assertEqual(head["title"], "a title")

    def test_lines(self) -> None:
        """Lines end as a terminal's do; what the host says is faint; moments are markers."""
        made = Recording("x", 1000, maxBytes=10_000)
        added = made.add(
            [
                log(1000.25, "one\ntwo"),
                log(1001, "host", stream="system"),
                Event("ses_1", 3, 1002, "timeline.sessionMoment", {"label": "here"}),
            ]
        )
        self.assertEqual(
            [json.loads(line) for line in added.splitlines()],
            [
                [0.25, "o", "one\r\ntwo\r\n"],
                [1.0, "o", "\x1b[2mhost\x1b[0m\r\n"],
                [2.0, "m", "here"],
            ],
        )

    @settings(deadline=None, max_examples=50)
    @given(
        st.lists(st.tuples(st.floats(0, 1e9), st.text()), max_size=20),
        st.integers(0, 20),
    )
    def test_anything(self, events: list[tuple[float, str]], cut: int) -> None:
        """Whatever is said, and whatever clocks do: a line each, times that never go back."""
        made = Recording("x", 1e6, maxBytes=10**9)
        given_ = [log(at, text) for at, text in events]
        lines = (made.add(given_[:cut]) + made.add(given_[cut:])).split(b"\n")[:-1]
        self.assertEqual(len(lines), len(events))
        times = [json.loads(line)[0] for line in lines]
        self.assertEqual(times, sorted(times))
        self.assertTrue(all(time >= 0 for time in times))

    def test_bounded(self) -> None:
        """It says that it is cut, once, and takes nothing more."""
        made = Recording("x", 1000, maxBytes=100)
        first = made.add([log(1000, "x" * 60), log(1001, "y" * 60), log(1002, "z")])
        self.assertTrue(made.full)
        lines = [json.loads(line) for line in first.splitlines()]
        self.assertEqual(len(lines), 2)
        self.assertIn("left out", lines[1][2])
        self.assertEqual(made.add([log(1003, "more")]), b"")
