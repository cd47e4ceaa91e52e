"""
What the commands of C{helix session} have in common: how a session is meant, and their flags.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import click

from helix_revdial.cli.edge import plain
from helix_revdial.cli.event_reader import PATIENCE
from helix_revdial.cli.invocation import Duration, Invocation
from helix_revdial.cli.output import Output
from helix_revdial.cli.session_names import SessionName, resolveSession

if TYPE_CHECKING:
    from helix_revdial.cli.client import Client
    from helix_revdial.cli.task_api import TaskAPI

F = TypeVar("F", bound=Callable[..., Any])

oneSession = click.argument("name", required=False, type=SessionName(), metavar="[ID]")

waitFlag = click.option("--wait", is_flag=True, help="Wait until it is so.")

_patience = click.option(
    "--patience",
    type=Duration(),
    default=PATIENCE,
    help="For how long a server that is away is waited for; 0: any time.  [default: 15m]",
)

_cancelling = click.option(
    "--cancel-on-interrupt",
    "cancelOnInterrupt",
    is_flag=True,
    help="Ctrl-C cancels the session, a second one leaves it to itself.",
)


def following(command: F) -> F:
    """The flags of what follows a session."""
    for option in (_cancelling, _patience):
        command = option(command)
    return command


def apiOf(client: Client, output: Output) -> TaskAPI:
    """The operations, that tell of what they send again."""
    from helix_revdial.cli.task_api import TaskAPI

    return TaskAPI(client, lambda error: output.notice(f"helix: {plain(error)}; trying again"))


Doing = Callable[[Any, "TaskAPI", str], Coroutine[Any, Any, int]]
"""Takes the reactor, the operations, and the session's id; returns the exit code."""


def withSession(invocation: Invocation, name: str | None, doing: Doing) -> int:
    """Do something with the session that is meant; one that was not named is told."""

    async def command(reactor: Any, client: Client) -> int:
        api = apiOf(client, invocation.output)
        found = await resolveSession(api, name)
        if name is None:
            invocation.output.notice(f"helix: session {plain(found, 64)}")
        return await doing(reactor, api, found)

    return invocation.ask(command)


__all__ = [
    "Doing",
    "apiOf",
    "following",
    "oneSession",
    "waitFlag",
    "withSession",
]
