"""A server that is watched: what was really done is what is told, and everything has an owner."""

from __future__ import annotations

import json
from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from twisted.internet.error import ConnectionLost
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.api.metrics import MetricsService
from helix_revdial.api.observation import Observation, databaseFiles
from helix_revdial.api.tracing import traced
from helix_revdial.config import ConfigError, MetricsSection, ServerConfig, TracingSection
from helix_revdial.telemetry.metrics import exposition
from helix_revdial.telemetry.traces import Spans
from tests.api.harness import Server, request
from tests.api.test_external_agents import PNG, Pending, Sandbox
from tests.telemetry.test_metrics import scraped

PREFIX = "helix_revdial_"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


class Watched(SynchronousTestCase):
    """A server with a session, its owner and its sandbox's agent."""

    def setUp(self) -> None:
        self.server = Server()
        self.admin = self.server.user("root", role="admin")
        self.ann = self.server.user("ann")
        self.session = self.server.session("ann")
        self.key = f"sandbox-{self.session.id}"
        self.token = self.server.sessionToken(self.session)
        self.path = f"/api/v1/external-agents/{self.session.id}"

    def sandbox(self) -> Sandbox:
        return Sandbox(self.server, self.key, self.token)

    def screenshot(self, **headers: str) -> Pending:
        return Pending(
            self.server, request("GET", self.path + "/screenshot", self.ann, headers=headers)
        )

    def streams(self, query: str = "", token: str | None = None) -> Any:
        answer = self.server.get(f"/api/v1/admin/streams{query}", token or self.admin)
        self.assertEqual(answer.status, 200, answer.body)
        return answer.json()

    def metric(self, name: str, **labels: str) -> float:
        found = scraped(self.server.observation.metrics.registry)
        return found[PREFIX + name][tuple(sorted(labels.items()))]


