# -*- test-case-name: tests.cli.test_tokens -*-
"""
C{helix tokens}: create, rotate, list, revoke, import.

A new secret is shown once, by the server and here: alone on standard output,
or in a file of mode 0600 that is opened before the token exists, so that a
secret never comes into being without a place to go.  An imported secret is
read from a file or standard input.  No secret is ever a flag's value.
"""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from helix_revdial.cli.edge import PASSED, CommandError, plain
from helix_revdial.cli.files import PRIVATE, WholeFile
from helix_revdial.cli.invocation import (
    Duration,
    Identifier,
    Invocation,
    Timeout,
    jsonFlag,
    passInvocation,
)
from helix_revdial.cli.output import Output, field, moment
from helix_revdial.cli.profile import secretFromFile

if TYPE_CHECKING:
    from helix_revdial.cli.client import Client, Record

KINDS = ("runner", "session", "user")
ROLES = ("admin", "operator", "viewer")

F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def tokens() -> None:
    """Tokens: create, rotate, list, revoke, import."""


_outputFile = click.option(
    "--output-file",
    "outputFile",
    metavar="FILE",
    help="Write the secret to FILE (mode 0600), not to standard output.",
)

_describing = (
    click.option("--kind", type=click.Choice(KINDS), default="runner", show_default=True),
    click.option("--name", required=True, help="What people call it."),
    click.option("--user", metavar="ID", help="Whose it is."),
    click.option("--role", type=click.Choice(ROLES), help="What a user may do."),
    click.option(
        "--pattern",
        "patterns",
        multiple=True,
        metavar="KEY",
        help="A runner key that it may register, exact or ending in *; repeatable.",
    ),
    click.option("--session", type=Identifier(), help="The one session of a session token."),
    click.option(
        "--expires-in", "expiresIn", type=Timeout(limit=None), help="Such as 90m, 12h or 30d."
    ),
)


def _described(command: F) -> F:
    """The flags that say what a token is."""
    for option in reversed(_describing):
        command = option(command)
    return command


def _wanted(
    kind: str,
    name: str,
    user: str | None,
    role: str | None,
    patterns: tuple[str, ...],
    session: str | None,
    expiresIn: float | None,
) -> Record:
    """
    The request for a token of this description.

    @raise click.UsageError: The flags contradict each other.
    """
    if kind == "runner" and not patterns:
        raise click.UsageError("a runner token needs at least one --pattern, such as 'wolf-*'")
    if kind == "session" and session is None:
        raise click.UsageError("a session token needs --session")
    if kind != "runner" and patterns:
        raise click.UsageError(f"--pattern is for runner tokens, not for kind {kind}")
    if kind != "session" and session is not None:
        raise click.UsageError(f"--session is for session tokens, not for kind {kind}")
    if kind != "user" and role is not None:
        raise click.UsageError(f"--role is for user tokens, not for kind {kind}")
    optional = {
        "user": user,
        "role": role,
        "patterns": list(patterns) or None,
        "session": session,
        "expiresIn": expiresIn,
    }
    given = {key: value for key, value in optional.items() if value is not None}
    return {"kind": kind, "name": name, **given}


async def issue(
    asking: Callable[[], Coroutine[Any, Any, Record]],
    output: Output,
    *,
    outputFile: str | None,
    replace: bool,
    asJSON: bool,
    verb: str,
) -> int:
    """
    Have the server make a secret, and put it where it was asked for.

    @param asking: Makes the token; called when the file stands open.
    @param replace: Whether the file may replace one that stands there: a
        rotated secret takes its predecessor's place, a new one takes nobody's.
    @param verb: What happened to the token, for the notice.

    @raise CommandError: The token was refused, or exists and could not be
        written; the text then says which to revoke.
    """
    with ExitStack() as stack:
        file = None
        if outputFile is not None:
            file = stack.enter_context(WholeFile(Path(outputFile), mode=PRIVATE, replace=replace))
        record = await asking()
        name = plain(record.get("id") or "?")
        secret = record.get("token")
        if not isinstance(secret, str) or not secret or not secret.isprintable():
            raise CommandError(f"the server {verb} token {name} but sent no secret; revoke it")
        if file is not None:
            try:
                file.commit(secret.encode() + b"\n")
            except CommandError as error:
                raise CommandError(
                    f"{error}; token {name} exists, but its secret is lost: "
                    f"helix tokens revoke {name}"
                ) from None
    if file is not None:
        output.notice(f"Token {name} {verb}; its secret is in {outputFile} (mode 0600).")
        if asJSON:
            output.json({key: value for key, value in record.items() if key != "token"})
        return PASSED
    if asJSON:
        output.json(record)
    else:
        output.line(secret)
    output.notice(f"Token {name} {verb}; its secret is shown this once only: store it now.")
    return PASSED


