"""
Short streams by the thousand, in one thread: their callers, and the service that
they lead to.

The callers end in turn as callers do: after the answer; by a half-close, upon which
the service ends too; when the service has ended; and now and then by a reset.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable

from .fleet import reset

RESETS = 500
"""Of so many, one is reset."""

PATIENCE = 30.0
"""Seconds in which something must move."""


class ShortStreams:
    """
    See the module.

    @ivar port: Where the service is.
    @ivar done: Streams that went as they should.
    """

    def __init__(self) -> None:
        self.done = 0
        self._service = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._service.setblocking(False)
        self.port: int = self._service.getsockname()[1]
        self._poll = select.epoll()
        self._poll.register(self._service, select.EPOLLIN)
        self._open: dict[int, tuple[socket.socket, int | None, bytearray]] = {}
        self._begun = 0
        self._to: tuple[str, int] = ("127.0.0.1", 0)

    def run(
        self, port: int, count: int, concurrency: int, every: Callable[[], None] | None = None
    ) -> None:
        """
        C{count} streams by a port, so many at a time.

        @param every: Called after each tenth of them.
        """
        self._to = ("127.0.0.1", port)
        wanted, told = self.done + count, self.done
        self._begun = self.done
        for _ in range(min(concurrency, count)):
            self._begin()
        moved = time.monotonic()
        while self.done < wanted or self._open:
            for number, _ in self._poll.poll(1.0):
                if number == self._service.fileno():
                    self._accept()
                else:
                    before = self.done
                    self._serve(number)
                    if self.done > before:
                        moved = time.monotonic()
                        if self._begun < wanted:
                            self._begin()
            if self.done - told >= count // 10 and every is not None:
                told = self.done
                every()
            if time.monotonic() - moved > PATIENCE:
                raise AssertionError(f"{self.done} of {wanted} streams, and no more")

    def _begin(self) -> None:
        number, self._begun = self._begun, self._begun + 1
        connection = socket.create_connection(self._to)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        connection.send(self._word(number))
        if number % 3 == 1:
            connection.shutdown(socket.SHUT_WR)
        self._open[connection.fileno()] = connection, number, bytearray()
        self._poll.register(connection, select.EPOLLIN)

    def _word(self, number: int) -> bytes:
        # The service ends first where it is told to.
        return b"%c%011d" % (b"close"[0] if number % 3 == 2 else b"stay"[0], number)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._service.accept()
            except BlockingIOError:
                return
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open[connection.fileno()] = connection, None, bytearray()
            self._poll.register(connection, select.EPOLLIN)

    def _serve(self, which: int) -> None:
        connection, number, got = self._open[which]
        try:
            data = connection.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        got += data
        if number is None:
            if data:
                connection.send(data)
            if not data or (got.startswith(b"c") and len(got) == len(self._word(0))):
                self._leave(which)
            return
        word = self._word(number)
        if data and (len(got) < len(word) or number % 3):
            return  # more comes, or the end
        if got != word:
            raise AssertionError(f"the {number}th stream brought {bytes(got)!r}, not {word!r}")
        if number % RESETS == 0:
            del self._open[which]
            self._poll.unregister(which)
            reset(connection)
        else:
            self._leave(which)
        self.done += 1

    def _leave(self, which: int) -> None:
        self._open.pop(which)[0].close()

    def stop(self) -> None:
        """Close all."""
        self._poll.close()
        self._service.close()
        for connection, _, _ in self._open.values():
            connection.close()


__all__ = ["ShortStreams"]
