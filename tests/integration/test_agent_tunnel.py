"""
The agent as a process, on the other end of our own server's tunnel: every form
of the wire, and TLS.
"""

from __future__ import annotations

import trustme
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.internet.ssl import CertificateOptions, PrivateCertificate

from helix_revdial.revdial.errors import TargetRefused
from tests.integration.callers import Caller

from .agents import TOKEN, TWISTD, AgentTestCase, absolute, reactor
from .fleet import freePort
from .scripted import AgentProcess, within
from .tunnels import Server, until

BODY = bytes(range(256)) * 4096
"""One MiB."""


class TunnelTests(AgentTestCase):
    """An agent in a process of its own and our server in this one."""

    def serverOf(self, form: str) -> Server:
        server = Server(form)
        self.addCleanup(server.stop)
        return server

    def agentOf(self, url: str, local: str, *arguments: str) -> AgentProcess:
        return self.start(
            *TWISTD,
            "helix-revdial-agent",
            f"--server={url}",
            "--runner-id=wolf-1",
            f"--local={local}",
            "--reconnect=0.2",
            *arguments,
            environment={"RUNNER_TOKEN": TOKEN},
        )

    async def connected(self, server: Server, agent: AgentProcess) -> None:
        """Wait until the agent has registered."""
        await until(
            lambda: server.connections.status("wolf-1") == "connected",
            f"the agent registered; it said:\n{agent.output}",
        )

    async def dial(self, server: Server, target: str | None = None) -> Caller:
        """A stream to a service beside the agent."""
        caller = Caller()
        dialling = server.connections.endpoint("wolf-1", target).connect(
            Factory.forProtocol(lambda: caller)
        )
        await within(reactor, dialling, f"the dial of {target}")
        return caller

    async def roundTrip(self, server: Server, *, halfClose: bool) -> None:
        """One MiB to the service and back; it speaks first, and last where it can hear."""
        caller = await self.dial(server)
        caller.wire.write(BODY)
        await within(reactor, caller.whenReceived(len(b"hello\n" + BODY)), "the echo")
        if halfClose:
            caller.wire.loseWriteConnection()
            await within(reactor, caller.ended, "the end")
        else:
            caller.wire.loseConnection()
        self.assertEqual(caller.data, b"hello\n" + BODY + (b"goodbye\n" if halfClose else b""))

    async def test_everyForm(self) -> None:
        """
        Our server, our server behind something that lets WebSocket through only,
        and a server of the old wire.
        """
        for form, carrier in (("raw", "raw"), ("websocket", "websocket"), ("old", "hijack")):
            server = self.serverOf(form)
            agent = self.agentOf(server.url, f"unix://{self.serveUnix()}")
            await self.connected(server, agent)
            await within(reactor, agent.says(f"over {carrier}"), f"the carrier {carrier}")
            await self.roundTrip(server, halfClose=form != "old")
            agent.kill()
            await agent.ended

    async def test_tls(self) -> None:
        """Over TLS the data goes over WebSocket, half-close included."""
        authority = trustme.CA()
        issued = authority.issue_cert("localhost")
        certificate = PrivateCertificate.loadPEM(
            issued.private_key_pem.bytes() + issued.cert_chain_pems[0].bytes()
        )
        path = absolute("authority.pem")
        authority.cert_pem.write_to_path(path)
        server = self.serverOf("raw")
        port = reactor.listenSSL(
            0,
            server.factory,
            CertificateOptions(
                privateKey=certificate.privateKey.original, certificate=certificate.original
            ),
            interface="127.0.0.1",
        )
        self.addCleanup(port.stopListening)
        agent = self.agentOf(
            f"https://localhost:{port.getHost().port}",
            f"127.0.0.1:{self.serve()}",
            f"--ca-file={path}",
        )
        await self.connected(server, agent)
        await self.roundTrip(server, halfClose=True)

    async def test_targetDown(self) -> None:
        """The caller is told what is wrong beside the agent, and the next dial works."""
        server = self.serverOf("raw")
        down = freePort()
        agent = self.agentOf(
            server.url, f"127.0.0.1:{self.serve()}", f"--target=down=127.0.0.1:{down}"
        )
        await self.connected(server, agent)
        try:
            await self.dial(server, "down")
        except TargetRefused as error:
            self.assertIn(f"127.0.0.1:{down}: connection refused", str(error))
        else:
            self.fail("a port on which nobody listens was dialled")
        await self.roundTrip(server, halfClose=True)

    async def test_manyDials(self) -> None:
        """C2: a hundred dials at once, each with its own stream."""
        server = self.serverOf("raw")
        agent = self.agentOf(server.url, f"unix://{self.serveUnix()}")
        await self.connected(server, agent)
        callers = [Deferred.fromCoroutine(self.dial(server)) for _ in range(100)]
        for number, each in enumerate(callers):
            caller = await each
            word = b"%d\n" % number
            caller.wire.write(word)
            await within(reactor, caller.whenReceived(len(b"hello\n" + word)), "the echo")
            self.assertEqual(caller.data, b"hello\n" + word)
            caller.wire.loseConnection()
