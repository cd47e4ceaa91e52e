"""Tests for C{benchmarks}: what is computed from measurements, and what is told of it."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

from twisted.trial.unittest import SynchronousTestCase

from benchmarks.load import percentiles
from benchmarks.report import markdown, svg
from benchmarks.results import Results, fallen, lastRatios
from benchmarks.tunnels import Named


def measured() -> Results:
    """Three rounds of two tunnels; the machine was slow in the second."""
    results = Results(settings={"delay": 0.0, "tls": False, "short": False})
    for haproxy, raw in ((100.0, 150.0), (10.0, 20.0), (100.0, 160.0)):
        results.add("up1", "haproxy", {"rate": haproxy, "cpu": 1.0})
        results.add("up1", "raw", {"rate": raw, "cpu": 0.5})
    return results


class ResultsTests(SynchronousTestCase):
    """L{Results}."""

    def test_ratiosAreOfTheSameRound(self) -> None:
        """A round in which all was slow does not count as a slow tunnel."""
        results = measured()
        self.assertEqual(results.ratio("up1", "raw", "rate"), 1.6)
        self.assertEqual(results.median("up1", "haproxy", "rate"), 100.0)

    def test_aFailedRoundIsLeftOut(self) -> None:
        """What failed has neither a median nor a ratio, and moves no other round's."""
        results = measured()
        results.add("up1", "haproxy", {"rate": 100.0, "cpu": 1.0})
        results.add("up1", "raw", None)
        results.add("down1", "raw", None)
        self.assertEqual(results.ratio("up1", "raw", "rate"), 1.6)
        self.assertIsNone(results.median("down1", "raw", "rate"))

    def test_keptAndFoundAgain(self) -> None:
        """The last run with the same delay and TLS is what a run is compared with."""
        directory = Path(self.mktemp())
        results = measured()
        results.write(directory / "1.json")
        (directory / "2.json").write_text("no JSON")
        same = {"delay": 0.0, "tls": False, "short": False}
        self.assertEqual(lastRatios(directory, same), results.ratios())
        self.assertEqual(lastRatios(directory, {**same, "delay": 10.0}), {})


class BaselineTests(SynchronousTestCase):
    """L{fallen}: what makes the short form fail."""

    def test_aThirdIsAllowed(self) -> None:
        """A rate may fall by a third; a cost may rise to one and a half."""
        baseline = {"raw/up1/rate": 1.2, "raw/up1/cpu": 1.0}
        self.assertEqual(fallen({"raw/up1/rate": 0.81, "raw/up1/cpu": 1.49}, baseline), [])
        lines = fallen({"raw/up1/rate": 0.79, "raw/up1/cpu": 1.51}, baseline)
        self.assertEqual(
            lines,
            [
                "raw/up1/rate: 0.79 x haproxy, at least 0.80",
                "raw/up1/cpu: 1.51 x haproxy, at most 1.50",
            ],
        )

    def test_whatIsNotMeasuredFails(self) -> None:
        """A tunnel that gave no figure is no success."""
        self.assertEqual(fallen({}, {"raw/up1/rate": 1.0}), ["raw/up1/rate: not measured"])

    def test_theBaselineNamesWhatTheShortFormMeasures(self) -> None:
        """Else it could never pass."""
        from benchmarks.__main__ import BASELINE, SHORT_TUNNELS, SHORT_WORKLOADS

        for name in json.loads(BASELINE.read_text()):
            tunnel, workload, what = name.split("/")
            self.assertIn(tunnel, SHORT_TUNNELS)
            self.assertIn(workload, SHORT_WORKLOADS)
            self.assertIn(what, ("rate", "cpu"))


class ReportTests(SynchronousTestCase):
    """What people see."""

    def test_table(self) -> None:
        """Medians, ratios, and what moved."""
        text = markdown(measured(), {"raw/up1/rate": 1.0})
        self.assertIn("| raw | 150 (1.60) [0.50] |", text)
        self.assertIn("raw/up1/rate 1.00 to 1.60", text)

    def test_plot(self) -> None:
        """It is XML, with a bar for each tunnel."""
        found = ElementTree.fromstring(svg(measured()))
        titles = [each.text for each in found.iter("{http://www.w3.org/2000/svg}title")]
        self.assertEqual(
            titles, ["haproxy, bulk up, 1 stream: 1.00", "raw, bulk up, 1 stream: 1.60"]
        )

    def test_percentiles(self) -> None:
        """In microseconds; of nothing, nothing."""
        hundred = [number / 1e6 for number in range(100)]
        found = percentiles(hundred)
        self.assertEqual((round(found["p50"]), round(found["p99"])), (50, 99))
        self.assertEqual(percentiles([]), {"p50": 0.0, "p99": 0.0})


class OtherTunnelTests(SynchronousTestCase):
    """C{--tunnel}."""

    def test_malformed(self) -> None:
        """It is refused before anything is started."""
        for text in ("", "x", "x=1", "x=y:sleep 1", "=1:sleep 1", "x=1:"):
            self.assertRaises(ValueError, Named.parse, text)

    def test_wellFormed(self) -> None:
        """A command may have colons and equals signs of its own."""
        found = Named.parse("frp=7000:frpc --a=b 127.0.0.1:{target}")
        self.assertEqual(found, Named("frp", 7000, "frpc --a=b 127.0.0.1:{target}"))
