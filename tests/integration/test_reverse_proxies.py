"""
Our server behind nginx and HAProxy, with their defaults and with the configurations
of C{etc}: which carrier gets through, and what the agent says where none does.
"""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import trustme
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import ConnectError, ProcessExitedAlready
from twisted.internet.protocol import Factory, ProcessProtocol, Protocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from helix_revdial.agent.network import NetworkSettings, serversOf
from helix_revdial.agent.servers import Servers
from helix_revdial.agent.targets import LocalTarget, parseTarget
from helix_revdial.agent.trust import TrustPolicy
from helix_revdial.revdial.client import ControlSession, Refused, ServerPath, ServerURL
from helix_revdial.revdial.features import ALL, RAW
from helix_revdial.revdial.listener import PING, Listener
from helix_revdial.revdial.relay import relayPair
from helix_revdial.revdial.sockets import SocketRelays
from tests.integration.callers import Caller
from tests.needs import needsProgram

from .agents import Service, reactor
from .fleet import freePort
from .scripted import within
from .tunnels import Server, until

ETC = Path(__file__).parent.parent.parent / "etc"

BODY = bytes(range(256)) * 1024

LONG = bool(os.environ.get("HELIX_TEST_LONG"))

NGINX = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
{user}
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    {http}
}}
"""
"""What stands around a site."""

PLAIN = """
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass http://127.0.0.1:{server}; {more} }}
    }}
"""
"""A site as a tutorial has it: everything else as nginx has it by default."""

WEBSOCKET_ONLY = """
    map $http_upgrade $websocket {{ websocket websocket; default ''; }}
    map $http_upgrade $wanted {{ websocket upgrade; default close; }}
"""

HAPROXY = """
global
    maxconn 256
defaults
    mode http
    timeout connect 5s
    timeout client {limit}
    timeout server {limit}
frontend front
    bind 127.0.0.1:{port}
    default_backend back
backend back
    server server 127.0.0.1:{server}
"""
"""As HAProxy's own examples begin; without C{timeout tunnel}."""


class Running(ProcessProtocol):
    """
    A program under test.

    @ivar output: What it said.
    @ivar ended: Fires when it is gone.
    """

    def __init__(self) -> None:
        self.output = b""
        self.ended: Deferred[None] = Deferred()

    def outReceived(self, data: bytes) -> None:
        self.output += data

    errReceived = outReceived

    def processEnded(self, reason: Failure) -> None:
        self.ended.callback(None)


