"""
Bad input at every door of the server and of the agent, as processes.  After
each visit the process serves others as before, and nothing of the visit is
left; that no log has a traceback or a secret is checked with every test.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .fleet import (
    LIMIT,
    LONG,
    FleetCase,
    Program,
    desktop,
    echo,
    inParallel,
    receive,
    reset,
    until,
)

HEAD_TIMEOUT = 1.0
"""Seconds for a head, as these tests set it."""

SHARE = 64
"""Places that strangers of one address have, as these tests set it."""

PATIENCE = 1.0
"""Seconds that another user's screenshot may take meanwhile, on two processors that serve many."""

OURS = "Revdial-Features: raw, targets, echo, eof, tickets, goodbye"

CLIENT_HELLO = bytes.fromhex(
    "16030100c4010000c00303" + "5a" * 32 + "20" + "a5" * 32 + "0004130113030100007300"
)


def frame(opcode: int, payload: bytes, *, mask: bool = True, first: int | None = None) -> bytes:
    """A short WebSocket frame."""
    length = len(payload)
    head = bytes([0x80 | opcode if first is None else first])
    bit = 0x80 if mask else 0
    size = bytes([bit | length]) if length < 126 else bytes([bit | 126]) + struct.pack(">H", length)
    # A mask of zeros is a mask.
    return head + size + (b"\0\0\0\0" if mask else b"") + payload


def closeCode(data: bytes) -> int | None:
    """The code of the close frame at the end of what a server sent."""
    at = data.rfind(b"\x88")
    if at < 0 or len(data) < at + 4:
        return None
    code: int = struct.unpack(">H", data[at + 2 : at + 4])[0]
    return code


class ServerDoorCase(FleetCase):
    """A server, and somebody who works there: an agent and its user."""

    SETTINGS = {
        **FleetCase.SETTINGS,
        "tunnel.grace_period": "0.3",
        "http.head_timeout": str(HEAD_TIMEOUT),
        "http.max_unauthenticated_per_address": str(SHARE),
    }

    def open(self, **limits: Any) -> None:
        """Open the doors."""
        self.house = self.server(**limits)
        self.other = self.session(self.house)
        self.witness = self.agent(self.house, self.other.key, self.other.token, desktop, echo)
        self.mine = self.runnerToken("wolf-*")
        self.screenshot(self.house, self.other)
        self.house.settle()

    def runnerToken(self, *patterns: str) -> str:
        return self.token(self.house, kind="runner", patterns=list(patterns))

    def unharmed(self, what: str) -> None:
        """The server serves others, and has nothing of the visitor."""
        try:
            self.screenshot(self.house, self.other)
            self.asBefore(self.house)
        except AssertionError as error:
            raise AssertionError(f"after {what}: {error}") from None

    @contextmanager
    def othersWork(self, patience: float = PATIENCE) -> Iterator[list[float]]:
        """Screenshots are taken all the while, and none takes long."""
        times: list[float] = []
        failures: list[Exception] = []
        over = threading.Event()

        def work() -> None:
            while not over.is_set():
                try:
                    times.append(self.screenshot(self.house, self.other))
                except Exception as error:
                    failures.append(error)
                time.sleep(0.02)

        working = threading.Thread(target=work)
        working.start()
        try:
            yield times
        finally:
            over.set()
            working.join()
        self.assertEqual(failures, [])
        self.assertLess(max(times), patience, f"{len(times)} screenshots took up to {max(times)} s")


