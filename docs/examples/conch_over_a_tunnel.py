"""
A command over ssh on a machine that nothing can reach.

C{python docs/examples/conch_over_a_tunnel.py} starts a tunnel, offers a small
ssh server at the agent's end, and runs a command on it from the server's end.
With C{sshd} beside a real agent only L{run} is needed: its target is then
C{ssh=127.0.0.1:22}.
"""

from __future__ import annotations

import secrets
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from miniature import Miniature
from twisted.conch.avatar import ConchUser
from twisted.conch.error import HostKeyChanged
from twisted.conch.interfaces import ISession
from twisted.conch.ssh.channel import SSHChannel
from twisted.conch.ssh.common import NS
from twisted.conch.ssh.connection import SSHConnection
from twisted.conch.ssh.factory import SSHFactory
from twisted.conch.ssh.keys import Key
from twisted.conch.ssh.session import SSHSession
from twisted.conch.ssh.transport import SSHClientTransport
from twisted.conch.ssh.userauth import SSHUserAuthClient, SSHUserAuthServer
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import IRealm, Portal
from twisted.internet import task
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

# The client: what a control plane would have.


class Client(SSHClientTransport):
    """One connection, for one command."""

    def __init__(self, hostKey: Key, user: str, password: str, command: str) -> None:
        self.output: Deferred[bytes] = Deferred()
        self._hostKey = hostKey
        self._user = user
        self._password = password
        self._command = command

    def verifyHostKey(self, hostKey: bytes, fingerprint: bytes) -> Deferred[int]:
        if hostKey == self._hostKey.blob():
            return succeed(1)
        return fail(HostKeyChanged(None, None, 0))

    def connectionSecure(self) -> None:
        session = Commands(self._command, self.output)
        self.requestService(Password(self._user.encode(), self._password, session))

    def connectionLost(self, reason: Failure | None = connectionDone) -> None:
        super().connectionLost(reason)
        if not self.output.called:
            self.output.errback(reason or connectionDone)


class Password(SSHUserAuthClient):
    """Logs in with a password, which it offers once."""

    def __init__(self, user: bytes, password: str, session: SSHConnection) -> None:
        super().__init__(user, session)
        self._passwords = [password.encode()]

    def getPassword(self, prompt: Any = None) -> Deferred[bytes] | None:
        return succeed(self._passwords.pop()) if self._passwords else None


class Commands(SSHConnection):
    """Opens a channel as soon as the login is through."""

    def __init__(self, command: str, output: Deferred[bytes]) -> None:
        super().__init__()
        self._command = command
        self._output = output

    def serviceStarted(self) -> None:
        super().serviceStarted()
        self.openChannel(Command(self._command, self._output, conn=self))


class Command(SSHChannel):
    """Runs a command and collects what it writes."""

    name = b"session"
    conn: Any

    def __init__(self, command: str, output: Deferred[bytes], **keywords: Any) -> None:
        super().__init__(**keywords)
        self._command = command
        self._output = output
        self._written = b""

    def channelOpen(self, extra: bytes) -> None:
        self.conn.sendRequest(self, b"exec", NS(self._command.encode()))

    def dataReceived(self, data: bytes) -> None:
        self._written += data

    def closed(self) -> None:
        self._output.callback(self._written)
        self.conn.transport.loseConnection()


async def run(
    endpoint: IStreamClientEndpoint, hostKey: Key, user: str, password: str, command: str
) -> str:
    """
    Run C{command} where C{endpoint} leads.

    @param endpoint: For example C{connections.endpoint("hydra-7", "ssh")}.
    """
    client = Client(hostKey, user, password, command)
    await endpoint.connect(Factory.forProtocol(lambda: client))
    return (await client.output).decode()


# The server: what the agent's host would have.


@implementer(ISession)
class User(ConchUser):
    """Somebody whose every command is answered with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.channelLookup[b"session"] = SSHSession

    def execCommand(self, process: Any, command: bytes) -> None:
        process.write(b"beside the agent: " + command + b"\n")
        process.loseConnection()

    def getPty(self, *_: Any) -> None:
        """There is no terminal."""

    def openShell(self, process: Any) -> None:
        process.loseConnection()

    def windowChanged(self, *_: Any) -> None:
        """There is no window."""

    def eofReceived(self) -> None:
        """Nothing waits for it."""

    def closed(self) -> None:
        """Nothing is left."""


@implementer(IRealm)
class Realm:
    """Gives everybody a L{User}."""

    def requestAvatar(self, name: Any, mind: Any, *interfaces: Any) -> Any:
        return interfaces[0], User(), lambda: None


def sshServer(hostKey: Key, user: str, password: str) -> Factory:
    """A server with one user."""
    users = InMemoryUsernamePasswordDatabaseDontUse()
    users.addUser(user.encode(), password.encode())
    factory: Any = SSHFactory()
    factory.portal = Portal(Realm(), [users])
    factory.publicKeys = {hostKey.sshType(): hostKey.public()}
    factory.privateKeys = {hostKey.sshType(): hostKey}
    factory.services = {b"ssh-userauth": SSHUserAuthServer, b"ssh-connection": SSHConnection}
    server: Factory = factory
    return server


async def main(reactor: Any) -> None:
    hostKey = Key(rsa.generate_private_key(public_exponent=65537, key_size=2048))
    password = secrets.token_urlsafe()
    tunnel = Miniature(reactor)
    await tunnel.listener.endpoint("ssh").listen(sshServer(hostKey, "helix", password))
    await tunnel.start()
    endpoint = tunnel.connections.endpoint("wolf-1", "ssh")
    print(await run(endpoint, hostKey, "helix", password, "uname -a"), end="")
    await tunnel.stop()


if __name__ == "__main__":
    task.react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
