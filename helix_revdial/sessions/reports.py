# -*- test-case-name: tests.sessions.test_driver -*-
"""
What an executor reports becomes events and changes of its session.

Runs within one write of the event log, which also notes the number of the last
report: a report that is told twice is stored once, and one that is missing is
noticed (L{Gap}).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection

from helix_revdial.sessions.changes import happen, lock, put
from helix_revdial.sessions.event_data import EventTooLarge
from helix_revdial.sessions.events import Appender
from helix_revdial.sessions.executor import Report
from helix_revdial.sessions.lifecycle import TERMINAL, Input
from helix_revdial.sessions.moments import (
    Item,
    TimelineFull,
    noteMoment,
    noteSnapshot,
    snapshotNamed,
)
from helix_revdial.sessions.records import Session

_STATES: dict[str, Input] = {"running": "started", "paused": "paused"}


class Gap(Exception):
    """Reports are missing before one: they have to be asked for again."""


def patchPath(session: str) -> str:
    """Where the server has a session's patch."""
    return f"/api/v1/sessions/{session}/patch"


def store(
    connection: Connection, log: Appender, session: str, reports: Sequence[Report]
) -> Session:
    """
    Store reports.

    @param reports: in order; those that are stored already are left out.
    @return: the session as it is then.
    @raise Gap: when one is missing.
    """
    found = lock(connection, session)
    waiting: list[Item] = []

    def flush() -> None:
        log.extend(waiting)
        waiting.clear()

    seq = found.executorSeq
    for report in reports:
        if report.seq <= seq:
            continue
        if report.seq != seq + 1:
            raise Gap(f"report {report.seq} came after {seq}")
        seq = report.seq
        if found.status in TERMINAL:
            # It was given up: what is told of it now comes too late.
            continue
        match report.kind:
            case "state":
                happened = _STATES.get(report.state or "")
                if happened is not None:
                    flush()
                    found = happen(connection, found, log, happened)
            case "exit":
                flush()
                found = _ended(connection, found, log, report)
            case "workspace" if report.workspace is not None:
                found = put(connection, found, log, workspace=msgspec.to_builtins(report.workspace))
            case "delivery":
                delivery = _delivery(session, report)
                found = put(connection, found, log, delivery=delivery)
                waiting.append(("delivery", delivery, report.at))
            case "snapshot":
                waiting += _snapshot(connection, log, session, report)
            case "moment":
                waiting += _moment(connection, log, session, report)
            case "log" | "prompt":
                waiting.append(_log(report))
            case _:
                # A kind that this version does not know.
                pass
        if _isLarge(waiting):
            _tryAlone(log, waiting)
    flush()
    return put(connection, found, log, executorSeq=seq)


def finish(connection: Connection, log: Appender, session: str, report: Report) -> Session:
    """
    Let a session end without a report of it that could be stored.

    @param report: of kind C{exit}; its number does not count.
    @return: the session as it is then.
    """
    return _ended(connection, lock(connection, session), log, report)


def _isLarge(items: list[Item]) -> bool:
    """Whether one that was just added may be too large to be stored."""
    return any(_sizeOf(data) * 6 >= 128 * 1024 for _, data, _ in items[-2:])


def _sizeOf(data: dict[str, Any]) -> int:
    return sum(len(value) for value in data.values() if isinstance(value, str))


def _tryAlone(log: Appender, waiting: list[Item]) -> None:
    """Leave out what is too large to be stored, and say so."""
    items = list(waiting)
    waiting.clear()
    for kind, data, at in items:
        try:
            log.append(kind, data, at)
        except EventTooLarge as error:
            log.append("log", {"level": "warn", "stream": "system", "message": str(error)}, at)


def _log(report: Report) -> Item:
    if report.kind == "prompt":
        text = "The prompt was taken." if report.accepted else "The prompt was not taken."
        message = f"{text} {report.message}" if report.message else text
        level = "info" if report.accepted else "warn"
        return "log", {"level": level, "stream": "system", "message": message}, report.at
    data = {"level": report.level or "info", "message": report.message or ""}
    if report.stream is not None:
        data["stream"] = report.stream[:32]
    return "log", data, report.at


def _delivery(session: str, report: Report) -> dict[str, Any]:
    delivery: dict[str, Any] = {"mode": report.mode or "patch"}
    if delivery["mode"] == "patch":
        delivery["url"] = patchPath(session)
    elif report.url is not None:
        delivery["url"] = report.url
    for name in ("size", "sha256"):
        if getattr(report, name) is not None:
            delivery[name] = getattr(report, name)
    return delivery


def _snapshot(connection: Connection, log: Appender, session: str, report: Report) -> list[Item]:
    try:
        _, items = noteSnapshot(
            connection,
            session,
            at=report.at,
            label=log.clean(report.label or ""),
            provider=report.provider or "copy",
            name=report.snapshot,
            mount=report.mount,
        )
    except TimelineFull:
        return []
    return items


def _moment(connection: Connection, log: Appender, session: str, report: Report) -> list[Item]:
    known = snapshotNamed(connection, session, report.snapshot)
    try:
        _, items = noteMoment(
            connection,
            session,
            at=report.at,
            label=log.clean(report.label or report.note or ""),
            kind="auto",
            note=report.note,
            snapshot=None if known is None else known.id,
        )
    except TimelineFull:
        return []
    return items


def _ended(connection: Connection, session: Session, log: Appender, report: Report) -> Session:
    """The process has ended, or its host has failed."""
    happened: Input
    data: dict[str, Any] = {}
    error: str | None = None
    if report.error is not None:
        happened, error = "broke", report.error
    elif report.exitCode == 0:
        happened = "succeeded"
    else:
        happened = "failed"
        error = (
            f"the agent was ended by {report.signal}"
            if report.signal is not None
            else f"the agent ended with exit code {report.exitCode}"
        )
    if report.exitCode is not None:
        data["exitCode"] = report.exitCode
    if report.signal is not None:
        data["signal"] = report.signal
    if session.status == "stopping" and happened == "failed":
        # That is what it was asked for.
        error = None
    if error is not None:
        data["error"] = error
    return happen(connection, session, log, happened, data, exitCode=report.exitCode, error=error)
