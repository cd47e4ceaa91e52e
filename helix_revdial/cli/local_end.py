# -*- test-case-name: tests.cli.test_local_end -*-
"""
Where a forward listens on this machine, and where it leads: C{[LOCAL:]TARGET}, as people
write it, and what is to be found out or cleared away before anything listens there.
"""

from __future__ import annotations

import os
import re
import socket
import stat
from dataclasses import dataclass

from helix_revdial.cli.edge import plain

_TARGET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HOST = re.compile(r"\[(?P<six>[0-9A-Fa-f:.%a-z]+)\]|(?P<name>[A-Za-z0-9._-]+)")


@dataclass(frozen=True)
class Local:
    """
    Where one forward listens, and where it leads.

    @ivar path: A unix socket; else C{host} and C{port}, 0 for any that is free.
    @ivar target: C{None} for the agent's default.
    """

    target: str | None
    host: str = "127.0.0.1"
    port: int = 0
    path: str | None = None

    @classmethod
    def parse(cls, text: str) -> Local:
        """
        Read C{[LOCAL:]TARGET}.

        @raise ValueError: It is not that; says what is.
        """
        where, colon, name = text.rpartition(":")
        if not colon and name.isdigit():
            raise ValueError(f"{name}: a port alone leads nowhere; expected {name}:TARGET")
        if name and _TARGET.fullmatch(name) is None:
            raise ValueError(
                f"{text}: expected [LOCAL:]TARGET; {plain(name)!r} is no target's name"
            )
        if not name and not where:
            raise ValueError("expected [LOCAL:]TARGET")
        target = name or None
        if not colon:
            return cls(target)
        if where.startswith("unix:"):
            path = where.removeprefix("unix:")
            path = path.removeprefix("//")
            if not path.startswith("/") or len(os.fsencode(path)) > 107:
                raise ValueError(f"{text}: expected unix:///PATH:TARGET, at most 107 bytes of path")
            return cls(target, path=path)
        host, _, port = where.rpartition(":")
        if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
            raise ValueError(f"{text}: expected PORT, HOST:PORT or unix:///PATH before the target")
        if not host:
            return cls(target, port=int(port))
        match = _HOST.fullmatch(host)
        if match is None:
            raise ValueError(f"{text}: {plain(host)!r} is no host; an IPv6 address has brackets")
        return cls(target, match["six"] or match["name"], int(port))

    def __str__(self) -> str:
        return f"unix://{self.path}" if self.path is not None else place(self.host, self.port)


def place(host: str, port: int) -> str:
    """An address as people write it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def addressOf(name: str) -> str:
    """
    The address of a name of this machine.

    @raise OSError: It has none.
    """
    return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])


def removeStale(path: str) -> None:
    """
    Remove a socket file that nobody listens on any more.

    @raise OSError: Somebody does, or it is something else.
    """
    try:
        isSocket = stat.S_ISSOCK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if not isSocket:
        raise FileExistsError(17, "a file that is no socket is there")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise FileExistsError(98, "somebody listens there")


__all__ = ["Local", "addressOf", "place", "removeStale"]
