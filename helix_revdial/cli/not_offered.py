# -*- test-case-name: tests.cli.test_not_offered -*-
"""
What people know from other commands of this kind and C{helix} does not do, or elsewhere.

A flag that is accepted and does nothing misleads; one that is unknown does not say where to
look.  So these are refused, each with what there is in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

EVERYWHERE: Final = {
    "--log-level": "helix session logs --level LEVEL chooses what is shown of a task's log, "
    "--quiet leaves helix's own notices out",
    "--multiplexer": "no panes are opened: helix session attach watches a task",
    "--working-copy": "a task always has a copy of its own, on its runner",
}
"""Of every command that has to do with tasks, before it and behind it."""

GLOBAL: Final = EVERYWHERE | {
    "--fs-snapshots": "it stands behind the command: helix task --fs-snapshots PROVIDER",
    "--repo": "it stands behind the command: helix task --repo URL, helix session list --repo TEXT",
    "--workspace": "it stands behind the command: helix session list --workspace ID",
}
"""Before a command."""

TASK: Final = EVERYWHERE | {
    "--create-task-files": "the server keeps the task, and no file is written here: "
    "helix session get shows it",
    "--dev-shell": "the agent finds what its runner has: --host RUNNER names one, "
    "--devcontainer PATH a container",
    "--fleet": "a task is done on one runner: --host RUNNER names it, --instances N makes several",
    "--notifications": "--follow ends as the task does, and --webhook URL is told of its end",
    "--workspace": "a task has a workspace of its own: --host RUNNER says where, and "
    "helix session list --workspace lists what has been done in one",
}
"""Of C{helix task}."""


def notOffered(flags: Mapping[str, str]) -> Callable[[F], F]:
    """Have a command refuse flags, each with what there is in its place."""

    def refuse(context: click.Context, parameter: click.Parameter, value: object) -> None:
        if value is not None and not context.resilient_parsing:
            flag = parameter.opts[0]
            raise click.UsageError(f"there is no {flag} here: {flags[flag]}", context)

    def decorate(command: F) -> F:
        for flag in flags:
            command = click.option(
                flag,
                f"notOffered{flag}".replace("-", "_"),
                # Whether a value follows or not, it is this that is said.
                is_flag=False,
                flag_value="",
                hidden=True,
                expose_value=False,
                is_eager=True,
                callback=refuse,
            )(command)
        return command

    return decorate


@click.command(
    "run", hidden=True, context_settings={"ignore_unknown_options": True, "help_option_names": []}
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def runCommand(context: click.Context, words: tuple[str, ...]) -> None:
    """What runs in a session is its agent alone."""
    raise click.UsageError(
        "there is no session run here: only its agent runs in a session; "
        "helix session prompt tells it more, helix session open says how to get at its files",
        context,
    )


__all__ = ["GLOBAL", "TASK", "notOffered", "runCommand"]
