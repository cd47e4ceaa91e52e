"""
Many readers of event streams in one thread, with one epoll loop.

Each does what a browser's C{EventSource} does: it reads, remembers the last id, comes
back with it when its stream is lost, and stays away when it is told to (204).  Each
checks, as they come, that the events of its session have the numbers that are next.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import time
from collections.abc import Callable

AGAIN = 0.3
"""Seconds after which a reader that lost its stream comes back."""

TERMINAL = (b'"status":"completed"', b'"status":"failed"', b'"status":"stopped"')

_ID = re.compile(rb"^id: (\d+)$", re.MULTILINE)


class Reader:
    """
    One of them.

    @ivar events: What it was given: the frames, whole.
    @ivar last: The number of the last of them.
    @ivar faults: What it was given and should not have been.
    @ivar over: Whether it has seen its session's end.
    @ivar resumed: How often it came back.
    @ivar beats: Heartbeats.
    """

    def __init__(self, crowd: Crowd, session: str) -> None:
        self.session = session
        self.events: list[bytes] = []
        self.last = 0
        self.faults: list[str] = []
        self.over = False
        self.resumed = -1
        self.beats = 0
        self.socket: socket.socket | None = None
        self._crowd = crowd
        self._due = 0.0
        self._head = False
        self._raw = b""
        self._left = -1
        self._text = b""

    def connect(self) -> None:
        """Ask for the events, from where it was."""
        crowd = self._crowd
        self.resumed += 1
        self._head, self._raw, self._left, self._text = False, b"", -1, b""
        lines = [
            f"GET /api/v1/sessions/{self.session}/events HTTP/1.1",
            "Host: helix",
            f"Authorization: Bearer {crowd.token}",
            "Accept: text/event-stream",
            *([f"Last-Event-ID: {self.last}"] if self.last else []),
        ]
        try:
            self.socket = socket.create_connection(crowd.address, timeout=10)
            self.socket.sendall("\r\n".join([*lines, "", ""]).encode())
        except OSError:
            self.lost()
            return
        self.socket.setblocking(False)
        crowd.selector.register(self.socket, selectors.EVENT_READ, self)

    def lost(self) -> None:
        """The stream is over: come back, unless there is nothing more."""
        if self.socket is not None:
            try:
                self._crowd.selector.unregister(self.socket)
            except KeyError:
                pass
            self.socket.close()
            self.socket = None
        if not self.over:
            self._crowd.later.append((time.monotonic() + AGAIN, self))

    def readable(self) -> None:
        """Take what there is."""
        assert self.socket is not None
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.lost()
            return
        self._raw += data
        if not self._head and not self._answered():
            return
        if self._unchunk():
            # The end of the answer: clean, so all that came is whole.
            if self._text:
                self.faults.append(f"half an event at a clean end: {self._text!r}")
            self.lost()

    def _answered(self) -> bool:
        head, end, rest = self._raw.partition(b"\r\n\r\n")
        if not end:
            return False
        self._head, self._raw = True, rest
        status = head[9:12]
        if status == b"204":
            self.over = True
            self.lost()
            return False
        if status != b"200":
            self.faults.append(f"answered with {head!r}")
            self.over = True
            self.lost()
            return False
        return True

    def _unchunk(self) -> bool:
        """@return: Whether the answer has ended."""
        raw = self._raw
        try:
            while raw:
                size, end, rest = raw.partition(b"\r\n")
                if not end:
                    return False
                length = int(size, 16)
                if length == 0:
                    return rest.startswith(b"\r\n")
                if len(rest) < length + 2:
                    return False
                self._text += rest[:length]
                raw = rest[length + 2 :]
        finally:
            self._raw = raw
            self._parse()
        return False

    def _parse(self) -> None:
        *frames, self._text = self._text.split(b"\n\n")
        for frame in frames:
            if frame.startswith(b":"):
                self.beats += 1
                continue
            found = _ID.search(frame)
            if found is None:
                continue
            number = int(found[1])
            if number != self.last + 1:
                self.faults.append(f"{number} came after {self.last}: {frame!r}")
            self.last = number
            self.events.append(frame)
            self._crowd.seen += 1
            if b"\nevent: status\n" in frame and any(word in frame for word in TERMINAL):
                self.over = True

    def statuses(self) -> list[str]:
        """The states that it was told of."""
        return [
            json.loads(frame.partition(b"\ndata: ")[2])["status"]
            for frame in self.events
            if b"\nevent: status\n" in frame
        ]


class Crowd:
    """
    All of them.

    @ivar seen: Events that were received, by all.
    """

    def __init__(self, port: int, token: str) -> None:
        self.address = ("127.0.0.1", port)
        self.token = token
        self.readers: list[Reader] = []
        self.later: list[tuple[float, Reader]] = []
        self.selector = selectors.DefaultSelector()
        self.seen = 0

    def add(self, session: str) -> Reader:
        """One more reader, which connects at once."""
        reader = Reader(self, session)
        self.readers.append(reader)
        reader.connect()
        return reader

    def run(self, condition: Callable[[], bool], what: str, limit: float = 60.0) -> None:
        """Read until C{condition}."""
        deadline = time.monotonic() + limit
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"after {limit:g} s still not: {what}")
            for key, _ in self.selector.select(0.05):
                key.data.readable()
            now = time.monotonic()
            if self.later and self.later[0][0] <= now:
                due = [reader for at, reader in self.later if at <= now]
                self.later = [(at, reader) for at, reader in self.later if at > now]
                for reader in due:
                    reader.connect()

    def allOver(self) -> bool:
        """Whether each has seen the end."""
        return all(reader.over for reader in self.readers)

    def close(self) -> None:
        """Let go of every socket."""
        for reader in self.readers:
            reader.over = True
            reader.lost()
        self.selector.close()
