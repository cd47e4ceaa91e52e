"""
Bad input at the server's doors, as processes.  After each visit the process serves
others as before, and nothing of the visit is left; that no log has a traceback or a
secret is checked with every test.
"""

from __future__ import annotations

import os
import re
import time

from tests.integration.doors import CLIENT_HELLO, HEAD_TIMEOUT, OURS, SHARE, ServerDoorCase

from .fleet import (
    LIMIT,
    LONG,
    inParallel,
    receive,
)


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
            self.assertLess(took, HEAD_TIMEOUT + 9, (number, answer))
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
