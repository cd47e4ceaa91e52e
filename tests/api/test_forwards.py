"""C{/api/v1/admin/forwards}: who may make one, and what its connections may have."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import succeed
from twisted.internet.error import CannotListenError
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.api.forwards import restoreForwards
from helix_revdial.config import ForwardsSection, ServerConfig
from helix_revdial.storage.failures import DatabaseUnavailable
from tests.api.harness import Server, Wire, await_
from tests.api.test_external_agents import Sandbox
from tests.api.test_stream_gateway import TARGETS
from tests.api.test_tunnel import lines

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


class ForwardsCase(SynchronousTestCase):
    """Forwards on ports that are not real."""

    def setUp(self) -> None:
        self.server = Server(ServerConfig(forwards=ForwardsSection(ports="20000-20001")))
        self.ports: list[Port] = []
        clock: Any = self.server.clock
        clock.listenTCP = self.listen
        self.admin = self.server.user("root", role="admin")

    taken = False

    def listen(self, port: int, factory: Any, backlog: int, interface: str) -> Port:
        if self.taken:
            raise CannotListenError(interface, port, OSError(98, "Address already in use"))
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


class ForwardsTests(ForwardsCase):
    """Who makes them, and for what."""

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

    def test_whereItSaysThatItIs(self) -> None:
        """A forward that was made is found where the answer says."""
        answer = self.create("api")
        self.connect()
        found = self.server.get(answer.headers["location"], self.admin).json()
        made = answer.json()
        self.assertEqual(found["id"], made["id"])
        self.assertEqual((made["failed"], found["accepted"], found["failed"]), (0, 1, 1))
        tables = self.server.observation.tables()
        self.assertEqual((tables["forwards"], tables["forward_connections"]), (1, 0))
        tally = dict(self.server.observation.metrics.forwarded.items())
        self.assertEqual(tally, {"accepted": 1, "refused": 0, "failed": 1})
        answer = self.server.get(f"{PATH}/fwd_1", self.admin)
        self.assertEqual((answer.status, answer.json()["code"]), (404, "unknown-forward"))

    def test_taken(self) -> None:
        """409 for a port that cannot be had, for none that is free, and for one too many."""
        self.taken = True
        for port, text in (
            (20000, "port 20000 cannot be had: Address already in use"),
            (0, "no port of 20000-20001 is free"),
        ):
            wanted = {"listen": f"tcp:{port}", "runner": "wolf-1"}
            answer = self.server.post(PATH, self.admin, wanted)
            self.assertEqual((answer.status, answer.json()["errors"]), (409, {"listen": [text]}))

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


class RestartTests(ForwardsCase):
    """Forwards outlive the server."""

    def restart(self) -> list[dict[str, Any]]:
        """Stop the forwards as a server does that ends, and have them again."""
        await_(self.server.services.forwards.stop())
        self.ports.clear()
        await_(restoreForwards(self.server.services))
        found: list[dict[str, Any]] = self.server.get(PATH, self.admin).json()["items"]
        return found

    def test_again(self) -> None:
        """One that was made is there again: its id, its port, its list, its maker."""
        wanted = {
            "listen": "tcp:0",
            "runner": "wolf-1",
            "target": "api",
            "allow": ["10.0.0.0/8"],
            "proxyProtocol": True,
        }
        made = self.server.post(PATH, self.admin, wanted).json()
        self.assertEqual(made["listen"], "tcp:20000:interface=127.0.0.1")
        self.assertEqual(self.restart(), [made])
        self.assertEqual(self.restart(), [made], "it is kept, not only handed on")

    def test_judgedAsBefore(self) -> None:
        """F2: after a restart each connection is judged as its maker's."""
        agent = Sandbox(
            self.server, "wolf-1", self.server.runner("wolf-*"), Revdial_Targets=TARGETS
        )
        self.create("wolf")
        self.restart()
        self.assertTrue(self.connect().aborted)
        self.assertEqual(
            [one for one in lines(agent.control) if one["command"] != "keep-alive"], []
        )

    def test_deleted(self) -> None:
        """One that was deleted stays away."""
        made = self.create("api").json()
        self.assertEqual(self.server.delete(f"{PATH}/{made['id']}", self.admin).status, 204)
        self.assertEqual(self.restart(), [])
        answer = self.server.delete(f"{PATH}/{made['id']}", self.admin)
        self.assertEqual((answer.status, answer.json()["code"]), (404, "unknown-forward"))

    def test_tokenEnded(self) -> None:
        """One whose maker's token has ended is gone, whether the server ran then or not."""
        maker = self.server.user("eve", role="admin")
        principal = await_(self.server.tokens.authenticate(maker))
        for stopped in (False, True):
            maker = self.server.user("eve", role="admin")
            principal = await_(self.server.tokens.authenticate(maker))
            answer = self.server.post(
                PATH, maker, {"listen": "tcp:20000", "runner": "wolf-1", "target": "api"}
            )
            self.assertEqual(answer.status, 201, answer.body)
            if stopped:
                await_(self.server.services.forwards.stop())
            await_(self.server.tokens.revoke(principal.tokenId))
            self.assertEqual(self.restart(), [])
            self.assertEqual(await_(self.server.services.keptForwards.list()), [])

    def test_notNow(self) -> None:
        """One whose port is taken at the start is kept for the next, and can be deleted."""
        made = self.create("api").json()
        self.taken = True
        self.assertEqual(self.restart(), [])
        self.taken = False
        self.assertEqual([one["id"] for one in self.restart()], [made["id"]])
        self.taken = True
        self.restart()
        self.assertEqual(self.server.delete(f"{PATH}/{made['id']}", self.admin).status, 204)
        self.taken = False
        self.assertEqual(self.restart(), [])

    def test_notKept(self) -> None:
        """One that cannot be written down is not made."""

        def broken(*_: object) -> Any:
            raise DatabaseUnavailable("gone")

        self.patch(self.server.services.keptForwards, "add", broken)
        self.assertEqual(self.create("api").status, 503)
        self.assertEqual(self.server.services.forwards.list(), [])
