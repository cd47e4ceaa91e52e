"""Tests for L{helix_revdial.sessions.uploads}."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import update
from twisted.internet.defer import Deferred, fail
from twisted.internet.testing import StringTransport

from helix_revdial.sessions import uploads as module
from helix_revdial.sessions.uploads import (
    ArchiveGone,
    QuotaExceeded,
    StorageFull,
    UnknownUpload,
    Upload,
    UploadBusy,
    UploadExpired,
    UploadIncomplete,
    Uploads,
    UploadSettings,
    UploadSpent,
    UploadTooLarge,
    UploadUnusable,
    consume,
)
from helix_revdial.storage.ids import isId
from helix_revdial.storage.tables import sessions
from helix_revdial.storage.threads import SameThread
from tests.sessions.worlds import SessionTestCase
from tests.storage.postgresql import OnPostgreSQL

T = TypeVar("T")

ANN: dict[str, Any] = {"tenant": "acme", "owner": "ann"}

CONTENT = b"0123456789" * 10


async def pieces(*given: bytes) -> AsyncIterator[bytes]:
    for one in given:
        yield one


async def broken(*given: bytes) -> AsyncIterator[bytes]:
    for one in given:
        yield one
    raise ConnectionResetError


async def first(body: AsyncIterator[bytes]) -> bytes:
    return await anext(body)


class Slow:
    """Pieces that come when the test says so."""

    def __init__(self) -> None:
        self.next: Deferred[bytes] = Deferred()
        self.asked = 0

    async def pieces(self) -> AsyncIterator[bytes]:
        while True:
            self.asked += 1
            piece = await self.next
            self.next = Deferred()
            if not piece:
                return
            yield piece

    def give(self, piece: bytes) -> None:
        self.next.callback(piece)


class FullDisk(SameThread):
    """
    Workers whose disk fills up.

    @ivar left: calls until then; C{None}: it does not.
    """

    left: int | None = None

    def call(self, function: Callable[[], T]) -> Deferred[T]:
        if self.left is not None:
            self.left -= 1
            if self.left == -1:
                return fail(OSError(errno.ENOSPC, "No space left on device"))
        return super().call(function)


class UploadTests(SessionTestCase):
    """Promised, received, used, gone."""

    def setUp(self) -> None:
        super().setUp()
        self.directory = Path(self.mktemp())
        self.files = FullDisk()
        self.uploads = self.newUploads()

    def newUploads(self) -> Uploads:
        return Uploads(
            self.database,
            self.wallClock,
            self.files,
            self.directory,
            UploadSettings(maxBytes=1000, tenantBytes=2500, lifetime=60, atOnce=2),
        )

    def promise(self, **fields: Any) -> tuple[Upload, str]:
        return self.get(self.uploads.create(**(ANN | fields)))

    def receiving(
        self, upload: Upload, token: str, body: AsyncIterator[bytes], **fields: Any
    ) -> Any:
        return self.uploads.receive(upload.id, token, body, **(ANN | fields))

    def complete(self) -> tuple[Upload, str]:
        upload, token = self.promise()
        return self.get(self.receiving(upload, token, pieces(CONTENT))), token

    def use(self, token: str, **fields: Any) -> str:
        """A session that has it."""
        session = self.newTask()
        given = ANN | {"session": session.id, "now": self.wallClock()} | fields
        self.successResultOf(self.database.run(lambda c: consume(c, token, **given)))
        return session.id

    def names(self) -> list[str]:
        return (
            sorted(one.name for one in self.directory.iterdir()) if self.directory.exists() else []
        )

    def test_received(self) -> None:
        """An archive is on the disk, for nobody else to read, and in its row."""
        upload, token = self.promise()
        self.assertTrue(isId(upload.id, "upl"))
        self.assertEqual((upload.status, upload.maxBytes), ("new", 1000))
        done = self.get(self.receiving(upload, token, pieces(CONTENT[:7], CONTENT[7:]), length=100))
        self.assertEqual((done.status, done.size), ("complete", 100))
        self.assertEqual(done.sha256, hashlib.sha256(CONTENT).hexdigest())
        self.assertEqual(self.names(), [upload.id])
        path = self.directory / upload.id
        self.assertEqual(path.read_bytes(), CONTENT)
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
        self.assertEqual(self.directory.stat().st_mode & 0o777, 0o700)

    def test_once(self) -> None:
        """A token is good for one archive."""
        upload, token = self.complete()
        self.fails(self.receiving(upload, token, pieces(b"other")), UploadSpent)
        self.assertEqual((self.directory / upload.id).read_bytes(), CONTENT)

    def test_whose(self) -> None:
        """F1: neither another user, nor another tenant, nor another upload's token."""
        upload, token = self.promise()
        _, another = self.promise()
        body = pieces(CONTENT)
        for secret, fields in (
            (token, {"owner": "bob"}),
            (token, {"tenant": "other"}),
            (another, {}),
            ("", {}),
            ("\udcff", {}),
        ):
            self.fails(self.receiving(upload, secret, body, **fields), UnknownUpload)
        self.fails(self.uploads.receive("../x", token, body, **ANN), UnknownUpload)
        self.assertEqual(self.names(), [])
        self.get(self.receiving(upload, token, body))

    def test_tokenIsNowhere(self) -> None:
        """F1: what is stored does not hold the token."""
        _, token = self.promise()
        rows = self.successResultOf(
            self.database.read(lambda c: str(list(c.exec_driver_sql("SELECT * FROM uploads"))))
        )
        self.assertTrue(token.startswith("hlxu_"))
        self.assertNotIn(token, rows)

    def test_tooLarge(self) -> None:
        """More than was promised is refused: before it comes, or when it does."""
        upload, token = self.promise(size=99)
        body = pieces(CONTENT)
        self.fails(self.receiving(upload, token, body, length=100), UploadTooLarge)
        self.assertEqual(self.get(first(body)), CONTENT)
        self.fails(self.receiving(upload, token, pieces(CONTENT)), UploadTooLarge)
        self.fails(self.receiving(upload, token, pieces(CONTENT[:50], CONTENT)), UploadTooLarge)
        self.assertEqual(self.names(), [])
        self.fails(self.uploads.create(**ANN, size=1001), UploadTooLarge)
        self.get(self.receiving(upload, token, pieces(CONTENT[:99])))

    def test_incomplete(self) -> None:
        """
        Less than was promised, or nothing, is no archive: refused before it comes, or at
        its end.  It leaves nothing, and the whole may still be sent.
        """
        upload, token = self.promise(size=100)
        body = pieces(CONTENT)
        self.fails(self.receiving(upload, token, body, length=99), UploadIncomplete)
        self.assertEqual(self.get(first(body)), CONTENT)
        self.fails(self.receiving(upload, token, pieces(CONTENT[:99])), UploadIncomplete)
        self.assertEqual(self.names(), [])
        self.assertEqual(self.get(self.receiving(upload, token, pieces(CONTENT))).size, 100)
        unknown, token = self.promise()
        self.fails(self.receiving(unknown, token, pieces()), UploadIncomplete)
        self.fails(self.receiving(unknown, token, pieces(), length=0), UploadIncomplete)
        self.get(self.receiving(unknown, token, pieces(b"x")))

    def test_brokenOff(self) -> None:
        """What breaks off leaves nothing and may be sent again."""
        upload, token = self.promise()
        for _ in range(3):
            self.fails(self.receiving(upload, token, broken(CONTENT)), ConnectionResetError)
            self.assertEqual(self.names(), [])
        self.get(self.receiving(upload, token, pieces(CONTENT)))

    def test_cancelled(self) -> None:
        """The same for one whose sender goes away while it is awaited."""
        upload, token = self.promise()
        slow = Slow()
        receiving = Deferred.fromCoroutine(self.receiving(upload, token, slow.pieces()))
        slow.give(CONTENT)
        self.assertEqual(len(self.names()), 1)
        receiving.cancel()
        self.failureResultOf(receiving)
        self.assertEqual(self.names(), [])
        self.get(self.receiving(upload, token, pieces(CONTENT)))

    def test_backpressure(self) -> None:
        """No piece is asked for before the one before is on its way to the disk."""
        upload, token = self.promise()
        slow = Slow()
        held: list[Deferred[Any]] = []

        class Held(SameThread):
            def call(self, function: Callable[[], T]) -> Deferred[T]:
                waiting: Deferred[Any] = Deferred()
                waiting.addCallback(lambda _: function())
                held.append(waiting)
                return waiting

        self.uploads._workers = Held()
        receiving = Deferred.fromCoroutine(self.receiving(upload, token, slow.pieces()))
        self.assertEqual(slow.asked, 0)
        held.pop().callback(None)
        slow.give(CONTENT)
        self.assertEqual((slow.asked, len(held)), (1, 1))
        held.pop().callback(None)
        self.assertEqual(slow.asked, 2)
        slow.give(b"")
        held.pop().callback(None)
        self.assertEqual(self.successResultOf(receiving).size, 100)
        held.pop().callback(None)

    def test_diskFull(self) -> None:
        """A disk that is full is told as that, wherever it fills up; nothing stays."""
        upload, token = self.promise()
        for left in range(3):
            self.files.left = left
            self.fails(self.receiving(upload, token, pieces(CONTENT)), StorageFull)
            self.files.left = None
            self.assertEqual(self.names(), [], left)
        self.get(self.receiving(upload, token, pieces(CONTENT)))

    def test_noRoom(self) -> None:
        """What cannot fit is refused before it is received."""
        self.directory.mkdir()
        self.uploads.settings = UploadSettings(maxBytes=2**60, tenantBytes=2**61)
        upload, token = self.promise()
        body = pieces(CONTENT)
        self.fails(self.receiving(upload, token, body, length=2**60), StorageFull)
        self.assertEqual(self.get(first(body)), CONTENT)
        self.assertEqual(self.names(), [])

    def test_atOnce(self) -> None:
        """One upload is received once at a time, and not more than so many in all."""
        waiting = []
        for _ in range(2):
            upload, token = self.promise()
            slow = Slow()
            receiving = Deferred.fromCoroutine(self.receiving(upload, token, slow.pieces()))
            waiting.append((receiving, slow))
            self.fails(self.receiving(upload, token, pieces(CONTENT)), UploadBusy)
        self.uploads.settings = UploadSettings(tenantBytes=10**12, atOnce=2)
        upload, token = self.promise()
        self.fails(self.receiving(upload, token, pieces(CONTENT)), UploadBusy)
        for receiving, slow in waiting:
            slow.give(b"x")
            slow.give(b"")
            self.assertEqual(self.successResultOf(receiving).size, 1)
        self.get(self.receiving(upload, token, pieces(CONTENT)))

    def test_quota(self) -> None:
        """What is promised is counted, less when it is known to be less; other tenants apart."""
        first, token = self.promise()
        self.promise()
        self.fails(self.uploads.create(**ANN), QuotaExceeded)
        self.promise(size=500)
        self.fails(self.uploads.create(**ANN, size=1), QuotaExceeded)
        self.promise(tenant="other")
        self.get(self.receiving(first, token, pieces(CONTENT)))
        self.promise(size=900)
        self.fails(self.uploads.create(**ANN, size=1), QuotaExceeded)
        self.clock.advance(61)
        self.promise()

    def test_expired(self) -> None:
        """Over its time it is neither taken nor used; a sweep removes row and file."""
        upload, token = self.promise()
        done, used = self.complete()
        self.clock.advance(60)
        self.fails(self.receiving(upload, token, pieces(CONTENT)), UploadExpired)
        self.failureResultOf(
            self.database.run(
                lambda c: consume(c, used, **ANN, session="ses_x", now=self.wallClock())
            ),
            UploadUnusable,
        )
        self.assertEqual(self.names(), [done.id])
        self.assertEqual(self.get(self.uploads.sweep()), 2)
        self.assertEqual(self.names(), [])
        self.fails(self.receiving(upload, token, pieces(CONTENT)), UnknownUpload)

    def test_expiresWhileItComes(self) -> None:
        """One whose time ends while it is received was too late; nothing of it stays."""
        upload, token = self.promise()
        slow = Slow()
        receiving = Deferred.fromCoroutine(self.receiving(upload, token, slow.pieces()))
        self.clock.advance(61)
        self.assertEqual(self.get(self.uploads.sweep()), 0)
        slow.give(CONTENT)
        slow.give(b"")
        self.failureResultOf(receiving, UploadExpired)
        self.assertEqual(self.get(self.uploads.sweep()), 1)
        self.assertEqual(self.names(), [])

    def test_used(self) -> None:
        """A session reads what was sent; another one cannot have it."""
        upload, token = self.complete()
        session = self.use(token)
        archive = self.get(self.uploads.open(session))
        self.assertEqual((archive.name, archive.length), (upload.id, 100))
        transport = StringTransport()
        self.assertIsNone(self.successResultOf(archive.startProducing(transport)))
        self.assertEqual(transport.value(), CONTENT)
        for fields in ({}, {"owner": "bob"}, {"tenant": "other"}):
            given = ANN | {"session": "ses_x", "now": self.wallClock()} | fields
            failed = self.database.run(partial(consume, token=token, **given))
            self.failureResultOf(failed, UploadUnusable)
        self.clock.advance(1000)
        self.assertEqual(self.get(self.uploads.sweep()), 0)
        self.get(self.uploads.release(session))
        self.assertEqual(self.names(), [])
        self.fails(self.uploads.open(session), ArchiveGone)

    def test_notSentYet(self) -> None:
        """What has no archive cannot be used, and is not used up by trying."""
        upload, token = self.promise()
        failed = self.database.run(
            lambda c: consume(c, token, **ANN, session="ses_x", now=self.wallClock())
        )
        self.failureResultOf(failed, UploadUnusable)
        self.get(self.receiving(upload, token, pieces(CONTENT)))
        self.use(token)

    def test_fileLost(self) -> None:
        """A file that somebody removed, or cut, is no archive."""
        upload, token = self.complete()
        session = self.use(token)
        path = self.directory / upload.id
        path.write_bytes(b"x")
        self.fails(self.uploads.open(session), ArchiveGone)
        path.unlink()
        self.fails(self.uploads.open(session), ArchiveGone)

    def test_sessionOver(self) -> None:
        """A sweep removes what a session that has ended had."""
        _, token = self.complete()
        session = self.use(token)
        self.assertEqual(self.get(self.uploads.sweep()), 0)
        self.successResultOf(
            self.database.run(
                lambda c: (
                    c.execute(
                        update(sessions).where(sessions.c.id == session).values(status="failed")
                    ).rowcount
                )
            )
        )
        self.assertEqual(self.get(self.uploads.sweep()), 1)
        self.assertEqual(self.names(), [])

    def test_afterACrash(self) -> None:
        """What a server left when it was killed is removed by the next, and only that."""
        done, _ = self.complete()
        upload, token = self.promise()
        for name in (f"{upload.id}.0123.part", upload.id, "upl_01HF7YAT31JSPVDRNZKB7MQJ5K"):
            (self.directory / name).write_bytes(b"x")
        (self.directory / "somebody-elses").write_bytes(b"x")
        self.uploads = self.newUploads()
        self.get(self.uploads.sweep())
        self.assertEqual(self.names(), ["somebody-elses", done.id])
        self.get(self.receiving(upload, token, pieces(CONTENT)))

    def test_sweptWhileReceived(self) -> None:
        """A sweep leaves alone what is being received."""
        upload, token = self.promise()
        slow = Slow()
        receiving = Deferred.fromCoroutine(self.receiving(upload, token, slow.pieces()))
        slow.give(CONTENT)
        self.get(self.uploads.sweep())
        slow.give(b"")
        self.assertEqual(self.successResultOf(receiving).size, 100)

    def test_manyAtOnce(self) -> None:
        """More than are swept at once are swept all the same."""
        self.patch(module, "SWEPT_AT_ONCE", 2)
        for _ in range(5):
            self.promise(size=1)
        self.clock.advance(61)
        self.assertEqual(self.get(self.uploads.sweep()), 5)


class UploadPostgreSQLTests(OnPostgreSQL, UploadTests):
    """The same."""
