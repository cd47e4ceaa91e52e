"""
A program that starts as a server does and then writes without end, telling
each thing that it was told is written.  A test kills it.

    python -m tests.integration.storage_writer URL ADMIN-TOKEN-FILE
"""

from __future__ import annotations

import sys
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from sqlalchemy import Connection, insert
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from helix_revdial.access.generations import Generations
from helix_revdial.access.tokens import Tokens
from helix_revdial.sessions.sessions import Sessions
from helix_revdial.storage.database import Database
from helix_revdial.storage.schema import upgrade
from helix_revdial.storage.tables import audit
from helix_revdial.storage.threads import SameThread

T = TypeVar("T")


def now(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine that does not wait returns."""
    results: list[T] = []
    deferred = Deferred.fromCoroutine(coroutine)
    deferred.addCallback(results.append)
    deferred.addErrback(lambda failure: failure.raiseException())
    if not results:
        raise SystemExit("the database was not ready")
    return results[0]


def tell(*words: object) -> None:
    """One line on standard output, at once."""
    print(*words, flush=True)


def pair(connection: Connection) -> None:
    """Two rows that are there both or not at all."""
    row = {"at": 0.0, "event": "pair", "fields": {}, "times": 1}
    connection.execute(insert(audit).values(**row))
    connection.execute(insert(audit).values(**row))


def main(url: str, path: str) -> None:
    """Start, and write until killed."""
    tell("starting")
    upgrade(url)
    database = Database(url, SameThread())
    now(database.checkRevision())
    clock = Clock()
    tokens = Tokens(database, clock, time.time)
    sessions = Sessions(database, clock, time.time)
    generations = Generations(database, block=1)
    tell("admin", now(tokens.ensureAdmin(path)))
    while True:
        session = now(sessions.create(name="s", tenant="acme", owner="ann"))
        tell("session", session.id)
        record, secret = now(tokens.create("session", name="s", session=session.id))
        tell("token", secret)
        _, successor = now(tokens.rotate(record.id))
        tell("token", successor)
        now(tokens.revoke(record.id))
        tell("revoked", secret)
        tell("generation", now(generations.next()))
        database.run(pair)


if __name__ == "__main__":
    main(*sys.argv[1:])
