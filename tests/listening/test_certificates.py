"""Certificates and keys in files."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.listening.certificates import (
    MAX_FILE,
    byName,
    readAuthorities,
    readCertified,
    readDirectory,
    select,
)
from helix_revdial.listening.errors import ListenError

from .pems import authorityFile, chain, key, leaf, locked, whole, write


class FilesTests(SynchronousTestCase):
    """One certificate and its key."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.one = leaf("one.example", "*.one.example")

    def refused(self, certificate: Path, keyFile: Path | None = None) -> str:
        with self.assertRaises(ListenError) as caught:
            readCertified(certificate, keyFile)
        return str(caught.exception)

    def test_twoFiles(self) -> None:
        """A chain and a key."""
        read = readCertified(
            write(self.directory / "c", chain(self.one)), write(self.directory / "k", key(self.one))
        )
        self.assertEqual(read.names, ("one.example", "*.one.example"))
        self.assertEqual(list(read.complaints(datetime.now(UTC))), [])

    def test_oneFile(self) -> None:
        """Both in one, in either order."""
        for pieces in ((chain(self.one), key(self.one)), (key(self.one), chain(self.one))):
            read = readCertified(write(self.directory / "both.pem", b"a comment\n", *pieces))
            self.assertEqual(read.names, ("one.example", "*.one.example"))

    def test_wrongKey(self) -> None:
        """A key of another certificate is refused, and both files are named."""
        certificate = write(self.directory / "c", chain(self.one))
        wrong = write(self.directory / "k", key(leaf("two.example")))
        message = self.refused(certificate, wrong)
        self.assertIn(f"{wrong}: the key does not belong to the first certificate", message)
        self.assertIn(str(certificate), message)

    def test_refused(self) -> None:
        """Whatever cannot be used is refused with its file; what is in it is not shown."""
        good = write(self.directory / "c", chain(self.one))
        label = key(self.one).split(b"-----\n", 1)[0]
        broken = label + b"-----\nAAAA\n" + label.replace(b"BEGIN", b"END") + b"-----\n"
        for name, content, text in (
            ("empty", b"", "one private key in it; there are 0"),
            ("locked", locked(self.one), "has a passphrase"),
            ("twice", key(self.one) * 2, "one private key in it; there are 2"),
            ("broken", broken, "the private key cannot be read"),
            ("large", b"x" * (MAX_FILE + 1), "no certificate or key"),
        ):
            message = self.refused(good, write(self.directory / name, content))
            self.assertIn(text, message)
            self.assertIn(str(self.directory / name), message)
            self.assertNotIn("BEGIN", message)
        self.assertIn("No such file", self.refused(self.directory / "nowhere"))
        self.assertIn("Is a directory", self.refused(self.directory))
        self.assertIn("no certificate", self.refused(write(self.directory / "e", b"")))
        torn = chain(self.one).replace(b"MII", b"AAA", 1)
        self.assertIn("cannot be read", self.refused(write(self.directory / "t", torn)))

    def test_complaints(self) -> None:
        """A certificate outside of its time is used, and complained of."""
        read = readCertified(write(self.directory / "b.pem", whole(self.one)))
        (text,) = read.complaints(read.ends + timedelta(days=1))
        self.assertIn("b.pem: the certificate expired on", text)
        (text,) = read.complaints(datetime(1999, 1, 1, tzinfo=UTC))
        self.assertIn("not valid yet", text)

    def test_exposedKey(self) -> None:
        """A key that everybody can read is used, and complained of."""
        certificate = write(self.directory / "c", chain(self.one))
        certificate.chmod(0o644)
        private = write(self.directory / "k", key(self.one))
        for mode, exposed in ((0o600, False), (0o640, False), (0o644, True)):
            private.chmod(mode)
            found = list(readCertified(certificate, private).complaints(datetime.now(UTC)))
            expected = f"{private}: everybody on this machine can read this private key"
            self.assertEqual(found, [expected] if exposed else [])

    def test_authorities(self) -> None:
        """A bundle of authorities; an empty one would let everybody in or nobody."""
        self.assertEqual(len(readAuthorities(authorityFile(self.directory / "ca.pem"))), 1)
        with self.assertRaises(ListenError):
            readAuthorities(write(self.directory / "none.pem", b"nothing"))


class DirectoryTests(SynchronousTestCase):
    """Many certificates."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()

    def test_everyForm(self) -> None:
        """One file, two files, an ACME client's directory; anything else is left alone."""
        one, two, three = leaf("one.example"), leaf("two.example"), leaf("three.example")
        write(self.directory / "one.pem", whole(one))
        write(self.directory / "two.crt", chain(two))
        write(self.directory / "two.key", key(two))
        write(self.directory / "three" / "fullchain.pem", chain(three))
        write(self.directory / "three" / "privkey.pem", key(three))
        write(self.directory / "README", b"what this is")
        write(self.directory / ".hidden.pem", b"half written")
        (self.directory / "other").mkdir()
        read = readDirectory(self.directory)
        self.assertEqual(
            [each.names[0] for each in read], ["one.example", "three.example", "two.example"]
        )

    def test_default(self) -> None:
        """The one that is called so is for those who name nothing that is there."""
        write(self.directory / "a.pem", whole(leaf("one.example")))
        write(self.directory / "default.pem", whole(leaf("two.example")))
        self.assertEqual(readDirectory(self.directory)[0].names, ("two.example",))

    def test_refused(self) -> None:
        """One that is wrong, a directory without any, and none at all."""
        write(self.directory / "a.pem", whole(leaf("one.example")))
        bad = write(self.directory / "b.pem", chain(leaf("two.example")))
        for directory, text in (
            (self.directory, f"{bad}: there must be one private key"),
            (Path(self.mktemp()), "No such file"),
        ):
            with self.assertRaises(ListenError) as caught:
                readDirectory(directory)
            self.assertIn(text, str(caught.exception))
        bad.unlink()
        (self.directory / "a.pem").unlink()
        with self.assertRaises(ListenError) as caught:
            readDirectory(self.directory)
        self.assertIn("there is no certificate in it", str(caught.exception))

    def test_select(self) -> None:
        """The name itself, then a wildcard for one label; in any letter case."""
        write(self.directory / "a.pem", whole(leaf("a.example")))
        write(self.directory / "b.pem", whole(leaf("*.example", "b.example")))
        names = byName(readDirectory(self.directory))
        for wanted, expected in (
            (b"a.example", "a.example"),
            (b"A.Example.", "a.example"),
            (b"b.example", "*.example"),
            (b"c.example", "*.example"),
            (b"d.c.example", None),
            (b"example", None),
            (b"\xff", None),
            (b"", None),
            (None, None),
        ):
            chosen = select(names, wanted)
            self.assertEqual(None if chosen is None else chosen.names[0], expected, wanted)

    def test_longestValid(self) -> None:
        """Of two for one name, the one that is valid longer: a new one may lie beside the old."""
        soon = datetime.now(UTC) + timedelta(days=3)
        write(self.directory / "new.pem", whole(leaf("one.example")))
        write(self.directory / "old.pem", whole(leaf("one.example", ends=soon)))
        chosen = byName(readDirectory(self.directory))["one.example"]
        self.assertEqual(chosen.path.name, "new.pem")
