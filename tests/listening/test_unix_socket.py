"""C{unix:} descriptions (the sockets themselves: tests.integration.test_listening)."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.listening.errors import ListenError
from helix_revdial.listening.unix_socket import MAX_PATH, addressOf, checkPath, withoutLock


class DescriptionTests(SynchronousTestCase):
    """What Twisted's endpoint parser would read."""

    def test_address(self) -> None:
        """The path, positional or named, quoting undone; others have none."""
        for description, path in (
            ("unix:/run/a.sock", "/run/a.sock"),
            ("unix:/run/a.sock:mode=660", "/run/a.sock"),
            ("unix:mode=660:address=/run/a.sock", "/run/a.sock"),
            (r"unix:/run/a\:b\\c", r"/run/a:b\c"),
            ("tcp:80", None),
            ("unixish:/x", None),
            ("unix", None),
            ("systemd:domain=UNIX:index=0", None),
            ("", None),
        ):
            self.assertEqual(addressOf(description), path, description)

    def test_length(self) -> None:
        """A path that no socket can have is named, with its length and the limit."""
        checkPath("/" + "x" * (MAX_PATH - 1))
        for path in ("/" + "x" * MAX_PATH, "/" + "ü" * 54):
            with self.assertRaises(ListenError) as caught:
                checkPath(path)
            message = str(caught.exception)
            self.assertIn(path, message)
            self.assertIn(f"at most {MAX_PATH} bytes, and this one has ", message)

    def test_lock(self) -> None:
        """No lock file, unless one is asked for."""
        self.assertEqual(withoutLock("unix:/a"), "unix:/a:lockfile=0")
        self.assertEqual(withoutLock("unix:/a:lockfile=1"), "unix:/a:lockfile=1")
