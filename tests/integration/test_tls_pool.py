"""Parked connections over TLS on their sockets: given to a relay, and taken back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint

from helix_revdial.agent.trust import Trust, TrustPolicy
from helix_revdial.listening.tls import ServerTLS, TLSSettings, load
from helix_revdial.revdial.interfaces import ITarget
from helix_revdial.revdial.sockets import SocketRelays
from helix_revdial.revdial.tls_endpoints import TLSServerEndpoint
from tests.directories import shortDirectory
from tests.listening.pems import authorityFile, leaf, whole, write

from . import test_pool
from .tunnels import Agent, Server, reactor


class SecureServer(Server):
    """A server whose port speaks TLS."""

    @property
    def url(self) -> str:
        return super().url.replace("http:", "https:")


class TLSPooledDialTests(test_pool.PooledDialTests):
    """What a pool does, over TLS."""

    form = "raw"

    def setUp(self) -> None:
        super().setUp()
        self.sockets = SocketRelays(reactor)
        directory = Path(shortDirectory(self))
        path = write(directory / "one.pem", whole(leaf("127.0.0.1")))
        self.serverTLS = ServerTLS(load(TLSSettings(str(path))))
        ca = str(authorityFile(directory / "ca.pem"))
        self.clientTLS: Any = Trust(TrustPolicy(caFile=ca)).towards("127.0.0.1")

    def server(self, form: str = "raw", **options: Any) -> Server:
        server = SecureServer(form, **options)
        self.addCleanup(lambda: Deferred.fromCoroutine(server.stop()))
        server.port.stopListening()
        plain = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        listening = TLSServerEndpoint(reactor, self.serverTLS, plain).listen(server.factory)
        server.port = self.successResultOf(listening)
        return server

    async def agent(self, server: Server, targets: dict[str, ITarget], **options: Any) -> Agent:
        agent = Agent(server, targets, **options)
        agent.path._tlsOptions = self.clientTLS
        await agent.connect()
        self.addCleanup(lambda: Deferred.fromCoroutine(agent.stop()))
        return agent


class TLSWebSocketPooledDialTests(TLSPooledDialTests):
    """The same where WebSocket is all that passes."""

    form = "websocket"
