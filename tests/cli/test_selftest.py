"""C{helix spectask revdial}: what it prints, in every case, and what it exits with."""

from __future__ import annotations

import io
import json

from twisted.internet.defer import CancelledError, Deferred

from helix_revdial.cli.output import Output
from helix_revdial.cli.selftest import JSONReport, sandboxId, selfTest
from tests.cli.fake import (
    DETAIL,
    HANG,
    JPEG,
    CommandTestCase,
    Given,
    connection,
    picture,
    problem,
)

CONNECTION = "/api/v1/external-agents/ses_01abc123/connection"
SCREENSHOT = "/api/v1/external-agents/ses_01abc123/screenshot"

GOLDEN = """\
Testing RevDial connectivity for session ses_01abc123...

Connection Status:
  Sandbox ID:     sandbox-xyz
  RevDial Key:    hydra-sandbox-xyz
  Status:         ✅ Connected

Data Path Test (screenshot):
  Latency:        45ms
  Bytes received: 125,432
  Status:         ✅ Success

RevDial connectivity: PASSED
"""
"""The sample of the command's design document."""


class SelfTestCase(CommandTestCase):
    """Asks for one session."""

    def slowPicture(self) -> Given:
        """A picture that takes 45 ms."""
        self.clock.advance(0.045)
        return picture(Server_Timing="asked;dur=0.2, dialback;dur=12.5, total;dur=40.25")

    def connected(self) -> None:
        """The runner is connected and its screenshot works."""
        self.api.on("GET", CONNECTION, connection("ses_01abc123", runner="hydra-sandbox-xyz"))
        self.api.on("GET", SCREENSHOT, self.slowPicture)