class MetricsTests(Watched):
    """The metrics against what was really done."""

    def test_aScreenshot(self) -> None:
        """One dial, its phases, its stream while it is open, its bytes when it is not."""
        sandbox = self.sandbox()
        pending = self.screenshot()
        self.assertEqual(self.metric("pending_dials", state="asked"), 1)
        self.server.clock.advance(2)
        self.assertEqual(self.metric("pending_dial_oldest_seconds"), 2)
        asked = sandbox.pickUp()
        self.assertEqual(self.metric("pending_dials", state="asked"), 0)
        self.assertEqual(self.metric("streams"), 1)
        # Decided with the stream, however long that lives.
        self.assertEqual(self.metric("dials_total", outcome="connected"), 1)
        self.assertEqual(self.metric("dial_wait_seconds_count", result="connected"), 1)
        self.assertEqual(self.metric("stream_seconds_count"), 0)
        self.assertEqual(self.metric("connections", kind="data", carrier="raw"), 1)
        self.assertEqual(self.metric("connections", kind="control", carrier="raw"), 1)
        self.assertEqual(self.metric("stream_bytes_total", direction="out"), len(asked))
        self.server.clock.advance(1)
        sandbox.answer(PNG)
        self.assertEqual(pending.answer().status, 200)
        sandbox.data.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.metric("streams"), 0)
        self.assertEqual(self.metric("stream_bytes_total", direction="out"), len(asked))
        self.assertGreater(self.metric("stream_bytes_total", direction="in"), len(PNG))
        self.assertEqual(self.metric("dials_total", outcome="connected"), 1)
        self.assertEqual(self.metric("stream_seconds_count"), 1)
        self.assertEqual(self.metric("dial_phase_seconds_sum", phase="dial_back"), 2)
        self.assertEqual(self.metric("dial_phase_seconds_sum", phase="first_byte_in"), 1)
        self.assertEqual(self.metric("http_requests_total", status="2xx"), 1)
        self.assertEqual(self.metric("http_requests_total", status="handed_over"), 2)

    def test_dialsThatFail(self) -> None:
        """Each outcome is counted under the word that the caller got."""
        self.assertEqual(self.screenshot().answer().status, 503)
        sandbox = self.sandbox()
        pending = self.screenshot()
        sandbox.refuse("target-refused", "nothing there")
        self.assertEqual(pending.answer().status, 502)
        gone = self.screenshot()
        gone.protocol.connectionLost(Failure(ConnectionLost()))
        self.screenshot()
        self.server.clock.advance(60)
        for outcome in ("not-connected", "target-refused", "cancelled", "timed-out"):
            self.assertEqual(self.metric("dials_total", outcome=outcome), 1, outcome)

    def test_comingBack(self) -> None:
        """First, within grace, after grace and by takeover are told apart."""
        first = self.sandbox()
        self.assertEqual(self.metric("runners_away"), 0)
        first.protocol.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.metric("grace_entries"), 1)
        self.assertEqual(self.metric("runners_away"), 1)
        second = self.sandbox()
        second.protocol.connectionLost(Failure(ConnectionLost()))
        self.server.clock.pump([10] * 5)
        self.assertEqual(self.metric("runners_gone_total"), 1)
        self.sandbox()
        self.sandbox()
        for how in ("first", "within_grace", "after_grace", "takeover"):
            self.assertEqual(self.metric("registrations_total", how=how), 1, how)
        self.assertEqual(self.metric("control_ended_total", reason="lost"), 2)

    def test_refusedRegistration(self) -> None:
        """A name that another holds is counted as such."""
        for _ in range(2):
            Sandbox(self.server, "wolf-1", self.server.runner("wolf-*"))
        self.assertEqual(self.metric("registrations_refused_total", error="held"), 1)

    def test_pendingLimit(self) -> None:
        """A limit that is hit says which it was."""
        self.sandbox()
        waiting = [self.screenshot() for _ in range(101)]
        self.assertEqual(waiting[-1].answer().status, 503)
        self.assertEqual(self.metric("limits_hit_total", limit="pending_dials_per_runner"), 1)

    def test_strangers(self) -> None:
        """Connections that have not shown who they are."""
        self.server.connect()
        self.assertEqual(self.metric("unauthenticated_connections"), 1)

    def test_runnerLabelsAreOffByDefault(self) -> None:
        """G7: no runner's key is a label unless the operator says so."""
        self.sandbox()
        page, _ = exposition(self.server.observation.metrics.registry, "")
        self.assertNotIn(self.key.encode(), page)

    def test_runnerLabels(self) -> None:
        """Where they are on, a runner that is gone is still there, as 0."""
        self.server.observation._runnerLabels = True
        sandbox = self.sandbox()
        self.assertEqual(self.metric("runner_connected", runner=self.key), 1)
        sandbox.protocol.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.metric("runner_connected", runner=self.key), 0)


