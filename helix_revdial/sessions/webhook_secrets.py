# -*- test-case-name: tests.sessions.test_webhook_secrets -*-
"""
What a tenant's webhooks are signed with.

This module owns the C{webhook_secrets} table.  A signature needs the secret itself, so
it is stored as it is, and told once: to whoever had it made.  Several of a tenant are
live at a time, and each of them signs, so that one takes another's place without a
moment in which a receiver knows none that is used.

The signature is that of the Standard Webhooks specification: HMAC-SHA256 over the
message's id, the time of sending and the body, with points between, in base64 after
C{v1,}; one for each secret, with spaces between.  The time is signed, so that who
hears a message cannot send it again later.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, insert, or_, select, text, update

from helix_revdial.storage.database import Database
from helix_revdial.storage.ids import newId
from helix_revdial.storage.tables import webhook_secrets

PREFIX: Final = "whsec_"

SECRET_BYTES: Final = 32

MAX_LIVE: Final = 5
"""Secrets of a tenant that sign at a time."""

MAX_LISTED: Final = 100
"""Retired ones are shown until there are so many in all."""


class TooManySecrets(Exception):
    """The tenant has as many as may be live.  HTTP answers 409."""


@dataclass(frozen=True, slots=True)
class SecretRecord:
    """
    What may be told of a secret.  Times are seconds since the epoch.

    @ivar id: C{whs_...}.
    @ivar retired: when it stops, or stopped, to sign.
    """

    id: str
    tenant: str
    created: float
    retired: float | None


class WebhookSecrets:
    """
    The secrets of every tenant.
    """

    def __init__(self, database: Database, wallClock: Callable[[], float]) -> None:
        """
        @param wallClock: seconds since the epoch.
        """
        self._database = database
        self._wallClock = wallClock

    async def create(
        self,
        tenant: str,
        *,
        retireOthersIn: float | None = None,
        also: Callable[[Connection, SecretRecord], None] | None = None,
    ) -> tuple[SecretRecord, str]:
        """
        Make a secret.

        @param retireOthersIn: the seconds after which it alone signs; C{None}: the
            others stay.
        @param also: done in the same transaction.
        @return: and the secret, which nobody is told again.
        @raise TooManySecrets: if there would be too many.
        """
        now = self._wallClock()
        record = SecretRecord(newId("whs", now), tenant, now, None)
        secret = PREFIX + base64.b64encode(os.urandom(SECRET_BYTES)).decode("ascii")

        def write(connection: Connection) -> None:
            if connection.dialect.name == "postgresql":
                # Until the commit nobody else counts this tenant's.
                connection.execute(
                    text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"),
                    {"name": f"webhook secrets {tenant}"},
                )
            live = liveSecrets(connection, tenant, now)
            if len(live) >= MAX_LIVE:
                raise TooManySecrets(
                    f"a tenant has {MAX_LIVE} secrets at most that sign: retire one"
                )
            if retireOthersIn is not None:
                end = now + retireOthersIn
                connection.execute(
                    update(webhook_secrets)
                    .where(
                        webhook_secrets.c.tenant == tenant,
                        or_(webhook_secrets.c.retired.is_(None), webhook_secrets.c.retired > end),
                    )
                    .values(retired=end)
                )
            connection.execute(
                insert(webhook_secrets).values(
                    id=record.id, tenant=tenant, secret=secret, created=now
                )
            )
            if also is not None:
                also(connection, record)

        await self._database.run(write)
        return record, secret

    async def list(self, tenant: str) -> list[SecretRecord]:
        """A tenant's secrets, newest first, without what is secret of them."""
        columns = webhook_secrets.c
        query = (
            select(columns.id, columns.tenant, columns.created, columns.retired)
            .where(columns.tenant == tenant)
            .order_by(columns.created.desc(), columns.id.desc())
            .limit(MAX_LISTED)
        )
        return await self._database.read(
            lambda connection: [
                SecretRecord(row.id, row.tenant, row.created, row.retired)
                for row in connection.execute(query)
            ]
        )

    async def retire(self, tenant: str, secret: str) -> bool:
        """
        Have a secret sign no more, from now on.

        @param secret: its id.
        @return: whether there is one.
        """
        now = self._wallClock()
        own = (webhook_secrets.c.id == secret, webhook_secrets.c.tenant == tenant)

        def write(connection: Connection) -> bool:
            found = connection.execute(select(webhook_secrets.c.id).where(*own)).first()
            if found is None:
                return False
            connection.execute(
                update(webhook_secrets)
                .where(
                    *own,
                    or_(webhook_secrets.c.retired.is_(None), webhook_secrets.c.retired > now),
                )
                .values(retired=now)
            )
            return True

        return await self._database.run(write)


def liveSecrets(connection: Connection, tenant: str, now: float) -> list[str]:
    """The secrets that sign a tenant's webhooks, newest first."""
    query = (
        select(webhook_secrets.c.secret)
        .where(
            webhook_secrets.c.tenant == tenant,
            or_(webhook_secrets.c.retired.is_(None), webhook_secrets.c.retired > now),
        )
        .order_by(webhook_secrets.c.created.desc(), webhook_secrets.c.id.desc())
        .limit(MAX_LIVE)
    )
    return list(connection.execute(query).scalars())


def signatureOf(secrets: Iterable[str], message: str, timestamp: int, body: bytes) -> str:
    """
    Sign a message.

    @param secrets: each of them signs.
    @param message: its id.
    @param timestamp: when it is sent, in whole seconds since the epoch.
    @return: the value of C{webhook-signature}; empty without a secret.
    """
    signed = f"{message}.{timestamp}.".encode("ascii") + body
    return " ".join(
        "v1," + base64.b64encode(hmac.new(keyOf(one), signed, hashlib.sha256).digest()).decode()
        for one in secrets
    )


def keyOf(secret: str) -> bytes:
    """The key that a secret stands for."""
    return base64.b64decode(secret.removeprefix(PREFIX))
