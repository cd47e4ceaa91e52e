# -*- test-case-name: tests.sessions.test_prompts -*-
"""
Prompts to a session that runs: kept from when they are accepted until its host has them.

Each has a number, from 1 within its session.  It is stored before anybody is told
that it was accepted, and leaves when the host has answered; the host takes each
number once.  So neither end loses one, or takes one twice, whichever is killed.

The functions here run in a transaction, on a row that is locked.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection

from helix_revdial.sessions.changes import put
from helix_revdial.sessions.events import Appender
from helix_revdial.sessions.executor import ExecutorUnreachable
from helix_revdial.sessions.records import Session

MAX_WAITING: Final = 100
"""Prompts that wait for the host of one session."""


def addPrompt(connection: Connection, session: Session, log: Appender, text: str) -> Session:
    """
    Keep a prompt for a session's host.

    @return: the session; its C{promptSeq} is the prompt's number.
    @raise ExecutorUnreachable: too many wait for the host already.
    """
    if len(session.prompts) >= MAX_WAITING:
        raise ExecutorUnreachable(f"{MAX_WAITING} prompts wait for the session's runner already")
    number = session.promptSeq + 1
    waiting = [*session.prompts, {"number": number, "text": text}]
    return put(connection, session, log, prompts=waiting, promptSeq=number)


def dropPrompt(connection: Connection, session: Session, log: Appender, number: int) -> Session:
    """
    A prompt was handed over, or refused.

    @return: the session as it is then.
    """
    waiting = [each for each in session.prompts if each["number"] != number]
    return put(connection, session, log, prompts=waiting)
