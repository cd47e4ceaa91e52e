# -*- test-case-name: tests.sessions.test_events -*-
"""
Changes of a task's session within a write of the event log.

The functions here run in a transaction, on a row that is locked; each change of
state adds its C{status} event.  L{helix_revdial.sessions.lifecycle} says what may
follow what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, select, update

from helix_revdial.sessions.events import Appender, UnknownSession
from helix_revdial.sessions.lifecycle import TERMINAL, Input, advance
from helix_revdial.sessions.records import Session, columnsOf, fromRow
from helix_revdial.storage.tables import sessions


def lock(connection: Connection, session: str) -> Session:
    """
    Read a session, and keep everybody else from changing it until the commit.

    @raise UnknownSession: if there is none.
    """
    query = select(sessions).where(sessions.c.id == session).with_for_update()
    row = connection.execute(query).one_or_none()
    if row is None:
        raise UnknownSession(f"there is no session {session}")
    return fromRow(row)


def put(connection: Connection, session: Session, log: Appender, **fields: Any) -> Session:
    """
    Set attributes of a session that is locked.

    @return: the session as it is then.
    """
    if not fields:
        return session
    fields.setdefault("updated", log.now)
    connection.execute(
        update(sessions).where(sessions.c.id == session.id).values(**columnsOf(fields))
    )
    return replace(session, **fields)


def happen(
    connection: Connection,
    session: Session,
    log: Appender,
    happened: Input,
    data: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Session:
    """
    Let something happen to a session that is locked.

    @param data: what the C{status} event says besides the status.
    @param fields: attributes that are set together with the state.
    @return: the session as it is then.
    @raise Illegal: for what was asked and cannot be.
    """
    steps, goal = advance(session.status, session.goal, happened)
    if not steps and goal == session.goal:
        return session
    for index, status in enumerate(steps):
        last = index == len(steps) - 1
        log.append("status", {"status": status, **((data or {}) if last else {})})
        if status == "running" and session.started is None:
            session = replace(session, started=log.now)
            fields["started"] = log.now
    if steps:
        fields["status"] = steps[-1]
        if steps[-1] in TERMINAL:
            fields["ended"] = log.now
            fields["stopBy"] = None
    return put(connection, session, log, goal=goal, **fields)