class RefusalTests(ServerDoorCase):
    """Requests that are refused, each with its status."""

    def request(
        self, *fields: str, target: str = "/api/v1/revdial?runnerid=wolf-9", method: str = "GET"
    ) -> bytes:
        lines = [f"{method} {target} HTTP/1.1", "Host: cp.example", *fields, "", ""]
        return "\r\n".join(lines).encode()

    def test_refused(self) -> None:
        """Each answer has the status that docs/wire.md gives it, and costs nothing."""
        self.open()
        upgrade = "Connection: Upgrade", "Upgrade: revdial", OURS
        webSocket = "Connection: Upgrade", "Upgrade: websocket"
        mine = f"Authorization: Bearer {self.mine}"
        session = self.session(self.house)
        theirs = f"Authorization: Bearer {session.token}"
        control = "/api/v1/revdial?runnerid="
        ids = f"revdial.dialer={'0' * 32}&revdial.req={'0' * 32}"
        cases: list[tuple[str, bytes, int]] = [
            ("no token", self.request(*upgrade), 401),
            ("a bad token", self.request(*upgrade, "Authorization: Bearer x"), 401),
            ("no scheme", self.request(*upgrade, f"Authorization: {self.mine}"), 401),
            (
                "another session's key",
                self.request(*upgrade, theirs, target=control + self.other.key),
                403,
            ),
            (
                "an unknown session's key",
                self.request(*upgrade, theirs, target=control + "sandbox-ses_" + "0" * 26),
                403,
            ),
            (
                "beyond its pattern",
                self.request(*upgrade, mine, target=control + "hydra-1"),
                403,
            ),
            ("no key", self.request(*upgrade, mine, target="/api/v1/revdial"), 400),
            ("a bad key", self.request(*upgrade, mine, target=control + "%2e%2e%2fx"), 400),
            ("a key of 129", self.request(*upgrade, mine, target=control + "w" * 129), 400),
            ("two keys", self.request(*upgrade, mine, target=control + "wolf-1&runnerid=b"), 400),
            ("no upgrade", self.request(mine), 426),
            ("another upgrade", self.request(mine, "Connection: Upgrade", "Upgrade: h2c"), 426),
            ("no version of WebSocket", self.request(mine, *webSocket), 426),
            (
                "no Sec-WebSocket-Key",
                self.request(mine, *webSocket, "Sec-WebSocket-Version: 13"),
                400,
            ),
            (
                "version 8 of WebSocket",
                self.request(
                    mine,
                    *webSocket,
                    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
                    "Sec-WebSocket-Version: 8",
                ),
                426,
            ),
            ("an unknown ticket", self.request(*upgrade, mine, "Revdial-Ticket: abc"), 404),
            ("an empty ticket", self.request(*upgrade, mine, "Revdial-Ticket:"), 404),
            (
                "two tickets",
                self.request(*upgrade, mine, "Revdial-Ticket: a", "Revdial-Ticket: b"),
                404,
            ),
            (
                "unknown ids",
                self.request(*upgrade, mine, target=f"/api/v1/revdial?{ids}"),
                404,
            ),
            (
                "one id only",
                self.request(*upgrade, mine, target=f"/api/v1/revdial?revdial.dialer={'0' * 32}"),
                404,
            ),
            (
                "a key that is no base64",
                self.request(
                    mine, *webSocket, "Sec-WebSocket-Key: ####", "Sec-WebSocket-Version: 13"
                ),
                400,
            ),
            (
                "a body with an upgrade",
                self.request(*upgrade, mine, "Content-Length: 3") + b"abc",
                400,
            ),
            (
                "a body to come with an upgrade",
                self.request(*upgrade, mine, "Transfer-Encoding: chunked"),
                400,
            ),
            ("another method", self.request(*upgrade, mine, method="POST"), 405),
            (
                "an unknown session's picture",
                self.request(
                    f"Authorization: Bearer {self.house.admin}",
                    target="/api/v1/external-agents/ses_0/screenshot",
                ),
                404,
            ),
            (
                "both lengths",
                self.request(mine, "Content-Length: 1", "Transfer-Encoding: chunked"),
                400,
            ),
            ("two lengths", self.request(mine, "Content-Length: 1", "Content-Length: 1"), 400),
            ("another coding", self.request(mine, "Transfer-Encoding: gzip, chunked"), 400),
            ("a folded line", self.request(mine, "X: a\r\n b"), 400),
            ("a blank before the colon", self.request(mine, "Content-Length : 1"), 400),
            ("two hosts", self.request(mine, "Host: evil"), 400),
            ("bare line feeds", self.request(mine).replace(b"\r\n", b"\n"), 400),
            ("a NUL", self.request(mine, "X: a\0b"), 400),
            ("absolute form", self.request(mine, target="http://evil/api/v1/revdial"), 400),
            ("two slashes", self.request(mine, target="//evil/api/v1/revdial"), 400),
            ("dot segments", self.request(mine, target="/api/v1/../v1/revdial"), 400),
            ("CONNECT", self.request(mine, target="127.0.0.1:22", method="CONNECT"), 405),
            ("a head of 20 kB", self.request(mine, "X: " + "x" * 20_000), 431),
            ("500 fields", self.request(mine, *(f"X-{n}: 1" for n in range(500))), 431),
            ("an endless line", b"GET /" + b"x" * 2_000_000, 431),
            ("an endless word", b"x" * 2_000_000, 400),
            ("TLS", CLIENT_HELLO, 400),
            ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
            ("ssh", b"SSH-2.0-OpenSSH_9.2\r\n", 400),
            ("zeros", bytes(100_000), 400),
            ("noise", os.urandom(100_000), 400),
        ]
        wrong: list[tuple[object, ...]] = []
        for what, data, status in cases:
            answer = self.head(data)
            found = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
            if found is None or int(found.group(1)) != status:
                wrong.append((what, status, answer[:300]))
            if b"application/problem+json" not in answer and status != 426:
                wrong.append((what, "no problem document", answer[:300]))
        self.assertEqual(wrong, [], "\n".join(map(str, wrong)))
        self.unharmed("all that is refused")

    def head(self, data: bytes) -> bytes:
        """An answer's head; the connection might live on, and is closed."""
        with self.house.connect() as connection:
            try:
                connection.sendall(data)
            except ConnectionError:
                pass
            answer = b""
            while b"\r\n\r\n" not in answer:
                piece = connection.recv(65536)
                if not piece:
                    break
                answer += piece
            return answer

    def test_slow(self) -> None:
        """
        E4: half a head, a byte a second, nothing at all: cut off when the head's time
        is up, while others work.
        """
        self.open()
        data = self.request("Connection: Upgrade", "Upgrade: revdial", OURS)

        def visit(number: int) -> tuple[float, bytes]:
            began = time.monotonic()
            with self.house.connect() as connection:
                connection.settimeout(0.2)
                kind, sent = number % 3, 0
                if kind == 0:
                    connection.sendall(data[: len(data) // 2])
                answer = b""
                while time.monotonic() - began < LIMIT:
                    if kind == 1 and sent < len(data):
                        try:
                            connection.sendall(data[sent : sent + 1])
                        except ConnectionError:
                            break
                        sent += 1
                    try:
                        piece = connection.recv(65536)
                    except TimeoutError:
                        continue
                    except ConnectionError:
                        break
                    if not piece:
                        break
                    answer += piece
            return time.monotonic() - began, answer

        with self.othersWork():
            results = inParallel(30, visit)
        for number, (took, answer) in enumerate(results):
            self.assertLess(took, HEAD_TIMEOUT + 2, (number, answer))
            if number % 3 < 2:
                self.assertIn(b"HTTP/1.1 408 ", answer)
        self.unharmed("slow heads")

    def test_crowd(self) -> None:
        """
        E5: a thousand idle connections from one address: that address gets its share
        and no more, all are gone after the head's time, and another address is served
        as if nobody were there.
        """
        self.open()
        with self.othersWork() as times:
            crowd = []
            for _ in range(1000):
                try:
                    crowd.append(self.house.connect("127.0.0.2"))
                except OSError:
                    break
            self.assertGreater(len(crowd), 900)
            strangers = self.house.look()["table"]["strangers"]
            self.assertLessEqual(strangers, SHARE + 2)
            refused = sum(b" 503 " in receive(each, HEAD_TIMEOUT + 4) for each in crowd)
            for each in crowd:
                each.close()
        self.assertGreater(refused, 800)
        if LONG:
            print(
                f"\na crowd of {len(crowd)}: {len(times)} screenshots, at most {max(times):.3f} s"
            )
        self.unharmed("a crowd")


class ControlDoorTests(ServerDoorCase):
    """Who is let in, and then misbehaves: only that connection ends."""

    def control(
        self, key: str, *, form: str = "revdial", ours: bool = True
    ) -> tuple[bytes, socket.socket]:
        fields = [OURS] if ours else []
        head, connection = self.house.upgrade(f"?runnerid={key}", self.mine, *fields, form=form)
        self.addCleanup(connection.close)
        return head, connection

    def test_lines(self) -> None:
        """C11: bad control lines end their own connection, with the reason said."""
        self.open()
        lines: list[tuple[str, bytes]] = [
            ("a line too long", b'{"command":"keep-alive","x":"' + b"x" * 5000 + b'"}\n'),
            ("an endless line", b"x" * 5_000_000),
            ("NULs", b"\0" * 100 + b"\n"),
            ("no UTF-8", b'{"command":"\xff\xfe"}\n'),
            ("no JSON", b"GET / HTTP/1.1\r\n\r\n"),
            ("no object", b"[1]\n"),
            ("an empty line", b"\n"),
            ("deep JSON", b"[" * 4000 + b"\n"),
            ("an echo of the wrong type", b'{"command":"keep-alive","echo":5}\n'),
            ("a dial of the wrong type", b'{"command":"pickup-failed","dial":[]}\n'),
            ("TLS", CLIENT_HELLO + b"\n"),
        ]
        for number, (what, data) in enumerate(lines):
            head, connection = self.control(f"wolf-{number}")
            self.assertIn(b" 101 ", head)
            try:
                connection.sendall(data)
            except ConnectionError:
                pass
            said = receive(connection, LIMIT)
            if what != "an endless line":
                self.assertIn(b'"command":"closing","err":"protocol-error"', said, (what, said))
            connection.close()
            self.screenshot(self.house, self.other)
        self.unharmed("bad lines")

    def test_frames(self) -> None:
        """F10: frames that no honest agent sends end their own connection with a code."""
        self.open()
        line = b'{"command":"keep-alive"}\n'
        frames: list[tuple[str, bytes, int]] = [
            ("a text message", frame(1, line), 1003),
            ("an unmasked frame", frame(2, line, mask=False), 1002),
            ("a reserved bit", frame(2, line, first=0xC2), 1002),
            ("a reserved opcode", frame(3, line), 1002),
            ("a continuation of nothing", frame(0, line), 1002),
            ("a ping in fragments", frame(9, b"", first=0x09), 1002),
            ("a long ping", frame(9, b"x" * 200), 1002),
            ("17 MiB announced", b"\x82\xff" + struct.pack(">Q", 17 << 20) + b"\0\0\0\0", 1009),
            ("2^63 announced", b"\x82\xff" + b"\xff" * 8 + b"\0\0\0\0", 1002),
            ("a close of one byte", frame(8, b"x"), 1002),
            ("a close code of 999", frame(8, struct.pack(">H", 999)), 1002),
            ("a line too long", frame(2, b"x" * 5000), 4002),
        ]
        wrong = []
        for number, (what, data, code) in enumerate(frames):
            head, connection = self.control(f"wolf-{number}", form="websocket")
            self.assertIn(b" 101 ", head)
            connection.sendall(data)
            said = b""
            connection.settimeout(LIMIT)
            while closeCode(said) is None and (piece := connection.recv(65536)):
                said += piece
            connection.close()
            if closeCode(said) != code:
                wrong.append((what, code, closeCode(said), said[-200:]))
            self.screenshot(self.house, self.other)
        self.assertEqual(wrong, [], "\n".join(map(str, wrong)))
        self.unharmed("bad frames")

    def test_closeStorm(self) -> None:
        """Two hundred WebSocket connections that close or reset at every moment."""
        self.open()

        def visit(number: int) -> None:
            _, connection = self.house.upgrade(
                f"?runnerid=wolf-{number % 10}", self.mine, OURS, form="websocket"
            )
            match number % 4:
                case 0:
                    connection.sendall(frame(8, struct.pack(">H", 1000)))
                    connection.close()
                case 1:
                    reset(connection)
                case 2:
                    connection.sendall(frame(8, b"") * 50)
                    reset(connection)
                case _:
                    connection.close()

        def visits(worker: int) -> None:
            for number in range(worker, 200, 10):
                visit(number)

        with self.othersWork():
            self.assertEqual(inParallel(10, visits), [None] * 10)
        self.unharmed("a storm of closes")

    def test_flood(self) -> None:
        """
        A hundred thousand keep-alives as fast as one agent can, with and without an
        answer being read: others are served meanwhile.
        """
        self.open()
        count = 100_000
        asks = b'{"command":"keep-alive","echo":"x"}\n'
        plain = b'{"command":"keep-alive"}\n'
        fails = b'{"command":"pickup-failed","connPath":"/revdial","dial":"x","err":"x"}\n'
        for what, line, reads in (
            ("plain", plain, True),
            ("asking", asks, False),
            ("fails", fails, True),
        ):
            _, connection = self.control(f"wolf-{what}")
            began = time.monotonic()
            with self.othersWork() as times:
                try:
                    for _ in range(count // 1000):
                        connection.sendall(line * 1000)
                    if reads:
                        connection.sendall(b'{"command":"keep-alive","echo":"end"}\n')
                        said = b""
                        while b'"echo":"end"' not in said:
                            said = said[-100:] + connection.recv(65536)
                    else:
                        time.sleep(1.0)
                except ConnectionError:
                    # Who does not read its answers is dropped.
                    self.assertFalse(reads)
                took = time.monotonic() - began
            connection.close()
            if LONG:
                print(
                    f"\nflood {what}: {count} lines in {took:.2f} s;"
                    f" {len(times)} screenshots meanwhile, at most {max(times):.3f} s"
                )
            self.unharmed(f"a flood of {what}")


class PickUpDoorTests(ServerDoorCase):
    """Data connections that are not for those who open them."""

    def asked(self, connection: socket.socket) -> dict[str, Any]:
        """The next C{conn-ready} of a control connection."""
        connection.settimeout(LIMIT)
        data = b""
        while True:
            data += connection.recv(65536)
            for line in data.split(b"\n")[:-1]:
                message: dict[str, Any] = json.loads(line)
                if message["command"] == "conn-ready":
                    return message

    def test_tickets(self) -> None:
        """
        C4, F7: a ticket is for its own agent, once; wrong attempts use nothing up, and a
        flood of them delays nobody.
        """
        self.open()
        _, control = self.house.upgrade("?runnerid=wolf-1", self.mine, OURS)
        self.addCleanup(control.close)
        stranger = self.runnerToken("wolf-*")
        answers: list[Any] = []
        dialling = threading.Thread(target=lambda: answers.append(self.house.dial("wolf-1", None)))
        dialling.start()
        asked = self.asked(control)
        ticket = asked["ticket"]
        self.secrets.append(ticket)

        def status(token: str, *fields: str, query: str = "") -> int:
            head, connection = self.house.upgrade(query, token, *fields)
            connection.close()
            return int(head.split(b" ")[1])

        self.assertEqual(status(stranger, f"Revdial-Ticket: {ticket}"), 403)
        self.assertEqual(status(self.other.token, f"Revdial-Ticket: {ticket}"), 403)
        self.assertEqual(status(self.mine, f"Revdial-Ticket: {ticket[:-1]}"), 404)
        self.assertEqual(status(self.mine, f"Revdial-Ticket: {asked['dial']}"), 404)
        self.assertEqual(
            status(self.mine, query=f"?revdial.dialer={asked['dial']}&revdial.req={asked['dial']}"),
            404,
        )
        head, data = self.house.upgrade("", self.mine, f"Revdial-Ticket: {ticket}")
        self.assertIn(b" 101 ", head)
        dialling.join()
        ((answer, stream),) = answers
        self.assertIsNone(answer["error"])
        stream.sendall(b"mine")
        self.assertEqual(data.recv(10), b"mine")
        self.assertEqual(status(self.mine, f"Revdial-Ticket: {ticket}"), 404)
        with self.othersWork() as times:

            def some(worker: int) -> set[int]:
                return {status(self.mine, f"Revdial-Ticket: {worker}-{n}") for n in range(100)}

            self.assertEqual(inParallel(5, some), [{404}] * 5)
        if LONG:
            print(f"\n500 wrong tickets: {len(times)} screenshots, at most {max(times):.3f} s")
        stream.sendall(b"still")
        self.assertEqual(data.recv(10), b"still")
        for each in (stream, data, control):
            each.close()
        self.unharmed("wrong tickets")

    def test_oldIds(self) -> None:
        """C4: the old wire's ids serve the token that registered, once."""
        self.open()
        _, control = self.house.upgrade("?runnerid=wolf-1", self.mine, form="hijack")
        self.addCleanup(control.close)
        stranger = self.runnerToken("wolf-*")
        dialling = threading.Thread(target=lambda: self.house.dial("wolf-1", None)[1].close())
        dialling.start()
        path = self.asked(control)["connPath"]
        query = path.partition("/revdial")[2]
        seen = []
        for token, asked in (
            (stranger, query),
            (self.mine, query.replace("revdial.req=", "revdial.req=0")),
            (self.mine, query),
            (self.mine, query),
        ):
            head, connection = self.house.upgrade(asked, token, form="websocket")
            seen.append(int(head.split(b" ")[1]))
            connection.close()
        self.assertEqual(seen, [403, 404, 101, 404])
        dialling.join()
        control.close()
        self.assertNotIn(query.partition("revdial.req=")[2], self.house.text)
        self.unharmed("wrong ids")

    def test_dataFrames(self) -> None:
        """Bad frames on a data connection end that stream, as broken, and no other."""
        self.open()
        _, control = self.house.upgrade("?runnerid=wolf-1", self.mine, OURS)
        self.addCleanup(control.close)
        _, steady = self.house.dial(self.other.key, "echo")
        for what, bad in (
            ("text", frame(1, b"x")),
            ("unmasked", frame(2, b"x", mask=False)),
            ("too large", b"\x82\xff" + struct.pack(">Q", 17 << 20) + b"\0\0\0\0"),
            ("behind the end", frame(2, b"") + frame(2, b"x")),
            ("noise", os.urandom(1000)),
            ("half a frame", frame(2, b"x" * 100)[:50]),
        ):
            answers: list[Any] = []
            dialling = threading.Thread(
                target=lambda kept: kept.append(self.house.dial("wolf-1", None)), args=(answers,)
            )
            dialling.start()
            ticket = self.asked(control)["ticket"]
            self.secrets.append(ticket)
            head, data = self.house.upgrade(
                "", self.mine, f"Revdial-Ticket: {ticket}", form="websocket"
            )
            self.assertIn(b" 101 ", head, what)
            data.sendall(bad)
            if what == "half a frame":
                data.shutdown(socket.SHUT_RDWR)
            else:
                # An honest peer would answer the close frame: this one goes.
                data.settimeout(LIMIT)
                self.assertTrue(data.recv(200), what)
                data.shutdown(socket.SHUT_RDWR)
            dialling.join()
            ((answer, stream),) = answers
            self.assertIsNone(answer["error"], what)
            self.assertLess(len(receive(stream)), 200, what)
            stream.close()
            data.close()
            self.echoes(steady, what.encode())
        steady.close()
        control.close()
        self.unharmed("bad frames on data connections")


class EvilServer:
    """
    A server's port: each connection is the test's.

    @ivar url: Where it is.
    """

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=100)
        self._socket.settimeout(LIMIT)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._open: list[socket.socket] = []

    def accept(self) -> tuple[bytes, socket.socket]:
        """The next request's head, and its connection."""
        connection, _ = self._socket.accept()
        self._open.append(connection)
        connection.settimeout(LIMIT)
        head = b""
        while b"\r\n\r\n" not in head:
            piece = connection.recv(65536)
            if not piece:
                break
            head += piece
        return head, connection

    def waiting(self) -> bool:
        """Whether somebody connects within half a second."""
        self._socket.settimeout(0.5)
        try:
            self._open.append(self._socket.accept()[0])
        except TimeoutError:
            return False
        finally:
            self._socket.settimeout(LIMIT)
        return True

    def stop(self) -> None:
        """Close everything."""
        self._socket.close()
        for each in self._open:
            each.close()


SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: revdial\r\nConnection: Upgrade\r\n"
    + OURS.encode()
    + b"\r\n\r\n"
)


class AgentDoorTests(FleetCase):
    """The agent in the hands of a server that means no good."""

    def setUp(self) -> None:
        super().setUp()
        self.evil = EvilServer()
        self.addCleanup(self.evil.stop)
        self.elsewhere = EvilServer()
        self.addCleanup(self.elsewhere.stop)
        self.secret = "hl-a-token-that-is-secret-0123456789"
        self.secrets.append(self.secret)
        self.limits = {
            "helix_revdial.agent.reconnect.ReconnectPolicy": {"maxDelay": 0.1},
            "helix_revdial.revdial.client.ServerPath": {"timeout": 0.5},
        }

    def begin(self) -> None:
        """The agent comes, and is served as it should be."""
        address = self.named(echo)
        self.program = Program(
            "agent0",
            self.directory,
            [
                "helix-revdial-agent", f"--server={self.evil.url}", "--runner-id=wolf-1",
                "--reconnect=0.1", f"--target={address}",
            ],
            {"RUNNER_TOKEN": self.secret},
            self.limits,
            [],
        )  # fmt: skip
        self.programs.append(self.program)
        self.program.start()
        control = self.registered()
        self.serves(control)
        self.program.settle()
        control.close()

    def registered(self) -> socket.socket:
        """Let the agent's next control connection in, whichever form it tries."""
        while True:
            head, connection = self.evil.accept()
            if b"runnerid=wolf-1" in head and b"Upgrade: revdial" in head:
                connection.sendall(SWITCH)
                return connection
            connection.close()

    def ask(self, control: socket.socket, number: int, **words: Any) -> None:
        ready = {
            "command": "conn-ready",
            "connPath": "/revdial",
            "dial": f"{number:032x}",
            "ticket": f"ticket-{number}",
            **words,
        }
        control.sendall(json.dumps(ready).encode() + b"\n")

    def serves(self, control: socket.socket) -> None:
        """A dial works as it should."""
        self.ask(control, 7)
        while True:
            head, data = self.evil.accept()
            if b"ticket-7" in head:
                break
            data.close()
        data.sendall(SWITCH + b"he")
        data.sendall(b"llo")
        got = b""
        while len(got) < 5:
            piece = data.recv(5 - len(got))
            self.assertTrue(piece, "the stream ended")
            got += piece
        self.assertEqual(got, b"hello")
        data.shutdown(socket.SHUT_WR)
        self.assertEqual(receive(data), b"")
        data.close()

    def unharmed(self) -> None:
        """The agent is back, serves, and has nothing of what was before."""
        control = self.registered()
        self.serves(control)
        self.asBefore(self.program)
        self.assertFalse(self.elsewhere.waiting(), "the agent was led elsewhere")
        control.close()

    def test_answers(self) -> None:
        """What no server of ours answers: the agent says why, and tries again."""
        self.begin()
        elsewhere = self.elsewhere.url.encode()
        problem = json.dumps({"status": 401, "detail": f"bad token {self.secret}"}).encode()
        answers = [
            b"",
            os.urandom(5000),
            b"HTTP/1.1 101 Switch",
            CLIENT_HELLO,
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<h1>welcome</h1>",
            b"HTTP/1.1 302 Found\r\nLocation: " + elsewhere + b"/\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 307 Moved\r\nLocation: //"
            + elsewhere[7:]
            + b"/\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\n" + b"X: y\r\n" * 100_000,
            b"HTTP/1.1 200 OK\r\nX: " + b"x" * 5_000_000,
            b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000,
            b"HTTP/1.1 401 No\r\nContent-Type: application/problem+json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(problem), problem),
            b"HTTP/1.1 500 No\r\nContent-Type: text/plain\r\nContent-Length: 99999999\r\n\r\n"
            + b"\x1b[31m\r\n" * 100_000,
        ]
        for answer in answers:
            # Raw, and the WebSocket that may follow it in the same attempt.
            for _ in range(2):
                _, connection = self.evil.accept()
                try:
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_WR)
                except OSError:
                    pass
                connection.close()
        self.assertNotIn("\x1b", self.program.text)
        at = len(self.program.text)
        # That raw was refused is remembered: from now on only WebSocket would come.
        self.program.end()
        self.program.start()
        self.unharmed()
        self.assertNotIn("Traceback", self.program.text[at:])

    def test_silentAnswers(self) -> None:
        """Half a head, a byte now and then, nothing: the agent's own limit ends the attempt."""
        self.begin()
        for words in (b"", b"HTTP/1.1 10", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: rev"):
            for _ in range(2):
                _, connection = self.evil.accept()
                began = time.monotonic()
                connection.settimeout(0.1)
                while time.monotonic() - began < LIMIT:
                    try:
                        connection.sendall(words[:1])
                        words = words[1:]
                        if not connection.recv(1):
                            break
                    except TimeoutError:
                        continue
                    except OSError:
                        break
                self.assertLess(time.monotonic() - began, 3)
                connection.close()
        self.unharmed()

    def test_lines(self) -> None:
        """C11, F4, F5: bad lines and paths that lead elsewhere end their connection or dial."""
        self.begin()
        host = f"127.0.0.1:{self.elsewhere.port}"
        for line in (
            b"x" * 5_000_000,
            b'{"command":"keep-alive","echo":"' + b"x" * 5000 + b'"}\n',
            b"\0\n",
            b"\xff\xfe\n",
            b"[]\n",
            b"[" * 4000 + b"\n",
            b'{"command":"conn-ready"}\n',
            b'{"command":"goodbye","delay":"soon"}\n',
            b'{"command":"goodbye","delay":-1}\n',
            b'{"command":"closing","err":"\\u001b[31m%s","retryAfter":0.1}\n'
            % self.secret.encode(),
        ):
            control = self.registered()
            try:
                control.sendall(line)
            except OSError:
                pass
            receive(control)
            control.close()
        for path in (
            f"//{host}/revdial",
            f"http://{host}/revdial",
            f"\\\\{host}\\revdial",
            f"/\\{host}/revdial",
            "/etc/passwd",
            "/revdial/../../x",
            "/revdial?x#y",
            "/revdial?a b",
            "revdial",
            "",
            f"/revdial@{host}",
            f"/revdial\r\nHost: {host}",
        ):
            control = self.registered()
            self.ask(control, 1, connPath=path)
            # It ends the connection, or says that the dial cannot be answered.
            control.settimeout(LIMIT)
            said = b""
            while piece := control.recv(65536):
                said += piece
                if b"pickup-failed" in said:
                    break
            control.close()
        self.assertNotIn("\x1b", self.program.text)
        self.unharmed()

    def test_floods(self) -> None:
        """
        A hundred thousand keep-alives, and more dials than an agent takes at a time:
        answered or refused, and the next dial works.
        """
        self.begin()
        control = self.registered()
        began = time.monotonic()
        for _ in range(100):
            control.sendall(b'{"command":"keep-alive"}\n' * 1000)
        self.serves(control)
        took = time.monotonic() - began
        self.assertLess(took, LIMIT)
        control.close()
        control = self.registered()

        # Nobody reads: the agent must not keep what it would say.
        control.settimeout(5)
        try:
            for _ in range(100):
                control.sendall(b'{"command":"keep-alive","echo":"x"}\n' * 1000)
        except OSError:
            pass
        control.close()
        control = self.registered()
        before = self.program.status("VmHWM")
        for number in range(2000):
            self.ask(control, 100 + number, target="nowhere")
        said = b""
        while said.count(b"unknown-target") < 2000:
            said += control.recv(65536)
        self.serves(control)
        self.assertLess(self.program.status("VmHWM") - before, 32 * 1024)
        control.close()
        if LONG:
            print(f"\nagent: 100,000 keep-alives in {took:.2f} s")
        self.unharmed()

    def test_dataConnections(self) -> None:
        """A server that takes dial-backs and does not answer them, or with nonsense."""
        self.begin()
        control = self.registered()
        answers = [None, b"", os.urandom(500), b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"]
        for number, answer in enumerate(answers):
            self.ask(control, number)
            _, data = self.evil.accept()
            if answer is not None:
                data.sendall(answer)
                data.close()
        until(lambda: self.program.look()["table"]["dials"] == 0, "no dial is under way")
        control.close()
        self.program.end()
        self.program.start()
        self.unharmed()
