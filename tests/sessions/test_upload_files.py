"""Tests for L{helix_revdial.sessions.upload_files}."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.sessions import upload_files as module
from helix_revdial.sessions.upload_files import Archive, NewFile, names, remove
from helix_revdial.storage.threads import SameThread

CONTENT = b"0123456789" * 10


class NewFileTests(SynchronousTestCase):
    """Whole, or not there."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.file = NewFile(self.directory / "a.part")

    def test_kept(self) -> None:
        """It has its name when it is whole, with its size and digest; nobody else reads it."""
        self.file.open(None)
        self.file.write(CONTENT[:7])
        self.file.write(CONTENT[7:])
        self.assertEqual(names(self.directory), ["a.part"])
        self.file.keep(self.directory / "a")
        self.assertEqual(names(self.directory), ["a"])
        self.assertEqual((self.directory / "a").read_bytes(), CONTENT)
        self.assertEqual((self.directory / "a").stat().st_mode & 0o777, 0o600)
        self.assertEqual(self.directory.stat().st_mode & 0o777, 0o700)
        self.assertEqual(
            (self.file.size, self.file.sha256), (100, hashlib.sha256(CONTENT).hexdigest())
        )
        self.file.discard()
        self.assertEqual(names(self.directory), ["a"])

    def test_discarded(self) -> None:
        """What was not kept leaves nothing; that it may not have been begun is no matter."""
        self.file.discard()
        self.file.open(None)
        self.file.write(CONTENT)
        self.file.discard()
        self.assertEqual(names(self.directory), [])

    def test_noRoom(self) -> None:
        """More than the disk has room for is not begun."""
        error = self.assertRaises(OSError, self.file.open, 2**60)
        self.assertEqual(error.errno, errno.ENOSPC)
        self.assertEqual(names(self.directory), [])

    def test_linked(self) -> None:
        """A link in its place is not written through."""
        self.directory.mkdir()
        (self.directory / "a.part").symlink_to(self.directory / "other")
        self.assertRaises(FileExistsError, self.file.open, None)
        self.assertFalse((self.directory / "other").exists())

    def test_removed(self) -> None:
        """What is not there, files or directory, need not be removed."""
        self.assertEqual(names(self.directory), [])
        self.directory.mkdir()
        (self.directory / "a").touch()
        remove(self.directory, ["a", "b"])
        self.assertEqual(names(self.directory), [])


class ArchiveTests(SynchronousTestCase):
    """A file as the body of a request."""

    def setUp(self) -> None:
        path = Path(self.mktemp())
        path.write_bytes(CONTENT)
        self.archive = Archive("upl_1", path, len(CONTENT), SameThread())
        self.transport = StringTransport()
        self.patch(module, "PIECE", 10)

    def test_whole(self) -> None:
        """All of it, in pieces."""
        self.successResultOf(self.archive.startProducing(self.transport))
        self.assertEqual(self.transport.value(), CONTENT)

    def test_heldBack(self) -> None:
        """A reader that pauses gets nothing, and no more once it stops."""
        got: list[bytes] = []

        def write(data: bytes) -> None:
            got.append(data)
            self.archive.pauseProducing()

        self.patch(self.transport, "write", write)
        done = self.archive.startProducing(self.transport)
        self.assertEqual(len(got), 1)
        self.archive.resumeProducing()
        self.assertEqual(len(got), 2)
        self.archive.stopProducing()
        self.assertEqual(len(got), 2)
        self.assertNoResult(done)
