"""
The two ends of a stream, for tests of how ends and breaks cross it.

L{played} is a service beside an agent, which does what its caller orders; the other
classes are callers, by what they speak: bytes on a socket, TLS, WebSocket.  All block.
"""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable

from .fleet import LIMIT, receive, reset

END = "end"
BREAK = "break"

SIZE = 3_000_000
"""Bytes of what must be whole: more than all buffers on the way."""


class Heard:
    """What services heard, by the name of the stream."""

    def __init__(self) -> None:
        self._heard: dict[str, str] = {}
        self._changed = threading.Condition()

    def put(self, name: str, what: str) -> None:
        with self._changed:
            self._heard[name] = what
            self._changed.notify_all()

    def of(self, name: str, limit: float = LIMIT) -> str:
        """What was heard on a stream, once it was."""
        with self._changed:
            self._changed.wait_for(lambda: name in self._heard, limit)
            return self._heard.get(name, "nothing")


def digest(data: bytes) -> bytes:
    return f"{len(data)} {hashlib.sha256(data).hexdigest()}".encode()


def played(heard: Heard) -> Callable[[socket.socket], None]:
    """A service that does what the first line of a connection says: C{ORDER NAME}."""

    def serve(connection: socket.socket) -> None:
        connection.settimeout(LIMIT)
        line = lineOf(connection)
        if line.startswith("GET "):
            # Behind an upgrade the stream begins.
            while lineOf(connection):
                pass
            connection.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: ends\r\n\r\n"
            )
            line = lineOf(connection)
        order, _, name = line.partition(" ")
        if order == "answer":
            connection.sendall(digest(receive(connection)))
        elif order == "first":
            connection.sendall(b"first")
            connection.shutdown(socket.SHUT_WR)
            heard.put(name, digest(receive(connection)).decode())
        elif order == "close":
            connection.sendall(bytes(SIZE))
        elif order == "break":
            connection.sendall(b"x")
            connection.recv(1)
            # On a unix socket what was not read is what makes it a break.
            reset(connection)
        elif order == "silence":
            connection.sendall(b"x")
            heard.put(name, howItEnds(connection))
        elif order == "linger":
            receive(connection)
            connection.settimeout(LIMIT)
            # Neither a byte nor an end: until the other side has had enough.
            while heard.of(name) == "nothing":
                pass

    serve.__name__ = "played"
    return serve


def lineOf(connection: socket.socket) -> str:
    line = b""
    while not line.endswith(b"\n"):
        piece = connection.recv(1)
        if not piece:
            break
        line += piece
    return line.decode().strip()


def howItEnds(connection: socket.socket) -> str:
    """Whether a socket ends in good order."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        return BREAK
    return END


class Bytes:
    """A caller with a socket."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(LIMIT)
        self.socket = connection

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def end(self) -> None:
        """End our direction."""
        self.socket.shutdown(socket.SHUT_WR)

    def read(self, size: int = 65536) -> bytes:
        """The next bytes; none at the end."""
        return self.socket.recv(size)

    def rest(self) -> tuple[bytes, str]:
        """All that comes, and how it ends."""
        data = bytearray()
        try:
            while piece := self.read():
                data += piece
        except (ConnectionError, ssl.SSLError):
            return bytes(data), BREAK
        return bytes(data), END

    def breakOff(self) -> None:
        """Break, as a process that dies."""
        reset(self.socket)

    def close(self) -> None:
        self.socket.close()


class Secure(Bytes):
    """
    A caller with TLS that ends its direction by C{close_notify}, and goes on reading.
    (C{SSLSocket} would wait for the other's.)
    """

    def __init__(self, connection: socket.socket, authority: str, host: str) -> None:
        super().__init__(connection)
        context = ssl.create_default_context(cafile=authority)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=host)
        self._do(self._tls.do_handshake)

    def _do(self, step: Callable[[], object]) -> object:
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                self._flush()
                data = self.socket.recv(65536)
                if data:
                    self._in.write(data)
                else:
                    self._in.write_eof()
            else:
                self._flush()
                return result

    def _flush(self) -> None:
        data = self._out.read()
        if data:
            self.socket.sendall(data)

    def send(self, data: bytes) -> None:
        self._tls.write(data)
        self._flush()

    def end(self) -> None:
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            # It waits for the other's; ours is on its way.
            pass
        self._flush()

    def read(self, size: int = 65536) -> bytes:
        try:
            data = self._do(lambda: self._tls.read(size))
        except ssl.SSLZeroReturnError:
            return b""
        assert isinstance(data, bytes)
        return data


class WebSocket(Bytes):
    """
    A caller that speaks WebSocket.

    @ivar eof: Whether the end mark is agreed.
    """

    def __init__(self, connection: Bytes, eof: bool) -> None:
        self.socket = connection.socket
        self._below = connection
        self._eof = eof
        self._held = b""

    def _frame(self, opcode: int, data: bytes) -> None:
        size = len(data)
        if size < 126:
            head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
        else:
            head = struct.pack("!BBQ", 0x80 | opcode, 0xFF, size)
        key = os.urandom(4)
        mask = int.from_bytes((key * (size // 4 + 1))[:size])
        self._below.send(head + key + (int.from_bytes(data) ^ mask).to_bytes(size))

    def send(self, data: bytes) -> None:
        self._frame(2, data)

    def end(self) -> None:
        if self._eof:
            self._frame(2, b"")
        else:
            self._frame(8, struct.pack("!H", 1000))

    def _take(self, size: int) -> bytes:
        while len(self._held) < size:
            piece = self._below.read()
            if not piece:
                raise ConnectionError("it ended without a close frame")
            self._held += piece
        taken, self._held = self._held[:size], self._held[size:]
        return taken

    def read(self, size: int = 65536) -> bytes:
        first, length = self._take(2)
        if length == 126:
            (length,) = struct.unpack("!H", self._take(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self._take(8))
        data = self._take(length)
        opcode = first & 15
        if opcode == 8:
            code = struct.unpack("!H", data[:2])[0] if data else 1005
            if code not in (1000, 1001, 1005):
                raise ConnectionError(f"closed with {code}")
            return b""
        if opcode == 2 and not data and first & 0x80 and self._eof:
            return b""
        return data if opcode in (0, 2) else self.read(size)


__all__ = ["BREAK", "END", "SIZE", "Bytes", "Heard", "Secure", "WebSocket", "digest", "played"]
