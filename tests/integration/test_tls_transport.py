"""TLS on the connection's own socket: every way in which it can begin, go on and end."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import struct
from typing import Any

from OpenSSL import SSL
from twisted.internet import error
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from helix_revdial.agent.trust import NotTrusted, Trust, TrustPolicy
from helix_revdial.listening.proxied import ProxiedFactory
from helix_revdial.listening.sources import ProxySources
from helix_revdial.revdial import tls_transport
from helix_revdial.revdial.tls_endpoints import TLSFactory
from helix_revdial.revdial.tls_transport import TLSTransport
from tests.needs import needsProgram

from .tls_ends import WAYS, ByHand, Source, Talker, TLSEndsCase, reactor

HEADER = b"PROXY TCP4 192.0.2.7 198.51.100.1 50000 443\r\n"

RESET = struct.pack("ii", 1, 0)


class Echoing(Talker):
    """Says everything back."""

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        self.wire.write(data)


class BeginningTests(TLSEndsCase):
    """Handshakes."""

    async def test_whichWay(self) -> None:
        """On a plain socket TLS runs on the socket; both ways know the same of the peer."""
        for server in WAYS:
            port = await self.listen(server)
            for client in WAYS:
                caller = await self.connect(port, client)
                caller.wire.write(b"hello")
                await self.until(lambda: self.served[-1].data == b"hello", "the greeting")
                onSocket = [isinstance(end.wire, TLSTransport) for end in (self.served[-1], caller)]
                self.assertEqual(onSocket, [server == "socket", client == "socket"])
                certificate = caller.wire.getPeerCertificate().to_cryptography()
                self.assertEqual(certificate, self.serverTLS.current.certified[0].certificate)
                self.assertIsNone(self.served[-1].wire.getPeerCertificate())
                self.assertIsNone(caller.wire.negotiatedProtocol)
                self.assertEqual(caller.wire.getHandle().get_protocol_version_name(), "TLSv1.3")
                for end in (self.served[-1], caller):
                    end.wire.setTcpNoDelay(True)
                    end.wire.setTcpKeepAlive(True)
                    self.assertTrue(end.wire.getTcpNoDelay() and end.wire.getTcpKeepAlive())
                self.assertEqual(caller.wire.getHost(), self.served[-1].wire.getPeer())
                caller.wire.loseConnection()
                reasons = await gatherResults([caller.lost, self.served[-1].lost])
                self.assertEqual([each.type for (each,) in reasons], [error.ConnectionDone] * 2)

    async def test_oneByteAtATime(self) -> None:
        """A handshake and records that come byte by byte are a handshake and records."""
        caller = ByHand(self, self.raw(await self.listen()))
        await caller.shake(1)
        await caller.send(caller.records(b"one") + caller.records(b"two"), 1)
        await self.until(lambda: self.served[0].data == b"onetwo", "both records")

    async def test_splitEverywhere(self) -> None:
        """Three records, cut at every byte into two pieces."""
        caller = ByHand(self, self.raw(await self.listen()))
        await caller.shake()
        await self.until(lambda: self.served, "the connection")
        heard = self.served[0].data
        for cut in range(1, 3 * (22 + 5)):
            heard.clear()
            whole = b"".join(caller.records(each) for each in (b"first", b"other", b"third"))
            caller.plain.sendall(whole[:cut])
            await caller.send(whole[cut:], 1 << 20)
            await self.until(lambda: len(heard) == 15, f"a message that was cut at {cut}")
            self.assertEqual(heard, b"firstotherthird")

    async def test_garbage(self) -> None:
        """What is no TLS ends its own connection, with OpenSSL's word for it."""
        port = await self.listen()
        other = await self.connect(port)
        plain = self.raw(port)
        plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await self.until(lambda: len(self.served) == 2, "the connection")
        broken = max(self.served, key=lambda end: end.isLost)
        [reason] = await broken.lost
        self.assertIsInstance(reason.value, SSL.Error)
        other.wire.write(b"still here")
        await self.until(
            lambda: any(each.data == b"still here" for each in self.served), "the other"
        )

    async def test_garbageLater(self) -> None:
        """A record that was changed on its way ends the connection, and is not delivered."""
        caller = ByHand(self, self.raw(await self.listen()))
        await caller.shake()
        record = bytearray(caller.records(b"payload"))
        record[-1] ^= 1
        await caller.send(bytes(record), 1 << 20)
        await self.until(lambda: self.served, "the connection")
        [reason] = await self.served[0].lost
        self.assertIsNone(reason.check(error.ConnectionDone))
        self.assertEqual(self.served[0].data, b"")

    async def test_stalled(self) -> None:
        """C: a handshake that never ends is not waited for, nor does it delay others."""
        self.patch(tls_transport, "HANDSHAKE_TIMEOUT", 0.3)
        port = await self.listen()
        plain = self.raw(port)
        plain.sendall(b"\x16\x03\x01")
        await self.until(lambda: self.served, "the connection")
        stalled = self.served[0]
        other = await self.connect(port)
        other.wire.write(b"x")
        await self.until(lambda: self.served[1].data == b"x", "the other's byte")
        [reason] = await stalled.lost
        self.assertIsNotNone(reason.check(error.TimeoutError))
        other.wire.write(b"y")
        await self.until(lambda: self.served[1].data == b"xy", "the other's next byte")

    async def test_goneWithinTheHandshake(self) -> None:
        """A caller that ends, or resets, the connection before TLS has begun."""
        port = await self.listen()
        for ending in ("end", "reset"):
            plain = self.raw(port)
            plain.sendall(b"\x16\x03\x01\x01")
            count = len(self.served) + 1
            await self.until(lambda count=count: len(self.served) == count, "the connection")
            if ending == "reset":
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            plain.close()
            [reason] = await self.served[-1].lost
            self.assertIsNone(reason.check(error.ConnectionDone), ending)

    async def test_notTrusted(self) -> None:
        """One policy: what it refuses is refused in its words, before a byte is sent."""
        port = await self.listen()
        for way in WAYS:
            self.clientTLS = Trust(TrustPolicy(caFile=self.ca)).towards("other.example")
            caller = await self.connect(port, way)
            caller.wire.write(b"secret")
            [reason] = await caller.lost
            self.assertIsNotNone(reason.check(NotTrusted), f"{way}: {reason}")
            self.assertIn("another name", reason.getErrorMessage())
        self.assertEqual([bytes(each.data) for each in self.served], [b"", b""])

    async def test_resumed(self) -> None:
        """The session of one connection is taken up by the next, whatever ended the first."""
        port = await self.listen()
        context = ssl.create_default_context(cafile=self.ca)

        def visit(session: Any) -> tuple[bool, Any]:
            plain = socket.create_connection(("127.0.0.1", port), timeout=5)
            with context.wrap_socket(plain, server_hostname="localhost", session=session) as made:
                made.sendall(b"x")
                made.settimeout(5)
                # A ticket comes with the first bytes of the server.
                made.recv(1)
                return bool(made.session_reused), made.session

        self.build = Echoing  # type: ignore[method-assign]
        first = await _inThread(visit, None)
        second = await _inThread(visit, first[1])
        self.assertEqual([first[0], second[0]], [False, True])

    async def test_agentResumes(self) -> None:
        """F8: the agent's next connection resumes, without a context of its own."""
        self.build = Echoing  # type: ignore[method-assign]
        port = await self.listen()
        # pyOpenSSL does not say it.
        lib: Any = vars(SSL)["_lib"]
        reused = []
        for _ in range(3):
            caller = await self.connect(port)
            caller.wire.write(b"x")
            await self.until(lambda caller=caller: caller.data == b"x", "the echo")
            reused.append(bool(lib.SSL_session_reused(caller.wire._tls.connection._ssl)))
            caller.wire.loseConnection()
            await caller.lost
        self.assertEqual(reused, [False, True, True])


