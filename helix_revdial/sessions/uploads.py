# -*- test-case-name: tests.sessions.test_uploads -*-
"""
Uploads: archives that users send for their tasks.

An upload is promised first (L{Uploads.create}): that gives a token, which is told once
and kept as a digest.  With the token the archive is sent (L{Uploads.receive}), and
handed to one task (L{consume}, in the transaction that makes the session).  Whoever
runs the session reads it (L{Uploads.open}), and when the session is over it is gone.

This module owns the C{uploads} table and its directory: one file for each archive that
is whole, named by the upload's id, and one that ends in C{.part} for each that is being
received (L{helix_revdial.sessions.upload_files} writes and reads them).  The directory
belongs to one server.

What holds:

  - a token is good for one archive and one task of the user that it was given to;
  - an archive is either whole, on the disk and in its row, or not there at all.  One
    that broke off may be sent again, until one was whole;
  - the row goes before the file: what a crash leaves is a file without a row, which the
    next L{Uploads.sweep} removes;
  - no byte is read or written on the reactor's thread, and none is asked of the sender
    before the last one is on its way to the disk;
  - bytes are promised and counted for each tenant, so that what was promised fits.
"""

from __future__ import annotations

import errno
import hmac
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from sqlalchemy import Connection, Row, and_, delete, func, insert, or_, select, text, update
from twisted.logger import Logger
from twisted.python.failure import Failure

from helix_revdial.access.secrets import digestOf, newSecret
from helix_revdial.sessions import upload_files
from helix_revdial.sessions.lifecycle import TERMINAL
from helix_revdial.sessions.upload_files import Archive, NewFile
from helix_revdial.storage.database import Database
from helix_revdial.storage.ids import isId, newId
from helix_revdial.storage.tables import sessions, uploads
from helix_revdial.storage.threads import Workers

TOKEN_PREFIX: Final = "hlxu_"  # noqa: S105 (what every one begins with)

MAX_OPEN: Final = 1000
"""Uploads of one tenant at a time, however small."""

SWEPT_AT_ONCE: Final = 100

_PART: Final = ".part"

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class UploadRefused(Exception):
    """
    It cannot be.  The text is a sentence without its full stop, for people.

    @ivar word: why, in one word.
    """

    word = "upload-refused"


class UnknownUpload(UploadRefused):
    """There is no such upload of that user, or the token is not its own.  HTTP: 404."""

    word = "no-upload"


class UploadTooLarge(UploadRefused):
    """
    More bytes than were promised.  HTTP: 413.
    """

    word = "upload-too-large"


class UploadIncomplete(UploadRefused):
    """Fewer bytes than were promised, or none.  HTTP: 400."""

    word = "upload-incomplete"


class QuotaExceeded(UploadRefused):
    """The tenant has no room left.  HTTP: 413."""

    word = "upload-quota"


class UploadSpent(UploadRefused):
    """The archive is here already.  HTTP: 409."""

    word = "upload-spent"


class UploadBusy(UploadRefused):
    """It is being received, or too many are.  HTTP: 409, to be tried again."""

    word = "upload-busy"


class UploadExpired(UploadRefused):
    """Its time is over.  HTTP: 410."""

    word = "upload-expired"


class StorageFull(UploadRefused):
    """The server's disk has no room.  HTTP: 507."""

    word = "storage-full"


class UploadUnusable(UploadRefused):
    """A task cannot have it.  HTTP: 400, about the field of the token."""


class ArchiveGone(Exception):
    """A session's archive is not there."""


@dataclass(frozen=True, slots=True)
class UploadSettings:
    """
    @ivar maxBytes: of one archive.
    @ivar tenantBytes: of all archives of a tenant.
    @ivar lifetime: seconds in which a promised upload has to be sent, and then again
        one that was sent has to be used.
    @ivar atOnce: how many are received at one time.
    """

    maxBytes: int = 1024**3
    tenantBytes: int = 10 * 1024**3
    lifetime: float = 3600.0
    atOnce: int = 16


