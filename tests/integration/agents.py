"""
What tests of the agent as a process have in common: a server that does what
the test says, services beside the agent, and agents that end with the test.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

from twisted.internet import reactor as realReactor
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from tests.directories import shortDirectory

from .scripted import AgentProcess, ScriptedConnection, ScriptedServer, within

reactor: Any = realReactor

TOKEN = "hl-very-secret-0123456789"

TWISTD = ("-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile=")
TWIST = ("-m", "twisted")


def script(name: str) -> tuple[str, str]:
    """How the interpreter runs a console script, installed or not."""
    return "-c", f"from helix_revdial.agent.compatibility import {name}; {name}()"


@implementer(IHalfCloseableProtocol)
class Service(Protocol):
    """Speaks first, echoes, and says goodbye after the peer's end."""

    def connectionMade(self) -> None:
        self.wire.write(b"hello\n")

    @property
    def wire(self) -> Any:
        return self.transport

    def dataReceived(self, data: bytes) -> None:
        self.wire.write(data)

    def readConnectionLost(self) -> None:
        self.wire.write(b"goodbye\n")
        self.wire.loseConnection()

    def writeConnectionLost(self) -> None:
        pass


def absolute(name: str) -> str:
    """A file's path for a process, short enough for a unix socket."""
    return os.path.abspath(name)


def write(path: str, token: str) -> None:
    """Put a token into a file that only its owner can read."""
    with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
        file.write(token + "\n")


class AgentTestCase(TestCase):
    """A scripted server, services, and agents as processes."""

    timeout: ClassVar[float] = 60

    def setUp(self) -> None:
        self.server = ScriptedServer()
        self.addCleanup(self.closeConnections)

    async def closeConnections(self) -> None:
        for connection in self.server.connections:
            if not connection.lost.called:
                connection.wire.abortConnection()
                await connection.lost

    def listen(self, port: int = 0) -> Any:
        """The server listens."""
        listening = reactor.listenTCP(port, self.server, interface="127.0.0.1")
        self.addCleanup(listening.stopListening)
        return listening

    def listenAgain(self, number: int) -> Any:
        try:
            return self.listen(number)
        except CannotListenError as error:
            raise AssertionError(f"somebody else took the port: {error}") from error

    def serve(self) -> int:
        """A service on TCP: its port."""
        factory = Factory.forProtocol(Service)
        factory.noisy = False
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        number: int = port.getHost().port
        return number

    def serveUnix(self) -> str:
        """A service on a unix socket: its path."""
        path = str(shortDirectory(self) / "s")
        factory = Factory.forProtocol(Service)
        factory.noisy = False
        port = reactor.listenUNIX(path, factory)
        self.addCleanup(port.stopListening)
        return path

    def tokenFile(self) -> str:
        path: str = absolute(self.mktemp())
        write(path, TOKEN)
        return path

    def start(self, *arguments: str, environment: Mapping[str, str] | None = None) -> AgentProcess:
        """An agent, which ends with the test; it must never print its token."""
        agent = AgentProcess()
        agent.spawn(reactor, arguments, environment or {})

        async def end() -> None:
            agent.kill()
            await agent.ended
            self.assertNotIn(TOKEN, agent.output)

        self.addCleanup(end)
        return agent

    async def control(self, agent: AgentProcess) -> ScriptedConnection:
        """The agent's next control connection."""
        try:
            found: ScriptedConnection = await within(
                reactor, self.server.controls.get(), "a control connection"
            )
        except Exception as error:
            raise AssertionError(f"{error}; the agent said:\n{agent.output}") from error
        return found

    async def exchange(self, control: ScriptedConnection, target: str | None) -> None:
        """A stream to a L{Service}, used to its end on both sides."""
        data: ScriptedConnection = await within(
            reactor, self.server.ask(control, target), f"the pick-up of {target}"
        )
        data.wire.write(b"x" * 100_000)
        data.wire.loseWriteConnection()
        await within(reactor, data.ended, f"the end of the stream to {target}")
        self.assertEqual(data.data, b"hello\n" + b"x" * 100_000 + b"goodbye\n")

    async def failure(self, control: ScriptedConnection, target: str) -> tuple[str, str]:
        """The reason and the words of a dial that fails."""
        self.server.ask(control, target)
        message = await within(reactor, control.lines.get(), "a pickup-failed")
        self.assertEqual(message["command"], "pickup-failed")
        return message["reason"], message["err"]

    async def ends(self, agent: AgentProcess, number: int) -> int:
        """How the agent ends after a signal."""
        agent.signal(number)
        code: int = await within(reactor, agent.ended, "the agent's end")
        return code
