"""The metrics' pages: what the tables name is what a scrape has, and nothing else."""

from __future__ import annotations

import timeit
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

import helix_revdial
from helix_revdial.cli.why import ADVICE
from helix_revdial.revdial import errors
from helix_revdial.telemetry.eventloop import LoopLag
from helix_revdial.telemetry.metrics import (
    MAX_RUNNERS,
    AgentMetrics,
    AgentState,
    RunnerState,
    ServerMetrics,
    ServerState,
    exposition,
)
from helix_revdial.telemetry.rows import AGENT, OUTCOMES, PREFIX, SERVER, Row, tableText

ROOT = Path(helix_revdial.__file__).parent.parent

FULL = ServerState(
    delayedCalls=7,
    buffered={"data": 100},
    logDropped=3,
    ready=True,
    connections={("control", "raw"): 2, ("data", "websocket"): 1},
    unauthenticated=4,
    requests={"2xx": 9},
    grace=1,
    runnersAway=2,
    pending={"waiting": 1, "asked": 2},
    oldestPending=1.5,
    streams=1,
    bytesIn=1000,
    bytesOut=2000,
    limits={"connections": 5},
    tables={"runners": 3},
    runners=[RunnerState("wolf-1", True, 1, 0.02), RunnerState("wolf-2", False)],
)


def scraped(registry: CollectorRegistry, accept: str = "") -> dict[str, dict[Any, float]]:
    """Each sample's name, with its values by labels."""
    page, _ = exposition(registry, accept)
    found: dict[str, dict[Any, float]] = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def families(registry: CollectorRegistry) -> dict[str, tuple[str, str]]:
    """Each family of ours: its kind and its help."""
    return {
        f"{family.name}_total" if family.type == "counter" else family.name: (
            family.type,
            family.documentation,
        )
        for family in registry.collect()
        if family.name.startswith(PREFIX)
    }