class StreamsTests(Watched):
    """C{/api/v1/admin/streams} and its like for a session."""

    def finished(self) -> None:
        sandbox = self.sandbox()
        pending = self.screenshot(traceparent=PARENT)
        self.server.clock.advance(0.5)
        sandbox.pickUp()
        sandbox.answer(PNG)
        pending.answer()
        sandbox.data.connectionLost(Failure(ConnectionLost()))

    def test_recent(self) -> None:
        """A finished stream: phases in milliseconds, outcome, bytes, request and trace."""
        self.finished()
        (item,) = self.streams()["items"]
        self.assertEqual(
            (item["runner"], item["state"], item["outcome"], item["carrier"]),
            (self.key, "ended", "connected", "raw"),
        )
        self.assertEqual((item["phases"]["asked"], item["phases"]["dialBack"]), (0, 500))
        self.assertEqual(item["trace"], TRACE)
        self.assertTrue(item["request"])
        self.assertGreater(item["bytes_in"], len(PNG))
        self.assertEqual(self.streams("?state=live")["items"], [])
        self.assertEqual(self.streams(f"?dial={item['dial']}")["items"], [item])
        self.assertEqual(self.streams("?runner=wolf-1")["items"], [])

    def test_live(self) -> None:
        """A dial is waiting, then asked, then open; each time that is what it says."""
        sandbox = self.sandbox()
        sandbox.protocol.connectionLost(Failure(ConnectionLost()))
        self.screenshot()
        state = lambda: [one["state"] for one in self.streams("?state=live")["items"]]  # noqa: E731
        self.assertEqual(state(), ["waiting"])
        sandbox = self.sandbox()
        self.assertEqual(state(), ["asked"])
        sandbox.pickUp()
        self.assertEqual(state(), ["open"])
        self.assertEqual(self.streams("?state=recent")["items"], [])

    def test_runner(self) -> None:
        """What is known of a runner: when it came, went and why, and how it stands."""
        (record,) = self.streams(f"?runner={self.key}")["runners"]
        self.assertEqual((record["status"], record["first_seen"]), ("none", None))
        sandbox = self.sandbox()
        (record,) = self.streams(f"?runner={self.key}")["runners"]
        self.assertEqual(
            (record["status"], record["registrations"], record["peer"]),
            ("connected", 1, "192.0.2.7"),
        )
        sandbox.protocol.connectionLost(Failure(ConnectionLost()))
        self.server.clock.advance(10)
        (record,) = self.streams(f"?runner={self.key}")["runners"]
        self.assertEqual((record["status"], record["grace_seconds_left"]), ("grace", 20))
        self.assertIn("lost", record["lost_reason"].lower())

    def test_lastRefusal(self) -> None:
        """Nothing is known of the runner but that somebody was refused under its name."""
        token = self.server.runner("moonlight-*")
        Sandbox(self.server, "wolf-9", token)
        (record,) = self.streams("?runner=wolf-9")["runners"]
        self.assertEqual(record["status"], "none")
        self.assertEqual(record["last_refusal"]["event"], "registration-refused")
        self.assertEqual(record["last_refusal"]["peer"], "192.0.2.7")

    def test_unknownDial(self) -> None:
        """A dial that nobody remembers is 404, and says why that may be."""
        answer = self.server.get("/api/v1/admin/streams?dial=" + "0" * 32, self.admin)
        self.assertEqual(answer.status, 404)
        self.assertIn("since its start", answer.detail)

    def test_who(self) -> None:
        """Only administrators ask about everything; of a session whoever may see it."""
        for path in ("/api/v1/admin/streams", "/api/v1/admin/ledger"):
            self.assertEqual(self.server.get(path).status, 401)
            self.assertEqual(self.server.get(path, self.ann).status, 403)
        self.finished()
        answer = self.server.get(self.path + "/streams", self.ann)
        self.assertEqual([one["runner"] for one in answer.json()["items"]], [self.key])
        self.assertEqual([one["key"] for one in answer.json()["runners"]], [self.key])
        stranger = self.server.user("bob")
        self.assertEqual(self.server.get(self.path + "/streams", stranger).status, 403)

    def test_limit(self) -> None:
        """As many as are wanted, the latest first; nonsense is refused."""
        for _ in range(3):
            sandbox = self.sandbox()
            self.screenshot()
            sandbox.refuse("target-refused", "no")
            self.server.connections.revoke(key=self.key)
        self.assertEqual(len(self.streams("?limit=2")["items"]), 2)
        for query in ("?limit=0", "?limit=100000", "?state=dead"):
            self.assertEqual(
                self.server.get(f"/api/v1/admin/streams{query}", self.admin).status, 400, query
            )

    def test_noSecret(self) -> None:
        """F1: neither tickets nor tokens are in what is told."""
        sandbox = self.sandbox()
        self.screenshot()
        ticket = sandbox.asked()["ticket"]
        sandbox.pickUp()
        text = json.dumps(self.streams(f"?runner={self.key}"))
        for secret in (ticket, self.token, self.ann):
            self.assertNotIn(secret, text)


