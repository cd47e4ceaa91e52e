# -*- test-case-name: tests.integration.test_server -*-
"""
What is done before a server serves: directory, the lock on the database, schema, first
tokens.

All of it in the starting thread, before the reactor runs.  Whatever fails ends the
process with one line that says what to do; a server never runs half.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from helix_revdial.access.idempotency import freeKeys
from helix_revdial.access.records import TokenError
from helix_revdial.access.tokens import TokenConflict, Tokens
from helix_revdial.cannot_start import CannotStart
from helix_revdial.config import ServerConfig
from helix_revdial.imported_tokens import NotImported, importAdminToken, importRunnerToken
from helix_revdial.storage.database import Database, WrongRevision
from helix_revdial.storage.failures import DatabaseUnavailable
from helix_revdial.storage.sole import InUse, SoleUse
from helix_revdial.storage.threads import SameThread
from helix_revdial.systemd.credentials import CredentialUnusable

_log = Logger()


def prepareState(
    config: ServerConfig,
    environment: Mapping[str, str],
    clock: IReactorTime,
    wallClock: Callable[[], float],
) -> SoleUse:
    """
    Make what a server needs before it can serve, where it is not there.

    @param environment: Looked at for tokens that others made.
    @return: What keeps other servers from the database.
    @raise CannotStart: The state cannot be used.
    """
    try:
        Path(config.server.stateDirectory).mkdir(mode=0o700, parents=True, exist_ok=True)
        sole = SoleUse(config.databaseURL)
        sole.take()
        try:
            _prepare(config, environment, clock, wallClock)
        except BaseException:
            sole.release()
            raise
        return sole
    except InUse as error:
        raise CannotStart(f"cannot start: {error}") from None
    except (NotImported, CredentialUnusable) as error:
        raise CannotStart(str(error)) from None
    except (DatabaseUnavailable, WrongRevision, TokenConflict, TokenError, OSError) as error:
        raise CannotStart(f"cannot start: {error}") from None
    except ValueError as error:
        raise CannotStart(f"database: {error}") from None


def _prepare(
    config: ServerConfig,
    environment: Mapping[str, str],
    clock: IReactorTime,
    wallClock: Callable[[], float],
) -> None:
    database = Database(config.databaseURL, SameThread())
    try:
        alone = database.engine.dialect.name == "sqlite"
        if alone:
            _now(Deferred.fromCoroutine(database.upgrade()))
        _now(Deferred.fromCoroutine(database.checkRevision()))
        if alone:
            # Whoever carried these calls out is gone.
            _now(Deferred.fromCoroutine(freeKeys(database)))
        tokens = Tokens(database, clock, wallClock)
        _now(Deferred.fromCoroutine(importAdminToken(tokens, environment)))
        written = _now(Deferred.fromCoroutine(tokens.ensureAdmin(config.adminTokenPath)))
        if written is not None:
            _log.warn("The first admin token is in {path}", path=str(written))
        importing = importRunnerToken(tokens, config.access, environment)
        _now(Deferred.fromCoroutine(importing))
    finally:
        _now(Deferred.fromCoroutine(database.close()))


def _now(deferred: Deferred[Any]) -> Any:
    """The result of what is done by the time it returns."""
    results: list[Any] = []
    deferred.addBoth(results.append)
    (result,) = results
    if isinstance(result, Failure):
        result.raiseException()
    return result
