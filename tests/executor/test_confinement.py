"""Processes of a session are found, frozen and killed, whatever holds them together."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from helix_revdial.executor.confinement import Confinement, Limits
from helix_revdial.executor.control_groups import (
    NAME,
    ControlGroup,
    GroupUnusable,
    findControlGroups,
    mountPoint,
    ownGroup,
)
from helix_revdial.executor.process_table import descendants, processTable

DAEMONS = """
import os, sys, time
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        while True:
            with open(sys.argv[1], "a") as file:
                file.write("x")
            time.sleep(0.01)
time.sleep(600)
"""
"""Leaves three daemons behind, each of which writes without end."""


class ConfinementTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.trace = Path("/tmp") / f"hx-trace-{os.getpid()}-{os.urandom(4).hex()}"
        self.trace.write_text("")
        self.trace.chmod(0o666)
        self.addCleanup(self.trace.unlink)
        self.user = 1_360_000 + 2 * os.getpid() % 10_000

    def until(self, condition: Callable[[], object], what: str) -> None:
        end = time.monotonic() + 20
        while not condition():
            self.assertLess(time.monotonic(), end, what)
            time.sleep(0.02)

    def size(self) -> int:
        return self.trace.stat().st_size

    def runThrough(self, confinement: Confinement) -> None:
        """Daemons are frozen: they write nothing; they go on; they are killed, all."""
        confinement.create()
        process = subprocess.Popen(
            confinement.argv(
                ["python3", "-c", DAEMONS, str(self.trace)], "task", "/", newSession=True
            ),
            env=confinement.environment("/", "/tmp", {}),
        )
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        self.until(lambda: len(confinement.processes("task")) >= 4, "the daemons are found")
        self.until(lambda: self.size() > 10, "they write")
        self.until(confinement.freeze, "they are frozen")
        before = self.size()
        time.sleep(0.3)
        self.assertEqual(self.size(), before, "one was not frozen")
        confinement.thaw()
        self.until(lambda: self.size() > before + 10, "they go on")
        self.until(confinement.freeze, "they are frozen again")
        self.until(confinement.kill, "they are gone")
        self.until(confinement.remove, "their group is gone")
        before = self.size()
        time.sleep(0.1)
        self.assertEqual(self.size(), before, "one lives on")

    def group(self) -> ControlGroup:
        try:
            base = findControlGroups()
        except GroupUnusable as error:
            raise SkipTest(str(error)) from None
        return base.part(f"test-{os.getpid()}-{os.urandom(4).hex()}")

    def test_groups(self) -> None:
        """By control groups."""
        self.runThrough(Confinement("ses_t", group=self.group()))

    def test_user(self) -> None:
        """By the session's own user, where there are no control groups."""
        if os.geteuid() != 0:
            raise SkipTest("only root becomes another user")
        self.runThrough(Confinement("ses_t", user=self.user, tunnelUser=self.user + 1))

    def test_mark(self) -> None:
        """By their mark, where the executor is not root either."""
        self.runThrough(Confinement(f"ses_{os.urandom(8).hex()}"))

    def test_parts(self) -> None:
        """What is beside the task is not frozen with it, and is killed with all."""
        confinement = Confinement("ses_t", group=self.group())
        confinement.create()
        side = subprocess.Popen(
            confinement.argv(["sleep", "600"], "side", "/"), env={"PATH": os.defpath}
        )
        self.addCleanup(side.kill)
        self.until(lambda: confinement.processes("side") == {side.pid}, "it is there")
        self.assertEqual(confinement.processes("task"), set())
        self.until(lambda: confinement.kill("task"), "the task is gone")
        self.assertIsNone(side.poll())
        confinement.kill()
        side.wait(10)
        self.until(confinement.kill, "all is gone")
        self.until(confinement.remove, "the group is gone")


class TableTests(SynchronousTestCase):
    def test_own(self) -> None:
        """We are there, and come from our parent."""
        table = processTable()
        own = table[os.getpid()]
        self.assertEqual((own.parent, own.user, own.dead), (os.getppid(), os.getuid(), False))
        child = subprocess.Popen(["sleep", "600"])
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        table = processTable()
        self.assertIn(child.pid, descendants(table, [os.getpid()]))
        self.assertNotIn(child.pid, descendants(table, [os.getpid()], without=[child.pid]))


