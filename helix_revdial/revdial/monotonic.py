# -*- test-case-name: tests.revdial.test_monotonic -*-
"""
Time that nobody can set.

Twisted's reactors count in wall-clock time (C{reactor.seconds} is C{time.time}), and
every timer of theirs with it: a step of the clock by NTP or by hand fires all
timers at once, or holds them all back for as long as the step was.  A control
connection would be dropped for an hour's silence that never was.  L{useMonotonicTime}
gives a reactor the clock that only goes forward, at one second a second.

What is asleep does not count: after a suspended machine wakes up, timers go on where
they were, and the kernel says which connections have ended meanwhile.
"""

from __future__ import annotations

import time
from typing import Any

from twisted.python.runtime import seconds as wallSeconds


def useMonotonicTime(reactor: Any) -> bool:
    """
    Let C{reactor}'s timers run on C{time.monotonic}.

    To be called before anything is scheduled: a timer that was set by the old clock
    would be off by the years since 1970, so such a reactor is left as it is.

    @return: Whether it runs on monotonic time now.
    """
    if reactor.seconds is not wallSeconds:
        # asyncio's event loop brings its own, which is monotonic.
        return reactor.seconds is time.monotonic
    if reactor.getDelayedCalls():
        return False
    reactor.seconds = time.monotonic
    return True


__all__ = ["useMonotonicTime"]
