"""
The relay on sockets that are wrapped: behind a PROXY header the fast relay has the
socket, in TLS it never does.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Protocol
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.listening.proxied import ProxiedFactory, ProxiedTransport
from helix_revdial.listening.proxy_header import ProxyHeader
from helix_revdial.listening.sources import ProxySources
from helix_revdial.revdial.data_websocket import DataWebSocketEndpoint
from helix_revdial.revdial.exchange import CarrierURL
from helix_revdial.revdial.socket_streams import plainStream, streamOf
from helix_revdial.revdial.upgrade import RawUpgradeEndpoint, rawServer
from tests.listening.test_proxied import LINE, PROXY, Places
from tests.revdial.test_sockets import Bench, One
from tests.revdial.wire import HeadThen, dataHead

FORMS = ("plain", "raw", "websocket")


class Proxy:
    """An endpoint that says first who comes."""

    def __init__(self, endpoint: Any) -> None:
        self._endpoint = endpoint

    def connect(self, factory: Any) -> Any:
        def build() -> Any:
            protocol = factory.buildProtocol(None)
            connect = protocol.makeConnection

            def makeConnection(transport: Any) -> None:
                transport.write(LINE)
                connect(transport)

            protocol.makeConnection = makeConnection
            return protocol

        return self._endpoint.connect(One(build))


class ProxiedBench(Bench):
    """The relay's left connection came through a door for proxies."""

    def _connect(self, form: str, left: Any) -> None:
        clock: Any = self.reactor

        def serve() -> Any:
            if form == "raw":
                return HeadThen(lambda: rawServer(left, clock=clock), replayHead=False)
            if form == "websocket":
                return dataHead(left, eof=True, clock=clock)
            return left

        door = ProxiedFactory(
            One(serve), ProxySources([PROXY.host]), clock, Places(1), lambda: 20.0
        )
        port = self._listen("tcp", lambda: door.buildProtocol(PROXY))
        number = port.getHost().port
        endpoint: Any = Proxy(TCP4ClientEndpoint(clock, "127.0.0.1", number))
        url = CarrierURL("127.0.0.1", number, False, "/")
        if form == "raw":
            endpoint = RawUpgradeEndpoint(clock, endpoint, url)
        elif form == "websocket":
            endpoint = DataWebSocketEndpoint(clock, endpoint, url, eof=True)
        self.now(endpoint.connect(One(lambda: self.far)))


class ProxiedRelayTests(SynchronousTestCase):
    """Connections behind a PROXY header."""

    def test_socketIsTaken(self) -> None:
        """The sockets are taken; bytes and ends of both sides pass, and all is over after."""
        for form in FORMS:
            for local in ("tcp", "unix"):
                name = f"{form} - {local}"
                bench = ProxiedBench(self, form, local)
                self.assertTrue(bench.pair.taken, name)
                bench.far.wire.write(b"ask" * 50_000)
                bench.far.wire.loseWriteConnection()
                bench.spin(lambda b=bench: b.near.readEnded, name)  # type: ignore[misc]
                bench.near.wire.write(b"answer" * 50_000)
                bench.near.wire.loseConnection()
                bench.bothLost()
                self.assertEqual(bench.near.got, b"ask" * 50_000, name)
                self.assertEqual(bench.far.got, b"answer" * 50_000, name)
                self.assertEqual(bench.ends[0].why, "done", name)

    def test_broken(self) -> None:
        """A break is passed on, and the owner of the wrapper is told."""
        for form in FORMS:
            bench = ProxiedBench(self, form, "tcp")
            bench.near.wire.abortConnection()
            bench.bothLost()
            self.assertEqual(bench.ends[0].why, "broken", form)

    def test_tlsIsNeverPassedBy(self) -> None:
        """
        TLS is one of Twisted's wrappers that hand every attribute of what is beneath on:
        the socket under a wrapper under it is not for a relay, which would send what
        nobody has encrypted.
        """
        self.assertTrue(issubclass(TLSMemoryBIOProtocol, ProtocolWrapper))
        bench = Bench(self, "tcp", "tcp")
        socket: Any = bench.near.transport
        wrapped = ProxiedTransport(socket, ProxyHeader(IPv4Address("TCP", "192.0.2.7", 1), None))
        found = plainStream(wrapped)
        assert found is not None
        self.assertIs(found.transport, socket)
        tls: Any = ProtocolWrapper(WrappingFactory(One(Protocol)), Protocol())
        tls.transport = wrapped
        self.assertIs(tls.plainTransport(), socket, "this proves nothing: TLS hides it")
        self.assertIsNone(plainStream(tls))
        self.assertIsNone(streamOf(tls))

    def test_notASocket(self) -> None:
        """What wraps anything else is not taken."""
        wrapped = ProxiedTransport(StringTransport(), ProxyHeader(None, None))
        self.assertIsNone(plainStream(wrapped))
