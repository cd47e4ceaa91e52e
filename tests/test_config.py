"""The server's settings: what wins over what, and what is refused where."""

from __future__ import annotations

from pathlib import Path

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.config import ConfigError, ListenSection, ProxySection, TLSSection, load


class LoadTests(SynchronousTestCase):
    """L{load} puts file, environment and flags into one value."""

    def file(self, text: str) -> Path:
        path = Path(self.mktemp())
        path.write_text(text)
        return path

    def refused(self, *args: object, **kwargs: object) -> str:
        with self.assertRaises(ConfigError) as caught:
            load(*args, **kwargs)  # type: ignore[arg-type]
        return str(caught.exception)

    def test_defaults(self) -> None:
        """Without a file the server listens on loopback and keeps SQLite state."""
        config = load(None, {})
        self.assertEqual([one.endpoint for one in config.listen], ["tcp:8080:interface=127.0.0.1"])
        self.assertEqual(config.databaseURL, "sqlite:////var/lib/helix-revdial/helix.sqlite")
        self.assertEqual(config.adminTokenPath, Path("/var/lib/helix-revdial/admin.token"))

    def test_theLaterWins(self) -> None:
        """A flag wins over the environment, which wins over the file."""
        path = self.file("[tunnel]\ngrace_period = 5\nmax_runners = 7\ndial_timeout = 3\n")
        config = load(
            path,
            {
                "HELIX_REVDIAL_TUNNEL_GRACE_PERIOD": "6",
                "HELIX_REVDIAL_TUNNEL_MAX_RUNNERS": "8",
                "PATH": "/bin",
            },
            ["tunnel.grace_period=7"],
        )
        self.assertEqual(
            (config.tunnel.gracePeriod, config.tunnel.maxRunners, config.tunnel.dialTimeout),
            (7, 8, 3),
        )

    def test_unknownKeyNamesTheLine(self) -> None:
        """G4: a key that does not exist is refused with its line."""
        path = self.file("# comment\n[tunnel]\ngrace_period = 5\ngrace_perod = 6\n")
        self.assertEqual(
            self.refused(path, {}),
            f"{path}, line 4: tunnel.grace_perod: unknown key 'grace_perod'",
        )

    def test_unknownSectionNamesTheLine(self) -> None:
        """G4: so is a table that does not exist."""
        path = self.file("\n[tunel]\ngrace_period = 5\n")
        self.assertIn(f"{path}, line 2: tunel: unknown key", self.refused(path, {}))

    def test_unknownKeyInASecondListen(self) -> None:
        """A key in a list of tables is found too."""
        path = self.file('[[listen]]\nendpoint = "tcp:1"\n[[listen]]\nport = 2\n')
        self.assertIn(f"{path}, line 4: listen[1].port: unknown key", self.refused(path, {}))

    def test_unknownKeyOfTLS(self) -> None:
        """A dotted key, a table of a door and a key of an inline table are found."""
        path = self.file('[[listen]]\nendpoint = "tcp:1"\ntls.certificat = "x"\n')
        self.assertIn(f"{path}, line 3: listen[0].tls.certificat: ", self.refused(path, {}))
        path = self.file('[[listen]]\nendpoint = "tcp:1"\n[listen.tls]\nky = "x"\n')
        self.assertIn(f"{path}, line 4: listen[0].tls.ky: unknown", self.refused(path, {}))
        path = self.file('[[listen]]\nproxy_protocol = { form = ["10.0.0.0/8"] }\n')
        self.assertIn(f"{path}, line 2: listen[0].proxy_protocol.form", self.refused(path, {}))

    def test_doors(self) -> None:
        """TLS and PROXY headers of a door."""
        text = (
            '[[listen]]\nendpoint = "tcp:1"\nproxy_protocol = { from = ["10.0.0.0/8"] }\n'
            '[listen.tls]\ncertificate = "c"\nkey = "k"\n'
        )
        (door,) = load(self.file(text), {}).listen
        self.assertEqual(door.tls, TLSSection(certificate="c", key="k"))
        self.assertEqual(door.proxyProtocol, ProxySection(("10.0.0.0/8",)))
        self.assertEqual(door.tls and door.tls.minimumVersion, "1.2")

    def test_wrongTypeNamesTheLine(self) -> None:
        """A value of the wrong kind is refused with its line and what was expected."""
        path = self.file('[tunnel]\ngrace_period = "long"\n')
        message = self.refused(path, {})
        self.assertIn("line 2: tunnel.grace_period: Expected `float`, got `str`", message)

    def test_outOfRange(self) -> None:
        """A value that could not work is refused."""
        message = self.refused(None, {"HELIX_REVDIAL_TUNNEL_GRACE_PERIOD": "0"})
        self.assertIn("HELIX_REVDIAL_TUNNEL_GRACE_PERIOD", message)

    def test_unknownVariable(self) -> None:
        """A variable with our prefix that names no setting is refused."""
        message = self.refused(None, {"HELIX_REVDIAL_TUNNEL_GRACE": "1"})
        self.assertIn("HELIX_REVDIAL_TUNNEL_GRACE: unknown setting", message)

    def test_badFlag(self) -> None:
        """A flag that is no assignment says what is expected."""
        self.assertIn("expected SECTION.KEY=VALUE", self.refused(None, {}, ["tunnel"]))

    def test_stringsNeedNoQuotesOutsideTheFile(self) -> None:
        """A bare word, even one that looks like a number, serves as a string."""
        config = load(None, {"HELIX_REVDIAL_SERVER_STATE_DIRECTORY": "/srv/x"})
        self.assertEqual(config.server.stateDirectory, "/srv/x")
        config = load(None, {}, ["server.state_directory=12"])
        self.assertEqual(config.server.stateDirectory, "12")

    def test_listenFlagsReplaceTheFile(self) -> None:
        """C{--listen} and C{HELIX_REVDIAL_LISTEN} replace every door of the file."""
        path = self.file('[[listen]]\nendpoint = "tcp:1"\n')
        config = load(path, {"HELIX_REVDIAL_LISTEN": "tcp:2 unix:/x"})
        self.assertEqual([one.endpoint for one in config.listen], ["tcp:2", "unix:/x"])
        config = load(path, {"HELIX_REVDIAL_LISTEN": "tcp:2"}, (), ["tcp:3"])
        self.assertEqual([one.endpoint for one in config.listen], ["tcp:3"])

    def test_noDoor(self) -> None:
        """A server that nobody could reach is refused."""
        self.assertIn("no [[listen]]", self.refused(self.file("listen = []\n"), {}))

    def test_unreadableFile(self) -> None:
        """A file that is not there is named."""
        self.assertIn("nowhere.toml: No such file", self.refused(Path("nowhere.toml"), {}))

    def test_brokenFile(self) -> None:
        """What is no TOML is refused with the line."""
        self.assertIn("line 1", self.refused(self.file("[tunnel\n"), {}))

    def test_exampleFile(self) -> None:
        """The commented example names every key, with its default."""
        example = Path(__file__).parent.parent / "etc" / "server.toml"
        self.assertEqual(load(example, {}), load(None, {}))
        uncommented = "\n".join(
            line[1:] if line.startswith("#") and " = " in line and line[1] != " " else line
            for line in example.read_text().splitlines()
        )
        config = load(self.file(uncommented), {})
        self.assertEqual(config.tunnel, load(None, {}).tunnel)
        for kind, prefix in (
            (ListenSection, ""),
            (TLSSection, "tls."),
            (ProxySection, "proxy_protocol = { "),
        ):
            for field in msgspec.structs.fields(kind):
                name = f"\n{prefix}{field.encode_name} = "
                if field.encode_name != "tls":
                    self.assertIn(name, "\n" + uncommented, field.encode_name)

        for section in msgspec.structs.fields(type(config)):
            if section.encode_name == "listen":
                continue
            for field in msgspec.structs.fields(section.type):
                self.assertIn(f"\n{field.encode_name} = ", "\n" + uncommented, field.encode_name)
