"""Which server, and as whom."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.cli.edge import SettingsError
from helix_revdial.cli.profile import (
    MAX_FILE,
    Flags,
    ServerURL,
    Settings,
    resolve,
    secretFromFile,
)


class ServerURLTests(SynchronousTestCase):
    """Base URLs."""

    def test_forms(self) -> None:
        """Ports, IPv6, path prefixes, with or without the API's own path."""
        for text, expected in (
            ("http://localhost:8080", "http://localhost:8080"),
            ("https://cp.example/", "https://cp.example"),
            ("https://cp.example/helix/", "https://cp.example/helix"),
            ("https://cp.example/helix/api/v1", "https://cp.example/helix"),
            ("http://[::1]:8080/api/v1/", "http://[::1]:8080"),
        ):
            self.assertEqual(str(ServerURL.parse(text)), expected)

    def test_refused(self) -> None:
        """What is no base URL is refused with a sentence; credentials are not repeated."""
        for text in (
            "localhost:8080", "ftp://x", "http://", "http://x:y", "http://x:70000", "http://x:0",
            "http://user:secret@x", "http://x/?token=secret", "http://x/#secret", "http://a b",
            "http://x\n", "http://[::1",
        ):  # fmt: skip
            with self.assertRaises(ValueError, msg=text) as raised:
                ServerURL.parse(text)
            self.assertNotIn("secret", str(raised.exception))

    def test_origin(self) -> None:
        """A credential is bound to scheme, host and port, not to spelling."""
        self.assertEqual(
            ServerURL.parse("https://CP.example/a").origin,
            ServerURL.parse("https://cp.example:443/b").origin,
        )
        self.assertNotEqual(
            ServerURL.parse("https://cp.example").origin,
            ServerURL.parse("http://cp.example").origin,
        )


