# -*- test-case-name: tests.revdial.test_watching -*-
"""
What those who watch are told as it happens: what cannot be seen by looking later.

Whoever watches inherits from L{Watching} or L{ListenerWatching} and overrides what
it wants to know.  An exception in its code is logged, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from twisted.logger import Logger

from .errors import DialError

if TYPE_CHECKING:
    from .pickups import Call
    from .registrations import Registration


class Watching:
    """
    Watches the server's end (L{Connections
    <helix_revdial.revdial.connections.Connections>}).
    """

    def registered(self, registration: Registration, before: str | None) -> None:
        """
        A runner registered.

        @param before: C{"connected"} if it took its own name over, C{"grace"} if it
            came back in time, C{None} if its name was free.
        """

    def registrationRefused(self, key: str, error: DialError) -> None:
        """A control connection was refused."""

    def lost(self, registration: Registration, word: str, reason: str) -> None:
        """
        A control connection ended.

        @param word: Our own reason (C{"silence"}, C{"superseded"}…), or C{"closed"} or
            C{"lost"}.
        @param reason: The same in words.
        """

    def gone(self, key: str, generation: int) -> None:
        """A runner is awaited no more."""

    def dialRefused(self, key: str, error: DialError, limit: str | None) -> None:
        """
        A dial failed before it began: there is no L{Call} of it.

        @param limit: Which limit was hit, if one was: C{"pending_dials_per_runner"},
            C{"streams_per_runner"}, C{"dials"}, C{"descriptors"} or
            C{"buffered_bytes"}.
        """

    def connected(self, call: Call) -> None:
        """A caller has his stream: what C{ended} tells later, as far as it has come."""

    def ended(self, call: Call) -> None:
        """
        Nothing is left of a call: its C{stream} has the phases, the bytes and the
        reason, its C{outcome} the word.
        """


class Watchers(Watching):
    """Several who watch the same; what goes wrong in one does not keep it from the next."""

    _log = Logger()

    def __init__(self, *watching: Watching) -> None:
        self._watching = list(watching)

    def add(self, watching: Watching) -> None:
        """From now on one more."""
        self._watching.append(watching)

    def _each(self, tell: Callable[[Watching], None]) -> None:
        for one in self._watching:
            try:
                tell(one)
            except Exception:
                self._log.failure("Who watches failed")

    def registered(self, registration: Registration, before: str | None) -> None:
        self._each(lambda one: one.registered(registration, before))

    def registrationRefused(self, key: str, error: DialError) -> None:
        self._each(lambda one: one.registrationRefused(key, error))

    def lost(self, registration: Registration, word: str, reason: str) -> None:
        self._each(lambda one: one.lost(registration, word, reason))

    def gone(self, key: str, generation: int) -> None:
        self._each(lambda one: one.gone(key, generation))

    def dialRefused(self, key: str, error: DialError, limit: str | None) -> None:
        self._each(lambda one: one.dialRefused(key, error, limit))

    def connected(self, call: Call) -> None:
        # This and the next without a closure: there is one for each dial.
        for one in self._watching:
            try:
                one.connected(call)
            except Exception:
                self._log.failure("Who watches failed")

    def ended(self, call: Call) -> None:
        for one in self._watching:
            try:
                one.ended(call)
            except Exception:
                self._log.failure("Who watches failed")


class ListenerWatching:
    """
    Watches the agent's end (L{Listener <helix_revdial.revdial.listener.Listener>}).
    """

    def answered(self, dial: str | None, target: str | None, word: str, seconds: float) -> None:
        """
        A dial-back is a stream, or over.

        @param dial: The dial's id, where the server gave one.
        @param target: The service that was asked for.
        @param word: C{"connected"}, C{"withdrawn"} (the server wants it no more), or the
            reason that the server is told.
        @param seconds: Since the server asked.
        """

    def streamEnded(self, dial: str | None, bytesIn: int, bytesOut: int, reason: str) -> None:
        """
        A stream ended.

        @param bytesIn: Payload from the server.
        @param bytesOut: Payload to the server.
        """


__all__ = ["ListenerWatching", "Watchers", "Watching"]
