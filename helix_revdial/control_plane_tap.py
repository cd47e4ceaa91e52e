# -*- test-case-name: tests.test_control_plane_tap -*-
"""
C{twistd helix-revdial-server}: flags, the check of the settings, the service.

The one place of the server in which the reactor is imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from twisted.application.service import IService
from twisted.logger import ILogObserver
from twisted.python import usage

from helix_revdial import __version__
from helix_revdial.config import ConfigError, ServerConfig, load
from helix_revdial.settings import check
from helix_revdial.telemetry.logs import chooseObserver

DEFAULT_FILE = Path("/etc/helix-revdial/server.toml")


class Options(usage.Options):
    """The flags of the server; everything else is in the file."""

    synopsis = "[--config FILE] [--listen ENDPOINT]... [--set SECTION.KEY=VALUE]..."
    longdesc = (
        "The control plane: agents dial in and keep a control connection, users reach what is "
        "beside the agents. Settings come from one TOML file, then HELIX_REVDIAL_* variables, "
        "then these flags; the later wins. See docs/operating.md."
    )
    optParameters = [
        ["config", "c", None, f"TOML file with the settings [{DEFAULT_FILE} if it exists]"],
        ["state-directory", None, None, "same as --set server.state_directory="],
        ["database", None, None, "same as --set server.database="],
    ]
    optFlags = [["check-config", None, "check the settings, say what is wrong, and end"]]
    config: ServerConfig
    logObserver: ILogObserver | None = None
    read: Callable[[], ServerConfig]
    """Reads the settings again, from the same file and flags."""

    def __init__(self) -> None:
        super().__init__()
        self._settings: list[str] = []
        self._listen: list[str] = []

    def opt_set(self, setting: str) -> None:
        """SECTION.KEY=VALUE: one setting of the file; may be given several times"""
        self._settings.append(setting)

    def opt_listen(self, endpoint: str) -> None:
        """Where to listen, such as tcp:8080; may be given several times, replaces the file's"""
        self._listen.append(endpoint)

    def opt_version(self) -> None:
        """Print the version and end."""
        sys.stdout.write(f"helix-revdial-server {__version__}\n")
        sys.exit(0)

    def postOptions(self) -> None:
        settings = list(self._settings)
        for flag, name in (
            ("state-directory", "server.state_directory"),
            ("database", "server.database"),
        ):
            if self[flag] is not None:
                settings.append(f"{name}={self[flag]}")
        path = Path(self["config"]) if self["config"] is not None else None
        if path is None and DEFAULT_FILE.exists():
            path = DEFAULT_FILE

        def read() -> ServerConfig:
            return load(path, os.environ, settings, self._listen)

        self.read = read
        try:
            self.config = read()
            check(self.config)
        except ConfigError as error:
            # One line, without the usage: it is not the flags that are wrong.
            sys.exit(str(error))
        if self["check-config"]:
            sys.stdout.write(f"{path or 'settings'}: ok\n")
            sys.exit(0)
        logging = self.config.logging
        self.logObserver = chooseObserver(self.parent, logging.format, logging.level)


def makeService(options: Options) -> IService:
    """Make the server; it opens the database and its ports when it is started."""
    from twisted.internet import reactor

    from helix_revdial.control_plane import ControlPlane
    from helix_revdial.keeping import SOCKETS, STATES
    from helix_revdial.revdial.collecting import collectLess
    from helix_revdial.revdial.descriptors import raiseDescriptorLimit
    from helix_revdial.revdial.monotonic import useMonotonicTime
    from helix_revdial.revdial.socket_loop import useSocketLoop
    from helix_revdial.systemd.store import handedOver

    useMonotonicTime(reactor)
    useSocketLoop(reactor)
    raiseDescriptorLimit()
    collectLess(reactor)

    return ControlPlane(
        reactor,
        options.config,
        os.environ,
        reread=options.read,
        signals=True,
        handed=handedOver(os.environ, (SOCKETS, STATES)),
        logObserver=options.logObserver,
    )
