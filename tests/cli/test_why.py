"""C{helix why} and C{helix server ledger}: the server's answers in sentences."""

from __future__ import annotations

import json
from typing import Any

from helix_revdial.cli.why import ADVICE
from helix_revdial.revdial.errors import DialError
from tests.cli.fake import CommandTestCase, Given, problem

PATH = "/api/v1/admin/streams"
DIAL = "0123456789abcdef0123456789abcdef"
STARTED = "2026-11-21T09:00:43.000Z"


def runner(**fields: Any) -> dict[str, Any]:
    """A runner of which nothing is known, but for this."""
    return {
        "key": "wolf-1",
        "status": "none",
        "server_started_at": STARTED,
        "first_seen": None,
        "connected_at": None,
        "generation": None,
        "registrations": 0,
        "peer": None,
        "lost_at": None,
        "lost_reason": None,
        "grace_seconds_left": None,
        "last_refusal": None,
        **fields,
    }


def dial(**fields: Any) -> dict[str, Any]:
    """A dial that connected and ended, but for this."""
    return {
        "dial": DIAL,
        "runner": "wolf-1",
        "target": None,
        "generation": 1,
        "state": "ended",
        "started_at": "2026-11-21T09:00:48.000Z",
        "phases": {"asked": 0.02, "dialBack": 2.5, "firstByteIn": 10.0, "ended": 1500.0},
        "outcome": "connected",
        "reason": "closed",
        "carrier": "raw",
        "bytes_in": 2048,
        "bytes_out": 10,
        "request": None,
        "trace": None,
        **fields,
    }


