"""The units that are shipped: systemd takes them, and they say what the programs and pages say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from twisted.internet.endpoints import serverFromString
from twisted.internet.testing import MemoryReactor
from twisted.trial.unittest import SynchronousTestCase

import helix_revdial
from helix_revdial.agent.service import CLOSE_LIMIT
from helix_revdial.agent.settings import CREDENTIAL
from helix_revdial.config import load
from helix_revdial.executor.settings import DEFAULT_FILE
from helix_revdial.keeping import SOCKETS
from helix_revdial.systemd.supervision import EXTENSION, INTERVAL
from tests.needs import needsProgram

ROOT = Path(helix_revdial.__file__).parent.parent
UNITS = {path.name: path.read_text() for path in sorted((ROOT / "systemd").iterdir())}
SERVICES = [name for name in UNITS if name.endswith(".service")]
TWISTD = "/opt/helix-revdial/bin/twistd"

EXECUTOR = "helix-revdial-executor.service"
"""Runs as root, with few of its powers: what it starts becomes another user each time."""

EXPOSURE = 20
"""What C{systemd-analyze security} may find at most, in tenths: 20 is its "OK"."""

EXPOSURES = {EXECUTOR: 60}
"""
Of those that cannot be shut off as far.  The executor gives each session a user, mounts and a
control group of its own, which only root can; and what tasks may do (namespaces, debuggers, the
network, programs that make programs) it may do itself.  docs/executors.md says so to operators.
"""


def values(unit: str, key: str) -> list[str]:
    """Every value of C{key} in a unit."""
    return re.findall(rf"^{key}=(.*(?:\\\n.*)*)$", UNITS[unit], re.MULTILINE)


class UnitTests(SynchronousTestCase):
    def test_all(self) -> None:
        """Server and socket, agent, the template for several agents, and executor."""
        self.assertEqual(
            sorted(UNITS),
            [
                "helix-revdial-agent.service",
                "helix-revdial-agent@.service",
                "helix-revdial-executor.service",
                "helix-revdial-server.service",
                "helix-revdial-server.socket",
            ],
        )

    def test_notify(self) -> None:
        """Both say when they are ready and that they live, and are not for others to speak for."""
        for name in SERVICES:
            self.assertEqual(values(name, "Type"), ["notify"], name)
            self.assertEqual(values(name, "NotifyAccess"), ["main"], name)
            [limit] = values(name, "WatchdogSec")
            self.assertGreater(float(limit), 4 * INTERVAL)

    def test_restarts(self) -> None:
        """G5: what crashes is started again, for ever."""
        for name in SERVICES:
            self.assertEqual(values(name, "Restart"), ["always"], name)
            self.assertEqual(values(name, "StartLimitIntervalSec"), ["0"], name)

    def test_stopsInTime(self) -> None:
        """
        systemd waits for longer than it takes to ask it for more time, and than
        it takes to close what does not close by itself.
        """
        for name in SERVICES:
            [limit] = values(name, "TimeoutStopSec")
            self.assertGreater(float(limit), EXTENSION + INTERVAL, name)
            self.assertGreater(float(limit), CLOSE_LIMIT + 5, name)

    def test_hardened(self) -> None:
        """
        A user of its own, no new privileges, a system that cannot be written to, limits; and
        not the one restriction under which TLS fails in the middle of a connection.
        """
        for name in SERVICES:
            if name == EXECUTOR:
                continue
            for key, value in (
                ("DynamicUser", "yes"),
                ("NoNewPrivileges", "yes"),
                ("ProtectSystem", "strict"),
                ("LimitCORE", "0"),
            ):
                self.assertEqual(values(name, key), [value], f"{name}: {key}")
            self.assertNotEqual(values(name, "LimitNOFILE"), [], name)
            self.assertEqual(values(name, "MemoryDenyWriteExecute"), [], name)

    def test_executor(self) -> None:
        """
        The executor makes its own control groups, leaves its sessions alone when it is
        restarted, and has of root's powers those that it needs.
        """
        self.assertEqual(values(EXECUTOR, "Delegate"), ["yes"])
        self.assertEqual(values(EXECUTOR, "KillMode"), ["process"])
        [powers] = values(EXECUTOR, "CapabilityBoundingSet")
        for none in ("CAP_NET_ADMIN", "CAP_SYS_MODULE", "CAP_SYS_BOOT", "CAP_SYS_RAWIO"):
            self.assertNotIn(none, powers.split())
        [command] = values(EXECUTOR, "ExecStart")
        self.assertIn(str(DEFAULT_FILE), command)
        # Its sockets' directory outlives a restart, as the sessions do.
        self.assertEqual(values(EXECUTOR, "RuntimeDirectoryPreserve"), ["yes"])

    def test_keepsConnections(self) -> None:
        """systemd keeps as many descriptors as the server hands it, and one that describes them."""
        [most] = values("helix-revdial-server.service", "FileDescriptorStoreMax")
        variable = "HELIX_REVDIAL_DRAIN_KEEP_CONNECTIONS"
        [said] = [
            value
            for value in values("helix-revdial-server.service", "Environment")
            if value.startswith(variable)
        ]
        kept = load(None, dict([said.split("=", 1)])).drain.keepConnections
        self.assertEqual(int(most), kept + 1)
        # systemd lists the name of each in one string of the environment.
        self.assertLess(kept * (len(SOCKETS) + 1), 128 * 1024)

    def test_template(self) -> None:
        """The template is the single agent's unit, but for whose files it takes."""
        single = UNITS["helix-revdial-agent.service"].splitlines()
        template = UNITS["helix-revdial-agent@.service"].splitlines()
        changed = [line for line in template if line not in single and line[:1] not in ("#", "")]
        self.assertEqual(
            changed,
            [
                "Description=helix_revdial agent %i: offers local services to a control plane",
                "EnvironmentFile=/etc/helix-revdial/agents/%i.env",
                f"LoadCredential={CREDENTIAL}:/etc/helix-revdial/agents/%i.token",
            ],
        )
        self.assertEqual(
            values("helix-revdial-agent.service", "LoadCredential"),
            [f"{CREDENTIAL}:/etc/helix-revdial/agent.token"],
        )

    def test_socket(self) -> None:
        """The socket's name is that of the endpoint that its comment and the page give."""
        unit = UNITS["helix-revdial-server.socket"]
        [name] = values("helix-revdial-server.socket", "FileDescriptorName")
        found = re.search(r'endpoint = "(systemd:[^"]*)"', unit)
        assert found is not None
        self.assertIn(f":name={name}", found.group(1))
        page = (ROOT / "docs" / "operating.md").read_text()
        self.assertTrue(found.group(1) in page, f"{found.group(1)} is not in operating.md")
        with self.assertRaises(KeyError):
            # It is read up to the look for a socket of that name, which is not here.
            serverFromString(MemoryReactor(), found.group(1))

    def test_pages(self) -> None:
        """Every unit, and every file that a unit takes, is in the documentation."""
        pages = "".join(
            (ROOT / "docs" / page).read_text()
            for page in ("operating.md", "agent.md", "executors.md")
        )
        named = set(UNITS)
        for unit in SERVICES:
            for key in ("EnvironmentFile", "LoadCredential"):
                for value in values(unit, key):
                    named.add(value.lstrip("-").rpartition(":")[2].replace("%i", "NAME"))
        for name in sorted(named):
            self.assertTrue(name in pages, f"{name} is on no page")

    @needsProgram("systemd-analyze", package="systemd")
    def test_verify(self) -> None:
        """systemd finds no fault, but for where twistd is on this machine."""
        for name, path in self.copies().items():
            done = subprocess.run(
                ["systemd-analyze", "verify", "--man=no", str(path)],
                capture_output=True,
                text=True,
                timeout=60,
            )
            self.assertEqual((done.stdout, done.stderr, done.returncode), ("", "", 0), name)

    @needsProgram("systemd-analyze", package="systemd")
    def test_security(self) -> None:
        """systemd's own judgement of how far a unit is shut off."""
        for name, path in self.copies().items():
            if not name.endswith(".service"):
                continue
            done = subprocess.run(
                [
                    "systemd-analyze",
                    "security",
                    "--offline=yes",
                    f"--threshold={EXPOSURES.get(name, EXPOSURE)}",
                    "--no-pager",
                    str(path),
                ],
                capture_output=True,
                text=True,
                timeout=60,
            )
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def copies(self) -> dict[str, Path]:
        """The units where they can be checked, with a program that is there."""
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        found = {}
        for name, text in UNITS.items():
            copy = directory / name
            copy.write_text(text.replace(TWISTD, sys.executable))
            found[name.replace("@", "@gpu1")] = directory / name.replace("@", "@gpu1")
            if "@" in name:
                (directory / name.replace("@", "@gpu1")).symlink_to(copy)
        return found
