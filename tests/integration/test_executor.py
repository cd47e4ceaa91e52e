"""The executor as a process: sessions that really run, and leave nothing behind."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import socket
import stat
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

from helix_revdial.executor.process_table import ofUser, processTable
from tests.needs import needsProgram

from .executors import LIMIT, ExecutorCase, unchanged, until


class TaskTests(ExecutorCase):
    """A task from its launch to what it delivers."""

    def test_patch(self) -> None:
        """
        A task edits a repository: its output is in order, its exit code the true one, and its
        patch holds commits, changes, binary and new files, and what was removed.
        """
        bare = self.repository()
        self.give(bare, self.firstUser + 1)
        session = self.launch(
            "append file.txt two\ncommit its own\nwrite new/deep.txt three\nremove gone.txt\n"
            "binary picture.bin 3000\ncount 3 0\nwarn careful",
            repo={"mode": "git", "url": f"file://{bare}", "branch": "main"},
            delivery={"mode": "patch"},
            snapshotPreference=["copy"],
        )
        reports = self.reports(session)
        self.assertEqual([each["seq"] for each in reports], list(range(1, len(reports) + 1)))
        kinds = [each["kind"] for each in reports if each["kind"] != "log"]
        self.assertEqual(
            kinds, ["state", "workspace", "state", "delivery", "exit"], self.tail(session)
        )
        self.assertEqual(self.output(reports), ["1", "2", "3"])
        self.assertEqual(self.output(reports, "stderr"), ["careful"])
        self.assertEqual(reports[-1]["exitCode"], 0)
        status, patch = self.ask("GET", f"/v1/sessions/{session}/patch")
        self.assertEqual(status, 200)
        delivered = reports[-2]
        self.assertEqual(
            (delivered["size"], delivered["sha256"]),
            (len(patch), hashlib.sha256(patch).hexdigest()),
        )
        fresh = self.directory / "fresh"
        work = self.directory / "work"
        subprocess.run(["git", "clone", "-q", str(work), str(fresh)], check=True)
        subprocess.run(["git", "-C", str(fresh), "apply", "-"], input=patch, check=True)
        self.assertEqual((fresh / "file.txt").read_text(), "one\ntwo\n")
        self.assertEqual((fresh / "new" / "deep.txt").read_text(), "three\n")
        self.assertEqual((fresh / "picture.bin").stat().st_size, 3000)
        self.assertFalse((fresh / "gone.txt").exists())

    def test_branch(self) -> None:
        """What a task did is pushed to a branch, its own commits and what it left over."""
        bare = self.repository()
        self.give(bare, self.firstUser + 1)
        session = self.launch(
            "append file.txt two\ncommit its own\nwrite left.txt over",
            repo={"mode": "git", "url": f"file://{bare}"},
            delivery={"mode": "branch", "targetBranch": "work/done"},
        )
        reports = self.reports(session)
        self.assertEqual(reports[-1].get("exitCode"), 0, self.tail(session))
        self.assertNotIn("error", reports[-1], self.tail(session))
        self.assertEqual(reports[-2]["kind"], "delivery")
        log = subprocess.run(
            ["git", "-c", f"safe.directory={bare}", "-C", str(bare), "log", "--format=%s",
             "work/done"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        self.assertEqual(log.stdout.splitlines(), ["append file.txt two", "its own", "first"])

    def test_exitCodes(self) -> None:
        """Exit code and signal are the agent's; a program that is not there is 127."""
        failing = self.launch("exit 7")
        self.assertEqual(self.ended(failing)["exitCode"], 7)
        killed = self.launch("", command=["sh", "-c", "kill -9 $$"])
        self.assertEqual(self.ended(killed)["signal"], "SIGKILL")
        # What confines it has the same one, where it cannot.
        own = self.ended(self.launch("exit 125"))
        self.assertEqual((own["exitCode"], own.get("error")), (125, None))
        missing = self.launch("", command=["/no/such/agent"])
        self.assertEqual(self.ended(missing)["exitCode"], 127)

    def test_noClone(self) -> None:
        """A repository that cannot be had ends the session with the reason."""
        url = f"file://{self.directory}/none.git"
        session = self.launch("say never", repo={"mode": "git", "url": url})
        reports = self.reports(session)
        self.assertIn("the workspace could not be made", reports[-1]["error"])
        self.assertEqual(self.output(reports), [])
        refused = self.launch("say never", repo={"mode": "git", "url": "ext::sh -c id"})
        self.assertIn("this host takes repositories by", self.ended(refused)["error"])

    def test_upload(self) -> None:
        """An archive becomes a workspace, and the patch is against it."""
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w:gz") as archive:
            entry = tarfile.TarInfo("folder/given.txt")
            entry.size = 6
            archive.addfile(entry, io.BytesIO(b"given\n"))
        status, document = self.ask("PUT", "/v1/uploads/up1", made.getvalue())
        self.assertEqual((status, document["size"]), (200, len(made.getvalue())))
        session = self.launch(
            "append folder/given.txt more",
            repo={"mode": "upload", "uploadPath": document["uploadPath"]},
            delivery={"mode": "patch"},
        )
        self.assertEqual(self.ended(session).get("exitCode"), 0, self.tail(session))
        patch = self.ask("GET", f"/v1/sessions/{session}/patch")[1]
        self.assertIn(b" given\n+more\n", patch)
        self.assertEqual(list((self.state / "uploads").iterdir()), [])

    def test_prompts(self) -> None:
        """
        A prompt reaches the agent as a line of its standard input, each number once; an agent
        that reads none refuses it.
        """
        session = self.launch("say first\nread\nsay done")
        self.said(session, "first")
        self.order(session, "prompt", prompt="say second")
        reports = self.reports(session)
        self.assertEqual(self.output(reports), ["first", "second", "done"])
        self.assertIn({"prompt": True}, [{r["kind"]: r.get("accepted")} for r in reports])
        again = self.launch("say first\nread\nread\nsay done")
        self.said(again, "first")
        for number, text in ((1, "say a"), (1, "say a"), (2, "say b"), (2, "say b")):
            self.order(again, "prompt", prompt=text, number=number)
        self.assertEqual(self.output(self.reports(again)), ["first", "a", "b", "done"])
        other = self.launch("say first\nsleep 60", agent={"prompts": "none"})
        self.said(other, "first")
        status, document = self.ask("POST", f"/v1/sessions/{other}/prompt", {"prompt": "more"})
        self.assertEqual(status, 409)
        self.assertIn("takes no more prompts", document["detail"])

    def test_snapshots(self) -> None:
        """A snapshot is of one moment of a running task, and of one that has ended."""
        session = self.launch("write a.txt before\nsay there\nread\nwrite a.txt after")
        self.said(session, "there")
        status, made = self.ask("POST", f"/v1/sessions/{session}/snapshots", {"label": "x"})
        self.assertEqual(status, 201, made)
        self.order(session, "prompt", prompt="say go on")
        self.assertEqual(self.ended(session)["exitCode"], 0)
        status, later = self.ask("POST", f"/v1/sessions/{session}/snapshots", {})
        self.assertEqual(status, 201, later)
        self.assertNotEqual(made["snapshot"], later["snapshot"])
        place = self.state / "sessions" / session / "snapshots"
        if made["provider"] != "git":
            self.assertEqual((place / made["snapshot"] / "a.txt").read_text(), "before\n")
            self.assertEqual((place / later["snapshot"] / "a.txt").read_text(), "after\n")


