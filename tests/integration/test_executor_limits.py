"""Where a host ends a session on its own, and what a session may have of it."""

from __future__ import annotations

import os
import subprocess
import time

from twisted.trial.unittest import SkipTest

from .executors import LIMIT, ExecutorCase, unchanged, until

MEMORY = 64
"""MiB that a task asks for."""


class RoomTests(ExecutorCase):
    """How many sessions a host keeps."""

    settings = "slots = 2\n"
    maxSessions = 2

    def test_oldestGoes(self) -> None:
        """
        Where there are as many as there may be, the one that ended first goes, once the
        server has said that it has its last report, before a restart or after it; no other.
        """
        first, second = self.launch("say one"), self.launch("say two")
        seqs = {session: self.ended(session)["seq"] for session in (first, second)}
        spec = self.spec("say three")
        path = f"/v1/sessions/{spec['session']}"
        status, document = self.ask("PUT", path, spec)
        self.assertEqual((status, document["code"]), (503, "busy"))
        self.assertEqual(self.reports(second, seqs[second]), [])
        self.kill()
        self.start()
        self.assertEqual(self.ask("PUT", path, spec)[0], 201)
        self.assertEqual(self.ask("GET", f"/v1/sessions/{second}")[0], 404)
        self.assertEqual(self.describe(first)["exitCode"], 0)
        self.assertEqual(self.ended(spec["session"])["exitCode"], 0)
        if self.asRoot:
            # Its user is another's now.
            user = (self.state / "sessions" / spec["session"] / "workspace").stat().st_uid
            self.assertEqual(user, self.firstUser + 2)


class LimitTests(ExecutorCase):
    """The limits of a specification, reached."""

    def test_runSeconds(self) -> None:
        """What runs too long is asked to end, then killed, and the last report says why."""
        polite = self.launch("say up\nsleep 600", limits={"runSeconds": 1.5, "stopSeconds": 20})
        stubborn = self.launch(
            "say up\ndaemon 600\nsleep 600",
            limits={"runSeconds": 1.5, "stopSeconds": 0.5},
            agent={"env": {"HELIX_DEMONSTRATION_LINGER": "600"}},
        )
        for session, name in ((polite, "SIGTERM"), (stubborn, "SIGKILL")):
            reports = self.reports(session)
            last = reports[-1]
            self.assertEqual(last["signal"], name, self.tail(session))
            self.assertEqual(last["error"], "it ran longer than 1.5 seconds")
            self.assertIn("it ran longer than 1.5 seconds", self.output(reports, "system"))
            states = [each["state"] for each in reports if each["kind"] == "state"]
            self.assertEqual(states, ["provisioning", "running", "stopping"])

    def test_logBytes(self) -> None:
        """What says too much is cut there, once, and runs to its own end all the same."""
        session = self.launch(
            "flood 1000000\nsay the end\nwarn and more\nexit 5", limits={"logBytes": 10_000}
        )
        reports = self.reports(session)
        self.assertEqual(reports[-1]["exitCode"], 5)
        said = self.output(reports)
        self.assertEqual(said, [f"{number:099}" for number in range(101)])
        self.assertEqual(self.output(reports, "stderr"), [])
        self.assertEqual(
            self.output(reports, "system"),
            ["the output is longer than 10000 bytes: the rest is left out"],
        )


class FullTests(ExecutorCase):
    """A disk that a task has filled, also for the executor."""

    def moreSettings(self) -> str:
        if self.asRoot:
            self.state.mkdir()
            argv = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=711", "none", str(self.state)]
            done = subprocess.run(argv, capture_output=True, text=True)
            if done.returncode != 0:
                raise SkipTest(f"nothing can be mounted here: {done.stderr}")
            self.addCleanup(subprocess.run, ["umount", "-l", str(self.state)], timeout=LIMIT)
        return 'display = ""\n'

    def test_removed(self) -> None:
        """
        A session whose reports cannot be written waits until there is room; removed it goes,
        with what filled the disk, and the next one runs.
        """
        self.needRoot()
        script = "echo up; head -c 100M /dev/zero > fill; seq 1000000; sleep 600"
        session = self.launch("", command=["sh", "-c", script])
        self.said(session, "up")
        until(lambda: os.statvfs(self.state).f_bavail < 16, "the disk is full")
        until(lambda: unchanged(lambda: self.describe(session)["lastSeq"]), "its journal waits")
        began = time.monotonic()
        self.assertEqual(self.ask("DELETE", f"/v1/sessions/{session}")[0], 204)
        self.assertLess(time.monotonic() - began, LIMIT)
        next_ = self.launch("say there is room")
        self.assertEqual(self.ended(next_)["exitCode"], 0)
