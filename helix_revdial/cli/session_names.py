# -*- test-case-name: tests.cli.test_session_names -*-
"""
Which session is meant.

A whole id is taken as it is.  The beginning of one, with or without its C{ses_}, is
looked up and must fit one session only.  Otherwise it is the branch that sessions work
on, or C{repository/branch}: the newest of them, or with C{.N} behind it the Nth newest.
Nothing at all is the newest task.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from helix_revdial.cli.edge import CommandError, plain

if TYPE_CHECKING:
    from helix_revdial.cli.client import Record
    from helix_revdial.cli.task_api import TaskAPI

WHOLE = re.compile(r"ses_[0-9A-HJKMNP-TV-Z]{26}")
"""What an id looks like: a ULID, and what it is one of."""

_NUMBERED = re.compile(r"(.+)\.([1-9][0-9]{0,3})")

LOOKED_THROUGH = 2000
"""Sessions, the newest, that are looked through for a name."""

NEWEST = 20
"""Sessions among which the newest task is looked for first."""

SHOWN = 5
"""Sessions that an error names."""


class SessionName(click.ParamType[Any]):
    """An id, the beginning of one, C{[repository/]branch}, or C{[repository/]branch.N}."""

    name = "session"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if not isName(text) or "/../" in f"/{text}/":
            self.fail(
                "expected a session's id, the beginning of one, or a branch: letters, digits, "
                "'.', '_', '/' and '-'",
                param,
                ctx,
            )
        return text

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[Any]]:
        from helix_revdial.cli.completing import sessions

        return sessions(ctx, param, incomplete)


def isName(text: str) -> bool:
    """Whether a word can name a session at all."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,250}", text) is not None


async def resolveSession(api: TaskAPI, name: str | None) -> str:
    """
    The id of the session that is meant.

    @param name: What was given; L{None}: nothing.
    @raise CommandError: None is meant, or more than one.
    """
    if name is None:
        return await _newest(api)
    if WHOLE.fullmatch(name):
        return name
    sessions = await api.sessions([], enough=LOOKED_THROUGH)
    ids = [str(one.get("id")) for one in sessions]
    if name in ids:
        return name
    fits = [one for one in ids if one.startswith(name) or one.removeprefix("ses_").startswith(name)]
    if len(fits) == 1:
        return fits[0]
    if len(fits) > 1:
        shown = ", ".join(plain(one, 64) for one in fits[:SHOWN])
        rest = f" and {len(fits) - SHOWN} more" if len(fits) > SHOWN else ""
        raise CommandError(f"{name} is the beginning of {shown}{rest}: give more of the id")
    numbered = _NUMBERED.fullmatch(name)
    # A branch may have a name that ends in a number.
    for branch, place in ((name, 1), (numbered[1], int(numbered[2])) if numbered else (name, 1)):
        works = [str(one.get("id")) for one in sessions if branch in _branches(one)]
        if len(works) >= place:
            return works[place - 1]
    raise CommandError(
        f"no session's id begins with {name}, and none works on a branch of that name: "
        "helix session list shows what there is"
    )


async def _newest(api: TaskAPI) -> str:
    for enough in (NEWEST, LOOKED_THROUGH):
        sessions = await api.sessions([], enough=enough)
        for one in sessions:
            if one.get("kind", "task") == "task":
                return str(one.get("id"))
        if len(sessions) < enough:
            break
    raise CommandError("there is no task's session yet: helix task makes one")


def _branches(session: Record) -> set[str]:
    """The names that a session has by what it works on."""
    vcs = session.get("vcs")
    if not isinstance(vcs, dict):
        return set()
    delivery = vcs.get("delivery")
    target = delivery.get("targetBranch") if isinstance(delivery, dict) else None
    branches = {str(one) for one in (vcs.get("branch"), target) if one}
    url = str(vcs.get("repoUrl") or "").rstrip("/").removesuffix(".git")
    repository = re.split(r"[/:]", url)[-1]
    return branches | ({f"{repository}/{one}" for one in branches} if repository else set())


__all__ = ["SessionName", "isName", "resolveSession"]
