# -*- test-case-name: tests.http.test_connection -*-
"""
How one request's body comes in.

An L{Intake} takes the bytes of a connection up to the body's end, fills the
L{Body <helix_revdial.http.body.Body>}, asks for what the peer waits to be asked for,
and minds the peer's pace.  The connection tells it when the peer is paused, and
decides what becomes of the connection when a body breaks off.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

from helix_revdial.http.body import Body
from helix_revdial.http.deadline import Deadline
from helix_revdial.http.framing import BodyFraming, ChunkedFraming, LengthFraming, MalformedBody
from helix_revdial.http.limits import HTTPLimits
from helix_revdial.http.problem import Problem


class Intake:
    """
    The receiving side of one request's body; its L{BodySource
    <helix_revdial.http.body.BodySource>}.

    @ivar body: What the request's reader gets.
    @ivar fault: What was wrong with the body, once it has broken off: where the
        next request would begin is then unknown.
    @ivar owesContinue: Whether the peer still waits for C{100 Continue}.
    """

    def __init__(
        self,
        length: int | None,
        expectsContinue: bool,
        limits: HTTPLimits,
        clock: IReactorTime,
        *,
        sayContinue: Callable[[], None],
        regulate: Callable[[], None],
        broken: Callable[[], None],
    ) -> None:
        """
        @param length: See L{Head.length <helix_revdial.http.head.Head>}.
        @param sayContinue: Sends C{100 Continue}, unless the answer has begun.
        @param regulate: Pauses or resumes the peer as L{full} says.
        @param broken: Called when the body breaks off.
        """
        self.body = Body(length, self, highWater=limits.bodyBuffer)
        self.fault: Problem | None = None
        self.owesContinue = expectsContinue and length != 0
        self._limits = limits
        self._sayContinue = sayContinue
        self._regulate = regulate
        self._broken = broken
        self._pace = Deadline(clock)
        self._paceMark = 0
        self._paused = False
        self._framing: BodyFraming | None = None
        if length is None:
            self._framing = ChunkedFraming()
        elif length:
            self._framing = LengthFraming(length)

    @property
    def open(self) -> bool:
        """Whether more of the body is to come."""
        return self._framing is not None

    @property
    def hopeless(self) -> bool:
        """
        Whether no other request can follow on the connection, unless somebody
        reads the body after all.
        """
        if self._framing is None:
            return self.fault is not None
        if self.owesContinue:
            # Not asked to continue, the peer may send its body or not: what comes
            # next on this connection is anybody's guess.
            return True
        body = self.body
        return (
            not body.wanted
            and body.length is not None
            and body.length - body.received > self._limits.drainBytes
        )

    def feed(self, data: bytes) -> bytes:
        """
        Take bytes.

        @return: Those behind the body.
        """
        framing = self._framing
        if framing is None or not data:
            return data
        try:
            pieces, rest = framing.feed(data)
        except MalformedBody as error:
            self.breakOff(Problem(400, f"The request body is malformed: {error}."))
            return b""
        # A peer that did not wait to be asked need not be asked any more.
        self.owesContinue = False
        for piece in pieces:
            self.body.append(piece)
        if framing.complete:
            self._framing = None
            self.stop()
            self.body.end()
        return rest

    def breakOff(self, problem: Problem) -> None:
        """The rest of the body will not come."""
        self._framing = None
        self.fault = problem
        self.stop()
        self.body.fail(problem)
        self._broken()

    def stop(self) -> None:
        """Mind the pace no more."""
        self._pace.clear()

    def discard(self) -> None:
        """Nobody will read the rest: it is taken and dropped."""
        self.body.discard()
        self._regulate()
        self._mindPace()

    def setPaused(self, paused: bool) -> None:
        """The peer has been paused or resumed: while it is, it cannot be slow."""
        self._paused = paused
        if paused:
            self._pace.clear()
        else:
            self._mindPace()

    def bodyWanted(self) -> None:
        """Somebody reads the body: ask for it, if the peer waits to be asked."""
        if self.owesContinue:
            self.owesContinue = False
            self._sayContinue()
        self._mindPace()

    def bodyTaken(self) -> None:
        """The body has room."""
        self._regulate()

    def _mindPace(self) -> None:
        if self._framing is None or self._paused or self._pace.running:
            return
        if self._hurried():
            self._paceMark = self.body.received
            self._pace.set(self._limits.bodyWindow, self._checkPace)

    def _hurried(self) -> bool:
        return self.body.discarding or (self.body.wanted and self.body.hurried)

    def _checkPace(self) -> None:
        least = self._limits.bodyRate * self._limits.bodyWindow
        if self._hurried() and self.body.received - self._paceMark < least:
            self.breakOff(Problem(408, "The request body came too slowly."))
        else:
            self._mindPace()
