# -*- test-case-name: tests.systemd.test_notify -*-
"""
One datagram to the service manager: the protocol of sd_notify(3).

L{Notifier} owns the socket and the form of a message.  When something is said,
and again where it did not get through, is L{Supervision
<helix_revdial.systemd.supervision.Supervision>}'s.

Invariants:

  - Nothing here ever waits: where the manager's queue is full, a message is not
    sent, and the caller hears so.
  - A value is one line; what it is made of cannot forge another assignment.
  - Without C{NOTIFY_SOCKET} nothing is opened and nothing is sent.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Mapping, Sequence

from twisted.logger import Logger

VARIABLE = "NOTIFY_SOCKET"
"""Where the service manager says what it listens on."""

MAX_DESCRIPTORS = 250
"""Descriptors that go with one message; Linux takes 253 (C{SCM_MAX_FD})."""

MAX_VALUE = 1024
"""Characters of a value that are sent."""


class Notifier:
    """
    Sends to the service manager's socket.

    @ivar enabled: Whether there is a manager that listens.
    """

    _log = Logger()

    def __init__(self, address: str | None) -> None:
        """
        @param address: A path, or C{@} and a name for a socket in the abstract
            name space; L{None} where nobody listens.
        """
        self._socket: socket.socket | None = None
        self._address = ""
        self._complained = False
        if not address:
            return
        if address[0] not in "/@":
            self._log.warn(
                "{variable} is no path and no abstract name; systemd is told nothing.",
                variable=VARIABLE,
            )
            return
        self._address = "\0" + address[1:] if address[0] == "@" else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)

    @classmethod
    def fromEnvironment(cls, environment: Mapping[str, str]) -> Notifier:
        """The notifier that C{NOTIFY_SOCKET} asks for."""
        return cls(environment.get(VARIABLE))

    @property
    def enabled(self) -> bool:
        return self._socket is not None

    def send(self, assignments: Mapping[str, str], descriptors: Sequence[int] = ()) -> bool:
        """
        Send one message.

        @param assignments: Such as C{{"READY": "1"}}.
        @param descriptors: Open files that go with it, L{MAX_DESCRIPTORS} at most.
        @return: Whether the manager has it.
        @raise ValueError: Too many descriptors.
        """
        if self._socket is None:
            return False
        if len(descriptors) > MAX_DESCRIPTORS:
            raise ValueError(f"at most {MAX_DESCRIPTORS} descriptors go with one message")
        lines = (f"{name}={_oneLine(value)}" for name, value in assignments.items())
        message = "\n".join(lines).encode("utf-8", "replace")
        ancillary = []
        if descriptors:
            rights = array.array("i", descriptors).tobytes()
            ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, rights))
        try:
            self._socket.sendmsg([message], ancillary, socket.MSG_NOSIGNAL, self._address)
        except BlockingIOError:
            return False
        except OSError as error:
            if not self._complained:
                self._complained = True
                self._log.warn(
                    "systemd cannot be told anything: {why}", why=os.strerror(error.errno or 0)
                )
            return False
        self._complained = False
        return True

    def close(self) -> None:
        """Send no more."""
        closing, self._socket = self._socket, None
        if closing is not None:
            closing.close()


def _oneLine(value: str) -> str:
    return "".join(" " if ord(each) < 32 else each for each in value[:MAX_VALUE])


__all__ = ["MAX_DESCRIPTORS", "VARIABLE", "Notifier"]
