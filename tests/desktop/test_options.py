"""Tests for L{helix_revdial.desktop.options}."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.desktop.options import (
    MAX_SOCKET_PATH,
    DesktopOptions,
    TCPAddress,
    UNIXAddress,
    parseListen,
    parseSize,
)


class ListenTests(SynchronousTestCase):
    """What C{--listen} means."""

    def test_forms(self) -> None:
        """TCP addresses of both families and unix paths are read, and written back."""
        for text, expected, again in [
            ("127.0.0.1:9876", TCPAddress("127.0.0.1", 9876), "127.0.0.1:9876"),
            ("localhost:1", TCPAddress("127.0.0.1", 1), "127.0.0.1:1"),
            (":9876", TCPAddress("127.0.0.1", 9876), "127.0.0.1:9876"),
            ("[::1]:0", TCPAddress("::1", 0), "[::1]:0"),
            ("unix:/run/desktop.sock", UNIXAddress("/run/desktop.sock"), "unix:/run/desktop.sock"),
            ("unix:///run/a b", UNIXAddress("/run/a b"), "unix:/run/a b"),
        ]:
            address = parseListen(text)
            self.assertEqual(address, expected, text)
            self.assertEqual(str(address), again)

    def test_default(self) -> None:
        """The default is where an agent's default target expects the desktop."""
        self.assertEqual(parseListen(DesktopOptions().listen), TCPAddress("127.0.0.1", 9876))

    def test_wrong(self) -> None:
        """A wrong value is refused with a sentence that repeats it."""
        for text in [
            "",
            "9876",
            "host",
            "example.com:80",
            "127.0.0.1:65536",
            "127.0.0.1:-1",
            "::1:80",
            "unix:",
            "unix:relative.sock",
            "unix:/" + "x" * MAX_SOCKET_PATH,
            "unix:/a\0b",
        ]:
            error = self.assertRaises(ValueError, parseListen, text)
            self.assertIn(f"--listen {text}", str(error))

    def test_longestPath(self) -> None:
        """A path of exactly the system's limit is taken."""
        path = "/" + "x" * (MAX_SOCKET_PATH - 1)
        self.assertEqual(parseListen("unix:" + path), UNIXAddress(path))


class SizeTests(SynchronousTestCase):
    """What C{--size} means."""

    def test_size(self) -> None:
        """Width and height, in this order."""
        self.assertEqual(parseSize("1920x1080"), (1920, 1080))
        self.assertEqual(parseSize("16x8192"), (16, 8192))

    def test_wrong(self) -> None:
        """Anything else is refused with a sentence that repeats it."""
        for text in ["", "1920", "x", "15x16", "16x8193", "1920X1080", "-1x20", "99999x99999"]:
            error = self.assertRaises(ValueError, parseSize, text)
            self.assertIn(f"--size {text}", str(error))
