# -*- test-case-name: tests.sessions.test_sessions -*-
"""
A session as a value, and as a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, Literal

import msgspec
from sqlalchemy import Row

from helix_revdial.sessions.lifecycle import TERMINAL
from helix_revdial.sessions.tasks import TaskRequest

Kind = Literal["sandbox", "task"]


@dataclass(frozen=True, slots=True)
class Session:
    """
    A session.  Times are seconds since the epoch.

    @ivar id: C{ses_...}.
    @ivar owner: the user whose it is, within the tenant.
    @ivar status: of a task, a L{Status<helix_revdial.sessions.lifecycle.Status>}; of
        a sandbox that somebody else runs, C{created} or C{deleted}.
    @ivar kind: whether this server runs it.
    @ivar updated: when it last changed; C{started}, when its agent first ran.
    @ivar goal: what a session that is stopping is to become.
    @ivar stopBy: when the wait for its end is over.
    @ivar spec: the request that it was made from, as JSON, with what is secret.
    @ivar executor: the id of the executor that has it.
    @ivar error: why it failed, a sentence for its owner.
    @ivar firstSeq: the first event that is kept; C{lastSeq}: the last, or 0.
    @ivar executorSeq: the executor's last report that is among the events.
    @ivar branchOf: the session that it is a branch of.
    @ivar branchSnapshot: what of that one it began with: the snapshot's C{id}, and its
        C{name} on the host.
    @ivar forgotten: when its executor had removed what was left of it.
    @ivar prompts: what its executor has not been told yet, each with its C{number} and
        C{text}; C{promptSeq}: the newest number.
    """

    id: str
    tenant: str
    owner: str
    name: str
    status: str
    created: float
    deleted: float | None = None
    kind: Kind = "sandbox"
    project: str | None = None
    updated: float | None = None
    started: float | None = None
    ended: float | None = None
    goal: str | None = None
    stopBy: float | None = None
    spec: Mapping[str, Any] | None = field(default=None, repr=False)
    agentType: str | None = None
    agentVersion: str | None = None
    executor: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    exitCode: int | None = None
    error: str | None = None
    firstSeq: int = 1
    lastSeq: int = 0
    executorSeq: int = 0
    workspace: Mapping[str, Any] | None = None
    delivery: Mapping[str, Any] | None = None
    branchOf: str | None = None
    branchSnapshot: Mapping[str, str] | None = None
    forgotten: float | None = None
    prompts: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    promptSeq: int = 0

    @property
    def isOver(self) -> bool:
        """Whether nothing will happen to it any more."""
        return self.status in TERMINAL or self.deleted is not None

    @property
    def request(self) -> TaskRequest:
        """What a task was made from."""
        return msgspec.convert(self.spec, TaskRequest)


COLUMNS: Final[Mapping[str, str]] = {
    "stopBy": "stop_by",
    "agentType": "agent_type",
    "agentVersion": "agent_version",
    "exitCode": "exit_code",
    "firstSeq": "first_seq",
    "lastSeq": "last_seq",
    "executorSeq": "executor_seq",
    "branchOf": "branch_of",
    "branchSnapshot": "branch_snapshot",
    "promptSeq": "prompt_seq",
}
"""The columns that are not called as their attributes."""


def columnsOf(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes and their values as columns and theirs."""
    return {COLUMNS.get(name, name): value for name, value in fields.items()}


def fromRow(row: Row[Any]) -> Session:
    """The session of a row with every column."""
    values = dict(zip(_attributes(row._fields), row, strict=True))
    values["labels"] = values["labels"] or {}
    values["prompts"] = values["prompts"] or ()
    return Session(**values)


@cache
def _attributes(columns: tuple[str, ...]) -> tuple[str, ...]:
    """The attributes that columns are, in their order."""
    names = {column: name for name, column in COLUMNS.items()}
    return tuple(names.get(column, column) for column in columns)
