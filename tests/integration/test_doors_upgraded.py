"""
Bad input on what has been upgraded, control and data connections, as processes; see
L{tests.integration.test_doors}.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from typing import Any

from tests.integration.doors import CLIENT_HELLO, OURS, ServerDoorCase, closeCode, frame

from .fleet import (
    LIMIT,
    LONG,
    inParallel,
    receive,
    reset,
)


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
