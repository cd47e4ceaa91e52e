"""Tests for L{helix_revdial.agent.network_settings} and L{helix_revdial.agent.network}."""

from __future__ import annotations

import os
from collections.abc import Mapping

import trustme
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.agent import network
from helix_revdial.agent.compatibility import REVDIAL_CLIENT, parseGoFlags
from helix_revdial.agent.network import serversOf
from helix_revdial.agent.options import Options
from helix_revdial.agent.settings import AgentSettings, SettingsError, readSettings
from helix_revdial.agent.trust import formatPin

HOST = {"HELIX_API_URL": "https://cp.example", "WOLF_ID": "1", "RUNNER_TOKEN": "token"}

PIN = formatPin(b"a" * 32)
OTHER = formatPin(b"b" * 32)


class NetworkSettingsTests(SynchronousTestCase):
    def read(
        self, environment: Mapping[str, str] | None = None, **flags: str | list[str] | bool
    ) -> AgentSettings:
        return readSettings(
            {name.replace("_", "-"): value for name, value in flags.items()},  # type: ignore[misc]
            HOST | dict(environment or {}),
        )

    def refused(
        self, environment: Mapping[str, str] | None = None, **flags: str | list[str] | bool
    ) -> str:
        error = self.assertRaises(SettingsError, self.read, environment, **flags)
        self.assertNotIn("s3cret", str(error))
        return str(error)

    def write(self, content: bytes, mode: int = 0o600) -> str:
        path: str = os.path.abspath(self.mktemp())
        with open(os.open(path, os.O_CREAT | os.O_WRONLY, mode), "wb") as file:
            file.write(content)
        return path

    def test_servers(self) -> None:
        """Several, by commas or one by one; the same one counts once."""
        for settings in (
            self.read({"HELIX_API_URL": "https://a, http://b:8080/,https://a:443"}),
            self.read(api_url=["https://a", "http://b:8080"]),
            self.read(server=["https://a,http://b:8080"]),
        ):
            self.assertEqual(
                [str(each) for each in settings.network.servers], ["https://a", "http://b:8080"]
            )
            self.assertEqual(str(settings.server), "https://a")

    def test_serversRefused(self) -> None:
        """One that cannot be, none, and too many."""
        self.assertIn("begins with http://", self.refused(api_url=["https://a", "b"]))
        self.assertIn("from one to 16", self.refused(api_url=" , "))
        many = ",".join(f"https://a{n}" for n in range(17))
        self.assertIn("from one to 16", self.refused(api_url=many))
        self.assertIn(
            "say the same thing", self.refused(api_url=["https://a"], server=["https://b"])
        )

    def test_commandLine(self) -> None:
        """The flags of twistd, repeated, and of the Go programs, of which the last counts."""
        options = Options(HOST)
        options.parseOptions(
            ["--server=https://a", "--server=https://b", f"--pin={PIN}", f"--pin={OTHER}"]
        )
        assert options.settings is not None
        self.assertEqual(len(options.settings.network.servers), 2)
        self.assertEqual(len(options.settings.network.trust.pins), 2)
        options = Options(HOST)
        options.parseOptions(["--insecure", "--api-url=https://x"])
        assert options.settings is not None
        self.assertTrue(options.settings.network.trust.insecure)
        flags = parseGoFlags(
            ["-server", "http://a", "-server=http://b", "-pin", PIN], REVDIAL_CLIENT
        )
        self.assertEqual(flags["server"], "http://b")
        self.assertEqual(flags["pin"], [PIN])

    def test_proxy(self) -> None:
        """One that was named wins; its credentials show nowhere."""
        settings = self.read({"HTTPS_PROXY": "http://env:1"}, proxy="http://user:s3cret@named:3128")
        self.assertIn("https://cp.example through the proxy http://named:3128", settings.describe())
        self.assertNotIn("s3cret", settings.describe() + repr(settings))
        self.assertIn("--proxy-credentials", "".join(settings.warnings))
        settings = self.read({"HELIX_AGENT_PROXY": "http://user:s3cret@named:3128"})
        self.assertEqual(settings.warnings, ())
        settings = self.read({"HTTPS_PROXY": "env:1", "NO_PROXY": "other"})
        self.assertIn("through the proxy http://env:1", settings.describe())
        for told in (
            self.read({"HTTPS_PROXY": "env:1", "NO_PROXY": "cp.example"}),
            self.read({"HTTPS_PROXY": "env:1"}, no_proxy="example"),
            self.read(proxy="named:1", no_proxy="example"),
        ):
            self.assertNotIn("proxy", told.describe())

    def test_proxyRefused(self) -> None:
        """What cannot be used is named, not shown."""
        self.assertIn("--proxy: a SOCKS", self.refused(proxy="socks5://user:s3cret@x"))
        self.assertIn("ALL_PROXY: a SOCKS", self.refused({"ALL_PROXY": "socks5://user:s3cret@x"}))
        self.assertIn("no such file", self.refused(proxy="x:1", proxy_credentials="/none"))
        self.assertIn("--proxy-ca-file: /none", self.refused(proxy="x", proxy_ca_file="/none"))

    def test_proxyCredentials(self) -> None:
        """A file that others can read is warned about."""
        path = self.write(b"user:s3cret")
        self.assertEqual(self.read(proxy="x:1", proxy_credentials=path).warnings, ())
        os.chmod(path, 0o644)
        (warning,) = self.read(proxy="x:1", proxy_credentials=path).warnings
        self.assertIn(f"{path}: mode 0644 lets others read them", warning)

    def test_trust(self) -> None:
        """Everything about trust reaches the policy."""
        authority = trustme.CA()
        own = authority.issue_cert("a@example.test")
        ca = self.write(authority.cert_pem.bytes())
        certificate = self.write(own.cert_chain_pems[0].bytes())
        key = self.write(own.private_key_pem.bytes())
        settings = self.read(
            {"HELIX_AGENT_PINS": f"{PIN} {OTHER}", "HELIX_AGENT_CLIENT_KEY": key},
            ca_file=ca,
            client_certificate=certificate,
        )
        trust = settings.network.trust
        self.assertEqual(
            (trust.caFile, trust.clientCertificate, trust.clientKey), (ca, certificate, key)
        )
        self.assertEqual(trust.pins, (b"a" * 32, b"b" * 32))
        os.chmod(key, 0o644)
        self.assertIn(
            "lets others use it",
            "".join(self.read(client_certificate=certificate, client_key=key).warnings),
        )

    def test_certificateForToken(self) -> None:
        """With a certificate of its own an agent needs no token; one that is given is sent."""
        own = trustme.CA().issue_cert("a@example.test")
        path = self.write(own.private_key_and_cert_chain_pem.bytes())
        environment = {"HELIX_API_URL": "https://cp.example", "WOLF_ID": "gpu7"}
        settings = readSettings({"client-certificate": path}, environment)
        self.assertEqual((settings.token(), settings.warnings), ("", ()))
        self.assertIn("from the client certificate, in its place", settings.describe())
        settings.checkToken()
        both = readSettings({"client-certificate": path}, environment | {"RUNNER_TOKEN": "t0"})
        self.assertEqual(both.token(), "t0")
        without = self.assertRaises(SettingsError, readSettings, {}, environment)
        self.assertIn("no token: give", str(without))

    def test_trustRefused(self) -> None:
        """Which flag or variable is wrong, and how."""
        self.assertIn("--ca-file: /none: no such file", self.refused(ca_file="/none"))
        self.assertIn(
            "HELIX_AGENT_CA_DIRECTORY: /none", self.refused({"HELIX_AGENT_CA_DIRECTORY": "/none"})
        )
        self.assertIn("--client-certificate: /none", self.refused(client_certificate="/none"))
        self.assertIn("--pin: 'x'", self.refused(pin=["x"]))
        self.assertIn("at most 16 pins", self.refused(pin=[PIN] * 17))
        self.assertIn("--client-key: a key without", self.refused(client_key="/x"))

    def test_insecure(self) -> None:
        """F8: said loudly at the start; it does not go with saying whom to trust."""
        settings = self.read({"HELIX_AGENT_INSECURE": "yes"})
        self.assertIn("NOT verified", "".join(settings.warnings))
        self.assertIn("NOT verified", settings.describe())
        self.assertFalse(self.read({"HELIX_AGENT_INSECURE": "0"}).network.trust.insecure)
        self.assertIn("write 1 or 0", self.refused({"HELIX_AGENT_INSECURE": "maybe"}))
        self.assertIn("give one of them", self.refused(insecure=True, pin=[PIN]))

    def test_zeroKey(self) -> None:
        """Off, unless the operator says so; then it is offered."""
        self.assertFalse(self.read().network.zeroKey)
        self.assertTrue(self.read({"HELIX_AGENT_ZERO_KEY": "1"}).network.zeroKey)
        self.assertTrue(self.read(zero_key=True).network.zeroKey)
        self.assertIn("write 1 or 0", self.refused({"HELIX_AGENT_ZERO_KEY": "maybe"}))
        for chosen in (False, True):
            offered: list[bool] = []

            def path(*_: object, zeroKey: bool, **__: object) -> object:
                offered.append(zeroKey)  # noqa: B023
                return object()

            self.patch(network, "ServerPath", path)
            serversOf(
                MemoryReactorClock(), self.read(zero_key=chosen).network, lambda: "t", "wolf-1"
            )
            self.assertEqual(offered, [chosen])

    def test_severalComplaints(self) -> None:
        """Every complaint at once, a line each."""
        said = self.refused(pin=["x"], proxy="socks5://x", local="nonsense")
        self.assertEqual(len(said.splitlines()), 3)


class ServersOfTests(SynchronousTestCase):
    def test_assembled(self) -> None:
        """Settings of every kind give a way to each server."""
        settings = readSettings(
            {"proxy": "https://proxy:3129", "no-proxy": "b"},
            HOST | {"HELIX_API_URL": "https://a,http://b"},
        )
        servers = serversOf(MemoryReactorClock(), settings.network, settings.token, settings.key)
        self.assertEqual(str(servers.server), "https://a")
