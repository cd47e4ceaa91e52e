"""What becomes of a task's work: pushed to a real repository, over ssh and from files."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.needs import needsProgram

from .executors import LIMIT, ExecutorCase, until
from .sshd import SSHServer


class Deliveries(ExecutorCase):
    """Looks into the repository."""

    def inside(self, bare: Path, *argv: str) -> list[str]:
        """What git says of a repository, in lines."""
        done = subprocess.run(
            ["git", "-c", f"safe.directory={bare}", "-C", str(bare), *argv],
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.splitlines()

    def branches(self, bare: Path) -> list[str]:
        """Its branches."""
        return self.inside(bare, "branch", "--list", "--format=%(refname:short)")

    def delivered(self, reports: list[dict[str, Any]]) -> dict[str, Any]:
        """The one report of the delivery, which is the last but one."""
        found = [each for each in reports if each["kind"] == "delivery"]
        self.assertEqual(found, reports[-2:-1], reports[-4:])
        return found[0]


@needsProgram("sshd", package="openssh-server")
@needsProgram("ssh", package="openssh-client")
class SSHTests(Deliveries):
    """The repository is reached over ssh, with a key of the host's."""

    protocols = ("ssh",)

    def moreSettings(self) -> str:
        self.keys = Path(tempfile.mkdtemp(prefix="hx-keys-"))
        self.addCleanup(shutil.rmtree, self.keys, ignore_errors=True)
        self.sshd = SSHServer(self.keys)
        self.addCleanup(self.sshd.stop)
        self.place = f"ssh://{self.sshd.user}@127.0.0.1:{self.sshd.port}"
        known = self.keys / "known"
        known.write_text(known.read_text().replace("* ", f"[127.0.0.1]:{self.sshd.port} ", 1))
        return (
            f'[[credential]]\nurl = "{self.place}/"\nkey_file = "{self.keys / "user"}"\n'
            f'known_hosts_file = "{known}"\n'
        )

    def test_pushed(self) -> None:
        """
        Clone and push go by ssh: C{branch} to the branch that was asked for, C{pr} to one of
        the session's own.  The exit code is the task's, the address that of the repository,
        and the key is in no file that is left of it.
        """
        bare = self.repository()
        url = f"{self.place}{bare}"
        seen = f"ssh://127.0.0.1:{self.sshd.port}{bare}"
        session = self.launch(
            "append file.txt two",
            repo={"mode": "git", "url": url, "branch": "main"},
            delivery={"mode": "branch", "targetBranch": "work/done"},
        )
        reports = self.reports(session)
        self.assertEqual(reports[-1].get("exitCode"), 0, self.tail(session))
        self.assertNotIn("error", reports[-1], self.tail(session))
        found = self.delivered(reports)
        self.assertEqual((found["mode"], found["url"]), ("branch", seen))
        self.assertEqual(self.inside(bare, "show", "work/done:file.txt"), ["one", "two"])
        request = self.launch(
            "write new.txt three\ncommit its own",
            repo={"mode": "git", "url": url},
            delivery={"mode": "pr", "targetBranch": "main"},
        )
        found = self.delivered(self.reports(request))
        self.assertEqual((found["mode"], found["url"]), ("pr", seen))
        branch = f"helix/{request}"
        self.assertEqual(self.inside(bare, "log", "--format=%s", branch), ["its own", "first"])
        self.assertEqual(self.inside(bare, "log", "--format=%s", "main"), ["first"])
        key = (self.keys / "user").read_text()
        for path in (self.state / "sessions" / request).rglob("*"):
            if path.is_file() and not path.is_symlink():
                self.assertNotIn(key, path.read_text(errors="replace"), f"the key is in {path}")


class FileTests(Deliveries):
    """What comes of it where nothing can be pushed."""

    def test_refused(self) -> None:
        """A repository that does not take it: the task's exit code stays, the reason is said."""
        bare = self.repository()
        hook = bare / "hooks" / "pre-receive"
        hook.write_text("#!/bin/sh\necho this branch is closed >&2\nexit 1\n")
        hook.chmod(0o755)
        self.give(bare, self.firstUser + 1)
        session = self.launch(
            "append file.txt two",
            repo={"mode": "git", "url": f"file://{bare}"},
            delivery={"mode": "branch", "targetBranch": "closed"},
        )
        last = self.ended(session)
        self.assertEqual(last["exitCode"], 0)
        self.assertIn("nothing was pushed", last["error"])
        self.assertIn("this branch is closed", last["error"])
        self.assertEqual(self.branches(bare), ["main"])

    def test_endedWhilePushing(self) -> None:
        """
        A push that does not end holds nobody up: it cannot be paused, is given the time that
        a stop gives, and none by cancel; and that is no failure of the session's.
        """
        bare = self.repository()
        pushing = bare / "pushing"
        hook = bare / "hooks" / "pre-receive"
        hook.write_text(f"#!/bin/sh\necho > {pushing}\nsleep 1000\n")
        hook.chmod(0o755)
        for index, verb in enumerate(("stop", "cancel")):
            self.give(bare, self.firstUser + 2 * index + 1)
            session = self.launch(
                "append file.txt two",
                repo={"mode": "git", "url": f"file://{bare}"},
                delivery={"mode": "branch", "targetBranch": "work"},
            )
            until(pushing.exists, "it pushes")
            pushing.unlink()
            status, answer = self.ask("POST", f"/v1/sessions/{session}/pause", {})
            self.assertEqual(status, 409)
            self.assertIn("agent has ended", answer["detail"])
            self.order(session, verb, deadline=0.5)
            last = self.ended(session)
            self.assertEqual((last.get("exitCode"), last.get("error")), (0, None))
            self.assertIn("nothing was pushed", self.tail(session))
        self.assertEqual(self.branches(bare), ["main"])

    def test_nothingToDeliver(self) -> None:
        """A task that failed delivers nothing; one that changed nothing says so."""
        bare = self.repository()
        self.give(bare, self.firstUser + 1)
        repo = {"mode": "git", "url": f"file://{bare}"}
        delivery = {"mode": "branch", "targetBranch": "work"}
        failed = self.launch("append file.txt two\nexit 3", repo=repo, delivery=delivery)
        reports = self.reports(failed)
        self.assertEqual(reports[-1]["exitCode"], 3)
        self.assertNotIn("delivery", [each["kind"] for each in reports])
        self.give(bare, self.firstUser + 3)
        idle = self.launch("say nothing to do", repo=repo, delivery=delivery)
        last = self.ended(idle)
        self.assertEqual(last["exitCode"], 0)
        self.assertIn("nothing was changed", last["error"])
        self.assertEqual(self.branches(bare), ["main"])

    def test_takenBranch(self) -> None:
        """A branch that has other commits is not overwritten, and git's own reason is told."""
        bare = self.repository()
        work = self.directory / "work"
        own = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "-C", str(work)]
        for argv in (
            [*own, "commit", "-q", "--allow-empty", "-m", "somebody's"],
            [*own, "push", "-q", str(bare), "HEAD:taken"],
        ):
            subprocess.run(argv, check=True, timeout=LIMIT)
        before = self.inside(bare, "rev-parse", "taken")
        self.give(bare, self.firstUser + 1)
        session = self.launch(
            "append file.txt two",
            repo={"mode": "git", "url": f"file://{bare}", "branch": "main"},
            delivery={"mode": "branch", "targetBranch": "taken"},
        )
        last = self.ended(session)
        self.assertIn("[rejected]", last["error"])
        self.assertEqual(self.inside(bare, "rev-parse", "taken"), before)
