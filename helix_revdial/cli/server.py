# -*- test-case-name: tests.cli.test_server -*-
"""C{helix server reload}: have the server read its settings and certificates again."""

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
