"""What a new user runs first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

DEMO = Path(__file__).parent.parent.parent / "docs" / "examples" / "demo.py"


class DemoTests(SynchronousTestCase):
    """C{make demo}."""

    def test_demo(self) -> None:
        """The main job end to end: PASSED, a picture, nothing left running."""
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        done = subprocess.run(
            [sys.executable, str(DEMO)], cwd=directory, capture_output=True, text=True, timeout=120
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("RevDial connectivity: PASSED\n", done.stdout)
        self.assertTrue(done.stdout.endswith("Stopped cleanly.\n"), done.stdout)
        picture = directory / "demo" / "screenshot.png"
        self.assertEqual(picture.read_bytes()[:8], b"\x89PNG\r\n\x1a\n")
        token = (directory / "demo" / "state" / "admin.token").read_text().strip()
        for log in (directory / "demo" / "state").glob("*.log"):
            text = log.read_text(errors="replace")
            self.assertNotIn(token, text, f"F1: a token is in {log.name}")
            self.assertNotIn("Traceback", text, log.name)
        left = subprocess.run(["pgrep", "-f", str(directory)], capture_output=True, text=True)
        self.assertEqual(left.stdout, "", "still running")
