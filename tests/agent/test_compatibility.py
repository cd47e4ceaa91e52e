"""Tests for L{helix_revdial.agent.compatibility}."""

from __future__ import annotations

from collections.abc import Mapping
from io import StringIO

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.agent.compatibility import (
    REVDIAL_CLIENT,
    WOLF_REVDIAL_CLIENT,
    FlagError,
    HelpWanted,
    parseGoFlags,
    settingsOf,
)
from helix_revdial.agent.settings import AgentSettings
from helix_revdial.agent.targets import HostPort, SocketPath
from helix_revdial.agent.token import Secret
from helix_revdial.agent.vocabulary import Offered

TOKEN = "hl-very-secret-0123456789"


class ParseGoFlagsTests(SynchronousTestCase):
    def parse(self, *arguments: str) -> dict[str, object]:
        found = parseGoFlags(arguments, REVDIAL_CLIENT)
        return {
            name: value.reveal() if isinstance(value, Secret) else value
            for name, value in found.items()
        }

    def test_forms(self) -> None:
        """One dash or two, the value after a space or an equals sign."""
        expected = {"server": "http://a", "token": "x=y"}
        for arguments in (
            ("-server", "http://a", "-token", "x=y"),
            ("-server=http://a", "-token=x=y"),
            ("--server", "http://a", "--token=x=y"),
            ("-server=http://b", "-server=http://a", "-token", "x=y", "--"),
        ):
            self.assertEqual(self.parse(*arguments), expected)

    def test_values(self) -> None:
        """A value may be empty, or look like a flag, as in Go."""
        self.assertEqual(
            self.parse("-token=", "-local", "-server"), {"token": "", "local": "-server"}
        )

    def test_repeated(self) -> None:
        """Our own repeatable flag is one here too."""
        self.assertEqual(
            self.parse("-target", "a=:1", "-target=b=:2"), {"target": ["a=:1", "b=:2"]}
        )

    def test_misuse(self) -> None:
        """Go's own complaints."""
        for arguments, words in (
            (("-nosuch", "x"), "flag provided but not defined: -nosuch"),
            (("-server",), "flag needs an argument: -server"),
            (("---server", "x"), "bad flag syntax: ---server"),
            (("-=x",), "bad flag syntax: -"),
            (("-wolf-id", "x"), "flag provided but not defined: -wolf-id"),
        ):
            error = self.assertRaises(FlagError, self.parse, *arguments)
            self.assertEqual(str(error), words)

    def test_strayWords(self) -> None:
        """A word among the flags is refused, not repeated: it may be a token."""
        for arguments in ((TOKEN,), ("-server", "http://a", TOKEN, "-local", ":1"), ("-", "x")):
            error = self.assertRaises(FlagError, self.parse, *arguments)
            self.assertNotIn(TOKEN, str(error))

    def test_help(self) -> None:
        """C{-h} and C{-help} ask for the usage."""
        for word in ("-h", "-help", "--help"):
            self.assertRaises(HelpWanted, self.parse, word)


class SettingsOfTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.errors = StringIO()

    def settings(
        self, offered: Offered, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> AgentSettings:
        return settingsOf("program", arguments, environment or {}, offered, self.errors)

    def left(self, offered: Offered, *arguments: str) -> int:
        """The status that the program leaves with."""
        leaving = self.assertRaises(SystemExit, self.settings, offered, *arguments)
        self.assertNotIn(TOKEN, self.errors.getvalue())
        assert isinstance(leaving.code, int)
        return leaving.code

    def test_sandboxStartScript(self) -> None:
        """The command line of a sandbox's start script (seed 001)."""
        settings = self.settings(
            REVDIAL_CLIENT,
            *("-server", "http://api:8080/api/v1/revdial"),
            *("-runner-id", "sandbox-ses_1"),
            *("-token", TOKEN),
        )
        self.assertEqual(str(settings.server), "http://api:8080")
        self.assertEqual(settings.key, "sandbox-ses_1")
        self.assertEqual(settings.token(), TOKEN)
        self.assertEqual(settings.targets["default"], HostPort("localhost", 9876))

    def test_wolfSideCar(self) -> None:
        """The command line of Wolf's side car (seed 002)."""
        settings = self.settings(
            REVDIAL_CLIENT,
            *("-server", "http://api:8080/api/v1/revdial"),
            *("-runner-id", "wolf-local"),
            *("-token", "oh-hallo"),
            *("-local", "unix:///var/run/wolf/wolf.sock"),
        )
        self.assertEqual(settings.key, "wolf-local")
        self.assertEqual(settings.targets["default"], SocketPath("/var/run/wolf/wolf.sock"))

    def test_revdialClientsDefault(self) -> None:
        """C{revdial-client} has one default service, whatever the runner."""
        settings = self.settings(
            REVDIAL_CLIENT, "-server=http://a", "-runner-id=wolf-1", f"-token={TOKEN}"
        )
        self.assertEqual(settings.targets["default"], HostPort("localhost", 9876))

    def test_revdialClientsEnvironment(self) -> None:
        """Without flags a session's variables do."""
        settings = self.settings(
            REVDIAL_CLIENT,
            environment={
                "HELIX_API_BASE_URL": "http://api:8080",
                "HELIX_SESSION_ID": "ses_1",
                "USER_API_TOKEN": TOKEN,
                "WOLF_ID": "not asked for",
            },
        )
        self.assertEqual((settings.key, settings.token()), ("sandbox-ses_1", TOKEN))

    def test_wolf(self) -> None:
        """The command line of seed 003, its environment, and its defaults."""
        byFlags = self.settings(
            WOLF_REVDIAL_CLIENT,
            *("-api-url", "http://api.example.com:8080", "-wolf-id", "1", "-token", TOKEN),
        )
        byEnvironment = self.settings(
            WOLF_REVDIAL_CLIENT,
            environment={
                "HELIX_API_URL": "http://api.example.com:8080",
                "WOLF_ID": "1",
                "RUNNER_TOKEN": TOKEN,
            },
        )
        for settings in (byFlags, byEnvironment):
            self.assertEqual(str(settings.server), "http://api.example.com:8080")
            self.assertEqual(settings.key, "wolf-1")
            self.assertEqual(settings.token(), TOKEN)
            self.assertEqual(settings.targets["default"], HostPort("localhost", 8080))
            self.assertEqual(settings.reconnect, 5.0)

    def test_missing(self) -> None:
        """What is missing is named as these programs write it; status 2."""
        self.assertEqual(self.left(WOLF_REVDIAL_CLIENT), 2)
        self.assertEqual(
            self.errors.getvalue().splitlines(),
            [
                "program: no runner: give -wolf-id, or set WOLF_ID",
                "program: no server: give -api-url, or set HELIX_API_URL",
                "program: no token: give -token-file or -token, or set "
                "HELIX_AGENT_TOKEN_FILE or RUNNER_TOKEN",
            ],
        )

    def test_misuse(self) -> None:
        """Misuse gives the usage text and status 2, help the same text and 0."""
        self.assertEqual(self.left(REVDIAL_CLIENT, "-nosuch"), 2)
        self.assertIn("not defined: -nosuch\nUsage of program:\n", self.errors.getvalue())
        self.assertEqual(self.left(REVDIAL_CLIENT, "-token", TOKEN, "-reconnect=soon"), 2)
        self.assertEqual(self.left(REVDIAL_CLIENT, "-help"), 0)
        self.assertIn("-runner-id KEY", self.errors.getvalue())
