# -*- test-case-name: tests.agent.test_options -*-
"""
The command line of C{twistd helix-revdial-agent}.

Made from the table of L{helix_revdial.agent.vocabulary}: what the settings mean
stands there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, ClassVar, TextIO

from twisted.logger import ILogObserver
from twisted.python import usage

from .. import __version__
from ..telemetry.logs import chooseObserver
from .runners import readRunners
from .settings import AgentSettings, SettingsError, readSettings
from .token import Secret
from .vocabulary import LOG_FORMAT, METRICS, SECRETS, SETTINGS, Setting

CONFIG = "HELIX_AGENT_CONFIG"
"""The variable that names the file of runners."""


def _meaning(row: Setting) -> str:
    return row.meaning + (f" Or {row.variable}." if row.variable else "")


class Options(usage.Options):
    """
    Flags of the agent; after parsing, L{runners} holds what they amount to: one
    runner, or those of a file.

    @ivar metricsListen: Where to serve metrics; C{None} for nowhere.
    @ivar logObserver: How C{twistd} is to log.

    The token's flag holds a L{Secret}, since these options are a dictionary that
    anybody may print.
    """

    synopsis = "[options]"
    longdesc = (
        "Keeps a control connection to a helix_revdial server and connects its dials to local "
        "services. Flags win over the environment."
    )
    optFlags = [
        ["check-config", None, "Print the settings, without secrets, and exit: 0 usable, 1 not."],
        ["check", None, "Try out the way to the server and the targets, and exit: 0 well, 1 not."],
    ]
    optFlags += [[row.flag, None, _meaning(row)] for row in SETTINGS if row.flag and row.switch]
    optParameters: ClassVar[list[list[Any]]] = [
        [
            "config",
            None,
            None,
            f"A TOML file of one or more runners, which then says everything. Or {CONFIG}.",
        ],
    ]
    optParameters += [
        [row.flag, None, None, _meaning(row), Secret if row.flag in SECRETS else None]
        for row in SETTINGS
        if row.flag and not row.repeatable and not row.switch
    ]

    def __init__(
        self,
        environment: Mapping[str, str] = os.environ,
        output: TextIO | None = None,
        errors: TextIO | None = None,
    ) -> None:
        """
        @param environment: The environment variables.
        @param output: Where C{--check-config} prints, standard output by default.
        @param errors: Where it prints warnings, standard error by default.
        """
        super().__init__()
        for row in SETTINGS:
            if row.flag and row.repeatable:
                self[row.flag] = []
        self._environment = environment
        self._output = output
        self._errors = errors
        self.runners: tuple[AgentSettings, ...] = ()
        self.metricsListen: str | None = None
        self.logObserver: ILogObserver | None = None

    @property
    def settings(self) -> AgentSettings | None:
        """What the first runner is told; C{None} before parsing."""
        return self.runners[0] if self.runners else None

    def opt_target(self, value: str) -> None:
        """NAME=ADDRESS: a named local service; repeatable. Or HELIX_AGENT_TARGETS."""
        self["target"].append(value)

    def opt_api_url(self, value: str) -> None:
        """URL of the control plane; repeatable, or separated by commas. Or HELIX_API_URL."""
        self["api-url"].append(value)

    def opt_server(self, value: str) -> None:
        """The same, as sandboxes name it. Or HELIX_API_BASE_URL."""
        self["server"].append(value)

    def opt_pin(self, value: str) -> None:
        """sha256/BASE64: a key that the server may have; repeatable. Or HELIX_AGENT_PINS."""
        self["pin"].append(value)

    def opt_version(self) -> None:
        """Print the version and exit."""
        (self._output or sys.stdout).write(f"helix_revdial {__version__}\n")
        raise SystemExit(0)

    def postOptions(self) -> None:
        """
        Make the settings.

        @raise SystemExit: They make no agent, or were only to be checked.
        """
        checking = bool(self["check-config"])
        try:
            form = self._ofProcess("log-format", LOG_FORMAT) or "text"
            if form not in ("text", "json"):
                raise SettingsError(f"the log's format is text or json, not {form[:50]!r}")
            metrics = self._ofProcess("metrics-listen", METRICS)
            if metrics is not None:
                _checkEndpoint(metrics)
            runners = self._readRunners()
            if checking:
                for settings in runners:
                    settings.checkToken()
        except SettingsError as error:
            # Without the usage: it is not the flags' names that are wrong.
            (self._errors or sys.stderr).write(f"{error}\n")
            raise SystemExit(1) from None
        if checking:
            for settings in runners:
                for warning in settings.warnings:
                    (self._errors or sys.stderr).write(f"warning: {warning}\n")
            (self._output or sys.stdout).write("\n".join(each.describe() for each in runners))
            raise SystemExit(0)
        self.runners = runners
        self.metricsListen = metrics
        self.logObserver = chooseObserver(self.parent, form)

    def _ofProcess(self, flag: str, variable: str) -> str | None:
        given = self[flag] or self._environment.get(variable)
        return str(given) if given else None

    def _readRunners(self) -> tuple[AgentSettings, ...]:
        path = self["config"] or self._environment.get(CONFIG)
        if not path:
            return (readSettings(self, self._environment),)
        given = [
            f"--{row.flag}" for row in SETTINGS if row.flag and not row.ofProcess and self[row.flag]
        ]
        if given:
            raise SettingsError(
                f"{' and '.join(given)}: the file {path} says everything; write it there"
            )
        return readRunners(path, self._environment)


def _checkEndpoint(description: str) -> None:
    """
    Check where metrics are to be served, and open nothing.

    @raise SettingsError: That is no endpoint.
    """
    # Most agents have no such port, and no use for what this brings along.
    from ..revdial.endpoint_syntax import checkSyntax

    try:
        checkSyntax(description)
    except Exception as error:
        raise SettingsError(
            f"--metrics-listen {description[:100]!r}: {error}; write for example "
            "tcp:9465:interface=127.0.0.1, or unix:/run/agent-metrics.sock:mode=660"
        ) from None


__all__ = ["Options"]