class ControlTests(ExecutorCase):
    """Pausing, stopping and removing."""

    settings = "processes = 200\nslots = 3\n"

    def counted(self, session: str) -> int:
        return int(self.describe(session)["lastSeq"])

    def runs(self, session: str) -> None:
        until(lambda: self.describe(session)["state"] == "running", "it runs")

    def test_pause(self) -> None:
        """A paused task says nothing, not even a daemon of its; resumed it goes on."""
        session = self.launch("count 1000 0.02")
        self.said(session, "5")
        self.order(session, "pause")
        self.assertEqual(self.describe(session)["state"], "paused")
        until(lambda: unchanged(lambda: self.counted(session)), "it rests")
        before = self.counted(session)
        time.sleep(0.6)
        self.assertEqual(self.counted(session), before, "it went on while it was paused")
        self.order(session, "pause")
        self.order(session, "resume")
        until(lambda: self.counted(session) > before + 5, "it goes on")
        self.order(session, "cancel")
        last = self.ended(session)
        self.assertEqual(last["signal"], "SIGKILL")
        states = [each["state"] for each in self.reports(session) if each["kind"] == "state"]
        self.assertEqual(states, ["provisioning", "running", "paused", "running", "stopping"])

    def test_stop(self) -> None:
        """Asked to stop a task ends by itself in time, paused or not, and is killed otherwise."""
        polite = self.launch("say up\nsleep 60")
        self.said(polite, "up")
        self.order(polite, "pause")
        self.order(polite, "stop", deadline=20)
        self.assertEqual(self.ended(polite)["signal"], "SIGTERM")
        stubborn = self.launch(
            "say up\ndaemon 60\nsleep 60", agent={"env": {"HELIX_DEMONSTRATION_LINGER": "60"}}
        )
        self.said(stubborn, "up")
        began = time.monotonic()
        self.order(stubborn, "stop", deadline=1)
        last = self.ended(stubborn)
        self.assertEqual(last["signal"], "SIGKILL")
        self.assertLess(time.monotonic() - began, 15)
        self.assertIn("asked to end", self.output(self.reports(stubborn)))

    def test_daemons(self) -> None:
        """What a task leaves behind, in a session of its own and deaf to signals, ends with it."""
        session = self.launch("daemon 600\nsleep 0.3\nsay done")
        reports = self.reports(session)
        [daemon] = [int(m.split()[1]) for m in self.output(reports) if m.startswith("daemon ")]
        self.assertEqual(reports[-1]["exitCode"], 0)
        table = processTable()
        self.assertTrue(daemon not in table or table[daemon].dead, "the daemon lives on")

    def test_remove(self) -> None:
        """DELETE kills a running task with all it started, and leaves nothing; twice is once."""
        session = self.launch("daemon 600\nsay up\nsleep 600")
        self.said(session, "up")
        self.assertNotEqual(self.left(), set())
        self.assertEqual(self.ask("DELETE", f"/v1/sessions/{session}")[0], 204)
        until(lambda: not self.left(), "no process is left")
        self.assertFalse((self.state / "sessions" / session).exists())
        self.assertEqual(self.ask("GET", f"/v1/sessions/{session}")[0], 404)
        self.assertEqual(self.ask("DELETE", f"/v1/sessions/{session}")[0], 204)

    def test_removeAtItsStart(self) -> None:
        """A task that has only just been started is killed at once, paused before or not."""
        for pause in (True, False):
            session = self.launch("sleep 600")
            self.runs(session)
            if pause:
                self.order(session, "pause")
            began = time.monotonic()
            self.assertEqual(self.ask("DELETE", f"/v1/sessions/{session}")[0], 204)
            self.assertLess(time.monotonic() - began, 20)
            until(lambda: not self.left(), "no process is left")

    def test_removeWhileProvisioning(self) -> None:
        """A session that is still being made ready is removed just so."""
        session = self.launch("say up")
        self.assertEqual(self.ask("DELETE", f"/v1/sessions/{session}")[0], 204)
        until(lambda: not self.left(), "no process is left")

    def test_forkBomb(self) -> None:
        """A task that does nothing but fork is bounded, and is killed all the same."""
        self.needRoot()
        bomb = "import os\nprint('up', flush=True)\nwhile 1:\n try: os.fork()\n except OSError: 0"
        session = self.launch("", command=[self.hostPython, "-c", bomb])
        self.said(session, "up")
        until(lambda: len(self.left()) > 100, "there are many")
        self.assertLess(len(self.left()), 260)
        self.assertEqual(self.ask("DELETE", f"/v1/sessions/{session}")[0], 204)
        until(lambda: not self.left(), "no process is left")

    def test_launchAgain(self) -> None:
        """The same launch twice is one; another of the same id is refused; slots are bounded."""
        spec = self.spec("say up\nsleep 60")
        path = f"/v1/sessions/{spec['session']}"
        self.assertEqual(self.ask("PUT", path, spec)[0], 201)
        self.assertEqual(self.ask("PUT", path, spec)[0], 200)
        self.assertEqual(self.ask("PUT", path, {**spec, "prompt": "other"})[0], 409)
        self.launch("sleep 60")
        self.launch("sleep 60")
        full = self.spec("sleep 60")
        status, document = self.ask("PUT", f"/v1/sessions/{full['session']}", full)
        self.assertEqual((status, document["code"]), (503, "busy"))
        self.assertEqual(self.ask("GET", "/v1/host")[1]["running"], 3)

    def test_anotherToken(self) -> None:
        """
        A server that launches a session again, since it does not know that it has, may give
        it another token: the tunnel agent finds that one when it connects again.
        """
        spec = self.spec("say up\nsleep 60")
        spec["sandbox"] = {"serverUrl": "http://127.0.0.1:9", "token": "first" * 8}
        path = f"/v1/sessions/{spec['session']}"
        self.assertEqual(self.ask("PUT", path, spec)[0], 201)
        self.said(spec["session"], "up")
        spec["sandbox"] = {**spec["sandbox"], "token": "second" * 8}
        self.assertEqual(self.ask("PUT", path, spec)[0], 200)
        place = self.state / "sessions" / spec["session"] / "tunnel" / "token"
        if self.python and place.exists():
            until(lambda: place.read_text().strip() == "second" * 8, "the token is there")
            self.assertEqual(stat.S_IMODE(place.stat().st_mode), 0o600)
        spec["sandbox"] = {**spec["sandbox"], "serverUrl": "http://127.0.0.1:10"}
        self.assertEqual(self.ask("PUT", path, spec)[0], 200)
        self.assertEqual(self.ask("PUT", path, {**spec, "prompt": "say other"})[0], 409)

    def test_refused(self) -> None:
        """What makes no session is refused, and leaves nothing."""
        spec = self.spec("say up")
        path = f"/v1/sessions/{spec['session']}"
        for wrong in (
            {**spec, "session": "other"},
            {**spec, "agent": {"type": "x", "command": []}},
            {**spec, "runtime": {"type": "devcontainer"}},
            {"prompt": "nothing else"},
        ):
            self.assertIn(self.ask("PUT", path, wrong)[0], (400, 409), wrong)
        self.assertEqual(self.ask("GET", "/v1/sessions")[1]["items"], [])
        for verb in ("pause", "resume", "stop", "cancel", "prompt"):
            self.assertEqual(self.ask("POST", f"{path}/{verb}", {})[0], 404)


