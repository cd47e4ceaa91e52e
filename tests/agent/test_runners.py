"""Several runners from one file: what it may say, and what is said about it."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import helix_revdial
from helix_revdial.agent.runners import KEYS, MAX_RUNNERS, readRunners
from helix_revdial.agent.settings import MAX_TARGETS, AgentSettings, SettingsError
from helix_revdial.agent.targets import HostPort, SocketPath
from helix_revdial.agent.vocabulary import SETTINGS
from helix_revdial.revdial.listener import MAX_DIALS, MAX_STREAMS

EXAMPLE = Path(helix_revdial.__file__).parent.parent / "etc" / "agent.toml"

TARGETS = 'targets = [{ name = "api", address = ":80" }]'

TWO = """
[defaults]
server = ["https://a.example", "https://b.example"]
token_file = "/nonexistent/defaults.token"
reconnect = 5
limits = { max_dials = 7 }

[[runner]]
key = "wolf-1"
token_file = "/nonexistent/wolf.token"
targets = [
  { name = "wolf", address = "unix:///run/wolf.sock", expose = "internal" },
]

[[runner]]
key = "sandbox-ses_1"
server = "http://127.0.0.1:8080"
reconnect = 0.5
limits = { max_streams = 9 }
insecure = true
targets = [
  { name = "ssh", address = "127.0.0.1:22", expose = "operator" },
  { name = "desktop", address = "127.0.0.1:9876", default = true },
]
"""


class RunnersTests(SynchronousTestCase):
    """L{readRunners}."""

    def read(
        self, text: str, environment: dict[str, str] | None = None
    ) -> tuple[AgentSettings, ...]:
        self.path = self.mktemp()
        Path(self.path).write_text(text, encoding="utf-8")
        return readRunners(self.path, environment or {})

    def complaints(self, text: str) -> list[str]:
        """What is said, without the file's name."""
        error = self.assertRaises(SettingsError, self.read, text)
        found = str(error).splitlines()
        for line in found:
            self.assertTrue(line.startswith(self.path), line)
        return [line.removeprefix(self.path).lstrip(", :") for line in found]

    def test_runners(self) -> None:
        """Each runner has what it says, and else what the defaults say."""
        wolf, sandbox = self.read(TWO)
        self.assertEqual((wolf.key, sandbox.key), ("wolf-1", "sandbox-ses_1"))
        self.assertEqual(
            [str(each) for each in wolf.network.servers], ["https://a.example", "https://b.example"]
        )
        self.assertEqual(str(sandbox.server), "http://127.0.0.1:8080")
        self.assertIn("/nonexistent/wolf.token", wolf.token.origin)
        self.assertIn("/nonexistent/defaults.token", sandbox.token.origin)
        self.assertEqual((wolf.reconnect, sandbox.reconnect), (5.0, 0.5))
        self.assertEqual((wolf.maxDials, wolf.maxStreams), (7, MAX_STREAMS))
        self.assertEqual((sandbox.maxDials, sandbox.maxStreams), (7, 9))
        self.assertEqual(dict(wolf.targets), {"wolf": SocketPath("/run/wolf.sock")})
        self.assertEqual(
            dict(sandbox.targets),
            {"ssh": HostPort("127.0.0.1", 22), "desktop": HostPort("127.0.0.1", 9876)},
        )
        self.assertEqual((wolf.default, sandbox.default), ("wolf", "desktop"))
        self.assertEqual(
            [(each.name, each.expose, each.default) for each in sandbox.offered],
            [("ssh", "operator", False), ("desktop", "owner", True)],
        )
        self.assertEqual(wolf.offered[0].expose, "internal")
        self.assertFalse(wolf.network.trust.insecure)
        self.assertTrue(sandbox.network.trust.insecure)
        self.assertTrue(any("sandbox-ses_1: --insecure" in each for each in sandbox.warnings))

    def test_environmentSaysNothing(self) -> None:
        """
        The agent's own variables do not reach into the file; the proxies, which are the
        host's affair, and systemd's credentials do.
        """
        directory = Path(self.mktemp())
        directory.mkdir()
        (directory / "token").write_text("hl-x")
        environment = {
            "HELIX_API_URL": "https://other.example",
            "WOLF_ID": "other",
            "RUNNER_TOKEN": "hl-other",
            "HELIX_AGENT_TARGETS": "other=:1",
            "HELIX_AGENT_INSECURE": "1",
            "HTTPS_PROXY": "http://proxy.example:3128",
            "CREDENTIALS_DIRECTORY": str(directory.absolute()),
        }
        text = f'[[runner]]\nkey = "wolf-1"\nserver = "https://cp.example"\n{TARGETS}\n'
        (found,) = self.read(text, environment)
        self.assertEqual((found.key, str(found.server)), ("wolf-1", "https://cp.example"))
        self.assertEqual(found.token(), "hl-x")
        self.assertEqual(list(found.targets), ["api"])
        self.assertFalse(found.network.trust.insecure)
        self.assertIn("proxy.example", str(found.network.proxyOf(found.server)))

    def test_unknownKeys(self) -> None:
        """A key that nobody knows is refused with its line, and with what may be meant."""
        text = (
            "[default]\n[defaults]\nsevrer = 'x'\nkey = 'y'\ntoken = 'hl-secret'\n"
            "[[runner]]\nkey = 'wolf-1'\nserver = 'http://a'\ntoken_file = '/x'\n"
            "wolf-id = '1'\ntarget = 'a=b'\n"
            "targets = [\n {name = 'a', address = ':1', exposed = 'owner'},\n]\n"
            "limits = {max_dial = 1}\n"
        )
        found = self.complaints(text)
        for line, words in (
            (1, "unknown key 'default'; is 'defaults' meant?"),
            (3, "unknown key 'sevrer'; is 'server' meant?"),
            (4, "key belongs to each [[runner]]"),
            (5, "unknown key 'token'; is 'token_file' meant?"),
            (10, "unknown key 'wolf-id'"),
            (11, "unknown key 'target'; is 'targets' meant?"),
            (13, "unknown key 'exposed'; is 'expose' meant?"),
            (15, "unknown key 'max_dial'; is 'max_dials' meant?"),
        ):
            self.assertTrue(
                any(each.startswith(f"line {line}: {words}") for each in found), (line, found)
            )
        self.assertEqual(len(found), 8, found)
        self.assertNotIn("hl-secret", "".join(found))

    def test_wrongValues(self) -> None:
        """Each value that cannot be is named with its line, and all of them at once."""
        base = "[[runner]]\nkey = 'wolf-1'\nserver = 'http://a'\ntoken_file = '/x'\n"
        for text, line, words in (
            (base, 1, "a runner needs targets"),
            (base + "targets = 'a=:1'", 5, "a runner needs targets"),
            (base + "targets = ['a']", 5, "a target is a table"),
            (base + "targets = [\n{name='a'}]", 6, "address: write host:port"),
            (base + "targets = [\n{name='-', address=':1'}]", 6, "name: write letters"),
            (base + "targets = [\n{name='a', address='b'}]", 6, "address: 'b': write host:port"),
            (base + "targets = [\n{name='a',address=':1',expose='all'}]", 6, "expose: write one"),
            (base + "targets = [\n{name='a',address=':1',default=1}]", 6, "default: write true"),
            (
                base + "targets = [{name='a',address=':1'},\n{name='a',address=':2'}]",
                6,
                "there are two",
            ),
            (base + TARGETS + "\nreconnect = 'x'", 6, "reconnect: write a number"),
            (base + TARGETS + "\nreconnect = -1", 6, "reconnect: '-1'"),
            (base + TARGETS + "\ninsecure = 'yes'", 6, "insecure: write true or false"),
            (base + TARGETS + "\npin = [1]", 6, "pin: write a text"),
            (base + TARGETS + "\npin = 'x'", 6, "pin: 'x': a pin is sha256/"),
            (base + TARGETS + "\nca_file = '/nonexistent'", 6, "ca_file: /nonexistent: no such"),
            (base + TARGETS + "\nca_file = 7", 6, "ca_file: write a text"),
            (base + TARGETS + "\nlimits = 7", 6, "limits is a table"),
            (base + TARGETS + "\nlimits = {max_dials = 0}", 6, "max_dials: write a number"),
            (base + TARGETS + "\nlimits = {max_streams = true}", 6, "max_streams: write a number"),
            (base.replace("'wolf-1'", "'wolf 1'") + TARGETS, 2, "key: 'wolf 1' is no runner key"),
            (base.replace("'wolf-1'", "7") + TARGETS, 2, "key: write a text"),
            (base.replace("key = 'wolf-1'", "") + TARGETS, 1, "no runner: give key"),
            (base.replace("'http://a'", "'a'") + TARGETS, 3, "server: a server URL begins"),
            (base.replace("server = 'http://a'", "") + TARGETS, 1, "no server: give server"),
            (base.replace("token_file = '/x'", "") + TARGETS, 1, "no token: give token_file"),
            ("runner = 7", 1, "runners are tables"),
            ("defaults = 7\n[[runner]]\n", 1, "defaults is a table"),
        ):
            found = self.complaints(text)
            self.assertTrue(
                any(each.startswith(f"line {line}: {words}") for each in found),
                f"\n{text}\n{found}",
            )

    def test_wrongDefaults(self) -> None:
        """What is wrong in the defaults is said once, at its own line."""
        runner = "[[runner]]\nkey = 'wolf-{}'\nserver = 'http://a'\ntoken_file = '/x'\n" + TARGETS
        text = "[defaults]\nreconnect = 'x'\n" + "\n".join(
            runner.replace("{}", str(n)) for n in range(3)
        )
        self.assertEqual(self.complaints(text), ["line 2: reconnect: write a number of seconds"])

    def test_limits(self) -> None:
        """So many runners, so many targets; at least one; no name twice."""
        one = "[[runner]]\nkey = '{}'\nserver = 'http://a'\ntoken_file = '/x'\n" + TARGETS + "\n"
        self.assertEqual(self.complaints(""), [f"a file has from one to {MAX_RUNNERS} [[runner]]"])
        many = "".join(one.replace("{}", f"wolf-{n}") for n in range(MAX_RUNNERS + 1))
        self.assertIn(f"from one to {MAX_RUNNERS}", self.complaints(many)[0])
        self.assertEqual(
            len(self.read("".join(one.replace("{}", f"wolf-{n}") for n in range(MAX_RUNNERS)))),
            MAX_RUNNERS,
        )
        (said,) = self.complaints(one.replace("{}", "wolf-1") * 2)
        self.assertTrue(said.startswith("line 7: there is a runner wolf-1 already"), said)
        targets = ", ".join(f"{{name='t{n}', address=':1'}}" for n in range(MAX_TARGETS + 1))
        text = one.replace("{}", "wolf-1").replace(TARGETS, f"targets = [{targets}]")
        self.assertIn(f"at most {MAX_TARGETS} targets", self.complaints(text)[0])

    def test_unreadable(self) -> None:
        """A file that is not there or no TOML is named."""
        error = self.assertRaises(SettingsError, readRunners, "/nonexistent.toml", {})
        self.assertEqual(str(error), "/nonexistent.toml: no such file or directory")
        self.assertIn("line 1", self.complaints("[[runner\n")[0])

    def test_everySettingHasAKey(self) -> None:
        """What a flag can say of a runner, the file can."""
        for row in SETTINGS:
            elsewhere = ("runner", "local", "targets")
            if row.ofProcess or row.about in elsewhere or row.flag in (None, "api-url", "token"):
                continue
            self.assertIn(row.flag.replace("-", "_"), KEYS)


