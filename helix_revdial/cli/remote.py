# -*- test-case-name: tests.cli.test_remote -*-
"""
C{helix remote}: what there is to ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from helix_revdial.cli.edge import PASSED, plain
from helix_revdial.cli.exit_codes import ReasonGroup
from helix_revdial.cli.invocation import Invocation, commonFlags, jsonFlag, passInvocation
from helix_revdial.cli.output import duration, moment, several, size

if TYPE_CHECKING:
    from helix_revdial.cli.client import Client, Record


@click.group(cls=ReasonGroup)
def remote() -> None:
    """What a task can ask for: agents, runtimes, runners, repositories, ..."""


Column = tuple[str, Callable[["Record"], object]]


def _get(name: str) -> Callable[[Record], object]:
    return lambda record: record.get(name)


def _time(name: str) -> Callable[[Record], object]:
    return lambda record: moment(record.get(name))


def _number(name: str, shown: Callable[[Any], object]) -> Callable[[Record], object]:
    """A number as people read it; what is none is shown as it is."""

    def read(record: Record) -> object:
        value = record.get(name)
        return shown(value) if isinstance(value, int | float) else value

    return read


def _listing(
    name: str,
    summary: str,
    columns: Sequence[Column],
    *,
    path: str | None = None,
    filters: Sequence[tuple[str, str]] = (),
    hidden: bool = False,
) -> None:
    """
    Add a command that lists.

    @param path: Behind C{/api/v1/}; the same as the name unless given.
    @param filters: The flags that filter, each with its parameter of the API.
    """

    def listCommand(invocation: Invocation, /, asJSON: bool, **given: str | None) -> int:
        query = [(parameter, value) for parameter, value in given.items() if value is not None]

        async def command(reactor: Any, client: Client) -> int:
            from helix_revdial.cli.task_api import TaskAPI

            found = await TaskAPI(client).listed(path or name, query)
            if asJSON:
                invocation.output.json(found)
            else:
                invocation.output.table(
                    [heading for heading, _ in columns],
                    [[read(one) for _, read in columns] for one in found],
                )
            return PASSED

        return invocation.ask(command)

    command = jsonFlag(commonFlags(passInvocation(listCommand)))
    for flag, parameter in filters:
        command = click.option(flag, parameter, metavar="TEXT")(command)
    remote.command(name, help=summary, hidden=hidden)(command)


_RUNNER: Sequence[Column] = (
    ("RUNNER", _get("id")),
    ("KIND", _get("kind")),
    ("HEALTH", _get("health")),
    ("RUNNING", _get("running")),
    ("SLOTS", _get("slots")),
    ("OS", _get("os")),
    ("ARCH", _get("arch")),
    ("RUNTIMES", _get("runtimes")),
    ("SNAPSHOTS", _get("snapshotCapabilities")),
    ("HEARD", _time("lastHeartbeat")),
)

_listing(
    "agents",
    "The agents that can be asked.",
    (
        ("AGENT", _get("type")),
        ("VERSIONS", _get("versions")),
        ("SETTINGS", _get("settingsSchemaRef")),
    ),
)
_listing(
    "runtimes",
    "The runtimes of the runners that are there.",
    (
        ("RUNTIME", _get("type")),
        ("IMAGES", _get("images")),
        ("PATHS", _get("paths")),
        ("PROFILES", _get("sandboxProfiles")),
    ),
)
_listing("runners", "The hosts that run sessions, and how they are.", _RUNNER)
_listing("executors", "The same as runners.", _RUNNER, hidden=True)
_listing(
    "repos",
    "The repositories that tasks have named.",
    (
        ("REPOSITORY", _get("id")),
        ("NAME", _get("displayName")),
        ("URL", _get("remoteUrl")),
        ("BRANCH", _get("defaultBranch")),
        ("USED", _time("lastUsedAt")),
    ),
    filters=[("--project", "projectId")],
)
_listing(
    "workspaces",
    "The workspaces of sessions.",
    (
        ("WORKSPACE", _get("id")),
        ("STATUS", _get("status")),
        ("RUNNER", _get("executorId")),
        ("AGE", _number("age", duration)),
        ("ACTIVITY", _time("lastActivity")),
        ("STORAGE", _number("storageUsed", size)),
    ),
    filters=[("--status", "status")],
)
_listing(
    "projects",
    "The projects that tasks have named.",
    (("PROJECT", _get("id")), ("NAME", _get("displayName")), ("USED", _time("lastUsedAt"))),
)


@remote.command("refs")
@click.argument("repository", metavar="URL")
@commonFlags
@jsonFlag
@passInvocation
def refsCommand(invocation: Invocation, repository: str, asJSON: bool) -> int:
    """The branches and tags of the repository URL, as the server sees them."""

    async def command(reactor: Any, client: Client) -> int:
        from helix_revdial.cli.task_api import TaskAPI

        answer = await TaskAPI(client).refs(repository)
        if asJSON:
            invocation.output.json(answer)
            return PASSED
        default = answer.get("defaultBranch")
        invocation.output.table(
            ("REF", "TYPE", "COMMIT"),
            [
                (
                    f"{plain(ref.get('name'))}{' *' if ref.get('name') == default else ''}",
                    ref.get("type"),
                    ref.get("sha"),
                )
                for ref in several(answer, "refs")
                if isinstance(ref, dict)
            ],
        )
        return PASSED

    return invocation.ask(command)


__all__ = ["remote"]