def kernelFiles(group: Path, controllers: str = "cpuset cpu io memory pids") -> None:
    """What the kernel has in a group."""
    group.mkdir(parents=True, exist_ok=True)
    (group / "cgroup.controllers").write_text(f"{controllers}\n")
    for name in ("cgroup.subtree_control", "cgroup.freeze", "cgroup.kill"):
        (group / name).write_text("")


class LimitTests(SynchronousTestCase):
    """What is written, to directories with the kernel's files."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute()
        self.limits = Limits(processes=77, memory=64 * 1024 * 1024, cpu=2)
        self.confinement = Confinement("s", group=ControlGroup(self.path), limits=self.limits)

    def make(self, controllers: str, *files: str) -> None:
        for group in (self.path, self.path / "task", self.path / "side"):
            kernelFiles(group, controllers)
        for name in files:
            (self.path / "task" / name).write_text("")

    def read(self, name: str) -> str:
        return (self.path / name).read_text()

    def test_bounded(self) -> None:
        """A task has what its resources say, and nothing of the host's swap."""
        self.make("cpu memory pids", "memory.max", "memory.swap.max", "cpu.max", "pids.max")
        self.assertEqual(self.confinement.create(), [])
        self.assertEqual(self.read("cgroup.subtree_control"), "+cpu +memory +pids")
        self.assertEqual(self.read("task/memory.max"), "67108864")
        self.assertEqual(self.read("task/memory.swap.max"), "0")
        self.assertEqual(self.read("task/cpu.max"), "200000 100000")
        self.assertEqual(self.read("task/pids.max"), "77")

    def test_unbounded(self) -> None:
        """What the host has no controller for is told; what it has one for is set."""
        self.make("cpu io", "cpu.max")
        self.assertEqual(self.confinement.create(), ["memory"])
        self.assertEqual(self.read("cgroup.subtree_control"), "+cpu")
        self.assertEqual(self.read("task/cpu.max"), "200000 100000")
        self.assertFalse((self.path / "task" / "memory.max").exists())
        self.assertEqual(Confinement("s", limits=self.limits).create(), ["memory", "cpu"])
        self.assertEqual(Confinement("s").create(), [])


class FindTests(SynchronousTestCase):
    def test_mounts(self) -> None:
        """The mount of version 2 is found beside others, its name unescaped."""
        lines = (
            "24 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
            "25 24 0:23 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"
            "26 24 0:24 / /sys/fs/cgroup\\040two rw shared:9 - cgroup2 cgroup2 rw\n"
        )
        self.assertEqual(mountPoint(lines), Path("/sys/fs/cgroup two"))
        self.assertIsNone(mountPoint(lines.splitlines()[0]))
        self.assertEqual(ownGroup("4:memory:/x\n0::/a.slice/b.service\n"), "/a.slice/b.service")
        self.assertEqual(ownGroup("4:memory:/x\n"), "/")

    def test_beside(self) -> None:
        """
        Sessions' groups are below our own, which is not asked for controllers that it cannot
        have; beside it where the service manager has put us alone, and there it is.
        """
        place = Path(self.mktemp()).absolute()
        (place / "proc").mkdir(parents=True)
        mounted = f"26 24 0:24 / {place}/two rw - cgroup2 cgroup2 rw\n"
        (place / "proc" / "mountinfo").write_text(mounted)
        for own, outer in (("a.service", "a.service"), ("b.service/executor", "b.service")):
            (place / "proc" / "cgroup").write_text(f"0::/{own}\n")
            wanted = place / "two" / outer / NAME
            trial = wanted / f"trial-{os.getpid()}"
            for group in (place / "two" / own, wanted.parent, trial, wanted):
                kernelFiles(group)
            self.assertEqual(findControlGroups(None, place / "proc").path, wanted)
            for group in (wanted.parent, wanted):
                self.assertEqual(
                    (group / "cgroup.subtree_control").read_text(), "+cpu +memory +pids"
                )

    def test_none(self) -> None:
        """Directories that are no control groups are not taken for some."""
        place = Path(self.mktemp()).absolute()
        place.mkdir()
        error = self.assertRaises(GroupUnusable, findControlGroups, str(place))
        self.assertIn("cgroup.freeze", str(error))
        self.assertEqual(list(place.iterdir()), [])
