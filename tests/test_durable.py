"""Tests for L{helix_revdial.durable}."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.durable import syncDirectory


class SyncDirectoryTests(SynchronousTestCase):
    """Names are brought to the disk."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.synchronised: list[tuple[int, int]] = []

    def test_directory(self) -> None:
        """It is the directory that is synchronised, and its descriptor is closed then."""

        def fsync(descriptor: int) -> None:
            self.synchronised.append((descriptor, os.fstat(descriptor).st_ino))

        self.patch(os, "fsync", fsync)
        syncDirectory(self.directory)
        ((descriptor, number),) = self.synchronised
        self.assertEqual(number, self.directory.stat().st_ino)
        self.assertRaises(OSError, os.fstat, descriptor)

    def test_failure(self) -> None:
        """A disk that fails is said, and the descriptor is closed all the same."""

        def fsync(descriptor: int) -> None:
            self.synchronised.append((descriptor, 0))
            raise OSError("the disk is broken")

        self.patch(os, "fsync", fsync)
        self.assertRaises(OSError, syncDirectory, self.directory)
        ((descriptor, _),) = self.synchronised
        self.assertRaises(OSError, os.fstat, descriptor)

    def test_noDirectory(self) -> None:
        """A file is no directory, and what is not there is none either."""
        file = self.directory / "file"
        file.write_text("x")
        self.assertRaises(NotADirectoryError, syncDirectory, file)
        self.assertRaises(FileNotFoundError, syncDirectory, self.directory / "none")
