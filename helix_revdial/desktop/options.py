# -*- test-case-name: tests.desktop.test_options -*-
"""
What the desktop service is told at its start, as one typed value.

Owns the meaning of C{--listen}, C{--size} and C{--display}.  Reads no
environment and opens nothing: the command line hands everything in.
"""

from __future__ import annotations

import ipaddress
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

DEFAULT_LISTEN = "127.0.0.1:9876"
"""Where the agent's default target expects the desktop of a sandbox."""

DEFAULT_SIZE = (1280, 720)
"""Width and height of the test card, in pixels."""

MAX_SIDE = 8192
"""The longest side of a test card, in pixels."""

MAX_SOCKET_PATH = 107
"""Bytes of a unix socket's path (C{sun_path} less its closing NUL)."""


@dataclass(frozen=True, slots=True)
class TCPAddress:
    """
    Listen on TCP.

    @ivar host: An IP address.
    @ivar port: The port; 0 lets the system choose.
    """

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UNIXAddress:
    """
    Listen on a unix socket.

    @ivar path: The absolute path of the socket.
    """

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


def parseListen(text: str) -> TCPAddress | UNIXAddress:
    """
    Read the value of C{--listen}.

    @param text: C{127.0.0.1:9876}, C{[::1]:9876}, C{localhost:9876},
        C{unix:/path} or C{unix:///path}.
    @raise ValueError: With a sentence that says what is expected.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if path.startswith("///"):
            path = path[2:]
        if not path.startswith("/") or "\0" in path:
            raise ValueError(f"--listen {text}: a unix socket needs an absolute path: unix:/path")
        if len(path.encode()) > MAX_SOCKET_PATH:
            raise ValueError(
                f"--listen {text}: the path is longer than {MAX_SOCKET_PATH} bytes,"
                " which is as much as the system takes"
            )
        return UNIXAddress(path)
    matched = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\[\]]*)):([0-9]{1,5})", text)
    if matched is None:
        raise ValueError(f"--listen {text}: expected host:port or unix:/path")
    host = matched[1] or matched[2] or "127.0.0.1"
    port = int(matched[3])
    if host == "localhost":
        host = "127.0.0.1"
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(
            f"--listen {text}: expected an IP address of this machine, such as 127.0.0.1"
        ) from None
    if port > 65535:
        raise ValueError(f"--listen {text}: ports end at 65535")
    return TCPAddress(host, port)


def parseSize(text: str) -> tuple[int, int]:
    """
    Read the value of C{--size}: C{1280x720}.

    @return: Width and height in pixels.
    @raise ValueError: With a sentence that says what is expected.
    """
    matched = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    if matched is None:
        raise ValueError(f"--size {text}: expected WIDTHxHEIGHT, such as 1280x720")
    width, height = int(matched[1]), int(matched[2])
    if not (16 <= width <= MAX_SIDE and 16 <= height <= MAX_SIDE):
        raise ValueError(f"--size {text}: each side has 16 to {MAX_SIDE} pixels")
    return width, height


@dataclass(frozen=True, slots=True)
class DesktopOptions:
    """
    Everything that the desktop service is told.

    @ivar listen: Where to listen, as L{parseListen} reads it.
    @ivar testCard: Answer with a drawn card and a clipboard in memory.
    @ivar size: Width and height of the test card, in pixels.
    @ivar display: C{:0} (X11) or a Wayland socket's name or path; L{None}
        takes what C{environment} says.
    @ivar session: Whose desktop this is, for the test card.
    @ivar environment: The environment of the programs that are run; also
        where C{DISPLAY}, C{WAYLAND_DISPLAY}, C{XDG_RUNTIME_DIR} and C{PATH}
        are looked up.  The command line passes C{os.environ}.
    @ivar python: The interpreter that runs the X11 capture.
    """

    listen: str = DEFAULT_LISTEN
    testCard: bool = False
    size: tuple[int, int] = DEFAULT_SIZE
    display: str | None = None
    session: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    python: str = sys.executable
