# -*- test-case-name: tests.cli.test_forwards -*-
"""C{helix forwards}: ports of the server that lead to targets: list, create, delete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from helix_revdial.cli.edge import PASSED, plain
from helix_revdial.cli.invocation import Identifier, Invocation, jsonFlag, passInvocation

if TYPE_CHECKING:
    from helix_revdial.cli.client import Client

COLUMNS = (
    "FORWARD", "LISTEN", "RUNNER", "TARGET", "ALLOW", "PROXY", "OPEN", "ACCEPTED", "REFUSED",
    "FAILED", "LAST ERROR",
)  # fmt: skip


@click.group("forwards")
def forwards() -> None:
    """Ports of the server that lead to targets (for administrators)."""


@forwards.command("list")
@jsonFlag
@passInvocation
def listCommand(invocation: Invocation, asJSON: bool) -> int:
    """List every forward, with what came of its connections."""

    async def command(reactor: Any, client: Client) -> int:
        found = await client.forwards()
        if asJSON:
            invocation.output.json(found)
            return PASSED
        invocation.output.table(
            COLUMNS,
            [
                (
                    one.get("id"),
                    one.get("listen"),
                    one.get("runner"),
                    one.get("target"),
                    one.get("allow"),
                    "v2" if one.get("proxyProtocol") else None,
                    one.get("connections"),
                    one.get("accepted"),
                    one.get("refused"),
                    one.get("failed"),
                    one.get("lastError"),
                )
                for one in found
            ],
        )
        return PASSED

    return invocation.ask(command)


@forwards.command("create")
@click.argument("listen")
@click.argument("runner", type=Identifier())
@click.argument("target", type=Identifier(), required=False)
@click.option(
    "--allow", multiple=True, metavar="CIDR", help="Who may connect; needed beyond loopback."
)
@click.option(
    "--proxy-protocol",
    "proxyProtocol",
    is_flag=True,
    help="Tell the target who connected, with a PROXY header (version 2).",
)
@jsonFlag
@passInvocation
def createCommand(
    invocation: Invocation,
    listen: str,
    runner: str,
    target: str | None,
    allow: tuple[str, ...],
    proxyProtocol: bool,
    asJSON: bool,
) -> int:
    """
    Have the server listen on LISTEN, and lead whoever connects to TARGET beside RUNNER.

    LISTEN is a port of the server's loopback, tcp:PORT or tcp:PORT:interface=ADDRESS;
    port 0 is any that is free, of those that the server has for forwards. Prints the id,
    and where it listens.
    """
    wanted: dict[str, Any] = {
        "listen": f"tcp:{listen}" if listen.isdigit() else listen,
        "runner": runner,
        "allow": list(allow),
        "proxyProtocol": proxyProtocol,
    }
    if target is not None:
        wanted["target"] = target

    async def command(reactor: Any, client: Client) -> int:
        made = await client.createForward(wanted)
        if asJSON:
            invocation.output.json(made)
        else:
            invocation.output.line(f"{plain(made.get('id'))} {plain(made.get('listen'))}")
        return PASSED

    return invocation.ask(command)


@forwards.command("delete")
@click.argument("forward", nargs=-1, required=True, type=Identifier())
@passInvocation
def deleteCommand(invocation: Invocation, forward: tuple[str, ...]) -> int:
    """End each FORWARD: its port is free, its connections are cut."""

    async def command(reactor: Any, client: Client) -> int:
        for one in forward:
            await client.deleteForward(one)
            invocation.output.line(f"Deleted {one}")
        return PASSED

    return invocation.ask(command)


__all__ = ["forwards"]
