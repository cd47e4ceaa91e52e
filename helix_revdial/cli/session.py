# -*- test-case-name: tests.cli.test_session -*-
"""
C{helix session}: what there is, and where its work is.

Each command but C{list} is for one session, the newest task unless it is named
(L{session_names<helix_revdial.cli.session_names>}).
"""

from __future__ import annotations

from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from helix_revdial.cli.edge import PASSED, plain
from helix_revdial.cli.exit_codes import ReasonGroup
from helix_revdial.cli.files import WholeFile
from helix_revdial.cli.invocation import (
    Invocation,
    commonFlags,
    jsonFlag,
    passInvocation,
)
from helix_revdial.cli.not_offered import runCommand
from helix_revdial.cli.output import Output, duration, field, harmless, moment, several
from helix_revdial.cli.session_control import (
    cancelCommand,
    pauseCommand,
    promptCommand,
    resumeCommand,
    stopCommand,
)
from helix_revdial.cli.session_group import (
    apiOf,
    oneSession,
    withSession,
)
from helix_revdial.cli.session_watching import attachCommand, eventsCommand, logsCommand

if TYPE_CHECKING:
    from helix_revdial.cli.client import Client, Record
    from helix_revdial.cli.task_api import TaskAPI

STATES = (
    "queued",
    "provisioning",
    "running",
    "pausing",
    "paused",
    "resuming",
    "stopping",
    "stopped",
    "completed",
    "failed",
    "cancelled",
)

LISTED = 50
"""Sessions that are listed unless more are asked for."""


@click.group(cls=ReasonGroup)
def session() -> None:
    """Tasks' sessions: watch them, and what is done to them.

    A session is named by its id, the beginning of one, its branch or
    REPOSITORY/BRANCH (the newest; .2 behind it: the one before that);
    without a name it is the newest task.

    \b
    Exit codes: 0 done, 1 failed, 2 repository, 3 agent, 4 authorization,
    5 network, 6 resource (rate, runner), 7 validation or usage, 8 settings,
    10 somebody would have to be asked. What follows a session ends as it does:
    0 completed, 1 failed, 11 stopped, 12 cancelled.
    """


@click.command("list")
@click.option("--status", "statuses", multiple=True, type=click.Choice(STATES), help="Repeatable.")
@click.option("--agent", metavar="TYPE", help="Only of this agent.")
@click.option("--project", metavar="ID", help="Only of this project.")
@click.option("--repo", metavar="TEXT", help="Only with this in the repository's address.")
@click.option(
    "--workspace", metavar="ID|RUNNER", help="Only this workspace's, or those on this runner."
)
@click.option("--all", "sandboxes", is_flag=True, help="Sandboxes' sessions, too.")
@click.option(
    "--limit",
    type=click.IntRange(0, 100_000),
    default=LISTED,
    show_default=True,
    help="How many at most; 0 for all.",
)
@commonFlags
@jsonFlag
@passInvocation
def listCommand(
    invocation: Invocation,
    statuses: tuple[str, ...],
    agent: str | None,
    project: str | None,
    repo: str | None,
    workspace: str | None,
    sandboxes: bool,
    limit: int,
    asJSON: bool,
) -> int:
    """List sessions, the newest first."""
    filters = [("status", ",".join(statuses))] if statuses else []
    filters += [("agent", agent)] if agent else []
    filters += [("projectId", project)] if project else []

    async def command(reactor: Any, client: Client) -> int:
        # What the server does not filter is looked for in all.
        enough = limit if limit and sandboxes and not repo and not workspace else None
        found = await apiOf(client, invocation.output).sessions(filters, enough=enough)
        found = [one for one in found if sandboxes or one.get("kind", "task") == "task"]
        found = [one for one in found if not repo or repo in str(_vcs(one, "repoUrl") or "")]
        found = [one for one in found if not workspace or workspace in _workspace(one)]
        found = found[:limit] if limit else found
        if asJSON:
            invocation.output.json(found)
            return PASSED
        invocation.output.table(
            ("SESSION", "STATUS", "AGENT", "REPO", "BRANCH", "CREATED", "NAME"),
            [
                (
                    one.get("id"),
                    one.get("status"),
                    _agent(one),
                    _vcs(one, "repoUrl"),
                    _vcs(one, "branch"),
                    moment(field(one, "createdAt", "created")),
                    plain(one.get("name") or "", 60),
                )
                for one in found
            ],
        )
        return PASSED

    return invocation.ask(command)


@click.command("get")
@oneSession
@commonFlags
@jsonFlag
@passInvocation
def getCommand(invocation: Invocation, name: str | None, asJSON: bool) -> int:
    """Show one session."""

    async def doing(reactor: Any, api: TaskAPI, found: str) -> int:
        record = await api.session(found)
        if asJSON:
            invocation.output.json(record)
        else:
            for line in described(record):
                invocation.output.line(line)
        return PASSED

    return withSession(invocation, name, doing)


