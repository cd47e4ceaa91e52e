"""C{helix revdial status}: once, and watched."""

from __future__ import annotations

import json

from twisted.internet.defer import CancelledError

from tests.cli.fake import DETAIL, CommandTestCase, Given, problem

PATH = "/api/v1/admin/revdial/status"
STATUS = {
    "active_connections": 5,
    "grace_period_entries": 1,
    "pending_dials_total": 0,
    "connections": ["sandbox-ses_1"],
    "details": [DETAIL],
    "grace": [{"key": "wolf-1", "generation": 3, "seconds_left": 12.5, "pending_dials": 2}],
    "later": "a field that this version does not know",
}


class StatusTests(CommandTestCase):
    """One look."""

    def test_plain(self) -> None:
        """On a pipe: aligned columns, every connection, grace entries, totals."""
        self.api.on("GET", PATH, Given(STATUS))
        ran = self.helix("revdial", "status")
        lines = ran.out.splitlines()
        self.assertTrue(lines[0].startswith("RUNNER         CARRIER  ADDRESS"), lines[0])
        for text in ("sandbox-ses_1", "raw", "192.0.2.7:40000", "1.2s", "3.5", "2.0 KiB", "10 B"):
            self.assertIn(text, lines[1])
        self.assertRegex(ran.out, r"(?m)^wolf-1 +12\.5 +2 +3$")
        self.assertEqual(lines[-1], "Connections: 5 active, 1 in grace period, 0 dials waiting")
        self.assertEqual(self.api.asked[0].query, {"detail": "true"})
        self.assertEqual((ran.code, ran.err), (0, ""))

    def test_terminal(self) -> None:
        """On a terminal: the same, drawn; a key that looks like markup is taken literally."""
        hostile = {**DETAIL, "key": "[red]sandbox"}
        self.api.on("GET", PATH, Given({**STATUS, "details": [hostile]}))
        self.environment = {"COLUMNS": "200", "TERM": "xterm"}
        ran = self.helix("revdial", "status", terminal=True)
        self.assertIn("[red]sandbox", ran.out)
        self.assertIn("192.0.2.7:40000", ran.out)
        self.assertIn("Connections: 5 active", ran.out)

    def test_targets(self) -> None:
        """Each runner's targets: the default one, and whom those are for that its owner is not."""
        targets = [
            {"name": "web", "expose": "owner", "default": True},
            {"name": "ssh", "expose": "operator", "default": False},
        ]
        self.api.on("GET", PATH, Given({**STATUS, "details": [{**DETAIL, "targets": targets}]}))
        self.assertIn("web*,ssh(operator)", self.helix("revdial", "status").out)

    def test_json(self) -> None:
        """JSON is the server's own answer, unknown fields included."""
        self.api.on("GET", PATH, Given(STATUS))
        self.assertEqual(json.loads(self.helix("revdial", "status", "--json").out), STATUS)

    def test_namesOnly(self) -> None:
        """A server without details still gives the names."""
        short = {k: STATUS[k] for k in list(STATUS)[:4]}
        self.api.on("GET", PATH, Given(short))
        self.assertIn("\nsandbox-ses_1  -", self.helix("revdial", "status").out)

    def test_refused(self) -> None:
        """Who is no administrator gets the reason, exit code 1."""
        self.api.on("GET", PATH, problem(403, "this needs the role admin"))
        ran = self.helix("revdial", "status")
        self.assertEqual(
            (ran.out, ran.err, ran.code), ("", "helix: 403 - this needs the role admin\n", 1)
        )

    def test_anotherKindOfAnswer(self) -> None:
        """JSON of another shape is an error that says so, not a traceback."""
        for body in (b"[]", b"{}", b"{", b'{"active_connections": "5"}', b"[" * 100_000):
            self.api.on("GET", PATH, Given(body))
            ran = self.helix("revdial", "status")
            self.assertEqual(ran.code, 1)
            self.assertIn("answered with something that this helix does not understand", ran.err)


