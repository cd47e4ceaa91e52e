"""C{/api/v1/admin/forwards}: who may make one, and what its connections may have."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import succeed
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.config import ForwardsSection, ServerConfig
from tests.api.harness import Server, Wire, await_
from tests.api.test_external_agents import Sandbox
from tests.api.test_stream_gateway import TARGETS

PATH = "/api/v1/admin/forwards"


class Port:
    """A port that listens."""

    def __init__(self, port: int, factory: Any, interface: str) -> None:
        self.factory = factory
        self._address = IPv4Address("TCP", interface, port)

    def getHost(self) -> IPv4Address:
        return self._address

    def stopListening(self) -> Any:
        return succeed(None)


class ForwardsTests(SynchronousTestCase):
    """Forwards on ports that are not real."""

    def setUp(self) -> None:
        self.server = Server(ServerConfig(forwards=ForwardsSection(ports="20000-20001")))
        self.ports: list[Port] = []
        clock: Any = self.server.clock
        clock.listenTCP = self.listen
        self.admin = self.server.user("root", role="admin")

    def listen(self, port: int, factory: Any, interface: str) -> Port:
        self.ports.append(Port(port, factory, interface))
        return self.ports[-1]

    def create(self, target: str | None, runner: str = "wolf-1") -> Any:
        wanted = {"listen": "tcp:20000", "runner": runner, "target": target}
        return self.server.post(PATH, self.admin, wanted)

    def connect(self) -> Wire:
        """Connect to the newest forward."""
        protocol = self.ports[-1].factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 4))
        wire = Wire()
        protocol.makeConnection(wire)
        return wire

    def test_eachConnectionIsJudged(self) -> None:
        """F2: a target that is for the server alone is not for a forward; others are."""
        agent = Sandbox(
            self.server, "wolf-1", self.server.runner("wolf-*"), Revdial_Targets=TARGETS
        )
        self.assertEqual(self.create("wolf").status, 201)
        self.assertTrue(self.connect().aborted)
        (found,) = self.server.get(PATH, self.admin).json()["items"]
        self.assertEqual(found["lastError"], "the runner's target is not for this caller")
        self.assertEqual(self.create("api").status, 201)
        self.assertFalse(self.connect().aborted)
        self.assertEqual(agent.asked()["target"], "api")

    def test_anotherTenantsSession(self) -> None:
        """A runner whose targets are not for the maker has no forward of his."""
        session = self.server.session("eve", tenant="other")
        answer = self.create("api", f"sandbox-{session.id}")
        self.assertEqual((answer.status, list(answer.json()["errors"])), (400, ["runner"]))
        self.assertEqual(self.ports, [])

    def test_whoMay(self) -> None:
        """Administrators only."""
        for role in ("viewer", "operator"):
            token = self.server.user(role, role=role)
            self.assertEqual(self.server.get(PATH, token).status, 403)
            wanted = {"listen": "tcp:20000", "runner": "wolf-1"}
            self.assertEqual(self.server.post(PATH, token, wanted).status, 403)
            self.assertEqual(self.server.delete(PATH + "/fwd_1", token).status, 403)

    def test_deleted(self) -> None:
        """204, then 404; its making and its end are audited."""
        name = self.create("api").json()["id"]
        self.assertTrue(name.startswith("fwd_"))
        self.assertEqual(self.server.delete(f"{PATH}/{name}", self.admin).status, 204)
        answer = self.server.delete(f"{PATH}/{name}", self.admin)
        self.assertEqual((answer.status, answer.json()["code"]), (404, "unknown-forward"))
        events = [entry.event for entry in self.server.events()]
        self.assertEqual(
            [one for one in events if one.startswith("forward-")],
            ["forward-created", "forward-deleted"],
        )

    def test_theMakersTokenEnds(self) -> None:
        """F3: with the token go its forwards."""
        record, secret = await_(
            self.server.tokens.create("user", name="x", user="bob", role="admin")
        )
        wanted = {"listen": "tcp:20001", "runner": "wolf-1"}
        self.assertEqual(self.server.post(PATH, secret, wanted).status, 201)
        self.assertEqual(self.create("api").status, 201)
        await_(self.server.tokens.revoke(record.id))
        (left,) = self.server.get(PATH, self.admin).json()["items"]
        self.assertEqual(left["target"], "api")
