"""
C{twistd} with a side door: the server or the agent as it is run, in a process
that a test can look into.  Run as C{python -m tests.integration.inspected
ARGUMENTS-OF-TWISTD}.

C{HELIX_TEST_DOOR} is the path of a unix socket.  What connects there sends one
line of JSON, and gets one back:

  - C{{"do": "look"}}: what is in the process now.
  - C{{"do": "dial", "runner": …, "target": …, "timeout": …}} (server only): a
    dial, as code beside the server makes it through C{Connections.endpoint}.
    Behind the answering line the socket is the stream.

C{HELIX_TEST_LIMITS} shortens limits that no setting reaches: JSON, from the
dotted name of a class to defaults of its constructor's keywords.
"""

from __future__ import annotations

import faulthandler
import functools
import gc
import json
import os
from collections import Counter
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import IDelayedCall, IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.python.reflect import namedAny
from twisted.scripts import twistd
from zope.interface import implementer

from helix_revdial import control_plane_tap
from helix_revdial.agent import tap
from helix_revdial.revdial.errors import DialError
from helix_revdial.revdial.relay import RelayProtocol, relayPair

COUNTED = {
    "connections.Registration", "connection.HTTPConnection", "dialer.Dialer", "dials.Dial",
    "listener.AgentControl", "listener._Answer", "pickups.Call", "pickups.PickUp",
    "pickups._PickedUp", "relay.RelayProtocol", "request.Request", "streams.Stream",
    "streams.StreamProtocol", "streams.StreamTransport",
}  # fmt: skip
"""Classes whose instances are counted."""

OF_THE_AUDIT = "AuditLog."
"""Timers of what was written in the last minute: no sign of anything left."""


def nameOf(call: IDelayedCall) -> str:
    """What a delayed call will call."""
    function = getattr(call, "func", call)
    while isinstance(function, functools.partial):
        function = function.func
    owner = getattr(function, "__self__", None)
    inner = getattr(owner, "f", None)
    name = getattr(function, "__qualname__", type(function).__name__)
    return name if inner is None else f"{name} of {getattr(inner, '__qualname__', inner)}"


def look(reactor: Any, service: Any) -> dict[str, Any]:
    """Timers, sockets, table entries and objects of this process."""
    # What was frozen at the start, these exceptions among it, would not be found.
    gc.unfreeze()
    for each in gc.get_objects():
        if isinstance(each, ConnectionClosed):
            # Twisted has one exception for all connections that end: what it was
            # raised through last, and what was being handled then, hangs on it,
            # until it is raised again.
            each.__traceback__ = each.__context__ = each.__cause__ = None
    gc.collect()
    kinds = Counter(
        f"{str(type(each).__module__).rpartition('.')[2]}.{type(each).__name__}"
        for each in gc.get_objects()
    )
    timers = Counter(nameOf(call) for call in reactor.getDelayedCalls())
    seen: dict[str, Any] = {
        "timers": {name: timers[name] for name in sorted(timers) if OF_THE_AUDIT not in name},
        "objects": {name: kinds[name] for name in sorted(COUNTED) if kinds[name]},
        "sockets": sum(
            os.readlink(f"/proc/self/fd/{number}").startswith("socket:")
            for number in os.listdir("/proc/self/fd")
            if os.path.islink(f"/proc/self/fd/{number}")
        ),
    }
    if hasattr(service, "factory"):
        connections = service.services.connections
        stats = connections.stats()
        seen["table"] = {
            "active": stats.activeConnections,
            "grace": stats.gracePeriodEntries,
            "pending": stats.pendingDialsTotal,
            "registrations": len(connections._registrations),
            "calls": len(connections._calls),
            "streams": sum(map(len, connections._streams.values())),
            "http": service.factory.connections,
            "strangers": service.factory.admission.total,
        }
    else:
        listener = service._listener
        seen["table"] = {
            "connected": int(listener.control is not None),
            "dials": listener.dialsUnderWay,
            "streams": listener.openStreams,
        }
    return seen


@implementer(IHalfCloseableProtocol)
class Door(Protocol):
    """One connection of a test."""

    def __init__(self, reactor: Any, service: Any) -> None:
        self._reactor = reactor
        self._service = service
        self._line = b""
        self._half: RelayProtocol | None = None
        self._dialling: Deferred[Any] | None = None

    @property
    def _wire(self) -> Any:
        return self.transport

    def dataReceived(self, data: bytes) -> None:
        if self._half is not None:
            self._half.dataReceived(data)
            return
        self._line += data
        if b"\n" not in self._line:
            return
        asked = json.loads(self._line)
        if asked["do"] == "dial":
            self._dial(asked)
            return
        self._answer(look(self._reactor, self._service))
        self._wire.loseConnection()

    def _answer(self, answer: dict[str, Any]) -> None:
        self._wire.write(json.dumps(answer).encode() + b"\n")

    def _dial(self, asked: dict[str, Any]) -> None:
        left, right = relayPair(self._reactor, linger=20.0)
        endpoint = self._service.services.connections.endpoint(
            asked["runner"], asked.get("target"), timeout=asked.get("timeout")
        )
        factory = Factory.forProtocol(lambda: right)
        factory.noisy = False
        self._dialling = endpoint.connect(factory)

        def connected(_: Any) -> None:
            self._dialling = None
            self._answer({"error": None, "carrier": cast(Any, right.transport).carrier})
            self._half = left
            left.makeConnection(self._wire)

        def failed(failure: Failure) -> None:
            self._dialling = None
            error: Any = failure.value
            known = isinstance(error, DialError)
            self._answer(
                {
                    "error": error.word if known else type(error).__name__,
                    "status": error.status if known else 500,
                    "text": str(error),
                }
            )
            self._wire.loseConnection()

        self._dialling.addCallbacks(connected, failed)

    def readConnectionLost(self) -> None:
        if self._half is not None:
            self._half.readConnectionLost()
        else:
            self._wire.loseConnection()

    def writeConnectionLost(self) -> None:
        if self._half is not None:
            self._half.writeConnectionLost()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._half is not None:
            self._half.connectionLost(reason)
        elif self._dialling is not None:
            self._dialling.cancel()


def watch(module: Any) -> None:
    """Let C{module}'s service open the side door once the reactor runs."""
    makeService = module.makeService

    def made(options: Any) -> Any:
        from twisted.internet import reactor as installed

        reactor: Any = installed
        service = makeService(options)
        factory = Factory.forProtocol(lambda: Door(reactor, service))
        factory.noisy = False
        reactor.callWhenRunning(reactor.listenUNIX, os.environ["HELIX_TEST_DOOR"], factory, 1024)
        return service

    module.makeService = made


def shorten(limits: dict[str, dict[str, Any]]) -> None:
    """Give constructors other defaults."""
    for name, defaults in limits.items():
        known = namedAny(name).__init__.__kwdefaults__
        for word, value in defaults.items():
            if word not in known:
                raise SystemExit(f"{name} has no {word}")
            known[word] = frozenset(value) if isinstance(value, list) else value


def run() -> None:
    """C{twistd} with the door; C{SIGABRT} has it say where all its threads are."""
    faulthandler.enable()
    watch(control_plane_tap)
    watch(tap)
    shorten(json.loads(os.environ.get("HELIX_TEST_LIMITS", "{}")))
    twistd.run()


if __name__ == "__main__":
    run()
