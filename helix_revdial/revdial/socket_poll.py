# -*- test-case-name: tests.revdial.test_socket_poll,tests.revdial.test_sockets -*-
"""
Watches the sockets of relays: an epoll of their own, which is one reader of the reactor.

Twisted's reactors look each event's descriptor up, and call it through the log's context,
which costs more than a small receive and send.  Here one such call serves every
socket that is ready.  It works in any reactor that takes a descriptor.

Invariants:

  - It is in the reactor if and only if a socket is watched.
  - A socket that is not watched is not in the epoll: a hang-up is level-triggered, and
    nobody would take it.
  - A socket whose number was used again within a batch gets at most a read or a write
    that finds nothing.
"""

from __future__ import annotations

import select
from typing import Any, Protocol

from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

MAX_EVENTS = 256
"""Sockets that are served in one turn, so that the reactor's others have theirs."""

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
_LOST = select.EPOLLHUP | select.EPOLLERR


class Watched(Protocol):
    """What is told; none of these may raise."""

    def doRead(self) -> None:
        """There is something to receive, or the end."""

    def doWrite(self) -> None:
        """There is room to send."""

    def connectionLost(self, reason: Failure) -> None:
        """It hung up, with nothing left to receive."""


@implementer(IReadDescriptor)
class SocketPoll:
    """
    Watches sockets.
    """

    def __init__(self, reactor: Any) -> None:
        """
        @param reactor: Watches us.
        """
        self._reactor = reactor
        self._watched: dict[int, Watched] = {}
        # Made with the first socket: an agent without streams does not have it.
        self._poll: select.epoll | None = None

    def fileno(self) -> int:
        return -1 if self._poll is None else self._poll.fileno()

    def logPrefix(self) -> str:
        return "relays"

    def watch(self, number: int, watched: Watched, events: int) -> None:
        """
        Watch a socket from now on for C{events}: L{READ}, L{WRITE}, both, or
        neither, which is not to watch it.
        """
        poll = self._poll
        if not events:
            if poll is not None and self._watched.get(number) is watched:
                del self._watched[number]
                try:
                    poll.unregister(number)
                except OSError:
                    pass  # closed by its transport, which took it out
                if not self._watched:
                    self._reactor.removeReader(self)
            return
        if poll is None:
            poll = self._poll = select.epoll()
        if self._watched.get(number) is watched:
            poll.modify(number, events)
        else:
            poll.register(number, events)
            if not self._watched:
                self._reactor.addReader(self)
        self._watched[number] = watched

    def doRead(self) -> None:
        """Serve every socket that is ready."""
        assert self._poll is not None
        known = self._watched.get
        for number, event in self._poll.poll(0, MAX_EVENTS):
            watched = known(number)
            if watched is None:
                continue
            if event & READ:
                watched.doRead()
                if event & WRITE and known(number) is watched:
                    watched.doWrite()
            elif event & _LOST:
                watched.connectionLost(Failure(ConnectionLost()))
            else:
                watched.doWrite()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor ends: so does every socket that is watched."""
        for watched in list(self._watched.values()):
            watched.connectionLost(reason)


__all__ = ["READ", "WRITE", "SocketPoll", "Watched"]
