"""Archives are unpacked into their directory and nowhere else."""

from __future__ import annotations

import io
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.executor.archives import BadArchive, unpack
from helix_revdial.executor.workspace import ARCHIVES


class ArchiveTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.root = Path(self.mktemp()).absolute()
        self.place = self.root / "in"
        self.place.mkdir(parents=True)
        self.archive = self.root / "archive"

    def tar(self, mode: str, *members: tuple[str, dict[str, Any], bytes]) -> None:
        with tarfile.open(self.archive, mode) as archive:  # type: ignore[call-overload]
            for name, fields, content in members:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                for field, value in fields.items():
                    setattr(entry, field, value)
                archive.addfile(entry, io.BytesIO(content))

    def test_tar(self) -> None:
        """Plain and compressed, with folders and what can be run."""
        for mode in ("w", "w:gz", "w:bz2", "w:xz"):
            self.tar(mode, ("a/b", {"mode": 0o755}, b"one"), ("c", {}, b""))
            unpack(self.archive, self.place)
            self.assertEqual((self.place / "a" / "b").read_bytes(), b"one")
            self.assertTrue((self.place / "a" / "b").stat().st_mode & 0o100)

    def test_zip(self) -> None:
        """The same from a zip archive."""
        with zipfile.ZipFile(self.archive, "w") as archive:
            entry = zipfile.ZipInfo("a/b")
            entry.external_attr = (stat.S_IFREG | 0o755) << 16
            archive.writestr(entry, "one")
            archive.writestr("empty/", "")
        unpack(self.archive, self.place)
        self.assertEqual((self.place / "a" / "b").read_bytes(), b"one")
        self.assertTrue((self.place / "a" / "b").stat().st_mode & 0o100)
        self.assertTrue((self.place / "empty").is_dir())

    def test_outside(self) -> None:
        """Nothing outside of the directory is written, whatever the members are called."""
        link, device = {"type": tarfile.SYMTYPE}, {"type": tarfile.CHRTYPE}
        attempts: tuple[list[tuple[str, dict[str, Any], bytes]], ...] = (
            [("../out", {}, b"x")],
            [("/" + str(self.root) + "/out", {}, b"x"), ("ok", {}, b"")],
            [("l", {**link, "linkname": "../.."}, b""), ("l/out", {}, b"x")],
            [("l", {**link, "linkname": str(self.root)}, b"")],
            [("h", {"type": tarfile.LNKTYPE, "linkname": "../archive"}, b"")],
            [("d", device, b"")],
        )
        for members in attempts:
            self.tar("w", *members)
            try:
                unpack(self.archive, self.place)
            except BadArchive:
                pass
            self.assertEqual(sorted(p.name for p in self.root.iterdir()), ["archive", "in"])
        for name in ("../out", "/tmp/../" + str(self.root) + "/out"):
            with zipfile.ZipFile(self.archive, "w") as archive:
                archive.writestr(name, "x")
            self.assertRaises(BadArchive, unpack, self.archive, self.place)

    def test_bombs(self) -> None:
        """What is too large, or too many, is not unpacked to its end."""
        self.tar("w:gz", ("a", {}, bytes(100_000)))
        self.assertRaises(BadArchive, unpack, self.archive, self.place, maxBytes=50_000)
        with zipfile.ZipFile(self.archive, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a", bytes(100_000))
        self.assertRaises(BadArchive, unpack, self.archive, self.place, maxBytes=50_000)
        self.tar("w", *[(str(n), {}, b"") for n in range(11)])
        self.assertRaises(BadArchive, unpack, self.archive, self.place, maxMembers=10)

    def test_none(self) -> None:
        """What is no archive, or half of one, is said to be none."""
        for content in (b"", b"no archive", b"PK\x03\x04 half"):
            self.archive.write_bytes(content)
            self.assertRaises(BadArchive, unpack, self.archive, self.place)

    def test_program(self) -> None:
        """As a program it needs nothing of ours, and says what is wrong in one line."""
        self.archive.write_bytes(b"no archive")
        argv = [sys.executable, "-I", "-S", ARCHIVES, str(self.archive), str(self.place)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
        self.assertEqual(done.returncode, 1)
        self.assertEqual(len(done.stderr.splitlines()), 1)
