"""Tests for L{helix_revdial.revdial.upgrade}: raw bytes and the old hijack."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from twisted.internet import error
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from helix_revdial.revdial.exchange import CarrierURL, UpgradeRefused
from helix_revdial.revdial.interfaces import ICarrierTransport
from helix_revdial.revdial.upgrade import RawUpgradeEndpoint, hijackServer, rawServer
from tests.revdial.pairs import WireCase
from tests.revdial.wire import HalfRecorder, HeadThen, Recorder, Wire, WireEndpoint

URL = CarrierURL("cp.example", 80, False, "/api/v1/revdial")

REQUEST = (
    b"GET /api/v1/revdial HTTP/1.1\r\nHost: cp.example\r\nConnection: keep-alive, upgrade\r\n"
    b"Upgrade: Revdial\r\n\r\n"
)


def _same(client: Recorder) -> Recorder:
    return client


class Greeter(HalfRecorder):
    """Speaks first."""

    def connectionMade(self) -> None:
        super().connectionMade()
        self.wire.write(b"220 ready\r\n")


class SilentProducer:
    """A producer that is told to pause, and has nothing more to say."""

    def pauseProducing(self) -> None:
        """Nothing was to come."""

    def resumeProducing(self) -> None:
        """Nothing is to come."""

    def stopProducing(self) -> None:
        """Nothing will come."""


class PairCase(WireCase):
    """Our client and our server, over a connection in memory."""

    def pair(self, client: Any = None, server: Any = None, *, hijack: bool = False) -> None:
        """Connect; the client's side of C{self.wire} is its left."""
        self.client = client or HalfRecorder()
        self.server = server or HalfRecorder()

        def build() -> Any:
            if hijack:
                return hijackServer(self.server, clock=self.clock, onFailure=self.failures.append)
            return rawServer(
                self.server,
                responseHeaders=[(b"Revdial-Features", b"raw")],
                clock=self.clock,
                onFailure=self.failures.append,
            )

        endpoint = WireEndpoint(lambda: HeadThen(build, replayHead=False))
        self.connected = RawUpgradeEndpoint(
            self.clock, endpoint, URL, [(b"Authorization", b"Bearer T")], acceptHijack=hijack
        ).connect(Factory.forProtocol(lambda: self.client))
        self.wire = endpoint.wires[0]
        self.settle()
        self.assertIs(self.successResultOf(self.connected), self.client)


