"""
Backpressure on real sockets: what is said twice, too late or not at all, and a peer
whose kernel gives it up.
"""

from __future__ import annotations

import socket
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone
from twisted.trial.unittest import SynchronousTestCase

from tests.revdial.test_sockets import FORMS, Bench

BODY = bytes(range(256)) * 2000

WORDS = st.lists(st.sampled_from(["pause", "resume", "turn"]), max_size=12)


class PauseTests(SynchronousTestCase):
    """Pauses of a peer's transport, in any order."""

    def do(self, bench: Bench, words: list[str]) -> None:
        wire = bench.far.wire
        for word in words:
            if word == "turn":
                bench.turn(0.001)
            else:
                getattr(wire, word + "Producing")()

    def test_doubled(self) -> None:
        """D7: paused twice and resumed once, a stream flows; resumed twice, no byte is doubled."""
        for form in FORMS:
            bench = Bench(self, form, "tcp")
            self.do(bench, ["pause", "pause"])
            bench.near.wire.write(BODY)
            bench.rest()
            self.assertLess(len(bench.far.got), len(BODY), f"{form}: it was not paused")
            self.do(bench, ["resume"])
            bench.spin(lambda b=bench: len(b.far.got) >= len(BODY), form)  # type: ignore[misc]
            self.do(bench, ["resume", "turn"])
            self.assertEqual(bench.far.got, BODY, form)

    def test_afterTheEnd(self) -> None:
        """D7: after a close a pause neither holds the end back nor hurts."""
        for form in FORMS:
            bench = Bench(self, form, "tcp")
            bench.near.wire.write(b"last words")
            bench.spin(lambda b=bench: bool(b.far.got), form)  # type: ignore[misc]
            bench.far.wire.loseConnection()
            self.do(bench, ["pause", "pause", "resume"])
            near = bench.near
            bench.spin(lambda near=near: near.readEnded or near.lost is not None, form)  # type: ignore[misc]
            near.wire.loseConnection()
            bench.bothLost()
            self.do(bench, ["resume", "pause", "resume"])
            self.assertEqual(bench.ends[0].why, "done", form)

    @settings(deadline=None, max_examples=15)
    @given(form=st.sampled_from(FORMS), before=WORDS, between=WORDS)
    def test_anyOrder(self, form: str, before: list[str], between: list[str]) -> None:
        """D7: whatever was paused and resumed, once it is resumed all that was sent arrives."""
        bench = Bench(self, form, "tcp")
        try:
            self.do(bench, before)
            bench.near.wire.write(BODY)
            self.do(bench, between)
            self.do(bench, ["resume"])
            bench.spin(lambda: len(bench.far.got) >= len(BODY), f"{form} {before} {between}")
            self.assertEqual(bench.far.got, BODY)
        finally:
            for peer in (bench.far, bench.near):
                peer.wire.abortConnection()
            bench.bothLost()


class GivenUpTests(SynchronousTestCase):
    """A write that times out."""

    def test_theOtherSideIsTold(self) -> None:
        """
        D11: where the kernel gives up a peer that takes nothing, the stream's other
        side hears of a break at once, though it only reads.
        """
        for form in ("tcp", "raw/server", "websocket+eof/client"):
            bench = Bench(self, form, "tcp")
            near: Any = bench.left.other.transport
            near.getHandle().setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 300)
            bench.near.wire.pauseProducing()
            for _ in range(200):
                bench.far.wire.write(BODY)
                bench.turn(0.001)
            # Nobody reads at the one end, and the other waits for a word of it.
            bench.spin(lambda b=bench: bool(b.ends), form)  # type: ignore[misc]
            bench.spin(lambda b=bench: b.far.lost is not None, form)  # type: ignore[misc]
            self.assertEqual(bench.ends[0].why, "broken", form)
            assert bench.far.lost is not None
            self.assertFalse(bench.far.lost.check(ConnectionDone) and form == "tcp", form)
