"""How sessions' users reach a Python that lies in a directory which is closed to them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

import helix_revdial
from helix_revdial.executor.confinement import Confinement
from helix_revdial.executor.host import canSeparateMounts
from helix_revdial.executor.passage import closedDirectory, needed, shownBelow

LIMIT = 30


class PassageTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.open = Path(tempfile.mkdtemp(prefix="hx-"))
        self.addCleanup(shutil.rmtree, self.open)
        self.open.chmod(0o755)
        self.home = self.open / "home"
        self.home.mkdir(mode=0o700)

    def test_closed(self) -> None:
        """A path is closed by the uppermost directory that not everybody passes through."""
        self.assertEqual(closedDirectory(str(self.home / "a" / "b")), str(self.home))
        self.assertIs(closedDirectory(str(self.open / "file")), None)

    def test_shown(self) -> None:
        """What lies in something that is shown is not shown again; what is open not at all."""
        for name in ("lib/deep", "lib/other", "bin"):
            (self.home / name).mkdir(parents=True)
        paths = ["lib/deep", "lib", "bin", "lib", "lib/other"]
        found = shownBelow([*(str(self.home / path) for path in paths), str(self.open)])
        self.assertEqual(found, {str(self.home): [str(self.home / "bin"), str(self.home / "lib")]})

    def test_needed(self) -> None:
        """A Python needs where it is installed, our packages, and each link on the way to it."""
        found = needed(sys.executable)
        for path in (sys.executable, os.path.realpath(sys.executable), sys.base_prefix):
            self.assertIn(path, found)
        self.assertIn(os.path.realpath(next(iter(helix_revdial.__path__))), found)
        self.assertEqual(needed("/no/such/python"), [])
        self.assertEqual(needed("/bin/true"), [])

    def test_inside(self) -> None:
        """
        A session's program, and its tunnel's, reads what is shown, cannot write it even as
        its owner, sees nothing else of the closed directory, and for others nothing changes.
        """
        if not canSeparateMounts():
            raise SkipTest("nothing can be mounted here")
        user = 1_350_000
        for name, text in (("shown/tool", "tool"), ("secret", "secret"), ("one", "one")):
            path = self.home / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            os.chown(path, user, user)
        shown = shownBelow([str(self.home / "shown"), str(self.home / "one")])
        confinement = Confinement("ses_x", user=user, mounts=True, shown=shown)
        script = (
            "import json, os, sys\n"
            "def can(do):\n"
            " try: return do() or True\n"
            " except OSError as error: return error.strerror\n"
            "os.chdir(sys.argv[1])\n"
            "print(json.dumps([can(open('shown/tool').read), can(open('one').read),"
            " can(lambda: open('secret')), can(lambda: os.listdir('.')),"
            " can(lambda: open('shown/tool', 'a') and None), can(lambda: os.mkdir('new'))]))"
        )
        for other, unwritten in (
            (None, "Read-only file system"),
            (user + 1, "Permission denied"),
        ):
            argv = ["/usr/bin/python3", "-c", script, str(self.home)]
            argv = confinement.argv(argv, "side", "/", user=other)
            done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT)
            self.assertEqual(done.returncode, 0, done.stderr)
            *read, secret, listed, written, made = json.loads(done.stdout)
            self.assertEqual(read, ["tool", "one"])
            self.assertEqual(
                (secret, listed, made),
                ("No such file or directory", "Permission denied", "Permission denied"),
            )
            self.assertEqual(written, unwritten)
        self.assertEqual((self.home / "secret").read_text(), "secret")
        self.assertEqual(sorted(os.listdir(self.home)), ["one", "secret", "shown"])
