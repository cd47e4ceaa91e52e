"""
The agent's way over real sockets: through HTTP proxies, over TLS, to several
addresses, to names whose addresses are dead or change.
"""

from __future__ import annotations

import base64
import os
import shutil
import socket
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import trustme
from OpenSSL import SSL, crypto
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IHostnameResolver,
    IHostResolution,
    IReactorPluggableNameResolver,
    IResolutionReceiver,
    ISSLTransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import CertificateOptions, PrivateCertificate
from twisted.internet.utils import getProcessOutputAndValue
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from helix_revdial.agent.failures import connectReason
from helix_revdial.agent.network import NetworkSettings, serversOf
from helix_revdial.agent.proxies import Exceptions, ProxyChoice, ProxyURL, environmentProxies
from helix_revdial.agent.proxy import ProxyFailed
from helix_revdial.agent.servers import Servers
from helix_revdial.agent.targets import LocalTarget, parseTarget
from helix_revdial.agent.trust import NotTrusted, TrustPolicy, pinOf
from helix_revdial.revdial.client import ControlSession, ServerURL
from helix_revdial.revdial.listener import Listener
from helix_revdial.revdial.relay import relayPair
from helix_revdial.revdial.sockets import SocketRelays
from tests.needs import needsProgram

from .agents import TOKEN, TWISTD, AgentTestCase, Service, reactor
from .callers import Caller
from .fleet import freePort
from .scripted import ROOT, within
from .tunnels import Server, until

BODY = bytes(range(256)) * 2048


@implementer(IHalfCloseableProtocol)
class Pipe(Protocol):
    """One side of what a proxy joins."""

    other: Any = None

    def dataReceived(self, data: bytes) -> None:
        self.other.write(data)

    def readConnectionLost(self) -> None:
        if ISSLTransport.providedBy(self.other):
            # A FIN beneath Twisted's TLS would cut it off.
            self.other.loseConnection()
        else:
            self.other.loseWriteConnection()

    def writeConnectionLost(self) -> None:
        pass

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.other is not None:
            self.other.loseConnection()


class ProxyConnection(Pipe):
    """One connection of an HTTP proxy, which takes nothing but CONNECT."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.head = b""

    def dataReceived(self, data: bytes) -> None:
        if self.other is not None:
            super().dataReceived(data)
            return
        self.head += data
        if self.head.endswith(b"\r\n\r\n"):
            request = self.head.decode("latin-1").split("\r\n")
            Deferred.fromCoroutine(self._serve(request)).addErrback(self._failed)

    async def _serve(self, request: list[str]) -> None:
        method, authority, _ = request[0].split(" ")
        fields = dict(line.split(": ", 1) for line in request[1:] if ": " in line)
        self.proxy.requests.append(f"{method} {authority}")
        wire: Any = self.transport
        if fields.get("Proxy-Authorization") != self.proxy.wanted:
            wire.write(
                b"HTTP/1.1 407 Login\r\nProxy-Authenticate: Basic realm=x\r\n"
                b"Content-Length: 0\r\nConnection: close\r\n\r\n"
            )
            wire.loseConnection()
            return
        port = int(authority.rpartition(":")[2])
        wire.pauseProducing()
        pipe = Pipe()
        pipe.other = wire
        await TCP4ClientEndpoint(reactor, "127.0.0.1", port).connect(
            Factory.forProtocol(lambda: pipe)
        )
        # The head and the first bytes of the server may be one segment.
        wire.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        self.other = pipe.transport
        wire.resumeProducing()

    def _failed(self, failure: Failure) -> None:
        wire: Any = self.transport
        wire.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
        wire.loseConnection()


class Proxy(Factory[ProxyConnection]):
    """
    An HTTP proxy that leads every name to this host.

    @ivar requests: What was asked of it.
    """

    noisy = False

    def __init__(self, credentials: bytes | None = None) -> None:
        self.requests: list[str] = []
        self.wanted = (
            f"Basic {base64.b64encode(credentials).decode()}" if credentials is not None else None
        )

    def buildProtocol(self, addr: object) -> ProxyConnection:
        return ProxyConnection(self)


@implementer(IHostnameResolver)
class Names:
    """
    Names as a test says.

    @ivar asked: How often it was asked.
    """

    def __init__(self, *addresses: str) -> None:
        self.addresses: Sequence[str] = addresses
        self.asked = 0

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Any = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        self.asked += 1
        resolution = cast(IHostResolution, None)
        resolutionReceiver.resolutionBegan(resolution)
        for each in self.addresses:
            kind = IPv6Address if ":" in each else IPv4Address
            resolutionReceiver.addressResolved(kind("TCP", each, portNumber))
        resolutionReceiver.resolutionComplete()
        return resolution


@implementer(IReactorPluggableNameResolver)
class WithNames:
    """The reactor, with names of a test's own."""

    def __init__(self, names: Names) -> None:
        self.nameResolver = names

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)

    def installNameResolver(self, resolver: IHostnameResolver) -> IHostnameResolver:
        raise AssertionError("names are the test's")


