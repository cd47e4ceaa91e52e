# -*- test-case-name: tests.cli.test_session,tests.cli.test_task -*-
"""
The API's operations for tasks, sessions and what there is to ask for.

What is done to a session is sent with an C{Idempotency-Key} and, where no answer came, sent
again: it is done once.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING

from helix_revdial.cli.client import Client, Record, segment
from helix_revdial.cli.edge import CommandError
from helix_revdial.cli.retrying import newKey, postOnce

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

SESSIONS = "/api/v1/sessions"

PER_PAGE = 100
"""Sessions that are asked for at once; each has its prompt, which can be long."""

LOG_LINES = 200
"""Lines of a log that are asked for at once."""

MAX_PAGE = 64 * 1024 * 1024
"""Bytes that a page of sessions or of a log may have."""

SILENCE = 60.0
"""Seconds that a patch may pause on its way."""


class TaskAPI:
    """
    The operations.

    @param client: The server.
    @param onRetry: Told why something is sent again.
    """

    def __init__(
        self, client: Client, onRetry: Callable[[CommandError], object] = lambda error: None
    ) -> None:
        self.client = client
        self._exchange = client.exchange
        self._onRetry = onRetry

    @property
    def clock(self) -> IReactorTime:
        """The time of its waits."""
        return self._exchange.clock

    async def createTask(self, task: Record, key: str) -> Record:
        """
        C{POST /api/v1/tasks}.

        @param key: The C{Idempotency-Key}: the same key makes the same task.
        """
        return await self._post("/api/v1/tasks", task, key)

    async def sessions(
        self, filters: list[tuple[str, str]], *, enough: int | None = None
    ) -> list[Record]:
        """C{GET /api/v1/sessions}, the newest first."""
        perPage = PER_PAGE if enough is None else min(enough, PER_PAGE)
        return await self.client.pages(
            SESSIONS, [*filters, ("perPage", str(max(1, perPage)))], enough=enough, limit=MAX_PAGE
        )

    async def session(self, session: str) -> Record:
        """C{GET /api/v1/sessions/{session}}."""
        return self.client.record(await self._exchange.request("GET", _path(session)))

    def logs(
        self, session: str, query: list[tuple[str, str]], tail: int | None
    ) -> AsyncGenerator[list[Record], None]:
        """C{GET /api/v1/sessions/{session}/logs}: all lines, page by page, or the last."""
        more = ("perPage", str(LOG_LINES)) if tail is None else ("tail", str(tail))
        return self.client.eachPage(_path(session) + "/logs", [*query, more], limit=MAX_PAGE)

    async def workspace(self, session: str) -> Record:
        """C{GET /api/v1/sessions/{session}/workspace}."""
        return self.client.record(
            await self._exchange.request("GET", _path(session) + "/workspace")
        )

    async def patch(self, session: str) -> AsyncGenerator[bytes, None]:
        """C{GET /api/v1/sessions/{session}/patch}, as it comes."""
        opened = await self._exchange.open(
            _path(session) + "/patch", accept="text/x-diff, application/json;q=0.1"
        )
        try:
            while (piece := await opened.pieces.next(SILENCE)) is not None:
                yield piece
        finally:
            opened.pieces.close()

    async def pause(self, session: str) -> Record:
        """C{POST /api/v1/sessions/{session}/pause}."""
        return await self._post(_path(session) + "/pause", {})

    async def resume(self, session: str, prompt: str | None) -> Record:
        """C{POST /api/v1/sessions/{session}/resume}."""
        return await self._post(
            _path(session) + "/resume", {} if prompt is None else {"prompt": prompt}
        )

    async def stop(self, session: str, reason: str | None) -> Record:
        """C{POST /api/v1/sessions/{session}/stop}."""
        return await self._post(
            _path(session) + "/stop", {} if reason is None else {"reason": reason}
        )

    async def prompt(self, session: str, prompt: str) -> Record:
        """C{POST /api/v1/sessions/{session}/prompt}."""
        return await self._post(_path(session) + "/prompt", {"prompt": prompt})

    async def openIde(self, session: str, ide: str) -> Record:
        """C{POST /api/v1/sessions/{session}/open/ide}."""
        return await self._post(_path(session) + "/open/ide", {"ide": ide})

    async def cancel(self, session: str) -> None:
        """C{DELETE /api/v1/sessions/{session}}, which cancels what has not ended."""
        await self._exchange.request("DELETE", _path(session))

    async def listed(self, kind: str, query: list[tuple[str, str]] | None = None) -> list[Record]:
        """
        C{GET /api/v1/{kind}}: what there is to ask for.

        @param kind: C{agents}, C{runtimes}, C{runners}, C{repos}, C{workspaces} or C{projects}.
        """
        return await self.client.pages(f"/api/v1/{kind}", query or [])

    async def agentSchema(self, agent: str) -> Record:
        """C{GET /api/v1/schemas/agents/{agent}.json}."""
        path = f"/api/v1/schemas/agents/{segment(agent)}.json"
        return self.client.record(await self._exchange.request("GET", path))

    async def refs(self, url: str) -> Record:
        """C{GET /api/v1/git/refs}."""
        return self.client.record(
            await self._exchange.request("GET", "/api/v1/git/refs", query=[("url", url)])
        )

    async def _post(self, path: str, body: Record, key: str | None = None) -> Record:
        answer = await postOnce(
            self._exchange,
            path,
            body,
            key=key or newKey(),
            random=random.random,
            onRetry=self._onRetry,
        )
        return self.client.record(answer)


def _path(session: str) -> str:
    return f"{SESSIONS}/{segment(session)}"


__all__ = ["TaskAPI"]
