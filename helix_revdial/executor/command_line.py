# -*- test-case-name: tests.executor.test_command_line -*-
"""
The command line of an agent, filled in.

Its places are those of the declaration (L{helix_revdial.sessions.agents}): the server
checks them, the host fills them in, since it knows the workspace.  All places of a word
are filled at once, so that what is put in (a prompt that speaks of C{{workspace}}) is
never looked at again.  A word stays one argument, whatever is put into it: no
shell reads any of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

_PLACE = re.compile(r"\{(settings\.)?([A-Za-z_][A-Za-z0-9_]*)\}")

MAX_ARGUMENT = 128 * 1024 - 1
"""Bytes of one argument, as the kernel takes it (execve(2))."""


class ArgumentTooLong(ValueError):
    """A word becomes longer than an argument may be; the text says so."""


def fillIn(
    command: Sequence[str], values: Mapping[str, str], settings: Mapping[str, Any]
) -> list[str]:
    """
    The arguments as they are run.

    @param command: As it was declared.
    @param values: What stands for each place; others stay as they are.
    @param settings: What was set; what was not is nothing.
    @raise ArgumentTooLong: The system would not take it.
    """

    def fill(matched: re.Match[str]) -> str:
        if matched[1]:
            return text(settings.get(matched[2]))
        return values.get(matched[2], matched[0])

    filled = [_PLACE.sub(fill, word).replace("\0", "\N{REPLACEMENT CHARACTER}") for word in command]
    if any(len(word.encode("utf-8", "replace")) > MAX_ARGUMENT for word in filled):
        raise ArgumentTooLong(
            f"the command line would have an argument of more than {MAX_ARGUMENT} bytes: the"
            " agent's declaration had better hand the prompt over as a file"
        )
    return filled


def takesPrompt(command: Sequence[str]) -> bool:
    """Whether a command is handed its prompt; else it reads it from standard input."""
    return any(
        not matched[1] and matched[2] in ("prompt", "promptFile")
        for word in command
        for matched in _PLACE.finditer(word)
    )


def text(value: Any) -> str:
    """A setting as an argument: text as it is, anything else as JSON writes it."""
    if value is None:
        return ""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
