# -*- test-case-name: tests.access.test_table -*-
"""
Who may run which operation: the access table.

Each operation of the HTTP interface carries one word, its I{access}.  Each
word is a row of L{ACCESS}, each kind of principal (users by their role) a
column; the cell says yes, no, "own": yes for what is one's own, or "task": yes
for what is one's own and for every task of the tenant.
L{decide} is the only reader.  C{docs/access.md} shows the same table, and a
test holds the two together.

A resource of another tenant does not exist (404), whatever the row says; what
one knows of and may not touch is forbidden (403).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal

from helix_revdial.access.policy import SessionFacts, owns, within
from helix_revdial.access.principals import DEFAULT_TENANT, Principal

Who = Literal["nobody", "viewer", "operator", "admin", "runner", "session"]

WHO: Final[tuple[Who, ...]] = ("nobody", "viewer", "operator", "admin", "runner", "session")
"""The columns: no token; a user token, by role; a runner token; a session's."""


class Cell(Enum):
    """What a row says of a column."""

    YES = "yes"
    OWN = "own"
    TASK = "task"
    NO = "-"


class Decision(Enum):
    """
    What L{decide} finds; the value is the HTTP status to answer with.
    """

    ALLOWED = 200
    UNAUTHENTICATED = 401
    FORBIDDEN = 403
    HIDDEN = 404


@dataclass(frozen=True, slots=True)
class Row:
    """
    One word of access.

    @ivar word: as an operation carries it.
    @ivar meaning: for people.
    @ivar cells: by L{WHO}.
    @ivar resource: whether the word is about a session, which has a tenant, maybe a
        project, and an owner.
    @ivar tenantWide: whether it is about what belongs to the tenant as a whole:
        nobody who is confined to a project may.
    @ivar serverWide: whether it is about the server that all tenants share: nobody may
        who is of another tenant than that of the server's own people.
    """

    word: str
    meaning: str
    cells: tuple[Cell, Cell, Cell, Cell, Cell, Cell]
    resource: bool = False
    tenantWide: bool = False
    serverWide: bool = False


_Y, _O, _T, _N = Cell.YES, Cell.OWN, Cell.TASK, Cell.NO

ACCESS: Final[dict[str, Row]] = {
    row.word: row
    for row in (
        #                                       nobody viewer operator admin runner session
        Row("public", "open to everybody", (_Y, _Y, _Y, _Y, _Y, _Y)),
        Row("self-token", "one's own token: look at it", (_N, _Y, _Y, _Y, _Y, _Y)),
        Row(
            "runner",
            "open control and data connections; which keys, the table of runners says",
            (_N, _N, _Y, _Y, _Y, _Y),
        ),
        Row("user", "what any user may, about oneself", (_N, _Y, _Y, _Y, _N, _N)),
        Row("viewer", "read what the tenant has", (_N, _Y, _Y, _Y, _N, _N)),
        Row("operator", "make and change what the tenant has", (_N, _N, _Y, _Y, _N, _N)),
        Row("task-creator", "hand in a task", (_N, _N, _Y, _Y, _N, _N)),
        Row(
            "dial",
            "reach a runner's target, by streams or HTTP; which, the table of targets says",
            (_N, _Y, _Y, _Y, _N, _N),
        ),
        Row(
            "admin",
            "what the tenant is: its tokens, its audit log, its connections",
            (_N, _N, _N, _Y, _N, _N),
            tenantWide=True,
        ),
        Row(
            "server",
            "what all tenants share: the server's settings and resources",
            (_N, _N, _N, _Y, _N, _N),
            tenantWide=True,
            serverWide=True,
        ),
        Row(
            "session-viewer",
            "read about a session of the tenant",
            (_N, _Y, _Y, _Y, _N, _N),
            resource=True,
        ),
        Row(
            "session-dial",
            "reach a session's target, by streams or HTTP; which, the table of targets says",
            (_N, _Y, _Y, _Y, _N, _N),
            resource=True,
        ),
        Row(
            "session-reader",
            "see what a session shows: screen, connection",
            (_N, _O, _O, _Y, _N, _N),
            resource=True,
        ),
        Row(
            "session-owner",
            "act on a session: its clipboard, its end",
            (_N, _N, _O, _Y, _N, _N),
            resource=True,
        ),
        Row(
            "task-viewer",
            "read what a session did: its state, log and events",
            (_N, _T, _T, _Y, _N, _N),
            resource=True,
        ),
        Row(
            "session-operator",
            "act on what runs: stop, pause, prompt, delete",
            (_N, _N, _T, _Y, _N, _N),
            resource=True,
        ),
    )
}


