# -*- test-case-name: tests.cli.test_exit_codes -*-
"""
The exit codes of C{helix task}, C{session} and C{remote}: why, for scripts.

The other families keep 1 for whatever went wrong and 2 for usage and settings.  These
have a code for each reason, since what a script does next depends on it: correct the
task, wait, log in, or ask a person.
"""

from __future__ import annotations

from typing import Any

import click

from helix_revdial.cli.edge import FAILED, PASSED, CommandError, SettingsError

REPOSITORY = 2
"""The repository: none, or not one that the server can take."""

AGENT = 3
"""The agent: none such, or not with these settings."""

AUTHORIZATION = 4
"""No key, or one that may not."""

NETWORK = 5
"""No answer, or none of the API's."""

RESOURCE = 6
"""There is not enough: a rate limit, no runner, a server that is overloaded."""

VALIDATION = 7
"""Flags, arguments or fields that cannot be."""

CONFIGURATION = 8
"""The settings: environment, profile, files that flags name."""

INTERACTION = 10
"""Somebody has to say something, and nobody is there."""

STOPPED = 11
"""C{--follow}: the session was stopped."""

CANCELLED = 12
"""C{--follow}: the session was cancelled."""

ENDS = {"completed": PASSED, "failed": FAILED, "stopped": STOPPED, "cancelled": CANCELLED}
"""How a session ended, for who followed it."""


class RepositoryError(CommandError):
    """The repository cannot be used."""

    exitCode = REPOSITORY


class AgentError(CommandError):
    """The agent cannot be used."""

    exitCode = AGENT


class InteractionNeeded(CommandError):
    """Somebody would have to be asked."""

    exitCode = INTERACTION


def codeOf(error: CommandError) -> int:
    """The exit code for an error, by its reason."""
    from helix_revdial.cli.failures import BadAnswer, Refused, TimedOut, Unreachable

    if isinstance(error, SettingsError):
        return CONFIGURATION
    if isinstance(error, BadAnswer | TimedOut | Unreachable):
        return NETWORK
    if not isinstance(error, Refused):
        return error.exitCode
    match error.status:
        case 401 | 403:
            return AUTHORIZATION
        case 400 | 413 | 415 | 422:
            return _field(error.fields)
        case 429 | 503 | 507:
            return RESOURCE
        case 502 | 504:
            return NETWORK
        case _:
            return FAILED


def _field(fields: tuple[str, ...]) -> int:
    """The code for the fields of a request that were wrong: of what they all belong to."""
    rooms = {name.partition(".")[0] for name in fields}
    if len(rooms) != 1:
        return VALIDATION
    return {"repo": REPOSITORY, "agent": AGENT}.get(rooms.pop(), VALIDATION)


class _Reasons(click.Command):
    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            raise _invalid(error) from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise _invalid(error) from None
        except CommandError as error:
            error.exitCode = codeOf(error)
            raise


class _Invalid(click.UsageError):
    exit_code = VALIDATION


def _invalid(error: click.UsageError) -> click.UsageError:
    if isinstance(error, click.exceptions.NoArgsIsHelpError | _Invalid):
        return error
    return _Invalid(error.format_message(), error.ctx)


class ReasonCommand(_Reasons):
    """A command that is its own family, and exits with the codes of this module."""


class ReasonGroup(_Reasons, click.Group):
    """A family whose commands exit with the codes of this module."""


__all__ = [
    "AGENT",
    "AUTHORIZATION",
    "CANCELLED",
    "CONFIGURATION",
    "ENDS",
    "INTERACTION",
    "NETWORK",
    "REPOSITORY",
    "RESOURCE",
    "STOPPED",
    "VALIDATION",
    "AgentError",
    "InteractionNeeded",
    "ReasonCommand",
    "ReasonGroup",
    "RepositoryError",
    "codeOf",
]
