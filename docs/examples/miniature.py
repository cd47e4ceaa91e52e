"""
A server and an agent in one process: the least that makes a tunnel.

The examples beside this one use it, so that they run as they stand.  In
production the server is C{twistd helix-revdial-server}, the agent is
C{twistd helix-revdial-agent}, and tokens come from a database.
"""

from __future__ import annotations

import hmac
import itertools
import secrets
from typing import Any

from helix_revdial.http.factory import HTTPFactory
from helix_revdial.http.problem import Problem
from helix_revdial.http.request import Request
from helix_revdial.http.response import HandedOver
from helix_revdial.revdial.client import ServerPath, ServerURL
from helix_revdial.revdial.connections import Connections
from helix_revdial.revdial.features import FEATURES_HEADER, formatFeatures
from helix_revdial.revdial.listener import Listener
from helix_revdial.revdial.requests import RequestKind, classify
from helix_revdial.revdial.upgrade import rawServer


class Miniature:
    """
    A tunnel to the runner C{wolf-1}, over a port of this host.

    @ivar connections: The server's side: C{connections.endpoint("wolf-1", name)}
        dials.
    @ivar listener: The agent's side: C{listener.endpoint(name)} answers.
    """

    def __init__(self, reactor: Any) -> None:
        numbers = itertools.count(1)

        async def generation() -> int:
            return next(numbers)

        self._token = secrets.token_urlsafe()
        self.connections = Connections(reactor, generation, wallClock=reactor.seconds)
        self._http = HTTPFactory(self._dispatch, reactor)
        self._port = reactor.listenTCP(0, self._http, interface="127.0.0.1")
        url = ServerURL.parse(f"http://127.0.0.1:{self._port.getHost().port}")
        self._path = ServerPath(reactor, url, lambda: self._token, key="wolf-1")
        self.listener = Listener(reactor, self._path, {})

    async def start(self) -> None:
        """Connect the agent."""
        await self._path.connectControl(self.listener)

    async def stop(self) -> None:
        """Close everything."""
        await self.listener.stop()
        await self.connections.stop()
        await self._port.stopListening()
        await self._http.stop(1.0)

    async def _dispatch(self, request: Request) -> HandedOver:
        given = request.headers.get(b"Authorization") or b""
        if not hmac.compare_digest(given, b"Bearer " + self._token.encode()):
            raise Problem(401, "No valid token.")
        asked = classify(request.method, list(request.headers), request.query)
        if asked.kind is RequestKind.DATA_RAW:
            pickUp = self.connections.pickUp("the owner", ticket=asked.ticket)
            return request.handOver(rawServer(pickUp.protocol, clock=self._http.clock))
        if asked.kind is not RequestKind.CONTROL_RAW:
            raise Problem(426, "Only agents of this version connect here.")
        registration = await self.connections.register(
            asked.runnerId or "",
            "the owner",
            "the owner",
            features=asked.features,
            offered=asked.offered,
            peer=request.clientHost,
        )
        agreed = [(FEATURES_HEADER, formatFeatures(asked.features))]
        return request.handOver(
            rawServer(registration.protocol, responseHeaders=agreed, clock=self._http.clock)
        )