class WhyTests(CommandTestCase):
    """What happened, told."""

    def told(self, *arguments: str, **answer: Any) -> str:
        self.api.on("GET", PATH, Given({"items": [], "runners": [], **answer}))
        ran = self.helix("why", *arguments)
        self.assertEqual((ran.code, ran.err), (0, ""))
        return ran.out

    def test_whoIsAsked(self) -> None:
        """A dial, a session and a runner are told apart by their form."""
        self.told("wolf-1")
        self.told(DIAL, "--limit", "3")
        session = "/api/v1/external-agents/ses_1/streams"
        self.api.on("GET", session, Given({"items": [], "runners": []}))
        self.helix("why", "ses_1")
        self.assertEqual(self.api.paths(), [f"GET {PATH}", f"GET {PATH}", f"GET {session}"])
        self.assertEqual(
            [asked.query for asked in self.api.asked],
            [{"limit": "10", "runner": "wolf-1"}, {"limit": "3", "dial": DIAL}, {"limit": "10"}],
        )

    def test_neverSeen(self) -> None:
        """Of a runner that nobody saw it says since when, and who was refused last."""
        refusal = {
            "at": "2026-11-21T09:10:00.000Z",
            "event": "registration-refused",
            "reason": None,
            "peer": "192.0.2.7",
            "times": 1,
        }
        self.assertEqual(
            self.told("wolf-1", runners=[runner(last_refusal=refusal)]).splitlines(),
            [
                "wolf-1 is not connected, and has not been since the server started at "
                "2026-11-21 09:00:43Z.",
                "The last time that somebody was refused under this name (registration-refused) "
                "was at 2026-11-21 09:10:00Z, from 192.0.2.7.",
                "",
                "No dial of it is remembered.",
            ],
        )

    def test_connected(self) -> None:
        """Since when, from where, how many times; and how the connection before ended."""
        out = self.told(
            "wolf-1",
            runners=[
                runner(
                    status="connected",
                    first_seen=STARTED,
                    connected_at="2026-11-21T09:05:00.000Z",
                    registrations=2,
                    peer="192.0.2.7",
                    lost_at="2026-11-21T09:04:58.000Z",
                    lost_reason="silence",
                )
            ],
        )
        self.assertIn("connected, since 2026-11-21 09:05:00Z, from 192.0.2.7; ", out)
        self.assertIn("registered 2 times", out)
        self.assertIn("Before that: Its connection ended at 2026-11-21 09:04:58Z: silence.", out)

    def test_grace(self) -> None:
        """How long dials still wait."""
        out = self.told(
            "wolf-1",
            runners=[
                runner(
                    status="grace",
                    first_seen=STARTED,
                    connected_at=STARTED,
                    lost_at=STARTED,
                    lost_reason="lost",
                    grace_seconds_left=12.0,
                )
            ],
        )
        self.assertIn("in its grace period, for 12.0s more: dials wait for it.", out)

    def test_gone(self) -> None:
        """It was here, and is no longer awaited."""
        out = self.told("wolf-1", runners=[runner(first_seen=STARTED, connected_at=STARTED)])
        self.assertIn("not connected, and no longer awaited. It was connected at", out)

    def test_aDialThatWentWell(self) -> None:
        """Its phases in order, its end and its bytes."""
        out = self.told(DIAL, items=[dial(request="r1", trace="t1")])
        self.assertEqual(
            out.splitlines(),
            [
                f"Dial {DIAL} to wolf-1, the default target, at 2026-11-21 09:00:48Z:",
                "  the agent was asked after 0.0 ms; its data connection was up after 2.5 ms; the "
                "first byte came back after 10.0 ms.",
                "  It ended after 1.5 s: closed; 2.0 KiB in, 10 B out.",
                "  Asked for by request r1, trace t1.",
            ],
        )

    def test_pooled(self) -> None:
        """A dial that took a parked connection says so: there was no dial-back."""
        out = self.told(DIAL, items=[dial(pooled=True)])
        self.assertIn("its agent answered, on a data connection that was parked, after 2.5 ms", out)

    def test_failures(self) -> None:
        """Every error that a dial can end with comes with what to look at."""
        words = {error.word for error in DialError.__subclasses__()}
        # These end no dial: they are answers to a data connection or a registration.
        for word in words - {"not-allowed", "unknown-dial", "held"}:
            out = self.told(DIAL, items=[dial(outcome=word, reason="why.", phases={"ended": 2.0})])
            self.assertIn(f"It failed after 2.0 ms ({word}): why.\n", out)
            self.assertIn(ADVICE[word], out)

    def test_underWay(self) -> None:
        """What it waits for, or what has moved so far."""
        for state, words in (
            ("waiting", "It waits for the runner to come back."),
            ("asked", "The agent was asked, and has not dialled back yet."),
            ("open", "It is open, over raw: 2.0 KiB in, 10 B out."),
        ):
            out = self.told(DIAL, items=[dial(state=state, outcome=None, reason=None, phases={})])
            self.assertIn(words, out)

    def test_whatTheServerSaysIsHarmless(self) -> None:
        """Control characters of a sandbox's reason never reach the terminal."""
        out = self.told(DIAL, items=[dial(outcome="broken", reason="\x1b[31mred\nline")])
        self.assertNotIn("\x1b", out)
        self.assertIn("[31mred line", out)

    def test_strangeAnswer(self) -> None:
        """A server of another version may leave out anything."""
        out = self.told("wolf-1", runners=[{}], items=[{}, 5])
        self.assertTrue(out)

    def test_json(self) -> None:
        """JSON is the server's own answer."""
        answer = {"items": [dial()], "runners": [runner()]}
        self.api.on("GET", PATH, Given(answer))
        self.assertEqual(json.loads(self.helix("why", "wolf-1", "--json").out), answer)

    def test_unknown(self) -> None:
        """What the server does not know is one line, and exit code 1."""
        self.api.on("GET", PATH, problem(404, "Nothing is known of the dial.", "unknown-dial"))
        ran = self.helix("why", DIAL)
        self.assertEqual(ran.code, 1)
        self.assertIn("Nothing is known of the dial", ran.err)


class LedgerTests(CommandTestCase):
    """C{helix server ledger}."""

    ANSWER: dict[str, Any] = {
        "descriptors": {"control": 2, "other": 1},
        "descriptor_limit": 1024,
        "timers": {},
        "streams": 0,
    }

    def test_table(self) -> None:
        """Each owner with what it holds."""
        self.api.on("GET", "/api/v1/admin/ledger", Given(self.ANSWER))
        rows = [line.split() for line in self.helix("server", "ledger").out.splitlines()]
        self.assertEqual(
            rows,
            [
                ["WHAT", "OWNER", "COUNT"],
                ["descriptors", "control", "2"],
                ["descriptors", "other", "1"],
                ["descriptor_limit", "-", "1,024"],
                ["streams", "-", "0"],
            ],
        )

    def test_json(self) -> None:
        """JSON is the server's own answer."""
        self.api.on("GET", "/api/v1/admin/ledger", Given(self.ANSWER))
        self.assertEqual(json.loads(self.helix("server", "ledger", "--json").out), self.ANSWER)