class PageTests(SynchronousTestCase):
    """L{ServerMetrics} and L{AgentMetrics}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.state = ServerState()
        self.server = ServerMetrics(lambda: self.state, LoopLag(self.clock), "1.2.3")
        self.agent = AgentMetrics(lambda: AgentState(), LoopLag(self.clock), "1.2.3")

    def test_tablesAreWhatIsScraped(self) -> None:
        """The families of a scrape are the rows of the table, with their kinds and words."""
        for rows, registry in ((SERVER, self.server.registry), (AGENT, self.agent.registry)):
            expected = {row.fullName: (row.kind, row.meaning) for row in rows}
            self.assertEqual(families(registry), expected)

    def test_labels(self) -> None:
        """Each sample has exactly the labels of its row."""
        self.state = FULL
        self.server.dialConnected({"asked": 0, "dialBack": 0.1})
        rows: dict[str, Row] = {row.fullName: row for row in SERVER}
        for name, samples in scraped(self.server.registry).items():
            base = name
            for suffix in ("_bucket", "_count", "_sum"):
                base = base.removesuffix(suffix) if base.removesuffix(suffix) in rows else base
            if base not in rows:
                self.assertTrue(name.startswith(("process_",)), name)
                continue
            for labels in samples:
                names = {label for label, _ in labels} - {"le"}
                self.assertEqual(names, set(rows[base].labels), name)

    def test_values(self) -> None:
        """What is, is what is shown."""
        self.state = FULL
        found = scraped(self.server.registry)
        for name, labels, value in (
            ("ready", {}, 1),
            ("connections", {"kind": "control", "carrier": "raw"}, 2),
            ("connections", {"kind": "data", "carrier": "websocket"}, 1),
            ("unauthenticated_connections", {}, 4),
            ("http_requests_total", {"status": "2xx"}, 9),
            ("grace_entries", {}, 1),
            ("runners_away", {}, 2),
            ("pending_dials", {"state": "asked"}, 2),
            ("pending_dial_oldest_seconds", {}, 1.5),
            ("streams", {}, 1),
            ("stream_bytes_total", {"direction": "in"}, 1000),
            ("stream_bytes_total", {"direction": "out"}, 2000),
            ("limits_hit_total", {"limit": "connections"}, 5),
            ("table_entries", {"table": "runners"}, 3),
            ("runner_connected", {"runner": "wolf-1"}, 1),
            ("runner_connected", {"runner": "wolf-2"}, 0),
            ("runner_streams", {"runner": "wolf-1"}, 1),
            ("runner_round_trip_seconds", {"runner": "wolf-1"}, 0.02),
            ("delayed_calls", {}, 7),
            ("buffered_bytes", {"kind": "data"}, 100),
            ("log_lines_dropped_total", {}, 3),
        ):
            self.assertEqual(found[PREFIX + name][tuple(sorted(labels.items()))], value, name)
        self.assertEqual(len(found[PREFIX + "runner_round_trip_seconds"]), 1)

    def test_aDialThatConnected(self) -> None:
        """Each phase is measured from the one before it, not from the start."""
        phases = {"asked": 2.0, "dialBack": 2.25, "target": 0.125}
        self.server.dialConnected(phases)
        found = scraped(self.server.registry)
        self.assertEqual(found[PREFIX + "dials_total"][(("outcome", "connected"),)], 1)
        self.assertEqual(found[PREFIX + "dial_wait_seconds_sum"][(("result", "connected"),)], 2.25)
        self.assertEqual(found[PREFIX + "stream_seconds_count"][()], 0)
        self.server.streamEnded(
            {**phases, "firstByteOut": 2.5, "firstByteIn": 3.25, "ended": 12.25}
        )
        found = scraped(self.server.registry)
        sums = found[PREFIX + "dial_phase_seconds_sum"]
        self.assertEqual(
            {labels[0][1]: value for labels, value in sums.items()},
            {
                "asked": 2.0,
                "dial_back": 0.25,
                "target": 0.125,
                "first_byte_out": 0.25,
                "first_byte_in": 1.0,
            },
        )
        self.assertEqual(found[PREFIX + "dial_wait_seconds_sum"][(("result", "connected"),)], 2.25)
        self.assertEqual(found[PREFIX + "stream_seconds_sum"][()], 10.0)
        self.assertEqual(found[PREFIX + "dials_total"][(("outcome", "connected"),)], 1)

    def test_aDialThatFailed(self) -> None:
        """It has a wait and no phases that it did not reach."""
        self.server.dialFailed("reconnect-timeout", {"ended": 30.0})
        found = scraped(self.server.registry)
        self.assertEqual(found[PREFIX + "dial_wait_seconds_sum"][(("result", "failed"),)], 30)
        counts = found[PREFIX + "dial_phase_seconds_count"]
        self.assertEqual(set(counts.values()), {0})

    def test_runnerLabelsAreBounded(self) -> None:
        """G7: beyond the most there is one number for all the others."""
        self.state = ServerState(
            runners=[RunnerState(f"wolf-{number}", True) for number in range(MAX_RUNNERS + 5)]
        )
        found = scraped(self.server.registry)
        self.assertEqual(len(found[PREFIX + "runner_connected"]), MAX_RUNNERS)
        self.assertEqual(found[PREFIX + "runner_labels_omitted"][()], 5)

    def test_labelsAreBounded(self) -> None:
        """G7: words of peers make no label values."""
        for number in range(1000):
            self.server.dialFailed(f"word-{number}", {"ended": 1.0})
            self.server.ended.add(f"reason {number}")
        found = scraped(self.server.registry)
        self.assertEqual(len(found[PREFIX + "dials_total"]), len(OUTCOMES) + 1)
        self.assertLess(sum(len(samples) for samples in found.values()), 400)

    def test_everyErrorOfADialHasItsWord(self) -> None:
        """What a dial can fail with is counted under its own word, and C{helix why} explains it."""
        ofPickUpsAndRegistrations = {errors.UnknownDial, errors.HeldByAnother}
        words = {
            error.word
            for error in vars(errors).values()
            if isinstance(error, type)
            and issubclass(error, errors.DialError)
            and error not in ofPickUpsAndRegistrations
        }
        self.assertEqual(words - set(OUTCOMES), set())
        self.assertEqual(set(OUTCOMES) - {"connected"}, set(ADVICE))

    def test_aRegistryEach(self) -> None:
        """Nothing is shared: two services of one process do not meet."""
        other = ServerMetrics(ServerState, LoopLag(self.clock), "1.2.3")
        other.dialFailed("busy", {"ended": 0.0})
        found = scraped(self.server.registry)[PREFIX + "dials_total"]
        self.assertEqual(found[(("outcome", "busy"),)], 0)
        names = {family.name for family in REGISTRY.collect()}
        self.assertFalse([name for name in names if name.startswith(PREFIX)])

    def test_openMetrics(self) -> None:
        """A scraper that asks for OpenMetrics gets it."""
        page, kind = exposition(self.server.registry, "application/openmetrics-text;version=1.0.0")
        self.assertIn("application/openmetrics-text", kind)
        self.assertTrue(page.endswith(b"# EOF\n"))

    def test_costOfADial(self) -> None:
        """The accounting of a dial is a small part of what a dial costs (milliseconds)."""
        phases = {
            "asked": 0.0,
            "dialBack": 0.002,
            "target": 0.001,
            "firstByteOut": 0.002,
            "firstByteIn": 0.004,
            "ended": 0.005,
        }

        def one() -> None:
            self.server.dialConnected(phases)
            self.server.streamEnded(phases)

        seconds = min(timeit.repeat(one, number=2000, repeat=3))
        self.assertLess(seconds / 2000, 100e-6)


class DocumentTests(SynchronousTestCase):
    """C{docs/observability.md}."""

    def test_tables(self) -> None:
        """The page has every metric as it is; where not, the test prints what it should have."""
        text = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
        for name, rows in (("server", SERVER), ("agent", AGENT)):
            _, begin, rest = text.partition(f"<!-- metrics of the {name} -->\n")
            self.assertTrue(
                begin, f"docs/observability.md has lost the mark before its {name} table"
            )
            written, _, _ = rest.partition("<!-- end -->")
            self.assertEqual(written, tableText(rows), f"write:\n{tableText(rows)}")

    def test_rules(self) -> None:
        """The example rules use metrics that exist, with labels that these have."""
        import re

        rules = (ROOT / "etc" / "prometheus-rules.yml").read_text(encoding="utf-8")
        rows = {row.fullName: row for row in (*SERVER, *AGENT)}
        used = re.findall(r"(helix_revdial_[a-z_]+)(?:\{([^}]*)\})?", rules)
        self.assertTrue(used)
        for name, matchers in used:
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            row = rows.get(name) or rows.get(base)
            assert row is not None, f"{name} does not exist"
            for label in re.findall(r"([a-z_]+)\s*[=!]", matchers):
                self.assertIn(label, (*row.labels, "le"), name)
