"""Lines, columns, times and sizes as people read them."""

from __future__ import annotations

import io
import re
from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.cli.edge import plain
from helix_revdial.cli.images import imageKind
from helix_revdial.cli.output import Output, cell, columnLines, duration, moment, size
from tests.cli.fake import JPEG, PNG, WEBP, Terminal


class OutputTests(SynchronousTestCase):
    """Values as text."""

    def test_plain(self) -> None:
        """One line, nothing that drives a terminal, bounded."""
        self.assertEqual(plain("a\x1b[31m\r\n b\u202ec\x9b"), "a [31m b c")
        self.assertEqual(len(plain("x" * 10_000)), 500)
        self.assertEqual(plain(None), "None")

    def test_columns(self) -> None:
        """Numbers to the right, the rest to the left, whole values, no trailing space."""
        self.assertEqual(
            columnLines(("NAME", "COUNT"), [("long name", 5), ("x", 12_000), (None, None)]),
            ["NAME        COUNT", "long name       5", "x          12,000", "-               -"],
        )
        self.assertEqual(columnLines(("A", "B"), []), ["A  B"])

    def test_tableAtATerminal(self) -> None:
        """The first column is whole, empty ones are left out; without room rows are lists."""
        name = "ses_" + "0" * 26
        columns, row = (
            ("SESSION", "STATUS", "REPO", "NAME"),
            (name, "running", None, "a [b] c " * 9),
        )
        for width, expected in ((60, False), (40, True), (8, True), (1, True)):
            out = Terminal(io.BytesIO(), encoding="utf-8", write_through=True)
            with patch.dict("os.environ", {"COLUMNS": str(width), "TERM": "xterm"}):
                Output(out).table(columns, [row, row])
            drawn = re.sub(r"\x1b\[[0-9;]*m", "", out.buffer.getvalue().decode())  # type: ignore[attr-defined]
            self.assertNotIn("REPO", drawn)
            self.assertEqual("─" not in drawn, expected, drawn)
            self.assertLessEqual(max(map(len, drawn.splitlines())), width)
            if width > 30:
                self.assertEqual(drawn.count(name), 2, drawn)
                self.assertIn("a [b] c", drawn)

    def test_cells(self) -> None:
        """Lists are joined; what is empty is a dash."""
        self.assertEqual(
            [cell(v) for v in (["a", "b"], [], "", None, 1.25, True, "a\nb")],
            ["a,b", "-", "-", "-", "1.2", "True", "a b"],
        )

    def test_moments(self) -> None:
        """Epoch seconds and RFC 3339 give UTC; other text stays."""
        self.assertEqual(moment(0), "1970-01-01 00:00:00Z")
        self.assertEqual(moment("2026-11-21T09:00:00+02:00"), "2026-11-21 07:00:00Z")
        self.assertEqual(moment("2026-11-21T07:00:00"), "2026-11-21 07:00:00Z")
        self.assertEqual((moment("soon"), moment(None), moment("")), ("soon", None, None))

    def test_durations(self) -> None:
        """The two largest units; a clock that disagrees gives 0."""
        self.assertEqual(
            [duration(s) for s in (None, -5, 0.25, 61, 3600, 90_061)],
            [None, "0.0s", "0.2s", "1m 1s", "1h 0m", "1d 1h"],
        )

    def test_sizes(self) -> None:
        """Units of 1,024."""
        self.assertEqual(
            [size(n) for n in (None, 0, 1023, 2048, 5 * 2**30, 3 * 2**40)],
            [None, "0 B", "1023 B", "2.0 KiB", "5.0 GiB", "3.0 TiB"],
        )


class ImageTests(SynchronousTestCase):
    """Kinds of picture."""

    def test_kinds(self) -> None:
        """The first bytes decide; every shorter beginning is no picture."""
        for data, kind, needed in ((PNG, "png", 8), (JPEG, "jpeg", 3), (WEBP, "webp", 12)):
            self.assertEqual(imageKind(data), kind)
            for cut in range(needed):
                self.assertIsNone(imageKind(data[:cut]))
        self.assertIsNone(imageKind(b"GIF89a"))
        self.assertIsNone(imageKind(b"RIFF\0\0\0\0WAVE"))
