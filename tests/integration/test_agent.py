"""
The agent as people run it: a process of its own, real sockets, a server that
does what the test says.
"""

from __future__ import annotations

import signal

import trustme
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Factory
from twisted.internet.ssl import CertificateOptions, PrivateCertificate

from tests.directories import shortDirectory

from .agents import TOKEN, TWIST, TWISTD, AgentTestCase, Service, absolute, reactor, script, write
from .fleet import freePort
from .scripted import TERMINATED, AgentProcess, within


class AgentTests(AgentTestCase):
    """The agent over plain TCP, in each of its ways to start."""

    async def test_servesItsTargets(self) -> None:
        """
        C{twistd helix-revdial-agent} logs in, joins dials with TCP and unix
        services that speak first, forwards half-close, says what is wrong with
        targets that are down, and leaves with a goodbye on SIGTERM.
        """
        port = self.listen()
        path, tcp, down = self.serveUnix(), self.serve(), freePort()
        agent = self.start(
            *TWISTD,
            "helix-revdial-agent",
            f"--api-url=http://127.0.0.1:{port.getHost().port}/api/v1/revdial",
            "--wolf-id=gpu7",
            f"--token-file={self.tokenFile()}",
            f"--local=unix://{path}",
            f"--target=tcp=127.0.0.1:{tcp}",
            f"--target=named=localhost:{tcp}",
            f"--target=down=127.0.0.1:{down}",
            f"--target=absent=unix://{path}-none",
        )
        control = await self.control(agent)
        self.assertEqual(control.query, {"runnerid": ["wolf-gpu7"]})
        self.assertEqual(control.headers["authorization"], f"Bearer {TOKEN}")
        await within(reactor, agent.says("connected as wolf-gpu7"), "the log line")
        for target in (None, "tcp", "named"):
            await self.exchange(control, target)
        self.assertEqual(
            await self.failure(control, "down"),
            ("target-refused", f"127.0.0.1:{down}: connection refused"),
        )
        self.assertEqual(
            await self.failure(control, "absent"),
            ("target-refused", f"unix://{path}-none: no such file or directory"),
        )
        self.assertEqual((await self.failure(control, "other"))[0], "unknown-target")
        await self.exchange(control, None)
        ending = self.ends(agent, signal.SIGTERM)
        self.assertEqual(await ending, TERMINATED)
        message = await within(reactor, control.lines.get(), "the goodbye")
        self.assertEqual(message, {"command": "goodbye"})
        self.assertIn("stopped", agent.output)

    async def test_socketThatComesAndGoes(self) -> None:
        """D21: a unix socket that is removed and made again is simply found."""
        port = self.listen()
        path = str(shortDirectory(self) / "service")
        agent = self.start(
            *TWIST,
            "helix-revdial-agent",
            environment={
                "HELIX_API_BASE_URL": f"http://127.0.0.1:{port.getHost().port}",
                "HELIX_SESSION_ID": "ses_1",
                "USER_API_TOKEN": TOKEN,
                "HELIX_AGENT_LOCAL": f"unix://{path}",
            },
        )
        control = await self.control(agent)
        self.assertEqual(control.query, {"runnerid": ["sandbox-ses_1"]})
        factory = Factory.forProtocol(Service)
        factory.noisy = False
        for _ in range(2):
            self.assertEqual((await self.failure(control, "default"))[0], "target-refused")
            service = reactor.listenUNIX(path, factory)
            await self.exchange(control, "default")
            await service.stopListening()
        agent.signal(signal.SIGTERM)
        await within(reactor, agent.ended, "the agent's end")

    async def test_serverComesAndGoes(self) -> None:
        """
        G3: an agent that is there before its server connects when it comes, again
        when it comes back, and then logs in with the token that the file has by now.
        """
        number, tokens = freePort(), self.tokenFile()
        agent = self.start(
            *TWISTD,
            "helix-revdial-agent",
            f"--server=ws://127.0.0.1:{number}",
            "--runner-id=hydra-1",
            f"--token-file={tokens}",
            "--reconnect=0.2",
        )
        await within(reactor, agent.says("connection refused"), "the complaint")
        listening = self.listenAgain(number)
        control = await self.control(agent)
        self.assertEqual(control.headers["authorization"], f"Bearer {TOKEN}")
        write(tokens, "hl-rotated")
        await listening.stopListening()
        control.wire.abortConnection()
        await within(reactor, agent.says("connection refused"), "the second complaint")
        self.listenAgain(number)
        control = await self.control(agent)
        self.assertEqual(control.headers["authorization"], "Bearer hl-rotated")

    async def test_refusedLogin(self) -> None:
        """A refused login is logged with the server's reason, and backs off."""
        port = self.listen()
        self.server.refusal = (401, "the token is not known")
        agent = self.start(
            *TWISTD,
            "helix-revdial-agent",
            f"--api-url=http://127.0.0.1:{port.getHost().port}",
            "--wolf-id=1",
            "--reconnect=0.4",
            environment={"RUNNER_TOKEN": TOKEN},
        )
        for _ in range(3):
            await within(reactor, agent.says("401 Refused: the token is not known"), "the reason")
        self.assertEqual(len(self.server.requests), 3, "one request for each attempt")
        self.server.refusal = None
        await self.control(agent)

    async def test_streamThatDoesNotEnd(self) -> None:
        """G2: with a stream that does not end, leaving takes its limit and no longer."""
        port = self.listen()
        agent = self.start(
            *script("revdialClient"),
            *("-server", f"http://127.0.0.1:{port.getHost().port}"),
            *("-runner-id", "sandbox-ses_1", "-local", f"127.0.0.1:{self.serve()}"),
            environment={"USER_API_TOKEN": TOKEN},
        )
        control = await self.control(agent)
        data = await within(reactor, self.server.ask(control), "the pick-up")
        agent.signal(signal.SIGTERM)
        message = await within(reactor, control.lines.get(), "the goodbye")
        self.assertEqual(message["command"], "goodbye")
        self.assertFalse(data.lost.called, "the stream was cut at once")
        self.assertEqual(await within(reactor, agent.ended, "the agent's end"), 0)
        reason = await within(reactor, data.lost, "the end of the stream")
        self.assertIsInstance(reason, ConnectionLost, "a stream that was cut looks whole")

    async def test_wolfRevdialClient(self) -> None:
        """
        C{wolf-revdial-client} takes the Go program's flags and environment, logs on
        standard error, and ends with status 0 on SIGINT.
        """
        port = self.listen()
        agent = self.start(
            *script("wolfRevdialClient"),
            *("-api-url", f"http://127.0.0.1:{port.getHost().port}", "-reconnect", "1"),
            *("-local", f"127.0.0.1:{self.serve()}"),
            environment={"WOLF_ID": "local", "RUNNER_TOKEN": TOKEN},
        )
        control = await self.control(agent)
        self.assertEqual(control.query, {"runnerid": ["wolf-local"]})
        await self.exchange(control, None)
        self.assertEqual(await self.ends(agent, signal.SIGINT), 0)
        self.assertIn("connected as wolf-local", agent.output)

    async def test_misuse(self) -> None:
        """The older commands end with status 2 when misused, twistd with 1."""
        for arguments, status, words in (
            (script("revdialClient"), 2, "no server: give -server"),
            ((*script("wolfRevdialClient"), "-nosuch"), 2, "not defined: -nosuch"),
            ((*TWISTD, "helix-revdial-agent"), 1, "no server: give --api-url"),
            ((*TWISTD, "helix-revdial-agent", "--check-config"), 1, "no server: give --api-url"),
        ):
            agent = self.start(*arguments)
            code = await within(reactor, agent.ended, f"the end of {arguments}")
            self.assertIn(words, agent.output)
            self.assertEqual(code, status, agent.output)


