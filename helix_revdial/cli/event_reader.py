# -*- test-case-name: tests.cli.test_event_reader -*-
"""
A session's events, each once and in order, over as many connections as it takes.

A stream that breaks off is asked for again where it broke off (C{Last-Event-ID}), after a
wait that grows.  A server that is away for a while, is restarted, closes a reader that
did not keep up or is silent where its heartbeats should be is nothing that the reader of
the events sees, except that it may show what it is told of (C{onTrouble}).

The stream is over with the event that tells of the session's end, or when the server
says that there is no more (204).
"""

from __future__ import annotations

import json
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from helix_revdial.cli.edge import CommandError, plain
from helix_revdial.cli.retrying import Backoff, passing, pause

if TYPE_CHECKING:
    from helix_revdial.cli.client import Client, Record
    from helix_revdial.cli.event_stream import ServerEvent
    from helix_revdial.cli.exchange import Opened

EVENT_STREAM = "text/event-stream"

SILENCE = 60.0
"""Seconds without a byte after which a stream is taken for dead: four heartbeats."""

PATIENCE = 15 * 60.0
"""Seconds for which a server that is away is asked again."""

TERMINAL = ("stopped", "completed", "failed", "cancelled")
"""The states that a session ends in."""


@dataclass(frozen=True)
class SessionEvent:
    """
    One event of a session.

    @ivar seq: Its number; 0 for what has none.
    @ivar raw: The server's own JSON.
    """

    type: str
    seq: int
    raw: Record

    @property
    def status(self) -> str | None:
        """The session's new state, if that is what it tells."""
        value = self.raw.get("status")
        return value if self.type == "status" and isinstance(value, str) else None


class EventReader:
    """
    Reads one session's events.

    @ivar seq: The number of the last event that was given out.
    @ivar ended: The state that the session ended in, as far as that is known.
    """

    def __init__(
        self,
        client: Client,
        session: str,
        *,
        after: int = 0,
        patience: float = PATIENCE,
        tolerant: bool = False,
        onTrouble: Callable[[str], object] = lambda why: None,
        onBack: Callable[[], object] = lambda: None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """
        @param after: The number of the last event that is not wanted.
        @param patience: Seconds without a connection after which it gives up; 0: never.
        @param tolerant: Whether the first connection, too, may be waited for.
        @param onTrouble: Told, once for each, why there is no connection.
        @param onBack: Told that there is one again.
        @param chance: From 0 to 1, for the waits.
        """
        self.seq = after
        self.ended: str | None = None
        self._client = client
        self._session = session
        self._patience = patience
        self._connected = tolerant
        self._troubled = False
        self._onTrouble = onTrouble
        self._onBack = onBack
        self._backoff = Backoff(chance)
        self._retry: float | None = None

    async def events(self) -> AsyncGenerator[SessionEvent, None]:
        """
        Every event after C{seq}, until the session has ended.

        To be closed (C{aclosing}) where it is not read to its end.

        @raise CommandError: The server refuses, is no such server, or was away for
            longer than is waited.
        """
        clock = self._client.exchange.clock
        lost = clock.seconds()
        while self.ended is None:
            wait: float | None = None
            try:
                opened = await self._open()
                if opened is None:
                    return
                self._back()
                async with aclosing(self._read(opened)) as read:
                    async for event in read:
                        self._backoff.succeeded()
                        yield event
                wait = self._retry
                lost = clock.seconds()
            except CommandError as error:
                if not self._connected or not passing(error):
                    raise
                wait = getattr(error, "retryAfter", None) or self._retry
                if not self._troubled:
                    lost = clock.seconds()
                    self._troubled = True
                    self._onTrouble(plain(error))
                elif self._patience and clock.seconds() - lost > self._patience:
                    raise
            if self.ended is None:
                await pause(clock, self._backoff.wait(wait))

    async def _open(self) -> Opened | None:
        """The stream from here on, or L{None} if there is nothing more to come."""
        from helix_revdial.cli.client import segment
        from helix_revdial.cli.failures import BadAnswer

        opened = await self._client.exchange.open(
            f"/api/v1/sessions/{segment(self._session)}/events",
            headers={"last-event-id": str(self.seq)} if self.seq else {},
            accept=EVENT_STREAM,
        )
        self._connected = True
        if opened.status == 204:
            opened.pieces.close()
            return None
        if opened.contentType != EVENT_STREAM:
            opened.pieces.close()
            raise BadAnswer(
                f"{self._client.url} answered with {opened.contentType or 'something'} where "
                "events were asked for; compare `helix version --server`"
            )
        return opened

    async def _read(self, opened: Opened) -> AsyncGenerator[SessionEvent, None]:
        """The new events of one connection."""
        from helix_revdial.cli.event_stream import EventParser, EventTooLarge
        from helix_revdial.cli.failures import BadAnswer

        parser = EventParser(str(self.seq) if self.seq else "")
        try:
            while (piece := await opened.pieces.next(SILENCE)) is not None:
                try:
                    found = parser.feed(piece)
                except EventTooLarge as error:
                    raise BadAnswer(f"{self._client.url}: {error}") from None
                if parser.retry is not None:
                    self._retry = parser.retry / 1000
                for one in found:
                    event = self._event(one)
                    if event is None:
                        continue
                    yield event
                    if self.ended is not None:
                        return
        finally:
            opened.pieces.close()

    def _event(self, one: ServerEvent) -> SessionEvent | None:
        """What has not been seen yet."""
        from helix_revdial.cli.failures import BadAnswer

        try:
            raw: Any = json.loads(one.data)
        except (ValueError, RecursionError):
            raw = None
        if not isinstance(raw, dict):
            raise BadAnswer(f"{self._client.url} sent an event that is no JSON object")
        kind = raw.get("type")
        if not isinstance(kind, str):
            kind = one.type
        if kind == "heartbeat":
            return None
        if one.id.isascii() and one.id.isdigit() and len(one.id) < 19:
            seq = int(one.id)
            if seq <= self.seq:
                return None
            self.seq = seq
        event = SessionEvent(kind, self.seq, raw)
        if event.status in TERMINAL:
            self.ended = event.status
        return event

    def _back(self) -> None:
        if self._troubled:
            self._troubled = False
            self._onBack()


__all__ = ["PATIENCE", "SILENCE", "TERMINAL", "EventReader", "SessionEvent"]
