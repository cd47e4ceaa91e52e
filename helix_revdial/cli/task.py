# -*- test-case-name: tests.cli.test_task -*-
"""
C{helix task}: have an agent do something.

What is not said is found out: the prompt from standard input or an editor, the
repository from the checkout one stands in, the agent from the server if it knows one only.
Nobody is asked where nobody is.

A task is made once however often it had to be sent.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from helix_revdial.cli import completing, task_prompt
from helix_revdial.cli.checkout import repositoryOf
from helix_revdial.cli.edge import PASSED, plain
from helix_revdial.cli.exit_codes import AgentError, InteractionNeeded, ReasonCommand
from helix_revdial.cli.invocation import Invocation, commonFlags, jsonFlag, passInvocation
from helix_revdial.cli.not_offered import TASK, notOffered
from helix_revdial.cli.output import Output
from helix_revdial.cli.retrying import newKey
from helix_revdial.cli.session_group import apiOf, following
from helix_revdial.cli.task_request import (
    MAX_INSTANCES,
    Agents,
    pairs,
    pushed,
    settingsOf,
    taskRequest,
    webhooksOf,
)

if TYPE_CHECKING:
    from helix_revdial.cli.client import Client, Record
    from helix_revdial.cli.task_api import TaskAPI

MANY = 10
"""Tasks at once that are asked about first."""

AGENTS = "helix.agents"
"""Where a context keeps the agents, each with its number of instances."""


class TaskCommand(ReasonCommand):
    """Keeps which C{--instances} stands behind which C{--agent}."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:
            # A shell completes what is not whole yet.
            return super().parse_args(ctx, args)
        values, _, order = self.make_parser(ctx).parse_args(list(args))
        agents = iter(values.get("agents") or ())
        instances = iter(values.get("instances") or ())
        found: list[tuple[str | None, int]] = []
        for parameter in order:
            if parameter.name == "agents":
                found.append((next(agents), 1))
            elif parameter.name == "instances":
                text = str(next(instances))
                if not text.isdecimal() or not 1 <= int(text) <= MAX_INSTANCES:
                    raise click.UsageError(
                        f"--instances: expected a number from 1 to {MAX_INSTANCES}", ctx
                    )
                if not found:
                    found.append((None, 1))
                found[-1] = (found[-1][0], int(text))
        if len(found) > 1 and found[0][0] is None:
            raise click.UsageError("--instances stands behind the --agent that it is for", ctx)
        ctx.meta[AGENTS] = found
        return super().parse_args(ctx, args)


