# -*- test-case-name: tests.integration.test_server,tests.integration.test_listening_server -*-
"""
The tokens that a server is given from outside: by its environment, or as credentials
of the service manager.

Each is imported anew at every start, which changes nothing where it is known already.
No text has a secret.
"""

from __future__ import annotations

from collections.abc import Mapping

from twisted.logger import Logger

from helix_revdial.access.records import TokenError
from helix_revdial.access.tokens import TokenConflict, Tokens
from helix_revdial.config import RUNNER_TOKEN_VARIABLE, AccessSection
from helix_revdial.systemd.credentials import readCredential

RUNNER_CREDENTIAL = "runner-token"
"""The credential of the service manager that stands in for C{RUNNER_TOKEN}."""

_RUNNER_ORIGIN = f"{RUNNER_TOKEN_VARIABLE} of the environment"

ADMIN_CREDENTIAL = "admin-token"
"""The credential of the service manager that is imported as an admin's token."""

_log = Logger()


class NotImported(Exception):
    """A token cannot be imported; the text says which, why, and what to do."""


async def importAdminToken(tokens: Tokens, environment: Mapping[str, str]) -> None:
    """
    Import the credential that is an administrator's token, where there is one.

    @raise NotImported: It is none, or was revoked.
    @raise CredentialUnusable: It cannot be read.
    """
    secret = readCredential(environment, ADMIN_CREDENTIAL)
    if secret is None:
        return
    try:
        await tokens.importSecret(
            secret, "user", name=f"credential {ADMIN_CREDENTIAL}", user="admin", role="admin"
        )
    except (TokenConflict, TokenError) as error:
        raise NotImported(f"credential {ADMIN_CREDENTIAL}: {error}") from None


async def importRunnerToken(
    tokens: Tokens, access: AccessSection, environment: Mapping[str, str]
) -> None:
    """
    Import the secret that many machines hold, where there is one and it is wanted.

    @raise NotImported: It is none, or was revoked.
    @raise CredentialUnusable: It cannot be read.
    """
    if not access.importRunnerToken:
        return
    origin = _RUNNER_ORIGIN
    secret = environment.get(RUNNER_TOKEN_VARIABLE)
    if not secret:
        origin = f"credential {RUNNER_CREDENTIAL}"
        secret = readCredential(environment, RUNNER_CREDENTIAL)
    if not secret:
        return
    try:
        record = await tokens.importSecret(
            secret,
            "runner",
            name=f"imported {RUNNER_TOKEN_VARIABLE}",
            patterns=access.runnerTokenPatterns,
        )
    except (TokenConflict, TokenError) as error:
        raise NotImported(runnerTokenUnusable(error)) from None
    _log.info(
        "The {origin} is runner token {token}",
        origin=origin,
        token=record.id,
        patterns=list(access.runnerTokenPatterns),
    )


def runnerTokenUnusable(error: Exception) -> str:
    """Why the runners' token is of no use, and what to do."""
    return (
        f"{_RUNNER_ORIGIN} (or credential {RUNNER_CREDENTIAL}) cannot be imported: {error}. "
        "Take it away, or set access.import_runner_token = false."
    )


__all__ = ["NotImported", "importAdminToken", "importRunnerToken", "runnerTokenUnusable"]
