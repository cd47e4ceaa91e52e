# -*- test-case-name: tests.sessions.test_sessions -*-
"""
Sessions: what runs, and whose it is.

A session is either a task, which this server has an executor run, or a sandbox
that somebody else runs and that is here so that its runner can be owned.  This
module owns the C{sessions} table; a task's row and its events change in one
transaction (L{helix_revdial.sessions.events}).  What lives in a session's name (its
tunnel, its tokens) is ended by those who subscribe to L{Sessions.onDeleted}.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Final

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    Select,
    bindparam,
    case,
    func,
    insert,
    select,
    update,
)
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from helix_revdial.access.cache import AnswerCache, BoundedSet
from helix_revdial.sessions.catalogue import RecentUses, noteUse
from helix_revdial.sessions.changes import happen, lock, put
from helix_revdial.sessions.events import Appender, EventLog
from helix_revdial.sessions.lifecycle import ACTIVE, STATES, TERMINAL, Illegal, Input
from helix_revdial.sessions.prompts import addPrompt, dropPrompt
from helix_revdial.sessions.records import Session, columnsOf, fromRow
from helix_revdial.sessions.redaction import Redactor, secretsOf
from helix_revdial.sessions.tasks import TaskRequest, nameOf, withoutPassword
from helix_revdial.storage.database import Database
from helix_revdial.storage.failures import DatabaseUnavailable
from helix_revdial.storage.ids import isId, newId
from helix_revdial.storage.tables import sessions, tokens

MAX_PER_PAGE: Final = 200

FRESH: Final = 5.0
"""Seconds for which L{Sessions.facts} does not look a session up again."""

KEPT: Final = 3600.0
"""Seconds for which L{Sessions.facts} remembers a session while the database
is lost."""

MAX_KNOWN: Final = 10_000
"""Sessions that L{Sessions.facts} remembers."""

LISTED: Final = ("created", *STATES)
"""The states that a list can be asked for."""

_OF_A_NEW_TASK: Final = (
    "id",
    "tenant",
    "owner",
    "name",
    "status",
    "created",
    "kind",
    "project",
    "updated",
    "spec",
    "agentType",
    "agentVersion",
    "labels",
    "lastSeq",
    "branchOf",
)

_INSERT: Final = insert(sessions)

_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,200}")


class SessionError(ValueError):
    """
    What was asked for cannot be.  HTTP answers 400.

    @ivar field: the name of the wrong parameter.
    """

    def __init__(self, field: str, text: str) -> None:
        self.field = field
        super().__init__(text)


@dataclass(frozen=True, slots=True)
class SessionPage:
    """
    One page of a list.

    @ivar items: newest first.
    @ivar total: how many there are in all.
    @ivar nextPage: the number of the next page, or C{None} on the last.
    """

    items: list[Session]
    total: int
    nextPage: int | None


Subscriber = Callable[[Session], None]

Also = Callable[[Connection, Session], None]
"""What is done in the transaction that makes a session, and has to be so exactly then."""


class Sessions:
    """
    Every session of every tenant.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        database: Database,
        clock: IReactorTime,
        wallClock: Callable[[], float],
        events: EventLog | None = None,
    ) -> None:
        """
        @param clock: for the age of what is remembered.
        @param wallClock: the time of day, in seconds since the epoch.
        @param events: where changes of tasks are told; by default a log of its own.
        """
        self.events = events or EventLog(database, wallClock)
        self._database = database
        self._wallClock = wallClock
        self._known: AnswerCache[str, Session] = AnswerCache(
            clock.seconds, limit=MAX_KNOWN, fresh=FRESH, kept=KEPT
        )
        self._deleted = BoundedSet(MAX_KNOWN)
        self._subscribers: list[Subscriber] = []
        self._uses = RecentUses()

    async def create(
        self,
        *,
        name: str,
        tenant: str,
        owner: str,
        project: str | None = None,
        also: Also | None = None,
    ) -> Session:
        """
        Make a session.

        @param name: 1 to 200 characters, no control characters.
        @param tenant: of whom the owner is a user.
        @param also: done in the same transaction.
        @raise SessionError: for a name of another form.
        """
        if _NAME.fullmatch(name) is None:
            raise SessionError("name", "a name has 1 to 200 characters and no control characters")
        now = self._wallClock()
        session = Session(
            newId("ses", now), tenant, owner, name, "created", now, project=project, updated=now
        )

        def write(connection: Connection) -> None:
            connection.execute(
                insert(sessions).values(
                    id=session.id,
                    tenant=session.tenant,
                    owner=session.owner,
                    name=session.name,
                    status=session.status,
                    created=session.created,
                    project=session.project,
                    updated=session.updated,
                )
            )
            if also is not None:
                also(connection, session)

        await self._database.run(write)
        return session

    async def createTask(
        self,
        request: TaskRequest,
        *,
        tenant: str,
        owner: str,
        project: str | None = None,
        name: str | None = None,
        branchOf: str | None = None,
        branchSnapshot: Mapping[str, str] | None = None,
        also: Also | None = None,
    ) -> Session:
        """
        Make the session of a task, which waits for an executor.

        @param request: what was found to be valid.
        @param name: what it is called, by default what its prompt begins with.
        @param branchOf: the session that it goes on from, and C{branchSnapshot}, with
            which files.
        @param also: done in the same transaction.
        """
        now = self._wallClock()
        spec = msgspec.to_builtins(request)
        url = request.repo.url and withoutPassword(request.repo.url)
        redactor = Redactor(secretsOf(spec, self.events.secretSettings(request.agent.type)))
        session = Session(
            id=newId("ses", now),
            tenant=tenant,
            owner=owner,
            name=redactor.text(name) if name else nameOf(redactor.text(request.prompt)),
            status="queued",
            created=now,
            kind="task",
            project=request.projectId if project is None else project,
            updated=now,
            spec=spec,
            agentType=request.agent.type,
            agentVersion=request.agent.version,
            labels=request.labels,
            lastSeq=1,
            branchOf=branchOf,
            branchSnapshot=branchSnapshot,
        )
        isNoted = self._uses.isNoted(tenant, session.project, url, now)

        def write(connection: Connection, log: Appender) -> None:
            columns = {name: getattr(session, name) for name in _OF_A_NEW_TASK}
            if branchSnapshot is not None:
                columns["branchSnapshot"] = branchSnapshot
            connection.execute(_INSERT, columnsOf(columns))
            if not isNoted:
                noteUse(
                    connection,
                    tenant=tenant,
                    project=session.project,
                    url=url,
                    branch=request.repo.branch,
                    at=now,
                )
            log.begin("status", {"status": "queued"}, now, spec=spec, agent=request.agent.type)
            if also is not None:
                also(connection, session)

        await self.events.write(session.id, write)
        if not isNoted:
            self._uses.note(tenant, session.project, url, now)
        return session

    async def change(
        self,
        session: str,
        happened: Input,
        data: dict[str, Any] | None = None,
        **fields: Any,
    ) -> Session:
        """
        Let something happen to a task's session: one transaction, and one C{status}
        event for each state that it goes through.

        @param data: what the C{status} event says besides the status.
        @param fields: attributes that are set together with the state.
        @return: the session as it is then.
        @raise Illegal: for what was asked and cannot be.
        @raise UnknownSession: if there is no such session.
        """
        return await self.events.write(
            session,
            lambda connection, log: happen(
                connection, lock(connection, session), log, happened, data, **fields
            ),
        )

    async def resume(self, session: str, prompt: str | None = None) -> Session:
        """
        Have a task's session go on, in one transaction with what its agent is told.

        @return: the session as it is then.
        @raise Illegal: unless it is paused, or goes on already.
        @raise ExecutorUnreachable: too many prompts wait.
        """

        def write(connection: Connection, log: Appender) -> Session:
            found = happen(connection, lock(connection, session), log, "resume")
            return found if prompt is None else addPrompt(connection, found, log, prompt)

        return await self.events.write(session, write)

    async def prompt(self, session: str, prompt: str) -> Session:
        """
        Keep what the agent of a running session is told until its host has it.

        @return: the session as it is then; C{promptSeq} is the prompt's number.
        @raise Illegal: unless it runs.
        @raise ExecutorUnreachable: too many prompts wait.
        """

        def write(connection: Connection, log: Appender) -> Session:
            found = lock(connection, session)
            if found.status != "running":
                raise Illegal(found.status, "prompt")
            return addPrompt(connection, found, log, prompt)

        return await self.events.write(session, write)

    async def prompted(self, session: str, number: int) -> Session:
        """The host has answered to a prompt."""
        return await self.events.write(
            session,
            lambda connection, log: dropPrompt(connection, lock(connection, session), log, number),
        )

    async def note(self, session: str, **fields: Any) -> Session:
        """
        Set attributes of a session that are no change of its state.

        @raise UnknownSession: if there is no such session.
        """
        return await self.events.write(
            session,
            lambda connection, log: put(connection, lock(connection, session), log, **fields),
        )

    async def unfinished(self) -> list[Session]:
        """
        The tasks that somebody has to see to, of all tenants, oldest first: those
        that have not ended, and those that are cancelled and not cleaned up.
        """
        query = (
            select(sessions)
            .where(
                sessions.c.kind == "task",
                sessions.c.status.in_(ACTIVE)
                | (
                    sessions.c.forgotten.is_(None)
                    & sessions.c.executor.is_not(None)
                    & ((sessions.c.goal == "cancelled") | sessions.c.deleted.is_not(None))
                ),
            )
            .order_by(sessions.c.created, sessions.c.id)
        )
        return await self._database.read(
            lambda connection: [fromRow(row) for row in connection.execute(query)]
        )

    async def endedWithToken(self) -> list[Session]:
        """The tasks that have ended and whose tokens are nevertheless valid."""
        query = (
            select(sessions)
            .where(
                sessions.c.kind == "task",
                sessions.c.status.in_(TERMINAL),
                sessions.c.id.in_(
                    select(tokens.c.session).where(
                        tokens.c.session.is_not(None), tokens.c.revoked.is_(None)
                    )
                ),
            )
            .order_by(sessions.c.id)
        )
        return await self._database.read(
            lambda connection: [fromRow(row) for row in connection.execute(query)]
        )

    async def get(self, session: str, *, tenant: str | None = None) -> Session | None:
        """
        @param session: the id.
        @param tenant: only a session of this tenant.
        @return: the session, or C{None} when there is none or it is deleted.
        """
        if not isId(session, "ses"):
            return None
        query = select(sessions).where(sessions.c.id == session, sessions.c.deleted.is_(None))
        if tenant is not None:
            query = query.where(sessions.c.tenant == tenant)

        def fetch(connection: Connection) -> Session | None:
            row = connection.execute(query).one_or_none()
            return None if row is None else fromRow(row)

        return await self._database.read(fetch)

    async def facts(self, session: str) -> Session | None:
        """
        The same for whoever has to know whose a session is, over and over:
        remembered for a few seconds, and for longer while the database is
        lost.  A session that this process deleted is gone at once.
        """
        known = self._known.get(session)
        if known is not None:
            return known
        try:
            found = await self.get(session)
        except DatabaseUnavailable:
            kept = self._known.get(session, stale=True)
            if kept is None:
                raise
            return kept
        if found is None or found.id in self._deleted:
            self._known.forget(session)
            return None
        self._known.put(session, found)
        return found

    async def list(
        self,
        *,
        tenant: str,
        owner: str | None = None,
        visibleTo: str | None = None,
        status: Collection[str] = (),
        agent: str | None = None,
        project: str | None = None,
        ran: bool = False,
        page: int = 1,
        perPage: int = 20,
    ) -> SessionPage:
        """
        The sessions of a tenant, newest first, without the deleted ones.

        @param owner: only those of this user.
        @param visibleTo: only tasks, and the sandboxes of this user.
        @param status: only those in one of these states.
        @param agent: only tasks of this type of agent.
        @param project: only those of this project.
        @param ran: only tasks whose agent has run: those that have a workspace.
        @param page: from 1.
        @param perPage: 1 to L{MAX_PER_PAGE}.
        @raise SessionError: for a page that cannot be.
        """
        if not 1 <= page <= 1_000_000:
            raise SessionError("page", "a page's number is 1 or more")
        if not 1 <= perPage <= MAX_PER_PAGE:
            raise SessionError("perPage", f"a page has 1 to {MAX_PER_PAGE} items")
        for one in status:
            if one not in LISTED:
                raise SessionError("status", f"is one of {', '.join(LISTED)}")
        given = {
            "of_tenant": tenant,
            "of_owner": owner,
            "of_viewer": visibleTo,
            "of_status": sorted(status) or None,
            "of_agent": agent,
            "of_project": project,
        }
        given = {name: value for name, value in given.items() if value is not None}
        count, query = _listing(frozenset(given), ran)

        def fetch(connection: Connection) -> SessionPage:
            total = connection.execute(count, given).scalar_one()
            place = {"per_page": perPage, "before": (page - 1) * perPage}
            items = [fromRow(row) for row in connection.execute(query, {**given, **place}).all()]
            return SessionPage(items, total, page + 1 if page * perPage < total else None)

        return await self._database.read(fetch)

    async def delete(self, session: str, *, tenant: str | None = None) -> Session | None:
        """
        Delete a session.  Its row stays, its runner cannot come back, and the
        subscribers are told before this returns.

        @param tenant: only a session of this tenant.
        @return: the session as it is now, or C{None} when there is none.
        """
        if not isId(session, "ses"):
            return None
        where = [sessions.c.id == session, sessions.c.deleted.is_(None)]
        if tenant is not None:
            where.append(sessions.c.tenant == tenant)
        now = self._wallClock()

        def write(connection: Connection) -> Session | None:
            changed = connection.execute(
                update(sessions)
                .where(*where)
                .values(
                    # How a task ended stays worth knowing.
                    status=case((sessions.c.kind == "task", sessions.c.status), else_="deleted"),
                    deleted=now,
                    updated=now,
                )
            )
            if changed.rowcount == 0:
                return None
            row = connection.execute(select(sessions).where(sessions.c.id == session)).one()
            return fromRow(row)

        deleted = await self._database.run(write)
        if deleted is not None:
            self._deleted.add(session)
            self._known.forget(session)
            self._tell(deleted)
        return deleted

    def wasDeleted(self, session: str) -> bool:
        """
        Whether this process deleted that session, not too many ago.

        To be asked just before something lasting is made in its name, without
        waiting in between: a deletion during the wait would miss it.
        """
        return session in self._deleted

    def onDeleted(self, callback: Subscriber) -> Callable[[], None]:
        """
        Have C{callback} called with each session that is deleted here.

        @return: ends the subscription.
        """
        self._subscribers.append(callback)

        def unsubscribe() -> None:
            if callback in self._subscribers:
                self._subscribers.remove(callback)

        return unsubscribe

    def _tell(self, session: Session) -> None:
        for subscriber in list(self._subscribers):
            try:
                subscriber(session)
            except Exception:
                self._log.failure(
                    "a subscriber failed to end what {session} holds", session=session.id
                )


