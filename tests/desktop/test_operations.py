"""Tests for L{helix_revdial.desktop.operations}; its HTTP is tested with real sockets."""

from __future__ import annotations

import base64

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.desktop.clipboard import Content
from helix_revdial.desktop.errors import DesktopError, NoDisplay
from helix_revdial.desktop.operations import (
    ClipboardDocument,
    contentOf,
    documentOf,
    isOwnName,
    translate,
)
from helix_revdial.http.problem import Problem
from helix_revdial.programs import OutputTooLarge, ProgramMissing, ProgramTimedOut, TooBusy
from tests.desktop.fakes import png


class TranslateTests(SynchronousTestCase):
    """Errors become answers."""

    def test_statuses(self) -> None:
        """Each kind of error has its status and its word; the text is a sentence."""
        for error, status, code in [
            (NoDisplay("none here"), 503, "no-display"),
            (ProgramMissing("none here"), 503, "program-missing"),
            (ProgramTimedOut("none here"), 504, "timed-out"),
            (OutputTooLarge("none here"), 503, "too-large"),
            (TooBusy("none here"), 503, "busy"),
            (DesktopError("none here"), 503, "failed"),
        ]:
            problem = translate(error)
            assert problem is not None
            self.assertEqual((problem.status, problem.code), (status, code))
            self.assertEqual(problem.detail, "None here.")

    def test_retryAfter(self) -> None:
        """Who comes at a busy time is told when to come again."""
        problem = translate(TooBusy("busy", retryAfter=7))
        assert problem is not None
        self.assertEqual(problem.headers, [(b"Retry-After", b"7")])

    def test_others(self) -> None:
        """A fault of ours is no answer of the desktop's."""
        self.assertIsNone(translate(KeyError("x")))


class ClipboardDocumentTests(SynchronousTestCase):
    """The JSON of the clipboard, both ways."""

    def test_bothWays(self) -> None:
        """What is written as a document is read as the same one."""
        image = base64.b64encode(png()).decode()
        for kind, data, content in [
            ("text", "", Content("text", b"")),
            ("text", "日\0\n", Content("text", "日\0\n".encode())),
            ("image", image, Content("image", png())),
        ]:
            document = ClipboardDocument(kind, data)  # type: ignore[arg-type]
            self.assertEqual(contentOf(document), content)
            self.assertEqual(documentOf(content), document)

    def test_wrappedBase64(self) -> None:
        """Line breaks in base64, which many encoders make, are taken."""
        wrapped = base64.encodebytes(png(bytes(100))).decode()
        self.assertEqual(
            contentOf(ClipboardDocument("image", wrapped)), Content("image", png(bytes(100)))
        )

    def test_wrong(self) -> None:
        """An image that is none is refused, with the field; and nothing of it is repeated."""
        for data in ["", "secret!", "c2VjcmV0", "é"]:
            problem = self.assertRaises(Problem, contentOf, ClipboardDocument("image", data))
            self.assertEqual((problem.status, list(problem.errors)), (400, ["data"]))
            self.assertNotIn("secret", problem.detail)


class OwnNameTests(SynchronousTestCase):
    """Which C{Host} is taken."""

    def test_own(self) -> None:
        """Addresses, names without a dot, and reserved names."""
        for host in [
            None,
            b"",
            b"localhost",
            b"localhost:9876",
            b"127.0.0.1:1",
            b"[::1]:9876",
            b"[::1]",
            b"desktop-ses_1",
            b"desktop-ses_1.localhost",
            b"ses_1.invalid:80",
        ]:
            self.assertTrue(isOwnName(host), host)

    def test_public(self) -> None:
        """Whatever a web site could be called."""
        for host in [b"evil.com", b"evil.com:9876", b"127.0.0.1.evil.com", b"localhost.evil.com"]:
            self.assertFalse(isOwnName(host), host)