class ReverseProxyTestCase(TestCase):
    """A server, a program before it, and an agent in this process."""

    timeout: ClassVar[float] = 150 if LONG else 30

    def setUp(self) -> None:
        self.server = Server()
        self.addCleanup(self.server.stop)
        self.upstream = ServerURL.parse(self.server.url).port
        self.port = freePort()
        service = Factory.forProtocol(Service)
        service.noisy = False
        listening = reactor.listenTCP(0, service, interface="127.0.0.1")
        self.addCleanup(listening.stopListening)
        self.target = f"127.0.0.1:{listening.getHost().port}"
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()

    async def start(self, program: str, *arguments: str) -> None:
        """Run C{program} until the test ends; return when it listens."""
        running = Running()
        path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        assert path is not None
        process = reactor.spawnProcess(running, path, (path, *arguments), env={})

        async def end() -> None:
            try:
                process.signalProcess("KILL")
            except ProcessExitedAlready:
                pass
            await running.ended

        self.addCleanup(end)
        for _ in range(200):
            if running.ended.called:
                break
            try:
                probe = await HostnameEndpoint(reactor, "127.0.0.1", self.port).connect(
                    Factory.forProtocol(Protocol)
                )
            except ConnectError:
                await deferLater(reactor, 0.05)
            else:
                cast(Any, probe).transport.abortConnection()
                return
        raise AssertionError(f"{program} does not listen; it said:\n{running.output.decode()}")

    async def nginx(self, http: str) -> None:
        text = NGINX.format(
            directory=self.directory, http=http, user="user root;" if os.geteuid() == 0 else ""
        )
        path = self.directory / "nginx.conf"
        path.write_text(text)
        await self.start(
            "nginx",
            "-p",
            str(self.directory),
            "-e",
            str(self.directory / "error.log"),
            "-c",
            str(path),
        )

    async def haproxy(self, text: str) -> None:
        path = self.directory / "haproxy.cfg"
        path.write_text(text)
        await self.start("haproxy", "-db", "-f", str(path))

    def adapted(self, name: str, *changes: tuple[str, str]) -> str:
        """A configuration of C{etc}, with this test's ports and files."""
        text = (ETC / name).read_text()
        for before, after in changes:
            self.assertEqual(text.count(before), 1, f"{before} in {name}")
            text = text.replace(before, after)
        return text

    def certificate(self, name: str = "localhost") -> tuple[str, str, str]:
        """A certificate and its key, in one file and in two, and whom to trust for it."""
        authority = trustme.CA()
        issued = authority.issue_cert(name)
        certificate, both = self.directory / "chain.pem", self.directory / "both.pem"
        issued.private_key_and_cert_chain_pem.write_to_path(str(both))
        issued.cert_chain_pems[0].write_to_path(str(certificate))
        issued.private_key_pem.write_to_path(str(self.directory / "key.pem"))
        authority.cert_pem.write_to_path(str(self.directory / "ca.pem"))
        return str(certificate), str(self.directory / "key.pem"), str(both)

    async def connect(
        self,
        url: str | None = None,
        *,
        trust: TrustPolicy | None = None,
        webSocketOnly: bool = False,
        pingInterval: float = PING,
    ) -> ControlSession:
        """An agent that goes through the program."""
        server = ServerURL.parse(url or f"http://127.0.0.1:{self.port}")
        way: ServerPath | Servers
        if webSocketOnly:
            features = ALL - {RAW}
            way = ServerPath(reactor, server, lambda: "token", key="wolf-1", features=features)
        else:
            settings = NetworkSettings((server,), trust=trust or TrustPolicy())
            way = serversOf(reactor, settings, lambda: "token", "wolf-1")
        # As a real agent does: streams between plain sockets are moved by descriptors.
        pair = partial(relayPair, sockets=SocketRelays(reactor))
        target = LocalTarget(reactor, parseTarget(self.target), pair=pair)
        self.listener = Listener(reactor, way, {"default": target}, pingInterval=pingInterval)
        session: ControlSession = await way.connectControl(self.listener)
        self.addCleanup(self.listener.stop)
        return session

    async def dial(self) -> Caller:
        caller = Caller()
        dialling = self.server.connections.endpoint("wolf-1", None).connect(
            Factory.forProtocol(lambda: caller)
        )
        await within(reactor, dialling, "the dial")
        return caller

    async def roundTrip(self, *, halfClose: bool = True) -> None:
        """To the service and back; after the caller's end the service has a last word."""
        caller = await self.dial()
        caller.wire.write(BODY)
        if halfClose:
            caller.wire.loseWriteConnection()
            await within(reactor, caller.ended, "the end")
            self.assertEqual(caller.data, b"hello\n" + BODY + b"goodbye\n")
        else:
            await until(lambda: len(caller.data) >= len(BODY) + 6, "the echo")
            self.assertEqual(caller.data, b"hello\n" + BODY)
            caller.wire.loseConnection()
            await within(reactor, caller.ended, "the end")

    async def staysUp(self, session: ControlSession, seconds: float) -> None:
        """The control connection outlives C{seconds} without a dial, and works after."""
        await deferLater(reactor, seconds)
        self.assertFalse(session.closed.called, f"cut within {seconds} s")
        await self.roundTrip()

    async def survives(self) -> None:
        """An idle limit of a second cuts what is silent, and not what is heard more often."""
        silent = await self.connect()
        await within(reactor, silent.closed, "the idle limit")
        for webSocketOnly in (False, True):
            session = await self.connect(webSocketOnly=webSocketOnly, pingInterval=0.25)
            self.assertEqual(session.carrier, "websocket" if webSocketOnly else "raw")
            await self.staysUp(session, 1.6)
            await self.listener.stop()