class NetworkTestCase(TestCase):
    """A server, a service beside the agent, and an agent in this process."""

    timeout: ClassVar[float] = 30

    def setUp(self) -> None:
        self.server = Server()
        self.addCleanup(self.server.stop)
        self.port = ServerURL.parse(self.server.url).port
        service = Factory.forProtocol(Service)
        service.noisy = False
        port = reactor.listenTCP(0, service, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.target = parseTarget(f"127.0.0.1:{port.getHost().port}")
        self.authority = trustme.CA()
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.ca = str(self.directory / "ca.pem")
        self.authority.cert_pem.write_to_path(self.ca)

    def tls(self, factory: Any, *names: str, authority: trustme.CA | None = None) -> int:
        """A port of C{factory} over TLS, with a certificate for C{names}."""
        self.issued = (authority or self.authority).issue_cert(*names)
        certificate = PrivateCertificate.loadPEM(
            self.issued.private_key_pem.bytes() + self.issued.cert_chain_pems[0].bytes()
        )
        options = CertificateOptions(
            privateKey=certificate.privateKey.original, certificate=certificate.original
        )
        port = reactor.listenSSL(0, factory, options, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        number: int = port.getHost().port
        return number

    def plain(self, factory: Any) -> int:
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        number: int = port.getHost().port
        return number

    def servers(self, settings: NetworkSettings, names: Names | None = None) -> Servers:
        way = WithNames(names) if names is not None else reactor
        return serversOf(way, settings, lambda: "token", "wolf-1")

    async def connect(self, servers: Servers) -> ControlSession:
        # As a real agent does: streams between plain sockets are moved by descriptors.
        pair = partial(relayPair, sockets=SocketRelays(reactor))
        target = LocalTarget(reactor, self.target, pair=pair)
        self.listener = Listener(reactor, servers, {"default": target})
        self.addCleanup(self.listener.stop)
        return await servers.connectControl(self.listener)

    async def refusal(self, settings: NetworkSettings, kind: type[Exception]) -> str:
        """Why an agent does not connect."""
        try:
            await self.connect(self.servers(settings))
        except kind as error:
            return connectReason(error) or str(error)
        raise AssertionError("connected")

    async def roundTrip(self) -> None:
        caller = Caller()
        await within(
            reactor,
            self.server.connections.endpoint("wolf-1", None).connect(
                Factory.forProtocol(lambda: caller)
            ),
            "the dial",
        )
        caller.wire.write(BODY)
        caller.wire.loseWriteConnection()
        await within(reactor, caller.ended, "the end")
        self.assertEqual(caller.data, b"hello\n" + BODY + b"goodbye\n")


class ProxyTests(NetworkTestCase):
    """Through HTTP proxies, by C{CONNECT}."""

    def settings(self, server: str, proxy: str, **more: Any) -> NetworkSettings:
        return NetworkSettings(
            (ServerURL.parse(server),),
            trust=TrustPolicy(caFile=self.ca),
            proxyTrust=TrustPolicy(caFile=self.ca),
            proxies=ProxyChoice(ProxyURL.parse(proxy)),
            **more,
        )

    async def works(self, settings: NetworkSettings, proxy: Proxy) -> None:
        """Control and data connections, half-close included, all through the proxy."""
        await self.connect(self.servers(settings))
        await gatherResults([Deferred.fromCoroutine(self.roundTrip()) for _ in range(5)])
        server = settings.servers[0]
        self.assertEqual(proxy.requests, [f"CONNECT {server.host}:{server.port}"] * 6)

    async def test_plain(self) -> None:
        """A server without TLS is reached by CONNECT too; the proxy resolves its name."""
        proxy = Proxy()
        await self.works(
            self.settings(f"http://cp.test:{self.port}", f"127.0.0.1:{self.plain(proxy)}"), proxy
        )

    async def test_tlsBehind(self) -> None:
        """TLS with the server, its name verified, through a plain proxy."""
        proxy = Proxy()
        port = self.tls(self.server.factory, "cp.test")
        await self.works(
            self.settings(f"https://cp.test:{port}", f"127.0.0.1:{self.plain(proxy)}"), proxy
        )

    async def test_tlsInTLS(self) -> None:
        """TLS with the server within TLS with the proxy, each with its own name."""
        proxy = Proxy()
        port = self.tls(self.server.factory, "cp.test")
        proxyPort = self.tls(proxy, "localhost")
        await self.works(
            self.settings(f"https://cp.test:{port}", f"https://localhost:{proxyPort}"), proxy
        )

    async def test_plainInTLS(self) -> None:
        """A server without TLS, through a proxy over TLS."""
        proxy = Proxy()
        proxyPort = self.tls(proxy, "localhost")
        await self.works(
            self.settings(f"http://cp.test:{self.port}", f"https://localhost:{proxyPort}"), proxy
        )

    async def test_login(self) -> None:
        """Credentials from the URL or a file; without, what to do; never in a text."""
        proxy = Proxy(b"user:pass@word")
        at = f"127.0.0.1:{self.plain(proxy)}"
        server = f"http://cp.test:{self.port}"
        said = await self.refusal(self.settings(server, at), ProxyFailed)
        self.assertIn(f"the proxy http://{at} wants a login: ", said)
        said = await self.refusal(self.settings(server, f"user:wrong@{at}"), ProxyFailed)
        self.assertIn("does not accept the user and password", said)
        self.assertNotIn("wrong", said)
        file = self.directory / "credentials"
        for right in (
            self.settings(server, f"user:pass%40word@{at}"),
            self.settings(server, at, proxyCredentials=str(file)),
        ):
            file.write_text("user:pass@word\n")
            del proxy.requests[:]
            await self.works(right, proxy)
            await self.listener.stop()

    async def test_proxyOfAnotherName(self) -> None:
        """A proxy over TLS is verified before it hears where we want to go."""
        proxy = Proxy()
        at = f"https://localhost:{self.tls(proxy, 'other.test')}"
        said = await self.refusal(self.settings(f"http://cp.test:{self.port}", at), ProxyFailed)
        self.assertIn(f"the proxy {at}: ", said)
        self.assertIn("another name than localhost", said)
        self.assertEqual(proxy.requests, [])

    async def test_serverAway(self) -> None:
        """What the proxy says about a server that is away, and a proxy that is away."""
        proxy = Proxy()
        at = f"127.0.0.1:{self.plain(proxy)}"
        closed = reactor.listenTCP(0, Factory(), interface="127.0.0.1")
        number = closed.getHost().port
        await closed.stopListening()
        said = await self.refusal(self.settings(f"http://cp.test:{number}", at), ProxyFailed)
        self.assertIn(f"answered 502 Bad Gateway when asked for cp.test:{number}", said)
        said = await self.refusal(
            self.settings("http://cp.test", f"127.0.0.1:{number}"), ProxyFailed
        )
        self.assertEqual(said, f"the proxy http://127.0.0.1:{number}: connection refused")

    async def test_environment(self) -> None:
        """The variables that other programs take; NO_PROXY leads around."""
        proxy = Proxy()
        found = environmentProxies({"HTTP_PROXY": f"http://127.0.0.1:{self.plain(proxy)}"})
        server = ServerURL.parse(f"http://cp.test:{self.port}")
        settings = NetworkSettings((server,), proxies=ProxyChoice(environment=found))
        await self.works(settings, proxy)
        await self.listener.stop()
        del proxy.requests[:]
        around = ProxyChoice(None, Exceptions("test"), found)
        settings = NetworkSettings((server,), proxies=around)
        await self.connect(self.servers(settings, Names("127.0.0.1")))
        await self.roundTrip()
        self.assertEqual(proxy.requests, [])


class TrustTests(NetworkTestCase):
    """F8: control and data connections under every kind of trust."""

    def settings(self, port: int, **trust: Any) -> NetworkSettings:
        return NetworkSettings(
            (ServerURL.parse(f"https://localhost:{port}"),), trust=TrustPolicy(**trust)
        )

    def pin(self) -> bytes:
        content = self.issued.cert_chain_pems[0].bytes()
        return pinOf(crypto.load_certificate(crypto.FILETYPE_PEM, content))

    async def test_trusted(self) -> None:
        """An authority; a pin alone, for whatever name; both; everybody."""
        port = self.tls(self.server.factory, "localhost")
        right: list[dict[str, Any]] = [
            {"caFile": self.ca},
            {"caFile": self.ca, "pins": (self.pin(),)},
        ]
        for trust in right:
            await self.connect(self.servers(self.settings(port, **trust)))
            await self.roundTrip()
            await self.listener.stop()
        port = self.tls(self.server.factory, "other.test", authority=trustme.CA())
        wide: list[dict[str, Any]] = [{"pins": (self.pin(),)}, {"insecure": True}]
        for trust in wide:
            await self.connect(self.servers(self.settings(port, **trust)))
            await self.roundTrip()
            await self.listener.stop()

    async def test_refused(self) -> None:
        """Another authority, another name, another key: each in its own words."""
        port = self.tls(self.server.factory, "other.test")
        refused: list[tuple[dict[str, Any], str]] = [
            ({}, "signed by an authority that is not trusted here"),
            ({"caFile": self.ca}, "for another name than localhost"),
            ({"pins": (b"x" * 32,)}, "which is not a pinned one"),
            ({"caFile": self.ca, "pins": (self.pin(),)}, "for another name than localhost"),
        ]
        for trust, words in refused:
            said = await self.refusal(self.settings(port, **trust), NotTrusted)
            self.assertIn(words, said)
        self.assertIsNone(self.server.connections.status("wolf-1"))

    async def test_noTLS(self) -> None:
        """https:// to a port that speaks HTTP."""
        said = await self.refusal(self.settings(self.port), SSL.Error)
        self.assertIn("does not speak TLS; is it http:// or ws://?", said)

    async def test_clientCertificate(self) -> None:
        """A server that asks for a certificate gets the agent's, on every connection."""
        clients = trustme.CA()
        issued = self.authority.issue_cert("localhost")
        certificate = PrivateCertificate.loadPEM(
            issued.private_key_pem.bytes() + issued.cert_chain_pems[0].bytes()
        )
        options = CertificateOptions(
            privateKey=certificate.privateKey.original,
            certificate=certificate.original,
            caCerts=[crypto.load_certificate(crypto.FILETYPE_PEM, clients.cert_pem.bytes())],
            verify=True,
        )
        port = reactor.listenSSL(0, self.server.factory, options, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        own = self.directory / "own.pem"
        clients.issue_cert("agent@example.test").private_key_and_cert_chain_pem.write_to_path(
            str(own)
        )
        number = port.getHost().port
        settings = self.settings(number, caFile=self.ca, clientCertificate=str(own))
        await self.connect(self.servers(settings))
        await self.roundTrip()


class AddressTests(NetworkTestCase):
    """Several servers, and names with several addresses."""

    def settings(self, *servers: str) -> NetworkSettings:
        return NetworkSettings(tuple(ServerURL.parse(each) for each in servers))

    async def test_servers(self) -> None:
        """
        The first that answers; after a goodbye the other; and back when that one
        is gone.
        """
        other = Server()
        self.addCleanup(other.stop)
        closed = reactor.listenTCP(0, Factory(), interface="127.0.0.1")
        number = closed.getHost().port
        await closed.stopListening()
        servers = self.servers(
            self.settings(f"http://127.0.0.1:{number}", self.server.url, other.url)
        )
        session = await self.connect(servers)
        self.assertEqual(str(servers.server), self.server.url)
        await self.roundTrip()
        self.server.connections.revoke(key="wolf-1", reason="shutdown")
        closedAs = await within(reactor, session.closed, "the end")
        self.assertEqual(closedAs.reason, "shutdown")
        await servers.connectControl(self.listener)
        self.assertEqual(str(servers.server), other.url)
        self.assertEqual(other.connections.status("wolf-1"), "connected")

    async def test_deadFamily(self) -> None:
        """
        Happy eyeballs: an address that swallows connections, of either family,
        delays by a moment, not by a timeout.
        """
        for dead, alive in (("::1", "127.0.0.1"), ("127.0.0.1", "::1")):
            number = self.blackHole(dead)
            try:
                port = reactor.listenTCP(number, self.server.factory, interface=alive)
            except CannotListenError as error:
                raise AssertionError(f"somebody else took port {number}") from error
            self.addCleanup(port.stopListening)
            began = reactor.seconds()
            servers = self.servers(self.settings(f"http://cp.test:{number}"), Names(dead, alive))
            await self.connect(servers)
            self.assertLess(reactor.seconds() - began, 8.0)
            await self.roundTrip()
            await self.listener.stop()

    def blackHole(self, address: str) -> int:
        """A port of C{address} that answers nothing: its queue of connections is full."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listening = socket.socket(family)
        self.addCleanup(listening.close)
        listening.bind((address, 0))
        listening.listen(0)
        for _ in range(4):
            filling = socket.socket(family)
            self.addCleanup(filling.close)
            filling.setblocking(False)
            filling.connect_ex(listening.getsockname())
        number: int = listening.getsockname()[1]
        return number

    async def test_resolvedAnew(self) -> None:
        """B4: a name is resolved for each control connection, and not for each dial."""
        names = Names("127.0.0.1")
        servers = self.servers(self.settings(f"http://cp.test:{self.port}"), names)
        session = await self.connect(servers)
        for _ in range(3):
            await self.roundTrip()
        self.assertEqual(names.asked, 1)
        port = reactor.listenTCP(self.port, self.server.factory, interface="127.0.0.2")
        self.addCleanup(port.stopListening)
        session.close()
        await within(reactor, session.closed, "the end")
        names.addresses = ["127.0.0.2"]
        session = await servers.connectControl(self.listener)
        peer = cast(Any, session.control.transport).getPeer()
        self.assertEqual(peer.host, "127.0.0.2")
        self.assertEqual(names.asked, 2)

    async def test_dataFollowsControl(self) -> None:
        """
        Streams go to the server that asked for them, though its name has come to lead
        to another; where that one accepts no more, to where the name leads.
        """
        names = Names("127.0.0.2")
        port = reactor.listenTCP(0, self.server.factory, interface="127.0.0.2")
        self.addCleanup(port.stopListening)
        number = port.getHost().port
        servers = self.servers(self.settings(f"http://cp.test:{number}"), names)
        await self.connect(servers)
        names.addresses = ["127.0.0.3"]
        await self.roundTrip()
        self.assertEqual(names.asked, 1)
        await port.stopListening()
        moved = reactor.listenTCP(number, self.server.factory, interface="127.0.0.3")
        self.addCleanup(moved.stopListening)
        await self.roundTrip()
        self.assertEqual(names.asked, 2)


class ProcessTests(AgentTestCase):
    """The whole program."""

    async def test_proxyAndSeveralServers(self) -> None:
        """
        Servers from a list, the proxy and its credentials from flags: one line about
        each that does not answer, and no secret in the log.
        """
        proxy = Proxy(b"user:pass-word")
        port = reactor.listenTCP(0, proxy, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        listening = self.listen()
        down = freePort()
        agent = self.start(
            *TWISTD,
            "helix-revdial-agent",
            f"--server=http://down.test:{down}",
            f"--server=http://cp.test:{listening.getHost().port}",
            "--runner-id=wolf-1",
            f"--local=127.0.0.1:{self.serve()}",
            environment={
                "RUNNER_TOKEN": TOKEN,
                "HELIX_AGENT_PROXY": f"http://user:pass-word@127.0.0.1:{port.getHost().port}",
            },
        )
        await self.control(agent)
        await within(reactor, agent.says("connected as wolf-1"), "the log line")
        self.assertIn(f"502 Bad Gateway when asked for down.test:{down}", agent.output)
        self.assertNotIn("pass-word", agent.output)

    async def test_insecure(self) -> None:
        """F8: C{--insecure} says what it does, at the start and at each connection."""
        issued = trustme.CA().issue_cert("other.test")
        certificate = PrivateCertificate.loadPEM(
            issued.private_key_pem.bytes() + issued.cert_chain_pems[0].bytes()
        )
        options = CertificateOptions(
            privateKey=certificate.privateKey.original, certificate=certificate.original
        )
        port = reactor.listenSSL(0, self.server, options, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        agent = self.start(
            *TWISTD,
            "helix-revdial-agent",
            f"--server=https://localhost:{port.getHost().port}",
            "--runner-id=wolf-1",
            "--insecure",
            environment={"RUNNER_TOKEN": TOKEN},
        )
        await self.control(agent)
        await until(lambda: "connected as" in agent.output, "the log line")
        self.assertIn("certificates are NOT verified", agent.output)
        self.assertIn("without verifying that it is localhost", agent.output)


class RoamingTests(TestCase):
    """A host that changes its network."""

    timeout: ClassVar[float] = 60

    @needsProgram("unshare", package="util-linux")
    @needsProgram("ip", package="iproute2")
    async def test_roams(self) -> None:
        """
        B4: the address that an agent is connected over goes away, and another comes:
        it is connected over that one long before the silence would tell.
        """
        program = shutil.which("unshare")
        assert program is not None
        asRoot = [] if os.geteuid() == 0 else ["--map-root-user"]
        output, errors, status = await getProcessOutputAndValue(
            program,
            ["--net", *asRoot, sys.executable, "-m", "tests.integration.roaming"],
            env=dict(os.environ) | {"PYTHONPATH": ROOT},
            path=ROOT,
            reactor=reactor,
        )
        said = (output + errors).decode()
        self.assertEqual(status, 0, said)
        seconds = float(said.partition("roamed after ")[2].partition(" s")[0])
        self.assertLess(seconds, 25.0, said)
        self.assertIn("dialled", said)
