# -*- test-case-name: tests.executor.test_settings -*-
"""
The command line of C{twistd helix-revdial-executor}.
"""

from __future__ import annotations

import sys
from pathlib import Path

from twisted.python import usage

from helix_revdial import __version__

from .settings import DEFAULT_FILE, ExecutorSettings, SettingsError, readSettings


class Options(usage.Options):
    """
    The flags of the executor; everything else is in the file.

    @ivar settings: What they amount to, once parsed.
    """

    synopsis = "[--config FILE] [--check-config]"
    longdesc = (
        "Runs sessions on this host, for a control plane that reaches it through the agent beside "
        "it, on a unix socket. Settings come from one TOML file; see docs/executors.md."
    )
    optParameters = [
        ["config", "c", None, f"TOML file with the settings [{DEFAULT_FILE} if it exists]"],
    ]
    optFlags = [["check-config", None, "check the settings, say what is wrong, and end"]]
    settings: ExecutorSettings

    def opt_version(self) -> None:
        """Print the version and end."""
        sys.stdout.write(f"helix-revdial-executor {__version__}\n")
        sys.exit(0)

    def postOptions(self) -> None:
        """
        Read the settings.

        @raise SystemExit: They cannot be used, or were only to be checked.
        """
        path = Path(self["config"]) if self["config"] is not None else None
        if path is None and DEFAULT_FILE.exists():
            path = DEFAULT_FILE
        try:
            self.settings = readSettings(path)
        except SettingsError as error:
            # Without the usage: it is not the flags that are wrong.
            sys.exit(str(error))
        if self["check-config"]:
            sys.stdout.write(f"{path or 'settings'}: ok\n")
            sys.exit(0)