class RawTests(PairCase):
    """After 101 and C{Upgrade: revdial}, bytes."""

    def test_headsOnTheWire(self) -> None:
        """The request and the answer, byte by byte."""
        self.pair()
        self.assertEqual(
            self.wire.right.protocol.head.replace(b"/0.1.0", b"/V"),
            b"GET /api/v1/revdial HTTP/1.1\r\nHost: cp.example\r\nUser-Agent: helix-revdial/V\r\n"
            b"Connection: Upgrade\r\nUpgrade: revdial\r\nAuthorization: Bearer T\r\n\r\n",
        )
        self.assertEqual(
            self.client.wire.responseHeaders,
            (
                (b"upgrade", b"revdial"),
                (b"connection", b"Upgrade"),
                (b"revdial-features", b"raw"),
            ),
        )

    def test_transportsSayWhatTheyAre(self) -> None:
        """Both transports provide the carrier's interface, and say what they can."""
        self.pair()
        for recorder in (self.client, self.server):
            self.assertTrue(verifyObject(ICarrierTransport, recorder.wire))
            self.assertEqual(recorder.wire.carrier, "raw")
            self.assertTrue(recorder.wire.halfClose)
            self.assertIsNone(recorder.wire.ping())

    def test_bytesArriveWhole(self) -> None:
        """Any bytes, both ways, in any chunks, counted."""
        self.pair()
        body = os.urandom(500_000)
        self.client.wire.write(body)
        self.server.wire.writeSequence([body[:3], body[3:]])
        self.settle(4099)
        self.assertEqual(bytes(self.server.received), body)
        self.assertEqual(bytes(self.client.received), body)
        self.assertEqual(self.client.wire.bytesSent, len(body))
        self.assertEqual(self.server.wire.bytesReceived, len(body))

    def test_bytesWithTheRequestAreKeptAtEverySplit(self) -> None:
        """C5: Bytes right behind the request reach the server's protocol."""
        stream = REQUEST + b"first bytes"
        for split in range(1, len(stream)):
            server = Recorder()
            head = HeadThen(lambda to=server: rawServer(to, clock=self.clock), replayHead=False)
            wire = Wire(Recorder(), head).connect()
            wire.right.protocol.dataReceived(stream[:split])
            wire.right.protocol.dataReceived(stream[split:])
            self.assertEqual(bytes(server.received), b"first bytes", f"split at {split}")

    def test_bytesWithTheAnswerAreKeptAtEverySplit(self) -> None:
        """C5, C6: A server that speaks first loses nothing, wherever its segment is cut."""
        head = HeadThen(lambda: rawServer(Greeter(), clock=self.clock), replayHead=False)
        wire = Wire(Recorder(), head).connect()
        wire.right.protocol.dataReceived(REQUEST)
        answer = bytes(wire.right.out)
        self.assertTrue(answer.endswith(b"220 ready\r\n"))
        for split in range(1, len(answer)):
            client = Recorder()
            endpoint = WireEndpoint(Recorder)
            connected = RawUpgradeEndpoint(self.clock, endpoint, URL).connect(
                Factory.forProtocol(partial(_same, client))
            )
            protocol = endpoint.wires[0].left.protocol
            protocol.dataReceived(answer[:split])
            protocol.dataReceived(answer[split:])
            self.assertIs(self.successResultOf(connected), client)
            self.assertEqual(bytes(client.received), b"220 ready\r\n", f"split at {split}")

    def test_theCallerHasTheProtocolBeforeItsFirstBytes(self) -> None:
        """Bytes that came with the answer are delivered after connect has fired."""
        endpoint = WireEndpoint(Recorder)
        client = Recorder()
        seen: list[bytes] = []
        connected = RawUpgradeEndpoint(self.clock, endpoint, URL).connect(
            Factory.forProtocol(lambda: client)
        )
        connected.addCallback(lambda protocol: seen.append(bytes(client.received)))
        endpoint.wires[0].left.protocol.dataReceived(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: REVDIAL\r\nConnection: upgrade\r\n\r\nhi"
        )
        self.assertEqual(seen, [b""])
        self.assertEqual(bytes(client.received), b"hi")

    def test_aFinIsTheEndOfOneDirection(self) -> None:
        """D1: On TCP a FIN passes as a FIN; data goes on the other way."""
        self.pair()
        self.client.wire.registerProducer(SilentProducer(), True)
        self.client.wire.write(bytes(200_000))
        self.client.wire.loseWriteConnection()
        self.client.wire.write(b"too late")
        self.settle()
        self.assertEqual(len(self.server.received), 200_000)
        self.assertEqual(self.server.heard, ["made", "data", "end"])
        self.server.wire.write(b"reply" * 100_000)
        self.server.wire.loseConnection()
        self.settle()
        self.assertEqual(bytes(self.client.received), b"reply" * 100_000)
        self.assertIn("end", self.client.heard)
        self.client.wire.loseConnection()
        self.settle()
        self.nothingIsLeft()

    def test_aProtocolThatCannotHearTheEndIsClosedAfterAFlush(self) -> None:
        """As Twisted's TCP does, but what was written goes out first."""
        server = Recorder()
        self.pair(server=server)
        server.wire.write(bytes(300_000))
        self.client.wire.loseWriteConnection()
        self.settle()
        self.assertEqual(len(self.client.received), 300_000)
        self.assertIsInstance(server.reason, error.ConnectionDone)

    def test_anAbortIsALoss(self) -> None:
        """D1: A reset is told apart from an end."""
        self.pair()
        self.client.wire.abortConnection()
        self.settle()
        self.assertIsInstance(self.client.reason, error.ConnectionAborted)
        self.assertIsInstance(self.server.reason, error.ConnectionLost)
        self.nothingIsLeft()

    def test_aCloseIsFlushed(self) -> None:
        """D3: The last byte before a close arrives, also at a reader that stopped."""
        self.pair()
        body = os.urandom(2_000_000)
        self.client.wire.pauseProducing()
        self.server.wire.write(body)
        self.server.wire.loseConnection()
        self.settle()
        self.clock.advance(3600)
        self.client.wire.resumeProducing()
        self.settle()
        self.assertEqual(bytes(self.client.received), body)

    def test_aStoppedReaderHoldsTheEndBack(self) -> None:
        """
        What was read before the pause is held, bounded by that read, and comes
        before the end, in a later turn.
        """
        self.pair()
        self.client.wire.pauseProducing()
        protocol = self.wire.left.protocol
        protocol.dataReceived(b"one")
        protocol.dataReceived(b"two")
        protocol.readConnectionLost()
        self.assertEqual(self.client.heard, ["made"])
        self.client.wire.resumeProducing()
        self.assertEqual(self.client.heard, ["made"])
        self.clock.advance(0)
        self.assertEqual(bytes(self.client.received), b"onetwo")
        self.assertEqual(self.client.heard, ["made", "data", "end"])

    def test_aCleanLossWaitsForHeldBytesAndABreakDoesNot(self) -> None:
        """D12: An end behind held bytes comes after them; a break comes at once."""
        for reason, heard in (
            (error.ConnectionDone(), ["made", "data", "lost"]),
            (error.ConnectionLost(), ["made", "lost"]),
        ):
            self.pair()
            self.client.wire.pauseProducing()
            self.wire.left.protocol.dataReceived(b"held")
            self.wire.left.lose(Failure(reason))
            self.client.wire.resumeProducing()
            self.clock.advance(0)
            self.assertEqual(self.client.heard, heard)
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_aCloseDropsWhatIsHeld(self) -> None:
        """A protocol that closes wants no more; a late loss is told once."""
        for close in ("loseConnection", "abortConnection"):
            self.pair()
            self.client.wire.pauseProducing()
            self.wire.left.protocol.dataReceived(b"held")
            self.wire.left.lose(Failure(error.ConnectionDone()))
            getattr(self.client.wire, close)()
            self.assertEqual(self.client.heard, ["made", "lost"])
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_headersCannotBeInjected(self) -> None:
        """Neither end can be made to write a line of its caller's choice."""
        self.assertRaises(
            ValueError, rawServer, None, responseHeaders=[(b"X", b"a\r\nb")], clock=self.clock
        )
        caught = self.assertRaises(
            ValueError,
            RawUpgradeEndpoint,
            self.clock,
            None,
            URL,
            [(b"Authorization", b"Bearer secret\nX: y")],
        )
        self.assertNotIn("secret", str(caught))


