"""Directories for tests, where trial's own do not do."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase


def shortDirectory(case: SynchronousTestCase) -> Path:
    """
    A directory for unix sockets, removed when C{case} ends.

    A socket's path has 107 bytes at most (unix(7)); what C{mktemp} gives is
    below the checkout, wherever that is, and holds the test's whole name.
    """
    directory = tempfile.mkdtemp(prefix="hx-")
    case.addCleanup(shutil.rmtree, directory, ignore_errors=True)
    return Path(directory)
