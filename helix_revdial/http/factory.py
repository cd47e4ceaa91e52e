# -*- test-case-name: tests.http.test_limits -*-
"""
What the HTTP connections of one port share: the dispatch, the limits, who is
connected, the access log and the way to stop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from email.utils import formatdate

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import ServerFactory
from twisted.logger import Logger

from helix_revdial.http.connection import Dispatch, HTTPConnection
from helix_revdial.http.deadline import Deadline
from helix_revdial.http.limits import Admission, HTTPLimits
from helix_revdial.http.request import Request


class HTTPFactory(ServerFactory):
    """
    Makes L{HTTPConnection}s.

    @ivar dispatch: Answers requests.
    @ivar firstLook: Given each request without a body before the dispatch is.  It hands
        the connection over (L{Request.handOver}) at once, or leaves the request as it
        is; what it raises is logged, and the dispatch gets the request.
    @ivar admission: The connections of strangers.
    @ivar stopping: Whether L{stop} has been called.
    @ivar answers: How many requests were answered, by the class of the status
        (C{"2xx"}…), C{"handed_over"} or C{"aborted"}.
    @ivar full: How many connections were turned away since there were too many in all.
    """

    noisy = False

    def __init__(
        self,
        dispatch: Dispatch,
        clock: IReactorTime,
        limits: HTTPLimits | None = None,
        *,
        serverHeader: bytes = b"helix_revdial",
        log: Logger | None = None,
        wallClock: Callable[[], float] | None = None,
    ) -> None:
        """
        @param dispatch: Given each request whose head is acceptable.  May raise
            L{Problem}; anything else it raises is logged and answered with 500.
            It is cancelled when the connection is lost.
        @param clock: For all deadlines and the durations in the access log.
        @param log: Where one line per request goes.
        @param wallClock: Seconds since 1970, for the C{Date} header.
        """
        self.dispatch = dispatch
        self.firstLook: Callable[[Request], object] | None = None
        self.clock = clock
        self.limits = limits if limits is not None else HTTPLimits()
        self.serverHeader = serverHeader
        self.admission = Admission(self.limits)
        self.stopping = False
        self.answers: dict[str, int] = {}
        self.full = 0
        self._log = log if log is not None else Logger(namespace="helix_revdial.http.access")
        self._wallClock = wallClock
        self._date = b""
        self._dateUntil = float("-inf")
        self._http: set[HTTPConnection] = set()
        self._successors: set[HTTPConnection] = set()
        self._turnedAway: set[HTTPConnection] = set()
        self._idle: Deferred[None] | None = None
        self._stopDeadline = Deadline(clock)

    def buildProtocol(  # type: ignore[override]
        self, addr: IAddress | None
    ) -> HTTPConnection | None:
        """
        @return: C{None}, which closes the connection, when even those that are
            being turned away are many, or the factory has stopped.
        """
        if self.stopping or len(self._turnedAway) >= self.limits.maxUnauthenticated:
            return None
        return HTTPConnection(self)

    def setLimits(self, limits: HTTPLimits) -> None:
        """From now on, other limits; a connection keeps those that it began with."""
        self.limits = limits
        self.admission.setLimits(limits)

    @property
    def connections(self) -> int:
        """Connections that are served or handed over."""
        return len(self._http) + len(self._successors)

    def admit(self, connection: HTTPConnection, address: str) -> bool:
        """
        @param address: See L{Admission.admit}.
        @return: Whether the connection may be served.
        """
        if self.connections >= self.limits.maxConnections:
            self.full += 1
        elif self.admission.enter(address):
            if self.admission.admit(address):
                connection.countedAs = address
                self._http.add(connection)
                return True
            self.admission.leave(address)
        self._turnedAway.add(connection)
        return False

    def handedOver(self, connection: HTTPConnection) -> None:
        """The connection has a successor: it is not waited for at the end."""
        self._http.discard(connection)
        self._successors.add(connection)
        self._checkIdle()

    def disconnected(self, connection: HTTPConnection) -> None:
        """The connection is gone."""
        if connection.countedAs is not None:
            self.admission.leave(connection.countedAs)
            connection.countedAs = None
        for group in (self._http, self._successors, self._turnedAway):
            group.discard(connection)
        self._checkIdle()

    def date(self) -> bytes:
        """The C{Date} header's value, formatted once a second."""
        now = self.clock.seconds()
        if now >= self._dateUntil:
            wall = None if self._wallClock is None else self._wallClock()
            self._date = formatdate(wall, usegmt=True).encode("ascii")
            self._dateUntil = now + 1
        return self._date

    def logAccess(self, request: Request, status: int | str, begun: float) -> None:
        """One line per request.  The query stays out: old wires carry secrets there."""
        word = f"{status // 100}xx" if isinstance(status, int) else status.replace(" ", "_")
        self.answers[word] = self.answers.get(word, 0) + 1
        self._log.info(
            "{peer} {method} {path} {status} {milliseconds:.0f} ms {requestId}",
            peer=request.clientHost,
            method=request.method,
            path=request.path,
            status=status,
            milliseconds=(self.clock.seconds() - begun) * 1000,
            requestId=request.requestId,
            **request.logged,
        )

    def logRefused(self, peer: IAddress | None, status: int, why: str, requestId: str) -> None:
        """One line for what was no request."""
        self._log.info(
            "{peer} refused {status} {why} {requestId}",
            peer=getattr(peer, "host", "unix"),
            status=status,
            why=why,
            requestId=requestId,
        )

    def closeIdle(self) -> None:
        """Close the connections that are kept alive for a next request."""
        for connection in list(self._http):
            connection.closeIdle()

    def descriptors(self) -> Iterator[tuple[int, str]]:
        """
        The descriptor of each connection, and what it is for: C{"http"}, or what its
        request was when it was handed over.
        """
        for connection in (*self._http, *self._successors, *self._turnedAway):
            try:
                number = connection.transport.fileno()
            except Exception:  # noqa: S112 (a transport without one)
                continue
            if isinstance(number, int) and number >= 0:
                yield number, connection.purpose

    def sizes(self) -> dict[str, int]:
        """How many entries there are in each table that is kept here."""
        return {
            "http": len(self._http),
            "handed_over": len(self._successors),
            "turned_away": len(self._turnedAway),
            "strangers": self.admission.total,
        }

    def stop(self, timeout: float = 30.0) -> Deferred[None]:
        """
        Stop serving: idle connections close, running requests finish.

        Connections that were handed over are their successors' business.

        @param timeout: Seconds after which what still runs is cut off; a later
            call sets it anew.
        @return: Fires when no HTTP connection is left.
        """
        self.stopping = True
        if self._idle is None:
            self._idle = Deferred()
            for connection in list(self._http):
                connection.stop()
            self._stopDeadline.set(timeout, self._stopNow)
            self._checkIdle()
        elif not self._idle.called:
            self._stopDeadline.set(timeout, self._stopNow)
        result: Deferred[None] = Deferred()

        def pass_(value: None) -> None:
            result.callback(None)

        self._idle.addCallback(pass_)
        return result

    def _stopNow(self) -> None:
        for connection in [*self._http, *self._turnedAway]:
            connection.abort()

    def _checkIdle(self) -> None:
        if self._idle is not None and not self._idle.called and not self._http:
            self._stopDeadline.clear()
            self._idle.callback(None)


class IdentifyingFactory(ServerFactory):
    """
    The same for a port on which TLS verifies client certificates.

    @ivar identifies: Whether these say who asks, so that the requests of new
        connections have them as C{certificate}.
    """

    noisy = False

    def __init__(self, factory: HTTPFactory, identifies: bool) -> None:
        self.identifies = identifies
        self._factory = factory

    def buildProtocol(  # type: ignore[override]
        self, addr: IAddress | None
    ) -> HTTPConnection | None:
        connection = self._factory.buildProtocol(addr)
        if connection is not None:
            connection.identifies = self.identifies
        return connection
