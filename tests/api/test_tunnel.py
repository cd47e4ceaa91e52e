"""Where agents connect: every status, and what goes on after a 101."""

from __future__ import annotations

import base64
import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.config import ServerConfig, TunnelSection
from helix_revdial.revdial.errors import TargetRefused
from tests.api.harness import Server, Wire, await_, parse, request

FEATURES = "raw, targets, echo, eof, tickets, goodbye"


def rawUpgrade(path: str, token: str, **headers: str) -> bytes:
    """The request of one of our agents for raw bytes."""
    return request(
        "GET",
        path,
        token,
        headers={
            "Connection": "Upgrade",
            "Upgrade": "revdial",
            "Revdial-Features": FEATURES,
            **{name.replace("_", "-"): value for name, value in headers.items()},
        },
    )


def lines(transport: StringTransport) -> list[dict[str, Any]]:
    """The control lines after the head."""
    _, _, rest = transport.value().partition(b"\r\n\r\n")
    return [json.loads(line) for line in rest.splitlines()]


class Collector(Protocol):
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.got = b""

    def dataReceived(self, data: bytes) -> None:
        self.got += data


class RefusalTests(SynchronousTestCase):
    """What is refused, and as what."""

    def setUp(self) -> None:
        self.server = Server()

    def refused(self, raw: bytes, status: int) -> Any:
        protocol, transport = self.server.connect()
        protocol.dataReceived(raw)
        answer = parse(transport.value())
        self.assertEqual(answer.status, status, answer.raw)
        self.assertEqual(answer.headers["content-type"], "application/problem+json")
        self.assertEqual(self.server.connections.stats().activeConnections, 0)
        return answer

    def test_noToken(self) -> None:
        """401 without a token, whatever else is asked."""
        raw = request("GET", "/api/v1/revdial?runnerid=wolf-1", headers={"Connection": "Upgrade"})
        answer = self.refused(raw, 401)
        # RFC 6750, 3.1: no error where nothing was brought.
        self.assertEqual(answer.headers["www-authenticate"], 'Bearer realm="helix"')

    def test_unknownToken(self) -> None:
        """401 with a token that is nobody's; the token is in no answer and no log."""
        raw = rawUpgrade("/api/v1/revdial?runnerid=wolf-1", "hlx_nobody-has-this-one")
        answer = self.refused(raw, 401)
        self.assertNotIn("nobody-has-this-one", answer.raw.decode())
        self.assertIn('error="invalid_token"', answer.headers["www-authenticate"])
        self.assertNotIn("nobody-has-this-one", repr(self.server.events()))

    def test_noRunnerKey(self) -> None:
        """400 without a runner key, with a bad one, and with two."""
        token = self.server.runner()
        for query in ("", "?runnerid=", "?runnerid=-x", "?runnerid=a%2Fb", "?runnerid=" + "x" * 129,
                      "?runnerid=wolf-1&runnerid=wolf-2"):  # fmt: skip
            self.refused(rawUpgrade("/api/v1/revdial" + query, token), 400)

    def test_notThisTokensPattern(self) -> None:
        """403 for a key that the token's patterns do not reach, with an audit entry."""
        token = self.server.runner("wolf-*")
        self.refused(rawUpgrade("/api/v1/revdial?runnerid=moonlight-1", token), 403)
        (entry,) = self.server.events()
        self.assertEqual(entry.event, "registration-refused")

    def test_notTheOwner(self) -> None:
        """403 for a session of somebody else, the same as for one that is not there."""
        session = self.server.session("ann")
        bob = self.server.user("bob")
        details = set()
        for name in (session.id, "ses_01M7YJEGZ9C0BKVHE6EDY79M3V"):
            raw = rawUpgrade(f"/api/v1/revdial?runnerid=sandbox-{name}", bob)
            details.add(self.refused(raw, 403).detail.replace(name, "X"))
        self.assertEqual(len(details), 1, details)

    def test_plainGet(self) -> None:
        """426 without an upgrade, naming what there is."""
        raw = request("GET", "/api/v1/revdial?runnerid=wolf-1", self.server.runner())
        self.assertEqual(self.refused(raw, 426).headers["upgrade"], "revdial, websocket")

    def test_whatCannotBeHandedOver(self) -> None:
        """A body, or a handshake that cannot be answered, is refused and takes no name over."""
        token = self.server.runner("wolf-*")
        path = "/api/v1/revdial?runnerid=wolf-1"
        webSocket = {"Connection": "Upgrade", "Upgrade": "websocket"}
        key = base64.b64encode(b"x" * 16).decode()
        body = rawUpgrade(path, token).replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\nabc")
        self.refused(body, 400)
        for headers, status in (
            ({"Sec-WebSocket-Version": "13"}, 400),
            ({"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAA"}, 400),
            ({"Sec-WebSocket-Version": "8", "Sec-WebSocket-Key": key}, 426),
        ):
            self.refused(request("GET", path, token, headers={**webSocket, **headers}), status)
        self.assertIsNone(self.server.services.connections.status("wolf-1"))

    def test_unknownDial(self) -> None:
        """404 for a ticket and for ids that are of no outstanding dial."""
        token = self.server.runner()
        self.refused(rawUpgrade("/api/v1/revdial", token, Revdial_Ticket="x" * 32), 404)
        ids = f"revdial.dialer={'a' * 32}&revdial.req={'b' * 32}"
        self.refused(rawUpgrade("/api/v1/revdial?" + ids, token), 404)

    def test_requiredFeatures(self) -> None:
        """An operator can require features: who lacks one is told which."""
        config = ServerConfig(tunnel=TunnelSection(requireFeatures=("tickets", "echo")))
        self.server = Server(config)
        raw = request(
            "GET",
            "/api/v1/revdial?runnerid=wolf-1",
            self.server.runner(),
            headers={"Connection": "Upgrade", "Upgrade": "revdial", "Revdial-Features": "echo"},
        )
        self.assertIn("tickets", self.refused(raw, 403).detail)

    def test_zeroKeyIsTheOperatorsChoice(self) -> None:
        """An agent's zero key is agreed to only where the server's operator allows it."""
        for allowed in (False, True):
            self.server = Server(ServerConfig(tunnel=TunnelSection(zeroKey=allowed)))
            raw = request(
                "GET",
                "/api/v1/revdial?runnerid=wolf-1",
                self.server.runner(),
                headers={
                    "Connection": "Upgrade",
                    "Upgrade": "revdial",
                    "Revdial-Features": "echo, zero-key",
                },
            )
            protocol, transport = self.server.connect()
            protocol.dataReceived(raw)
            head = transport.value().partition(b"\r\n\r\n")[0]
            self.assertTrue(head.startswith(b"HTTP/1.1 101 "), head)
            self.assertEqual(b"zero-key" in head, allowed, head)

    def test_checkIsRefusedAsARegistrationIs(self) -> None:
        """A check asks for nothing less: 401, 403, 409, 426 and 400 as ever."""
        check = "/api/v1/revdial?revdial.check="
        self.refused(rawUpgrade(check + "wolf-1", "hlx_nobody"), 401)
        self.refused(rawUpgrade(check + "moonlight-1", self.server.runner()), 403)
        self.refused(rawUpgrade(check + "a%2Fb", self.server.runner()), 400)
        self.refused(request("GET", check + "wolf-1", self.server.runner()), 426)
        halfAsked = {"Connection": "Upgrade", "Upgrade": "websocket"}
        token = self.server.runner()
        raw = request("GET", check + "wolf-1", token, headers=halfAsked)
        self.refused(raw, 426)
        config = ServerConfig(tunnel=TunnelSection(requireFeatures=("pool",)))
        self.server = Server(config)
        self.refused(rawUpgrade(check + "wolf-1", self.server.runner()), 403)

    def test_refusalKeepsTheConnection(self) -> None:
        """After a refusal the connection serves the next request."""
        protocol, transport = self.server.connect()
        protocol.dataReceived(rawUpgrade("/api/v1/revdial?runnerid=x y".replace(" ", "%20"),
                                         self.server.runner()))  # fmt: skip
        transport.clear()
        protocol.dataReceived(request("GET", "/healthz"))
        self.assertEqual(parse(transport.value()).status, 200)


