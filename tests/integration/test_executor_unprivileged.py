"""The executor without root's powers, and root without users for its sessions."""

from __future__ import annotations

import time
from pathlib import Path

from helix_revdial.executor.process_table import processTable
from tests.needs import needsProgram

from .executors import ExecutorCase, unchanged, until

MARK = "7654.25"
"""An argument by which a test finds its processes, whatever else they have given up."""


def markedProcesses() -> set[int]:
    """The living processes with L{MARK} on their command line."""
    found = set()
    for pid, process in processTable().items():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if MARK.encode() in command.split(b"\0") and not process.dead:
            found.add(pid)
    return found


@needsProgram("setpriv", package="util-linux")
class NobodyTests(ExecutorCase):
    """It runs as nobody, and so do all its sessions."""

    unprivileged = True

    def counted(self, session: str) -> int:
        return int(self.describe(session)["lastSeq"])

    def test_pause(self) -> None:
        """A paused task stands still with all it has started, and goes on as if nothing was."""
        self.assertNotIn("user", self.ask("GET", "/v1/host")[1]["isolation"])
        session = self.launch("count 1000 0.02")
        self.said(session, "5")
        self.order(session, "pause")
        self.assertEqual(self.describe(session)["state"], "paused")
        until(lambda: unchanged(lambda: self.counted(session)), "it rests")
        before = self.counted(session)
        time.sleep(0.5)
        self.assertEqual(self.counted(session), before, "it went on while it was paused")
        self.order(session, "resume")
        until(lambda: self.counted(session) > before + 5, "it goes on")
        self.order(session, "stop", deadline=20)
        self.assertEqual(self.ended(session)["signal"], "SIGTERM")

    def test_remove(self) -> None:
        """
        DELETE leaves no process of a task, not even one that has a session of its own, lost its
        parent, and gave up its environment.
        """
        escape = f"env -i setsid sh -c 'sleep {MARK} & exec sleep {MARK}' &"
        session = self.launch("", command=["sh", "-c", f"({escape}); echo up; exec sleep {MARK}"])
        self.said(session, "up")
        until(lambda: len(markedProcesses()) == 3, "all three run")
        self.assertEqual(self.ask("DELETE", f"/v1/sessions/{session}")[0], 204)
        self.assertEqual(markedProcesses(), set())
        until(lambda: not self.left(), "no process is left")
        self.assertFalse((self.state / "sessions" / session).exists())

    def test_daemon(self) -> None:
        """What a task leaves behind when it ends is killed with it."""
        session = self.launch("daemon 600\nsleep 0.3\nsay done\nexit 6")
        reports = self.reports(session)
        [daemon] = [int(m.split()[1]) for m in self.output(reports) if m.startswith("daemon ")]
        self.assertEqual(reports[-1]["exitCode"], 6)
        table = processTable()
        self.assertTrue(daemon not in table or table[daemon].dead, "the daemon lives on")


class RootAloneTests(ExecutorCase):
    """Root without users for its sessions: C{separate_users = false}."""

    settings = "separate_users = false\n"

    def test_shared(self) -> None:
        """Sessions run as the executor's own user; it says so, and what they leave is killed."""
        self.assertNotIn("user", self.ask("GET", "/v1/host")[1]["isolation"])
        self.assertIn("sessions have no users of their own", self.log.read_text())
        session = self.launch("run id -u\ndaemon 600\nsay up")
        reports = self.reports(session)
        self.assertEqual(reports[-1].get("exitCode"), 0, self.tail(session))
        self.assertIn(str(self.directory.stat().st_uid), self.output(reports))
        self.assertEqual(self.ask("DELETE", f"/v1/sessions/{session}")[0], 204)
        until(lambda: not self.left(), "no process is left")
