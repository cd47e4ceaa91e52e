"""Calls of other servers, over real sockets: of such as answer, and of such as do not."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

import trustme
from twisted.internet import reactor as _reactor
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import Certificate, PrivateCertificate, trustRootFromCertificates
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from helix_revdial.sessions.webhook_calls import MAX_ANSWER, Answer, CallFailed, Calls, CallSettings
from tests.listening.pems import authority, otherAuthority
from tests.sessions.names import Names

reactor: Any = _reactor

OK = b"HTTP/1.1 204 No Content\r\n\r\n"

LOCAL = (ipaddress.ip_network("127.0.0.0/8"),)


class Receiver(Factory):
    """
    A server that does what a test says.

    @ivar heard: what came, by connection.
    @ivar does: given each connection when its request is whole.
    """

    noisy = False

    def __init__(self, does: Callable[[Any], None]) -> None:
        self.does = does
        self.heard: list[bytes] = []
        self.connections: list[Any] = []

    def buildProtocol(self, address: object) -> Protocol:
        receiver = self
        number = len(self.heard)
        self.heard.append(b"")

        class Connection(Protocol):
            def connectionMade(self) -> None:
                receiver.connections.append(self.transport)

            def connectionLost(self, reason: Failure = connectionDone) -> None:
                receiver.connections.remove(self.transport)

            def dataReceived(self, data: bytes) -> None:
                before = receiver.heard[number]
                receiver.heard[number] = before + data
                if not before.endswith(b"{}") and receiver.heard[number].endswith(b"{}"):
                    receiver.does(self.transport)

        return Connection()


def says(answer: bytes) -> Callable[[Any], None]:
    return lambda transport: transport.write(answer)


def ended(call: LoopingCall) -> None:
    if call.running:
        call.stop()


class CallTests(TestCase):
    """Whatever the other end does, a call ends, with what is to be known of it."""

    def calls(self, **fields: Any) -> Calls:
        given: dict[str, Any] = {"allowed": LOCAL, "timeout": 5.0} | fields
        self.names = Names({"hook.example": ["127.0.0.1"], "localhost": ["127.0.0.1"]})
        return Calls(reactor, self.names, CallSettings(**given))

    def listen(
        self,
        does: Callable[[Any], None],
        certificates: trustme.CA | None = None,
        interface: str = "127.0.0.1",
        port: int = 0,
    ) -> tuple[Receiver, int]:
        receiver = Receiver(does)
        if certificates is None:
            listening = reactor.listenTCP(port, receiver, interface=interface)
        else:
            issued = certificates.issue_cert("hook.example")
            pem = issued.private_key_pem.bytes() + issued.cert_chain_pems[0].bytes()
            options = PrivateCertificate.loadPEM(pem).options()
            listening = reactor.listenSSL(port, receiver, options, interface=interface)

        def close() -> Any:
            for transport in list(receiver.connections):
                transport.abortConnection()
            return listening.stopListening()

        self.addCleanup(close)
        return receiver, listening.getHost().port

    async def post(self, calls: Calls, url: str) -> Answer:
        return await calls.post(url, {"webhook-id": "whd_1"}, b"{}")

    async def fails(self, calls: Calls, url: str) -> str:
        try:
            answer = await self.post(calls, url)
        except CallFailed as error:
            return str(error)
        raise AssertionError(f"it answered: {answer}")

    async def test_called(self) -> None:
        """The request is what was given, to the path and with the query of the URL."""
        receiver, port = self.listen(says(OK))
        answer = await self.post(self.calls(), f"http://hook.example:{port}/a/b?c=d%20e#f")
        self.assertEqual(answer, Answer(204))
        head, body = receiver.heard[0].split(b"\r\n\r\n")
        self.assertTrue(head.startswith(b"POST /a/b?c=d%20e HTTP/1.1\r\n"), head)
        self.assertIn(f"Host: hook.example:{port}".encode(), head)
        self.assertIn(b"webhook-id: whd_1", head)
        self.assertIn(b"Content-Length: 2", head)
        self.assertEqual(body, b"{}")

    async def test_tls(self) -> None:
        """TLS, for the name and not for the address, and by those who are believed."""
        trust = trustRootFromCertificates([Certificate.loadPEM(authority().cert_pem.bytes())])
        receiver, port = self.listen(says(OK), authority())
        calls = self.calls(trust=trust)
        self.assertEqual((await self.post(calls, f"https://hook.example:{port}/")).status, 204)
        self.assertEqual(len(receiver.heard[0]), receiver.heard[0].index(b"{}") + 2)
        why = await self.fails(calls, f"https://localhost:{port}/")
        self.assertIn("certificate", why)
        _, port = self.listen(says(OK), otherAuthority())
        self.assertIn("TLS", await self.fails(calls, f"https://hook.example:{port}/"))
        self.assertIn("TLS", await self.fails(self.calls(), f"https://hook.example:{port}/"))

    async def test_noTls(self) -> None:
        """Nothing is sent in the clear to a server that has no TLS."""
        receiver, port = self.listen(says(OK))
        await self.fails(self.calls(timeout=0.5), f"https://hook.example:{port}/")
        self.assertNotIn(b"whd_1", receiver.heard[0])

    async def test_down(self) -> None:
        """Nobody listens."""
        listening = reactor.listenTCP(0, Factory(), interface="127.0.0.1")
        port = listening.getHost().port
        await listening.stopListening()
        self.assertIn("refused", await self.fails(self.calls(), f"http://hook.example:{port}/"))

    async def test_redirect(self) -> None:
        """A redirect is an answer like any other: nobody goes there."""
        other, port = self.listen(says(OK))
        where = f"HTTP/1.1 307 X\r\nLocation: http://127.0.0.1:{port}/\r\nContent-Length: 0\r\n\r\n"
        _, port = self.listen(says(where.encode()))
        answer = await self.post(self.calls(), f"http://hook.example:{port}/")
        self.assertEqual(answer.status, 307)
        self.assertEqual(other.heard, [])

    async def test_retryAfter(self) -> None:
        """When to come back is told."""
        _, port = self.listen(
            says(b"HTTP/1.1 429 X\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n")
        )
        answer = await self.post(self.calls(), f"http://hook.example:{port}/")
        self.assertEqual(answer, Answer(429, 7.0))

    async def test_hangs(self) -> None:
        """Nothing comes: the call ends at its deadline, and the connection with it."""
        receiver, port = self.listen(lambda transport: None)
        why = await self.fails(self.calls(timeout=0.3), f"http://hook.example:{port}/")
        self.assertIn("0.3 seconds", why)
        self.assertEqual(len(receiver.heard), 1)

    async def test_hangsInTls(self) -> None:
        """The same where TLS never begins."""
        _, port = self.listen(lambda transport: None)
        why = await self.fails(self.calls(timeout=0.3), f"https://hook.example:{port}/")
        self.assertIn("0.3 seconds", why)

    async def test_nameHangs(self) -> None:
        """The same where the name is never resolved."""
        why = await self.fails(self.calls(timeout=0.3), "http://never.example/")
        self.assertIn("0.3 seconds", why)

    def drip(self, text: bytes) -> Callable[[Any], None]:
        """Answers byte by byte, without end."""

        def does(transport: Any) -> None:
            left = iter(text + b"x" * 100_000)
            dripping = LoopingCall(lambda: transport.write(bytes([next(left)])))
            self.addCleanup(ended, dripping)
            dripping.start(0.005)

        return does

    async def test_slowHead(self) -> None:
        """A head that comes byte by byte does not keep a call beyond its deadline."""
        _, port = self.listen(self.drip(b"HTTP/1.1 200 OK\r\nX: "))
        why = await self.fails(self.calls(timeout=0.4), f"http://hook.example:{port}/")
        self.assertIn("0.4 seconds", why)

    async def test_slowBody(self) -> None:
        """Whoever has said 200 has said it, however long the rest takes."""
        _, port = self.listen(self.drip(b"HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\n"))
        answer = await self.post(self.calls(timeout=1.0), f"http://hook.example:{port}/")
        self.assertEqual(answer.status, 200)

    async def test_endlessHead(self) -> None:
        """A head without end is cut off."""
        _, port = self.listen(says(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000))
        why = await self.fails(self.calls(), f"http://hook.example:{port}/")
        self.assertIn("no HTTP", why)

    async def test_endlessBody(self) -> None:
        """Of a body without end so much is taken."""
        written = 0

        def does(transport: Any) -> None:
            nonlocal written
            transport.write(b"HTTP/1.1 200 OK\r\n\r\n")

            def more() -> None:
                nonlocal written
                if written < 50 * MAX_ANSWER:
                    written += MAX_ANSWER
                    transport.write(b"x" * MAX_ANSWER)

            writing = LoopingCall(more)
            self.addCleanup(ended, writing)
            writing.start(0.01)

        _, port = self.listen(does)
        answer = await self.post(self.calls(), f"http://hook.example:{port}/")
        self.assertEqual(answer.status, 200)
        self.assertLess(written, 50 * MAX_ANSWER)

    async def test_noAnswer(self) -> None:
        """What is no HTTP, and what is nothing, is no answer."""
        for does, part in (
            (says(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), "no HTTP"),
            (lambda transport: transport.loseConnection(), "there was no answer"),
            (lambda transport: transport.abortConnection(), "broke"),
            (says(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 2"), "within"),
        ):
            _, port = self.listen(does)
            why = await self.fails(self.calls(timeout=0.5), f"http://hook.example:{port}/")
            self.assertIn(part, why)

    async def test_informational(self) -> None:
        """An answer may come after others that are none yet."""
        _, port = self.listen(says(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK))
        answer = await self.post(self.calls(), f"http://hook.example:{port}/")
        self.assertEqual(answer.status, 204)

    async def test_private(self) -> None:
        """F4: what is not public is refused before a connection is made, named or numbered."""
        receiver, port = self.listen(says(OK))
        calls = self.calls(allowed=())
        for host in ("hook.example", "127.0.0.1", "[::ffff:127.0.0.1]"):
            why = await self.fails(calls, f"http://{host}:{port}/")
            self.assertIn("not public", why)
        self.assertEqual(receiver.heard, [])

    async def test_rebinding(self) -> None:
        """F4: a name that leads elsewhere the second time is not asked a second time."""
        inside, port = self.listen(says(OK))
        try:
            outside, _ = self.listen(says(OK), interface="127.0.0.2", port=port)
        except CannotListenError as error:
            raise AssertionError("127.0.0.2 is not to be had") from error
        calls = self.calls(allowed=[ipaddress.ip_network("127.0.0.2/32")])

        class Turning(dict[str, list[str]]):
            """Leads outside when it is looked at first, and inside ever after."""

            looked = 0

            def __getitem__(self, name: str) -> list[str]:
                self.looked += 1
                return ["127.0.0.2"] if self.looked == 1 else ["127.0.0.1"]

            def __contains__(self, name: object) -> bool:
                return True

        self.names.known = turning = Turning()
        self.assertEqual((await self.post(calls, f"http://turning.example:{port}/")).status, 204)
        self.assertEqual((turning.looked, len(outside.heard), len(inside.heard)), (1, 1, 0))
        why = await self.fails(calls, f"http://turning.example:{port}/")
        self.assertIn("not public", why)
        self.assertEqual(inside.heard, [])

    async def test_notAURL(self) -> None:
        """What is stored and is no URL is told as that."""
        for url in ("ftp://x/", "http://", "http://u:p@x/", "http://x:0/", "http://x/\r\nA: b"):
            self.assertIn("the address", await self.fails(self.calls(), url))