class TLSTests(AgentTestCase):
    """The same over TLS: whom the agent trusts."""

    def listenTLS(self, authority: trustme.CA, name: str) -> int:
        """The server listens with a certificate for C{name}: its port."""
        issued = authority.issue_cert(name)
        both = issued.private_key_pem.bytes() + issued.cert_chain_pems[0].bytes()
        certificate = PrivateCertificate.loadPEM(both)
        options = CertificateOptions(
            privateKey=certificate.privateKey.original, certificate=certificate.original
        )
        port = reactor.listenSSL(0, self.server, options, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        number: int = port.getHost().port
        return number

    def agentOf(self, port: int, *arguments: str) -> AgentProcess:
        return self.start(
            *TWISTD,
            "helix-revdial-agent",
            f"--api-url=https://localhost:{port}",
            "--wolf-id=1",
            *arguments,
            environment={"RUNNER_TOKEN": TOKEN},
        )

    async def test_trusts(self) -> None:
        """
        F8: an authority that was named is trusted; one that was not, and a
        certificate for another name, are refused, before the token is sent.
        """
        authority = trustme.CA()
        path = absolute("ca.pem")
        authority.cert_pem.write_to_path(path)
        right, wrong = self.listenTLS(authority, "localhost"), self.listenTLS(authority, "other")
        waiting: list[Deferred[None]] = []
        for port, arguments, words in (
            (right, (), "signed by an authority that is not trusted here"),
            (wrong, (f"--ca-file={path}",), "certificate is for another name"),
        ):
            waiting.append(self.agentOf(port, *arguments).says(words))
        for each in waiting:
            await within(reactor, each, "the complaint")
        self.assertEqual(self.server.requests, [])
        agent = self.agentOf(right, f"--ca-file={path}")
        await self.control(agent)
        await within(reactor, agent.says("connected as wolf-1"), "the log line")