class TextTests(SelfTestCase):
    """What people read."""

    def test_passedReadsAsDesigned(self) -> None:
        """A tunnel that works gives the design's sample, byte for byte, and exit code 0."""
        self.connected()
        ran = self.helix("spectask", "revdial", "ses_01abc123")
        self.assertEqual((ran.out, ran.err, ran.code), (GOLDEN, "", 0))

    def test_connectionIsCheckedBeforeTheDataPath(self) -> None:
        """The key comes from the session's own runner, then the screenshot is taken."""
        self.connected()
        self.helix("spectask", "revdial", "ses_01abc123")
        self.assertEqual(self.api.paths(), [f"GET {CONNECTION}", f"GET {SCREENSHOT}"])

    def test_noConnection(self) -> None:
        """A runner that is not there is reported, no screenshot is asked for, exit code 1."""
        self.api.on("GET", CONNECTION, connection("ses_01abc123", "none"))
        ran = self.helix("spectask", "revdial", "ses_01abc123")
        self.assertEqual(
            ran.out,
            "Testing RevDial connectivity for session ses_01abc123...\n\n"
            "Connection Status:\n"
            "  Sandbox ID:     ses_01abc123\n"
            "  RevDial Key:    sandbox-ses_01abc123\n"
            "  Status:         ❌ Not connected\n\n"
            "❌ No RevDial connection for sandbox (not in connman)\n\n"
            "RevDial connectivity: FAILED\n",
        )
        self.assertEqual((ran.err, ran.code), ("", 1))
        self.assertEqual(self.api.paths(), [f"GET {CONNECTION}"])

    def test_dataPathFailed(self) -> None:
        """A connection whose data path fails is reported with the server's reason, exit code 1."""
        self.connected()
        self.api.on("GET", SCREENSHOT, problem(502, "the target refused the connection"))
        ran = self.helix("spectask", "revdial", "ses_01abc123")
        self.assertIn("  Status:         ✅ Connected\n", ran.out)
        self.assertIn(
            "Data Path Test (screenshot):\n  Status:         ❌ Failed\n\n"
            "❌ Data path test failed: 502 - the target refused the connection\n\n"
            "RevDial connectivity: FAILED\n",
            ran.out,
        )
        self.assertEqual((ran.err, ran.code), ("", 1))

    def test_graceIsWaitedFor(self) -> None:
        """A runner in grace that returns passes; the wait is announced."""
        grace = connection("ses_01abc123", "grace", left=20.0)
        self.connected()
        self.api.on("GET", CONNECTION, grace, grace, connection("ses_01abc123"))
        ran = self.helix("spectask", "revdial", "ses_01abc123")
        self.assertIn("\n⚠️ Connection in grace period, waiting for reconnect...\n", ran.out)
        self.assertEqual(ran.out.count("⚠️"), 1)
        self.assertTrue(ran.out.endswith("RevDial connectivity: PASSED\n"), ran.out)
        self.assertEqual(ran.code, 0)

    def test_graceThatEndsWithoutAReturn(self) -> None:
        """Waiting in vain for the whole grace period exits with 3, and asks no screenshot."""
        grace = connection("ses_01abc123", "grace", left=1.0)
        self.api.on("GET", CONNECTION, grace, grace, grace, connection("ses_01abc123", "none"))
        ran = self.helix("spectask", "revdial", "ses_01abc123")
        self.assertIn("❌ No RevDial connection for sandbox (not in connman)\n", ran.out)
        self.assertTrue(ran.out.endswith("RevDial connectivity: FAILED\n"), ran.out)
        self.assertEqual(ran.code, 3)
        self.assertNotIn(f"GET {SCREENSHOT}", self.api.paths())

    def test_timeoutEndsTheWaitInGrace(self) -> None:
        """C{--timeout} bounds the wait for a reconnect too."""
        self.api.on("GET", CONNECTION, connection("ses_01abc123", "grace", left=30.0))
        started = self.clock.seconds()
        ran = self.helix("spectask", "revdial", "ses_01abc123", "--timeout", "3")
        self.assertEqual(ran.code, 3)
        self.assertIn("❌ Still in grace period after 3 s\n", ran.out)
        self.assertLess(self.clock.seconds() - started, 4)

    def test_timeoutBoundsTheExchange(self) -> None:
        """A screenshot that never ends fails when the time is up."""
        self.connected()
        self.api.on("GET", SCREENSHOT, HANG)
        started = self.clock.seconds()
        ran = self.helix("spectask", "revdial", "ses_01abc123", "--timeout", "5")
        self.assertIn("❌ Data path test failed: no whole answer from http://api", ran.out)
        self.assertEqual(ran.code, 1)
        self.assertLess(self.clock.seconds() - started, 6)

    def test_timeoutBoundsTheConnectionCheck(self) -> None:
        """A server that never says whether the runner is connected is given up in time, too."""
        self.api.on("GET", CONNECTION, HANG)
        started = self.clock.seconds()
        ran = self.helix("spectask", "revdial", "ses_01abc123", "--timeout", "5")
        self.assertEqual(ran.code, 1)
        self.assertIn("helix: no whole answer from http://api.example:8080 within 5 s", ran.err)
        self.assertLess(self.clock.seconds() - started, 6)

    def test_whatIsNoPictureFails(self) -> None:
        """200 with a page, or a picture of another kind than it says, is no working data path."""
        for answer, text in (
            (picture(b"<html>login</html>", "text/html"), "are no PNG, JPEG or WebP picture"),
            (picture(JPEG, "image/png"), "its content type says image/png"),
            (picture(b"", "image/png"), "the 0 bytes of type image/png"),
        ):
            self.connected()
            self.api.on("GET", SCREENSHOT, answer)
            ran = self.helix("spectask", "revdial", "ses_01abc123")
            self.assertIn("❌ Data path test failed: the ", ran.out)
            self.assertIn(text, ran.out)
            self.assertEqual(ran.code, 1)

    def test_verboseShowsThePhases(self) -> None:
        """C{--verbose} adds the connection's details and the phases from Server-Timing."""
        self.connected()
        self.api.on("GET", CONNECTION, connection("ses_01abc123", detail=DETAIL))
        ran = self.helix("spectask", "revdial", "ses_01abc123", "--verbose")
        self.assertIn("  Carrier:        raw\n  Features:       raw targets\n", ran.out)
        self.assertIn("  Round trip:     3.5ms\n", ran.out)
        self.assertIn(
            "Phases of the dial:\n  asked:          0.2ms\n  dialback:       12.5ms\n"
            "  total:          40.2ms\n",
            ran.out,
        )

    def test_unknownSession(self) -> None:
        """A session that is not there is an error on standard error, exit code 1."""
        ran = self.helix("spectask", "revdial", "ses_01abc123")
        self.assertEqual(ran.err, f"helix: 404 - nothing at {CONNECTION}\n")
        self.assertTrue(ran.out.endswith("RevDial connectivity: FAILED\n"), ran.out)
        self.assertEqual(ran.code, 1)

    def test_hostileTextIsHarmless(self) -> None:
        """Control characters in what the server says do not reach the terminal."""
        self.api.on("GET", CONNECTION, connection(runner="sandbox-\x1b]0;x\x07\nFAKE: PASSED"))
        self.api.on("GET", SCREENSHOT, problem(500, "a\x1b[2Jb\nRevDial connectivity: PASSED"))
        ran = self.helix("spectask", "revdial", "ses_01abc123")
        self.assertNotIn("\x1b", ran.out)
        self.assertNotIn("\nRevDial connectivity: PASSED", ran.out)

    def test_sandboxId(self) -> None:
        """The id is what stands behind the word for the runner's role."""
        self.assertEqual(sandboxId("sandbox-ses_1"), "ses_1")
        self.assertEqual(sandboxId("desktop-ses_1"), "ses_1")
        self.assertEqual(sandboxId("hydra-sandbox-xyz"), "sandbox-xyz")
        self.assertEqual(sandboxId("other"), "other")


