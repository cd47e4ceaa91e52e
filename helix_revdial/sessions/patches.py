# -*- test-case-name: tests.sessions.test_patches -*-
"""
The server's own copies of patches, so that one can be had when the host that made it is
gone.

One directory holds one file for each session, whose name says the session and the
SHA-256 of what is in it; there is nothing else to keep in step with.  Files are written
under another name, synced, and renamed: a crash leaves no half of one.

What holds:

  - a patch larger than C{maxBytes} is not kept;
  - all together are no larger than C{quota}: the oldest go first;
  - none is older than C{retention};
  - what is read and is not what was written is broken off before its last piece, so that
    nobody takes it for the patch.

No file is touched on the reactor's thread.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, TypedDict

from twisted.internet.defer import DeferredLock
from twisted.logger import Logger

from helix_revdial.durable import syncDirectory
from helix_revdial.storage.threads import Workers

PIECE: Final = 256 * 1024
"""Bytes that are read at once."""

_NAME: Final = re.compile(r"(ses_[0-9A-Z]{26})\.([0-9a-f]{64})\.patch")

_DRAFT: Final = ".new"


class PatchTooLarge(Exception):
    """A patch is larger than what is kept."""


class PatchDamaged(Exception):
    """A file is not what was written."""


class PatchLimits(TypedDict):
    """
    What is kept.

    @ivar maxBytes: of one patch; C{quota}: of all.
    @ivar retention: seconds.
    """

    maxBytes: int
    quota: int
    retention: float


@dataclass(frozen=True, slots=True)
class Patch:
    """
    A patch that is kept.

    @ivar size: bytes; C{sha256} of them, in hexadecimal.
    @ivar at: when it was kept, in seconds since the epoch.
    """

    session: str
    size: int
    sha256: str
    at: float


class Patches:
    """
    All of them.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        directory: Path,
        workers: Workers,
        wallClock: Callable[[], float],
        *,
        maxBytes: int,
        quota: int,
        retention: float,
    ) -> None:
        """
        @param directory: made if it is not there; nobody else's.
        @param workers: threads that touch files.
        @param wallClock: seconds since the epoch.
        @param retention: seconds.
        """
        self.setLimits(maxBytes=maxBytes, quota=quota, retention=retention)
        self._directory = directory
        self._workers = workers
        self._wallClock = wallClock
        self._kept: dict[str, Patch] = {}
        self._writing = DeferredLock()
        self._drafts = 0

    def setLimits(self, *, maxBytes: int, quota: int, retention: float) -> None:
        """Change what is kept; what is kept already is looked at when there is something new."""
        self.maxBytes = maxBytes
        self.quota = quota
        self.retention = retention

    async def start(self) -> None:
        """Find what there is, and remove what is too old and what was never finished."""
        for patch in await self._workers.call(self._look):
            self._kept[patch.session] = patch
        await self.sweep()

    def _look(self) -> list[Patch]:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found: dict[str, Patch] = {}
        for entry in sorted(os.scandir(self._directory), key=lambda one: one.stat().st_mtime):
            matched = _NAME.fullmatch(entry.name)
            if matched is None:
                if entry.name.endswith(_DRAFT):
                    os.unlink(entry)
                continue
            known = entry.stat()
            patch = Patch(matched[1], known.st_size, matched[2], known.st_mtime)
            before = found.pop(patch.session, None)
            if before is not None:
                # Killed between the two: the newer one counts.
                self._path(before).unlink(missing_ok=True)
            found[patch.session] = patch
        return list(found.values())

    def get(self, session: str) -> Patch | None:
        """The patch of a session, if it is kept."""
        return self._kept.get(session)

    @property
    def sessions(self) -> list[str]:
        """Whose patches are kept."""
        return list(self._kept)

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return sum(patch.size for patch in self._kept.values())

    async def put(self, session: str, pieces: AsyncIterator[bytes]) -> Patch:
        """
        Keep a patch, instead of the one of before.

        @param pieces: what it is; what this raises is raised, and nothing is kept.
        @raise PatchTooLarge: it is.
        @raise OSError: it cannot be written.
        """
        self._drafts += 1
        draft = self._directory / f"{session}.{self._drafts}{_DRAFT}"
        digest = hashlib.sha256()
        size = 0
        file = await self._workers.call(lambda: draft.open("xb"))
        try:
            try:
                async for piece in pieces:
                    size += len(piece)
                    if size > self.maxBytes:
                        raise PatchTooLarge(f"it is larger than {self.maxBytes} bytes")
                    digest.update(piece)
                    await self._workers.call(lambda piece=piece: file.write(piece))  # type: ignore[misc]
            finally:
                end = getattr(pieces, "aclose", None)
                if end is not None:
                    await end()

                def close() -> None:
                    file.flush()
                    os.fsync(file.fileno())
                    file.close()

                await self._workers.call(close)
            patch = Patch(session, size, digest.hexdigest(), self._wallClock())
            await self._writing.acquire()
            try:
                await self._makeRoom(size, session)
                await self._workers.call(lambda: self._finish(draft, patch))
                self._kept[session] = patch
            finally:
                self._writing.release()
        except BaseException:
            await self._workers.call(lambda: draft.unlink(missing_ok=True))
            raise
        return patch

    def _finish(self, draft: Path, patch: Patch) -> None:
        os.utime(draft, (patch.at, patch.at))
        draft.rename(self._path(patch))
        syncDirectory(self._directory)

    async def _makeRoom(self, size: int, session: str) -> None:
        """Remove the oldest until there is room, and the one that is replaced."""
        if size > self.quota:
            raise PatchTooLarge(f"it is larger than all that may be kept, {self.quota} bytes")
        await self._remove(session)
        for patch in sorted(self._kept.values(), key=lambda one: one.at):
            if self.size + size <= self.quota:
                return
            self._log.info("The patch of {session} makes room", session=patch.session)
            await self._remove(patch.session)

    async def sweep(self) -> None:
        """Remove what is too old."""
        await self._writing.acquire()
        try:
            oldest = self._wallClock() - self.retention
            for patch in list(self._kept.values()):
                if patch.at < oldest:
                    await self._remove(patch.session)
        finally:
            self._writing.release()

    async def remove(self, session: str) -> None:
        """Keep the patch of a session no longer."""
        await self._writing.acquire()
        try:
            await self._remove(session)
        finally:
            self._writing.release()

    async def _remove(self, session: str) -> None:
        patch = self._kept.pop(session, None)
        if patch is not None:
            await self._workers.call(lambda: self._path(patch).unlink(missing_ok=True))

    async def read(self, patch: Patch) -> AsyncIterator[bytes]:
        """
        What is kept, in pieces.

        @raise PatchDamaged: it is not what was written, or not there any more; the last
            piece has not been given then.
        """
        digest = hashlib.sha256()
        try:
            file = await self._workers.call(lambda: self._path(patch).open("rb"))
        except OSError as error:
            raise PatchDamaged(f"{patch.session}: {error.strerror}") from None
        try:
            left = patch.size
            held = b""
            while left and (piece := await self._workers.call(lambda: file.read(PIECE))):
                digest.update(piece)
                left -= len(piece)
                if held:
                    yield held
                held = piece
            if left or digest.hexdigest() != patch.sha256:
                raise PatchDamaged(f"{patch.session}: it is not what was written")
            if held:
                yield held
        finally:
            await self._workers.call(file.close)

    def _path(self, patch: Patch) -> Path:
        return self._directory / f"{patch.session}.{patch.sha256}.patch"


__all__ = ["Patch", "PatchDamaged", "PatchTooLarge", "Patches"]
