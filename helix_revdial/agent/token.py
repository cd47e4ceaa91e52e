# -*- test-case-name: tests.agent.test_token -*-
"""
Where an agent's token comes from.

The token is asked for at each connection, so that a file that an operator replaces is
used from the next connection on.  What was read is kept for as long as the file is the
one that was read (inode, size and times), since there is a connection for each dial.  It
is never part of a C{repr}, a log line or an error text: those say where it comes from.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

MAX_TOKEN = 4096
"""Bytes of a token; it travels in one header field."""


SETTLED = 2.0
"""
Seconds after a file's last change from which on its times tell every further change:
some file systems count time in seconds.
"""


class TokenUnusable(ValueError):
    """There is no token, or none that could be sent; the text says what to do."""


class TokenSource(Protocol):
    """Gives the token for the connection that is about to be made."""

    @property
    def origin(self) -> str:
        """Where the token comes from, for people: C{"--token-file /etc/x"}."""

    def __call__(self) -> str:
        """
        @return: The token; empty where none is sent.
        @raise TokenUnusable: There is none just now.
        """

    def warnings(self) -> list[str]:
        """What an operator should change about this source, one line each."""


class Secret:
    """A value that shows itself only to who asks for it by name."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The value itself."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __repr__(self) -> str:
        return "<secret>"


@dataclass(frozen=True, slots=True)
class TokenText:
    """
    A token given as text: by a flag or an environment variable.

    @ivar visible: Whether it stands in the arguments of the process.
    """

    origin: str
    secret: Secret = field(repr=False)
    visible: bool = False

    def __call__(self) -> str:
        return _usable(self.secret.reveal().strip(), self.origin)

    def warnings(self) -> list[str]:
        """See L{TokenSource.warnings}."""
        if not self.visible:
            return []
        return [
            f"{self.origin}: every user of this host can read the arguments of a process; "
            "use --token-file or RUNNER_TOKEN"
        ]


@dataclass(frozen=True, slots=True)
class NoToken:
    """The client certificate stands in a token's place: none is sent."""

    origin: str = "the client certificate, in its place"

    def __call__(self) -> str:
        return ""

    def warnings(self) -> list[str]:
        """See L{TokenSource.warnings}."""
        return []


class _Read:
    """What was read of a file, and which file that was."""

    __slots__ = ("file", "text")

    def __init__(self) -> None:
        self.file: tuple[int, ...] | None = None
        self.text = ""


@dataclass(frozen=True, slots=True)
class TokenFile:
    """
    A file that holds nothing but the token.

    @ivar wallClock: Seconds since 1970.
    @ivar credentials: The directory that the service manager made for this
        process's credentials (C{CREDENTIALS_DIRECTORY} of systemd.exec(5)), if
        any.  What lies in it is guarded by access lists that a file's mode does
        not show.
    """

    path: str
    origin: str
    credentials: str | None = None
    wallClock: Callable[[], float] = field(default=time.time, repr=False, compare=False)
    _read: _Read = field(default_factory=_Read, init=False, repr=False, compare=False)

    def __call__(self) -> str:
        read = self._read
        try:
            if read.file is not None and _identity(os.stat(self.path)) == read.file:
                return read.text
            read.file = None
            with open(self.path, "rb") as file:
                found = os.fstat(file.fileno())
                content = file.read(MAX_TOKEN + 2)
        except OSError as error:
            reason = (error.strerror or "cannot be read").lower()
            raise TokenUnusable(f"{self.origin}: {reason}") from None
        try:
            read.text = _usable(content.decode("ascii").strip(), self.origin)
        except UnicodeDecodeError:
            # Without "from None" the traceback would hold the content.
            raise TokenUnusable(f"{self.origin}: holds more than a token") from None
        if self.wallClock() - max(found.st_mtime, found.st_ctime) > SETTLED:
            read.file = _identity(found)
        return read.text

    def warnings(self) -> list[str]:
        """See L{TokenSource.warnings}."""
        try:
            mode = stat.S_IMODE(os.stat(self.path).st_mode)
        except OSError:
            return []
        directory = os.path.dirname(os.path.realpath(self.path))
        if self.credentials and directory == os.path.realpath(self.credentials):
            return []
        if mode & 0o077:
            return [f"{self.origin}: mode {mode:04o} lets others read it; chmod 0600 {self.path}"]
        return []


def _identity(found: os.stat_result) -> tuple[int, ...]:
    """Which file it is, in which state."""
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _usable(text: str, origin: str) -> str:
    if not text:
        raise TokenUnusable(f"{origin}: is empty")
    if len(text) > MAX_TOKEN or not text.isascii() or not text.isprintable() or " " in text:
        raise TokenUnusable(f"{origin}: holds more than a token")
    return text


__all__ = [
    "MAX_TOKEN",
    "SETTLED",
    "Secret",
    "TokenFile",
    "TokenSource",
    "TokenText",
    "TokenUnusable",
]
