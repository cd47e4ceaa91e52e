"""Tests for L{helix_revdial.sessions.patches}."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.sessions.patches import Patch, PatchDamaged, Patches, PatchTooLarge
from helix_revdial.storage.ids import newId
from helix_revdial.storage.threads import SameThread


async def pieces(*data: bytes, error: Exception | None = None) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece
    if error is not None:
        raise error


class PatchesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="hx-"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.now = 1_800_000_000.0
        self.patches = self.newPatches()

    def newPatches(self, **limits: Any) -> Patches:
        """What a server that starts finds."""
        limits = {"maxBytes": 100, "quota": 250, "retention": 1000.0, **limits}
        patches = Patches(self.directory / "p", SameThread(), lambda: self.now, **limits)
        self.get(patches.start())
        return patches

    def get(self, coroutine: Any) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    def put(self, session: str, *data: bytes) -> Patch:
        patch: Patch = self.get(self.patches.put(session, pieces(*data)))
        return patch

    def session(self) -> str:
        self.now += 1
        return newId("ses", self.now)

    def read(self, patch: Patch) -> bytes:
        async def all_() -> bytes:
            return b"".join([piece async for piece in self.patches.read(patch)])

        found: bytes = self.get(all_())
        return found

    def files(self) -> list[str]:
        return sorted(path.name for path in (self.directory / "p").iterdir())

    def test_kept(self) -> None:
        """What is kept is there, with its digest, and is there after a restart."""
        session = self.session()
        patch = self.put(session, b"one ", b"two")
        digest = hashlib.sha256(b"one two").hexdigest()
        self.assertEqual((patch.size, patch.sha256), (7, digest))
        self.assertEqual(self.read(patch), b"one two")
        self.patches = self.newPatches()
        again = self.patches.get(session)
        self.assertEqual(again, patch)
        assert again is not None
        self.assertEqual(self.read(again), b"one two")
        self.assertEqual((self.directory / "p").stat().st_mode & 0o777, 0o700)

    def test_empty(self) -> None:
        """A patch may be empty: nothing was changed."""
        self.assertEqual(self.read(self.put(self.session())), b"")

    def test_replaced(self) -> None:
        """A session has one patch: the newest."""
        session = self.session()
        self.put(session, b"old")
        patch = self.put(session, b"new")
        self.assertEqual(self.read(patch), b"new")
        self.assertEqual(len(self.files()), 1)

    def test_tooLarge(self) -> None:
        """Too large a patch is not kept, and costs none of the others."""
        kept = self.put(self.session(), b"x" * 100)
        self.failureResultOf(
            Deferred.fromCoroutine(self.patches.put(self.session(), pieces(b"x" * 60, b"x" * 60))),
            PatchTooLarge,
        )
        self.assertEqual(self.files(), [f"{kept.session}.{kept.sha256}.patch"])
        self.patches = self.newPatches(quota=50, maxBytes=1000)
        self.failureResultOf(
            Deferred.fromCoroutine(self.patches.put(self.session(), pieces(b"x" * 60))),
            PatchTooLarge,
        )

    def test_quota(self) -> None:
        """The oldest make room."""
        sessions = [self.session() for _ in range(4)]
        for session in sessions:
            self.now += 1
            self.put(session, session.encode() * 3)
        self.assertLessEqual(self.patches.size, 250)
        kept = [session for session in sessions if self.patches.get(session)]
        self.assertEqual(kept, sessions[2:])
        self.assertEqual(len(self.files()), 2)

    def test_retention(self) -> None:
        """What is too old goes, at a look and at a start."""
        old, new = self.session(), self.session()
        self.put(old, b"old")
        self.now += 600
        self.put(new, b"new")
        self.now += 500
        self.get(self.patches.sweep())
        self.assertEqual((self.patches.get(old), len(self.files())), (None, 1))
        self.now += 600
        self.newPatches()
        self.assertEqual(self.files(), [])

    def test_broken(self) -> None:
        """What breaks off is not kept; the one of before is."""
        session = self.session()
        kept = self.put(session, b"whole")
        failing = self.patches.put(session, pieces(b"half", error=OSError("gone")))
        self.failureResultOf(Deferred.fromCoroutine(failing), OSError)
        self.assertEqual(self.patches.get(session), kept)
        self.assertEqual(self.read(kept), b"whole")
        self.assertEqual(len(self.files()), 1)

    def test_killed(self) -> None:
        """What a server that was killed left half is removed, and what is not ours is not."""
        place = self.directory / "p"
        (place / f"{self.session()}.1.new").write_text("half")
        (place / "notes.txt").write_text("somebody's")
        self.newPatches()
        self.assertEqual(self.files(), ["notes.txt"])

    def test_damaged(self) -> None:
        """What is not what was written is never given out as a whole."""
        for damage in (
            lambda path: path.write_bytes(b"y" * 7),
            lambda path: path.write_bytes(b"one"),
            lambda path: path.unlink(),
        ):
            patch = self.put(self.session(), b"one two")
            damage(self.directory / "p" / f"{patch.session}.{patch.sha256}.patch")
            given: list[bytes] = []

            async def read(patch: Patch = patch, given: list[bytes] = given) -> None:
                async for piece in self.patches.read(patch):
                    given.append(piece)

            self.failureResultOf(Deferred.fromCoroutine(read()), PatchDamaged)
            self.assertEqual(given, [])

    def test_removed(self) -> None:
        """One that is removed is gone; one that is not there is no mistake."""
        patch = self.put(self.session(), b"x")
        self.get(self.patches.remove(patch.session))
        self.get(self.patches.remove(patch.session))
        self.assertEqual((self.files(), self.patches.get(patch.session)), ([], None))
