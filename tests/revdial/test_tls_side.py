"""
The relay where the far connection runs TLS on its socket: the promises of the relay on
plain sockets, kept to a peer whose TLS is ours and to one whose TLS is Twisted's.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet import error
from twisted.internet.endpoints import TCP4ClientEndpoint, wrapClientTLS, wrapServerTLS
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.agent.trust import Trust, TrustPolicy
from helix_revdial.listening.tls import ServerTLS, TLSSettings, load
from helix_revdial.revdial.data_websocket import DataWebSocketEndpoint
from helix_revdial.revdial.exchange import CarrierURL
from helix_revdial.revdial.socket_side import Side
from helix_revdial.revdial.tls_endpoints import TLSClientEndpoint, TLSServerEndpoint
from helix_revdial.revdial.tls_side import TLSSide
from helix_revdial.revdial.upgrade import RawUpgradeEndpoint, rawServer
from tests.directories import shortDirectory
from tests.listening.pems import authorityFile, leaf, whole, write
from tests.revdial import test_sockets
from tests.revdial.test_sockets import Bench, One
from tests.revdial.wire import HeadThen, dataHead

HALF_CLOSE = tuple(
    f"websocket+eof/{position}/{way}"
    for position in ("server", "client")
    for way in ("socket", "memory")
)

FORMS = (
    *HALF_CLOSE,
    *(
        f"{form}/{position}/{way}"
        for form, way in (("raw", "memory"), ("raw", "socket"), ("websocket", "memory"))
        for position in ("server", "client")
    ),
)
"""The carrier, which end of it the relay has, and how the far peer runs TLS."""


class _Listening:
    """An endpoint that a bench listens by."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def listen(self, factory: Any) -> Any:
        return self._bench._listen("tcp", lambda: factory.buildProtocol(None))


class TLSBench(Bench):
    """The far connection runs TLS, on its socket at the relay's end."""

    case: TLSCase

    def _connect(self, form: str, left: Any) -> None:
        form, position, *ways = form.split("/")
        way = ways[0] if ways else "socket"
        eof, clock = form == "websocket+eof", self.reactor

        def carrier(protocol: Any) -> Any:
            if form == "raw":
                return HeadThen(lambda: rawServer(protocol, clock=clock), replayHead=False)
            return dataHead(protocol, eof=eof, clock=clock)

        isServer = position == "server"
        accepting, dialling = (left, self.far) if isServer else (self.far, left)
        listening: Any = _Listening(self)
        if isServer or way == "socket":
            listening = TLSServerEndpoint(clock, self.case.serverTLS, listening)
        else:
            listening = wrapServerTLS(self.case.serverTLS, listening, clock)
        port = listening.listen(One(lambda: carrier(accepting)))
        number = port.getHost().port
        endpoint: Any = TCP4ClientEndpoint(clock, "127.0.0.1", number)
        if not isServer or way == "socket":
            endpoint = TLSClientEndpoint(clock, self.case.clientTLS, endpoint)
        else:
            endpoint = wrapClientTLS(self.case.clientTLS, endpoint, clock)
        url = CarrierURL("127.0.0.1", number, True, "/")
        upgrade: Any = (
            RawUpgradeEndpoint(clock, endpoint, url)
            if form == "raw"
            else DataWebSocketEndpoint(clock, endpoint, url, eof=eof)
        )
        self.now(upgrade.connect(One(lambda: dialling)))

    @property
    def sides(self) -> tuple[Side, Side]:
        left, right = self.pair._relay._sides
        return left, right


