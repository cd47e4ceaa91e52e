# -*- test-case-name: tests.sessions.test_key_lines -*-
"""
Private keys in their armour (RFC 7468, and what ssh and PGP make of it) that are printed
line by line, each line a report of its own.

L{helix_revdial.sessions.redaction} sees one text at a time: of such a key it knows the
first line only.  Here is remembered, for each stream of a session's output, whether a
key has begun; what follows it is taken out as long as it looks like one.  Nothing is
remembered longer than reports are read in one go: whoever reads a key's second half after
a break is shown it.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from helix_revdial.sessions.executor import Report
from helix_revdial.sessions.redaction import MARK

HEADERS: Final = 6
"""Lines that may stand between a key's first one and what is secret."""

_BEGIN: Final = re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----")

_END: Final = re.compile(r"-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----")

# What programs print before a line (a number, a mark, a time) may stand before these.
_FULL: Final = re.compile(r"(?:.{0,40}[^A-Za-z0-9+/=])?[A-Za-z0-9+/=]{32,100}\s*", re.DOTALL)

_LAST: Final = re.compile(r"(?:.{0,40}[^A-Za-z0-9+/=])?[A-Za-z0-9+/=]{1,100}\s*", re.DOTALL)

_HEADER: Final = re.compile(r"\s*(?:[A-Za-z-]{1,40}: .*)?", re.DOTALL)


class KeyLines:
    """One session's output, in order."""

    __slots__ = ("_begun",)

    def __init__(self) -> None:
        # Each stream in which a key has begun: how many lines of it may still be headers;
        # none, when it can only end now.
        self._begun: dict[str, int | None] = {}

    def cleaned(self, report: Report) -> Report:
        """
        A report without what it has of a key that began in an earlier one.

        @param report: the next one.
        """
        text = report.message
        if report.kind != "log" or not text:
            return report
        stream = report.stream or ""
        if stream in self._begun:
            kept = self._within(stream, text)
            if kept != text:
                report = msgspec.structs.replace(report, message=kept)
        if "PRIVATE KEY" in text:
            begun = max((found.end() for found in _BEGIN.finditer(text)), default=None)
            if begun is not None and _END.search(text, begun) is None:
                self._begun[stream] = HEADERS
        return report

    def _within(self, stream: str, text: str) -> str:
        headers = self._begun.pop(stream)
        end = _END.search(text)
        if end is not None:
            return MARK + text[end.end() :]
        if headers is not None:
            if _FULL.fullmatch(text):
                self._begun[stream] = 0
                return MARK
            if headers and _HEADER.fullmatch(text):
                self._begun[stream] = headers - 1
                return text
            if _LAST.fullmatch(text):
                self._begun[stream] = None
                return MARK
        return text


__all__ = ["HEADERS", "KeyLines"]
