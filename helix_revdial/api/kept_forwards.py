# -*- test-case-name: tests.api.test_forwards -*-
"""
Forwards that outlive the server that they were made with.

Owns the table of that name.  A row is what a forward was asked for, with the port that
it got, and who asked, without any secret.  Rows of the configuration's forwards do not
exist: those are in the configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, insert, select
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from helix_revdial.access.principals import Principal
from helix_revdial.gateways.tcp_forward import Forward, ForwardRefused, ForwardSettings
from helix_revdial.storage.database import Database
from helix_revdial.storage.tables import forwards


@dataclass(frozen=True)
class KeptForward:
    """
    One of them.

    @ivar settings: C{None}: this version does not understand it.
    """

    id: str
    settings: ForwardSettings | None
    principal: Principal


class KeptForwards:
    """
    The table.
    """

    _log = Logger()

    def __init__(self, database: Database, wallClock: Callable[[], float]) -> None:
        """
        @param wallClock: Seconds since 1970.
        """
        self._database = database
        self._wallClock = wallClock

    async def list(self) -> list[KeptForward]:
        """
        All, in the order in which they were made.

        @raise DatabaseUnavailable: They cannot be had.
        """

        def read(connection: Connection) -> list[KeptForward]:
            rows = connection.execute(select(forwards).order_by(forwards.c.created, forwards.c.id))
            return [
                KeptForward(row.id, _settings(row.settings), _principal(row.principal))
                for row in rows
            ]

        return await self._database.run(read)

    async def add(self, forward: Forward, principal: Principal) -> None:
        """
        Keep one that listens.

        @raise DatabaseUnavailable: It cannot be kept.
        """
        settings = forward.settings
        row = {
            "id": forward.id,
            "tenant": principal.tenant,
            "owner": principal.user or principal.tokenId,
            "settings": {
                "listen": forward.listen,
                "runner": settings.runner,
                "target": settings.target,
                "allow": [str(network) for network in settings.allow],
                "proxyProtocol": settings.proxyProtocol,
            },
            "principal": {
                "kind": principal.kind,
                "tokenId": principal.tokenId,
                "family": principal.family,
                "tenant": principal.tenant,
                "user": principal.user,
                "roles": sorted(principal.roles),
                "expires": principal.expires,
                "project": principal.project,
            },
            "created": self._wallClock(),
        }

        def write(connection: Connection) -> None:
            connection.execute(insert(forwards), row)

        await self._database.run(write)

    async def remove(self, name: str) -> bool:
        """
        Keep one no more.

        @return: Whether it was kept.
        @raise DatabaseUnavailable: It still is.
        """

        def write(connection: Connection) -> bool:
            done = connection.execute(delete(forwards).where(forwards.c.id == name))
            return bool(done.rowcount)

        return await self._database.run(write)

    def forget(self, name: str) -> None:
        """Keep one no more; where that fails, the next start sees that its time is over."""
        removing = Deferred.fromCoroutine(self.remove(name))
        removing.addErrback(self._notForgotten, name)

    def _notForgotten(self, failure: Failure, name: str) -> None:
        self._log.failure("The forward {forward} is still in the database", failure, forward=name)


def _settings(stored: dict[str, Any]) -> ForwardSettings | None:
    try:
        return ForwardSettings.parse(**stored)
    except (ForwardRefused, TypeError):
        return None


def _principal(stored: dict[str, Any]) -> Principal:
    return Principal(**{**stored, "roles": frozenset(stored["roles"])})


__all__ = ["KeptForward", "KeptForwards"]
