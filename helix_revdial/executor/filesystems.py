# -*- test-case-name: tests.executor.test_snapshots -*-
"""
What the file system of the sessions can do: found out by doing it.

C{btrfs} by the file system's magic number (statfs(2)) and the program being there;
C{overlay} by mounting one; C{copy} always, with or without sharing blocks
(C{FICLONE}, ioctl_ficlonerange(2)); C{git} where git is there.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .confinement import PATH

BTRFS = 0x9123683E
"""The magic number of btrfs (linux/magic.h)."""

_FICLONE = 0x40049409

ORDER = ("btrfs", "overlay", "copy", "git")
"""What is preferred where nothing is asked for."""


@dataclass(frozen=True)
class Capabilities:
    """
    What a directory's file system can do.

    @ivar snapshots: The providers, best first.
    @ivar reflink: Whether copies share their blocks.
    """

    snapshots: tuple[str, ...]
    reflink: bool

    def choose(self, preference: list[str]) -> str:
        """
        The provider for a session.

        @param preference: What it prefers, best first; what this host cannot do is
            passed over, and what it can does where nothing is left.
        """
        for wanted in preference:
            if wanted in self.snapshots:
                return wanted
        return self.snapshots[0] if not preference else "copy"


def magicOf(path: str | Path) -> int:
    """The magic number of a path's file system."""
    found = ctypes.create_string_buffer(256)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(os.fsencode(path), found) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    return ctypes.c_long.from_buffer(found).value & 0xFFFFFFFF


def canReflink(directory: Path) -> bool:
    """Whether files of a directory can share blocks."""
    with (
        tempfile.NamedTemporaryFile(dir=directory) as one,
        tempfile.NamedTemporaryFile(dir=directory) as other,
    ):
        one.write(b"x" * 4096)
        one.flush()
        try:
            fcntl.ioctl(other.fileno(), _FICLONE, one.fileno())
        except OSError:
            return False
        return True


def canMountOverlay(directory: Path, kinds: Path = Path("/proc/filesystems")) -> bool:
    """Whether an overlay can be mounted in a directory: one is, for a moment."""
    if os.geteuid() != 0 or shutil.which("mount", path=PATH) is None:
        return False
    try:
        known = {line.split()[-1] for line in kinds.read_text().splitlines() if line.split()}
    except OSError:
        return False
    if "overlay" not in known:
        return False
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        place = Path(scratch)
        for name in ("lower", "upper", "work", "merged"):
            (place / name).mkdir()
        argv = overlayMount(place / "lower", place / "upper", place / "work", place / "merged")
        if subprocess.run(argv, capture_output=True, timeout=20).returncode != 0:
            return False
        undone = subprocess.run(["umount", str(place / "merged")], capture_output=True, timeout=20)
        return undone.returncode == 0


def overlayMount(lower: Path, upper: Path, work: Path, merged: Path) -> list[str]:
    """The command that mounts an overlay."""
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    return ["mount", "-t", "overlay", "overlay", "-o", f"nosuid,nodev,{options}", str(merged)]


def detect(directory: Path) -> Capabilities:
    """
    What the file system of a directory can do.

    Takes a moment, and blocks: it is asked once, at the start.
    """
    able = {"copy"}
    if magicOf(directory) == BTRFS and os.geteuid() == 0 and shutil.which("btrfs", path=PATH):
        able.add("btrfs")
    if canMountOverlay(directory):
        able.add("overlay")
    if shutil.which("git", path=PATH):
        able.add("git")
    return Capabilities(tuple(name for name in ORDER if name in able), canReflink(directory))
