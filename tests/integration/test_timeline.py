"""A task on a real host goes back in its time, and on from there in another session."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, ClassVar

from tests.needs import needsProgram

from .executors import LIMIT, ExecutorCase, until
from .fleet import freePort
from .tunnelled_hosts import TunnelledHostCase


@needsProgram("git", package="git")
class TimelineTests(TunnelledHostCase):
    protocols: ClassVar[tuple[str, ...]] = ("git",)

    def served(self) -> str:
        """The address of a repository with one commit."""
        bare = self.repository()
        port = freePort()
        argv = ["git", "daemon", "--export-all", "--reuseaddr", "--listen=127.0.0.1"]
        argv += [f"--port={port}", f"--base-path={bare.parent}", str(bare.parent)]
        with (self.directory / "daemon.log").open("ab") as log:
            daemon = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)
        self.addCleanup(daemon.wait, LIMIT)
        self.addCleanup(daemon.terminate)
        url = f"git://127.0.0.1:{port}/{bare.name}"
        until(
            lambda: subprocess.run(["git", "ls-remote", url], capture_output=True).returncode == 0,
            "the repository is served",
        )
        return url

    def says(self, session: str, text: str) -> None:
        """Wait for a line."""

        def look() -> bool:
            logs = self.api("GET", f"/sessions/{session}/logs?tail=100")["items"]
            return text in [one["message"] for one in logs]

        until(look, f"{session} says {text}; {self.tail(session)}")

    def tell(self, session: str, prompt: str) -> None:
        """Give the agent a line to carry out, and see that it was."""
        self.api("POST", f"/sessions/{session}/prompt", {"prompt": prompt})

    def applied(self, session: str) -> dict[str, str]:
        """The files of a clone that a session's patch was applied to."""
        status, patch = self.request("GET", f"/api/v1/sessions/{session}/patch")
        self.assertEqual(status, 200, patch)
        place = self.directory / f"clone-{session}"
        subprocess.run(
            ["git", "clone", "-q", str(self.directory / "origin.git"), str(place)], check=True
        )
        done = subprocess.run(
            ["git", "apply", "--index", "-"], input=patch, cwd=place, capture_output=True
        )
        self.assertEqual(done.returncode, 0, (done.stderr, patch))
        return {path.name: path.read_text() for path in place.iterdir() if path.is_file()}

    def test_branch(self) -> None:
        """
        A snapshot in the middle; a branch from it has what was before, and not what came
        later; the patch of each applies, and is there when the host has neither any more.
        """
        self.needPython()
        task: dict[str, Any] = {
            "repo": {"mode": "git", "url": self.served()},
            "delivery": {"mode": "patch"},
        }
        session = self.task("say up\nread\nread\nread", **task)
        self.reaches(session, "running")
        self.says(session, "up")
        self.tell(session, "append file.txt early")
        self.tell(session, "run sh -c 'rm gone.txt; mkdir dir; echo x > dir/deep; echo kept'")
        self.says(session, "kept")
        made = self.api("POST", f"/sessions/{session}/fs-snapshots", {"label": "middle"})
        path = f"/sessions/{session}"
        branch = self.api(
            "POST",
            f"{path}/session-branch",
            {
                "name": "otherwise",
                "fsSnapshotId": made["id"],
                "injectedMessage": "write injected.txt told",
            },
        )["id"]
        self.tell(session, "append file.txt late")
        self.reaches(session, "completed")
        self.reaches(branch, "running")
        self.says(branch, "up")
        for line in ("append file.txt mine", "say one", "say two"):
            self.tell(branch, line)
        self.reaches(branch, "completed")
        self.assertEqual(self.applied(session), {"file.txt": "one\nearly\nlate\n"})
        self.assertEqual(
            self.applied(branch), {"file.txt": "one\nearly\nmine\n", "injected.txt": "told\n"}
        )
        deep = self.directory / f"clone-{branch}" / "dir" / "deep"
        self.assertEqual(deep.read_text(), "x\n")

        timeline = self.api("GET", f"{path}/timeline")
        self.assertEqual([one["sessionId"] for one in timeline["branches"]], [branch])
        self.assertEqual([one["id"] for one in timeline["fsSnapshots"]], [made["id"]])
        self.assertEqual([one["label"] for one in timeline["moments"]], ["middle"])
        self.assertGreater(timeline["durationSec"], 0)
        found = self.api("POST", f"{path}/seek", {"ts": timeline["durationSec"]})
        self.assertEqual(found["fsSnapshot"]["id"], made["id"])
        if "view" in found:
            then = Path(found["view"]["mount"], "file.txt").read_text()
            self.assertEqual(then, "one\nearly\n")
        _, cast = self.request("GET", timeline["recording"]["uri"])
        printed = [json.loads(line) for line in cast.splitlines()[1:]]
        self.assertIn("up\r\n", [text for _, kind, text in printed if kind == "o"])
        self.assertIn("middle", [text for _, kind, text in printed if kind == "m"])
        kinds = [one["type"] for one in self.events(session)]
        for kind in ("delivery", "timeline.fsSnapshot.created", "timeline.sessionBranch.created"):
            self.assertEqual(kinds.count(kind), 1, kinds)

        # The host loses them, then it is gone; the server is killed and comes back.
        kept = [self.request("GET", f"/api/v1/sessions/{one}/patch") for one in (session, branch)]
        for one in (session, branch):
            self.ask("DELETE", f"/v1/sessions/{one}")
        self.agent.kill()
        self.agent.wait(LIMIT)
        self.server.kill()
        self.server.wait(LIMIT)
        self.server = self.startServer()
        until(
            lambda: (
                [self.request("GET", f"/api/v1/sessions/{one}/patch") for one in (session, branch)]
                == kept
            ),
            "the patches are there",
        )
        self.assertEqual([status for status, _ in kept], [200, 200])


class LaunchTests(ExecutorCase):
    def test_noSuchSnapshot(self) -> None:
        """A launch from a snapshot that the host does not have is refused, and costs nothing."""
        source = self.launch("say up")
        self.ended(source)
        for session, snapshot in (
            (source, "snap-1"),
            (source, "../workspace"),
            ("ses_nobody", "snap-1"),
            ("../private", "snap-1"),
        ):
            origin = {"session": session, "snapshot": snapshot}
            spec = self.spec("say up", fromSnapshot=origin)
            status, answer = self.ask("PUT", f"/v1/sessions/{spec['session']}", spec)
            self.assertEqual((status, answer["code"]), (409, "no-snapshot"), origin)
        self.assertEqual(len(self.ask("GET", "/v1/sessions")[1]["items"]), 1)