class LedgerTests(Watched):
    """C{/api/v1/admin/ledger}."""

    def ledger(self) -> Any:
        return self.server.get("/api/v1/admin/ledger", self.admin).json()

    def test_emptyAfterwards(self) -> None:
        """What a screenshot took is given back: tables, dials, streams, timers."""
        sandbox = self.sandbox()
        before = self.ledger()
        pending = self.screenshot()
        during = self.ledger()
        self.assertEqual((during["pending_dials"]["asked"], during["tables"]["dials"]), (1, 1))
        sandbox.pickUp()
        self.assertEqual(self.ledger()["streams"], 1)
        sandbox.answer(PNG)
        sandbox.data.connectionLost(Failure(ConnectionLost()))
        pending.protocol.connectionLost(Failure(ConnectionLost()))
        after = self.ledger()
        for part in ("pending_dials", "streams", "buffers"):
            self.assertEqual(after[part], before[part], part)
        tables = {name: after["tables"][name] for name in ("dials", "streams", "claims", "runners")}
        self.assertEqual(tables, {"dials": 0, "streams": 0, "claims": 0, "runners": 1})

    def test_timersHaveOwners(self) -> None:
        """Each timer is there by the name of what it calls."""
        self.sandbox()
        timers = self.ledger()["timers"]
        self.assertTrue(any("ControlConnection" in name for name in timers), timers)


class TraceTests(Watched):
    """W3C Trace Context through the tunnel."""

    def test_passedOn(self) -> None:
        """The caller's trace goes on to the desktop, as a piece of work of its own."""
        sandbox = self.sandbox()
        self.screenshot(traceparent=PARENT, tracestate="a=1")
        head = sandbox.pickUp().decode().lower()
        (line,) = [one for one in head.split("\r\n") if one.startswith("traceparent: ")]
        self.assertRegex(line, rf"traceparent: 00-{TRACE}-[0-9a-f]{{16}}-01$")
        self.assertNotIn("00f067aa0ba902b7", line)
        self.assertIn("\r\ntracestate: a=1\r\n", head)

    def test_made(self) -> None:
        """Without one, or with nonsense, a trace begins here."""
        sandbox = self.sandbox()
        for headers in ({}, {"traceparent": "00-nonsense"}):
            self.screenshot(**headers)
            self.assertRegex(
                sandbox.pickUp().decode().lower(),
                r"\r\ntraceparent: 00-[0-9a-f]{32}-[0-9a-f]{16}-00\r\n",
            )

    def test_inTheLog(self) -> None:
        """The access log and the line of the dial have the trace, the request and the dial."""
        events: list[Any] = []
        observer: Any = events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        sandbox = self.sandbox()
        pending = self.screenshot(traceparent=PARENT)
        sandbox.pickUp()
        sandbox.answer(PNG)
        answer = pending.answer()
        sandbox.data.connectionLost(Failure(ConnectionLost()))
        requestId = answer.headers["x-request-id"]
        of = [event for event in events if event.get("trace") == TRACE]
        self.assertEqual({event["requestId"] for event in of}, {requestId})
        (dial,) = [event for event in of if "dial" in event]
        self.assertEqual((dial["runner"], dial["outcome"]), (self.key, "connected"))


