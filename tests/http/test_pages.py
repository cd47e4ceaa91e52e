"""A dispatch for a few pages."""

from __future__ import annotations

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.http.factory import HTTPFactory
from helix_revdial.http.pages import Pages
from helix_revdial.http.request import Request
from helix_revdial.http.response import Response
from tests.api.harness import Answer, Wire, parse, request


class PagesTests(SynchronousTestCase):
    """L{Pages}."""

    def ask(self, method: str, path: str) -> Answer:
        def hello(asked: Request) -> Response:
            return Response(200, [(b"Content-Type", b"text/plain")], asked.rawQuery)

        factory = HTTPFactory(Pages({"/hello": hello}), Clock())
        protocol = factory.buildProtocol(IPv4Address("TCP", "192.0.2.7", 1))
        assert protocol is not None
        transport = Wire(peerAddress=IPv4Address("TCP", "192.0.2.7", 1))
        protocol.makeConnection(transport)
        protocol.dataReceived(request(method, path))
        return parse(transport.value())

    def test_page(self) -> None:
        """A page gets the request; HEAD has its head alone."""
        self.assertEqual(self.ask("GET", "/hello?a=1").body, b"a=1")
        answer = self.ask("HEAD", "/hello?a=1")
        self.assertEqual((answer.status, answer.body), (200, b""))

    def test_unknown(self) -> None:
        """404 names the pages that there are."""
        answer = self.ask("GET", "/nowhere")
        self.assertEqual(answer.status, 404)
        self.assertIn("/hello", answer.detail)

    def test_onlyToBeRead(self) -> None:
        """Nothing can be written, and the answer says what can be done."""
        answer = self.ask("DELETE", "/hello")
        self.assertEqual((answer.status, answer.headers["allow"]), (405, "GET, HEAD"))