class MovingTests(TLSEndsCase):
    """Bytes, and the limits on them."""

    async def test_bothWaysAtOnce(self) -> None:
        """
        Large bodies both ways with readers that stop and go: equal hashes, whoever runs
        TLS at the other end, and no more held than a buffer.
        """
        size = 6_000_000
        for serverWay, clientWay in (("socket", "socket"), *zip(WAYS, WAYS[::-1], strict=True)):
            self.build = lambda: Talker(keep=False)  # type: ignore[method-assign]
            port = await self.listen(serverWay)
            caller = await self.connect(port, clientWay, Talker(keep=False))
            await self.until(lambda: self.served, "the connection")
            served = self.served.pop()
            sources = []
            for one, reader in ((caller, served), (served, caller)):
                source = Source(one.wire, size)
                sources.append((source, reader))
                self.stopAndGo(reader)
            for source, _ in sources:
                source.begin()
            for source, reader in sources:
                await self.until(lambda reader=reader: reader.size == size, "everything")
                self.assertEqual(reader.hash.digest(), source.hash.digest())
                self.assertGreater(source.pauses, 0)
                self.assertLessEqual(source.most, 64 * 1024 + 50_000)
            caller.wire.loseConnection()
            await served.lost

    def stopAndGo(self, reader: Talker) -> None:
        """Pause now and then."""
        receive, turns = reader.dataReceived, 0

        def paused(data: bytes) -> None:
            nonlocal turns
            turns += 1
            receive(data)
            if turns % 5 == 0:
                reader.wire.pauseProducing()
                reactor.callLater(0.001, lambda: reader.isLost or reader.wire.resumeProducing())

        reader.dataReceived = paused  # type: ignore[method-assign]

    async def test_pausedHearsNothing(self) -> None:
        """
        A paused protocol hears nothing, though OpenSSL has it; it comes after the pause,
        without anything new from the peer.
        """
        caller = ByHand(self, self.raw(await self.listen()))
        await caller.shake()
        await caller.send(caller.records(b"x"), 1 << 20)
        await self.until(lambda: self.served and self.served[0].data == b"x", "the first byte")
        served = self.served[0]
        served.wire.pauseProducing()
        await caller.send(b"".join(caller.records(b"y" * 16384) for _ in range(10)), 1 << 20)
        for _ in range(20):
            await caller.send(b"", 1)
        self.assertEqual(served.size, 1)
        served.wire.resumeProducing()
        self.assertEqual(served.size, 1, "not within resumeProducing")
        await self.until(lambda: served.size == 1 + 163840, "what waited")

    async def test_pull(self) -> None:
        """A producer that waits to be asked is asked, until it is done."""
        caller = await self.connect(await self.listen())
        left = [b"%d," % number for number in range(50)]

        class Puller:
            def resumeProducing(self) -> None:
                if left:
                    caller.wire.write(left.pop(0))
                else:
                    caller.wire.unregisterProducer()
                    caller.wire.loseConnection()

            def stopProducing(self) -> None:
                """It is over."""

        caller.wire.registerProducer(Puller(), False)
        await self.until(lambda: self.served, "the connection")
        await self.served[0].lost
        self.assertEqual(self.served[0].data, b"".join(b"%d," % number for number in range(50)))

    async def test_oneProducer(self) -> None:
        """A second producer is a fault of its owner's; one that comes late is stopped."""
        caller = await self.connect(await self.listen())
        source = Source(caller.wire, 0)
        caller.wire.registerProducer(source, True)
        self.assertRaises(RuntimeError, caller.wire.registerProducer, source, True)
        caller.wire.unregisterProducer()
        caller.wire.abortConnection()
        await caller.lost
        late = Source(caller.wire, 5)
        caller.wire.registerProducer(late, True)
        self.assertEqual(late.left, 0)


