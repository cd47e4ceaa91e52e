"""A parked connection at the agent's end: lines, streams and their ends, at every split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from helix_revdial.revdial.assigned import MAX_EARLY, Waiting
from helix_revdial.revdial.errors import TargetRefused
from helix_revdial.revdial.framed import FramedConnection
from helix_revdial.revdial.frames import CLOSE, Control, EndMark, FrameReader, frame
from helix_revdial.revdial.interfaces import ITarget
from helix_revdial.revdial.masks import Keys
from helix_revdial.revdial.messages import Assign, PickupFailed
from helix_revdial.revdial.streams import Prepared, StreamProtocol, TargetAddress
from helix_revdial.revdial.watching import ListenerWatching

VECTORS = Path(__file__).parent.parent / "vectors" / "parked.json"


@implementer(IHalfCloseableProtocol)
class Echo(Protocol):
    """Sends back what comes, and ends when the other does."""

    def dataReceived(self, data: bytes) -> None:
        cast(Any, self.transport).write(data)

    def readConnectionLost(self) -> None:
        cast(Any, self.transport).loseWriteConnection()

    def writeConnectionLost(self) -> None:
        pass


class Transport(StringTransport):
    """Notes what the connection does at its end."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True
        self.disconnecting = True

    def unregisterProducer(self) -> None:
        # As Twisted's own transports do it, whether there is a producer or not.
        self.producer = None


@implementer(ITarget)
class Agent:
    """An agent with one target, which is also the target."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.opened = 0
        self.cancelled = 0
        self.opening: Deferred[IProtocol] | None = None

    def open(self) -> Deferred[IProtocol]:
        self.opened += 1
        if self.kind == "refuses":
            return fail(TargetRefused("no"))
        if self.kind == "later":
            self.opening = Deferred(self._cancelled)
            return self.opening
        return succeed(echo())

    def _cancelled(self, _: Deferred[IProtocol]) -> None:
        self.cancelled += 1

    def mayAnswer(self, waiting: Waiting, assign: Assign) -> ITarget | PickupFailed | None:
        return cast(ITarget, self)

    def notAnswered(self, waiting: Waiting, dial: str) -> None: ...

    def streamBegan(self, waiting: Waiting, dial: str, stream: StreamProtocol) -> None: ...

    def streamEnded(self, dial: str, stream: StreamProtocol) -> None: ...

    def isWanted(self, waiting: Waiting) -> bool:
        return True

    def gone(self, waiting: Waiting) -> None: ...


def echo() -> IProtocol:
    return StreamProtocol(Prepared(Echo()), TargetAddress("api"))


class Run:
    """A parked connection on a transport in memory."""

    def __init__(self, kind: str = "echo") -> None:
        self.clock = Clock()
        self.agent = Agent(kind)
        self.waiting = Waiting(
            self.clock, cast(Any, None), self.agent, ListenerWatching(), limit=5.0
        )
        self.connection = FramedConnection(
            self.clock, self.waiting, Keys(), webSocket=False, client=True
        )
        self.transport = Transport()
        self.connection.makeConnection(self.transport)
        self.waiting.parked(self.connection)

    def feed(self, data: bytes) -> None:
        self.connection.dataReceived(data)
        self.clock.advance(0)

    def said(self) -> dict[str, object]:
        """What the agent sent, as the vectors write it."""
        found = FrameReader(masked=False).read(memoryview(bytearray(self.transport.value())))
        lines: list[dict[str, object]] = []
        payload, stream, closeCode = b"", b"", None
        for one in [*found, EndMark()]:
            if isinstance(one, Control):
                if one.opcode == CLOSE:
                    closeCode = int.from_bytes(one.payload[:2], "big")
            elif isinstance(one, EndMark):
                line, _, rest = stream.partition(b"\n")
                if line:
                    fields = json.loads(line)
                    lines.append(
                        {
                            name: value
                            for name, value in fields.items()
                            if name not in ("seconds", "err", "connPath")
                        }
                    )
                payload += rest
                stream = b""
            else:
                stream += bytes(one)
        return {
            "lines": lines,
            "payload": payload.hex(),
            "streams": self.agent.opened if self.agent.kind == "echo" else 0,
            "closeCode": closeCode,
        }


class VectorTests(SynchronousTestCase):
    def test_vectors(self) -> None:
        """Each vector of C{parked.json} comes out as it says, however its bytes are cut."""
        for vector in json.loads(VECTORS.read_text())["vectors"]:
            data = bytes.fromhex(vector["frames"])
            expected = {name: vector[name] for name in ("lines", "payload", "streams", "closeCode")}
            cuts = range(len(data))
            for cut in cuts:
                run = Run(vector["target"])
                for piece in (data[:cut], data[cut:]):
                    if piece:
                        run.feed(piece)
                self.assertEqual(run.said(), expected, f"{vector['name']}, cut at {cut}")
            run = Run(vector["target"])
            for byte in data:
                run.feed(bytes([byte]))
            self.assertEqual(run.said(), expected, f"{vector['name']}, byte by byte")


class WaitingTests(SynchronousTestCase):
    DIAL = b'{"command":"dial","dial":"d1","target":"api"}\n'

    def test_earlyBytesAreBounded(self) -> None:
        """What the caller sends before the target is connected stops at its limit."""
        run = Run("later")
        run.feed(frame(self.DIAL, None))
        fed = 0
        while run.transport.producerState == "producing":
            run.feed(frame(bytes(16384), None))
            fed += 16384
            self.assertLess(fed, MAX_EARLY + 4 * 16384)
        self.assertGreater(fed, MAX_EARLY)
        assert run.agent.opening is not None
        run.agent.opening.callback(echo())
        self.assertEqual(run.transport.producerState, "producing")
        self.assertEqual(len(bytes.fromhex(cast(str, run.said()["payload"]))), fed)

    def test_targetInTime(self) -> None:
        """A target that does not accept in time is refused, and the connection waits again."""
        run = Run("later")
        run.feed(frame(self.DIAL + b"early", None))
        run.clock.advance(5)
        self.assertEqual(
            run.said()["lines"],
            [{"command": "pickup-failed", "dial": "d1", "reason": "target-timed-out"}],
        )
        run.feed(frame(b"more", None) + frame(b"", None))
        run.agent.kind = "echo"
        run.feed(frame(self.DIAL + b"x", None) + frame(b"", None))
        self.assertEqual(run.said()["payload"], b"x".hex())
        self.assertTrue(run.waiting.isIdle)
        self.assertEqual(run.clock.getDelayedCalls(), [])

    def test_lostWhileOpening(self) -> None:
        """A connection that ends before the target is there gives the target up."""
        run = Run("later")
        run.feed(frame(self.DIAL, None))
        run.connection.readConnectionLost()
        run.connection.connectionLost()
        self.assertEqual(run.agent.cancelled, 1)
        self.assertEqual(run.clock.getDelayedCalls(), [])

    def test_maskedOnRaw(self) -> None:
        """A masked frame on the raw carrier breaks the protocol."""
        run = Run()
        run.feed(frame(self.DIAL, b"abcd"))
        self.assertEqual(run.said()["closeCode"], 1002)
        self.assertTrue(run.transport.disconnecting)
