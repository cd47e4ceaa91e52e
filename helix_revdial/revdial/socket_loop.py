# -*- test-case-name: tests.revdial.test_socket_loop -*-
"""
The reactor's turn, begun by the sockets of relays.

L{SocketPoll <helix_revdial.revdial.socket_poll.SocketPoll>} is one reader of the reactor:
what comes for a relay wakes the reactor's epoll, which is asked, calls the reader through
the log's context, and then the other epoll is asked.  For small messages, one at a time,
that is a third of what they cost.  L{useSocketLoop} turns it round, on Twisted's epoll
reactor: while sockets of relays are watched, a turn waits at B{their} epoll, in which the
reactor's own is one descriptor, and does what the reactor does when that is ready.

Invariants:

  - Timers, signals, threads' calls, and everything else that the reactor watches are
    served as ever, in every turn.
  - While no socket of a relay is watched, the reactor's turn is its own.
  - On other reactors nothing is changed: L{useSocketLoop} says so, and a L{SocketPoll
    <helix_revdial.revdial.socket_poll.SocketPoll>} is a reader.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.epollreactor import EPollReactor

Serve = Callable[[float], bool]
"""Waits for so many seconds at most (below zero: without limit), serves what is ready, and
says whether the reactor's own epoll is."""


class SocketLoop:
    """
    One reactor's turn.

    @ivar number: The descriptor of the reactor's own epoll.
    """

    def __init__(self, reactor: Any, number: int) -> None:
        """
        @param reactor: Has not begun to run.
        """
        self.number = number
        self._ordinary: Callable[[float | None], None] = reactor.doIteration
        self._serve: Serve | None = None
        self._stop: Callable[[], None] | None = None
        reactor.doIteration = self.turn
        # What watches for the reactor's readers hears of its end like this.
        reactor.addSystemEventTrigger("during", "shutdown", self.stop)

    def lead(self, serve: Serve, stop: Callable[[], None]) -> bool:
        """
        From the next turn on wait by C{serve}.

        @param stop: Told that the reactor ends.
        @return: Whether it will be; if not, somebody else leads.
        """
        if self._serve is not None:
            return False
        self._serve, self._stop = serve, stop
        return True

    def yieldLead(self) -> None:
        """The reactor's turn is its own again."""
        self._serve = self._stop = None

    def turn(self, delay: float | None) -> None:
        """
        Do one turn.

        @param delay: Seconds to wait at most; C{None} for no limit.
        """
        serve = self._serve
        if serve is None:
            self._ordinary(delay)
        elif serve(-1 if delay is None else delay):
            self._ordinary(0)

    def stop(self) -> None:
        """The reactor ends."""
        if self._stop is not None:
            self._stop()


def useSocketLoop(reactor: Any) -> bool:
    """
    Let relays' sockets begin C{reactor}'s turns; to be called before it runs.

    @return: Whether they do.
    """
    if loopOf(reactor) is not None:
        return True
    # Its number is known to itself alone.
    poller = getattr(reactor, "_poller", None)
    if type(reactor) is not EPollReactor or poller is None:
        return False
    SocketLoop(reactor, poller.fileno())
    return True


def loopOf(reactor: Any) -> SocketLoop | None:
    """What L{useSocketLoop} gave C{reactor}."""
    found = getattr(getattr(reactor, "doIteration", None), "__self__", None)
    return found if isinstance(found, SocketLoop) else None


__all__ = ["SocketLoop", "loopOf", "useSocketLoop"]
