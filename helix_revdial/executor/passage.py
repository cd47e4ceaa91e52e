# -*- test-case-name: tests.executor.test_passage -*-
"""
How the sessions' users reach the host's Python, where it lies in a directory that is
closed to them, such as root's home.

In its own mounts a session sees, in the place of such a directory, an empty one with
nothing in it but what Python needs (L{Shown}), and that read-only; C{enter} mounts it.
Outside nothing changes, and of what else the directory holds nothing is seen.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ASK_SECONDS = 30.0
"""How long a Python may take to say where it has what it needs."""

Shown = Mapping[str, Sequence[str]]
"""For each closed directory, what of it is shown: absolute paths below it."""

_ASK = """
import json, os, sys
import helix_revdial, twisted, msgspec
parts = [sys.prefix, sys.base_prefix]
for package in (helix_revdial, twisted, msgspec):
    parts += package.__path__
for place in sys.path:
    parts.append(os.path.join(place, "twisted", "plugins"))
print(json.dumps([sys.executable, parts]))
"""


def closedDirectory(path: str) -> str | None:
    """The uppermost directory on the way to a path that not everybody may pass through."""
    for parent in reversed(Path(path).parents):
        try:
            mode = parent.stat().st_mode
        except OSError:
            return None
        if not mode & stat.S_IXOTH:
            return str(parent)
    return None


def needed(python: str) -> list[str]:
    """
    What a Python needs of the file system to run our programs, links on the way included.

    @return: Paths; none where it does not run at all.
    """
    try:
        done = subprocess.run([python, "-c", _ASK], capture_output=True, timeout=ASK_SECONDS)
        executable, parts = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return []
    found = [os.path.realpath(part) for part in parts if os.path.isdir(part)]
    for program in (python, executable):
        found += _links(program)
    return found


def _links(path: str) -> list[str]:
    """A program, and each that a link on the way names."""
    found = [path]
    while os.path.islink(path) and len(found) < 40:
        path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
        found.append(path)
    return found


def shownBelow(paths: Iterable[str]) -> Shown:
    """What has to be shown of closed directories, so that everybody reaches C{paths}."""
    shown: dict[str, list[str]] = {}
    for path in sorted(set(paths)):
        closed = closedDirectory(path)
        if closed is None:
            continue
        known = shown.setdefault(closed, [])
        if not any(Path(path).is_relative_to(each) for each in known):
            known.append(path)
    return shown