@click.command("task", cls=TaskCommand)
@click.argument("branch", required=False)
@click.option("--prompt", "-p", metavar="TEXT", help="What is to be done.")
@click.option("--prompt-file", "promptFile", metavar="FILE", help="It is in FILE; - is stdin.")
@click.option(
    "--repo",
    metavar="URL|DIR|none",
    help="The repository.  [default: origin of the checkout here]",
)
@click.option(
    "--branch", "base", metavar="NAME", help="What is worked on.  [default: the branch here]"
)
@click.option(
    "--agent",
    "agents",
    multiple=True,
    metavar="TYPE[@VERSION]",
    help="Who does it; repeatable, each makes a task.",
    shell_complete=completing.agents,
)
@click.option(
    "--instances", multiple=True, metavar="N", help="How many tasks the --agent before it gets."
)
@click.option(
    "--setting",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Of the agent; NAME=@FILE for a secret. Repeatable.",
)
@click.option("--labels", "--label", multiple=True, metavar="NAME=VALUE", help="Repeatable.")
@click.option(
    "--delivery",
    type=click.Choice(["pr", "branch", "patch"]),
    help="What becomes of the work.  [default: patch]",
)
@click.option("--target-branch", "targetBranch", metavar="NAME", help="Where it goes.")
@click.option(
    "--push-to-remote",
    "push",
    type=click.BOOL,
    metavar="yes|no",
    help="The same as --delivery branch, or patch.",
)
@click.option(
    "--runtime",
    "--sandbox",
    "runtime",
    type=click.Choice(["local", "devcontainer", "disabled"]),
    help="What it runs in.  [default: local]",
)
@click.option("--devcontainer", metavar="PATH", help="Its path in the repository.")
@click.option("--cpu", type=click.IntRange(1), metavar="N", help="CPUs at most.")
@click.option("--memory", type=click.IntRange(16), metavar="MIB", help="Memory at most.")
@click.option(
    "--host",
    metavar="RUNNER",
    help="Where it runs.  [default: any]",
    shell_complete=completing.runners,
)
@click.option(
    "--snapshot",
    "--fs-snapshots",
    "snapshots",
    multiple=True,
    metavar="PROVIDER",
    help="Best first; repeatable.  [default: auto]",
)
@click.option("--project", metavar="ID", shell_complete=completing.projects)
@click.option("--webhook", "webhooks", multiple=True, metavar="[EVENT=]URL", help="Repeatable.")
@click.option("--yes", "-y", is_flag=True, help="Ask nothing: go on.")
@click.option(
    "--follow/--detach", "-f/-d", default=False, help="Watch it to its end.  [default: detach]"
)
@following
@click.option(
    "--idempotency-key",
    "key",
    metavar="KEY",
    help="The same key makes the same task, once.  [default: a new one]",
)
@notOffered(TASK)
@commonFlags
@jsonFlag
@passInvocation
@click.pass_context
def task(
    context: click.Context,
    invocation: Invocation,
    /,
    branch: str | None,
    prompt: str | None,
    promptFile: str | None,
    repo: str | None,
    base: str | None,
    agents: tuple[str, ...],
    instances: tuple[str, ...],
    settings: tuple[str, ...],
    snapshots: tuple[str, ...],
    delivery: str | None,
    push: bool | None,
    labels: tuple[str, ...],
    webhooks: tuple[str, ...],
    yes: bool,
    follow: bool,
    patience: float,
    cancelOnInterrupt: bool,
    key: str | None,
    asJSON: bool,
    **how: Any,
) -> int:
    """Have an agent do something, in a session of its own; prints its id.

    BRANCH is a branch that the work is pushed to. The prompt is --prompt,
    --prompt-file, standard input, or what $EDITOR writes.

    \b
    Exit codes: 0 done, 1 failed, 2 repository, 3 agent, 4 authorization,
    5 network, 6 resource (rate, runner), 7 validation or usage, 8 settings,
    10 somebody would have to be asked. With --follow the session's end:
    0 completed, 1 failed, 11 stopped, 12 cancelled.
    """
    output = invocation.output
    given = pairs(settings, "--setting")
    common = {
        **how,
        "branch": base,
        "delivery": pushed(delivery, push),
        "snapshots": [one for one in snapshots if one != "auto"],
        "labels": pairs(labels, "--labels"),
        "webhooks": webhooksOf(webhooks),
        "workBranch": branch,
    }
    wanted = list(context.meta[AGENTS]) or [(None, 1)]
    # What can be wrong with the flags is said before anything is asked or sent.
    checked = partial(taskRequest, prompt="-", agent="-", settings={}, **common)
    repository = repositoryOf(repo, Path.cwd())
    checked(repository=repository)
    mayAsk = not invocation.nonInteractive
    interactive = mayAsk and not yes and task_prompt.interactive() and sys.stderr.isatty()
    if repository.unseen and base is None:
        _unseen(output, repository.unseen, interactive)
    count = sum(number for _, number in wanted)
    if count > MAX_INSTANCES:
        raise click.UsageError(f"more than {MAX_INSTANCES} tasks at once")
    if count > MANY and not yes:
        if not interactive:
            raise InteractionNeeded(f"{count} tasks at once: say --yes if that is meant")
        click.confirm(f"{count} tasks at once?", err=True, abort=True)
    text = task_prompt.promptFrom(prompt, promptFile, mayAsk)

    async def command(reactor: Any, client: Client) -> int:
        api = apiOf(client, output)
        known = await _agents(api, wanted)
        schemas = await _schemas(api, known) if given else {}
        requests = [
            taskRequest(
                prompt=text,
                agent=agent,
                settings=settingsOf(given, schemas.get(agent.partition("@")[0], {})),
                repository=repository,
                **common,
            )
            for agent, number in known
            for _ in range(number)
        ]
        made: list[Record] = []
        try:
            for index, request in enumerate(requests):
                made.append(await _made(api, output, request, _key(key, index, len(requests))))
        finally:
            # Those that were made are told, whatever became of the rest.
            if not follow or len(made) < len(requests):
                _tell(output, made, asJSON, len(requests))
        if not follow:
            return PASSED
        return await _follow(reactor, api, output, made, asJSON, patience, cancelOnInterrupt)

    return invocation.ask(command)