class ApartTests(ExecutorCase):
    """Sessions that do not trust each other."""

    def test_apart(self) -> None:
        """
        A task has a user and a group of its own: it reads no other's files, nor the executor's,
        signals and sees no other's processes, and finds no secret in its environment.
        """
        self.needRoot()
        secret = "sandbox-token-0123456789"
        first = self.launch(
            "write mine.txt private\nsay up\nsleep 600",
            sandbox={"serverUrl": "http://127.0.0.1:9", "token": secret},
        )
        self.said(first, "up")
        root = self.state / "sessions" / first
        user = (root / "workspace").stat().st_uid
        mine = ofUser(processTable(), user)
        target = min(mine)
        probes = {
            "workspace": f"cat {root}/workspace/mine.txt",
            "list": f"ls {root}",
            "record": f"cat {root}/private/record.json",
            "token": f"cat {root}/tunnel/token",
            "sessions": f"ls {self.state}/sessions",
            "socket": f"{self.hostPython} -c 'import socket;"
            f'socket.socket(socket.AF_UNIX).connect("{self.socket}")\'',
            "kill": f"kill -9 {target}",
            "environ": f"cat /proc/{target}/environ",
            "shadow": "cat /etc/shadow",
            "group": "echo 1 > /sys/fs/cgroup/unified/cgroup.procs",
            "sudo": "setpriv --reuid 0 true",
        }
        script = "\n".join(f"({probe}) >/dev/null 2>&1 && echo could {name}"
                           for name, probe in probes.items())  # fmt: skip
        script += "\nid -u\nid -G\nenv\nls /proc | grep -c '^[0-9]'\nexit 0"
        second = self.launch("", command=["sh", "-c", script])
        lines = self.output(self.reports(second))
        self.assertEqual([line for line in lines if line.startswith("could")], [])
        other = (self.state / "sessions" / second / "workspace").stat().st_uid
        self.assertNotEqual(other, user)
        self.assertEqual(lines[:2], [str(other), str(other)])
        self.assertFalse(any(secret in line for line in lines))
        if "mounts" in self.ask("GET", "/v1/host")[1]["isolation"]:
            self.assertLess(int(lines[-1]), 8, "it sees the processes of others")
        self.assertTrue(mine <= ofUser(processTable(), user), "the first one's processes")
        # The token is nowhere but in files that are root's or the tunnel's alone.
        for pid in processTable():
            try:
                place = Path(f"/proc/{pid}")
                seen = (place / "cmdline").read_bytes() + (place / "environ").read_bytes()
            except OSError:
                continue
            self.assertNotIn(secret.encode(), seen, f"F1: the token is on show in {pid}")
        self.assertNotIn(secret, self.log.read_text())
        self.assertNotIn(secret, self.tail(first))
        self.assertEqual(stat.S_IMODE((root / "private").stat().st_mode), 0o700)

    def test_socket(self) -> None:
        """Its owner and its group alone reach the socket; the log has all but the heartbeats."""
        self.assertEqual(stat.S_IMODE(os.stat(self.socket).st_mode), 0o660)
        self.assertEqual(self.ask("GET", "/v1/sessions")[0], 200)
        until(lambda: "GET /v1/sessions 200" in self.log.read_text(), "what is asked is logged")
        self.assertNotIn("GET /v1/host 200", self.log.read_text())

    def test_second(self) -> None:
        """A second executor does not take the first one's sessions or socket."""
        done = subprocess.run(
            self.program(), capture_output=True, text=True, timeout=LIMIT, cwd=self.directory
        )
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("another executor has", done.stdout + done.stderr)
        self.assertEqual(self.ask("GET", "/v1/host")[0], 200)