class EndTests(TLSEndsCase):
    """How connections end."""

    async def test_flushed(self) -> None:
        """What was written before loseConnection arrives, however slow the reader is."""
        for way in WAYS:
            self.build = lambda: Talker(keep=False)  # type: ignore[method-assign]
            port = await self.listen(way)
            caller = await self.connect(port)
            await self.until(lambda: self.served, "the connection")
            served = self.served.pop()
            served.wire.pauseProducing()
            caller.wire.write(b"z" * 5_000_000)
            caller.wire.loseConnection()
            caller.wire.write(b"after the end")
            served.wire.resumeProducing()
            reasons = await gatherResults([served.lost, caller.lost])
            self.assertEqual([each.type for (each,) in reasons], [error.ConnectionDone] * 2, way)
            self.assertEqual(served.size, 5_000_000)

    async def test_withoutAlert(self) -> None:
        """A FIN without the closing alert is a broken connection: somebody may have cut it."""
        caller = ByHand(self, self.raw(await self.listen()))
        await caller.shake()
        await caller.send(caller.records(b"half"), 1 << 20)
        caller.plain.shutdown(socket.SHUT_WR)
        await self.until(lambda: self.served, "the connection")
        [reason] = await self.served[0].lost
        self.assertIsNotNone(reason.check(error.ConnectionLost), reason)
        self.assertEqual(self.served[0].data, b"half")

    async def test_reset(self) -> None:
        """A reset in the middle of a stream, while we write."""
        caller = ByHand(self, self.raw(await self.listen()))
        await caller.shake()
        await self.until(lambda: self.served, "the connection")
        served = self.served[0]
        source = Source(served.wire, 50_000_000)
        await self.until(lambda: served.wire._tls.secured, "the handshake")
        source.begin()
        caller.plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        caller.plain.close()
        [reason] = await served.lost
        self.assertIsNone(reason.check(error.ConnectionDone), reason)
        self.assertEqual(source.left, 0, "the producer was stopped")

    async def test_alertWithoutAnswer(self) -> None:
        """A peer that does not answer our closing alert is left after a while."""
        self.patch(tls_transport, "CLOSE_TIMEOUT", 0.2)
        caller = ByHand(self, self.raw(await self.listen()))
        await caller.shake()
        await self.until(lambda: self.served, "the connection")
        served = self.served[0]
        await self.until(lambda: served.wire._tls.secured, "the handshake")
        served.wire.write(b"bye")
        served.wire.loseConnection()
        # It even goes on to talk.
        await caller.send(caller.records(b"what?"), 1 << 20)
        [reason] = await served.lost
        self.assertIsNotNone(reason.check(error.ConnectionDone), reason)
        self.assertEqual(served.data, b"")
        self.assertEqual(await caller.hear(3), b"bye")

    async def test_aborted(self) -> None:
        """An abort is a reset for the peer, and is heard once, in a later turn."""
        for way in WAYS:
            caller = await self.connect(await self.listen(way))
            caller.wire.write(b"x")
            await self.until(lambda: self.served and self.served[-1].data, "the byte")
            served = self.served.pop()
            caller.wire.abortConnection()
            self.assertFalse(caller.isLost)
            [reason] = await caller.lost
            self.assertIsNotNone(reason.check(error.ConnectionAborted))
            self.assertIsNone((await served.lost)[0].check(error.ConnectionDone))
            caller.wire.write(b"nothing")
            caller.wire.loseConnection()

    async def test_protocolFails(self) -> None:
        """An exception of the protocol's ends its connection alone, and is logged."""

        class Failing(Talker):
            def dataReceived(self, data: bytes) -> None:
                raise RuntimeError("a fault in the protocol")

        self.build = Failing  # type: ignore[method-assign]
        port = await self.listen()
        caller, other = await self.connect(port), await self.connect(port)
        await self.until(lambda: len(self.served) == 2, "both")
        caller.wire.write(b"x")
        await caller.lost
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertFalse(other.isLost)


