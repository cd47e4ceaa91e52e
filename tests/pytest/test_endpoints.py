"""
The library under pytest-twisted, for programs whose own suite runs there.

A suite of its own, in a process of its own: once pytest-twisted has run,
trial's reactor hygiene fails in the same process.
"""

from __future__ import annotations

import pytest
import pytest_twisted

from helix_revdial.revdial.errors import NotConnected


@pytest_twisted.ensureDeferred
async def test_dialWithoutAnAgentFails() -> None:
    """An endpoint for a runner that is not there fails when it is used, not before."""
    from twisted.internet import reactor
    from twisted.internet.protocol import Factory, Protocol

    from helix_revdial.revdial.connections import Connections

    async def generation() -> int:
        return 1

    connections = Connections(reactor, generation, wallClock=lambda: 0.0)
    endpoint = connections.endpoint("wolf-1")
    with pytest.raises(NotConnected, match="no connection"):
        await endpoint.connect(Factory.forProtocol(Protocol))
