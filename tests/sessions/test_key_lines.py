"""Tests for L{helix_revdial.sessions.key_lines}."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.sessions.executor import Report
from helix_revdial.sessions.key_lines import HEADERS, KeyLines
from helix_revdial.sessions.redaction import MARK, Redactor

FULL = ("Ab1+" * 16, "/Cd2" * 16, "Ef3/" * 16)
SHORT = "Gh4w=="
BEGIN, END = "-----BEGIN RSA PRIVATE KEY-----", "-----END RSA PRIVATE KEY-----"


class KeyLinesTests(SynchronousTestCase):
    def cleaned(self, *lines: str, streams: str = "") -> list[str]:
        """
        What is stored of these lines.

        @param streams: which stream each is of, a letter for each.
        """
        keys, redactor = KeyLines(), Redactor()
        found = []
        for number, line in enumerate(lines):
            stream = streams[number] if streams else "o"
            report = keys.cleaned(Report(number + 1, 0.0, "log", stream=stream, message=line))
            self.assertEqual(report.seq, number + 1)
            found.append(redactor.text(report.message or ""))
        return found

    def test_key(self) -> None:
        """Of a key that is printed line by line no line is stored; what stands around it is."""
        found = self.cleaned("$ cat key", BEGIN, *FULL, SHORT, END, "done")
        self.assertEqual(found, ["$ cat key", *[MARK] * 6, "done"])

    def test_forms(self) -> None:
        """Other names of keys, lines of ssh's length, and what programs print before a line."""
        for kind in ("", "EC ", "OPENSSH ", "ENCRYPTED "):
            found = self.cleaned(f"-----BEGIN {kind}PRIVATE KEY-----", "x" * 70, SHORT)
            self.assertEqual(found, [MARK] * 3, kind)
        for before in ("+", "    ", "12:\t", "2026-01-02 03:04:05 key: ", "> "):
            found = self.cleaned(*(before + line for line in (BEGIN, *FULL, SHORT, END)))
            for line in (*FULL, SHORT):
                self.assertNotIn(line, "\n".join(found), before)

    def test_headers(self) -> None:
        """What stands between the first line and the key is told; the key is not."""
        headers = ("Proc-Type: 4,ENCRYPTED", "DEK-Info: AES-128-CBC,0011", "")
        found = self.cleaned(BEGIN, *headers, *FULL, END)
        self.assertEqual(found, [MARK, *headers, *[MARK] * 4])

    def test_noKey(self) -> None:
        """A first line with something else after it takes nothing with it, or one word."""
        other = ["It is not there.", FULL[0], SHORT]
        self.assertEqual(self.cleaned(BEGIN, *other)[1:], other)
        self.assertEqual(self.cleaned(BEGIN, "word", "word", FULL[0])[1:], [MARK, "word", FULL[0]])
        lines = ["a: b"] * (HEADERS + 2)
        self.assertEqual(self.cleaned(BEGIN, *lines)[1 : HEADERS + 1], lines[:HEADERS])

    def test_whole(self) -> None:
        """After a key within one message nothing is taken out."""
        found = self.cleaned(f"{BEGIN}\n{FULL[0]}\n{END}", FULL[1])
        self.assertEqual(found, [MARK, FULL[1]])
        found = self.cleaned(f"{BEGIN}\n{FULL[0]}\n{END}\n{BEGIN}", FULL[1])
        self.assertEqual(found[1], MARK)

    def test_streams(self) -> None:
        """What is said elsewhere meanwhile stays, and does not end it."""
        found = self.cleaned(BEGIN, "a warning", FULL[0], FULL[1], streams="oeoe")
        self.assertEqual(found, [MARK, "a warning", MARK, FULL[1]])

    def test_otherReports(self) -> None:
        """Only what is said is looked at."""
        keys = KeyLines()
        keys.cleaned(Report(1, 0.0, "log", message=BEGIN))
        report = Report(2, 0.0, "moment", label=FULL[0])
        self.assertIs(keys.cleaned(report), report)
