# -*- test-case-name: tests.test_runner_hosts -*-
"""
Runners that run sessions: who offers the target C{executor} becomes an executor.

Watches who registers.  A runner that comes without that target is no executor any
more; one that goes stays, and is offline once it does not answer (L{Executors
<helix_revdial.sessions.executors.Executors>} asks), so that its sessions know where they
belong.

An executor is handed the tokens of the sessions that it is to run.  So:

  - a session's own agent never is one, whatever it offers;
  - it takes the sessions of its token's tenant; that of the operator, those of all.

Invariant: what is found out while a runner is registered counts for that registration
alone; a later one of the same key is looked at anew.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import Logger

from helix_revdial.access.policy import sessionOf
from helix_revdial.access.principals import DEFAULT_TENANT
from helix_revdial.revdial.registrations import Registration
from helix_revdial.revdial.watching import Watching
from helix_revdial.sessions.executors import Executors
from helix_revdial.sessions.remote import RemoteExecutor

TARGET: Final = "executor"
"""The target that makes a runner an executor."""

MAX_HOSTS: Final = 1000
"""Executors that are known; one more is not taken."""


class RunnerHosts(Watching):
    """
    Keeps the executors to the runners that are there.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        executors: Executors,
        endpoint: Callable[[str], IStreamClientEndpoint],
        tenantOf: Callable[[str], Awaitable[str | None]],
    ) -> None:
        """
        @param reactor: For the connections to the hosts.
        @param endpoint: Leads to the target C{executor} of the runner of that key.
        @param tenantOf: The tenant of a credential; C{None} where it is no longer valid.
        """
        self._reactor = reactor
        self._executors = executors
        self._endpoint = endpoint
        self._tenantOf = tenantOf
        self._newest: dict[str, int] = {}

    def registered(self, registration: Registration, before: str | None) -> None:
        """A runner is there; it may be an executor."""
        key = registration.key
        if not offersExecutor(registration):
            self._newest.pop(key, None)
            if key in self._executors:
                self._executors.remove(key)
            return
        self._newest[key] = registration.generation
        Deferred.fromCoroutine(self._add(registration)).addErrback(
            lambda failure: self._log.failure("{key} is no executor", failure, key=key)
        )

    async def _add(self, registration: Registration) -> None:
        key = registration.key
        tenant = await self._tenantOf(registration.credential)
        if self._newest.get(key) != registration.generation:
            return
        if tenant is None:
            self._log.warn("{key} offers an executor, and its token is not valid", key=key)
            return
        known = self._executors.get(key)
        if known is None and sum(1 for _ in self._executors) >= MAX_HOSTS:
            self._log.warn("there are too many executors: {key} is not taken", key=key)
            return
        executor = RemoteExecutor(self._reactor, self._endpoint(key))
        self._executors.add(key, executor, tenant=None if tenant == DEFAULT_TENANT else tenant)


def offersExecutor(registration: Registration) -> bool:
    """Whether a registration is that of a host that runs sessions."""
    if sessionOf(registration.key) is not None or registration.owner.startswith("session:"):
        return False
    return any(each.name == TARGET for each in registration.targets or ())


__all__ = ["TARGET", "RunnerHosts", "offersExecutor"]