class TunnelTests(SynchronousTestCase):
    """Control and data connections, as bytes on the port."""

    def setUp(self) -> None:
        self.server = Server()
        self.token = self.server.runner("wolf-*")

    def control(self, key: str = "wolf-1", token: str | None = None) -> tuple[Any, Wire]:
        protocol, transport = self.server.connect()
        protocol.dataReceived(rawUpgrade(f"/api/v1/revdial?runnerid={key}", token or self.token))
        self.assertEqual(transport.value()[:12], b"HTTP/1.1 101", transport.value())
        return protocol, transport

    def test_checkRegistersNobody(self) -> None:
        """
        A check is upgraded, answered, told what the runner is, and leaves the
        runner's own connection alone; another owner's key is refused.
        """
        for state in ("free", "connected"):
            protocol, transport = self.server.connect()
            protocol.dataReceived(rawUpgrade("/api/v1/revdial?revdial.check=wolf-1", self.token))
            head = transport.value().partition(b"\r\n\r\n")[0].decode()
            self.assertIn("101 Switching", head)
            self.assertIn(f"Revdial-Check: {state}", head)
            transport.clear()
            protocol.dataReceived(b'{"command":"keep-alive","echo":"x"}\n')
            self.assertEqual(transport.value(), b'{"command":"echo","echo":"x"}\n')
            if state == "free":
                self.assertEqual(self.server.connections.stats().activeConnections, 0)
                _, holder = self.control()
        self.assertEqual(self.server.connections.stats().activeConnections, 1)
        self.assertFalse(holder.disconnecting)
        protocol, transport = self.server.connect()
        protocol.dataReceived(
            rawUpgrade("/api/v1/revdial?revdial.check=wolf-1", self.server.runner("*"))
        )
        self.assertEqual(parse(transport.value()).status, 409)

    def dial(self, key: str = "wolf-1") -> tuple[Deferred[Any], Collector]:
        collector = Collector()
        endpoint = self.server.connections.endpoint(key)
        return endpoint.connect(Factory.forProtocol(lambda: collector)), collector

    def test_rawControl(self) -> None:
        """Our agent's raw upgrade: 101, the agreed features, a keep-alive at once."""
        _, transport = self.control()
        head = parse(transport.value()).headers
        self.assertEqual(head["upgrade"], "revdial")
        agreed = {word.strip() for word in head["revdial-features"].split(",")}
        self.assertEqual(agreed, set(FEATURES.split(", ")))
        self.assertEqual(lines(transport)[0]["command"], "keep-alive")
        self.assertEqual(self.server.connections.stats().connections, ["wolf-1"])

    def test_hijackControl(self) -> None:
        """The form of 2025: the head alone, a pause, then whole lines."""
        protocol, transport = self.server.connect()
        protocol.dataReceived(
            request(
                "GET",
                "/api/v1/revdial?runnerid=wolf-1",
                self.token,
                headers={"Connection": "Upgrade"},
            )
        )
        head = transport.value()
        self.assertTrue(head.startswith(b"HTTP/1.1 200 OK\r\n"), head)
        self.assertIn(b"Transfer-Encoding: chunked\r\n", head)
        self.assertTrue(head.endswith(b"\r\n\r\n"), "something came with the head")
        self.server.clock.advance(0.3)
        self.assertEqual(transport.value()[len(head) :], b'{"command":"keep-alive"}\n')

    def test_webSocketControl(self) -> None:
        """The form of 2026: a WebSocket, without features."""
        protocol, transport = self.server.connect()
        protocol.dataReceived(
            request(
                "GET",
                "/api/v1/revdial?runnerid=wolf-1",
                self.token,
                headers={
                    "Connection": "Upgrade",
                    "Upgrade": "websocket",
                    "Sec-WebSocket-Version": "13",
                    "Sec-WebSocket-Key": base64.b64encode(b"x" * 16).decode(),
                },
            )
        )
        answer = parse(transport.value())
        self.assertEqual(answer.status, 101)
        self.assertNotIn("revdial-features", answer.headers)
        self.assertTrue(answer.body.startswith(b'\x82\x19{"command":"keep-alive"}\n'), answer.body)

    def test_emptyMessageEndsNoControlConnection(self) -> None:
        """With eof agreed, an empty message on a WebSocket control connection is nothing."""
        protocol, transport = self.server.connect()
        protocol.dataReceived(
            request(
                "GET",
                "/api/v1/revdial?runnerid=wolf-1",
                self.token,
                headers={
                    "Connection": "Upgrade",
                    "Upgrade": "websocket",
                    "Sec-WebSocket-Version": "13",
                    "Sec-WebSocket-Key": base64.b64encode(b"x" * 16).decode(),
                    "Revdial-Features": FEATURES,
                },
            )
        )
        self.assertIn("eof", parse(transport.value()).headers["revdial-features"])
        protocol.dataReceived(b"\x82\x80mask")
        self.assertEqual(self.server.connections.status("wolf-1"), "connected")
        self.assertFalse(transport.disconnecting)

    def test_dialAndStream(self) -> None:
        """A dial becomes a conn-ready with a ticket; the ticket's connection becomes the stream."""
        _, control = self.control()
        result, collector = self.dial()
        ready = lines(control)[-1]
        self.assertEqual(ready["command"], "conn-ready")
        self.assertNotIn("?", ready["connPath"], "ids in the query of our own wire")
        protocol, transport = self.server.connect()
        protocol.dataReceived(
            rawUpgrade("/api/v1/revdial", self.token, Revdial_Ticket=ready["ticket"]) + b"early"
        )
        self.successResultOf(result)
        self.assertEqual(collector.got, b"early", "C5: bytes behind the head")
        protocol.dataReceived(b" late")
        self.assertEqual(collector.got, b"early late")
        assert collector.transport is not None
        collector.transport.write(b"out")
        self.assertTrue(transport.value().endswith(b"\r\n\r\nout"), transport.value())

    def test_ticketIsUsedOnce(self) -> None:
        """F7: a replayed ticket opens nothing."""
        _, control = self.control()
        result, _ = self.dial()
        ticket = lines(control)[-1]["ticket"]
        raw = rawUpgrade("/api/v1/revdial", self.token, Revdial_Ticket=ticket)
        first, _ = self.server.connect()
        first.dataReceived(raw)
        self.successResultOf(result)
        second, transport = self.server.connect()
        second.dataReceived(raw)
        self.assertEqual(parse(transport.value()).status, 404)

    def test_ticketOfAnotherRunner(self) -> None:
        """F7: another token cannot use a ticket up, or make it known that it is one."""
        _, control = self.control()
        result, _ = self.dial()
        ticket = lines(control)[-1]["ticket"]
        thief = self.server.runner("wolf-*")
        protocol, transport = self.server.connect()
        protocol.dataReceived(rawUpgrade("/api/v1/revdial", thief, Revdial_Ticket=ticket))
        self.assertEqual(parse(transport.value()).status, 403)
        self.assertNoResult(result)
        protocol, _ = self.server.connect()
        protocol.dataReceived(rawUpgrade("/api/v1/revdial", self.token, Revdial_Ticket=ticket))
        self.successResultOf(result)

    def test_pickupFailed(self) -> None:
        """C3: a target that is down fails its own dial, in the agent's words."""
        protocol, control = self.control()
        first, _ = self.dial()
        second, _ = self.dial()
        ready = lines(control)[-2]
        report = {
            "command": "pickup-failed",
            "connPath": ready["connPath"],
            "dial": ready["dial"],
            "err": "127.0.0.1:9876: connection refused",
            "reason": "target-refused",
        }
        protocol.dataReceived(json.dumps(report).encode() + b"\n")
        failure = self.failureResultOf(first, TargetRefused)
        self.assertEqual(str(failure.value), "127.0.0.1:9876: connection refused")
        self.assertNoResult(second)

    def test_heldByAnotherOwner(self) -> None:
        """A4: another owner gets 409 and an audit entry; the live agent hears nothing."""
        _, control = self.control()
        before = control.value()
        other = self.server.runner("wolf-*")
        protocol, transport = self.server.connect()
        protocol.dataReceived(rawUpgrade("/api/v1/revdial?runnerid=wolf-1", other))
        self.assertEqual(parse(transport.value()).status, 409)
        self.assertEqual(control.value(), before)
        self.assertIn("claim-refused", [entry.event for entry in self.server.events()])

    def test_heldDuringGrace(self) -> None:
        """Another owner gets 409 during the grace period too, and is told how long."""
        from twisted.internet.error import ConnectionLost
        from twisted.python.failure import Failure

        protocol, _ = self.control()
        protocol.connectionLost(Failure(ConnectionLost()))
        other = self.server.runner("wolf-*")
        protocol, transport = self.server.connect()
        protocol.dataReceived(rawUpgrade("/api/v1/revdial?runnerid=wolf-1", other))
        answer = parse(transport.value())
        self.assertEqual((answer.status, answer.headers.get("retry-after")), (409, "30"))

    def test_takeoverBySameOwner(self) -> None:
        """A1: the same owner takes over at once; the older connection is told why it ends."""
        _, older = self.control()
        _, newer = self.control()
        last = lines(older)[-1]
        self.assertEqual((last["command"], last["err"]), ("closing", "superseded"))
        self.assertGreater(last["retryAfter"], 0)
        self.assertTrue(older.disconnecting)
        self.assertFalse(newer.disconnecting)
        self.assertIn("takeover", [entry.event for entry in self.server.events()])

    def test_rotatedTokenIsTheSameOwner(self) -> None:
        """A rotated token takes over from the one before it."""
        record, _ = await_(self.server.tokens.list())[0][0], None
        self.control()
        _, secret = await_(self.server.tokens.rotate(record.id))
        _, transport = self.control(token=secret)
        self.assertFalse(transport.disconnecting)

    def test_revocationCutsAtOnce(self) -> None:
        """F3: revoking a token ends control connection, waiting dials and streams."""
        _, control = self.control()
        joined, _ = self.dial()
        ticket = lines(control)[-1]["ticket"]
        protocol, data = self.server.connect()
        protocol.dataReceived(rawUpgrade("/api/v1/revdial", self.token, Revdial_Ticket=ticket))
        self.successResultOf(joined)
        waiting, _ = self.dial()
        (record,) = await_(self.server.tokens.list())[0]
        await_(self.server.tokens.revoke(record.id))
        self.failureResultOf(waiting)
        self.assertTrue(control.disconnecting)
        self.assertTrue(data.disconnecting or data.aborted)
        self.assertIsNone(self.server.connections.status("wolf-1"))

    def test_deletedSessionCutsItsTunnel(self) -> None:
        """Deleting a session cuts its runner, and its token is worth nothing after."""
        session = self.server.session("ann")
        ann = self.server.user("ann")
        token = self.server.sessionToken(session)
        _, control = self.control(f"sandbox-{session.id}", token)
        self.assertEqual(self.server.delete(f"/api/v1/sessions/{session.id}", ann).status, 204)
        self.assertTrue(control.disconnecting)
        protocol, transport = self.server.connect()
        protocol.dataReceived(rawUpgrade(f"/api/v1/revdial?runnerid=sandbox-{session.id}", token))
        self.assertEqual(parse(transport.value()).status, 401)

    def test_userTokenForOwnSession(self) -> None:
        """A sandbox of the old kind carries its owner's token: that registers it."""
        session = self.server.session("ann")
        self.control(f"sandbox-{session.id}", self.server.user("ann"))

    def test_anyLetterCase(self) -> None:
        """D17: Upgrade words in any letter case, in lists."""
        protocol, transport = self.server.connect()
        protocol.dataReceived(
            request(
                "GET",
                "/api/v1/revdial?runnerid=wolf-1",
                self.token,
                headers={
                    "Connection": "keep-alive, UPGRADE",
                    "Upgrade": "WebSocket",
                    "Sec-WebSocket-Version": "13",
                    "Sec-WebSocket-Key": base64.b64encode(b"x" * 16).decode(),
                },
            )
        )
        self.assertEqual(parse(transport.value()).status, 101)
