"""
How ends and breaks cross a stream: every way in, by every carrier, to targets on TCP
and on unix sockets.  The table in C{docs/half-close.md} is what was seen here.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trustme

from helix_revdial.revdial import features

from .ends import SIZE, Bytes, Heard, Secure, WebSocket, digest, played
from .fleet import LIMIT, FleetCase, Service, freePort, until
from .test_tcp_forward import twoPorts

DOCS = Path(__file__).parents[2] / "docs" / "half-close.md"

BEGIN = "<!-- seen by tests/integration/test_half_close.py -->\n"

BODY = bytes(range(256)) * 1000

TARGETS = ("tcp", "unix")

COLUMNS = (
    "from",
    "over",
    "caller ends first, target answers",
    "target ends first, caller goes on",
    "closed with 3 MB under way",
    "target breaks: caller hears",
    "caller breaks: target hears",
)

Word = str


def carriers() -> dict[str, dict[str, Any]]:
    """What the agent of each carrier is limited to."""
    every = features.ALL - {features.POOL}
    found: dict[str, dict[str, Any]] = {
        "raw": {"features": sorted(every)},
        "websocket eof": {"features": sorted(every - {"raw"})},
        "websocket": {"features": sorted(every - {"raw", "eof"})},
        "tls": {"features": sorted(every)},
    }
    found["pooled"] = {"features": sorted(features.ALL)}
    return found


class HalfCloseTests(FleetCase):
    """The table."""

    def setUp(self) -> None:
        super().setUp()
        authority = trustme.CA()
        issued = authority.issue_cert("localhost")
        self.chain = self.directory / "chain.pem"
        issued.private_key_and_cert_chain_pem.write_to_path(str(self.chain))
        self.authority = self.directory / "authority.pem"
        authority.cert_pem.write_to_path(str(self.authority))
        self.heard = Heard()
        self.numbers = iter(range(1_000_000))
        self.forwards: dict[tuple[str, str], int] = {}

    def begin(self, **linger: Any) -> None:
        """A server with a door of each kind, and an agent for each carrier."""
        self.secure = freePort()
        first = twoPorts()
        self.fleet = self.server(
            doors=(
                f'[[listen]]\nendpoint = "tcp:{self.secure}:interface=127.0.0.1"\n'
                f'tls.certificate = "{self.chain}"\n'
                f'[[listen]]\nendpoint = "unix:{self.directory}/door"\n'
                f'[forwards]\nports = "{first}-{min(first + 100, 65535)}"\n'
            ),
            limits=linger or None,
            limits__handshakes_per_second=1000,
            pool__per_runner=64,
        )
        self.operator = self.token(self.fleet, kind="user", user="ann", role="operator")
        runner = self.token(self.fleet, kind="runner", patterns=["wolf-*"])
        serve = played(self.heard)
        targets = []
        for name, path in (("tcp", None), ("unix", str(self.directory / "target"))):
            service = Service(serve, path)
            self.addCleanup(service.stop)
            targets.append(f"{name}={service.address}")
        for carrier, limits in carriers().items():
            key = self.keyOf(carrier)
            words: dict[str, Any] = {}
            if carrier == "tls":
                words["url"] = f"https://localhost:{self.secure}"
                words["flags"] = (f"--ca-file={self.authority}",)
            self.agent(
                self.fleet,
                key,
                runner,
                *targets,
                limits={"helix_revdial.revdial.client.ServerPath": limits},
                **words,
            )
            for target in TARGETS:
                status, body = self.fleet.request(
                    "POST",
                    "/api/v1/admin/forwards",
                    self.fleet.admin,
                    {"listen": "tcp:0", "runner": key, "target": target},
                )
                self.assertEqual(status, 201, body)
        for one in self.fleet.get("/api/v1/admin/forwards")["items"]:
            port = int(one["listen"].split(":")[1])
            self.forwards[one["runner"], one["target"]] = port
        # The first dial is what has connections parked for those that follow.
        caller = self.inProcess(self.keyOf("pooled"), "tcp")
        self.order(caller, "close")
        caller.rest()
        caller.close()
        until(self.parked, "connections are parked")

    def parked(self) -> int:
        """How many data connections wait for a dial."""
        count: int = self.fleet.get("/api/v1/admin/ledger")["tables"]["parked"]
        return count

    def keyOf(self, carrier: str) -> str:
        return "wolf-" + carrier.replace(" ", "-")

    # Ways in

    def ways(self) -> dict[str, Callable[[str, str], Bytes]]:
        """Every way in: what connects to a runner's target."""
        stream, webSocket = self.stream, self.webSocket
        return {
            "TCP forward": self.forwarded,
            "raw, TCP": lambda key, target: stream(self.plain(), key, target),
            "raw, unix": lambda key, target: stream(self.unix(), key, target),
            "raw, TLS": lambda key, target: stream(self.tls(), key, target),
            "WebSocket eof, TCP": lambda key, target: webSocket(self.plain(), key, target, True),
            "WebSocket eof, TLS": lambda key, target: webSocket(self.tls(), key, target, True),
            "WebSocket, TCP": lambda key, target: webSocket(self.plain(), key, target, False),
            "HTTP upgrade": self.upgraded,
            "in process": self.inProcess,
        }

    def plain(self) -> Bytes:
        return Bytes(self.fleet.connect())

    def unix(self) -> Bytes:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self.directory / "door"))
        return Bytes(connection)

    def tls(self) -> Bytes:
        connection = socket.create_connection(("127.0.0.1", self.secure), timeout=LIMIT)
        return Secure(connection, str(self.authority), "localhost")

    def forwarded(self, key: str, target: str) -> Bytes:
        port = self.forwards[key, target]
        return Bytes(socket.create_connection(("127.0.0.1", port), timeout=LIMIT))

    def inProcess(self, key: str, target: str) -> Bytes:
        answer, connection = self.fleet.dial(key, target)
        self.assertIsNone(answer["error"], answer)
        return Bytes(connection)

    def upgraded(self, key: str, target: str) -> Bytes:
        connection = self.plain()
        self.ask(connection, f"/api/v1/runners/{key}/http/{target}/", "ends")
        return connection

    def stream(self, connection: Bytes, key: str, target: str) -> Bytes:
        self.ask(connection, f"/api/v1/runners/{key}/stream?target={target}", "revdial")
        return connection

    def webSocket(self, connection: Bytes, key: str, target: str, eof: bool) -> Bytes:
        fields = ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
        fields += ["Revdial-Features: eof"] if eof else []
        path = f"/api/v1/runners/{key}/stream?target={target}"
        self.ask(connection, path, "websocket", *fields)
        return WebSocket(connection, eof)

    def ask(self, connection: Bytes, path: str, protocol: str, *fields: str) -> None:
        lines = [
            f"GET {path} HTTP/1.1",
            "Host: localhost",
            f"Authorization: Bearer {self.operator}",
            "Connection: Upgrade",
            f"Upgrade: {protocol}",
            *fields,
        ]
        connection.send("\r\n".join([*lines, "", ""]).encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            piece = connection.read(1)
            self.assertTrue(piece, head)
            head += piece
        self.assertTrue(head.startswith(b"HTTP/1.1 101 "), head)

    # What is seen

    def seen(self, connect: Callable[[], Bytes]) -> tuple[Word, ...]:
        """The cells of one way in, by one carrier, to one target."""
        return (
            self.answered(connect()),
            self.wentOn(connect()),
            self.closed(connect()),
            self.targetBreaks(connect()),
            self.callerBreaks(connect()),
        )

    def order(self, caller: Bytes, what: str) -> str:
        name = str(next(self.numbers))
        caller.send(f"{what} {name}\n".encode())
        return name

    def answered(self, caller: Bytes) -> Word:
        self.order(caller, "answer")
        caller.send(BODY)
        caller.end()
        data, _ = caller.rest()
        caller.close()
        return "yes" if data == digest(BODY) else "no"

    def wentOn(self, caller: Bytes) -> Word:
        name = self.order(caller, "first")
        data, _ = caller.rest()
        self.assertEqual(data, b"first")
        try:
            caller.send(BODY)
            caller.end()
            caller.close()
        except (OSError, ssl.SSLError):
            return "no"
        return "yes" if self.heard.of(name, 5) == digest(BODY).decode() else "no"

    def closed(self, caller: Bytes) -> Word:
        self.order(caller, "close")
        data, how = caller.rest()
        caller.close()
        return f"whole, {how}" if len(data) == SIZE else f"{len(data)} bytes, {how}"

    def targetBreaks(self, caller: Bytes) -> Word:
        self.order(caller, "break")
        self.assertEqual(caller.read(1), b"x")
        caller.send(b"yz")
        _, how = caller.rest()
        caller.close()
        return how

    def callerBreaks(self, caller: Bytes) -> Word:
        name = self.order(caller, "silence")
        self.assertEqual(caller.read(1), b"x")
        caller.breakOff()
        return self.heard.of(name)

    def test_theTableInTheDocs(self) -> None:
        """
        D1: what each way in can do by each carrier, half-close with data after it,
        breaks from either side and the last byte of a large body, is what the docs say.
        """
        self.begin()
        rows: dict[tuple[str, str], tuple[Word, ...]] = {}
        failures: list[str] = []

        def fill(way: str, connect: Callable[[str, str], Bytes]) -> None:
            try:
                for carrier in carriers():
                    key = self.keyOf(carrier)
                    cells = [
                        self.seen(lambda key=key, to=target: connect(key, to))  # type: ignore[misc]
                        for target in TARGETS
                    ]
                    rows[way, carrier] = tuple(
                        tcp if tcp == unix else f"{tcp} (unix: {unix})"
                        for tcp, unix in zip(*cells, strict=True)
                    )
            except BaseException as error:
                failures.append(f"{way}, {carrier}: {error!r}")
                raise

        threads = [
            threading.Thread(target=fill, args=each, daemon=True) for each in self.ways().items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(8 * LIMIT)
        self.assertEqual(failures, [])
        lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
        for way in self.ways():
            groups: dict[tuple[Word, ...], list[str]] = {}
            for carrier in carriers():
                groups.setdefault(rows[way, carrier], []).append(carrier)
            for cells, names in groups.items():
                lines.append("| " + " | ".join([way, ", ".join(names), *cells]) + " |")
        table = "\n".join(lines) + "\n"
        _, mark, rest = DOCS.read_text(encoding="utf-8").partition(BEGIN)
        self.assertTrue(mark, f"{DOCS} has lost its mark")
        self.assertEqual(rest.partition("\n\n")[0] + "\n", table, f"seen was:\n{table}")

    def test_linger(self) -> None:
        """
        D2: whichever way, by whichever carrier, a side that never ends does not keep
        a stream whose other side has: both are freed when the linger limit is over.
        """
        self.begin(
            **{
                f"helix_revdial.gateways.{name}": {"linger": 0.5}
                for name in ("stream.StreamGateway", "tcp_forward.Forwards")
            }
        )
        callers = []
        for way in ("TCP forward", "raw, TCP", "WebSocket eof, TCP"):
            for carrier in carriers():
                for target in TARGETS:
                    caller = self.ways()[way](self.keyOf(carrier), target)
                    name = self.order(caller, "linger")
                    caller.end()
                    callers.append((f"{way}, {carrier}, {target}", caller, name))
        for what, caller, name in callers:
            data, _ = caller.rest()
            self.assertEqual(data, b"", what)
            self.heard.put(name, "over")
            caller.close()
