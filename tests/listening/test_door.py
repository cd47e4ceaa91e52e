"""Doors, on a reactor in memory (real sockets: tests.integration.test_listening)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.listening.door import Door, DoorSettings, prepare
from helix_revdial.listening.errors import ListenError, NeedsRestart
from helix_revdial.listening.proxied import ProxiedFactory
from helix_revdial.listening.tls import TLSSettings

from .pems import leaf, whole, write
from .test_proxied import Places


class DoorTests(SynchronousTestCase):
    """L{Door}."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.inner = ServerFactory.forProtocol(Protocol)

    def door(self, settings: DoorSettings) -> Door:
        return Door(self.reactor, settings, self.inner, Places(10), lambda: 1.0)

    def refused(self, settings: DoorSettings) -> str:
        with self.assertRaises(ListenError) as caught:
            self.door(settings)
        return str(caught.exception)

    def test_opensOnce(self) -> None:
        """With privileges if there are any, and not again after them; then it closes."""
        door = self.door(DoorSettings("tcp:80:interface=192.0.2.1"))
        self.assertEqual(self.reactor.tcpServers, [])
        door.privilegedStartService()
        door.startService()
        ((port, factory, _, interface),) = self.reactor.tcpServers
        self.assertEqual((port, interface), (80, "192.0.2.1"))
        self.assertIs(factory, self.inner)
        self.assertIsNotNone(door.port)
        self.successResultOf(door.stopService())
        self.assertIsNone(door.port)

    def test_backlog(self) -> None:
        """E5: a crowd finds a long queue, unless the endpoint says how long."""
        for endpoint in ("tcp:1", "tcp6:1", "tcp:1:backlog=7"):
            self.door(DoorSettings(endpoint)).startService()
        self.assertEqual([server[2] for server in self.reactor.tcpServers], [1024, 1024, 7])

    def test_layers(self) -> None:
        """PROXY headers are read before TLS."""
        path = write(Path(self.mktemp()) / "one.pem", whole(leaf("one.example")))
        door = self.door(DoorSettings("tcp:1", TLSSettings(str(path)), ("10.0.0.0/8",)))
        door.startService()
        factory: Any = self.reactor.tcpServers[0][1]
        self.assertIsInstance(factory, ProxiedFactory)
        self.assertEqual(type(factory.wrapped).__name__, "TLSFactory")

    def test_replace(self) -> None:
        """Prepared first, in place when it is said; a refusal leaves everything."""
        settings = DoorSettings("tcp:1", None, ("10.0.0.0/8",))
        door = self.door(settings)
        door.startService()
        factory: Any = self.reactor.tcpServers[0][1]
        before, after = IPv4Address("TCP", "10.0.0.1", 1), IPv4Address("TCP", "192.0.2.1", 1)
        put = door.prepare(DoorSettings("tcp:1", None, ("192.0.2.0/24",)))
        self.assertRaises(ListenError, door.prepare, DoorSettings("tcp:1", None, ("nonsense",)))
        self.assertRaises(NeedsRestart, door.prepare, DoorSettings("tcp:2", None, ("unix",)))
        self.assertTrue(factory.sources.trusts(before))
        put()
        self.assertFalse(factory.sources.trusts(before))
        self.assertTrue(factory.sources.trusts(after))
        self.assertEqual(door.settings.proxies, ("192.0.2.0/24",))

    def test_replacedBeforeItOpens(self) -> None:
        """What was replaced while it was closed is what opens."""
        door = self.door(DoorSettings("tcp:1", None, ("10.0.0.0/8",)))
        door.prepare(DoorSettings("tcp:1", None, ("192.0.2.0/24",)))()
        door.startService()
        factory: Any = self.reactor.tcpServers[0][1]
        self.assertTrue(factory.sources.trusts(IPv4Address("TCP", "192.0.2.1", 1)))

    def test_refused(self) -> None:
        """What cannot be is said with the endpoint, before anything opens."""
        for settings, text in (
            (DoorSettings("nonsense:1"), "'nonsense:1'"),
            (DoorSettings("tcp:http"), "'tcp:http'"),
            (DoorSettings("tcp:1:nonsense=2"), "nonsense"),
            (DoorSettings("ssl:443"), "use tcp: and the door's tls settings"),
            (DoorSettings("haproxy:tcp:80"), "use the door's proxy_protocol setting"),
            (DoorSettings("systemd:domain=INET:index=0"), "systemd passed no such socket"),
            (DoorSettings("systemd:domain=INET:name=x"), "systemd passed no such socket"),
            (DoorSettings("tcp:1", TLSSettings()), "either a certificate or a directory"),
            (DoorSettings("tcp:1", None, ("x",)), "'x' is no network or address"),
        ):
            message = self.refused(settings)
            self.assertIn(text, message)
            self.assertIn(f"listen endpoint {settings.endpoint!r}: ", message)
        self.assertEqual(self.reactor.tcpServers, [])

    def test_descriptions(self) -> None:
        """One that cannot be is refused before anything is opened, and with an example."""
        for endpoint in ("tcp:port=80", "tcp6:1", "unix:/x:mode=660", "systemd:name=x"):
            prepare(DoorSettings(endpoint))
        for endpoint, words in (
            ("", "Unknown endpoint type: ''"),
            ("bogus:1", "Unknown endpoint type: 'bogus'"),
            ("tcp:x", "invalid literal for int() with base 10: 'x'; write for example tcp:8080"),
            ("tcp:65536", "a port is a number from 0 to 65535; write for example"),
            ("tcp:1:colour=red", "unexpected keyword argument 'colour'; write for example"),
            ("unix:/x:mode=9", "write for example"),
            ("unix:/" + "x" * 107, f"unix:/{'x' * 107}: the path of a unix socket has at most 107"),
        ):
            with self.assertRaises(ListenError) as caught:
                prepare(DoorSettings(endpoint))
            self.assertIn(f"listen endpoint {endpoint!r}: ", str(caught.exception))
            self.assertIn(words, str(caught.exception))

    def test_prepareOpensNothing(self) -> None:
        """The check of the settings needs no reactor."""
        self.assertIsNone(prepare(DoorSettings("tcp:1")).tls)
