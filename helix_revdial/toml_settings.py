# -*- test-case-name: tests.test_toml_settings -*-
"""
A TOML file whose every value knows its line.

The parser of the standard library says what a file holds and not where.  What is
wrong with a value is found later, by whoever reads it; so that he can name the
line, L{readDocument} scans the text once more, for places only.

Imports nothing of ours: the agent's and the executor's settings both stand on it.

Invariant: the scan never decides what a file means.  It runs on text that the
parser has accepted; a place that it does not find has the line of what holds it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

MAX_SIZE = 1024 * 1024
"""Bytes of a file of settings."""

Place = tuple[str | int, ...]
"""Where a value is: keys, and the numbers of elements from 0."""


class TOMLUnusable(Exception):
    """The file cannot be read; the text names it and says why."""


@dataclass(frozen=True)
class Document:
    """
    A file that was read.

    @ivar path: What the file is called.
    @ivar values: What it holds.
    @ivar lines: The line of each value, by its place.
    """

    path: str
    values: Mapping[str, Any]
    lines: Mapping[Place, int] = field(repr=False)

    def where(self, *place: str | int) -> str:
        """
        The file and the line of a value, or of the nearest thing that holds it.
        """
        while place:
            if place in self.lines:
                return f"{self.path}, line {self.lines[place]}"
            place = place[:-1]
        return self.path


def readDocument(path: str | Path) -> Document:
    """
    Read a file.

    @raise TOMLUnusable: It cannot be read, or is no TOML.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_SIZE + 1)
    except OSError as error:
        raise TOMLUnusable(f"{path}: {(error.strerror or 'cannot be read').lower()}") from None
    if len(content) > MAX_SIZE:
        raise TOMLUnusable(f"{path}: larger than {MAX_SIZE} bytes")
    try:
        return parseDocument(content.decode("utf-8"), str(path))
    except UnicodeDecodeError:
        raise TOMLUnusable(f"{path}: not UTF-8 text") from None


def parseDocument(text: str, path: str) -> Document:
    """
    Read a text.

    @param path: What to call it.
    @raise TOMLUnusable: It is no TOML.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TOMLUnusable(f"{path}: {error}") from None
    except RecursionError:
        raise TOMLUnusable(f"{path}: nested too deep") from None
    # TOML takes CRLF for LF.
    scan = _Scan(text.replace("\r\n", "\n"))
    scan.document()
    return Document(path, MappingProxyType(values), MappingProxyType(scan.lines))


_SPACE = re.compile(r"[ \t]*")
_BLANK = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_KEY = re.compile(
    r"""[ \t]*(?:(?P<bare>[A-Za-z0-9_-]+)|"(?P<basic>(?:[^"\\\n]|\\.)*)"|'(?P<literal>[^'\n]*)')"""
    r"[ \t]*"
)
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}|' + r"'''.*?'{3,5}|" + r'"(?:[^"\\\n]|\\.)*"|' + r"'[^'\n]*'",
    re.DOTALL,
)
_PLAIN = re.compile(r"[^,\]}\n#]*")


class _Scan:
    """
    One walk over a text that is known to be TOML.

    @ivar lines: The lines of what was met.
    """

    def __init__(self, text: str) -> None:
        self.lines: dict[Place, int] = {}
        self._text = text
        self._at = 0
        self._counted = 0
        self._line = 1
        self._elements: dict[Place, int] = {}

    def document(self) -> None:
        table: Place = ()
        while True:
            self._skip(_BLANK)
            if self._at >= len(self._text):
                return
            if self._text[self._at] == "[":
                table = self._header()
            elif not self._pair(table):
                return

    def _header(self) -> Place:
        several = self._text.startswith("[[", self._at)
        self._at += 2 if several else 1
        place = self._inside(self._keys())
        self._at += 2 if several else 1
        if several:
            number = self._elements.get(place, -1) + 1
            self._elements[place] = number
            self.lines.setdefault(place, self._lineHere())
            place = (*place, number)
        self.lines.setdefault(place, self._lineHere())
        return place

    def _inside(self, keys: list[str]) -> Place:
        """The place that a header names: in arrays of tables, in the newest table."""
        place: Place = ()
        for index, key in enumerate(keys):
            place = (*place, key)
            if index < len(keys) - 1 and place in self._elements:
                place = (*place, self._elements[place])
        return place

    def _pair(self, table: Place) -> bool:
        line = self._lineHere()
        keys = self._keys()
        if not keys or self._text[self._at : self._at + 1] != "=":
            return False
        for count in range(1, len(keys) + 1):
            self.lines.setdefault((*table, *keys[:count]), line)
        self._at += 1
        self._value((*table, *keys))
        return True

    def _keys(self) -> list[str]:
        keys = []
        while (match := _KEY.match(self._text, self._at)) is not None:
            self._at = match.end()
            basic = match["basic"]
            if basic is not None:
                keys.append(str(tomllib.loads(f'k = "{basic}"')["k"]))
            else:
                keys.append(match["bare"] or match["literal"] or "")
            if self._text[self._at : self._at + 1] != ".":
                break
            self._at += 1
        return keys

    def _value(self, place: Place) -> None:
        self._skip(_SPACE)
        here = self._text[self._at : self._at + 1]
        if here == "[":
            self._array(place)
        elif here == "{":
            self._inlineTable(place)
        elif (match := _STRING.match(self._text, self._at)) is not None:
            self._at = match.end()
        else:
            self._skip(_PLAIN)

    def _array(self, place: Place) -> None:
        self._at += 1
        number = 0
        while self._at < len(self._text):
            self._skip(_BLANK)
            here = self._text[self._at : self._at + 1]
            if here == "]":
                self._at += 1
                return
            if here == ",":
                self._at += 1
                continue
            self.lines[(*place, number)] = self._lineHere()
            self._value((*place, number))
            number += 1

    def _inlineTable(self, place: Place) -> None:
        self._at += 1
        while self._at < len(self._text):
            self._skip(_BLANK)
            here = self._text[self._at : self._at + 1]
            if here == "}":
                self._at += 1
                return
            if here == ",":
                self._at += 1
            elif not self._pair(place):
                return

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self._at)
        if match is not None:
            self._at = match.end()

    def _lineHere(self) -> int:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line


__all__ = ["Document", "TOMLUnusable", "parseDocument", "readDocument"]
