# -*- test-case-name: tests.cli.test_session -*-
"""
C{helix session pause}, C{resume}, C{stop}, C{cancel} and C{prompt}: what is done to a session.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from helix_revdial.cli.edge import FAILED, PASSED, CommandError, plain
from helix_revdial.cli.invocation import (
    Invocation,
    commonFlags,
    jsonFlag,
    passInvocation,
)
from helix_revdial.cli.output import Output
from helix_revdial.cli.session_group import (
    oneSession,
    waitFlag,
    withSession,
)
from helix_revdial.cli.session_names import isName

if TYPE_CHECKING:
    from helix_revdial.cli.client import Record
    from helix_revdial.cli.task_api import TaskAPI

MAX_PROMPT = 16 * 1024
"""Characters of a prompt to a session."""


@click.command("pause")
@oneSession
@waitFlag
@commonFlags
@jsonFlag
@passInvocation
def pauseCommand(invocation: Invocation, name: str | None, wait: bool, asJSON: bool) -> int:
    """Freeze a session."""

    async def doing(reactor: Any, api: TaskAPI, found: str) -> int:
        state = await api.pause(found)
        return await _became(api, invocation.output, state, found, wait and ("paused",), asJSON)

    return withSession(invocation, name, doing)


@click.command("resume")
@click.argument("words", nargs=-1, metavar="[ID] [PROMPT]")
@click.option("--prompt", "promptFlag", metavar="TEXT", help="What the agent is told.")
@waitFlag
@commonFlags
@jsonFlag
@passInvocation
def resumeCommand(
    invocation: Invocation,
    words: tuple[str, ...],
    promptFlag: str | None,
    wait: bool,
    asJSON: bool,
) -> int:
    """Let a paused session go on, and tell its agent PROMPT.

    One word alone is an ID; a prompt of one word goes behind it, or into
    --prompt.
    """
    name, prompt = named(words)
    if prompt is not None and promptFlag is not None:
        raise click.UsageError("two prompts were given")
    prompt = _checked(promptFlag if prompt is None else prompt)

    async def doing(reactor: Any, api: TaskAPI, found: str) -> int:
        state = await api.resume(found, prompt)
        return await _became(api, invocation.output, state, found, wait and ("running",), asJSON)

    return withSession(invocation, name, doing)


@click.command("stop")
@oneSession
@click.option("--reason", metavar="TEXT", help="Why; it stands in the session's events.")
@waitFlag
@commonFlags
@jsonFlag
@passInvocation
def stopCommand(
    invocation: Invocation, name: str | None, reason: str | None, wait: bool, asJSON: bool
) -> int:
    """Ask a session to end; it is ended by force at a deadline."""

    async def doing(reactor: Any, api: TaskAPI, found: str) -> int:
        state = await api.stop(found, reason)
        return await _became(api, invocation.output, state, found, wait and ("stopped",), asJSON)

    return withSession(invocation, name, doing)


@click.command("cancel")
@oneSession
@waitFlag
@commonFlags
@jsonFlag
@passInvocation
def cancelCommand(invocation: Invocation, name: str | None, wait: bool, asJSON: bool) -> int:
    """End a session at once, by force.

    A session that has ended is left as it is (helix sessions delete removes it).
    """

    async def doing(reactor: Any, api: TaskAPI, found: str) -> int:
        from helix_revdial.cli.event_reader import TERMINAL

        record = await api.session(found)
        status = str(record.get("status"))
        if status in TERMINAL:
            raise CommandError(f"{found} has ended already: it is {plain(status, 40)}")
        if record.get("kind", "task") != "task":
            raise CommandError(f"{found} is a sandbox's session: helix sessions delete ends it")
        await api.cancel(found)
        state = {"id": found, "status": "stopping"}
        return await _became(api, invocation.output, state, found, wait and ("cancelled",), asJSON)

    return withSession(invocation, name, doing)


@click.command("prompt")
@click.argument("words", nargs=-1, required=True, metavar="[ID] PROMPT")
@commonFlags
@jsonFlag
@passInvocation
def promptCommand(invocation: Invocation, words: tuple[str, ...], asJSON: bool) -> int:
    """Tell the agent of a running session more; PROMPT - is standard input."""
    name: str | None = None
    if len(words) == 1:
        (text,) = words
        if text.startswith("ses_"):
            raise click.UsageError("what is it to be told? Give a prompt, or - for standard input")
    else:
        name, given = named(words)
        text = given or ""
    if text == "-":
        text = sys.stdin.read(MAX_PROMPT + 1)
    prompt = _checked(text)
    assert prompt is not None

    async def doing(reactor: Any, api: TaskAPI, found: str) -> int:
        answer = await api.prompt(found, prompt)
        if asJSON:
            invocation.output.json(answer)
        else:
            invocation.output.line(f"{found} was told")
        return PASSED

    return withSession(invocation, name, doing)


def named(words: tuple[str, ...]) -> tuple[str | None, str | None]:
    """
    The session and the prompt of C{[ID] [PROMPT]}.

    The first word is an id unless it cannot be one, as a sentence cannot.

    @raise click.UsageError: They cannot be told apart.
    """
    if not words:
        return None, None
    if not isName(words[0]):
        if len(words) > 1:
            raise click.UsageError(f"{plain(words[0], 40)!r} is no session; quote the prompt")
        return None, words[0]
    if len(words) > 2:
        raise click.UsageError("more than an ID and a prompt were given; quote the prompt")
    return words[0], words[1] if len(words) > 1 else None


async def _became(
    api: TaskAPI,
    output: Output,
    state: Record,
    session: str,
    wanted: tuple[str, ...] | bool,
    asJSON: bool,
) -> int:
    """Tell what has become of a session, after waiting for it where that is wanted."""
    from helix_revdial.cli.following import waitFor

    code = PASSED
    if isinstance(wanted, tuple):
        status = await waitFor(api, session, wanted)
        state = {**state, "status": status}
        code = PASSED if status in wanted else FAILED
    if asJSON:
        output.json(state)
    else:
        output.line(f"{session} {plain(state.get('status'), 40)}")
    return code


def _checked(prompt: str | None) -> str | None:
    if prompt is not None and not prompt.strip():
        raise click.UsageError("the prompt is empty")
    if prompt is not None and len(prompt) > MAX_PROMPT:
        raise click.UsageError(f"the prompt has more than {MAX_PROMPT:,} characters")
    return prompt


__all__ = [
    "cancelCommand",
    "named",
    "pauseCommand",
    "promptCommand",
    "resumeCommand",
    "stopCommand",
]