@needsProgram("nginx", package="nginx-light")
class NginxTests(ReverseProxyTestCase):
    """nginx."""

    def plain(self, more: str = "") -> str:
        return PLAIN.format(port=self.port, server=self.upstream, more=more)

    async def test_defaults(self) -> None:
        """
        nginx as it is takes the upgrade out: the agent says so, by whom, and where
        to read what to do.
        """
        await self.nginx(self.plain())
        try:
            await self.connect()
        except Refused as refused:
            self.assertEqual(refused.status, 426)
            said = str(refused)
        else:
            self.fail("nginx passes upgrades by default")
        self.assertIn("without its Upgrade header, neither as revdial nor as WebSocket", said)
        self.assertIn("a proxy takes it out (nginx/", said)
        self.assertIn("docs/network.md", said)

    async def test_webSocketOnly(self) -> None:
        """With upgrades for WebSocket alone, as many have it, WebSocket is what is used."""
        more = (
            "proxy_http_version 1.1; proxy_set_header Upgrade $websocket; "
            "proxy_set_header Connection $wanted;"
        )
        await self.nginx(WEBSOCKET_ONLY.format() + self.plain(more))
        session = await self.connect()
        self.assertEqual(session.carrier, "websocket")
        await gatherResults([Deferred.fromCoroutine(self.roundTrip()) for _ in range(5)])

    async def test_good(self) -> None:
        """The configuration in C{etc}, TLS ended by nginx: raw, half-close included."""
        await self.nginx(self.good())
        trust = TrustPolicy(caFile=str(self.directory / "ca.pem"))
        session = await self.connect(f"https://localhost:{self.port}", trust=trust)
        self.assertEqual(session.carrier, "raw")
        await gatherResults([Deferred.fromCoroutine(self.roundTrip()) for _ in range(5)])

    def good(self) -> str:
        chain, key, _ = self.certificate()
        return self.adapted(
            "nginx-helix-revdial.conf",
            ("listen 443 ssl", f"listen 127.0.0.1:{self.port} ssl"),
            ("127.0.0.1:8080", f"127.0.0.1:{self.upstream}"),
            ("/etc/ssl/cp.example/fullchain.pem", chain),
            ("/etc/ssl/cp.example/privkey.pem", key),
        )

    async def test_anyUpgrade(self) -> None:
        """The same without TLS."""
        await self.nginx(self.anyUpgrade())
        session = await self.connect()
        self.assertEqual(session.carrier, "raw")
        await gatherResults([Deferred.fromCoroutine(self.roundTrip()) for _ in range(5)])

    async def test_idleLimit(self) -> None:
        """
        B5: signs of life that come more often than the proxy's idle limit keep the
        control connection up, over either carrier; here sixty times as fast as in life.
        """
        await self.nginx(self.anyUpgrade("proxy_read_timeout 1s; proxy_send_timeout 1s;"))
        await self.survives()

    async def test_unreachableServer(self) -> None:
        """A gateway's error is said to be one."""
        self.upstream = freePort()
        await self.nginx(self.anyUpgrade())
        try:
            await self.connect()
        except Refused as refused:
            self.assertIn("502 Bad Gateway from nginx/", str(refused))
            self.assertIn("does not reach it", str(refused))
        else:
            self.fail("a server that is not there was reached")

    async def test_plainToTLS(self) -> None:
        """http:// to a port that speaks TLS."""
        await self.nginx(self.good())
        try:
            await self.connect(f"http://localhost:{self.port}")
        except Refused as refused:
            self.assertIn("write https:// in the server URL", str(refused))
        else:
            self.fail("TLS was spoken by accident")

    def anyUpgrade(self, more: str = "") -> str:
        return self.plain(
            "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; "
            f"proxy_set_header Connection upgrade; {more}"
        )


@needsProgram("haproxy", package="haproxy")
class HAProxyTests(ReverseProxyTestCase):
    """HAProxy."""

    async def test_defaults(self) -> None:
        """HAProxy passes any upgrade: raw, half-close included."""
        await self.haproxy(HAPROXY.format(limit="30s", port=self.port, server=self.upstream))
        session = await self.connect()
        self.assertEqual(session.carrier, "raw")
        await gatherResults([Deferred.fromCoroutine(self.roundTrip()) for _ in range(5)])

    async def test_good(self) -> None:
        """The configuration in C{etc}, TLS ended by HAProxy, half-close included."""
        *_, both = self.certificate()
        await self.haproxy(
            self.adapted(
                "haproxy-helix-revdial.cfg",
                ("bind :443", f"bind 127.0.0.1:{self.port}"),
                ("/etc/ssl/cp.example/both.pem", both),
                ("127.0.0.1:8080", f"127.0.0.1:{self.upstream}"),
            )
        )
        trust = TrustPolicy(caFile=str(self.directory / "ca.pem"))
        session = await self.connect(f"https://localhost:{self.port}", trust=trust)
        self.assertEqual(session.carrier, "raw")
        await gatherResults([Deferred.fromCoroutine(self.roundTrip()) for _ in range(5)])

    async def test_idleLimit(self) -> None:
        """B5: the same as for nginx, with the limits of requests, which count for upgrades."""
        await self.haproxy(HAPROXY.format(limit="1s", port=self.port, server=self.upstream))
        await self.survives()

    async def test_unreachableServer(self) -> None:
        """A gateway's error is said to be one."""
        self.upstream = freePort()
        await self.haproxy(HAPROXY.format(limit="2s", port=self.port, server=self.upstream))
        try:
            await self.connect()
        except Refused as refused:
            self.assertIn("does not reach it", str(refused))
        else:
            self.fail("a server that is not there was reached")


if LONG:

    class IdleTests(ReverseProxyTestCase):
        """B5: the intervals of real life against the limits of real proxies."""

        @needsProgram("haproxy", package="haproxy")
        async def test_thirtySeconds(self) -> None:
            """HAProxy's usual 30 seconds."""
            await self.haproxy(HAPROXY.format(limit="30s", port=self.port, server=self.upstream))
            await self.staysUp(await self.connect(), 70)

        @needsProgram("nginx", package="nginx-light")
        async def test_sixtySeconds(self) -> None:
            """nginx's 60 seconds, which are its default."""
            more = (
                "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; "
                "proxy_set_header Connection upgrade;"
            )
            await self.nginx(PLAIN.format(port=self.port, server=self.upstream, more=more))
            await self.staysUp(await self.connect(), 100)
