# -*- test-case-name: tests.cli.test_files -*-
"""
Files that commands write: whole or not at all.

A file is written beside its final place under a name of its own, and takes its
place when its last byte is on the disk.  Whatever goes wrong, what stood there
before is untouched and nothing is left over.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from types import TracebackType

from helix_revdial.cli.edge import CommandError, SettingsError

PRIVATE = 0o600
"""Read and written by its owner only."""

SHARED = 0o666
"""What the user's umask leaves of it."""


class WholeFile:
    """
    A file on its way to its place.

    A context manager: entering it opens a new file beside C{path}, so that a
    place that cannot be written to is known before anything is asked of a
    server; leaving it without L{commit} removes it.

    @param path: The final place.  What is no regular file (a device, a pipe)
        is written to directly.
    @param mode: Permissions of the new file, before the umask.
    @param replace: Whether a file that stands there may be replaced.
    """

    def __init__(self, path: Path, *, mode: int = SHARED, replace: bool = True) -> None:
        self.path = path
        self._mode = mode
        self._replace = replace
        self._partial: Path | None = None
        self._descriptor: int | None = None

    def __enter__(self) -> WholeFile:
        try:
            if self._isSpecial():
                self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
                return self
            if not self._replace and os.path.lexists(self.path):
                raise SettingsError(f"{self.path}: exists already; name another file")
            partial = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.part")
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(partial, flags, self._mode)
            self._partial = partial
        except OSError as error:
            raise SettingsError(f"{self.path}: {error.strerror or error}") from None
        return self

    def commit(self, data: bytes) -> None:
        """
        Write everything and put the file in its place.

        @raise CommandError: The disk is full, or the place is no longer free.
        """
        assert self._descriptor is not None
        try:
            with open(self._descriptor, "wb") as file:
                self._descriptor = None
                file.write(data)
                file.flush()
                if self._partial is not None:
                    os.fsync(file.fileno())
            if self._partial is not None:
                self._place(self._partial)
        except OSError as error:
            raise CommandError(f"{self.path}: {error.strerror or error}") from None

    def _place(self, partial: Path) -> None:
        if self._replace:
            os.replace(partial, self.path)
        else:
            # A link fails where a name is taken; a rename would replace it.
            os.link(partial, self.path)
            os.unlink(partial)
        self._partial = None

    def _isSpecial(self) -> bool:
        try:
            mode = os.stat(self.path).st_mode
        except FileNotFoundError:
            return False
        if stat.S_ISDIR(mode):
            raise SettingsError(f"{self.path}: is a directory; name a file")
        return not stat.S_ISREG(mode)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if self._partial is not None:
            self._partial.unlink(missing_ok=True)
            self._partial = None


__all__ = ["PRIVATE", "SHARED", "WholeFile"]
