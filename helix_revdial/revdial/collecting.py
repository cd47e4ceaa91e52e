# -*- test-case-name: tests.revdial.test_collecting -*-
"""
When the garbage collector looks for what leads round in a circle.

What a stream leaves behind leads nowhere, and goes without the collector; to search for
circles is for what broke halfway, and for other people's objects.  So it is done less
often than Python would, and never through the modules and tables that are there before
the reactor runs: looking through these takes tens of milliseconds, in which every
stream waits.
"""

from __future__ import annotations

import gc
from typing import Any

YOUNG = 5000
"""Objects that are made, and not let go of, between two looks at the youngest; Python's 700
are reached every few dials."""


def collectLess(reactor: Any) -> None:
    """From the moment when C{reactor} runs on, look as the module says."""
    reactor.callWhenRunning(_settle)


def _settle() -> None:
    gc.freeze()
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])


__all__ = ["YOUNG", "collectLess"]