class JSONTests(SelfTestCase):
    """What programs read: one object, whatever the outcome."""

    def test_passed(self) -> None:
        """Every field, with latency and bytes as measured."""
        self.connected()
        ran = self.helix("spectask", "revdial", "ses_01abc123", "--json")
        self.assertEqual(
            json.loads(ran.out),
            {
                "session_id": "ses_01abc123",
                "runner": "hydra-sandbox-xyz",
                "control_connected": True,
                "data_tunnel_working": True,
                "latency_ms": 45.0,
                "bytes": 125_432,
                "error": None,
            },
        )
        self.assertEqual((ran.err, ran.code), ("", 0))

    def test_failures(self) -> None:
        """Each failure is an object with its error, and an exit code."""
        grace = connection("ses_01abc123", "grace", left=30.0)
        for answer, shot, error, control, code in (
            (
                connection("ses_01abc123", "none"),
                None,
                "No RevDial connection for sandbox (not in connman)",
                False,
                1,
            ),
            (grace, None, "Still in grace period after 2 s", False, 3),
            (
                connection("ses_01abc123"),
                problem(503, "Sandbox not connected: no connection"),
                "503 - Sandbox not connected: no connection",
                True,
                1,
            ),
        ):
            self.api.on("GET", CONNECTION, answer)
            self.api.on("GET", SCREENSHOT, shot)
            ran = self.helix("spectask", "revdial", "ses_01abc123", "--json", "--timeout", "2")
            value = json.loads(ran.out)
            self.assertEqual(
                (value["error"], value["control_connected"], value["data_tunnel_working"]),
                (error, control, False),
            )
            self.assertEqual((value["latency_ms"], value["bytes"]), (None, None))
            self.assertEqual(ran.code, code)

    def test_graceIsAnnouncedOnStandardError(self) -> None:
        """Standard output keeps its one object."""
        self.connected()
        self.api.on(
            "GET", CONNECTION, connection("ses_01abc123", "grace"), connection("ses_01abc123")
        )
        ran = self.helix("spectask", "revdial", "ses_01abc123", "--json", "--verbose")
        self.assertEqual(ran.err, "⚠️ Connection in grace period, waiting for reconnect...\n")
        self.assertEqual(
            json.loads(ran.out)["phases"], {"asked": 0.2, "dialback": 12.5, "total": 40.25}
        )

    def test_refusedIsAnObjectToo(self) -> None:
        """Where the question cannot be asked, the object says why, and so does one line."""
        self.api.on("GET", CONNECTION, problem(403, "not your session"))
        ran = self.helix("spectask", "revdial", "ses_01abc123", "--json")
        self.assertEqual(json.loads(ran.out)["error"], "403 - not your session")
        self.assertEqual(ran.err, "helix: 403 - not your session\n")
        self.assertEqual(ran.code, 1)

    def test_interruptedWhileWaiting(self) -> None:
        """Cancelling the wait leaves no timer and no request behind."""
        self.api.on("GET", CONNECTION, connection("ses_01abc123", "grace", left=30.0))
        self.cancelAfter = 1.0
        report = JSONReport(Output(io.StringIO(), io.StringIO()))
        testing = selfTest(self.client, self.clock, "ses_01abc123", 30, report)
        self.assertRaises(CancelledError, self.settle, Deferred.fromCoroutine(testing))
