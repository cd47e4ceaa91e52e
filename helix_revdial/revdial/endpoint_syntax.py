# -*- test-case-name: tests.listening.test_door,tests.agent.test_options -*-
"""
Whether the description of a server endpoint can be read, before anything is opened.
"""

from __future__ import annotations

from twisted.internet.endpoints import serverFromString


def checkSyntax(description: str) -> None:
    """
    Read a description, and open nothing.  What a service manager has passed (C{systemd:})
    is seen when it is opened.

    @raise Exception: Whatever the endpoint's parser has against it; a plugin's may raise
        anything.
    """
    kind, _, rest = description.partition(":")
    port = rest.partition(":")[0].removeprefix("port=")
    if kind in ("tcp", "tcp6") and int(port) not in range(65536):
        raise ValueError("a port is a number from 0 to 65535")
    if kind != "systemd":
        # None in the reactor's place: the parsers only pass it on.
        serverFromString(None, description)


__all__ = ["checkSyntax"]
