"""Tests for L{helix_revdial.api.first_look}: the same verdicts, sooner."""

from __future__ import annotations

import base64
from typing import Any
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.api.first_look import FirstLook
from tests.api.harness import Server, await_
from tests.api.test_tunnel import Collector, lines, rawUpgrade

KEY = base64.b64encode(bytes(range(16))).decode()

RAW = [
    ("Host", "cp.example"),
    ("User-Agent", "helix-revdial/1"),
    ("Connection", "Upgrade"),
    ("Upgrade", "revdial"),
    ("Authorization", "Bearer {token}"),
    ("Revdial-Ticket", "{ticket}"),
    ("Revdial-Timing", "target=0.25"),
]
"""What our agents send for a dial."""

WEBSOCKET = [
    *(field for field in RAW if field[0] != "Upgrade"),
    ("Upgrade", "WebSocket"),
    ("Sec-WebSocket-Key", KEY),
    ("Sec-WebSocket-Version", "13"),
]

ODD = [
    ("Host", "other.example"),
    ("Connection", "keep-alive, upgrade"),
    ("Connection", "close"),
    ("Upgrade", "revdial"),
    ("Upgrade", "h2c, revdial"),
    ("Upgrade", "websocket"),
    ("Authorization", "Bearer {token}"),
    ("Authorization", "apikey {token}"),
    ("Authorization", "Bearer {thief}"),
    ("Authorization", "Bearer hlx_nobody-has-this-one"),
    ("Authorization", "Basic eDp5"),
    ("Revdial-Ticket", "{ticket}"),
    ("Revdial-Ticket", "unknown"),
    ("Revdial-Ticket", ""),
    ("Revdial-Features", "raw, eof"),
    ("Sec-WebSocket-Key", KEY),
    ("Sec-WebSocket-Key", "short"),
    ("Sec-WebSocket-Version", "8"),
    ("Sec-WebSocket-Protocol", "binary"),
    ("X-Helix-Authorization", "Bearer {thief}"),
    ("X-Request-Id", "mine"),
    ("traceparent", "00-" + "1" * 32 + "-" + "2" * 16 + "-01"),
    ("Content-Length", "0"),
    ("Content-Length", "3"),
    ("Transfer-Encoding", "chunked"),
    ("Expect", "100-continue"),
    ("Accept", "text/html"),
]


class House:
    """A server with a runner that is connected."""

    def __init__(self, looks: bool) -> None:
        self.server = Server()
        self.token = self.server.runner("wolf-*")
        self.thief = self.server.runner("hydra-*")
        if looks:
            self.server.factory.firstLook = FirstLook(self.server.services)
        protocol, self.control = self.server.connect()
        protocol.dataReceived(rawUpgrade("/api/v1/revdial?runnerid=wolf-1", self.token))

    def dial(self) -> tuple[Any, Collector, str]:
        """A caller who waits, what he gets, and what picks his dial up."""
        collector = Collector()
        factory = Factory.forProtocol(lambda: collector)
        waiting = self.server.connections.endpoint("wolf-1").connect(factory)
        return waiting, collector, lines(self.control)[-1]["ticket"]

    def outcome(self, form: Any, pieces: list[int], early: bytes) -> object:
        """Everything that a request brings about, as far as it can be seen."""
        # What was shown a moment ago is known.
        for token in (self.token, self.thief):
            await_(self.server.tokens.authenticate(token))
        waiting, collector, ticket = self.dial()
        settled: list[object] = []
        waiting.addBoth(lambda result: settled.append(type(result).__name__))
        method, target, version, fields = form
        head = [f"{method} {target} HTTP/{version}"]
        known = {"{token}": self.token, "{thief}": self.thief, "{ticket}": ticket}
        for name, value in fields:
            for word, meant in known.items():
                value = value.replace(word, meant)
            head.append(f"{name}: {value}")
        data = "\r\n".join(head).encode("ascii") + b"\r\n\r\n" + early
        self.server.events()
        before = len(self.server.events())
        protocol, transport = self.server.connect()
        rest = data
        for size in pieces:
            protocol.dataReceived(rest[:size])
            rest = rest[size:]
        protocol.dataReceived(rest)
        first, *others = transport.value().partition(b"\r\n\r\n")[0].split(b"\r\n")
        said = sorted(each for each in others if not each.startswith((b"X-Request-Id", b"Date")))
        found = (
            first,
            said,
            settled[:],
            collector.got,
            protocol.purpose,
            transport.disconnecting,
            self.server.factory.admission.total,
            [each.event for each in self.server.events()[before:]],
            self.server.load.tenants.held("default"),
            sorted(self.server.factory.sizes().items()),
        )
        protocol.connectionLost(mock.Mock(check=lambda *kinds: None, value=ValueError("over")))
        waiting.cancel()
        self.server.clock.advance(1)
        return found