@click.command("workspace")
@oneSession
@commonFlags
@jsonFlag
@passInvocation
def workspaceCommand(invocation: Invocation, name: str | None, asJSON: bool) -> int:
    """Show where a session's files are."""

    async def doing(reactor: Any, api: TaskAPI, found: str) -> int:
        answer = await api.workspace(found)
        if asJSON:
            invocation.output.json(answer)
            return PASSED
        for label, key in (
            ("Provider", "snapshotProvider"),
            ("Mount path", "mountPath"),
            ("Host", "host"),
            ("Host path", "hostPath"),
            ("Runner", "executionHostId"),
        ):
            if answer.get(key):
                invocation.output.line(f"{label + ':':12} {plain(answer[key])}")
        return PASSED

    return withSession(invocation, name, doing)


@click.command("patch")
@oneSession
@click.option(
    "-o", "--output", "target", metavar="FILE", help="Where it goes.  [default: standard output]"
)
@commonFlags
@passInvocation
def patchCommand(invocation: Invocation, name: str | None, target: str | None) -> int:
    """Fetch a session's work as a patch: helix session patch | git apply."""

    async def doing(reactor: Any, api: TaskAPI, found: str) -> int:
        output = invocation.output
        if target is None or target == "-":
            decoder, size = _Pieces(output), 0
            async with aclosing(api.patch(found)) as pieces:
                async for piece in pieces:
                    decoder.write(piece)
                    size += len(piece)
            decoder.end()
            if not size:
                # What git apply says of it does not say that.
                output.notice("helix: the patch is empty: nothing was changed")
            return PASSED
        with WholeFile(Path(target)) as file:
            parts = []
            async with aclosing(api.patch(found)) as pieces:
                async for piece in pieces:
                    parts.append(piece)
            file.commit(b"".join(parts))
        output.notice(f"helix: {sum(map(len, parts)):,} bytes in {target}")
        return PASSED

    return withSession(invocation, name, doing)


@click.command("open")
@oneSession
@click.option(
    "--ide",
    type=click.Choice(["vscode", "cursor", "windsurf"]),
    default="vscode",
    show_default=True,
)
@commonFlags
@jsonFlag
@passInvocation
def openCommand(invocation: Invocation, name: str | None, ide: str, asJSON: bool) -> int:
    """Print the commands that open a session's files in an editor."""

    async def doing(reactor: Any, api: TaskAPI, found: str) -> int:
        answer = await api.openIde(found, ide)
        if asJSON:
            invocation.output.json(answer)
            return PASSED
        for line in several(answer, "commands"):
            invocation.output.line(plain(line))
        if answer.get("notes"):
            invocation.output.notice(plain(answer["notes"]))
        return PASSED

    return withSession(invocation, name, doing)


def described(record: Record) -> list[str]:
    """A session for people, a fact on a line."""
    started = _seconds(record.get("startedAt"))
    ended = _seconds(record.get("endedAt")) or datetime.now(UTC).timestamp()
    delivery = record.get("delivery") or {}
    facts = [
        ("Session", record.get("id")),
        ("Status", record.get("status")),
        ("Exit code", record.get("exitCode")),
        ("Error", record.get("error")),
        ("Agent", _agent(record)),
        ("Repository", _vcs(record, "repoUrl")),
        ("Branch", _vcs(record, "branch")),
        ("Commit", _vcs(record, "commit")),
        ("Delivery", field(delivery, "url", "mode") if isinstance(delivery, dict) else None),
        ("Project", record.get("projectId")),
        ("Owner", record.get("owner")),
        ("Created", moment(field(record, "createdAt", "created"))),
        ("Started", moment(record.get("startedAt"))),
        ("Ended", moment(record.get("endedAt"))),
        ("Took", duration(ended - started) if started is not None else None),
        ("Events", record.get("lastSeq")),
        ("Prompt", record.get("prompt") or record.get("name")),
    ]
    return [f"{label + ':':12} {plain(value)}" for label, value in facts if value not in (None, "")]


class _Pieces:
    """Writes a patch: as it is into a pipe, harmless to a terminal."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._rest = b""

    def write(self, piece: bytes) -> None:
        """More of it."""
        if not self._output.isTerminal:
            self._output.bytes(piece)
            return
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            self._output.line(harmless(line.decode("utf-8", "replace")))

    def end(self) -> None:
        """That was all."""
        if self._rest:
            self._output.line(harmless(self._rest.decode("utf-8", "replace")))


def _seconds(text: object) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except (ValueError, OverflowError):
        return None


def _agent(record: Record) -> str | None:
    agent = record.get("agent")
    if not isinstance(agent, dict):
        return None
    version = agent.get("version", "latest")
    return f"{agent.get('type')}" + ("" if version == "latest" else f"@{version}")


def _workspace(record: Record) -> tuple[object, ...]:
    """The names of a session's workspace: its id, and the runner that it is on."""
    place = record.get("workspace")
    return (record.get("id"), place.get("executionHostId") if isinstance(place, dict) else None)


def _vcs(record: Record, name: str) -> object:
    vcs = record.get("vcs")
    return vcs.get(name) if isinstance(vcs, dict) else None


session.add_command(attachCommand)
session.add_command(cancelCommand)
session.add_command(eventsCommand)
session.add_command(getCommand)
session.add_command(listCommand)
session.add_command(logsCommand)
session.add_command(openCommand)
session.add_command(patchCommand)
session.add_command(pauseCommand)
session.add_command(promptCommand)
session.add_command(resumeCommand)
session.add_command(runCommand)
session.add_command(stopCommand)
session.add_command(workspaceCommand)

__all__ = ["described", "session"]
