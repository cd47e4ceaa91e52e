"""Tests for L{helix_revdial.revdial.framed}, beside those of what it carries."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.framed import FramedConnection
from helix_revdial.revdial.masks import Keys


class Transport(StringTransport):
    """One that can be read again."""

    reading = False

    def startReading(self) -> None:
        assert not self.disconnected, "its socket is closed"
        self.reading = True


class User:
    """Hears of what arrives."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def payload(self, data: bytes) -> None:
        self.heard.append(data)

    def ended(self) -> None:
        self.heard.append("end")

    def ponged(self) -> None:
        """Not of interest."""

    def lost(self, reason: Failure) -> None:
        self.heard.append("lost")


class GivenBackTests(SynchronousTestCase):
    """A connection whose bytes somebody else has moved, up to a stream's end."""

    def setUp(self) -> None:
        self.user = User()
        self.connection = FramedConnection(Clock(), self.user, Keys(), webSocket=False, client=True)
        self.transport = Transport()
        self.connection.makeConnection(self.transport)
        self.connection.taken()

    def test_whatCameBehind(self) -> None:
        """What came behind the end is the next stream's, before what comes now."""
        self.connection.givenBack([b"dial", b" it"])
        self.assertTrue(self.transport.reading)
        self.connection.dataReceived(b"\x82\x01!")
        self.assertEqual(self.user.heard, [b"dial", b" it", b"!"])

    def test_lostMeanwhile(self) -> None:
        """Where the stream's end has ended everything, nothing is read again."""
        self.transport.disconnected = True
        self.connection.connectionLost(Failure(ConnectionDone()))
        self.connection.givenBack([b"dial"])
        self.assertEqual((self.user.heard, self.transport.reading), (["lost"], False))