class TLSCase(SynchronousTestCase):
    """Has certificates."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(test_sockets, "Bench", TLSBench)
        self.patch(test_sockets, "FORMS", FORMS)
        self.patch(test_sockets, "HALF_CLOSE", HALF_CLOSE)
        directory = Path(shortDirectory(self))
        path = write(directory / "one.pem", whole(leaf("localhost")))
        self.serverTLS = ServerTLS(load(TLSSettings(str(path))))
        ca = str(authorityFile(directory / "ca.pem"))
        self.clientTLS: Any = Trust(TrustPolicy(caFile=ca)).towards("localhost")


class TLSRelayTests(TLSCase, test_sockets.SocketRelayTests):
    """What the relay on plain sockets promises."""

    def each(self, forms: tuple[str, ...] = FORMS) -> list[tuple[str, Bench]]:
        benches = super().each(FORMS if forms is test_sockets.FORMS else forms)
        for name, bench in benches:
            self.assertIsInstance(bench.pair._relay._sides[0], TLSSide, name)
        return benches

    def test_zeroKey(self) -> None:
        """No key lets bytes go by a pipe that somebody has to encrypt."""
        for position in ("client", "server"):
            bench = TLSBench(self, f"websocket+eof/{position}", "tcp")
            bench.near.wire.write(bytes(300_000))
            bench.spin(lambda b=bench: len(b.far.got) == 300_000, position)  # type: ignore[misc]
            self.assertEqual([side._splice for side in bench.sides], [None, None])


class TLSInterleavingTests(TLSCase, test_sockets.InterleavingTests):
    """Any order of writes, pauses and ends."""


class TLSPortableInterleavingTests(TLSInterleavingTests):
    """The same by the relay for any transport."""

    portable = True


class TLSEndsTests(TLSCase):
    """What TLS does otherwise."""

    def test_rawEndsBoth(self) -> None:
        """
        Raw bytes over TLS have no end of one direction: whichever side ends first, what
        was written arrives, and both end in good order.
        """
        for form in (each for each in FORMS if each.startswith("raw")):
            for first, second in (("far", "near"), ("near", "far")):
                bench = TLSBench(self, form, "tcp")
                ends, hears = getattr(bench, first), getattr(bench, second)
                ends.wire.write(b"x" * 1_000_000)
                ends.wire.loseConnection()
                bench.spin(lambda: len(hears.got) == 1_000_000, form)  # noqa: B023
                bench.bothLost()
                self.assertEqual(bench.ends[0].why, "done", f"{form}: {bench.state()}")
                for peer in (bench.far, bench.near):
                    assert peer.lost is not None
                    self.assertTrue(peer.lost.check(error.ConnectionDone), f"{form} {peer.lost}")

    def test_cutWithoutAlert(self) -> None:
        """A far connection whose FIN comes without a closing alert broke, on every carrier."""
        for form in FORMS:
            bench = TLSBench(self, form, "tcp")
            bench.far.wire.write(b"half of it")
            bench.spin(lambda b=bench: bool(b.near.got), form)  # type: ignore[misc]
            beneath = bench.far.wire
            while not hasattr(beneath, "getHandle") or isinstance(
                beneath.getHandle(), SSL.Connection
            ):
                beneath = getattr(beneath, "beneath", None) or beneath.transport
            beneath.getHandle().shutdown(1)
            bench.bothLost()
            self.assertEqual(bench.ends[0].why, "broken", form)
            assert bench.near.lost is not None
            self.assertFalse(bench.near.lost.check(error.ConnectionDone), form)

    def test_heldByOpenSSL(self) -> None:
        """
        What OpenSSL holds while the relay does not read comes when it does, though the
        socket is silent by then: records larger than the relay's buffer, with a reader
        that stops.
        """
        for form in FORMS[::2]:
            bench = TLSBench(self, form, "tcp")
            payload = random.Random(3).randbytes(16_000_000)
            bench.near.wire.pauseProducing()
            bench.far.wire.write(payload)
            side, other = bench.sides
            bench.spin(lambda o=other: o.outbox.waits, f"{form}: a full socket")  # type: ignore[misc]
            self.assertLessEqual(other.outbox.held, 33 * 1024, form)
            bench.near.wire.resumeProducing()
            bench.spin(lambda b=bench: len(b.near.got) == 16_000_000, form)  # type: ignore[misc]
            self.assertEqual(bench.near.got, payload, form)
            bench.near.wire.write(b"and back")
            bench.spin(lambda b=bench: b.far.got == b"and back", form)  # type: ignore[misc]
            self.assertFalse(side.outbox.waits, form)

    def test_theRestOfARecord(self) -> None:
        """
        A record that the buffer has no room for any more is read on though the socket is
        silent, and nothing else happens.
        """
        for form in ("raw/server/socket", "raw/client/socket"):
            bench = TLSBench(self, form, "tcp")
            # Each write is a record or two; the buffer has 32 KiB.
            bench.far.wire.write(bytes(5000))
            bench.far.wire.write(bytes(32 * 1024))
            bench.spin(lambda b=bench: len(b.near.got) == 5000 + 32 * 1024, form)  # type: ignore[misc]

    def test_fair(self) -> None:
        """
        A turn of the reactor moves two reads of a stream at most, of what the socket has and
        of what OpenSSL held, however much there is.
        """
        for form in FORMS[::2]:
            bench = TLSBench(self, form, "unix")
            bench.far.wire.write(bytes(3_000_000))

            def moved(bench: TLSBench = bench, form: str = form) -> bool:
                before = bench.left.received
                bench.turn()
                # The one read comes by a timer, the other by the socket.
                self.assertLessEqual(bench.left.received - before, 2 * 32 * 1024, form)
                return len(bench.near.got) == 3_000_000

            bench.spin(moved, form)

    def test_earlyBytes(self) -> None:
        """A1: what came with the upgrade, before the sockets were taken, is the stream's."""
        for form in FORMS:
            for size in (1, 10, 5_000, 100_000):
                bench = _Eager(self, form, size)
                bench.spin(lambda b=bench, s=size: len(b.near.got) >= s, form)  # type: ignore[misc]
                self.assertEqual(bench.near.got, b"e" * size, form)


class _Eager(TLSBench):
    """The far peer speaks as soon as it is connected."""

    def __init__(self, case: TLSCase, form: str, size: int) -> None:
        self.size = size
        super().__init__(case, form, "tcp")

    def _connect(self, form: str, left: Any) -> None:
        far = self.far
        far.connectionMade = lambda: far.wire.write(b"e" * self.size)  # type: ignore[method-assign]
        super()._connect(form, left)
