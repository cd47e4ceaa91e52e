# -*- test-case-name: tests.cli.test_output -*-
"""
What people and programs read: lines, notices, JSON and tables.

Results go to standard output, everything else (progress, notices, warnings) to
standard error, so that a pipe carries results only.  A table is drawn by rich
on a terminal; anywhere else it is aligned columns, never cut to a width, so
that C{grep} and C{awk} see whole values.  rich is imported when a terminal
gets its first table, and never before.

Values from elsewhere are made harmless here (L{plain <helix_revdial.cli.edge.plain>}),
whoever prints them.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

from helix_revdial.cli.edge import CannotWrite, ReaderGone, plain

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


class Output:
    """
    Where a command writes.

    @param stdout: Text stream for results.
    @param stderr: Text stream for everything else.
    @ivar quiet: Whether notices are left out.
    @ivar noColor: Whether results are wanted without colours and pictures.
    """

    def __init__(self, stdout: TextIO | None = None, stderr: TextIO | None = None) -> None:
        self.stdout = sys.stdout if stdout is None else stdout
        self.stderr = sys.stderr if stderr is None else stderr
        self.quiet = False
        self.noColor = False

    @property
    def isTerminal(self) -> bool:
        """Whether results are read by a person at a terminal."""
        return self.stdout.isatty()

    @property
    def redraws(self) -> bool:
        """
        Whether a picture can be drawn over another one.

        C{TERM} says what the terminal can (C{dumb}: nothing of the kind); who wants no
        colours (C{NO_COLOR}, https://no-color.org) gets lines.
        """
        able = self.isTerminal and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
        return able and not self.noColor and not os.environ.get("NO_COLOR")

    def console(self) -> Console:
        """rich's writer, for a terminal."""
        from rich.console import Console

        return Console(file=self.stdout, highlight=False, no_color=self.noColor or None)

    def line(self, text: str = "") -> None:
        """One line of the result; written at once, so that a reader can follow."""
        try:
            _write(self.stdout, text)
        except OSError as error:
            raise CannotWrite(error) from None

    def notice(self, text: str) -> None:
        """One line that is not part of the result; where it cannot be written, it is lost."""
        if self.quiet:
            return
        with suppress(OSError):
            _write(self.stderr, text)

    def json(self, value: object, *, indent: int | None = 2) -> None:
        """A value as JSON: one object, or one line with C{indent=None}."""
        text = json.dumps(value, indent=indent, ensure_ascii=False)
        if self.isTerminal:
            # JSON leaves some of what drives a terminal as it is.
            text = _DRIVING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
        self.line(text)

    def bytes(self, data: bytes) -> None:
        """A result that is no text."""
        try:
            self.stdout.flush()
            self.stdout.buffer.write(data)
            self.stdout.buffer.flush()
        except BrokenPipeError:
            raise ReaderGone from None
        except OSError as error:
            raise CannotWrite(error) from None

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """
        A table; numbers are aligned to the right.

        @param columns: The headings.
        @param rows: One sequence per line, as long as C{columns}; C{None} is
            shown as a dash.
        """
        cells = [list(row) for row in rows]
        if self.isTerminal:
            self.show(richTable(columns, cells, self.console().width))
        else:
            for text in columnLines(columns, cells):
                self.line(text)

    def show(self, drawn: RenderableType) -> None:
        """What rich has drawn, at a terminal."""
        try:
            self.console().print(drawn)
            self.stdout.flush()
        except BrokenPipeError:
            raise ReaderGone from None
        except OSError as error:
            raise CannotWrite(error) from None


_DRIVING = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
"""What moves a terminal's cursor, changes its state, or turns its text around: everything
of the kind except the line feed."""


def harmless(text: str) -> str:
    """
    Text from elsewhere, such as a task's log, as a terminal may be given it.

    What could drive the terminal is shown and does nothing: control characters as
    the pictures that Unicode has of them (C{\u241b} for an escape), others by their
    numbers.  A tab becomes spaces; line feeds stay.
    """
    return _DRIVING.sub(_picture, text.replace("\r\n", "\n"))


def _picture(found: re.Match[str]) -> str:
    number = ord(found[0])
    if number == 9:
        return "    "
    if number < 32:
        return chr(0x2400 + number)
    return "\u2421" if number == 127 else f"<U+{number:04X}>"


def _write(stream: TextIO, line: str) -> None:
    try:
        stream.write(line + "\n")
        stream.flush()
    except BrokenPipeError:
        raise ReaderGone from None


def cell(value: object) -> str:
    """A value as it stands in a table."""
    if value is None or value == "":
        return "-"
    if isinstance(value, float):
        return f"{value:,.1f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list | tuple | set | frozenset):
        return plain(",".join(str(part) for part in value)) or "-"
    return plain(value)


def _numeric(rows: Sequence[Sequence[object]], index: int) -> bool:
    values = [row[index] for row in rows if row[index] is not None]
    return bool(values) and all(isinstance(value, int | float) for value in values)


def columnLines(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A table as aligned plain lines, the headings first."""
    texts = [list(columns), *([cell(value) for value in row] for row in rows)]
    widths = [max(len(line[index]) for line in texts) for index in range(len(columns))]
    right = [_numeric(rows, index) for index in range(len(columns))]
    return [
        "  ".join(
            text.rjust(width) if rightAligned else text.ljust(width)
            for text, width, rightAligned in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in texts
    ]


LEAST = 10
"""Characters that a column of a table has at least, where a value has as many."""


def richTable(
    columns: Sequence[str], rows: Sequence[Sequence[object]], width: int
) -> RenderableType:
    """
    A table for a terminal; nothing in a cell is taken for markup.

    Columns without any value are left out, and the first one, which names its row, is
    never cut into pieces.  Where there is no room for a table each row is a list.

    @param width: The terminal's columns.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    used = [i for i in range(len(columns)) if not rows or any(r[i] not in (None, "") for r in rows)]
    columns = [columns[i] for i in used]
    rows = [[row[i] for i in used] for row in rows]
    texts = [[cell(value) for value in row] for row in rows]
    widths = [max(map(len, (name, *column))) for name, *column in zip(columns, *texts, strict=True)]
    least = [*widths[:1], *(min(each, LEAST) for each in widths[1:])]
    if rows and sum(least) + 3 * (len(least) - 1) > width:
        label = max(map(len, columns)) + 2
        lines = []
        for row in texts:
            for name, text in zip(columns, row, strict=True):
                lines.append(Text(f"{name:{label}}", "bold").append(text, "not bold"))
            lines.append(Text(""))
        return Group(*lines[:-1])
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, name in enumerate(columns):
        table.add_column(
            Text(name),
            justify="right" if _numeric(rows, index) else "left",
            overflow="fold",
            no_wrap=index == 0,
            min_width=least[index],
        )
    for row in texts:
        table.add_row(*(Text(text) for text in row))
    return table


def moment(value: object) -> str | None:
    """
    A time as people read it.

    @param value: Seconds since the epoch, or an RFC 3339 string.
    @return: UTC to the second; text that is no time is returned as it is.
    """
    if value is None or value == "":
        return None
    try:
        if isinstance(value, int | float):
            when = datetime.fromtimestamp(value, UTC)
        else:
            when = datetime.fromisoformat(str(value))
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return str(value)


def duration(seconds: float | None) -> str | None:
    """
    A length of time as people read it: its two largest units.

    @param seconds: Seconds; negative lengths (clocks that disagree) are 0.
    """
    if seconds is None:
        return None
    rest = int(max(0.0, seconds))
    if rest < 60:
        return f"{max(0.0, seconds):.1f}s"
    parts: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count or parts:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])


def size(count: int | None) -> str | None:
    """A number of bytes as people read it, in units of 1,024."""
    if count is None:
        return None
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{int(value)} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def field(record: dict[str, Any], *names: str) -> Any:
    """The first of these fields that a record has."""
    for name in names:
        if record.get(name) is not None:
            return record[name]
    return None


def several(record: dict[str, Any], name: str) -> list[Any]:
    """The list that a field is; an empty one where it is none."""
    value = record.get(name)
    return value if isinstance(value, list) else []


__all__ = [
    "Output",
    "cell",
    "columnLines",
    "duration",
    "field",
    "harmless",
    "moment",
    "richTable",
    "several",
    "size",
]
