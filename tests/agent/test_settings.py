"""Tests for L{helix_revdial.agent.settings}."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.agent.settings import MAX_TARGETS, AgentSettings, SettingsError, readSettings
from helix_revdial.agent.targets import HostPort, SocketPath
from helix_revdial.agent.token import Secret
from helix_revdial.agent.trust import TrustPolicy
from helix_revdial.agent.vocabulary import SETTINGS, Offered
from helix_revdial.revdial.client import ServerURL

TOKEN = "hl-very-secret-0123456789"

HOST = {"HELIX_API_URL": "https://cp.example", "WOLF_ID": "gpu7", "RUNNER_TOKEN": TOKEN}
"""The environment of a host with Wolf."""

SESSION = {
    "HELIX_API_BASE_URL": "http://api:8080",
    "HELIX_SESSION_ID": "ses_1",
    "USER_API_TOKEN": TOKEN,
}
"""The environment of a session's sandbox."""


def read(
    environment: Mapping[str, str] | None = None,
    offered: Offered | None = None,
    **flags: str | Secret | Sequence[str],
) -> AgentSettings:
    """Settings of C{environment} and of flags, whose dashes are written as C{_}."""
    return readSettings(
        {name.replace("_", "-"): value for name, value in flags.items()},
        environment or {},
        offered or Offered(),
    )


