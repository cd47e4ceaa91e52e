# -*- test-case-name: tests.agent.test_token -*-
"""
Where an agent's token comes from.

The token is asked for at each connection and kept nowhere, so that a file that
an operator replaces is used from the next connection on.  It is never part of
a C{repr}, a log line or an error text: those say where it comes from.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import Protocol

MAX_TOKEN = 4096
"""Bytes of a token; it travels in one header field."""


class TokenUnusable(ValueError):
    """There is no token, or none that could be sent; the text says what to do."""


class TokenSource(Protocol):
    """Gives the token for the connection that is about to be made."""

    @property
    def origin(self) -> str:
        """Where the token comes from, for people: C{"--token-file /etc/x"}."""

    def __call__(self) -> str:
        """
        @return: The token.
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
class TokenFile:
    """
    A file that holds nothing but the token.

    @ivar credentials: The directory that the service manager made for this
        process's credentials (C{CREDENTIALS_DIRECTORY} of systemd.exec(5)), if
        any.  What lies in it is guarded by access lists that a file's mode does
        not show.
    """

    path: str
    origin: str
    credentials: str | None = None

    def __call__(self) -> str:
        try:
            with open(self.path, "rb") as file:
                content = file.read(MAX_TOKEN + 2)
        except OSError as error:
            reason = (error.strerror or "cannot be read").lower()
            raise TokenUnusable(f"{self.origin}: {reason}") from None
        try:
            return _usable(content.decode("ascii").strip(), self.origin)
        except UnicodeDecodeError:
            # Without "from None" the traceback would hold the content.
            raise TokenUnusable(f"{self.origin}: holds more than a token") from None

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


def _usable(text: str, origin: str) -> str:
    if not text:
        raise TokenUnusable(f"{origin}: is empty")
    if len(text) > MAX_TOKEN or not text.isascii() or not text.isprintable() or " " in text:
        raise TokenUnusable(f"{origin}: holds more than a token")
    return text


__all__ = ["MAX_TOKEN", "Secret", "TokenFile", "TokenSource", "TokenText", "TokenUnusable"]