__all__ = ["SessionError", "SessionPage", "Sessions", "Subscriber"]


# Made once for each set of filters: to make a statement costs as much as to run it.
@cache
def _listing(given: frozenset[str], ran: bool) -> tuple[Select[Any], Select[Any]]:
    """
    @param given: the parameters that there are.
    @return: what counts the sessions that are meant, and what reads a page of them.
    """
    filters: dict[str, ColumnElement[bool]] = {
        "of_owner": sessions.c.owner == bindparam("of_owner"),
        "of_viewer": (sessions.c.kind == "task") | (sessions.c.owner == bindparam("of_viewer")),
        "of_status": sessions.c.status.in_(bindparam("of_status", expanding=True)),
        "of_agent": sessions.c.agent_type == bindparam("of_agent"),
        "of_project": sessions.c.project == bindparam("of_project"),
    }
    where = [sessions.c.tenant == bindparam("of_tenant"), sessions.c.deleted.is_(None)]
    where += [condition for name, condition in filters.items() if name in given]
    if ran:
        where += [sessions.c.started.is_not(None), sessions.c.forgotten.is_(None)]
    page = (
        select(sessions)
        .where(*where)
        .order_by(sessions.c.created.desc(), sessions.c.id.desc())
        .limit(bindparam("per_page", type_=Integer))
        .offset(bindparam("before", type_=Integer))
    )
    return select(func.count()).select_from(sessions).where(*where), page
