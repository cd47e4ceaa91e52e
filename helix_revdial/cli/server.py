# -*- test-case-name: tests.cli.test_server -*-
"""
C{helix server reload}: have the server read its settings and certificates again.
C{helix server ledger}: what it holds, by owner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from helix_revdial.cli.edge import PASSED, plain
from helix_revdial.cli.invocation import Invocation, jsonFlag, passInvocation

if TYPE_CHECKING:
    from helix_revdial.cli.client import Client


@click.group("server")
def server() -> None:
    """The server itself (for administrators)."""


@server.command("reload")
@jsonFlag
@passInvocation
def reloadCommand(invocation: Invocation, asJSON: bool) -> int:
    """
    Read the server's settings and certificates again, without a restart.

    All of them are taken on, or none: what is wrong, or cannot change while the
    server runs, is said, and everything stays as it was.
    """
    output = invocation.output

    async def command(reactor: Any, client: Client) -> int:
        answer = await client.reload()
        if asJSON:
            output.json(answer)
            return PASSED
        changed = answer.get("changed")
        output.line("Reloaded: certificates were read again.")
        for name in changed if isinstance(changed, list) else ():
            output.line(f"Changed: {plain(name)}")
        return PASSED

    return invocation.ask(command)


@server.command("ledger")
@jsonFlag
@passInvocation
def ledgerCommand(invocation: Invocation, asJSON: bool) -> int:
    """Show what the server holds: descriptors, timers, dials, buffers, each by its owner."""
    output = invocation.output

    async def command(reactor: Any, client: Client) -> int:
        answer = await client.ledger()
        if asJSON:
            output.json(answer)
            return PASSED
        rows: list[tuple[object, ...]] = []
        for kind, value in answer.items():
            if isinstance(value, dict):
                rows += [(kind, name, count) for name, count in value.items()]
            else:
                rows.append((kind, None, value))
        output.table(("WHAT", "OWNER", "COUNT"), rows)
        return PASSED

    return invocation.ask(command)
