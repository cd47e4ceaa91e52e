# -*- test-case-name: tests.test_durable -*-
"""
What a crash of the machine must not undo.

A file's bytes are on the disk once the file is synchronised; its name is there once its
directory is.  This is the second half, for all who make, rename or replace files that
have to be there afterwards.
"""

from __future__ import annotations

import os
from pathlib import Path


def syncDirectory(directory: Path) -> None:
    """
    Bring the names in a directory to the disk.  Blocks.

    @raise OSError: There is no such directory, or its disk fails.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = ["syncDirectory"]