def _tell(output: Output, made: list[Record], asJSON: bool, wanted: int) -> None:
    """Print the tasks that were made."""
    if asJSON and made:
        output.json(made[0] if wanted == 1 else made)
    elif not asJSON:
        for one in made:
            output.line(plain(one.get("id"), 64))


async def _made(api: TaskAPI, output: Output, request: Record, key: str) -> Record:
    """
    One task.

    @raise CommandError: None; where it may have been made all the same, how to find out.
    """
    from twisted.internet.defer import CancelledError

    from helix_revdial.cli.failures import TimedOut, Unreachable

    try:
        return await api.createTask(request, key)
    except CancelledError:
        output.notice(
            f"helix: the task may have been made: --idempotency-key {key} asks for the same one"
        )
        raise
    except (TimedOut, Unreachable) as error:
        if isinstance(error, Unreachable) and not error.sent:
            raise
        text = f"{error}; it may have been made: --idempotency-key {key} asks again for the same"
        raise type(error)(text) from None


async def _agents(api: TaskAPI, wanted: list[tuple[str | None, int]]) -> Agents:
    """
    The agents that are meant; the server's only one where none was named.

    @raise AgentError: None was named, and the server knows several, or none.
    """
    found = [(agent, number) for agent, number in wanted if agent is not None]
    if found:
        for agent, _ in found:
            if not agent.partition("@")[0]:
                raise click.UsageError("--agent: expected TYPE or TYPE@VERSION")
        return found
    types = [str(one.get("type")) for one in await api.listed("agents")]
    if len(types) != 1:
        raise AgentError(
            f"which agent? Give --agent: {plain(', '.join(types))}"
            if types
            else "the server has no agents"
        )
    return [(types[0], wanted[0][1])]


async def _schemas(api: TaskAPI, agents: Agents) -> Mapping[str, Record]:
    """The schemas of the agents' settings, as far as there are such agents."""
    from helix_revdial.cli.failures import Refused

    found = {}
    for kind in dict.fromkeys(agent.partition("@")[0] for agent, _ in agents):
        try:
            found[kind] = await api.agentSchema(kind)
        except Refused as error:
            if error.status != 404:
                raise
    return found


async def _follow(
    reactor: Any,
    api: TaskAPI,
    output: Output,
    made: list[Record],
    asJSON: bool,
    patience: float,
    cancelOnInterrupt: bool,
) -> int:
    from helix_revdial.cli.following import follow as followSession
    from helix_revdial.cli.following import followAll
    from helix_revdial.cli.session_view import JSONView, LineView, viewFor

    ids = [str(one.get("id")) for one in made]
    for one in ids:
        output.notice(f"helix: session {plain(one, 64)}")
    flags: dict[str, Any] = {
        "patience": patience,
        "tolerant": True,
        "cancelOnInterrupt": cancelOnInterrupt,
    }
    if len(ids) == 1:
        view = viewFor(output, reactor, asJSON=asJSON)
        return await followSession(reactor, api, output, ids[0], view, **flags)
    return await followAll(
        [
            partial(
                followSession,
                reactor,
                api,
                output,
                one,
                JSONView(output) if asJSON else LineView(output, prefix=f"{one} "),
                **flags,
            )
            for one in ids
        ]
    )


def _unseen(output: Output, unseen: tuple[str, ...], interactive: bool) -> None:
    """Say what of the checkout no server sees."""
    text = f"the task will not see {' and '.join(plain(one, 200) for one in unseen)}"
    if interactive:
        click.confirm(f"{text[:1].upper()}{text[1:]}. Go on?", err=True, abort=True, default=True)
    else:
        output.notice(f"helix: {text}")


def _key(given: str | None, index: int, count: int) -> str:
    """Each task's own C{Idempotency-Key}."""
    if given is None:
        return newKey()
    return given if count == 1 else f"{given}-{index + 1}"


__all__ = ["task"]