class BehindProxyTests(TLSEndsCase):
    """TLS that begins behind a PROXY header."""

    async def test_everySplit(self) -> None:
        """
        A1: header and handshake in one segment, cut at every byte of the header and just
        behind it: not one byte of TLS is taken for the header's.
        """
        strangers = Strangers()
        sources = ProxySources(["127.0.0.0/8"])

        def build() -> Talker:
            self.served.append(Talker())
            return self.served[-1]

        tls: Any = TLSFactory(reactor, self.serverTLS, Factory.forProtocol(build), isClient=False)
        factory = ProxiedFactory(tls, sources, reactor, strangers, lambda: 5.0)
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        for cut in range(1, len(HEADER) + 3):
            caller = ByHand(self, self.raw(port.getHost().port))
            try:
                caller.session.do_handshake()
            except SSL.WantReadError:
                whole = HEADER + caller.outgoing()
            caller.plain.sendall(whole[:cut])
            await deferLater(reactor, 0)
            await deferLater(reactor, 0)
            await caller.send(whole[cut:], 1 << 20)
            await caller.shake()
            await caller.send(caller.records(b"hello"), 1 << 20)
            count = cut
            await self.until(
                lambda count=count: len(self.served) == count and self.served[-1].data == b"hello",
                f"the greeting, cut at {cut}",
            )
            served = self.served[-1]
            self.assertIsInstance(served.wire, TLSTransport)
            self.assertEqual(served.wire.getPeer().host, "192.0.2.7")
            caller.plain.close()
            await served.lost
        self.assertEqual(strangers.places, 0)

    async def test_goneWithinTheHeader(self) -> None:
        """A proxy that leaves within its header gives its place back."""
        strangers = Strangers()
        tls: Any = TLSFactory(reactor, self.serverTLS, Factory.forProtocol(Talker), isClient=False)
        sources = ProxySources(["127.0.0.0/8"])
        factory = ProxiedFactory(tls, sources, reactor, strangers, lambda: 5.0)
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        for ending in (b"", RESET):
            plain = self.raw(port.getHost().port)
            plain.sendall(HEADER[:10])
            await self.until(lambda: strangers.places == 1, "a place is taken")
            if ending:
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ending)
            plain.close()
            await self.until(lambda: strangers.places == 0, "the place is given back")


