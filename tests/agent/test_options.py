"""Tests for L{helix_revdial.agent.options} and L{helix_revdial.agent.tap}."""

from __future__ import annotations

import os
from collections.abc import Mapping
from io import StringIO

from twisted.application.service import ServiceMaker
from twisted.python import usage
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial import __version__
from helix_revdial.agent import tap
from helix_revdial.agent.options import Options
from helix_revdial.agent.service import AgentService
from helix_revdial.agent.targets import HostPort, SocketPath
from helix_revdial.agent.vocabulary import SETTINGS

TOKEN = "hl-very-secret-0123456789"

HOST = {"HELIX_API_URL": "https://cp.example", "WOLF_ID": "gpu7", "RUNNER_TOKEN": TOKEN}


class OptionsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.output, self.errors = StringIO(), StringIO()

    def options(self, environment: Mapping[str, str]) -> Options:
        return Options(environment, self.output, self.errors)

    def refused(self, environment: Mapping[str, str], arguments: list[str]) -> str:
        """What is said of settings that make no agent."""
        error = self.assertRaises(SystemExit, self.options(environment).parseOptions, arguments)
        self.assertEqual((error.code, self.output.getvalue()), (1, ""))
        return self.errors.getvalue()

    def test_environmentAlone(self) -> None:
        """Without a flag the environment makes the agent."""
        options = self.options(HOST)
        options.parseOptions([])
        assert options.settings is not None
        self.assertEqual(options.settings.key, "wolf-gpu7")

    def test_flags(self) -> None:
        """Every flag of the table reaches the settings."""
        path = self.mktemp()
        with open(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
            file.write(TOKEN)
        options = self.options({})
        options.parseOptions(
            [
                "--server=wss://other",
                "--runner-id",
                "hydra-1",
                f"--token-file={path}",
                "--local=:80",
                "--target=a=unix:///a",
                "--target",
                "b=:2",
                "--reconnect=2",
            ]
        )
        settings = options.settings
        assert settings is not None
        self.assertEqual(settings.key, "hydra-1")
        self.assertEqual(str(settings.server), "https://other")
        self.assertEqual(settings.token(), TOKEN)
        self.assertEqual(settings.reconnect, 2.0)
        self.assertEqual(
            dict(settings.targets),
            {
                "default": HostPort("localhost", 80),
                "a": SocketPath("/a"),
                "b": HostPort("localhost", 2),
            },
        )

    def config(self, text: str) -> str:
        """A file of runners."""
        path: str = self.mktemp()
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def test_config(self) -> None:
        """A file makes as many runners as it has, by flag or by variable."""
        runner = (
            "[[runner]]\nkey = 'wolf-{}'\nserver = 'http://a'\ntoken_file = '/x'\n"
            "targets = [{{ name = 'api', address = ':1' }}]\n"
        )
        path = self.config(runner.format(1) + runner.format(2))
        for arguments, environment in (([f"--config={path}"], HOST),
                                       ([], {"HELIX_AGENT_CONFIG": path})):  # fmt: skip
            options = self.options(environment)
            options.parseOptions(arguments)
            self.assertEqual([each.key for each in options.runners], ["wolf-1", "wolf-2"])

    def test_configSaysEverything(self) -> None:
        """A flag beside the file is refused, since it would be unclear whose it is."""
        path = self.config("")
        flags = ["--insecure", "--target=a=:1", "--wolf-id=1"]
        said = self.refused({}, [f"--config={path}", *flags])
        self.assertIn("--wolf-id and --target and --insecure", said)
        self.assertIn("[[runner]]", self.refused({}, [f"--config={path}"]))

    def test_missing(self) -> None:
        """What is missing is said, without the usage, which would hide it."""
        said = self.refused({}, [])
        self.assertIn("HELIX_API_URL", said)
        self.assertEqual(len(said.splitlines()), 3, said)
        self.assertRaises(usage.UsageError, self.options(HOST).parseOptions, ["stray"])

    def test_metricsListen(self) -> None:
        """A place for metrics that is none is said before anything is started, in a line."""
        for given, words in (
            ("tcp:nonsense", "nonsense"),
            ("tcp:99999", "a port is a number from 0 to 65535"),
            ("9465", "write for example tcp:9465:interface=127.0.0.1"),
        ):
            self.errors = StringIO()
            said = self.refused(HOST, [f"--metrics-listen={given}"])
            self.assertIn(words, said)
            self.assertEqual(said.count("\n"), 1, said)
        options = self.options({**HOST, "HELIX_AGENT_METRICS_LISTEN": "unix:/run/m.sock"})
        options.parseOptions([])
        self.assertEqual(options.metricsListen, "unix:/run/m.sock")

    def test_usageNamesEverything(self) -> None:
        """C{--help} names every flag, and the variable that does the same."""
        text = " ".join(str(self.options({})).split())
        for row in SETTINGS:
            if row.flag:
                self.assertIn(f"--{row.flag}" + ("" if row.switch else "="), text)
                self.assertIn(str(row.variable), text)

    def test_tokenIsHidden(self) -> None:
        """F1: options are a dictionary that anybody may print."""
        options = self.options(HOST | {"RUNNER_TOKEN": ""})
        options.parseOptions([f"--token={TOKEN}"])
        assert options.settings is not None
        self.assertEqual(options.settings.token(), TOKEN)
        self.assertNotIn(TOKEN, repr(dict(options)) + str(options) + repr(vars(options)))

    def test_version(self) -> None:
        """C{--version} is ours, not Twisted's."""
        leaving = self.assertRaises(SystemExit, self.options({}).parseOptions, ["--version"])
        self.assertEqual(leaving.code, 0)
        self.assertEqual(self.output.getvalue(), f"helix_revdial {__version__}\n")

    def check(self, *arguments: str, environment: Mapping[str, str] = HOST) -> int:
        """C{--check-config}: its exit status."""
        options = self.options(environment)
        leaving = self.assertRaises(
            SystemExit, options.parseOptions, ["--check-config", *arguments]
        )
        self.assertNotIn(TOKEN, self.output.getvalue() + self.errors.getvalue())
        assert isinstance(leaving.code, int)
        return leaving.code

    def test_checkConfig(self) -> None:
        """Usable settings are printed, without secrets; status 0."""
        self.assertEqual(self.check("--wolf-id=wolf-1"), 0)
        self.assertIn("runner     wolf-wolf-1\n", self.output.getvalue())
        self.assertIn("token      from RUNNER_TOKEN\n", self.output.getvalue())
        self.assertIn("warning: ", self.errors.getvalue())

    def test_checkConfigFails(self) -> None:
        """Unusable settings: what is wrong on standard error, nothing else; status 1."""
        self.assertEqual(self.check("--local=x"), 1)
        self.assertEqual(self.check(environment={}), 1)
        self.assertEqual(self.check("--token-file=/none"), 1)
        self.assertIn("/none: no such file or directory", self.errors.getvalue())
        self.assertEqual(self.output.getvalue(), "")


class PluginTests(SynchronousTestCase):
    def test_makeService(self) -> None:
        """Parsed options become an agent."""
        options = Options(HOST)
        options.parseOptions([])
        self.assertIsInstance(tap.makeService(options), AgentService)

    def test_dropin(self) -> None:
        """The dropin names a module that has what twistd wants."""
        from twisted.plugins import helix_revdial_agent

        maker = helix_revdial_agent.helixRevdialAgent
        self.assertIsInstance(maker, ServiceMaker)
        self.assertEqual(maker.tapname, "helix-revdial-agent")
        self.assertIs(maker.options, Options)
        self.assertIs(maker.makeService, tap.makeService)
