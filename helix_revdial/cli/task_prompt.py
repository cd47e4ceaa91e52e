# -*- test-case-name: tests.cli.test_task -*-
"""
The prompt of a task: given, in a file, from standard input, or written in an editor.
"""

from __future__ import annotations

import sys

import click

from helix_revdial.cli.edge import CommandError, SettingsError, plain
from helix_revdial.cli.exit_codes import InteractionNeeded

MAX_PROMPT = 64 * 1024
"""Characters of a prompt."""

_EDITED = """

# What is to be done? The lines above are the agent's prompt; lines that begin with # are
# left out. Nothing at all makes no task.
"""


def promptFrom(prompt: str | None, file: str | None, mayAsk: bool) -> str:
    """
    What is to be done.

    @param prompt: It itself, where it was given.
    @param file: The file that it is in; C{-}: standard input.
    @param mayAsk: Whether a person at a terminal may be asked.
    @raise InteractionNeeded: Nothing says so, and there is nobody to ask.
    """
    if prompt is not None and file is not None:
        raise click.UsageError("--prompt and --prompt-file exclude each other")
    if prompt is None:
        if file is not None and file != "-":
            prompt = _file(file)
        elif file == "-" or not interactive():
            prompt = _standardInput()
            if not prompt.strip() and file is None:
                raise InteractionNeeded("no prompt: give --prompt, --prompt-file or standard input")
        elif mayAsk:
            prompt = _edited()
        else:
            raise InteractionNeeded("no prompt: give --prompt, --prompt-file or standard input")
    if not prompt.strip():
        raise click.UsageError("the prompt is empty")
    if len(prompt) > MAX_PROMPT:
        raise click.UsageError(f"the prompt has more than {MAX_PROMPT:,} characters")
    return prompt


def interactive() -> bool:
    """Whether somebody is there."""
    return sys.stdin.isatty()


def _file(name: str) -> str:
    try:
        with open(name, "rb") as file:
            content = file.read(4 * MAX_PROMPT + 1)
        return content.decode("utf-8")
    except OSError as error:
        raise SettingsError(f"--prompt-file: {name}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"--prompt-file: {name}: not UTF-8 text") from None


def _standardInput() -> str:
    try:
        return sys.stdin.read(MAX_PROMPT + 1)
    except UnicodeDecodeError:
        raise SettingsError("standard input: not UTF-8 text") from None


def _edited() -> str:
    try:
        text = click.edit(_EDITED, extension=".md")
    except click.ClickException as error:
        raise CommandError(plain(error.format_message())) from None
    lines = [line for line in (text or "").splitlines() if not line.startswith("#")]
    if not "".join(lines).strip():
        raise CommandError("no prompt was written: no task was made")
    return "\n".join(lines).strip()


__all__ = ["MAX_PROMPT", "interactive", "promptFrom"]