class DifferentialTests(SynchronousTestCase):
    """With the first look and without it, every request has the same verdict."""

    def setUp(self) -> None:
        self.ordinary, self.looking = House(False), House(True)

    @given(
        fields=st.sampled_from([RAW, RAW, WEBSOCKET]),
        dropped=st.sets(st.integers(0, 9), max_size=2),
        odd=st.lists(st.tuples(st.integers(0, 9), st.sampled_from(ODD)), max_size=2),
        replaces=st.booleans(),
        line=st.sampled_from(
            [
                *[("GET", "/api/v1/revdial", "1.1")] * 4,
                ("GET", "/api/v1/revdial?runnerid=wolf-2", "1.1"),
                ("GET", "/api/v1/revdial?", "1.1"),
                ("GET", "/api/v1/revdial/", "1.1"),
                ("GET", "/api/v1/revdial", "1.0"),
                ("POST", "/api/v1/revdial", "1.1"),
                ("HEAD", "/api/v1/revdial", "1.1"),
            ]
        ),
        pieces=st.lists(st.integers(0, 300), max_size=4),
        early=st.sampled_from([b"", b"early", b"\r\n\r\n"]),
    )
    @settings(deadline=None, max_examples=150)
    def test_sameVerdict(
        self,
        fields: list[tuple[str, str]],
        dropped: set[int],
        odd: list[tuple[int, tuple[str, str]]],
        replaces: bool,
        line: tuple[str, str, str],
        pieces: list[int],
        early: bytes,
    ) -> None:
        """Status, words, audit, places and tunnels that count, bytes behind the head."""
        used = [field for number, field in enumerate(fields) if number not in dropped]
        for place, field in odd:
            if replaces:
                used = [each for each in used if each[0] != field[0]]
            used.insert(min(place, len(used)), field)
        form = (*line, used)
        expected = self.ordinary.outcome(form, pieces, early)
        self.assertEqual(self.looking.outcome(form, pieces, early), expected, form)


class TakenTests(SynchronousTestCase):
    """What the first look is for does not come to the dispatch."""

    def test_ourAgents(self) -> None:
        """C5: Raw and WebSocket dials are taken, with what came behind them, at every split."""
        for fields in (RAW, WEBSOCKET):
            house = House(True)
            house.server.factory.dispatch = mock.Mock(side_effect=AssertionError("dispatched"))
            for split in range(0, 330, 10):
                early = b"early" if fields is RAW else b""
                found: Any = house.outcome(
                    ("GET", "/api/v1/revdial", "1.1", fields), [split], early
                )
                self.assertEqual(found[0], b"HTTP/1.1 101 Switching Protocols", split)
                self.assertEqual(found[2:5], (["Collector"], early, "data"), split)

    def test_theOperationIsNotRated(self) -> None:
        """The first look asks for no rate, so that the operation must have none."""
        self.assertIsNone(House(False).server.table["connectAgent"].rate)

    def test_anotherMayHaveIt(self) -> None:
        """What is for somebody else than the API is left to the dispatch."""
        house = House(True)
        house.server.factory.firstLook = FirstLook(house.server.services, lambda request: True)
        dispatch = house.server.factory.dispatch
        house.server.factory.dispatch = mock.Mock(side_effect=dispatch)
        found: Any = house.outcome(("GET", "/api/v1/revdial", "1.1", RAW), [], b"")
        self.assertEqual(found[0], b"HTTP/1.1 101 Switching Protocols")
        house.server.factory.dispatch.assert_called_once()

    def test_aLookThatFails(self) -> None:
        """F10: It is logged, and the dispatch answers."""
        house = House(True)
        house.server.factory.firstLook = mock.Mock(side_effect=ZeroDivisionError)
        found: Any = house.outcome(("GET", "/api/v1/revdial", "1.1", RAW), [], b"")
        self.assertEqual(found[0], b"HTTP/1.1 101 Switching Protocols")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
