"""Tests for L{helix_revdial.desktop.display}."""

from __future__ import annotations

import os

from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.desktop.display import (
    PROBE_TIMEOUT,
    NoDisplayFound,
    WaylandDisplay,
    X11Display,
    findDisplay,
    probe,
)


class FindDisplayTests(SynchronousTestCase):
    """Which display an environment describes."""

    def reason(self, environment: dict[str, str], named: str | None = None) -> str:
        found = findDisplay(environment, named)
        assert isinstance(found, NoDisplayFound), found
        return found.reason

    def test_x11(self) -> None:
        """C{DISPLAY} alone is X11, in each form that it has."""
        for name in [":0", ":99.0", "localhost:10.0", "unix:1", "[::1]:0", "tcp/host:2"]:
            self.assertEqual(findDisplay({"DISPLAY": name}), X11Display(name))

    def test_wayland(self) -> None:
        """C{WAYLAND_DISPLAY} is a socket in C{XDG_RUNTIME_DIR}, or a path."""
        self.assertEqual(
            findDisplay({"WAYLAND_DISPLAY": "wayland-1", "XDG_RUNTIME_DIR": "/run/user/1"}),
            WaylandDisplay("/run/user/1/wayland-1"),
        )
        self.assertEqual(findDisplay({"WAYLAND_DISPLAY": "/w/0"}), WaylandDisplay("/w/0"))

    def test_waylandBeforeX11(self) -> None:
        """Where both are set the X server is the compositor's own, which shows nothing."""
        both = {"WAYLAND_DISPLAY": "/w/0", "DISPLAY": ":0"}
        self.assertEqual(findDisplay(both), WaylandDisplay("/w/0"))

    def test_named(self) -> None:
        """What is named goes before the environment."""
        environment = {"WAYLAND_DISPLAY": "/w/0", "XDG_RUNTIME_DIR": "/r", "DISPLAY": ":0"}
        self.assertEqual(findDisplay(environment, ":7"), X11Display(":7"))
        self.assertEqual(findDisplay(environment, "wayland-7"), WaylandDisplay("/r/wayland-7"))
        self.assertEqual(findDisplay({}, "/run/w"), WaylandDisplay("/run/w"))

    def test_none(self) -> None:
        """The reason says what to set, and that there is a test card."""
        reason = self.reason({})
        for word in ["DISPLAY", "WAYLAND_DISPLAY", "XDG_RUNTIME_DIR", "--display", "--test-card"]:
            self.assertIn(word, reason)

    def test_waylandWithoutRuntimeDirectory(self) -> None:
        """A Wayland name without its directory is not silently something else."""
        reason = self.reason({"WAYLAND_DISPLAY": "wayland-0", "DISPLAY": ":0"})
        self.assertIn("XDG_RUNTIME_DIR", reason)

    def test_nonsense(self) -> None:
        """A C{DISPLAY} that is none is named in the reason."""
        self.assertIn("'nonsense'", self.reason({"DISPLAY": "nonsense"}))


class EnvironmentTests(SynchronousTestCase):
    """The environment of the programs that are run."""

    base = {"PATH": "/bin", "DISPLAY": ":0", "WAYLAND_DISPLAY": "w", "XAUTHORITY": "/x"}

    def test_x11(self) -> None:
        """Programs for X11 see no Wayland display, which many would prefer."""
        self.assertEqual(
            X11Display(":5").environment(self.base),
            {"PATH": "/bin", "DISPLAY": ":5", "XAUTHORITY": "/x"},
        )

    def test_wayland(self) -> None:
        """Programs for Wayland see no X display, and the socket's whole path."""
        self.assertEqual(
            WaylandDisplay("/r/wayland-1").environment(self.base),
            {
                "PATH": "/bin",
                "WAYLAND_DISPLAY": "/r/wayland-1",
                "XDG_RUNTIME_DIR": "/r",
                "XAUTHORITY": "/x",
            },
        )


class ProbeTests(SynchronousTestCase):
    """Whether somebody listens at a display."""

    def test_noDisplay(self) -> None:
        """Without a display the reason is the one found before."""
        probing = Deferred.fromCoroutine(probe(MemoryReactorClock(), NoDisplayFound("because")))
        self.assertEqual(self.successResultOf(probing), "because")

    def test_waylandSocketMissing(self) -> None:
        """A socket that is not there, or is a file, is told without connecting."""
        path = self.mktemp()
        reactor = MemoryReactorClock()
        probing = Deferred.fromCoroutine(probe(reactor, WaylandDisplay(path)))
        self.assertIn("is the compositor running", self.successResultOf(probing) or "")
        with open(path, "w"):
            pass
        probing = Deferred.fromCoroutine(probe(reactor, WaylandDisplay(os.path.abspath(path))))
        self.assertIn("is not a socket", self.successResultOf(probing) or "")
        self.assertEqual(reactor.unixClients, [])

    def test_x11NobodyAnswers(self) -> None:
        """The file and the abstract name are tried, each for a limited time."""
        reactor = MemoryReactorClock()
        probing = Deferred.fromCoroutine(probe(reactor, X11Display(":55")))
        self.assertNoResult(probing)
        reactor.advance(PROBE_TIMEOUT)
        self.assertNoResult(probing)
        reactor.advance(PROBE_TIMEOUT)
        self.assertEqual(
            self.successResultOf(probing),
            "nobody answers at the x11 display :55: is it running?",
        )
        paths = [client[0] for client in reactor.unixClients]
        self.assertEqual(paths, ["/tmp/.X11-unix/X55", "\0/tmp/.X11-unix/X55"])
        self.assertEqual(reactor.getDelayedCalls(), [])

    def test_x11OverTCP(self) -> None:
        """A display with a host is asked at port 6000 and its number."""
        reactor = MemoryReactorClock()
        Deferred.fromCoroutine(probe(reactor, X11Display("127.0.0.1:3.0")))
        self.assertEqual(reactor.tcpClients[0][:2], ("127.0.0.1", 6003))