class HijackTests(PairCase):
    """The control connection of 2025."""

    def serve(self, **more: Any) -> None:
        """A server, with the request already taken by HTTP."""
        self.server = Greeter()
        self.peer = Recorder()
        self.wire = Wire(
            self.peer,
            hijackServer(self.server, clock=self.clock, onFailure=self.failures.append, **more),
        ).connect()
        self.wire.settle()

    def test_theHeadGoesOutAlone(self) -> None:
        """The old agents drop what shares a segment with the head: nothing does."""
        self.serve()
        # The date is the wall clock's: the other one may count from any moment.
        self.assertRegex(
            bytes(self.peer.received),
            rb"\AHTTP/1.1 200 OK\r\nDate: \w{3}, \d\d \w{3} 20\d\d [\d:]{8} GMT\r\n"
            rb"Transfer-Encoding: chunked\r\n\r\n\Z",
        )
        self.assertEqual(self.server.heard, [])
        self.clock.advance(0.24)
        self.assertEqual(self.server.heard, [])
        del self.peer.received[:]
        self.clock.advance(0.02)
        self.wire.settle()
        self.assertEqual(self.server.heard, ["made"])
        self.assertEqual(self.server.wire.carrier, "hijack")
        self.assertEqual(bytes(self.peer.received), b"220 ready\r\n")

    def test_anHTTP10AgentIsNotToldOfChunks(self) -> None:
        """HTTP/1.0 has no Transfer-Encoding."""
        self.serve(http10=True)
        self.assertTrue(self.peer.received.startswith(b"HTTP/1.0 200 OK\r\nDate: "))
        self.assertNotIn(b"chunked", self.peer.received)

    def test_bytesDuringThePauseAreKept(self) -> None:
        """C5: What came with the request, and an end, wait; nothing else is read."""
        self.serve()
        self.wire.right.protocol.dataReceived(b'{"command":')
        self.wire.right.protocol.readConnectionLost()
        self.peer.wire.write(b"more")
        self.wire.settle()
        self.assertEqual(len(self.wire.left.out), 4)
        self.clock.advance(0.25)
        self.assertEqual(bytes(self.server.received), b'{"command":')
        self.assertEqual(self.server.heard, ["made", "data", "end"])

    def test_aLossDuringThePauseIsTold(self) -> None:
        """The protocol never hears of it; the owner does."""
        self.serve()
        self.peer.wire.abortConnection()
        self.assertEqual(self.server.heard, [])
        self.assertEqual(len(self.failures), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_ourAgentTakesAnOldServersHijack(self) -> None:
        """Head and first line in one segment: our side loses nothing."""
        client = Recorder()
        endpoint = WireEndpoint(Recorder)
        connected = RawUpgradeEndpoint(self.clock, endpoint, URL, acceptHijack=True).connect(
            Factory.forProtocol(lambda: client)
        )
        endpoint.wires[0].left.protocol.dataReceived(
            b"HTTP/1.1 200 OK\r\nDate: Fri, 21 Nov 2025 10:00:00 GMT\r\n"
            b'Transfer-Encoding: chunked\r\n\r\n{"command":"keep-alive"}\n'
        )
        self.assertIs(self.successResultOf(connected), client)
        self.assertEqual(client.wire.carrier, "hijack")
        self.assertEqual(bytes(client.received), b'{"command":"keep-alive"}\n')

    def test_anOrdinaryDocumentIsNoHijack(self) -> None:
        """A frontend's page, or a server that knows features, is a refusal."""
        for field in (b"Content-Type: text/html", b"Revdial-Features: raw"):
            endpoint = WireEndpoint(Recorder)
            connected = RawUpgradeEndpoint(self.clock, endpoint, URL, acceptHijack=True).connect(
                Factory.forProtocol(Recorder)
            )
            endpoint.wires[0].left.protocol.dataReceived(
                b"HTTP/1.1 200 OK\r\n" + field + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
                b"6\r\n<html>\r\n0\r\n\r\n"
            )
            refusal: Any = self.failureResultOf(connected, UpgradeRefused).value
            self.assertEqual((refusal.status, refusal.body), (200, b"<html>"))

    def test_ourTwoEndsTogether(self) -> None:
        """Lines both ways, and the end of one."""
        self.pair(hijack=True)
        self.clock.advance(0.25)
        self.server.wire.write(b'{"command":"keep-alive"}\n')
        self.client.wire.write(b'{"command":"pickup-failed"}\n')
        self.settle()
        self.assertEqual(bytes(self.client.received), b'{"command":"keep-alive"}\n')
        self.assertEqual(bytes(self.server.received), b'{"command":"pickup-failed"}\n')
