"""Events as a server sends them, for tests."""

from __future__ import annotations

import json
from typing import Any

from tests.cli.fake import Given

ID = "ses_01ARZ3NDEKTSV4RRFFQ69G5FAV"
EVENTS = f"/api/v1/sessions/{ID}/events"


def event(seq: int, kind: str, **fields: Any) -> dict[str, Any]:
    """One event's JSON."""
    return {
        "type": kind,
        "ts": f"2026-01-02T03:04:{seq % 60:02}.000Z",
        "seq": seq,
        "sessionId": ID,
        **fields,
    }


def stream(*events: dict[str, Any], retry: int | None = None, cut: int = 0) -> Given:
    """
    The answer that has these events.

    @param cut: Bytes that are missing at its end.
    """
    text = "" if retry is None else f"retry: {retry}\n\n"
    for one in events:
        text += f"id: {one['seq']}\nevent: {one['type']}\ndata: {json.dumps(one)}\n\n"
    body = text.encode()
    return Given(body[: len(body) - cut], 200, "text/event-stream; charset=utf-8")


NO_MORE = Given(b"", 204, None)
"""The answer that says that there is nothing more to come."""

STORY = (
    event(1, "status", status="queued"),
    event(2, "status", status="running"),
    event(3, "log", level="info", message="Reading", stream="stdout"),
    event(4, "log", level="error", message="Oh", stream="stderr"),
    event(5, "moment", note="half-way", snapshotId="snap_1"),
    event(6, "delivery", mode="patch", url="/x/patch", size=2048),
    event(7, "status", status="completed", exitCode=0),
)
"""A session's events from its beginning to its end."""
