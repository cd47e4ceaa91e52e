"""
An HTTP request to a machine that nothing can reach.

C{python docs/examples/treq_over_a_tunnel.py} starts a tunnel, offers a web
site at the agent's end, and fetches a page from the server's end.
"""

from __future__ import annotations

from typing import Any

from miniature import Miniature
from treq.client import HTTPClient
from twisted.internet import task
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.web.client import URI, Agent
from twisted.web.iweb import IAgentEndpointFactory
from twisted.web.server import Site
from twisted.web.static import Data
from zope.interface import implementer

from helix_revdial.revdial.connections import Connections
from helix_revdial.revdial.endpoints import DialEndpoint


@implementer(IAgentEndpointFactory)
class TunnelEndpoints:
    """The host of a URL is a runner's key: C{http://wolf-1/health}."""

    def __init__(self, connections: Connections, target: str | None = None) -> None:
        self._connections = connections
        self._target = target

    def endpointForURI(self, uri: URI) -> DialEndpoint:
        return self._connections.endpoint(uri.host.decode("ascii"), self._target)


async def fetch(reactor: Any, connections: Connections, url: str) -> str:
    """Get a page of the target C{web}."""
    agent = Agent.usingEndpointFactory(reactor, TunnelEndpoints(connections, "web"))
    response = await HTTPClient(agent).get(url)
    text: str = await response.text()
    return text


def site() -> Site:
    """What the agent offers; any factory will do."""
    root = Data(b"", "text/plain")
    root.putChild(b"health", Data(b"I am beside the agent.\n", "text/plain"))
    return Site(root)


async def main(reactor: Any) -> None:
    tunnel = Miniature(reactor)
    port = await tunnel.listener.endpoint("web").listen(site())
    await tunnel.start()
    print(await fetch(reactor, tunnel.connections, "http://wolf-1/health"), end="")
    await maybeDeferred(port.stopListening)
    await tunnel.stop()


if __name__ == "__main__":
    task.react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
