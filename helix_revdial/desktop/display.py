# -*- test-case-name: tests.desktop.test_display -*-
"""
Which display is there: X11, Wayland, or none and why.

Reads an environment that is handed in, never the process's own.  Where both
are set, Wayland wins: the X server that a Wayland compositor runs for old
programs shows nothing of the desktop in its root window.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol

PROBE_TIMEOUT = 2.0
"""How long a display may take to accept a connection, in seconds."""

_X11 = re.compile(
    r"(?:(?:tcp|unix)/)?([A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})(?:\.[0-9]+)?"
)


@dataclass(frozen=True, slots=True)
class X11Display:
    """
    An X server.

    @ivar name: As in C{DISPLAY}: C{:0}, C{host:10.0}.
    """

    name: str
    kind = "x11"

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """The environment of programs that talk to this display and no other."""
        changed = {**base, "DISPLAY": self.name}
        changed.pop("WAYLAND_DISPLAY", None)
        return changed

    def absence(self) -> str | None:
        """Why there is surely nothing, without asking; the connection tells."""
        return None

    def endpoints(self, reactor: Any) -> list[IStreamClientEndpoint]:
        """Where this display listens, the likeliest first."""
        matched = _X11.fullmatch(self.name)
        if matched is None:
            return []
        host, number = matched[1].strip("[]"), int(matched[2])
        if host and host != "unix":
            return [HostnameEndpoint(reactor, host.encode("ascii"), 6000 + number)]
        path = f"/tmp/.X11-unix/X{number}"  # noqa: S108 - the place that X defines
        # Linux: the abstract name exists even where /tmp is not shared.
        return [
            UNIXClientEndpoint(reactor, path, PROBE_TIMEOUT),
            UNIXClientEndpoint(reactor, "\0" + path, PROBE_TIMEOUT),
        ]


@dataclass(frozen=True, slots=True)
class WaylandDisplay:
    """
    A Wayland compositor.

    @ivar path: The absolute path of its socket.
    """

    path: str
    kind = "wayland"

    @property
    def name(self) -> str:
        """The name of the socket, as in C{WAYLAND_DISPLAY}."""
        return os.path.basename(self.path)

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """The environment of programs that talk to this display and no other."""
        changed = {**base, "WAYLAND_DISPLAY": self.path}
        # Programs of the toolkit kind insist on it, though the path is absolute.
        changed.setdefault("XDG_RUNTIME_DIR", os.path.dirname(self.path))
        changed.pop("DISPLAY", None)
        return changed

    def absence(self) -> str | None:
        """Why there is surely nothing: a sentence, or L{None}."""
        try:
            found = os.stat(self.path)
        except OSError as e:
            return (
                f"the Wayland socket {self.path} cannot be used"
                f" ({e.strerror}): is the compositor running?"
            )
        if not stat.S_ISSOCK(found.st_mode):
            return f"{self.path} is not a socket: WAYLAND_DISPLAY names something else"
        return None

    def endpoints(self, reactor: Any) -> list[IStreamClientEndpoint]:
        """Where this display listens."""
        return [UNIXClientEndpoint(reactor, self.path, PROBE_TIMEOUT)]


@dataclass(frozen=True, slots=True)
class NoDisplayFound:
    """
    Nothing to look at.

    @ivar reason: Why, and what to do: one sentence.
    """

    reason: str
    kind = "none"


Display = X11Display | WaylandDisplay | NoDisplayFound

_ADVICE = (
    "set DISPLAY (X11), or WAYLAND_DISPLAY and XDG_RUNTIME_DIR (Wayland), name one with"
    " --display, or draw a test card with --test-card"
)


def findDisplay(environment: Mapping[str, str], named: str | None = None) -> Display:
    """
    Find the display that an environment describes.

    @param environment: Where C{DISPLAY} and so on are looked up.
    @param named: What C{--display} says: C{:0} and the like is X11, anything
        else is a Wayland socket's name or absolute path.
    @return: L{NoDisplayFound} with the reason where there is none.
    """
    wayland = environment.get("WAYLAND_DISPLAY", "")
    x11 = environment.get("DISPLAY", "")
    if named:
        isX11 = _X11.fullmatch(named) is not None
        wayland, x11 = ("", named) if isX11 else (named, "")
    if wayland.startswith("/"):
        return WaylandDisplay(wayland)
    if wayland:
        runtime = environment.get("XDG_RUNTIME_DIR", "")
        if not runtime.startswith("/"):
            return NoDisplayFound(
                f"there is no display: the Wayland display {wayland} is named, but"
                " XDG_RUNTIME_DIR, the directory of its socket, is not set"
            )
        return WaylandDisplay(os.path.join(runtime, wayland))
    if not x11:
        return NoDisplayFound(f"there is no display: {_ADVICE}")
    if _X11.fullmatch(x11) is None:
        return NoDisplayFound(f"there is no display: DISPLAY={x11!r} has no form that X knows")
    return X11Display(x11)


class _HangUp(Protocol):
    """Connected is all that we wanted to know."""

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.loseConnection()


async def probe(reactor: Any, display: Display) -> str | None:
    """
    Ask whether somebody listens at a display.

    @return: L{None} when a connection was accepted, else the reason.
    """
    if isinstance(display, NoDisplayFound):
        return display.reason
    absent = display.absence()
    if absent is not None:
        return absent
    for endpoint in display.endpoints(reactor):
        connecting = endpoint.connect(Factory.forProtocol(_HangUp))
        connecting.addTimeout(PROBE_TIMEOUT, reactor)
        try:
            await connecting
        except Exception:  # noqa: S112 - whatever it is, nobody answers there
            continue
        return None
    return f"nobody answers at the {display.kind} display {display.name}: is it running?"
