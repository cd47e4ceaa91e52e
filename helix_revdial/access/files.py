# -*- test-case-name: tests.access.test_tokens -*-
"""
Files that hold a secret.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from helix_revdial.durable import syncDirectory


def writePrivately(path: Path, text: str) -> None:
    """
    Write a file that only its owner can read, whole or not at all.

    It is made under another name with mode 0600 (whatever the umask), brought
    to the disk, and put in its place: nobody reads half of it, a link at
    C{path} is replaced and not followed, and an earlier file's mode does not
    matter.  Blocks.

    @raise OSError: when that is not possible; no part of it is left behind.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.fchmod(descriptor, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8", closefd=False) as file:
                file.write(text)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    syncDirectory(path.parent)
