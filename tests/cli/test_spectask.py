"""C{helix spectask screenshot} and C{list}."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from tests.cli.fake import (
    JPEG,
    PNG,
    WEBP,
    CommandTestCase,
    Given,
    connection,
    picture,
    problem,
)

SCREENSHOT = "/api/v1/external-agents/ses_1/screenshot"


class ScreenshotTests(CommandTestCase):
    """A picture through the tunnel, into a file."""

    def setUp(self) -> None:
        """An empty working directory."""
        super().setUp()
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.directory)
        self.api.on("GET", SCREENSHOT, picture())

    def left(self) -> list[str]:
        """The names of every file in the directory."""
        return sorted(os.listdir(self.directory))

    def test_defaultName(self) -> None:
        """The file is named after the local time; the two lines are those that people know."""
        ran = self.helix("spectask", "screenshot", "ses_1")
        self.assertEqual((ran.code, ran.err), (0, ""))
        matched = re.fullmatch(
            r"Testing screenshot for session ses_1\.\.\.\n"
            r"✅ Screenshot saved: (screenshot-\d{8}-\d{6}\.png) \(125432 bytes\)\n",
            ran.out,
        )
        assert matched is not None, ran.out
        self.assertEqual(self.left(), [matched[1]])
        self.assertEqual(Path(matched[1]).read_bytes(), PNG)

    def test_twoInOneSecondKeepBoth(self) -> None:
        """A second picture in the same second gets a name of its own."""
        for _ in range(3):
            self.assertEqual(self.helix("spectask", "screenshot", "ses_1").code, 0)
        self.assertEqual(len(self.left()), 3)

    def test_suffixFitsTheKind(self) -> None:
        """JPEG and WebP pictures are named as such."""
        for data, kind, suffix in ((JPEG, "image/jpeg", ".jpg"), (WEBP, "image/webp", ".webp")):
            self.api.on("GET", SCREENSHOT, picture(data, kind))
            ran = self.helix("spectask", "screenshot", "ses_1")
            self.assertIn(f"{suffix} (", ran.out)

    def test_namedFile(self) -> None:
        """C{-o} says where it goes; a file that stood there is replaced as a whole."""
        Path("a.png").write_bytes(b"old")
        ran = self.helix("spectask", "screenshot", "ses_1", "-o", "a.png")
        self.assertIn("✅ Screenshot saved: a.png (125432 bytes)\n", ran.out)
        self.assertEqual(Path("a.png").read_bytes(), PNG)
        self.assertEqual(self.left(), ["a.png"])

    def test_standardOutput(self) -> None:
        """C{-o -} writes the picture and nothing else to standard output."""
        ran = self.helix("spectask", "screenshot", "ses_1", "-o", "-")
        self.assertEqual(ran.outBytes, PNG)
        self.assertEqual(ran.err, "Testing screenshot for session ses_1...\n")

    def test_notConnected(self) -> None:
        """The failure is one line with status and reason, exit code 1; no file changes."""
        Path("a.png").write_bytes(b"old")
        self.api.on("GET", SCREENSHOT, problem(503, "Sandbox not connected: no connection"))
        ran = self.helix("spectask", "screenshot", "ses_1", "-o", "a.png")
        self.assertEqual(
            ran.err,
            "helix: screenshot request failed: 503 - Sandbox not connected: no connection\n",
        )
        self.assertEqual(ran.code, 1)
        self.assertEqual(self.left(), ["a.png"])
        self.assertEqual(Path("a.png").read_bytes(), b"old")

    def test_placeThatCannotBeWritten(self) -> None:
        """A place that cannot be written to is found out before anything is asked."""
        for target in ("missing/a.png", "."):
            ran = self.helix("spectask", "screenshot", "ses_1", "-o", target)
            self.assertEqual(ran.code, 2)
            self.assertTrue(ran.err.startswith(f"helix: {target}: "), ran.err)
        self.assertEqual(self.api.asked, [])

    def test_notAPicture(self) -> None:
        """What is no picture is not saved."""
        self.api.on("GET", SCREENSHOT, picture(b"hello", "image/png"))
        ran = self.helix("spectask", "screenshot", "ses_1")
        self.assertIn("are no PNG, JPEG or WebP picture", ran.err)
        self.assertEqual((ran.code, self.left()), (1, []))


class ListTests(CommandTestCase):
    """Sessions with the state of their connections."""

    def test_states(self) -> None:
        """Each session with its state; the last line counts them."""
        self.api.on(
            "GET",
            "/api/v1/sessions",
            Given(
                {
                    "items": [
                        {"id": "ses_1", "name": "one", "status": "running", "created": 0},
                        {"id": "ses_2", "name": "two", "status": "running"},
                        {"id": "ses_3", "name": "three", "status": "running"},
                        {"id": "ses_4", "name": "four", "status": "ended"},
                    ],
                    "total": 4,
                }
            ),
        )
        for session, status in (("ses_1", "connected"), ("ses_2", "grace"), ("ses_3", "none")):
            self.api.on(
                "GET",
                f"/api/v1/external-agents/{session}/connection",
                connection(session, status, left=12.0),
            )
        ran = self.helix("spectask", "list")
        lines = ran.out.splitlines()
        self.assertRegex(lines[0], r"^SESSION +NAME +STATUS +CONNECTION +RUNNER +CREATED$")
        self.assertRegex(
            lines[1],
            r"^ses_1 +one +running +✅ connected +sandbox-ses_1 +1970-01-01 00:00:00Z$",
        )
        self.assertRegex(lines[2], r"⚠️ grace \(12 s left\)")
        self.assertRegex(lines[3], r"❌ not connected")
        self.assertRegex(lines[4], r"^ses_4 .* gone ")
        self.assertEqual(lines[-1], "Found 4 session(s), 1 connected")
        self.assertEqual((ran.code, ran.err), (0, ""))

    def test_empty(self) -> None:
        """No sessions is no error."""
        self.api.on("GET", "/api/v1/sessions", Given({"items": [], "total": 0}))
        ran = self.helix("spectask", "list")
        self.assertEqual((ran.out, ran.code), ("Found 0 session(s)\n", 0))

    def test_refusedIsNotEmpty(self) -> None:
        """401 and 500 are errors, never an empty list."""
        for answer, text in (
            (
                problem(401, "no valid credential"),
                "helix: 401 - no valid credential; check HELIX_API_KEY",
            ),
            (problem(500, "broken"), "helix: 500 - broken\n"),
        ):
            self.api.on("GET", "/api/v1/sessions", answer)
            ran = self.helix("spectask", "list")
            self.assertEqual((ran.out, ran.code), ("", 1))
            self.assertTrue(ran.err.startswith(text), ran.err)

    def test_oneThatCannotBeAsked(self) -> None:
        """An error of one session stands in its line and in the exit code; others are shown."""
        self.api.on("GET", "/api/v1/sessions", Given({"items": [{"id": "ses_1"}, {"id": "ses_2"}]}))
        self.api.on("GET", "/api/v1/external-agents/ses_1/connection", problem(500, "broken"))
        self.api.on("GET", "/api/v1/external-agents/ses_2/connection", connection("ses_2"))
        ran = self.helix("spectask", "list")
        self.assertIn("unknown: 500 - broken", ran.out)
        self.assertIn("Found 2 session(s), 1 connected", ran.out)
        self.assertEqual(ran.code, 1)

    def test_everyPageIsFetched(self) -> None:
        """Lists go on until no further page is named; JSON has every session."""
        self.api.on(
            "GET",
            "/api/v1/sessions",
            Given({"items": [{"id": "ses_1"}], "nextPage": "2", "total": 2}),
            Given({"items": [{"id": "ses_2"}], "total": 2}),
        )
        for session in ("ses_1", "ses_2"):
            self.api.on("GET", f"/api/v1/external-agents/{session}/connection", connection(session))
        ran = self.helix("spectask", "list", "--json")
        self.assertEqual(
            [(s["id"], s["connection"]["status"]) for s in json.loads(ran.out)],
            [("ses_1", "connected"), ("ses_2", "connected")],
        )
        pages = [a.query for a in self.api.asked if a.path == "/api/v1/sessions"]
        self.assertEqual(pages, [{"perPage": "100"}, {"perPage": "100", "page": "2"}])

    def test_listWithoutEnd(self) -> None:
        """A list whose page names itself as the next is an error, not an endless loop."""
        self.api.on("GET", "/api/v1/sessions", Given({"items": [], "nextPage": "2"}))
        ran = self.helix("spectask", "list")
        self.assertEqual(ran.code, 1)
        self.assertIn("a page that names itself as the next", ran.err)