@dataclass(frozen=True, slots=True)
class Upload:
    """
    One upload.  Times are seconds since the epoch.

    @ivar id: C{upl_...}.
    @ivar status: C{new}: nothing is here; C{complete}; C{used}: a session has it.
    @ivar maxBytes: how large it may be.
    @ivar size: how large it is; of a new one how large it was promised to be, if it was.
    """

    id: str
    tenant: str
    owner: str
    session: str | None
    status: str
    maxBytes: int
    size: int | None
    sha256: str | None
    created: float
    expires: float


class Uploads:
    """
    Every upload of every tenant.

    @ivar settings: those of now.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        database: Database,
        wallClock: Callable[[], float],
        workers: Workers,
        directory: Path,
        settings: UploadSettings | None = None,
    ) -> None:
        """
        @param wallClock: seconds since the epoch.
        @param workers: read and write files.
        @param directory: where the archives are; it is made when the first one comes.
        """
        self.settings = settings or UploadSettings()
        self._database = database
        self._wallClock = wallClock
        self._workers = workers
        self._directory = directory
        self._receiving: set[str] = set()
        self._parts: set[str] = set()

    # Promised

    async def create(
        self,
        *,
        tenant: str,
        owner: str,
        size: int | None = None,
        also: Callable[[Connection, Upload], None] | None = None,
    ) -> tuple[Upload, str]:
        """
        Promise to take an archive.

        @param size: how many bytes it will have, where that is known.
        @param also: done in the same transaction.
        @return: the upload, and its token, which nobody is told again.
        @raise UploadTooLarge: for more than the server takes.
        @raise QuotaExceeded: when the tenant has no room for it.
        """
        settings = self.settings
        if size is not None and size > settings.maxBytes:
            raise UploadTooLarge(f"an archive has {settings.maxBytes} bytes at most")
        token = TOKEN_PREFIX + newSecret().partition("_")[2]
        now = self._wallClock()
        upload = Upload(
            newId("upl", now),
            tenant,
            owner,
            None,
            "new",
            settings.maxBytes if size is None else size,
            size,
            None,
            now,
            now + settings.lifetime,
        )

        def write(connection: Connection) -> None:
            _countAlone(connection, tenant)
            held, count = connection.execute(
                select(
                    func.coalesce(func.sum(func.coalesce(uploads.c.size, uploads.c.max_bytes)), 0),
                    func.count(),
                ).where(
                    uploads.c.tenant == tenant,
                    or_(uploads.c.expires > now, uploads.c.status == "used"),
                )
            ).one()
            if held + upload.maxBytes > settings.tenantBytes or count >= MAX_OPEN:
                raise QuotaExceeded(
                    f"the tenant's uploads have {settings.tenantBytes} bytes at most, of which "
                    f"{held} are taken: say how large the archive is, or wait until others "
                    "are used or over their time"
                )
            connection.execute(
                insert(uploads).values(
                    id=upload.id,
                    tenant=tenant,
                    owner=owner,
                    token_digest=digestOf(token),
                    max_bytes=upload.maxBytes,
                    size=size,
                    status=upload.status,
                    created=now,
                    expires=upload.expires,
                )
            )
            if also is not None:
                also(connection, upload)

        await self._database.run(write)
        return upload, token

    # Received

    async def receive(
        self,
        upload: str,
        token: str,
        pieces: AsyncIterator[bytes],
        *,
        tenant: str,
        owner: str,
        length: int | None = None,
    ) -> Upload:
        """
        Take an archive.

        @param pieces: its bytes; not read before all that can be known is known.
        @param length: how many there will be, where the sender says so.
        @raise UploadRefused: as its kinds say.
        """
        promised = await self._promised(upload, token, tenant, owner)
        if length is not None:
            _checkSize(promised, length)
            _checkWhole(promised, length)
        if upload in self._receiving:
            raise UploadBusy("the upload is being received already")
        if len(self._receiving) >= self.settings.atOnce:
            raise UploadBusy("the server receives as many uploads as it can; try again")
        self._receiving.add(upload)
        part = f"{upload}.{secrets.token_hex(8)}{_PART}"
        self._parts.add(part)
        file = NewFile(self._directory / part)
        try:
            return await self._receive(promised, file, pieces, length)
        except OSError as error:
            if error.errno in _FULL:
                raise StorageFull("the server has no room for the archive now") from None
            raise
        finally:
            self._receiving.discard(upload)
            discarding = self._workers.call(file.discard)
            discarding.addBoth(self._discarded, part)

    async def _receive(
        self, promised: Upload, file: NewFile, pieces: AsyncIterator[bytes], length: int | None
    ) -> Upload:
        await self._workers.call(lambda: file.open(length))
        async for piece in pieces:
            _checkSize(promised, file.size + len(piece))
            await self._workers.call(lambda piece=piece: file.write(piece))  # type: ignore[misc]
        _checkWhole(promised, file.size)
        await self._workers.call(lambda: file.keep(self._directory / promised.id))
        now = self._wallClock()
        done = (
            update(uploads)
            .where(uploads.c.id == promised.id, uploads.c.status == "new", uploads.c.expires > now)
            .values(
                status="complete",
                size=file.size,
                sha256=file.sha256,
                expires=now + self.settings.lifetime,
            )
            .returning(uploads)
        )

        def write(connection: Connection) -> Upload | None:
            row = connection.execute(done).one_or_none()
            return None if row is None else _fromRow(row)

        # Until the row says that it is whole, the next sweep, or archive, takes its place.
        complete = await self._database.run(write)
        if complete is None:
            raise UploadExpired("the upload's time was over before the archive was here")
        return complete

    async def _promised(self, upload: str, token: str, tenant: str, owner: str) -> Upload:
        if not isId(upload, "upl"):
            raise UnknownUpload("there is no such upload")
        query = select(uploads).where(
            uploads.c.id == upload, uploads.c.tenant == tenant, uploads.c.owner == owner
        )
        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
        if row is None or not hmac.compare_digest(row.token_digest, digestOf(token)):
            raise UnknownUpload("there is no such upload, or the token is not that of it")
        if row.status != "new":
            raise UploadSpent("the archive is here already: an upload is good for one")
        if row.expires <= self._wallClock():
            raise UploadExpired("the upload's time is over: make another one")
        return _fromRow(row)

    def _discarded(self, result: object, part: str) -> None:
        self._parts.discard(part)
        if isinstance(result, Failure):
            self._log.failure("What broke off of an upload stays until the next start", result)

    # Used

    async def open(self, session: str) -> Archive:
        """
        The archive of a session.

        @raise ArchiveGone: It is not there.
        """
        query = select(uploads).where(uploads.c.session == session, uploads.c.status == "used")
        row = await self._database.read(lambda connection: connection.execute(query).first())
        if row is None:
            raise ArchiveGone("the archive of its upload is not there any more")
        upload = _fromRow(row)
        path = self._directory / upload.id

        def look() -> int:
            try:
                return path.stat().st_size
            except FileNotFoundError:
                return -1

        if await self._workers.call(look) != upload.size:
            raise ArchiveGone("the archive of its upload is not there any more")
        return Archive(upload.id, path, upload.size or 0, self._workers)

    async def release(self, session: str) -> None:
        """A session needs its archive no more."""
        await self._remove(uploads.c.session == session)

    # Over

    async def sweep(self) -> int:
        """
        Remove what is over its time or whose session has ended, and files that belong
        to nothing.

        @return: how many uploads were removed.
        """
        now = self._wallClock()
        over = or_(
            and_(uploads.c.status != "used", uploads.c.expires <= now),
            and_(
                uploads.c.status == "used",
                ~select(sessions.c.id)
                .where(
                    sessions.c.id == uploads.c.session,
                    sessions.c.deleted.is_(None),
                    sessions.c.status.not_in(TERMINAL),
                )
                .exists(),
            ),
        )
        removed = 0
        while True:
            count = await self._remove(over)
            removed += count
            if count < SWEPT_AT_ONCE:
                break
        await self._removeStrays()
        return removed

    async def _remove(self, where: Any) -> int:
        receiving = list(self._receiving)
        query = select(uploads.c.id).where(where, uploads.c.id.not_in(receiving))

        def write(connection: Connection) -> list[str]:
            found = list(connection.execute(query.limit(SWEPT_AT_ONCE)).scalars())
            if found:
                connection.execute(delete(uploads).where(uploads.c.id.in_(found)))
            return found

        gone = await self._database.run(write)
        if gone:
            await self._workers.call(lambda: upload_files.remove(self._directory, gone))
        return len(gone)

    async def _removeStrays(self) -> None:
        """Remove files that a crash, or a database that was put back, has left."""
        names = await self._workers.call(lambda: upload_files.names(self._directory))
        mine = self._parts
        strays = [name for name in names if name.endswith(_PART) and name not in mine]
        whole = [name for name in names if isId(name, "upl") and name not in self._receiving]
        for start in range(0, len(whole), SWEPT_AT_ONCE):
            some = whole[start : start + SWEPT_AT_ONCE]
            query = select(uploads.c.id).where(uploads.c.id.in_(some), uploads.c.status != "new")
            known = await self._database.read(
                lambda connection, query=query: set(connection.execute(query).scalars())  # type: ignore[misc]
            )
            strays += [name for name in some if name not in known and name not in self._receiving]
        if strays:
            await self._workers.call(lambda: upload_files.remove(self._directory, strays))


def consume(
    connection: Connection, token: str, *, tenant: str, owner: str, session: str, now: float
) -> None:
    """
    Hand an archive to a session, within the transaction that makes the session.

    @raise UploadUnusable: It cannot have it.
    """
    own = and_(
        uploads.c.token_digest == digestOf(token),
        uploads.c.tenant == tenant,
        uploads.c.owner == owner,
    )
    done = connection.execute(
        update(uploads)
        .where(own, uploads.c.status == "complete", uploads.c.expires > now)
        .values(status="used", session=session)
    )
    if done.rowcount:
        return
    row = connection.execute(select(uploads.c.status, uploads.c.expires).where(own)).one_or_none()
    if row is None:
        raise UploadUnusable("is the token of no upload of yours")
    if row.status == "used":
        raise UploadUnusable("has been used for another task: an upload is good for one")
    if row.expires <= now:
        raise UploadUnusable("is over its time: make another upload")
    raise UploadUnusable("has no archive yet: send it first")


def _checkSize(promised: Upload, size: int) -> None:
    if size > promised.maxBytes:
        raise UploadTooLarge(f"the upload is for {promised.maxBytes} bytes at most")


def _checkWhole(promised: Upload, size: int) -> None:
    if not size:
        raise UploadIncomplete("the archive is empty")
    if promised.size is not None and size < promised.size:
        raise UploadIncomplete(f"the archive was to have {promised.size} bytes, and has {size}")


def _countAlone(connection: Connection, tenant: str) -> None:
    """
    Until the commit nobody else counts this tenant's bytes.  On SQLite a transaction
    that writes is alone anyway.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(
            text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"),
            {"name": f"uploads {tenant}"},
        )


def _fromRow(row: Row[Any]) -> Upload:
    return Upload(
        row.id,
        row.tenant,
        row.owner,
        row.session,
        row.status,
        row.max_bytes,
        row.size,
        row.sha256,
        row.created,
        row.expires,
    )


__all__ = [
    "ArchiveGone",
    "QuotaExceeded",
    "StorageFull",
    "UnknownUpload",
    "Upload",
    "UploadBusy",
    "UploadExpired",
    "UploadIncomplete",
    "UploadRefused",
    "UploadSettings",
    "UploadSpent",
    "UploadTooLarge",
    "UploadUnusable",
    "Uploads",
    "consume",
]
