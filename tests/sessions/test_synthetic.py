"""Tests for L{helix_revdial.sessions.synthetic}."""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.sessions.executor import (
    AgentSpec,
    DeliverySpec,
    Executor,
    ExecutorRefused,
    LaunchSpec,
    Report,
    RepoSpec,
    RuntimeSpec,
    SandboxSpec,
)
from helix_revdial.sessions.synthetic import PATCH, SyntheticExecutor


def spec(prompt: str = "x", **fields: Any) -> LaunchSpec:
    """What is launched."""
    return LaunchSpec(
        "ses_1", prompt, AgentSpec("demo"), RepoSpec("none"), RuntimeSpec("local"), **fields
    )


class SyntheticTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.host = SyntheticExecutor(self.clock, self.clock.seconds)
        self.executor: Executor = self.host

    def get(self, coroutine: Any) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    def journal(self, prompt: str, host: SyntheticExecutor | None = None) -> list[Report]:
        """Everything that is reported of a session that is let run."""
        host = host or self.host
        self.get(host.launch("ses_1", spec(prompt, delivery=DeliverySpec("patch"))))
        while calls := self.clock.getDelayedCalls():
            self.clock.advance(max(calls[0].getTime() - self.clock.seconds(), 0.0) + 1e-9)
        journal = list(host._runs["ses_1"].journal)
        self.get(host.forget("ses_1"))
        return journal

    def shape(self, journal: list[Report]) -> list[Any]:
        began = journal[0].at
        return [
            (report.kind, report.message, report.snapshot, round(report.at - began, 3))
            for report in journal
        ]

    def test_deterministic(self) -> None:
        """The same seed and prompt give the same reports at the same times; others others."""
        first, again = self.journal("hello"), self.journal("hello")
        self.assertEqual(self.shape(first), self.shape(again))
        self.assertNotEqual(self.shape(first), self.shape(self.journal("hello there")))
        other = SyntheticExecutor(self.clock, self.clock.seconds, seed=1)
        self.assertNotEqual(self.shape(first), self.shape(self.journal("hello", other)))

    def test_dense(self) -> None:
        """Reports are numbered from 1; the last is the exit, and there is one of each kind."""
        journal = self.journal("hello")
        self.assertEqual([r.seq for r in journal], list(range(1, len(journal) + 1)))
        self.assertEqual((journal[-1].kind, journal[-1].exitCode), ("exit", 0))
        self.assertEqual(
            {r.kind for r in journal},
            {"workspace", "log", "state", "snapshot", "moment", "delivery", "exit"},
        )

    def test_resuming(self) -> None:
        """Whoever comes back gets the rest, and then what happens."""
        self.get(self.host.launch("ses_1", spec("steps=20")))
        self.clock.pump([0.5] * 10)
        got: list[int] = []

        async def read(after: int) -> None:
            async for report in self.host.reports("ses_1", after):
                got.append(report.seq)

        reading = Deferred.fromCoroutine(read(3))
        self.assertEqual(got[0], 4)
        self.clock.pump([0.5] * 100)
        self.successResultOf(reading)
        self.assertEqual(got, list(range(4, len(self.host._runs["ses_1"].journal) + 1)))

    def test_launchingTwice(self) -> None:
        """The same session is run once."""
        self.get(self.host.launch("ses_1", spec()))
        self.get(self.host.launch("ses_1", spec()))
        self.assertEqual(self.host.launched, {"ses_1": 1})

    def test_unknown(self) -> None:
        """What is not there can be described and forgotten, and nothing else."""
        self.assertIs(self.get(self.host.describe("ses_2")), None)
        self.get(self.host.forget("ses_2"))
        control = self.host.control("ses_2", "stop", deadline=1)
        self.failureResultOf(Deferred.fromCoroutine(control), ExecutorRefused)

    def test_patchAndHost(self) -> None:
        """A patch, and how it is."""
        self.get(self.host.launch("ses_1", spec()))

        async def read() -> bytes:
            return b"".join([piece async for piece in self.host.patch("ses_1")])

        self.assertEqual(self.get(read()), PATCH)
        health = self.get(self.host.host())
        self.assertEqual((health.running, health.slots), (1, 1000))
        self.get(self.host.forget("ses_1"))
        self.assertEqual(self.get(self.host.host()).running, 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class WireTests(SynchronousTestCase):
    """The structs as both ends write them."""

    def test_specs(self) -> None:
        """A spec comes back as it went, in camelCase."""
        full = spec(
            "x",
            sandbox=SandboxSpec("https://cp.example", "hlx_secret"),
            snapshotPreference=["btrfs"],
            delivery=DeliverySpec("branch", "main"),
        )
        encoded = msgspec.json.encode(full)
        self.assertEqual(msgspec.json.decode(encoded, type=LaunchSpec), full)
        self.assertIn(b'"snapshotPreference"', encoded)
        self.assertIn(b'"serverUrl"', encoded)

    def test_noSecretInARepr(self) -> None:
        """F1: a spec that is logged shows no token."""
        self.assertNotIn("hlx_secret", repr(spec(sandbox=SandboxSpec("https://x", "hlx_secret"))))

    def test_reports(self) -> None:
        """Fields of a newer host are ignored; those that a kind has not are left out."""
        report = msgspec.json.decode(
            b'{"seq":1,"at":2.5,"kind":"exit","exitCode":0,"mood":"good"}', type=Report
        )
        self.assertEqual(report, Report(1, 2.5, "exit", exitCode=0))
        self.assertEqual(
            msgspec.json.encode(report), b'{"seq":1,"at":2.5,"kind":"exit","exitCode":0}'
        )
