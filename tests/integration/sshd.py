"""An sshd of the test's own: on loopback, with keys of its own, for the user that runs the test."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
from pathlib import Path

from .fleet import freePort, until

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + os.pathsep + "/usr/sbin")


class SSHServer:
    """
    @ivar port: Where it listens on loopback.
    @ivar options: What a client has to be told, as C{-o} options.
    """

    def __init__(self, directory: Path) -> None:
        """@param directory: Where keys and settings are kept."""
        assert SSHD is not None
        self.directory = directory
        self.port = freePort()
        self.user = getpass.getuser()
        for name in ("host", "user"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)],
                check=True,
                stdin=subprocess.DEVNULL,
            )
        authorized = directory / "authorized"
        authorized.write_bytes((directory / "user.pub").read_bytes())
        authorized.chmod(0o600)
        host = (directory / "host.pub").read_text().split()
        (directory / "known").write_text(f"* {host[0]} {host[1]}\n")
        settings = directory / "sshd_config"
        settings.write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {directory / 'host'}\n"
            f"AuthorizedKeysFile {authorized}\nStrictModes no\nUsePAM no\n"
            f"PidFile none\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
            "Subsystem sftp internal-sftp\n"
        )
        if os.geteuid() == 0:
            # Where sshd leaves its privileges; the package's own service makes it.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.log = directory / "sshd.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", str(settings)],
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        until(self._listens, "sshd listens")

    def _listens(self) -> bool:
        if self._process.poll() is not None:
            raise AssertionError(f"sshd ended: {self.log.read_text()}")
        return "Server listening" in self.log.read_text()

    @property
    def options(self) -> list[str]:
        return [
            "-F", "none",
            "-o", f"IdentityFile={self.directory / 'user'}",
            "-o", f"UserKnownHostsFile={self.directory / 'known'}",
            "-o", "GlobalKnownHostsFile=none",
            "-o", "IdentitiesOnly=yes",
            "-o", "BatchMode=yes",
            "-o", f"User={self.user}",
        ]  # fmt: skip

    def stop(self) -> None:
        """End it, and its sessions' listener."""
        self._process.terminate()
        self._process.wait(10)
