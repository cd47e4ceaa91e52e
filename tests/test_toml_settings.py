"""Every value of a TOML file and its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.toml_settings import MAX_SIZE, TOMLUnusable, parseDocument, readDocument

TEXT = '''\
# A comment with = and [[runner]].
top = "a # b"

[defaults]
server = ["https://a", # one
          "https://b"]
"quoted key" = 'x'
limits.max_dials = 5

[[runner]]
key = "wolf-1"
targets = [
  { name = "api", address = "unix:///run/x" },
  { name = "ui", address = "127.0.0.1:1" },
  [ "x",

    "y" ],
]

[[runner]]
key = """
[[runner]]
key = "no"
"""
[runner.limits]
max_streams = 7
[[runner.deep]]
x = 1
'''


def paths(value: Any, place: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The place of every value."""
    found = [place] if place else []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += paths(inner, (*place, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            found += paths(inner, (*place, number))
    return found


class LinesTests(SynchronousTestCase):
    """L{parseDocument} knows where everything stands."""

    def test_lines(self) -> None:
        """Tables, arrays of tables, inline tables, elements, dotted and quoted keys."""
        document = parseDocument(TEXT, "f")
        for place, line in (
            (("top",), 2),
            (("defaults",), 4),
            (("defaults", "server"), 5),
            (("defaults", "server", 1), 6),
            (("defaults", "quoted key"), 7),
            (("defaults", "limits", "max_dials"), 8),
            (("runner", 0), 10),
            (("runner", 0, "targets", 0, "address"), 13),
            (("runner", 0, "targets", 1, "name"), 14),
            (("runner", 0, "targets", 2, 1), 17),
            (("runner", 1), 20),
            (("runner", 1, "key"), 21),
            (("runner", 1, "limits", "max_streams"), 26),
            (("runner", 1, "deep", 0, "x"), 28),
        ):
            self.assertEqual(document.where(*place), f"f, line {line}", place)
        self.assertEqual(document.where("runner", 0, "targets", 9), "f, line 12")
        self.assertEqual(document.where("nothing"), "f")

    def test_nothingIsMissed(self) -> None:
        """Each value that the parser finds has a line, with either kind of line end."""
        for text in (TEXT, TEXT.replace("\n", "\r\n")):
            document = parseDocument(text, "f")
            for place in paths(dict(document.values)):
                self.assertIn(place, document.lines)

    def test_unusable(self) -> None:
        """What cannot be read is refused in one line that names the file."""
        path = Path(self.mktemp())
        self.assertIn("no such file", str(self.assertRaises(TOMLUnusable, readDocument, path)))
        for content, words in (
            (b"key = \n", "line 1"),
            (b"\xff", "not UTF-8"),
            (b"x" * (MAX_SIZE + 1), "larger than"),
            (b"k = " + b"[" * 5000, "nested"),
        ):
            path.write_bytes(content)
            said = str(self.assertRaises(TOMLUnusable, readDocument, path))
            self.assertTrue(said.startswith(f"{path}: "), said)
            self.assertIn(words, said)
            self.assertNotIn("\n", said)

    @given(st.text(alphabet="[]{}=\"'#.,\n\\ab1 ", max_size=60))
    @settings(deadline=None, max_examples=300)
    def test_anyText(self, text: str) -> None:
        """The scan ends, on all that the parser takes."""
        try:
            document = parseDocument(text, "f")
        except TOMLUnusable:
            return
        for place in paths(dict(document.values)):
            self.assertIn(place, document.lines, text)
