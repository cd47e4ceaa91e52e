# -*- test-case-name: tests.executor.test_archives -*-
"""
Unpacks what a user uploaded, as the session that it is for.

Run as C{python -I -S archives.py ARCHIVE DIRECTORY}: in the session's own name, so that
whatever an archive tries, it can reach no more than the session itself.  On top of
that nothing leaves the directory: no absolute name, no C{..}, no link to outside, no
device.  (L{tarfile} has a filter for that, but not in every Python 3.11.)  It imports
nothing of ours.
"""

from __future__ import annotations

import os
import stat
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import IO

MAX_BYTES = 4 * 1024 * 1024 * 1024
"""Bytes that an archive may unpack to."""

MAX_MEMBERS = 200_000
"""Files and directories of one archive."""

PIECE = 1024 * 1024


class BadArchive(Exception):
    """It is none, or one that is not unpacked; the text says why."""


class _Count:
    """What was unpacked so far."""

    def __init__(self, maxBytes: int, maxMembers: int) -> None:
        self._bytes, self._members = maxBytes, maxMembers

    def add(self, size: int) -> None:
        self._members -= 1
        if self._members < 0:
            raise BadArchive("the archive has too many files")
        self.grow(size)

    def grow(self, size: int) -> None:
        self._bytes -= size
        if self._bytes < 0:
            raise BadArchive("the archive is too large when it is unpacked")


def unpack(
    archive: Path, directory: Path, *, maxBytes: int = MAX_BYTES, maxMembers: int = MAX_MEMBERS
) -> None:
    """
    Unpack a tar archive, compressed or not, or a zip archive.

    @param directory: Where to; it is there.
    @raise BadArchive: It is not unpacked, or not all of it.
    """
    count = _Count(maxBytes, maxMembers)
    try:
        if zipfile.is_zipfile(archive):
            _unzip(archive, directory, count)
        else:
            _untar(archive, directory, count)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise BadArchive(f"the archive cannot be unpacked: {error}") from None
    except RuntimeError as error:
        # An encrypted member, for which zipfile wants a password.
        raise BadArchive(f"the archive cannot be unpacked: {error}") from None


def _untar(archive: Path, directory: Path, count: _Count) -> None:
    root = directory.resolve()
    with tarfile.open(archive, "r|*") as members:
        for member in members:
            count.add(0)
            target = _target(root, member.name)
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
            elif member.issym():
                inside = Path(os.path.normpath(target.parent / member.linkname))
                if os.path.isabs(member.linkname) or not _isInside(root, inside):
                    raise BadArchive(f"{member.name[:200]!r} is a link to outside of the archive")
                target.symlink_to(member.linkname)
            elif member.isreg():
                source = members.extractfile(member)
                assert source is not None
                _write(target, source, count, executable=bool(member.mode & 0o100))
            else:
                raise BadArchive(f"{member.name[:200]!r} is neither file, folder nor symbolic link")


def _unzip(archive: Path, directory: Path, count: _Count) -> None:
    root = directory.resolve()
    with zipfile.ZipFile(archive) as members:
        for member in members.infolist():
            count.add(0)
            target = _target(root, member.filename)
            mode = member.external_attr >> 16
            if stat.S_IFMT(mode) and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise BadArchive(f"{member.filename[:200]!r} is neither file nor folder")
            if member.is_dir():
                target.mkdir(parents=True, exist_ok=True)
            else:
                with members.open(member) as source:
                    _write(target, source, count, executable=bool(mode & 0o100))


def _target(root: Path, name: str) -> Path:
    """Where a member goes: within the root, whatever links were unpacked before it."""
    path = Path(os.path.normpath(root / name))
    if path == root:
        return root
    if not _isInside(root, path) or not _isInside(root, path.parent.resolve() / path.name):
        raise BadArchive(f"{name[:200]!r} is outside of the archive")
    return path


def _isInside(root: Path, path: Path) -> bool:
    return path == root or root in path.parents


def _write(target: Path, source: IO[bytes], count: _Count, *, executable: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # In the place of what has that name, and not through it.
    target.unlink(missing_ok=True)
    with target.open("xb") as sink:
        # What the member says of its size is not believed.
        while piece := source.read(PIECE):
            count.grow(len(piece))
            sink.write(piece)
    if executable:
        os.chmod(target, 0o700)


def main(arguments: list[str]) -> int:
    """
    Unpack.

    @return: The exit code.
    """
    try:
        unpack(Path(arguments[0]), Path(arguments[1]))
    except (BadArchive, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
