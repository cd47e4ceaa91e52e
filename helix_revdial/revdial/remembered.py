# -*- test-case-name: tests.revdial.test_remembered -*-
"""
Who was connected before the server was started again.

A server that has just started knows nobody, and whoever asks it for a runner would be
told that there is none, a second before the runner is back.  So the names of the
connected are written down while it runs, and awaited after a start as if they had just
been lost: for the settle time dials wait for them, and their names are kept for their
owners.

The file has keys, owners, credentials' names and generations: nothing that lets anybody
in.  It is written at most every L{WRITE_EVERY} seconds, when something has changed, so
that it is there after a crash too.  A file that is missing, damaged or too old is
nothing: then nobody is awaited.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypedDict

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

WRITE_EVERY = 5.0
"""Seconds between two looks at whether there is something to write."""

MAX_AGE = 600.0
"""Seconds (wall clock) after which a file says nothing any more."""


class Known(TypedDict):
    """A runner that was connected or in grace."""

    key: str
    owner: str
    credential: str
    generation: int


class Remembered:
    """
    Writes down who is connected.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        path: Path,
        known: Callable[[], Iterable[Known]],
        wallClock: Callable[[], float],
    ) -> None:
        """
        @param path: The file, in a directory that is the server's.
        @param known: Everybody who is connected or in grace.
        @param wallClock: Seconds since 1970.
        """
        self._path = path
        self._known = known
        self._wallClock = wallClock
        self._written: list[Known] | None = None
        self._writtenAt = float("-inf")
        self._loop = LoopingCall(self.write)
        self._loop.clock = clock

    def read(self) -> list[Known]:
        """Who was connected when the file was last written, if that was lately."""
        try:
            found = json.loads(self._path.read_bytes())
            if not 0 <= self._wallClock() - found["written"] <= MAX_AGE:
                return []
            return [
                {
                    "key": str(each["key"]),
                    "owner": str(each["owner"]),
                    "credential": str(each["credential"]),
                    "generation": int(each["generation"]),
                }
                for each in found["runners"]
            ]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, KeyError) as error:
            self._log.warn(
                "{path} does not say who was connected: {why}", path=str(self._path), why=str(error)
            )
            return []

    def start(self) -> None:
        """Write from now on."""
        self._loop.start(WRITE_EVERY, now=False).addErrback(
            lambda failure: self._log.failure("Writing down who is connected failed.", failure)
        )

    def stop(self) -> None:
        """Write for the last time, while they are still connected."""
        if self._loop.running:
            self._loop.stop()
            self.write()

    def write(self) -> None:
        """Write, if there is something to say."""
        known = sorted(self._known(), key=lambda each: each["key"])
        now = self._wallClock()
        # A file that does not change must not grow old while the server runs.
        if known == self._written and now - self._writtenAt < MAX_AGE / 4:
            return
        text = json.dumps({"written": now, "runners": known})
        beside = self._path.with_name(self._path.name + ".new")
        try:
            with open(os.open(beside, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
                file.write(text)
            beside.replace(self._path)
        except OSError as error:
            self._log.warn("{path} cannot be written: {why}", path=str(self._path), why=str(error))
            return
        self._written = known
        self._writtenAt = now


__all__ = ["Known", "Remembered"]
