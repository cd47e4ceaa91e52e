"""Files: whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.cli.edge import CommandError, SettingsError
from helix_revdial.cli.files import PRIVATE, WholeFile


class WholeFileTests(SynchronousTestCase):
    """Writing beside, then taking the place."""

    def setUp(self) -> None:
        """An empty directory."""
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.path = self.directory / "file"

    def test_modes(self) -> None:
        """Private files are 0600 from their first moment; others follow the umask."""
        before = os.umask(0o027)
        self.addCleanup(os.umask, before)
        with WholeFile(self.path, mode=PRIVATE) as file:
            (partial,) = self.directory.iterdir()
            self.assertEqual(stat.S_IMODE(partial.stat().st_mode), 0o600)
            file.commit(b"x")
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)
        with WholeFile(self.directory / "other") as file:
            file.commit(b"x")
        self.assertEqual(stat.S_IMODE((self.directory / "other").stat().st_mode), 0o640)

    def test_nothingIsLeftWithoutACommit(self) -> None:
        """Leaving early, with or without an error, changes nothing."""
        self.path.write_bytes(b"old")
        with WholeFile(self.path):
            pass
        with self.assertRaises(ZeroDivisionError), WholeFile(self.path):
            raise ZeroDivisionError
        self.assertEqual(os.listdir(self.directory), ["file"])
        self.assertEqual(self.path.read_bytes(), b"old")

    def test_placeTakenMeanwhile(self) -> None:
        """A file that may not replace another does not, even if that came in between."""
        with self.assertRaises(CommandError), WholeFile(self.path, replace=False) as file:
            self.path.write_bytes(b"other")
            file.commit(b"mine")
        self.assertEqual(self.path.read_bytes(), b"other")
        self.assertEqual(os.listdir(self.directory), ["file"])

    def test_fullDisk(self) -> None:
        """A device that takes nothing is an error, not a traceback."""
        with self.assertRaises(CommandError) as raised, WholeFile(Path("/dev/full")) as file:
            file.commit(b"x")
        self.assertIn("/dev/full: No space left on device", str(raised.exception))

    def test_deviceIsWrittenToDirectly(self) -> None:
        """A device is never replaced by a file."""
        with WholeFile(Path(os.devnull)) as file:
            file.commit(b"x")
        self.assertTrue(stat.S_ISCHR(os.stat(os.devnull).st_mode))

    def test_danglingLink(self) -> None:
        """A link that leads nowhere counts as taken."""
        self.path.symlink_to(self.directory / "nowhere")
        self.assertRaises(SettingsError, WholeFile(self.path, replace=False).__enter__)