class WatchTests(CommandTestCase):
    """Look after look."""

    def test_linesOnAPipe(self) -> None:
        """Each look is lines with a time and a kind; a server that is away is asked again."""
        self.api.on(
            "GET", PATH, Given(STATUS), problem(503, "starting"), Given(STATUS), problem(401, "no")
        )
        ran = self.helix("revdial", "status", "--watch", "--interval", "1")
        stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
        lines = ran.out.splitlines()
        self.assertRegex(lines[0], f"^{stamp} total active=5 grace=1 pending=0$")
        self.assertRegex(
            lines[1],
            f"^{stamp} connected sandbox-ses_1 carrier=raw address=192.0.2.7:40000 heard=1.2s "
            "rtt_ms=3.5 streams=2 in=2048 out=10 pending=1 generation=7$",
        )
        self.assertRegex(lines[2], f"^{stamp} grace wolf-1 left=12.5 pending=2$")
        self.assertRegex(lines[3], f"^{stamp} error 503 - starting$")
        self.assertEqual(len(lines), 7)
        self.assertEqual((ran.code, ran.err[:14]), (1, "helix: 401 - n"))

    def test_jsonLines(self) -> None:
        """C{--watch --json} is one object per line."""
        self.api.on("GET", PATH, Given(STATUS), Given(STATUS), problem(403, "no"))
        ran = self.helix("revdial", "status", "--watch", "--json")
        values = [json.loads(line) for line in ran.out.splitlines()]
        self.assertEqual([value["active_connections"] for value in values], [5, 5])
        self.assertIn("time", values[0])

    def test_firstLookFails(self) -> None:
        """A server that cannot be asked at all ends the watch at once."""
        self.api.on("GET", PATH, problem(503, "starting"))
        ran = self.helix("revdial", "status", "--watch")
        self.assertEqual((ran.code, ran.out, ran.err), (1, "", "helix: 503 - starting\n"))

    def test_liveTable(self) -> None:
        """On a terminal one table is redrawn; trouble is shown below what was there last."""
        self.api.on("GET", PATH, Given(STATUS), problem(503, "away"), problem(403, "no"))
        self.environment = {"COLUMNS": "200", "TERM": "xterm"}
        ran = self.helix("revdial", "status", "--watch", terminal=True)
        self.assertIn("sandbox-ses_1", ran.out)
        self.assertIn("503 - away; trying again", ran.out)
        # The cursor that rich hides is shown again at the end.
        self.assertIn("\x1b[?25h", ran.out)
        self.assertEqual(ran.code, 1)

    def test_terminalThatCannotRedraw(self) -> None:
        """A terminal that can do nothing but write gets lines; so does who wants no colours."""
        for environment, more in (
            ({"TERM": "dumb"}, ()),
            ({"TERM": "xterm", "NO_COLOR": "1"}, ()),
            ({"TERM": "xterm"}, ("--no-color",)),
        ):
            self.api.on("GET", PATH, Given(STATUS), problem(403, "no"))
            self.environment = environment
            ran = self.helix(*more, "revdial", "status", "--watch", terminal=True)
            self.assertRegex(ran.out, r"Z total active=5 grace=1 pending=0\n", environment)
            self.assertNotIn("\x1b", ran.out)

    def test_interrupted(self) -> None:
        """Cancelling the watch gives the terminal back."""
        self.api.on("GET", PATH, Given(STATUS))
        self.environment = {"COLUMNS": "200", "TERM": "xterm"}
        self.cancelAfter = 3.0
        caught: list[BaseException] = []
        settle = self.settle

        def noting(running: object) -> object:
            try:
                return settle(running)  # type: ignore[arg-type]
            except CancelledError as error:
                caught.append(error)
                return 130

        self.settle = noting  # type: ignore[method-assign]
        ran = self.helix("revdial", "status", "--watch", terminal=True)
        self.assertEqual((len(caught), ran.code), (1, 130))
        self.assertIn("\x1b[?25h", ran.out)
