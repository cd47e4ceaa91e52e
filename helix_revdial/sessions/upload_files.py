# -*- test-case-name: tests.sessions.test_upload_files,tests.sessions.test_uploads -*-
"""
The files of uploads: written piece by piece while they come, and read as the body of a
request.

A file has a name of its own until it is whole, and only then, when it is on the disk for
good, the name by which it is found; what breaks off leaves nothing.

Knows directories and bytes; no table, no tenant and no limit but the disk's.  Nothing of
it touches a disk on the reactor's thread.
"""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import BinaryIO, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from twisted.python.failure import Failure
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from helix_revdial.durable import syncDirectory
from helix_revdial.storage.threads import Workers

PIECE: Final = 256 * 1024
"""Bytes that are read from a file at once."""


class NewFile:
    """
    An archive on its way to the disk.  Every method runs in one of the workers, one at
    a time.

    @ivar size: bytes that were written.
    @ivar sha256: their digest in hexadecimal digits, once it is whole.
    """

    def __init__(self, path: Path) -> None:
        """
        @param path: what it is called until it is whole.
        """
        self.size = 0
        self.sha256 = ""
        self._path = path
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()

    def open(self, length: int | None) -> None:
        """
        Begin it.

        @param length: how many bytes there will be, where that is known.
        @raise OSError: with C{ENOSPC}, where the disk has no room for as many.
        """
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if length is not None:
            room = os.statvfs(self._path.parent)
            if length > room.f_bavail * room.f_frsize:
                raise OSError(errno.ENOSPC, "no room for the whole archive")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.fdopen(os.open(self._path, flags, 0o600), "wb")

    def write(self, piece: bytes) -> None:
        """Add to it."""
        assert self._file is not None
        self._file.write(piece)
        self._digest.update(piece)
        self.size += len(piece)

    def keep(self, path: Path) -> None:
        """It is whole: give it its name, for good."""
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self.sha256 = self._digest.hexdigest()
        self._path.rename(path)
        syncDirectory(path.parent)

    def discard(self) -> None:
        """Leave nothing of what was not kept."""
        if self._file is not None and not self._file.closed:
            # What it still holds back may not fit on the disk either.
            try:
                self._file.close()
            except OSError:
                pass
        self._path.unlink(missing_ok=True)


@implementer(IBodyProducer)
class Archive:
    """
    An archive as the body of a request.

    @ivar name: what it is called: the id of its upload.
    @ivar length: its bytes.
    """

    def __init__(self, name: str, path: Path, length: int, workers: Workers) -> None:
        self.name = name
        self.length = length
        self._path = path
        self._workers = workers
        self._paused: Deferred[None] | None = None
        self._stopped = False

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """
        Write the archive.

        @return: fires when all is written; never, once it was stopped.
        """
        result: Deferred[None] = Deferred(lambda _: self.stopProducing())

        def ended(outcome: object) -> None:
            if self._stopped or result.called:
                return
            if isinstance(outcome, Failure):
                result.errback(outcome)
            else:
                result.callback(None)

        Deferred.fromCoroutine(self._write(consumer)).addBoth(ended)
        return result

    async def _write(self, consumer: IConsumer) -> None:
        file = await self._workers.call(lambda: self._path.open("rb"))
        try:
            while not self._stopped:
                if self._paused is not None:
                    await self._paused
                    continue
                piece = await self._workers.call(lambda: file.read(PIECE))
                if not piece:
                    return
                if not self._stopped:
                    consumer.write(piece)
        finally:
            file.close()

    def pauseProducing(self) -> None:
        """Hold back."""
        if self._paused is None:
            self._paused = Deferred()

    def resumeProducing(self) -> None:
        """Go on."""
        paused, self._paused = self._paused, None
        if paused is not None:
            paused.callback(None)

    def stopProducing(self) -> None:
        """No more is wanted."""
        self._stopped = True
        self.resumeProducing()


def names(directory: Path) -> list[str]:
    """What is in a directory, which may not be there."""
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def remove(directory: Path, names: list[str]) -> None:
    """Remove files of a directory, where they are there."""
    for name in names:
        (directory / name).unlink(missing_ok=True)


__all__ = ["PIECE", "Archive", "NewFile", "names", "remove"]