class SpanTests(Watched):
    """Spans of requests and dials, in an exporter in memory."""

    def test_aScreenshot(self) -> None:
        """The caller's span has the request's below it, and this one the dial's."""
        exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        spans = self.server.observation.spans = Spans(provider.get_tracer("test"))
        self.server.factory.dispatch = lambda request: traced(request, self.server.table, spans)
        sandbox = self.sandbox()
        exporter.clear()
        pending = self.screenshot(traceparent=PARENT)
        asked = sandbox.pickUp().decode().lower()
        exporter.clear()
        sandbox.answer(PNG)
        pending.answer()
        sandbox.data.connectionLost(Failure(ConnectionLost()))
        found: dict[str, Any] = {span.name: span for span in exporter.get_finished_spans()}
        dial = found["helix_revdial.dial"]
        served = found["GET"]
        self.assertEqual(served.attributes["http.response.status_code"], 200)
        self.assertEqual(f"{served.parent.span_id:016x}", "00f067aa0ba902b7")
        self.assertEqual(f"{served.context.trace_id:032x}", TRACE)
        self.assertEqual(dial.parent.span_id, served.context.span_id)
        self.assertEqual(dial.attributes["helix_revdial.runner"], self.key)
        self.assertEqual([event.name for event in dial.events][:2], ["asked", "dialBack"])
        parent = f"traceparent: 00-{TRACE}-{served.context.span_id:016x}-01"
        self.assertIn(parent, asked, "the desktop's work is part of the request's")

    def test_aRequestThatIsRefused(self) -> None:
        """A refusal is the status of its span, and no error of ours."""
        exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        spans = Spans(provider.get_tracer("test"))
        self.server.factory.dispatch = lambda request: traced(request, self.server.table, spans)
        self.assertEqual(self.server.get("/api/v1/admin/ledger").status, 401)
        (span,) = exporter.get_finished_spans()
        self.assertTrue(span.status.is_ok)
        assert span.attributes is not None
        self.assertEqual(span.attributes["http.response.status_code"], 401)


class ServiceTests(SynchronousTestCase):
    """L{MetricsService}."""

    def service(self, listen: str | None) -> tuple[MetricsService, MemoryReactorClock]:
        reactor = MemoryReactorClock()
        config = ServerConfig(metrics=MetricsSection(listen=listen))
        return MetricsService(reactor, config, lambda: 1000.0), reactor

    def test_offUnlessSet(self) -> None:
        """Without C{metrics.listen} no port is opened."""
        service, reactor = self.service(None)
        service.privilegedStartService()
        service.startService()
        self.assertEqual(reactor.tcpServers, [])
        self.successResultOf(service.stopService())
        self.assertEqual(reactor.getDelayedCalls(), [])

    def test_badEndpoint(self) -> None:
        """An endpoint that is none is an error of the start that names the setting."""
        with self.assertRaises(ConfigError) as caught:
            self.service("nonsense:1")
        self.assertIn("metrics.listen", str(caught.exception))

    def test_page(self) -> None:
        """C{/metrics} asks for no token; everything else is 404 and nothing can be written."""
        service, _ = self.service("tcp:9464")
        server = Server()
        server.factory = service.factory
        answer = server.get("/metrics")
        self.assertEqual(answer.status, 200)
        self.assertTrue(answer.headers["content-type"].startswith("text/plain"))
        self.assertIn(b"helix_revdial_build_info", answer.body)
        self.assertEqual(server.get("/api/v1/sessions").status, 404)
        refused = server.post("/metrics", None, {})
        self.assertEqual((refused.status, refused.headers["allow"]), (405, "GET, HEAD"))

    def test_spansWithoutTheExporter(self) -> None:
        """Spans that are asked for and cannot be had end the start with what to install."""
        config = ServerConfig(tracing=TracingSection(otlp=True))
        with self.assertRaises(ConfigError) as caught:
            MetricsService(MemoryReactorClock(), config, lambda: 1000.0)
        self.assertIn("helix_revdial[otel]", str(caught.exception))

    def test_databaseFiles(self) -> None:
        """An SQLite database is a file and those beside it; another has none here."""
        kind = databaseFiles("sqlite:////var/lib/x/helix.sqlite")
        self.assertEqual(kind("/var/lib/x/helix.sqlite-wal"), "database")
        self.assertIsNone(kind("/var/lib/x/other"))
        self.assertIsNone(databaseFiles("postgresql+psycopg://db/x")("/x"))

    def test_beforeTheServerIsThere(self) -> None:
        """A scrape while the server starts has what there is."""
        observation = Observation(MemoryReactorClock(), lambda: 1000.0, "1")
        self.assertEqual(scraped(observation.metrics.registry)[PREFIX + "ready"][()], 0)
        self.assertEqual(observation.living(), [])
        self.assertEqual(observation.ledger().streams, 0)
