# -*- test-case-name: tests.api.test_external_agents -*-
"""Errors of the rooms below, as callers of the API get them."""

from __future__ import annotations

import math

from helix_revdial.http.problem import Problem
from helix_revdial.revdial.errors import (
    DialError,
    DialTimeout,
    NotConnected,
    ReconnectTimeout,
    TargetRefused,
    TargetTimeout,
    TooManyPendingDials,
    TunnelBroke,
)

_SENTENCES: dict[type[DialError], str] = {
    NotConnected: "{what} not connected: {text}",
    ReconnectTimeout: "{what} not connected: {text}",
    TooManyPendingDials: "{what} not reachable now: {text}",
    DialTimeout: "{what} connected, but its agent did not dial back: {text}",
    TargetTimeout: "{what} connected, but its service did not answer: {text}",
    TargetRefused: "{what} connected, but its service is not reachable: {text}",
    TunnelBroke: "{what} connected, but the exchange broke off: {text}",
}


def problemOf(error: DialError, what: str = "Sandbox") -> Problem:
    """
    The answer for a failed dial.

    @param what: What was dialled, as people call it.
    """
    sentence = _SENTENCES.get(type(error), "{what}: {text}")
    text = str(error)
    return Problem(
        error.status,
        sentence.format(
            what=what, text=text[:1].upper() + text[1:] if sentence == "{text}" else text
        ),
        code=error.word,
        headers=retryAfter(error.retryAfter),
    )


def retryAfter(seconds: float | None) -> list[tuple[bytes, bytes]]:
    """The header that says so, rounded up to whole seconds (RFC 9110, 10.2.3)."""
    if seconds is None:
        return []
    return [(b"Retry-After", b"%d" % max(1, math.ceil(seconds)))]