class ResolveTests(SynchronousTestCase):
    """Flags, then the environment, then the profile."""

    def setUp(self) -> None:
        """A home with a profile."""
        self.home = Path(self.mktemp()).absolute()
        self.profile = self.home / ".config" / "helix" / "profile.toml"
        self.profile.parent.mkdir(parents=True)
        self.environment = {"HOME": str(self.home)}

    def write(self, text: str, mode: int = 0o600) -> None:
        """Write the profile."""
        self.profile.write_text(text)
        self.profile.chmod(mode)

    def resolve(self, flags: Flags | None = None, **environment: str) -> Settings:
        """Resolve with this home."""
        return resolve(flags or Flags(), {**self.environment, **environment})

    def refused(self, *parts: str, flags: Flags | None = None) -> None:
        """The settings are refused, naming all of these, and never the secret."""
        with self.assertRaises(SettingsError) as raised:
            self.resolve(flags)
        for part in parts:
            self.assertIn(part, str(raised.exception))
        self.assertNotIn("hl-secret", str(raised.exception))
        self.assertEqual(raised.exception.exitCode, 2)

    def test_defaults(self) -> None:
        """Without anything: the local server, no key."""
        settings = self.resolve()
        self.assertEqual((str(settings.url), settings.apiKey), ("http://localhost:8080", None))
        self.assertEqual(str(resolve(Flags(), {}).url), "http://localhost:8080")

    def test_precedence(self) -> None:
        """Each source wins over those after it, for URL and key on their own."""
        key = self.home / "key"
        key.write_text("from-flag\n")
        self.write('url = "http://p.example"\napi_key = "from-profile"\n')
        settings = self.resolve()
        self.assertEqual((str(settings.url), settings.apiKey), ("http://p.example", "from-profile"))
        settings = self.resolve(HELIX_URL="http://e.example", HELIX_API_KEY=" from-env\n")
        self.assertEqual((str(settings.url), settings.apiKey), ("http://e.example", "from-env"))
        settings = self.resolve(
            Flags(url="http://f.example", tokenFile=str(key)),
            HELIX_URL="http://e.example",
            HELIX_API_KEY="from-env",
        )
        self.assertEqual((str(settings.url), settings.apiKey), ("http://f.example", "from-flag"))

    def test_keyOfAProfileGoesToItsOwnServerOnly(self) -> None:
        """A key stored with a URL is not sent to another server; the reason is kept."""
        self.write('url = "http://p.example"\napi_key = "hl-secret"\n')
        settings = self.resolve(HELIX_URL="http://e.example")
        self.assertIsNone(settings.apiKey)
        self.assertIn("is for http://p.example", settings.keyHint or "")
        self.assertEqual(self.resolve(HELIX_URL="http://p.example/x").apiKey, "hl-secret")
        self.write('api_key = "hl-secret"\n')
        self.assertEqual(self.resolve(HELIX_URL="http://e.example").apiKey, "hl-secret")

    def test_otherNamesOfTheServer(self) -> None:
        """Flags are one setting; of the variables HELIX_URL goes first, then AW_REST_BASE."""
        self.write('url = "http://p.example"\n[[server]]\nname = "b"\nurl = "http://b.example"\n')
        every = {
            "HELIX_URL": "http://h.example",
            "AW_REST_BASE": "http://a.example/api/v1",
            "AGENTS_WORKFLOW_REMOTE_SERVER": "b",
        }
        for name, url in (
            ("HELIX_URL", "http://h.example"),
            ("AW_REST_BASE", "http://a.example"),
            ("AGENTS_WORKFLOW_REMOTE_SERVER", "http://b.example"),
        ):
            self.assertEqual(str(self.resolve(None, **every).url), url)
            del every[name]
        self.assertEqual(str(self.resolve().url), "http://p.example")
        for flags in (
            Flags(restBase="http://f.example"),
            Flags(remoteServer="http://f.example/api/v1/"),
            Flags(url="http://f.example", restBase="http://f.example/"),
        ):
            self.assertEqual(
                str(self.resolve(flags, HELIX_URL="http://h.example").url), "http://f.example"
            )
        self.refused(
            "--url and --remote-server",
            "give one",
            flags=Flags(url="http://f.example", remoteServer="b"),
        )

    def test_namedServers(self) -> None:
        """A server by its name has its own key, which goes nowhere else."""
        (self.profile.parent / "key").write_text("hl-secret-c\n")
        self.write(
            'url = "http://p.example"\napi_key = "hl-secret"\n'
            '[[server]]\nname = "b"\nurl = "http://b.example"\napi_key = "hl-secret-b"\n'
            '[[server]]\nname = "c"\nurl = "http://c.example"\ntoken_file = "key"\n'
            '[[server]]\nname = "d"\nurl = "http://d.example"\ntoken_file = "missing"\n'
            '[[server]]\nname = "e"\nurl = "http://e.example"\n'
        )
        for name, key in (("b", "hl-secret-b"), ("c", "hl-secret-c"), ("e", None)):
            settings = self.resolve(Flags(remoteServer=name))
            self.assertEqual((str(settings.url), settings.apiKey), (f"http://{name}.example", key))
        settings = self.resolve(Flags(remoteServer="b"), HELIX_API_KEY="hl-env")
        self.assertEqual(settings.apiKey, "hl-secret-b")
        settings = self.resolve(Flags(remoteServer="e"), HELIX_API_KEY="hl-env")
        self.assertEqual(settings.apiKey, "hl-env")
        self.assertEqual(self.resolve(Flags(url="http://b.example")).apiKey, None)
        self.refused("[[server]] d", "missing", flags=Flags(remoteServer="d"))
        self.refused("no [[server]]", "b, c, d, e", flags=Flags(remoteServer="x"))

    def test_badServers(self) -> None:
        """What is wrong with a server's entry is said."""
        for text, part in (
            ("server = 1", "[[server]]"),
            ('[[server]]\nurl = "http://x"', "name must be"),
            ('[[server]]\nname = "http://x"\nurl = "http://x"', "name must be"),
            ('[[server]]\nname = "a"\n[[server]]\nname = "a"', "two of that name"),
        ):
            self.write(text)
            self.refused(part)
        for text, part in (
            ('[[server]]\nname = "a"', "has no url"),
            ('[[server]]\nname = "a"\nurl = "x"', "expected http"),
            ('[[server]]\nname = "a"\nurl = "http://x"\nbogus = "1"', "bogus"),
        ):
            self.write(text)
            self.refused(part, flags=Flags(remoteServer="a"))

    def test_profileOfOthersIsRefused(self) -> None:
        """A profile that others can read or write is refused, with the remedy."""
        for mode in (0o644, 0o640, 0o602, 0o610):
            self.write('api_key = "hl-secret"\n', mode)
            self.refused(str(self.profile), f"mode {mode:04o}", "chmod 600")

    def test_profileOfAnotherOwnerIsRefused(self) -> None:
        """A profile that belongs to another user is refused, whatever its mode."""
        self.write('api_key = "hl-secret"\n')
        self.patch(os, "geteuid", lambda: os.getuid() + 1)
        self.refused("belongs to another user")

    def test_profileThatIsNoFile(self) -> None:
        """A FIFO does not hang the command; a directory is no profile."""
        os.mkfifo(self.profile, 0o600)
        self.refused("not a regular file")
        self.profile.unlink()
        self.profile.mkdir()
        self.refused("not a regular file")

    def test_profileThatCannotBeUsed(self) -> None:
        """Each fault is named."""
        for text, part in (
            ("url = ", "profile.toml"),
            ('token = "hl-secret"', "unknown key 'token'"),
            ("api_key = 5", "api_key must be a string"),
            ('api_key = ""', "api_key: empty"),
            ('api_key = "hl-secret\\nX: y"', "one line of ASCII"),
            ('api_key = "hl-secret"\ntoken_file = "x"', "exclude each other"),
            ('token_file = "x"', "No such file"),
            ('url = "x"', "url: expected http"),
            ("#" * (MAX_FILE + 1), "larger than"),
        ):
            self.write(text)
            self.refused(part)

    def test_tokenFileOfAProfile(self) -> None:
        """A relative C{token_file} stands beside the profile."""
        (self.profile.parent / "key").write_text("from-file")
        self.write('token_file = "key"')
        self.assertEqual(self.resolve().apiKey, "from-file")

    def test_namedProfile(self) -> None:
        """A profile that somebody names must exist; C{XDG_CONFIG_HOME} is honoured."""
        self.refused("no such profile", flags=Flags(profile=str(self.home / "x.toml")))
        self.write('url = "http://p.example"')
        settings = resolve(Flags(), {"HELIX_PROFILE": str(self.profile)})
        self.assertEqual(str(settings.url), "http://p.example")
        settings = resolve(Flags(), {"XDG_CONFIG_HOME": str(self.home / ".config")})
        self.assertEqual(str(settings.url), "http://p.example")

    def test_badValues(self) -> None:
        """Environment and flags are named when they cannot be used."""
        for flags, environment, part in (
            (Flags(), {"HELIX_URL": "x"}, "HELIX_URL: "),
            (Flags(url="x"), {}, "--url: "),
            (Flags(tokenFile="/missing"), {}, "--token-file: /missing: No such file"),
            (Flags(), {"HELIX_API_KEY": "hl-secret x"}, "HELIX_API_KEY: expected one line"),
        ):
            with self.assertRaises(SettingsError) as raised:
                self.resolve(flags, **environment)
            self.assertIn(part, str(raised.exception))
            self.assertNotIn("hl-secret", str(raised.exception))

    def test_secretFile(self) -> None:
        """White space around a secret is no part of it; a huge file is not read whole."""
        path = self.home / "key"
        path.write_bytes(b"\n  hl-secret \r\n")
        self.assertEqual(secretFromFile(str(path), "x"), "hl-secret")
        self.assertRaises(SettingsError, secretFromFile, "/dev/zero", "x")

    def test_noSecretInRepr(self) -> None:
        """Neither settings nor profile show the key."""
        self.assertNotIn("hl-secret", repr(Settings(ServerURL.parse("http://x"), "hl-secret")))
