# -*- test-case-name: tests.http.test_event_frames -*-
"""
The frames of server-sent events (the WHATWG HTML standard, section 9.2), as bytes: what a
conforming parser reads back, whatever the data are.
"""

from __future__ import annotations

import re

_LINE_END = re.compile("\r\n|\r|\n")


def eventFrame(data: str, *, event: str | None = None, id: str | None = None) -> bytes:  # noqa: A002 (the field's name)
    """
    Write one event.

    @param data: What C{MessageEvent.data} is to be.  Line ends of any kind arrive as
        line feeds; JSON on one line arrives as it is.
    @param event: Its type; without it, C{message}.
    @param id: What C{Last-Event-ID} is to be from now on; without it, as before.
    @raise ValueError: if C{event} or C{id} has what no such field can have.
    """
    lines = []
    if id is not None:
        if "\0" in id:
            # A parser would ignore the whole field.
            raise ValueError("an event's id has no NUL")
        lines.append(f"id: {_oneLine(id)}\n")
    if event is not None:
        lines.append(f"event: {_oneLine(event)}\n")
    lines += [f"data: {line}\n" for line in _LINE_END.split(data)]
    lines.append("\n")
    return "".join(lines).encode("utf-8")


def commentFrame(text: str = "") -> bytes:
    """Write what every parser ignores: it only shows that the connection lives."""
    return "".join(f": {line}\n" for line in _LINE_END.split(text)).encode("utf-8") + b"\n"


def retryFrame(milliseconds: int) -> bytes:
    """Tell the client how long to wait before it comes back."""
    return b"retry: %d\n\n" % milliseconds


def _oneLine(text: str) -> str:
    if _LINE_END.search(text):
        raise ValueError("an event's id and type are one line each")
    return text


__all__ = ["commentFrame", "eventFrame", "retryFrame"]
