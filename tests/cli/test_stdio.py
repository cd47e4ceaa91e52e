"""Standard input and output as a transport, on pipes and socket pairs."""

from __future__ import annotations

import os
import socket
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from helix_revdial.cli.stdio import StandardStreams

reactor: Any = _reactor


@implementer(IHalfCloseableProtocol)
class Collector(Protocol):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.got = b""
        self.ended: Deferred[None] = Deferred()
        self.lost: Deferred[BaseException] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.got += data

    def readConnectionLost(self) -> None:
        self.ended.callback(None)

    def writeConnectionLost(self) -> None:
        """Never."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(reason.value or ConnectionDone())


class StandardStreamsTests(TestCase):
    """L{StandardStreams}."""

    timeout = 10

    def setUp(self) -> None:
        self.input, self.feed = os.pipe()
        self.drain, self.output = os.pipe()
        self.open = {self.input, self.feed, self.drain, self.output}
        self.addCleanup(self.closeAll)
        self.collector = Collector()

    def closeAll(self) -> None:
        for each in self.open:
            os.close(each)

    def close(self, descriptor: int) -> None:
        self.open.discard(descriptor)
        os.close(descriptor)

    def start(self) -> StandardStreams:
        streams = StandardStreams(reactor, self.input, self.output)
        streams.start(self.collector)
        return streams

    def rest(self) -> bytes:
        """All that comes out, to its end."""
        data = b""
        while piece := os.read(self.drain, 65536):
            data += piece
        return data

    async def test_eachEndByItself(self) -> None:
        """The end of input leaves output open; its end, after all that was written, ends both."""
        streams = self.start()
        os.write(self.feed, b"in")
        self.close(self.feed)
        await self.collector.ended
        self.assertEqual(self.collector.got, b"in")
        reading = deferToThread(self.rest)
        streams.write(b"o" * 1_000_000)
        streams.loseWriteConnection()
        self.assertEqual(len(await reading), 1_000_000)
        self.assertIsInstance(await self.collector.lost, ConnectionDone)

    async def test_outputEndsFirst(self) -> None:
        """The end of output leaves input open."""
        streams = self.start()
        streams.write(b"out")
        streams.loseWriteConnection()
        self.assertEqual(await deferToThread(self.rest), b"out")
        os.write(self.feed, b"still heard")
        await deferLater(reactor, 0.05)
        self.assertEqual(self.collector.got, b"still heard")
        self.close(self.feed)
        self.assertIsInstance(await self.collector.lost, ConnectionDone)
        self.assertFalse(self.collector.ended.called, "both have ended: that is the loss")

    async def test_paused(self) -> None:
        """What is paused reads nothing; a producer is paused when nobody reads."""
        streams = self.start()
        streams.pauseProducing()
        os.write(self.feed, b"x")
        told: list[str] = []

        class Producer:
            def pauseProducing(self) -> None:
                told.append("pause")

            def resumeProducing(self) -> None:
                told.append("resume")

            def stopProducing(self) -> None:
                told.append("stop")

        streams.registerProducer(Producer(), True)
        streams.write(b"o" * 300_000)
        await deferLater(reactor, 0.05)
        self.assertEqual((self.collector.got, told), (b"", ["pause"]))
        streams.unregisterProducer()
        streams.resumeProducing()
        await deferLater(reactor, 0.05)
        self.assertEqual(self.collector.got, b"x")
        streams.abortConnection()
        await self.collector.lost

    async def test_nobodyReads(self) -> None:
        """The reader of output goes away: noticed while nothing is written."""
        streams = self.start()
        self.close(self.drain)
        reason = await self.collector.lost
        self.assertIsInstance(reason, ConnectionLost)
        self.assertTrue(streams.deaf)

    async def test_abort(self) -> None:
        """Everything is dropped, what was not written too."""
        streams = self.start()
        streams.write(b"o" * 1_000_000)
        streams.abortConnection()
        self.assertIsInstance(await self.collector.lost, ConnectionAborted)
        self.assertLess(len(await deferToThread(self.rest)), 1_000_000)

    async def test_cutOff(self) -> None:
        """What nobody took in the end is known to be missing."""
        streams = self.start()
        streams.write(bytes(300_000))
        streams.loseWriteConnection()
        await deferLater(reactor, 0, lambda: None)
        # A pipe holds something, too.
        self.assertGreater(streams.unsentBytes(), 100_000)
        streams.abortConnection()
        self.assertTrue(streams.cutOff)
        await self.collector.lost
        self.assertLess(len(self.rest()), 300_000)

    async def test_allTaken(self) -> None:
        """Where all was taken nothing is."""
        streams = self.start()
        streams.write(bytes(300_000))
        streams.loseWriteConnection()
        self.assertEqual(len(await deferToThread(self.rest)), 300_000)
        streams.abortConnection()
        await self.collector.lost
        self.assertEqual((streams.unsentBytes(), streams.cutOff), (0, False))

    async def test_whatIsShared(self) -> None:
        """A pipe that others share is blocking again afterwards; its number stays taken."""
        shared = os.dup(self.output)
        self.open.add(shared)
        streams = self.start()
        self.assertFalse(os.get_blocking(shared))
        streams.abortConnection()
        await self.collector.lost
        self.assertTrue(os.get_blocking(shared))
        os.fstat(self.output)

    async def test_oneSocketForBoth(self) -> None:
        """Input and output that are one socket: output's end is a FIN, and input goes on."""
        ours, theirs = socket.socketpair()
        self.addCleanup(theirs.close)
        theirs.settimeout(5)
        first, second = os.dup(ours.fileno()), ours.detach()
        self.open |= {first, second}
        streams = StandardStreams(reactor, first, second)
        streams.start(self.collector)
        streams.write(b"out")
        streams.loseWriteConnection()
        await deferLater(reactor, 0.05)
        self.assertEqual(theirs.recv(10) + theirs.recv(10), b"out")
        theirs.sendall(b"in")
        theirs.shutdown(socket.SHUT_WR)
        await self.collector.lost
        self.assertEqual(self.collector.got, b"in")
