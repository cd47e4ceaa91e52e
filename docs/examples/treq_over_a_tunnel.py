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
    """
    Every URL leads to one target of one runner.  The host in it does not say which:
    keys such as C{sandbox-ses_01ABC} are no host names, and URLs have no upper case there.
    """

    def __init__(self, connections: Connections, key: str, target: str | None = None) -> None:
        self._connections = connections
        self._key = key
        self._target = target

    def endpointForURI(self, uri: URI) -> DialEndpoint:
        return self._connections.endpoint(self._key, self._target)


async def fetch(reactor: Any, connections: Connections, key: str, path: str) -> str:
    """Get a page of the target C{web}."""
    agent = Agent.usingEndpointFactory(reactor, TunnelEndpoints(connections, key, "web"))
    response = await HTTPClient(agent).get(f"http://runner{path}")
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
    print(await fetch(reactor, tunnel.connections, "wolf-1", "/health"), end="")
    await maybeDeferred(port.stopListening)
    await tunnel.stop()


if __name__ == "__main__":
    task.react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
