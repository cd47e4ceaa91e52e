"""Which runners become executors, and whose sessions they take."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial import runner_hosts
from helix_revdial.revdial.offered import OfferedTarget
from helix_revdial.revdial.registrations import Registration
from helix_revdial.runner_hosts import TARGET, RunnerHosts
from helix_revdial.sessions.executors import Executors

EXECUTOR = (OfferedTarget(TARGET, "internal"),)


class RunnerHostsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.executors = Executors(self.reactor, lambda: 0.0)
        self.tenants: dict[str, Deferred[str | None]] = {}
        self.dialled: list[str] = []
        self.hosts = RunnerHosts(self.reactor, self.executors, self.endpoint, self.tenantOf)
        self.generation = 0

    def endpoint(self, key: str) -> Any:
        self.dialled.append(key)

        class Never:
            def connect(self, factory: object) -> Deferred[Any]:
                return Deferred()

        return Never()

    async def tenantOf(self, credential: str) -> str | None:
        return await self.tenants.setdefault(credential, Deferred())

    def register(
        self, key: str, *, owner: str = "family:f", targets: Any = EXECUTOR, credential: str = "f"
    ) -> Registration:
        self.generation += 1
        registration = Registration(
            key, owner, credential, self.generation, frozenset(), "peer", 0.0
        )
        registration.targets = targets
        self.hosts.registered(registration, None)
        return registration

    def known(self) -> list[tuple[str, str | None]]:
        return [(one.id, one.tenant) for one in self.executors]

    def test_added(self) -> None:
        """A runner with the target takes its tenant's sessions; the operator's, everybody's."""
        self.register("host-1", credential="a")
        self.register("host-2", credential="b")
        self.assertEqual(self.known(), [])
        self.tenants["a"].callback("acme")
        self.tenants["b"].callback("default")
        self.assertEqual(self.known(), [("host-1", "acme"), ("host-2", None)])
        self.assertEqual(self.dialled, ["host-1", "host-2"])

    def test_others(self) -> None:
        """Who does not offer it is none, and who no longer does is none any more."""
        self.register("host-1", targets=None)
        self.register("host-2", targets=(OfferedTarget("api", "owner"),))
        self.assertEqual(self.tenants, {})
        self.register("host-3")
        self.tenants["f"].callback("default")
        self.assertEqual(len(self.known()), 1)
        self.register("host-3", targets=())
        self.assertEqual(self.known(), [])

    def test_sessionsAreNone(self) -> None:
        """A session's own agent would be handed others' tokens: it never is one."""
        self.register("sandbox-ses_1", owner="session:ses_1")
        self.register("desktop-ses_1", owner="family:f")
        self.register("host-1", owner="session:ses_1")
        self.assertEqual(self.tenants, {})
        self.assertEqual(self.known(), [])

    def test_revokedMeanwhile(self) -> None:
        """A credential that is no longer valid makes none."""
        self.register("host-1")
        self.tenants["f"].callback(None)
        self.assertEqual(self.known(), [])

    def test_laterRegistration(self) -> None:
        """What is found out of an earlier registration does not count for a later one."""
        self.register("host-1", credential="a")
        self.register("host-1", credential="b")
        self.tenants["b"].callback("acme")
        self.tenants["a"].callback("default")
        self.assertEqual(self.known(), [("host-1", "acme")])
        self.register("host-1", credential="c", targets=())
        self.assertEqual(self.known(), [])

    def test_bounded(self) -> None:
        """There is a limit to how many there are; one that is known may come again."""
        self.patch(runner_hosts, "MAX_HOSTS", 1)
        self.register("host-1", credential="a")
        self.tenants["a"].callback("default")
        self.register("host-2", credential="b")
        self.tenants["b"].callback("default")
        self.assertEqual(self.known(), [("host-1", None)])
        self.register("host-1", credential="c")
        self.tenants["c"].callback("default")
        self.assertEqual(len(self.known()), 1)
