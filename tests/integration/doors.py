"""A server whose doors are knocked at with bytes by hand."""

from __future__ import annotations

import statistics
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .fleet import (
    FleetCase,
    desktop,
    echo,
)

HEAD_TIMEOUT = 1.0
"""Seconds for a head, as these tests set it."""

SHARE = 64
"""Places that strangers of one address have, as these tests set it."""

PATIENCE = 1.0
"""Seconds that half of another user's screenshots may take meanwhile."""

MOST = 6.0
"""Seconds that any of them may take, on two processors that serve many."""

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
    def othersWork(self) -> Iterator[list[float]]:
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
        said = f"{len(times)} screenshots took up to {max(times)} s"
        self.assertLess(statistics.median(times), PATIENCE, said)
        self.assertLess(max(times), MOST, said)
