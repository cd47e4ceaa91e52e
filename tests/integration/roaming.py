"""
A host that moves from one network to another, in a network namespace of its own:
run as C{unshare --net --map-root-user python -m tests.integration.roaming}.

The agent is connected over one address; that address goes away and another comes.
Prints C{roamed after N s} once the agent is connected over the other, and its dials
work.
"""

from __future__ import annotations

import subprocess
from typing import Any

from twisted.internet.protocol import Factory
from twisted.internet.task import react

from helix_revdial.agent.service import agentService
from helix_revdial.agent.settings import readSettings

from .agents import Service
from .callers import Caller
from .test_network import Names, WithNames
from .tunnels import Server, quiet, until

FIRST, SECOND = "10.99.0.1", "10.99.0.2"


def ip(*arguments: str) -> None:
    """Change this namespace's network."""
    subprocess.run(("ip", *arguments), check=True, timeout=10)


async def main(reactor: Any) -> None:
    """The whole story."""
    ip("link", "set", "lo", "up")
    ip("address", "add", f"{FIRST}/32", "dev", "lo")
    server = Server()
    anywhere = reactor.listenTCP(0, server.factory)
    local = reactor.listenTCP(0, quiet(Service), interface="127.0.0.1")
    names = Names(FIRST)
    settings = readSettings(
        {
            "server": f"http://cp.test:{anywhere.getHost().port}",
            "runner-id": "wolf-1",
            "local": f"127.0.0.1:{local.getHost().port}",
        },
        {"RUNNER_TOKEN": "token"},
    )
    agent = agentService(WithNames(names), settings)
    agent.startService()
    await until(lambda: server.connections.status("wolf-1") == "connected", "connected")
    began = reactor.seconds()
    names.addresses = [SECOND]
    ip("address", "delete", f"{FIRST}/32", "dev", "lo")
    await until(lambda: agent.session is None, "the lost address was noticed", 10)
    ip("address", "add", f"{SECOND}/32", "dev", "lo")
    await until(lambda: agent.session is not None, "connected again", 10)
    print(f"roamed after {reactor.seconds() - began:.1f} s", flush=True)
    caller = Caller()
    await server.connections.endpoint("wolf-1", None).connect(Factory.forProtocol(lambda: caller))
    await until(lambda: caller.data == b"hello\n", "the dial works")
    print("dialled", flush=True)
    await agent.stopService()
    await server.stop()


if __name__ == "__main__":
    react(main)
