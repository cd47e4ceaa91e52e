# -*- test-case-name: tests.telemetry.test_timestamps -*-
"""
How a moment is written, in answers and in the log: RFC 3339, UTC, milliseconds.

All who write one write it here, so that texts of the server sort and compare.
"""

from __future__ import annotations

from datetime import UTC, datetime


def timestamp(seconds: float) -> str:
    """
    Write a moment.

    @param seconds: Since 1970.
    @return: As in C{2026-01-02T03:04:05.678Z} (RFC 3339, section 5.6).
    """
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


__all__ = ["timestamp"]