class Strangers:
    """Counts places."""

    def __init__(self) -> None:
        self.places = 0

    def admit(self, address: str) -> bool:
        self.places += 1
        return True

    def release(self, address: str) -> None:
        self.places -= 1


class _Program(ProcessProtocol):
    """A program with its output."""

    def __init__(self) -> None:
        self.output = b""
        self.ended: Deferred[tuple[Failure]] = Deferred()

    def outReceived(self, data: bytes) -> None:
        self.output += data

    errReceived = outReceived

    def processEnded(self, reason: Failure) -> None:
        self.ended.callback((reason,))


class OtherPeersTests(TLSEndsCase):
    """OpenSSL's own client: a peer that is not ours."""

    def setUp(self) -> None:
        super().setUp()
        self.build = Echoing  # type: ignore[method-assign]

    def client(self, port: int, *more: str) -> _Program:
        program = _Program()
        path = shutil.which("openssl") or "openssl"
        command = [path, "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", self.ca]
        process = reactor.spawnProcess(program, path, [*command, *more], os.environ)

        def end() -> Deferred[tuple[Failure]]:
            if not program.ended.called:
                process.signalProcess("KILL")
            return program.ended

        self.addCleanup(end)
        self.process: Any = process
        return program

    @needsProgram("openssl", package="openssl")
    async def test_keyUpdate(self) -> None:
        """New keys in the middle of a stream, ours asked for too (RFC 8446, 4.6.3)."""
        program = self.client(await self.listen(), "-tls1_3")
        await self.until(lambda: self.served, "the connection")
        for word in (b"before", b"between", b"after"):
            self.process.write(word + b"\n")
            await self.until(lambda word=word: word in self.served[0].data, word.decode())
            await self.until(
                lambda word=word: program.output.count(word) >= 1, f"the echo of {word!r}"
            )
            count = program.output.count(b"KEYUPDATE") + 1
            self.process.write(b"K\n")
            await self.until(
                lambda count=count: program.output.count(b"KEYUPDATE") == count, "new keys"
            )
        self.assertFalse(self.served[0].isLost)

    @needsProgram("openssl", package="openssl")
    async def test_renegotiation(self) -> None:
        """A renegotiation, which TLS 1.2 knows, is refused, and others live on."""
        port = await self.listen()
        other = await self.connect(port)
        await self.until(lambda: self.served, "the first")
        program = self.client(port, "-tls1_2")
        await self.until(lambda: len(self.served) == 2, "the connection")
        self.process.write(b"hello\n")
        await self.until(lambda: b"hello" in self.served[1].data, "the greeting")
        self.process.write(b"R\n")
        await program.ended
        await self.served[1].lost
        other.wire.write(b"x")
        await self.until(lambda: other.data == b"x", "the other's echo")


async def _inThread(call: Any, *arguments: Any) -> Any:
    from twisted.internet.threads import deferToThread

    return await deferToThread(call, *arguments)
