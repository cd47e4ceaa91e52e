# -*- test-case-name: tests.revdial.test_socket_poll,tests.revdial.test_sockets -*-
"""
Watches the sockets of relays: an epoll of their own, which is one reader of the reactor.

Twisted's reactors look each event's descriptor up, and call it through the log's context,
which costs more than a small receive and send.  Here one such call serves every
socket that is ready.  It works in any reactor that takes a descriptor; and where the
reactor lets it, it begins the reactor's turns, which saves that call too
(L{helix_revdial.revdial.socket_loop}).

Invariants:

  - It is in the reactor, or leads it, if and only if a socket is watched.
  - A socket that is not watched is not in the epoll, or leaves it at the first event: a
    hang-up is level-triggered, and nobody would take it.
  - A socket whose number was used again within a batch gets at most a read or a write
    that finds nothing.
"""

from __future__ import annotations

import os
import select
from typing import Any, Protocol

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from helix_revdial.revdial.socket_loop import loopOf

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
        self._loop = loopOf(reactor)
        self._leads = False
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
                    self._leave()
            return
        if poll is None:
            poll = self._poll = select.epoll()
        if self._watched.get(number) is watched:
            poll.modify(number, events)
        else:
            poll.register(number, events)
            if not self._watched:
                self._enter()
        self._watched[number] = watched

    def drop(self, number: int, watched: Watched) -> None:
        """
        Watch a socket no more that is closed next, which takes it out of the epoll.
        """
        if self._watched.get(number) is watched:
            del self._watched[number]
            if not self._watched:
                self._leave()

    def hand(self, number: int, holder: Watched, to: Watched) -> bool:
        """
        From now on C{to} is told in place of C{holder}, of the same events.

        @return: Whether C{holder} was.
        """
        if self._watched.get(number) is not holder:
            return False
        self._watched[number] = to
        return True

    def _enter(self) -> None:
        loop = self._loop
        if loop is not None and loop.lead(self.serve, self._stop):
            assert self._poll is not None
            self._leads = True
            self._poll.register(loop.number, READ)
        else:
            self._reactor.addReader(self)

    def _leave(self) -> None:
        if self._leads:
            assert self._loop is not None
            assert self._poll is not None
            self._leads = False
            # Not while the reactor's may come to hold ours: the kernel allows no circle.
            self._poll.unregister(self._loop.number)
            self._loop.yieldLead()
        else:
            self._reactor.removeReader(self)

    def doRead(self) -> None:
        """Serve every socket that is ready."""
        self.serve(0)

    def serve(self, seconds: float) -> bool:
        """
        Wait for so many seconds at most, and serve every socket that is ready.

        @return: Whether the reactor has something ready, where we may lead it.
        """
        assert self._poll is not None
        known = self._watched.get
        isReactorReady = False
        if seconds:
            # Those to whom the turn before has sent something have the processor first, if
            # they wait for it: what they answer is then served together, without being put
            # to sleep and woken for each.  Where nobody waits it is back at once.
            os.sched_yield()
        for number, event in self._poll.poll(seconds, MAX_EVENTS):
            watched = known(number)
            if watched is None:
                if self._leads and self._loop is not None and number == self._loop.number:
                    isReactorReady = True
                elif self._loop is None or number != self._loop.number:
                    self._forget(number)
                continue
            if event & READ:
                watched.doRead()
                if event & WRITE and known(number) is watched:
                    watched.doWrite()
            elif event & _LOST:
                watched.connectionLost(Failure(ConnectionLost()))
            else:
                watched.doWrite()
        return isReactorReady

    def _forget(self, number: int) -> None:
        """
        Nobody watches this socket: it was to be closed and is not, or was let go of, with
        or without another in its place, earlier in the batch.
        """
        assert self._poll is not None
        try:
            self._poll.unregister(number)
        except OSError:
            pass  # it was let go of

    def _stop(self) -> None:
        self.connectionLost(Failure(ConnectionLost()))

    def connectionLost(self, reason: Failure) -> None:
        """The reactor ends: so does every socket that is watched."""
        for watched in list(self._watched.values()):
            watched.connectionLost(reason)


class PolledReading:
    """
    The reactor, as one of Twisted's transports has it, but that it is read by a
    L{SocketPoll}.

    A connection that carries one stream after the other goes from its transport to a
    relay and back each time; so nothing is registered anew.

    @ivar isReading: Whether the poll watches it for us.
    """

    __slots__ = ("_number", "_poll", "_reactor", "_transport", "isReading")

    _log = Logger()

    def __init__(self, poll: SocketPoll, transport: Any) -> None:
        """
        @param transport: Read by nobody now.
        """
        self.isReading = False
        self._poll = poll
        self._transport = transport
        self._number: int = transport.fileno()
        self._reactor = transport.reactor

    @classmethod
    def of(cls, transport: Any, poll: SocketPoll) -> PolledReading | None:
        """That of a transport, if it has one for this poll."""
        found = getattr(transport, "reactor", None)
        return found if isinstance(found, cls) and found._poll is poll else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def addReader(self, transport: object) -> None:
        """Read."""
        if not self.isReading:
            self.isReading = True
            self._poll.watch(self._number, self, READ)

    def removeReader(self, transport: object) -> None:
        """Do not."""
        if self.isReading:
            self.isReading = False
            self._poll.watch(self._number, self, 0)

    # Watched, with what Twisted's reactors make of it

    def doRead(self) -> None:
        transport = self._transport
        try:
            why = transport.doRead()
            if why is None:
                return
            self.removeReader(transport)
            if isinstance(why, ConnectionDone):
                transport.readConnectionLost(Failure(why))
            else:
                self.connectionLost(Failure(why))
        except Exception:
            self._log.failure("a parked connection failed")
            self.connectionLost(Failure())

    def doWrite(self) -> None:
        """The reactor itself watches for that."""

    def connectionLost(self, reason: Failure) -> None:
        transport = self._transport
        self.removeReader(transport)
        self._reactor.removeWriter(transport)
        try:
            transport.connectionLost(reason)
        except Exception:
            self._log.failure("a protocol failed at the end of its connection")


__all__ = ["READ", "WRITE", "PolledReading", "SocketPoll", "Watched"]
