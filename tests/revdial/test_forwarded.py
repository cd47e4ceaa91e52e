"""
Tests for L{helix_revdial.revdial.client}: what it makes of something that forwards
HTTP between it and the server.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred

from helix_revdial.revdial.exchange import NoConnection
from helix_revdial.revdial.features import ALL, EOF, RAW

from .test_client import RAW_101, PathCase

FEATURES = b"Revdial-Features: echo, eof, goodbye, pool, raw, targets, tickets\r\n\r\n"

SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\n"

FORWARDED = (
    SWITCHING + b"Server: nginx/1.22.1\r\nConnection: upgrade\r\nUpgrade: revdial\r\n" + FEATURES,
    SWITCHING + b"upgrade: revdial\r\nconnection: Upgrade\r\n" + FEATURES.lower(),
    SWITCHING + b"Connection: Upgrade\r\nUpgrade: revdial\r\n" + FEATURES,
    SWITCHING + b"Upgrade: revdial\r\nVia: 1.1 x\r\nConnection: Upgrade\r\n" + FEATURES,
    b"HTTP/1.1 101 Switching\r\nUpgrade: revdial\r\nConnection: Upgrade\r\n" + FEATURES,
)
"""Our server's consent after nginx, HAProxy, a Go proxy, and others."""


class ForwardedTests(PathCase):
    def connected(self, *answer: bytes) -> None:
        """A raw control connection, whose answer comes in these pieces."""
        connecting = self.connect()
        for each in answer:
            self.server.last.answer(each)
        self.assertEqual(self.successResultOf(connecting).carrier, "raw")

    def test_nothingInBetween(self) -> None:
        """The consent as the server writes it, at every split: raw streams."""
        for split in range(1, len(RAW_101)):
            self.connected(RAW_101[:split], RAW_101[split:])
            self.assertTrue(self.path.wantsRawData(ALL), split)
            self.server.last.lose()

    def test_forwarded(self) -> None:
        """
        D13: a consent that was rewritten: streams over WebSocket, which keeps their
        half-close; raw again once nothing is in between any more.
        """
        for answer in FORWARDED:
            for split in (1, 20, len(answer) - 1):
                self.connected(answer[:split], answer[split:])
                self.assertFalse(self.path.wantsRawData(ALL), answer)
                self.server.last.lose()
            self.connected(RAW_101)
            self.assertTrue(self.path.wantsRawData(ALL))
            self.server.last.lose()

    def test_noEndMark(self) -> None:
        """Where WebSocket streams have no end mark, nothing is gained by it."""
        self.connected(FORWARDED[0])
        self.assertTrue(self.path.wantsRawData(ALL - {EOF}))
        self.assertFalse(self.path.wantsRawData(ALL - {RAW}))

    def test_throughAProxy(self) -> None:
        """A way that is known not to pass ends on has WebSocket streams from the start."""
        self.path = self.make(direct=False)
        self.assertFalse(self.path.wantsRawData(ALL))
        self.connected(RAW_101)
        self.assertFalse(self.path.wantsRawData(ALL))
        self.path.forget()
        self.assertFalse(self.path.wantsRawData(ALL))

    def test_forget(self) -> None:
        """B4: in another network everything is tried again."""
        self.connected(FORWARDED[0])
        self.path.rawDataRefused()
        self.path.forget()
        self.assertTrue(self.path.wantsRawData(ALL))

    def test_noConnection(self) -> None:
        """Where no connection is made in time, another carrier is not tried."""
        asked = 0

        class Nowhere:
            def connect(self, factory: object) -> Deferred[object]:
                nonlocal asked
                asked += 1
                return Deferred()

        self.path = self.make()
        self.patch(self.path, "_serverEndpoint", Nowhere)
        connecting = self.connect()
        self.clock.advance(10)
        self.failureResultOf(connecting, NoConnection)
        self.assertEqual(asked, 1)
