"""
An agent of the old wire, as the Go programs speak it: a control connection by
the hijack, data connections over WebSocket in fragments of 4,096 bytes with an
empty final frame, no close frame at the end.

Written against what those programs put on the wire, with plain sockets; it
shares no code with C{helix_revdial}.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from io import BufferedReader
from typing import cast

FRAGMENT = 4096
CHUNK = 32 * 1024
"""What Go's C{io.Copy} reads at a time: one message."""


def masked(first: int, payload: bytes) -> bytes:
    """A frame of at most L{FRAGMENT} bytes, as a client sends it."""
    length = len(payload)
    key = os.urandom(4)
    size = bytes([0x80 | length]) if length < 126 else b"\xfe" + struct.pack(">H", length)
    mask = int.from_bytes((key * (length // 4 + 1))[:length], "big")
    body = (int.from_bytes(payload, "big") ^ mask).to_bytes(length, "big")
    return bytes([first]) + size + key + body


def message(data: bytes) -> bytes:
    """A binary message in fragments, the last of them empty."""
    frames = []
    for at in range(0, len(data), FRAGMENT):
        frames.append(masked(0x02 if at == 0 else 0x00, data[at : at + FRAGMENT]))
    return b"".join(frames) + masked(0x80, b"")


def payloads(connection: socket.socket) -> Iterator[bytes]:
    """The payload of a server's frames, as it comes."""
    file = cast(BufferedReader, connection.makefile("rb", 128 * 1024))
    while True:
        head = file.read(2)
        if len(head) < 2:
            return
        length = head[1] & 0x7F
        if length == 126:
            (length,) = struct.unpack(">H", file.read(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", file.read(8))
        opcode = head[0] & 0x0F
        if opcode == 9:
            connection.sendall(masked(0x8A, file.read(length)))
            continue
        if opcode == 8:
            return
        while length:
            piece = file.read1(min(length, CHUNK))
            if not piece:
                return
            length -= len(piece)
            yield piece


class GoPeer:
    """
    The agent: it registers, and answers every dial with its local service.

    @ivar local: That service's C{host:port}.
    """

    local: str

    def __init__(self, host: str, port: int, key: str, token: str) -> None:
        self._server = host, port
        self._token = token
        self._open: list[socket.socket] = []
        self._control = self._connect(
            f"/api/v1/revdial?runnerid={key}", "Connection: Upgrade", b" 200 "
        )
        threading.Thread(target=self._serve, daemon=True).start()

    def _connect(self, path: str, fields: str, status: bytes) -> socket.socket:
        connection = socket.create_connection(self._server)
        self._open.append(connection)
        connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: cp\r\nUser-Agent: Go-http-client/1.1\r\n"
            f"Authorization: Bearer {self._token}\r\n{fields}\r\n\r\n".encode()
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            piece = connection.recv(1)
            if not piece:
                raise ConnectionError(head.decode())
            head += piece
        if status not in head:
            raise ConnectionError(head.decode())
        return connection

    def _serve(self) -> None:
        try:
            for line in self._control.makefile("rb"):
                asked = json.loads(line)
                if asked["command"] == "conn-ready":
                    threading.Thread(
                        target=self._answer, args=(asked["connPath"],), daemon=True
                    ).start()
        except OSError:
            pass

    def _answer(self, path: str) -> None:
        data = self._connect(
            "/api/v1" + path,
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            b" 101 ",
        )
        host, _, port = self.local.rpartition(":")
        local = socket.create_connection((host, int(port)))
        self._open.append(local)

        def outward() -> None:
            try:
                while piece := local.recv(CHUNK):
                    data.sendall(message(piece))
            except OSError:
                pass
            # As the Go programs do: one end of stream closes both connections.
            self._shut(data, local)

        threading.Thread(target=outward, daemon=True).start()
        try:
            for piece in payloads(data):
                local.sendall(piece)
        except OSError:
            pass
        self._shut(local, data)

    def _shut(self, *connections: socket.socket) -> None:
        for connection in connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            connection.close()

    def stop(self) -> None:
        """Close everything."""
        self._shut(*self._open)