class ExampleTests(SynchronousTestCase):
    """C{etc/agent.toml}."""

    def test_makesAgents(self) -> None:
        """The example is two runners as it stands."""
        wolf, moonlight = readRunners(str(EXAMPLE), {})
        self.assertEqual((wolf.key, moonlight.key), ("wolf-gpu1", "moonlight-gpu1"))
        self.assertEqual(moonlight.default, "web")
        self.assertEqual((moonlight.maxDials, moonlight.maxStreams), (MAX_DIALS, 500))

    def test_commentedKeys(self) -> None:
        """Each key that a runner may have stands in the example, and no other does."""
        text = EXAMPLE.read_text(encoding="utf-8")
        named = set(re.findall(r"^#?([a-z_]+) = ", text, re.MULTILINE))
        self.assertEqual(named, set(KEYS))

    def test_uncommented(self) -> None:
        """The commented defaults are of the right kind: what files they name is all that lacks."""
        text = re.sub(r"^#([a-z_]+ = )", r"\1", EXAMPLE.read_text("utf-8"), flags=re.MULTILINE)
        path = self.mktemp()
        Path(path).write_text(text, encoding="utf-8")
        error = self.assertRaises(SettingsError, readRunners, path, {})
        for line in str(error).splitlines():
            self.assertIn("no such file", line)