class ReadSettingsTests(SynchronousTestCase):
    def refused(
        self,
        environment: Mapping[str, str] | None = None,
        offered: Offered | None = None,
        **flags: str | Secret | Sequence[str],
    ) -> str:
        """The complaint about these settings, which must not repeat the token."""
        error = self.assertRaises(SettingsError, read, environment, offered, **flags)
        self.assertNotIn(TOKEN, str(error))
        return str(error)

    def test_host(self) -> None:
        """The three variables of the Wolf program make an agent for Wolf's API."""
        settings = read(HOST)
        self.assertEqual(settings.server, ServerURL.parse("https://cp.example"))
        self.assertEqual(settings.key, "wolf-gpu7")
        self.assertEqual(settings.token(), TOKEN)
        self.assertEqual(dict(settings.targets), {"default": HostPort("localhost", 8080)})
        self.assertEqual(settings.default, "default")
        self.assertEqual(settings.reconnect, 1.0)
        self.assertEqual(settings.network.trust, TrustPolicy())
        self.assertEqual(settings.warnings, ())

    def test_session(self) -> None:
        """The three variables of a sandbox make an agent for its desktop service."""
        settings = read(SESSION)
        self.assertEqual(settings.server, ServerURL.parse("http://api:8080"))
        self.assertEqual(settings.key, "sandbox-ses_1")
        self.assertEqual(settings.token(), TOKEN)
        self.assertEqual(dict(settings.targets), {"default": HostPort("localhost", 9876)})

    def test_flagsWin(self) -> None:
        """A flag wins over the environment."""
        settings = read(
            HOST,
            api_url="ws://other:99",
            wolf_id="gpu8",
            token=Secret("flagged"),
            local="unix:///run/wolf.sock",
            reconnect="7.5",
        )
        self.assertEqual(settings.server, ServerURL.parse("ws://other:99"))
        self.assertEqual(settings.key, "wolf-gpu8")
        self.assertEqual(settings.token(), "flagged")
        self.assertEqual(settings.targets["default"], SocketPath("/run/wolf.sock"))
        self.assertEqual(settings.reconnect, 7.5)

    def test_emptyCountsAsNone(self) -> None:
        """C{-token "$UNSET"} of a start script is as good as no flag."""
        settings = read(HOST, token=Secret(""), local="", api_url="", wolf_id="")
        self.assertEqual((settings.key, settings.token()), ("wolf-gpu7", TOKEN))

    def test_missingIsNamed(self) -> None:
        """All that is missing is said, each with every flag and variable that would do."""
        self.assertEqual(
            self.refused({"WOLF_ID": ""}).splitlines(),
            [
                "no runner: give --wolf-id or --runner-id, or set WOLF_ID, HELIX_SESSION_ID or "
                "HELIX_AGENT_RUNNER_ID",
                "no server: give --api-url or --server, or set HELIX_API_URL or HELIX_API_BASE_URL",
                "no token: give --token-file or --token, or set HELIX_AGENT_TOKEN_FILE, "
                "RUNNER_TOKEN or USER_API_TOKEN",
            ],
        )

    def test_oneMissing(self) -> None:
        """What is there is not complained about."""
        for name, what in (
            ("HELIX_API_URL", "server"),
            ("WOLF_ID", "runner"),
            ("RUNNER_TOKEN", "token"),
        ):
            environment = {key: value for key, value in HOST.items() if key != name}
            [line] = self.refused(environment).splitlines()
            self.assertTrue(line.startswith(f"no {what}: "), line)
            self.assertIn(name, line)

    def test_wolfTwice(self) -> None:
        """C{WOLF_ID=wolf-1} registers C{wolf-wolf-1}, as the Go program does, and warns."""
        settings = read(HOST | {"WOLF_ID": "wolf-1"})
        self.assertEqual(settings.key, "wolf-wolf-1")
        [warning] = settings.warnings
        self.assertIn("wolf-wolf-1", warning)
        self.assertIn("WOLF_ID", warning)

    def test_ownFamilyFirst(self) -> None:
        """
        Where both families of variables are set, the one that the identity comes from
        counts: a session never logs in with its host's token.
        """
        both = {
            "HELIX_API_URL": "http://host",
            "HELIX_API_BASE_URL": "http://session",
            "RUNNER_TOKEN": "hosts",
            "USER_API_TOKEN": "sessions",
        }
        for identity, url, token in (
            ({"WOLF_ID": "1"}, "http://host", "hosts"),
            ({"HELIX_SESSION_ID": "1"}, "http://session", "sessions"),
            ({"HELIX_AGENT_RUNNER_ID": "moonlight-1"}, "http://host", "hosts"),
            ({"HELIX_AGENT_RUNNER_ID": "desktop-ses_1"}, "http://session", "sessions"),
        ):
            settings = read(both | identity)
            self.assertEqual(settings.server, ServerURL.parse(url), identity)
            self.assertEqual(settings.token(), token, identity)

    def test_otherFamilyServes(self) -> None:
        """What the own family lacks is taken from the other (upstream trap 35)."""
        settings = read(
            {"HELIX_API_URL": "http://a", "HELIX_SESSION_ID": "1", "RUNNER_TOKEN": TOKEN}
        )
        self.assertEqual((settings.key, settings.token()), ("sandbox-1", TOKEN))

    def test_twoIdentities(self) -> None:
        """Two identities in the environment are not guessed between."""
        complaint = self.refused(HOST | SESSION)
        self.assertEqual(
            complaint,
            "WOLF_ID and HELIX_SESSION_ID are both set: say which runner this is with "
            "--wolf-id or --runner-id",
        )
        self.assertEqual(read(HOST | SESSION, runner_id="hydra-1").key, "hydra-1")

    def test_sayingThingsTwice(self) -> None:
        """Two flags for one thing are refused."""
        self.assertEqual(
            self.refused(HOST, api_url="http://a", server="http://b"),
            "--api-url and --server say the same thing: give one of them",
        )
        self.refused(HOST, wolf_id="1", runner_id="2")
        self.refused(HOST, token=Secret(TOKEN), token_file="/x")

    def test_badKeys(self) -> None:
        """A runner key is checked before anything is sent."""
        for key in ("-x", "a b", "a/b", "a" * 129, "x\n", "ses\u00e9", "a?b=c", ".x"):
            self.assertIn("is no runner key", self.refused(HOST, runner_id=key), key)
        self.assertEqual(read(HOST, runner_id="a" * 128).key, "a" * 128)

    def test_emptySession(self) -> None:
        """C{-runner-id "sandbox-$HELIX_SESSION_ID"} without a session id is noticed."""
        self.assertIn("is a variable empty?", self.refused(SESSION, runner_id="sandbox-"))

    def test_badServers(self) -> None:
        """A URL that leads nowhere is refused, with where it was given."""
        for url in ("cp.example", "ftp://cp.example", "http://", "http://cp.example:notaport"):
            complaint = self.refused(HOST, api_url=url)
            self.assertTrue(complaint.startswith("--api-url: "), complaint)
            complaint = self.refused(HOST | {"HELIX_API_URL": url})
            self.assertTrue(complaint.startswith("HELIX_API_URL: "), complaint)

    def test_passwordInURL(self) -> None:
        """F1: a password in a URL is neither used nor repeated."""
        complaint = self.refused(HOST, api_url=f"https://user:{TOKEN}@cp.example")
        self.assertIn("take it out", complaint)

    def test_tokenFlagWarns(self) -> None:
        """A token among the arguments warns; the file wins over variables and does not."""
        self.assertIn("--token:", read(HOST, token=Secret(TOKEN)).warnings[0])
        path = self.mktemp()
        with open(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
            file.write("hl-of-file\n")
        for settings in (
            read(HOST, token_file=path),
            read(HOST | {"HELIX_AGENT_TOKEN_FILE": path}),
        ):
            self.assertEqual(settings.token(), "hl-of-file")
            self.assertEqual(settings.warnings, ())
        os.chmod(path, 0o644)
        self.assertIn("chmod 0600", read(HOST, token_file=path).warnings[0])

    def test_targets(self) -> None:
        """Named targets; the first is the default, unless C{--local} is there."""
        named = ["api=unix:///run/wolf.sock", "ssh=[::1]:22"]
        settings = read(HOST, target=named)
        self.assertEqual(
            dict(settings.targets),
            {"api": SocketPath("/run/wolf.sock"), "ssh": HostPort("::1", 22)},
        )
        self.assertEqual(settings.default, "api")
        settings = read(HOST, target=named, local="localhost:1")
        self.assertEqual(list(settings.targets), ["default", "api", "ssh"])
        self.assertEqual(settings.default, "default")
        settings = read(HOST | {"HELIX_AGENT_TARGETS": " ".join(named)})
        self.assertEqual(list(settings.targets), ["api", "ssh"])
        settings = read(HOST | {"HELIX_AGENT_TARGETS": " ".join(named)}, target=["x=:1"])
        self.assertEqual(list(settings.targets), ["x"])

    def test_badTargets(self) -> None:
        """Each fault of a target is said."""
        for target, words in (
            ("localhost:22", "write NAME=ADDRESS"),
            ("=localhost:22", "write NAME=ADDRESS"),
            ("a b=localhost:22", "write NAME=ADDRESS"),
            ("a=localhost", "write host:port"),
        ):
            self.assertIn(words, self.refused(HOST, target=[target]), target)
        self.assertIn("two targets 'a'", self.refused(HOST, target=["a=:1", "a=:2"]))
        many = [f"t{number}=:1" for number in range(MAX_TARGETS + 1)]
        self.assertIn(f"at most {MAX_TARGETS}", self.refused(HOST, target=many))
        self.assertEqual(len(read(HOST, target=many[1:]).targets), MAX_TARGETS)
        self.assertIn("--local: ", self.refused(HOST, local="nowhere"))

    def test_drain(self) -> None:
        """The time for streams at the end is a number from 0 up to an hour; 30 s if not given."""
        self.assertEqual(read(HOST).drain, 30.0)
        self.assertEqual(read(HOST, drain="0").drain, 0.0)
        self.assertEqual(read(HOST | {"HELIX_AGENT_DRAIN": "3600"}).drain, 3600.0)
        for text in ("-1", "3601", "nan", "inf", "long"):
            self.assertIn("--drain: ", self.refused(HOST, drain=text), text)

    def test_credential(self) -> None:
        """A credential named token is the token where no setting names one."""
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        (directory / "token").write_text("from-the-credential\n")
        bare = {name: value for name, value in HOST.items() if name != "RUNNER_TOKEN"}
        handed = {"CREDENTIALS_DIRECTORY": str(directory)}
        settings = read(bare | handed)
        self.assertEqual(settings.token(), "from-the-credential")
        self.assertEqual(settings.token.origin, "credential token")
        self.assertEqual(read(HOST | handed).token.origin, "RUNNER_TOKEN")

    def test_reconnect(self) -> None:
        """A number of seconds above nothing."""
        self.assertEqual(read(HOST | {"HELIX_AGENT_RECONNECT": "3600"}).reconnect, 3600.0)
        for text in ("0", "-1", "nan", "inf", "3601", "5s", "soon"):
            self.assertIn("--reconnect: ", self.refused(HOST, reconnect=text), text)

    def test_caFile(self) -> None:
        """A file of authorities that cannot be used is found before anything starts."""
        self.assertIn(
            "--ca-file: /none: no such file or directory", self.refused(HOST, ca_file="/none")
        )

    def test_noSecretShows(self) -> None:
        """F1: neither C{repr} nor the description of the settings has the token."""
        for settings in (read(HOST), read(HOST, token=Secret(TOKEN))):
            self.assertNotIn(TOKEN, repr(settings) + settings.describe() + str(settings))

    def test_describe(self) -> None:
        """The description names all that the agent will do."""
        text = read(HOST, target=["api=unix:///x"], local="localhost:8080").describe()
        for words in (
            "cp.example",
            "wolf-gpu7",
            "from RUNNER_TOKEN",
            "default = localhost:8080 (default)",
            "api = unix:///x\n",
        ):
            self.assertIn(words, text)

    def test_checkToken(self) -> None:
        """A token file that is not there is a complaint when asked for, and only then."""
        settings = read(HOST, token_file="/none")
        error = self.assertRaises(SettingsError, settings.checkToken)
        self.assertEqual(str(error), "--token-file /none: no such file or directory")


class SettingsTableTests(SynchronousTestCase):
    def test_namesAreUnique(self) -> None:
        """No flag and no variable means two things."""
        flags = [row.flag for row in SETTINGS if row.flag]
        variables = [row.variable for row in SETTINGS if row.variable]
        self.assertEqual(len(flags), len(set(flags)))
        self.assertEqual(len(variables), len(set(variables)))
