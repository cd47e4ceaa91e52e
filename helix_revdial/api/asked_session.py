# -*- test-case-name: tests.api.test_timeline,tests.api.test_tasks,tests.api.test_patches -*-
"""
The session that an operation is about: what it has to be, and the answer where it is not.
"""

from __future__ import annotations

from helix_revdial.http.operations import Call
from helix_revdial.http.problem import Problem
from helix_revdial.sessions.records import Session
from helix_revdial.sessions.timeline import hasBegun


def taskOf(call: Call) -> Session:
    """
    The session of a task.

    @raise Problem: 409 for a sandbox that somebody else runs.
    """
    session: Session = call.resource
    if session.kind != "task":
        raise Problem(409, "Somebody else runs this sandbox, not this server.", code="not-a-task")
    return session


def begunOf(call: Call) -> Session:
    """
    The session of a task that has begun.

    @raise Problem: 409 where it has not, or as for L{taskOf}.
    """
    session = taskOf(call)
    if not hasBegun(session):
        raise conflict(session, "it has not begun")
    return session


def checkKept(session: Session) -> None:
    """
    Go on only while a session's host has its files.

    @raise Problem: 410 once it has them no more.
    """
    if session.forgotten is not None:
        raise Problem(410, "The session's workspace has been removed.", code="session-over")


def conflict(session: Session, why: str) -> Problem:
    """The answer for what cannot be done to a session as it is now."""
    return Problem(
        409, f"The session is {session.status}: {why}.", code=f"session-{session.status}"
    )
