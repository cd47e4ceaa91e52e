"""Streams of events in somebody's name."""

from __future__ import annotations

from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.api.event_streams import EventsQuery, openEvents
from helix_revdial.http.event_frames import eventFrame
from helix_revdial.http.events import EventStream
from helix_revdial.http.operations import Call, Operation
from helix_revdial.http.response import Response
from tests.api.harness import Server, Wire, await_, request


def withEvents(server: Server) -> Callable[..., tuple[EventStream, Wire]]:
    """
    Give a server an operation that answers with events.

    @return: Asks for them with a token, and maybe a query.
    """
    opened: list[EventStream] = []

    async def events(call: Call) -> Response:
        stream = openEvents(server.services, call, form=call.query.heartbeat)
        opened.append(stream)
        return stream.response()

    table = server.table
    server.table = type(table)(
        [
            *table.operations,
            Operation(
                "testEvents",
                "GET",
                "/api/v1/test-events",
                events,
                access="user",
                query=EventsQuery,
                media=("text/event-stream",),
                rate=None,
            ),
        ],
        authenticate=table._authenticate,
        authorise=table._authorise,
    )

    def open_(token: str, query: str = "") -> tuple[EventStream, Wire]:
        protocol, wire = server.connect()
        protocol.dataReceived(request("GET", "/api/v1/test-events" + query, token))
        return opened[-1], wire

    return open_


class EventStreamTests(SynchronousTestCase):
    """An operation that answers with events."""

    def setUp(self) -> None:
        self.server = Server()
        self.open = withEvents(self.server)

    def test_revoked(self) -> None:
        """A stream ends at once when the token it was asked with is revoked; another's goes on."""
        record, token = await_(
            self.server.tokens.create("user", name="ann", user="ann", role="viewer")
        )
        stream, wire = self.open(token)
        other, otherWire = self.open(self.server.user("bob"))
        await_(self.server.tokens.revoke(record.id))
        self.assertEqual((stream.closed, wire.aborted), (True, True))
        self.assertEqual((other.closed, otherWire.aborted), (False, False))
        self.assertTrue(other.push(eventFrame("x")))

    def test_heartbeats(self) -> None:
        """The interval is the server's, the form the caller's."""
        _, wire = self.open(self.server.user(), "?heartbeat=event")
        self.server.clock.advance(15)
        self.assertIn(b'event: heartbeat\ndata: {"type":"heartbeat","ts":"2027-', wire.value())
        answer = self.server.get("/api/v1/test-events?heartbeat=loud", self.server.user())
        self.assertEqual((answer.status, list(answer.json()["errors"])), (400, ["heartbeat"]))

    def test_notAcceptable(self) -> None:
        """Who wants no events gets 406."""
        answer = self.server.get(
            "/api/v1/test-events", self.server.user(), Accept="application/json"
        )
        self.assertEqual(answer.status, 406)
