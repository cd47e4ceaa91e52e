# -*- test-case-name: tests.integration.test_task_cli -*-
"""
What a shell offers for ids and names that the server knows.

A shell waits for it at every press of a key: the server is given L{DEADLINE}, and
whatever goes wrong nothing is offered and nothing is said.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from helix_revdial.cli.edge import plain, runCommand
from helix_revdial.cli.invocation import SERVER_META
from helix_revdial.cli.output import several
from helix_revdial.cli.profile import Flags, resolve

if TYPE_CHECKING:
    from helix_revdial.cli.client import Record
    from helix_revdial.cli.task_api import TaskAPI

DEADLINE = 2.0
"""Seconds."""

OFFERED = 100
"""Sessions, the newest, that are offered."""


def sessions(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[Any]]:
    """Ids of sessions, with what they are as their help."""
    found = _ask(context, lambda api: api.sessions([], enough=OFFERED))
    return [
        CompletionItem(
            str(one["id"]), help=plain(f"{one.get('status', '')} {one.get('name', '')}", 60)
        )
        for one in found
        if _fits(one, "id", incomplete)
    ]


def agents(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[Any]]:
    """Types of agents; behind an C{@} their versions."""
    found = _ask(context, lambda api: api.listed("agents"))
    name, at, _ = incomplete.partition("@")
    if not at:
        return [CompletionItem(str(one["type"])) for one in found if _fits(one, "type", incomplete)]
    versions = [
        f"{name}@{version}"
        for one in found
        if one.get("type") == name
        for version in several(one, "versions")
    ]
    return [CompletionItem(one) for one in versions if one.startswith(incomplete)]


def runners(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[Any]]:
    """Ids of runners."""
    return _names(context, "runners", incomplete)


def projects(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[Any]]:
    """Ids of projects."""
    return _names(context, "projects", incomplete)


def _names(context: click.Context, kind: str, incomplete: str) -> list[CompletionItem[Any]]:
    found = _ask(context, lambda api: api.listed(kind))
    return [CompletionItem(str(one["id"])) for one in found if _fits(one, "id", incomplete)]


def _fits(record: Record, name: str, incomplete: str) -> bool:
    """Whether a name may be offered: what is no plain word could do harm in a shell."""
    value = record.get(name)
    return (
        isinstance(value, str)
        and value.startswith(incomplete)
        and value.isprintable()
        and not any(c.isspace() or c in "'\"\\`$;&|<>(){}*?!#~" for c in value)
    )


def _ask(
    context: click.Context, asking: Callable[[TaskAPI], Coroutine[Any, Any, list[Record]]]
) -> list[Record]:
    given = context.find_root().params
    meta = {
        name: context.meta.get(SERVER_META + name) for name in ("url", "restBase", "remoteServer")
    }
    tokenFile = given.get("tokenFile")
    flags = Flags(
        meta["url"] or given.get("url"),
        # Standard input is the shell's.
        None if tokenFile == "-" else tokenFile,
        given.get("profile"),
        meta["restBase"] or given.get("restBase"),
        meta["remoteServer"] or given.get("remoteServer"),
    )
    found: list[Record] = []

    async def main(reactor: Any) -> int:
        from twisted.internet.defer import Deferred

        from helix_revdial.cli.client import connect
        from helix_revdial.cli.task_api import TaskAPI

        client, pool = connect(reactor, settings)
        try:
            found.extend(
                await Deferred.fromCoroutine(asking(TaskAPI(client))).addTimeout(DEADLINE, reactor)
            )
        finally:
            await pool.closeCachedConnections().addTimeout(DEADLINE, reactor)
        return 0

    try:
        settings = resolve(flags, os.environ)
        runCommand(main)
    except Exception:
        # A shell that completes has no place for an error.
        return found
    return found


__all__ = ["agents", "projects", "runners", "sessions"]
