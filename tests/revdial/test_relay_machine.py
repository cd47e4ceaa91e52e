"""The relay under any interleaving, against a simple model."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from twisted.internet import error
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.relay import RelayEnd, relayPair
from tests.revdial.wire import HalfRecorder, Wire

SIDES = st.sampled_from([0, 1])


class RelayMachine(RuleBasedStateMachine):
    """
    Two peers over a relay do what they like, in any order.

    The model is what each peer has written, and whether it has ended in good
    order.  What the other received is always a beginning of that; it is all of it
    once the other has heard the end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.ends: list[RelayEnd] = []
        self.halves = relayPair(self.clock, linger=60.0, onEnd=self.ends.append)
        self.peers = [HalfRecorder(), HalfRecorder()]
        self.wires = [Wire(peer, half) for peer, half in zip(self.peers, self.halves, strict=True)]
        self.joined = [False, False]
        self.written = [bytearray(), bytearray()]
        self.ended = [False, False]
        self.silent: int | None = None
        self.source = random.Random(1)

    @initialize(
        first=st.sampled_from([(), (0,), (0, 1), (1, 0), (0, 1)]),
        silent=st.sampled_from([None, None, 0, 1]),
    )
    def begin(self, first: tuple[int, ...], silent: int | None) -> None:
        """Some are connected from the start; one may never say that it ends."""
        self.silent = silent
        for side in first:
            self.join(side)

    def end(self, side: int) -> Any:
        """The peer's own transport."""
        return self.wires[side].left

    @rule(side=SIDES)
    def join(self, side: int) -> None:
        if not self.joined[side]:
            self.joined[side] = True
            self.wires[side].connect()

    @rule(side=SIDES, size=st.integers(1, 500_000))
    def write(self, side: int, size: int) -> None:
        if self.joined[side] and self.end(side).connected and not self.ended[side]:
            data = self.source.randbytes(size)
            self.written[side] += data
            self.end(side).write(data)

    @rule(side=SIDES)
    def halfClose(self, side: int) -> None:
        may = self.joined[side] and self.end(side).connected and not self.ended[side]
        if may and side != self.silent:
            self.ended[side] = True
            self.end(side).loseWriteConnection()

    @rule(side=SIDES)
    def abort(self, side: int) -> None:
        if self.joined[side]:
            self.end(side).abortConnection()

    @rule(side=SIDES, reading=st.booleans())
    def read(self, side: int, reading: bool) -> None:
        if self.joined[side]:
            end = self.end(side)
            if reading and not end.finSeen:
                end.resumeProducing()
            else:
                end.pauseProducing()

    @rule(side=SIDES, ours=st.booleans(), size=st.integers(1, 100_000))
    def move(self, side: int, ours: bool, size: int) -> None:
        if self.joined[side]:
            wire = self.wires[side]
            wire.move(wire.left if ours else wire.right, size)

    @rule()
    def moveAll(self) -> None:
        for _ in range(4):
            for side in (0, 1):
                if self.joined[side]:
                    self.wires[side].settle(clock=self.clock)

    @rule(seconds=st.sampled_from([0.0, 1.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def whatArrivedIsABeginning(self) -> None:
        for side in (0, 1):
            received = self.peers[1 - side].received
            assert self.written[side].startswith(received), "bytes changed on the way"

    @invariant()
    def anEndMeansAll(self) -> None:
        for side in (0, 1):
            other = self.peers[1 - side]
            clean = "end" in other.heard or isinstance(other.reason, error.ConnectionDone)
            if clean:
                assert self.ended[side], "an end that nobody sent"
                assert other.received == self.written[side], "an end before the last byte"

    @invariant()
    def memoryIsBounded(self) -> None:
        for wire in self.wires:
            assert wire.right.highWater <= 2 * 100_000 + 65536, wire.right.highWater
        assert all(len(b"".join(half._early or ())) <= 65536 for half in self.halves)

    def teardown(self) -> None:
        """
        Everybody reads, and ends, but for one that may stay silent: both learn it, and
        nothing is left, at the latest when the linger limit is over.
        """
        for side in (0, 1):
            self.join(side)
        for side in (0, 1):
            self.read(side, True)
            self.halfClose(side)
        for _ in range(20):
            for wire in self.wires:
                wire.settle(clock=self.clock)
        broken = any(isinstance(peer.reason, error.ConnectionLost) for peer in self.peers) or any(
            isinstance(peer.reason, error.ConnectionAborted) for peer in self.peers
        )
        lingered = any(end.why != "done" for end in self.ends)
        if self.silent is not None:
            self.clock.advance(61)
        elif not broken and not lingered:
            for side in (0, 1):
                assert self.peers[1 - side].received == self.written[side]
                assert "end" in self.peers[1 - side].heard
        for side in (0, 1):
            if self.end(side).connected:
                self.end(side).loseConnection()
        for wire in self.wires:
            wire.settle(clock=self.clock)
        self.clock.advance(61)
        assert len(self.ends) == 1, self.ends
        assert all(not wire.right.connected for wire in self.wires)
        assert all(peer.reason is not None for peer in self.peers), "somebody was not told"
        assert self.clock.getDelayedCalls() == []


class RelayMachineTests(SynchronousTestCase):
    """Run the machine."""

    def test_anyInterleaving(self) -> None:
        """
        Bytes that arrive are a beginning of what was sent, all of it where the end
        arrived; both sides learn the end; nothing is left over.
        """
        run_state_machine_as_test(
            RelayMachine,
            settings=settings(deadline=None, max_examples=60, stateful_step_count=40),
        )