class RestartTests(ExecutorCase):
    """The program is killed and started again, or its supervisors are."""

    settings = "output_ahead_bytes = 1000000\n"

    def test_programKilled(self) -> None:
        """A task goes on while there is no executor; nothing is lost, nothing is said twice."""
        session = self.launch("count 150 0.02\nexit 3")
        self.said(session, "10")
        self.kill()
        time.sleep(1)
        self.start()
        self.assertIn(self.describe(session)["state"], ("running", "ended"))
        reports = self.reports(session)
        self.assertEqual([each["seq"] for each in reports], list(range(1, len(reports) + 1)))
        self.assertEqual(self.output(reports), [str(n) for n in range(1, 151)])
        self.assertEqual(reports[-1]["exitCode"], 3)
        middle = len(reports) // 2
        self.assertEqual(self.reports(session, middle), reports[middle:])

    def test_programStopped(self) -> None:
        """The end of the executor is not that of its sessions; a paused one stays paused."""
        session = self.launch("count 1000 0.02")
        self.said(session, "5")
        self.order(session, "pause")
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(LIMIT)
        self.start()
        self.assertEqual(self.describe(session)["state"], "paused")
        self.order(session, "resume")
        before = int(self.describe(session)["lastSeq"])
        until(lambda: int(self.describe(session)["lastSeq"]) > before + 5, "it goes on")

    def test_endedMeanwhile(self) -> None:
        """A task that ends while there is no executor is found as it ended."""
        session = self.launch("count 30 0.02\nexit 4")
        self.said(session, "3")
        self.kill()
        until(lambda: not self.left(), "the session is over")
        self.start()
        found = until(
            lambda: (d := self.describe(session))["state"] == "ended" and d, "it is known"
        )
        self.assertEqual(found["exitCode"], 4)

    def test_supervisorKilled(self) -> None:
        """Where the supervisor is killed, all of the session is, and the last report says so."""
        session = self.launch("daemon 600\nsay up\nsleep 600")
        self.said(session, "up")
        lock = self.state / "sessions" / session / "private" / "lock"
        os.kill(int(lock.read_text()), signal.SIGKILL)
        last = self.ended(session)
        self.assertEqual(last["error"], "the session's supervisor was killed")
        until(lambda: not self.left(), "no process is left")

    def test_bothKilled(self) -> None:
        """The same when there was no executor to notice."""
        session = self.launch("daemon 600\nsay up\nsleep 600")
        self.said(session, "up")
        self.kill()
        lock = self.state / "sessions" / session / "private" / "lock"
        os.kill(int(lock.read_text()), signal.SIGKILL)
        self.start()
        self.assertEqual(self.ended(session)["error"], "the session's supervisor was killed")
        until(lambda: not self.left(), "no process is left")

    def test_heldBack(self) -> None:
        """Output that nobody fetches waits in the task, and none of it is lost."""
        session = self.launch("say begin\nflood 8000000\nsay end")
        journal = self.state / "sessions" / session / "private" / "journal"

        def size() -> int:
            return sum(path.stat().st_size for path in journal.glob("*.ndjson"))

        until(lambda: size() > 1_000_000, "there is much")
        until(lambda: unchanged(size), "no more comes")
        self.assertLess(size(), 2_000_000)
        self.assertEqual(self.describe(session)["state"], "running")
        after = 0
        found: list[dict[str, Any]] = []
        while not found or found[-1]["kind"] != "exit":
            for report in self.follow(session, after):
                found.append(report)
            self.assertGreater(found[-1]["seq"], after, self.tail(session))
            after = found[-1]["seq"]
        lines = [each["message"] for each in found if each.get("stream") == "stdout"]
        wanted = [f"{number:099}" for number in range(80_000)]
        self.assertEqual(lines, ["begin", *wanted, "end"])


class ScreenTests(ExecutorCase):
    """The display and the desktop service of a session."""

    @needsProgram("Xvfb", package="xvfb")
    def test_screen(self) -> None:
        """
        A session has a display of its own, its desktop service shows it, and both end with it.
        """
        self.needPython()
        script = 'test -n "$DISPLAY" && echo "display $DISPLAY"; echo up; sleep 600'
        session = self.launch(
            "",
            command=["sh", "-c", script],
            sandbox={"serverUrl": "http://127.0.0.1:9", "token": "t" * 40},
        )
        self.said(session, "up")
        self.order(session, "pause")
        place = self.state / "sessions" / session / "run" / "desktop"
        answer = self._http(place, b"GET /screenshot HTTP/1.0\r\nHost: localhost\r\n\r\n")
        self.assertIn(b"\x89PNG", answer[:2000], answer[:500])
        self.assertEqual(self.ask("DELETE", f"/v1/sessions/{session}")[0], 204)
        until(lambda: not self.left(), "no process is left")

    def _http(self, place: Path, request: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(LIMIT)
            connection.connect(str(place))
            connection.sendall(request)
            data = b""
            while piece := connection.recv(65536):
                data += piece
            return data
