# -*- test-case-name: tests.cli.test_sessions -*-
"""C{helix sessions}: create, list, delete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from helix_revdial.cli.edge import PASSED, plain
from helix_revdial.cli.invocation import Identifier, Invocation, jsonFlag, passInvocation
from helix_revdial.cli.output import field, moment

if TYPE_CHECKING:
    from helix_revdial.cli.client import Client


@click.group()
def sessions() -> None:
    """Sessions: create, list, delete."""


@sessions.command("create")
@click.argument("name", required=False)
@click.option("--name", "-n", "nameFlag", help="The same as the argument NAME.")
@jsonFlag
@passInvocation
def createCommand(
    invocation: Invocation, name: str | None, nameFlag: str | None, asJSON: bool
) -> int:
    """Create a session called NAME; prints its id."""
    if name is not None and nameFlag is not None and name != nameFlag:
        raise click.UsageError("two different names were given")
    wanted = name if name is not None else nameFlag
    if not wanted or not wanted.strip():
        raise click.UsageError("a session needs a name")

    async def command(reactor: Any, client: Client) -> int:
        session = await client.createSession(wanted)
        if asJSON:
            invocation.output.json(session)
        else:
            invocation.output.line(plain(session.get("id")))
        return PASSED

    return invocation.ask(command)


@sessions.command("list")
@jsonFlag
@passInvocation
def listCommand(invocation: Invocation, asJSON: bool) -> int:
    """List the sessions that you may see."""

    async def command(reactor: Any, client: Client) -> int:
        found = await client.sessions()
        if asJSON:
            invocation.output.json(found)
        else:
            invocation.output.table(
                ("SESSION", "NAME", "STATUS", "OWNER", "CREATED"),
                [
                    (
                        session.get("id"),
                        session.get("name"),
                        session.get("status"),
                        session.get("owner"),
                        moment(field(session, "created", "createdAt")),
                    )
                    for session in found
                ],
            )
        return PASSED

    return invocation.ask(command)


@sessions.command("delete")
@click.argument("session", nargs=-1, required=True, type=Identifier())
@passInvocation
def deleteCommand(invocation: Invocation, session: tuple[str, ...]) -> int:
    """Delete each SESSION; its tunnel is cut at once."""

    async def command(reactor: Any, client: Client) -> int:
        for one in session:
            await client.deleteSession(one)
            invocation.output.line(f"Deleted {one}")
        return PASSED

    return invocation.ask(command)


__all__ = ["sessions"]
