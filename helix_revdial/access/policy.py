# -*- test-case-name: tests.access.test_policy -*-
"""
Who may be which runner, and whose it then is.

A runner key is the name of a machine (C{wolf-1}), or, with the prefix
C{sandbox-} or C{desktop-}, of a session's sandbox.  The second kind is worth
more: whoever registers it is who a user's screen comes from.  So a pattern
that was written for machines never reaches it, and of other principals only
the session itself and its owner do.

The rules are functions of what is known; L{RunnerPolicy} is the shell that
looks the session up.  Nothing here tells a session that does not exist from
one that somebody else owns.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Literal, Protocol

from helix_revdial.access.principals import RUNNER_KEY, Principal

SESSION_PREFIXES: Final = ("desktop-", "sandbox-")
"""What a session's runner keys begin with, the newer form first."""

Expose = Literal["internal", "operator", "owner"]
"""Whom a target is for; see L{mayDial}."""


class SessionFacts(Protocol):
    """What the rules need to know of a session."""

    @property
    def id(self) -> str: ...

    @property
    def tenant(self) -> str: ...

    @property
    def owner(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def project(self) -> str | None: ...


class NotPermitted(Exception):
    """
    The principal may not do this.  HTTP answers 403; C{str()} is a sentence
    that says why, and holds no secret.
    """


def sessionOf(key: str) -> str | None:
    """
    The id of the session that a runner key belongs to, or C{None} for a
    machine's key.
    """
    for prefix in SESSION_PREFIXES:
        if key.startswith(prefix):
            return key[len(prefix) :]
    return None


def matches(pattern: str, key: str) -> bool:
    """
    Whether a runner token's pattern reaches a key.

    C{wolf-1} reaches itself, C{wolf-*} what begins with C{wolf-}, and C{*}
    everything; but only a pattern that itself begins with C{sandbox-} or
    C{desktop-} reaches a key that does.
    """
    if not (key.startswith(pattern[:-1]) if pattern.endswith("*") else key == pattern):
        return False
    return all(pattern.startswith(prefix) for prefix in SESSION_PREFIXES if key.startswith(prefix))


def mayRegister(principal: Principal, key: str, session: SessionFacts | None) -> bool:
    """
    Whether this principal may register (and pick up dials of) a runner.

    @param key: the runner's key.
    @param session: the session that the key belongs to, or C{None} when it
        belongs to none or there is no such session.
    """
    if RUNNER_KEY.fullmatch(key) is None:
        return False
    sessionId = sessionOf(key)
    if principal.kind == "runner":
        # A key that was granted in so many words needs no session of ours;
        # but another tenant's it never is.
        return any(matches(pattern, key) for pattern in principal.patterns) and (
            session is None or session.tenant == principal.tenant
        )
    if sessionId is None or session is None or session.id != sessionId:
        return False
    if principal.kind == "session":
        return principal.session == sessionId and session.tenant == principal.tenant
    return owns(principal, session) and principal.hasRole("admin", "operator")


def within(principal: Principal, session: SessionFacts) -> bool:
    """
    Whether the session is of the principal's tenant, and of its project where it is
    confined to one.  Any other does not exist for it.
    """
    return principal.tenant == session.tenant and principal.project in (None, session.project)


def owns(principal: Principal, session: SessionFacts) -> bool:
    """Whether the session is this user's own."""
    return (
        principal.kind == "user" and principal.user == session.owner and within(principal, session)
    )


def ownerOf(principal: Principal, key: str) -> str:
    """
    Whose the runner key is, once this principal has registered it: who may
    take it over from a live connection.

    A session's key belongs to the session, whether its own token or its
    owner's shows up; any other to the token's family, so that a rotated token
    takes over from the one before.
    """
    sessionId = sessionOf(key)
    return f"family:{principal.family}" if sessionId is None else sessionOwner(sessionId)


def sessionOwner(session: str) -> str:
    """What L{ownerOf} calls the session of that id."""
    return f"session:{session}"


def runnerFor(session: str, connected: Callable[[str], bool]) -> str:
    """
    Which runner a session's desktop is: C{desktop-{session}} if that is
    connected, else C{sandbox-{session}}.

    @param connected: whether the runner of that key is connected (or awaited:
        the caller decides).
    """
    current, earlier = (prefix + session for prefix in SESSION_PREFIXES)
    return current if connected(current) else earlier


def mayDial(principal: Principal, key: str, expose: Expose, session: SessionFacts | None) -> bool:
    """
    Whether this principal may ask for a stream to a runner's target.

    C{internal} targets are dialled by the server alone.  C{operator} targets
    are for operators and admins (of a session's own tenant, for a session's
    runner).  C{owner} targets are for the owner of the runner's session and
    the admins of its tenant; a machine's for operators and admins, since it
    has no owner among the users.

    @param session: as for L{mayRegister}.
    """
    if expose == "internal" or principal.kind != "user":
        return False
    if sessionOf(key) is None:
        # Machines are the tenant's, not a project's.
        return principal.hasRole("admin", "operator") and principal.project is None
    if session is None or not within(principal, session):
        return False
    if expose == "owner" and owns(principal, session):
        return True
    return principal.hasRole("admin") or (expose == "operator" and principal.hasRole("operator"))


class RunnerPolicy:
    """
    The rules above, for those who hold a principal and a key.
    """

    def __init__(self, session: Callable[[str], Awaitable[SessionFacts | None]]) -> None:
        """
        @param session: looks a session up by its id, deleted ones excepted.
        """
        self._session = session

    async def registration(self, principal: Principal, key: str) -> str:
        """
        Permit a registration.

        @return: whose the key is then, as L{ownerOf} says.
        @raise NotPermitted: when the principal may not register the key.
        @raise DatabaseUnavailable: when a session cannot be looked up.
        """
        sessionId = sessionOf(key)
        session = None if sessionId is None else await self._session(sessionId)
        if mayRegister(principal, key, session):
            return ownerOf(principal, key)
        if principal.kind == "runner":
            raise NotPermitted("unauthorized: the token's patterns do not reach this runner")
        if sessionId is None:
            raise NotPermitted("unauthorized: a runner token is needed for this runner")
        raise NotPermitted("unauthorized: session not owned by user")
