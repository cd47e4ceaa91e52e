"""What a new user runs first."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

DEMO = Path(__file__).parent.parent.parent / "docs" / "examples" / "demo.py"


class DemoTests(SynchronousTestCase):
    """C{make demo}."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()

    def run_(self, **environment: str) -> str:
        """Run it to its good end: what it printed."""
        done = subprocess.run(
            [sys.executable, str(DEMO)],
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, **environment},
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertEqual(done.stderr, "")
        self.assertTrue(done.stdout.endswith("Stopped cleanly.\n"), done.stdout)
        return done.stdout

    def test_demo(self) -> None:
        """
        The main job end to end: PASSED, a picture, a task whose patch applies, and nothing
        left running.
        """
        directory = self.directory
        said = self.run_()
        self.assertIn("RevDial connectivity: PASSED\n", said)
        self.assertIn("status    completed\n", said)
        self.assertIn("\n+Hello from a task.\n", said)
        project = directory / "demo" / "project"
        self.assertEqual((project / "greeting.txt").read_text(), "Hello.\nHello from a task.\n")
        self.assertTrue((project / "notes" / "done.txt").exists())
        picture = directory / "demo" / "screenshot.png"
        self.assertEqual(picture.read_bytes()[:8], b"\x89PNG\r\n\x1a\n")
        token = (directory / "demo" / "state" / "admin.token").read_text().strip()
        for log in (directory / "demo" / "state").glob("*.log"):
            text = log.read_text(errors="replace")
            self.assertNotIn(token, text, f"F1: a token is in {log.name}")
            self.assertNotIn("Traceback", text, log.name)
        settings = tomllib.loads((directory / "demo" / "state" / "executor.toml").read_text())
        place = Path(settings["state_directory"]).parent
        self.assertFalse(place.exists(), place)
        for path in (directory, place):
            left = subprocess.run(["pgrep", "-f", str(path)], capture_output=True, text=True)
            self.assertEqual(left.stdout, "", "still running")

    def test_withoutGit(self) -> None:
        """Without git the tunnel is shown all the same, and a line says what is left out."""
        programs = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, programs)
        said = self.run_(PATH=str(programs))
        self.assertIn("RevDial connectivity: PASSED\n", said)
        self.assertIn("git is missing (apt-get install git)\n", said)
