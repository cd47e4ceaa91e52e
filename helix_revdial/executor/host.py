# -*- test-case-name: tests.integration.test_executor -*-
"""
What this machine is and can do, looked at once at the start.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable

from helix_revdial import __version__

from .confinement import ENTER
from .filesystems import Capabilities
from .operations import HostDocument
from .passage import Shown
from .sessions import RUNTIMES, LocalSessions
from .settings import ExecutorSettings


def canSeparateMounts() -> bool:
    """Whether a program can have a mount namespace of its own: one gets it, for a moment."""
    if os.geteuid() != 0:
        return False
    terms = json.dumps({"mounts": True})
    done = subprocess.run(
        [sys.executable, "-I", "-S", ENTER, terms, "true"], capture_output=True, timeout=20
    )
    return done.returncode == 0


def canRunPython(user: int, python: str, shown: Shown) -> bool:
    """
    Whether a session's user can run the host's Python, which may be somebody's own.

    @param shown: What he sees of directories that are closed to him.
    """
    terms = json.dumps({"user": user, "userGroup": user, "shown": shown})
    program = "import helix_revdial, twisted, msgspec"
    argv = [sys.executable, "-I", "-S", ENTER, terms, python, "-c", program]
    try:
        done = subprocess.run(argv, capture_output=True, timeout=20, cwd="/")
    except OSError:
        return False
    return done.returncode == 0


def hostOf(
    settings: ExecutorSettings, sessions: LocalSessions, capabilities: Capabilities
) -> Callable[[], HostDocument]:
    """What tells how the host is, whenever it is asked."""
    system = os.uname()

    def document() -> HostDocument:
        return HostDocument(
            os=system.sysname.lower(),
            arch=platform.machine(),
            snapshotCapabilities=list(capabilities.snapshots),
            agents=list(settings.agents),
            runtimes=list(RUNTIMES),
            slots=settings.slots,
            running=sessions.running,
            version=__version__,
            host=system.nodename,
            load=os.getloadavg()[0],
            reflink=capabilities.reflink,
            isolation=sessions.isolation,
        )

    return document
