# -*- test-case-name: tests.gateways.test_proxy,tests.gateways.test_http -*-
"""
Connections to services, for whoever has a request: one that waits, or a new one.

Invariants:

  - A connection that is used again leads where a new dial would: the same runner, its
    present registration, the same target; and it serves the caller that it served.
  - Who may is asked for each request, whichever connection it goes by.
  - Only what its asker calls repeatable goes by a connection of before.  Where that has
    ended before a byte of an answer came, it is asked once more, on a new one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol as Structural
from typing import TypeVar

from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Factory

from helix_revdial.gateways.backend import Backend
from helix_revdial.gateways.idle import Idle, Place
from helix_revdial.revdial.connections import Connections
from helix_revdial.revdial.errors import NotAllowed, TunnelBroke
from helix_revdial.revdial.offered import Expose
from helix_revdial.revdial.registrations import Registration
from helix_revdial.revdial.watching import Watching

T = TypeVar("T")


class Wanted(Structural):
    """Where a request goes, and on whose behalf."""

    @property
    def caller(self) -> str:
        """Whose requests may share a connection."""

    @property
    def runner(self) -> str:
        """The runner's key."""

    @property
    def target(self) -> str | None:
        """The service; C{None} for the agent's default."""

    @property
    def allow(self) -> Callable[[Expose], bool]:
        """Whether the caller may have a target that is for these."""

    @property
    def about(self) -> Mapping[str, str]:
        """For the record of the stream."""

    @property
    def wait(self) -> float | None:
        """Seconds for a dial; C{None} for the most allowed."""


@dataclass(frozen=True)
class Service:
    """A service as L{Wanted}."""

    caller: str
    runner: str
    target: str | None
    allow: Callable[[Expose], bool]
    about: Mapping[str, str]
    wait: float | None = None


class Backends(Watching):
    """
    To watch the connections of runners with: what waits does not outlive what it leads
    through.

    @ivar idle: Those that wait.
    """

    def __init__(
        self,
        clock: IReactorTime,
        connections: Connections,
        *,
        idleTimeout: float,
        count: Callable[[str], object] = lambda how: None,
    ) -> None:
        """
        @param connections: Leads to the runners.
        @param idleTimeout: Seconds that a connection waits for another request.
        @param count: Told for each request how it went: by a C{"dialled"} connection or
            a C{"reused"} one; and C{"replaced"} where that was found ended.
        """
        self.clock = clock
        self.connections = connections
        self.idle = Idle(clock, idleTimeout)
        self._count = count

    async def ask(
        self,
        wanted: Wanted,
        exchange: Callable[[Backend], Awaitable[T]],
        *,
        repeatable: bool,
        patient: bool = False,
    ) -> T:
        """
        Ask a service.

        @param exchange: Sends the request, and takes what of the answer it is about:
            its head at the least.
        @param repeatable: Whether it can be sent twice without harm.
        @param patient: Whether a dial for it waits for its turn, where many are under way.
        @raise DialError: There is no connection; or what C{exchange} raised.
        """
        if repeatable:
            backend = self._again(wanted)
            if backend is not None:
                self._count("reused")
                try:
                    return await exchange(backend)
                except TunnelBroke:
                    if not backend.endedSilently:
                        raise
                    # It had died unnoticed: the service has seen nothing of it, or
                    # may see it again.
                    self._count("replaced")
        return await exchange(await self._dial(wanted, patient))

    def over(self, wanted: Wanted, backend: Backend) -> None:
        """
        An exchange has ended: let its connection wait, if it is in order and its runner
        has not left or registered anew meanwhile, or close it.
        """
        leads = self.connections.leadsTo(wanted.runner, wanted.target)
        if backend.inOrder and leads is not None and leads[0] == backend.generation:
            self.idle.put(_placeOf(wanted), backend)
        else:
            backend.close()

    # Watching

    def registered(self, registration: Registration, before: str | None) -> None:
        self.idle.leave(registration.key, registration.generation)

    def gone(self, key: str, generation: int) -> None:
        self.idle.leave(key, None)

    def _again(self, wanted: Wanted) -> Backend | None:
        """A connection of before that leads where a dial would lead now."""
        leads = self.connections.leadsTo(wanted.runner, wanted.target)
        if leads is None:
            return None
        generation, expose = leads
        if not wanted.allow(expose):
            raise NotAllowed
        return self.idle.take(_placeOf(wanted), generation)

    async def _dial(self, wanted: Wanted, patient: bool) -> Backend:
        factory = Factory.forProtocol(Backend)
        factory.noisy = False  # two log lines for each exchange say nothing
        endpoint = self.connections.endpoint(
            wanted.runner,
            wanted.target,
            timeout=wanted.wait,
            about=wanted.about,
            allow=wanted.allow,
            patient=patient,
        )
        self._count("dialled")
        backend = await endpoint.connect(factory)
        assert isinstance(backend, Backend)
        return backend


def _placeOf(wanted: Wanted) -> Place:
    return wanted.caller, wanted.runner, wanted.target


__all__ = ["Backends", "Service", "Wanted"]