@tokens.command("create")
@_described
@_outputFile
@jsonFlag
@passInvocation
def createCommand(
    invocation: Invocation, /, outputFile: str | None, asJSON: bool, **description: Any
) -> int:
    """Create a token; prints its secret, once."""
    wanted = _wanted(**description)

    async def command(reactor: Any, client: Client) -> int:
        return await issue(
            lambda: client.createToken(wanted),
            invocation.output,
            outputFile=outputFile,
            replace=False,
            asJSON=asJSON,
            verb="created",
        )

    return invocation.ask(command)


@tokens.command("rotate")
@click.argument("token", type=Identifier(), metavar="ID")
@click.option(
    "--overlap", type=Duration(), help="For how long the old secret still works, such as 1h."
)
@_outputFile
@jsonFlag
@passInvocation
def rotateCommand(
    invocation: Invocation,
    token: str,
    overlap: float | None,
    outputFile: str | None,
    asJSON: bool,
) -> int:
    """Give the token ID a new secret; prints it, once.

    With --output-file the new secret takes the old one's place in FILE.
    """

    async def command(reactor: Any, client: Client) -> int:
        return await issue(
            lambda: client.rotateToken(token, overlap),
            invocation.output,
            outputFile=outputFile,
            replace=True,
            asJSON=asJSON,
            verb="rotated",
        )

    return invocation.ask(command)


@tokens.command("list")
@click.option("--all", "ended", is_flag=True, help="Revoked and expired tokens, too.")
@jsonFlag
@passInvocation
def listCommand(invocation: Invocation, ended: bool, asJSON: bool) -> int:
    """List tokens; never their secrets."""

    async def command(reactor: Any, client: Client) -> int:
        found = await client.tokens(ended=ended)
        if asJSON:
            invocation.output.json(found)
        else:
            now = datetime.now(UTC)
            invocation.output.table(
                ("TOKEN", "KIND", "NAME", "ROLES", "MAY REGISTER", "CREATED", "EXPIRES", "STATE"),
                [
                    (
                        record.get("id"),
                        record.get("kind"),
                        record.get("name"),
                        field(record, "roles", "role"),
                        field(record, "patterns", "session"),
                        moment(field(record, "created", "createdAt")),
                        moment(field(record, "expires", "expiresAt")),
                        _state(record, now),
                    )
                    for record in found
                ],
            )
        return PASSED

    return invocation.ask(command)


def _state(record: Record, now: datetime) -> str:
    """Whether a token still works, as far as its record says."""
    if field(record, "revoked", "revokedAt"):
        return "revoked"
    expires = field(record, "expires", "expiresAt")
    try:
        if expires is not None and datetime.fromisoformat(str(expires)) <= now:
            return "expired"
    except (TypeError, ValueError):
        return "unknown"
    return "replaced" if record.get("replacement") else "active"


@tokens.command("revoke")
@click.argument("token", nargs=-1, required=True, type=Identifier(), metavar="ID...")
@passInvocation
def revokeCommand(invocation: Invocation, token: tuple[str, ...]) -> int:
    """Revoke each token ID; the tunnels that it holds are cut at once."""

    async def command(reactor: Any, client: Client) -> int:
        for one in token:
            await client.revokeToken(one)
            invocation.output.line(f"Revoked {one}")
        return PASSED

    return invocation.ask(command)


@tokens.command("import")
@click.argument("file")
@_described
@jsonFlag
@passInvocation
def importCommand(invocation: Invocation, /, file: str, asJSON: bool, **description: Any) -> int:
    """Let the server accept an existing secret, read from FILE (- is standard input).

    Such as the RUNNER_TOKEN that existing hosts already have.
    """
    wanted = _wanted(**description)
    secret = _existingSecret(file)

    async def command(reactor: Any, client: Client) -> int:
        record = await client.importToken({**wanted, "token": secret})
        shown = {key: value for key, value in record.items() if key != "token"}
        if asJSON:
            invocation.output.json(shown)
        else:
            invocation.output.line(f"Imported {plain(shown.get('id'))}")
        return PASSED

    return invocation.ask(command)


def _existingSecret(file: str) -> str:
    """The secret to import; typed unseen where standard input is a terminal."""
    if file == "-" and sys.stdin.isatty():
        return getpass.getpass("Secret: ").strip()
    if file != "-" and not Path(file).exists():
        # Whoever gave the secret itself must not find it in an error text.
        raise click.UsageError(
            "FILE: there is no such file; name a file or -, never the secret itself"
        )
    return secretFromFile(file, "FILE")


__all__ = ["issue", "tokens"]