def columnOf(principal: Principal | None) -> Who:
    """The column of the table that a principal stands in."""
    if principal is None:
        return "nobody"
    if principal.kind != "user":
        return principal.kind
    for role in ("admin", "operator"):
        if principal.hasRole(role):
            return role
    return "viewer"


def decide(word: str, principal: Principal | None, session: SessionFacts | None = None) -> Decision:
    """
    Whether a principal may run an operation.

    @param word: the operation's access.
    @param principal: who asks, or C{None} without a valid token.
    @param session: for a word about a session, the session that is meant, or
        C{None} when there is none.
    @raise KeyError: for a word that is not in the table.
    """
    row = ACCESS[word]
    cell = row.cells[WHO.index(columnOf(principal))]
    if principal is None:
        return Decision.ALLOWED if cell is Cell.YES else Decision.UNAUTHENTICATED
    if row.tenantWide and principal.project is not None:
        return Decision.FORBIDDEN
    if row.serverWide and principal.tenant != DEFAULT_TENANT:
        return Decision.FORBIDDEN
    if not row.resource:
        return Decision.ALLOWED if cell is Cell.YES else Decision.FORBIDDEN
    if principal.kind != "user":
        return Decision.FORBIDDEN
    if session is None or not within(principal, session):
        return Decision.HIDDEN
    if cell is Cell.YES or (cell is Cell.TASK and session.kind == "task"):
        return Decision.ALLOWED
    if cell in (Cell.OWN, Cell.TASK) and owns(principal, session):
        return Decision.ALLOWED
    return Decision.FORBIDDEN


_PEOPLE: Final[dict[Who, tuple[str, str]]] = {
    "viewer": ("a viewer", "users"),
    "operator": ("an operator", "operators and administrators"),
    "admin": ("an administrator", "administrators"),
    "runner": ("a runner", "runners"),
    "session": ("a session's sandbox", "sandboxes"),
}
"""For a column of the table: who stands in it; whom a row admits whose first user it is."""


def refusal(word: str, principal: Principal) -> str:
    """
    Why L{decide} forbids what it forbids, a sentence for people.

    @param principal: whom it forbade to run the operation.
    @raise KeyError: for a word that is not in the table.
    """
    if ACCESS[word].tenantWide and principal.project is not None:
        return "This is about the whole tenant, and the token is confined to a project of it."
    if ACCESS[word].serverWide and principal.tenant != DEFAULT_TENANT:
        return (
            "This is about the server that all tenants share: it is for administrators of the "
            f"tenant {DEFAULT_TENANT}."
        )
    cells = dict(zip(WHO, ACCESS[word].cells, strict=True))
    column = columnOf(principal)
    if cells[column] in (Cell.OWN, Cell.TASK):
        return "This session belongs to somebody else."
    least = next(who for who in WHO[1:] if cells[who] is not Cell.NO)
    return f"This is for {_PEOPLE[least][1]}, and the token is that of {_PEOPLE[column][0]}."


def tableText() -> str:
    """The table as C{docs/access.md} has it, in Markdown."""
    lines = [
        "| access | what it is for | no token | viewer | operator | admin "
        "| runner token | session token |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines.extend(
        f"| `{row.word}` | {row.meaning} | " + " | ".join(cell.value for cell in row.cells) + " |"
        for row in ACCESS.values()
    )
    return "\n".join(lines) + "\n"
