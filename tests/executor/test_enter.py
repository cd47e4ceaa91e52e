"""What is given up before a program of a session runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from helix_revdial.executor.confinement import ENTER, Confinement, Limits
from helix_revdial.executor.enter import CANNOT_ENTER, CANNOT_RUN, NOT_FOUND
from helix_revdial.executor.host import canSeparateMounts
from helix_revdial.executor.layout import Layout

LIMIT = 20


class EnterTests(SynchronousTestCase):
    def enter(self, terms: Mapping[str, object], *command: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-I", "-S", ENTER, json.dumps(terms), *command]
        return subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT)

    def test_limits(self) -> None:
        """Limits hold, the mask is the usual one, the directory is the one that was said."""
        terms = {"limits": {"files": 77, "core": 0, "fileSize": 1024}, "directory": "/usr"}
        done = self.enter(terms, "sh", "-c", "ulimit -n; ulimit -c; umask; pwd; echo $PWD")
        self.assertEqual(done.stdout.split(), ["77", "0", "0022", "/usr", "/usr"])
        path = Path(self.mktemp()).absolute()
        done = self.enter(terms, "sh", "-c", f"head -c 5000 /dev/zero > {path}; echo $?")
        self.assertEqual(path.stat().st_size, 1024)

    def test_noWayBack(self) -> None:
        """No program gets more than it was started with (no_new_privs)."""
        done = self.enter({}, "cat", "/proc/self/status")
        self.assertIn("NoNewPrivs:\t1", done.stdout)

    def test_signals(self) -> None:
        """A pipe that nobody reads ends a program, as it does in a shell."""
        done = self.enter({}, "sh", "-c", "(sleep 0.2; yes; echo $? >&2) | true")
        self.assertNotIn("141\n1\n", done.stderr)

    def test_ignoredSignals(self) -> None:
        """No program ignores what whoever started the executor had ignored."""
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.addCleanup(signal.signal, signal.SIGINT, before)
        found = self.enter({}, "cat", "/proc/self/status").stdout
        ignored = int(found.partition("SigIgn:\t")[2].split()[0], 16)
        # The C library keeps 32 and 33 for itself: no program can set them (signal(7)).
        self.assertEqual(ignored & ~(0b11 << 31), 0, found)

    def test_cannot(self) -> None:
        """What cannot be confined does not run; what is not there and cannot run is told apart."""
        done = self.enter({"group": "/no/such/group"}, "echo", "ran")
        self.assertEqual((done.returncode, done.stdout), (CANNOT_ENTER, ""))
        self.assertIn("cannot confine the program", done.stderr)
        read, write = os.pipe()
        self.addCleanup(os.close, read)
        for terms in ({"group": "/no/such/group"}, {}):
            argv = [sys.executable, "-I", "-S", ENTER, json.dumps({**terms, "told": write})]
            argv += ["sh", "-c", f"echo ran >&{write}"]
            subprocess.run(argv, pass_fds=[write], capture_output=True, timeout=LIMIT)
        os.close(write)
        told = os.read(read, 1000)
        self.assertIn(b"No such file", told)
        self.assertNotIn(b"ran", told)
        self.assertEqual(self.enter({}, "/no/such").returncode, NOT_FOUND)
        self.assertEqual(self.enter({}, "/etc/passwd").returncode, CANNOT_RUN)

    def test_user(self) -> None:
        """It becomes the user for good: all three ids, and no group but its own."""
        if os.geteuid() != 0:
            raise SkipTest("only root becomes another user")
        confinement = Confinement("ses_x", user=1_350_000, limits=Limits(processes=10))
        done = subprocess.run(
            confinement.argv(["sh", "-c", "cat /proc/self/status /proc/self/limits"], "task", "/"),
            capture_output=True, text=True, timeout=LIMIT,
        )  # fmt: skip
        self.assertIn("Uid:\t1350000\t1350000\t1350000\t1350000\n", done.stdout)
        self.assertIn("Gid:\t1350000\t1350000\t1350000\t1350000\n", done.stdout)
        self.assertIn("CapEff:\t0000000000000000", done.stdout)
        self.assertIn("Groups:\t \n", done.stdout)
        self.assertRegex(done.stdout, r"Max processes +10 +10 ")

    def test_accounts(self) -> None:
        """Users that the host does not know have names, for the program and for nobody else."""
        if not canSeparateMounts():
            raise SkipTest("nothing can be mounted here")
        layout = Layout(Path(tempfile.mkdtemp()))
        self.addCleanup(shutil.rmtree, layout.root)
        layout.create(1_350_000, 1_350_001)
        before = Path("/etc/passwd").read_text()
        confinement = Confinement(
            "ses_x", user=1_350_000, mounts=True, accounts=str(layout.accounts)
        )
        for user, name in ((None, "session"), (1_350_001, "tunnel")):
            argv = confinement.argv(["sh", "-c", "id -un; id -un 0"], "side", "/", user=user)
            done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT)
            self.assertEqual(done.stdout.split(), [name, "root"], done.stderr)
        self.assertEqual(Path("/etc/passwd").read_text(), before)
        self.assertEqual(layout.accounts.stat().st_uid, os.geteuid())

    def test_sharedMemory(self) -> None:
        """
        Nothing is left in the memory that a host's users share, nor read there by others:
        files, semaphores, segments (shm_overview(7), sysvipc(7)).
        """
        if not canSeparateMounts():
            raise SkipTest("nothing can be mounted here")
        places = [place for place in ("/dev/shm", "/run/lock") if Path(place).is_dir()]
        before = {place: set(os.listdir(place)) for place in places}
        confinement = Confinement("ses_x", user=1_350_000, mounts=True)
        program = (
            "import ctypes, os\n"
            "assert ctypes.CDLL(None).shmget(0x5b5b, 4096, 0o1666) >= 0\n"
            f"for place in {places}:\n"
            "    assert os.listdir(place) == [], place\n"
            "    open(place + '/left', 'w').close()\n"
        )
        # One that everybody may run.
        python = shutil.which("python3", path="/usr/bin") or sys.executable
        argv = confinement.argv([python, "-c", program], "side", "/")
        done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        for place, found in before.items():
            self.assertNotIn("left", set(os.listdir(place)) - found)
        segments = Path("/proc/sysvipc/shm").read_text()
        self.assertNotIn(" 1350000 ", segments)

    def test_environment(self) -> None:
        """The environment is what was handed over, and nothing of the host's."""
        confinement = Confinement("ses_x")
        found = confinement.environment("/h", "/t", {"A": "1", "HELIX_SESSION_ID": "other"})
        self.assertEqual(
            sorted(found),
            ["A", "HELIX_SESSION_ID", "HOME", "LANG", "LOGNAME", "PATH", "SHELL", "TMPDIR", "USER"],
        )
        self.assertEqual(found["HELIX_SESSION_ID"], "ses_x")
