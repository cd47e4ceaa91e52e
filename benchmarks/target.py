"""
The service behind every tunnel: a source, a sink, an echo and a small HTTP server.

    python -m benchmarks.target PORT

What a connection is for is said by its first byte:

  - C{D}: it is sent zeros until it closes.
  - C{U}: what it sends is counted and dropped, unread (C{MSG_TRUNC}).
  - C{G}: it is HTTP; each request head is answered with 200 and 13 bytes.
  - C{C}: it is told, in a line, how many bytes came by C{U} so far, and how many
    connections are open besides its own.
  - anything else is sent back, and all that follows.

One process and one thread with an epoll of its own: it must cost less than what it
measures.
"""

from __future__ import annotations

import select
import socket
import sys

BLOCK = 256 * 1024
"""Bytes that a source offers at once: a block that stays in the cache."""

SINK = 1 << 20
"""Bytes that a sink takes at once."""

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world\n"

END_OF_HEAD = b"\r\n\r\n"


class Target:
    """Accepts and serves."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self._poll = select.epoll()
        self._connections: dict[int, socket.socket] = {}
        self._kinds: dict[int, bytes] = {}
        self._block = memoryview(bytes(BLOCK))
        self._scratch = bytearray(SINK)
        self._sunk = 0

    def run(self) -> None:
        """Serve for ever."""
        listening = self._listening.fileno()
        self._listening.setblocking(False)
        self._poll.register(listening, select.EPOLLIN)
        while True:
            for number, _ in self._poll.poll():
                if number == listening:
                    self._accept()
                    continue
                try:
                    goesOn = self._serve(number)
                except BlockingIOError:
                    continue
                except OSError:
                    goesOn = False
                if not goesOn:
                    self._kinds.pop(number, None)
                    self._connections.pop(number).close()

    def _accept(self) -> None:
        for _ in range(16):
            try:
                connection, _ = self._listening.accept()
            except BlockingIOError:
                return
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections[connection.fileno()] = connection
            self._poll.register(connection.fileno(), select.EPOLLIN)

    def _serve(self, number: int) -> bool:
        """
        Do what one connection is ready for.

        @return: Whether it goes on.
        """
        connection = self._connections[number]
        kind = self._kinds.get(number)
        if kind == b"D":
            connection.send(self._block)
            return True
        if kind == b"U":
            size = connection.recv_into(self._scratch, SINK, socket.MSG_TRUNC)
            self._sunk += size
            return size > 0
        data = connection.recv(65536)
        if not data:
            return False
        if kind is None:
            kind = self._kinds[number] = data[:1]
            if kind == b"D":
                self._poll.modify(number, select.EPOLLOUT)
                return True
            if kind == b"U":
                self._sunk += len(data)
                return True
        if kind == b"G":
            # Heads come whole over loopback; one that does not is answered with its end.
            connection.send(ANSWER * data.count(END_OF_HEAD))
        elif kind == b"C":
            connection.send(b"%d %d\n" % (self._sunk, len(self._connections) - 1))
        else:
            connection.send(data)
        return True


def main() -> None:
    """Listen on the port that is given."""
    with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024) as listening:
        Target(listening).run()


if __name__ == "__main__":
    main()
