"""What the settings mean to the rooms."""

from __future__ import annotations

from pathlib import Path

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.access.rate_limits import Rate
from helix_revdial.config import ConfigError, load
from helix_revdial.settings import (
    certificateGrants,
    check,
    declaredAgents,
    doorSettings,
    gitAccess,
    httpLimits,
    issuers,
    rateSettings,
    tunnelLimits,
)
from tests.listening.pems import authorityFile, leaf, whole, write


class SettingsTests(SynchronousTestCase):
    """From a file to what the rooms take."""

    def file(self, text: str) -> Path:
        path = Path(self.mktemp())
        path.write_text(text)
        return path

    def refused(self, text: str) -> str:
        config = load(self.file(text), {})
        with self.assertRaises(ConfigError) as caught:
            check(config)
        return str(caught.exception)

    def test_agents(self) -> None:
        """The declared agents, and the one that comes along; what cannot be is refused."""
        text = (
            '[[agents.agent]]\ntype = "coder"\nversions = ["2", "1"]\n'
            'command = ["coder", "{settings.model}", "{prompt}"]\nenvironment = { A = "b" }\n'
            'schema = { type = "object", properties = { model = { default = "m" } } }\n'
        )
        agents = declaredAgents(load(self.file(text), {}).agents)
        self.assertEqual([agent.type for agent in agents], ["coder", "demonstration"])
        self.assertEqual(agents.spec("coder", "latest", {}).settings, {"model": "m"})
        without = declaredAgents(load(self.file("[agents]\ndemonstration = false\n"), {}).agents)
        self.assertEqual(list(without), [])
        self.assertIn("agent 'coder'", self.refused(text.replace("{prompt}", "{other}")))

    def test_git(self) -> None:
        """Networks that are none are refused."""
        self.assertIn("git.allow", self.refused('[git]\nallow = ["10.0.0.1/8"]\n'))
        access = gitAccess(load(self.file('[git]\nallow = ["10.0.0.0/8"]\n'), {}).git)
        self.assertEqual([str(network) for network in access.allowed], ["10.0.0.0/8"])

    def test_door(self) -> None:
        """Every key of a door arrives."""
        text = (
            '[[listen]]\nendpoint = "tcp:1"\nproxy_protocol = { from = ["10.0.0.0/8", "unix"] }\n'
            'tls.certificate = "c"\ntls.key = "k"\ntls.minimum_version = "1.3"\n'
            'tls.client_ca = "a"\ntls.client_certificates = "optional"\n'
        )
        door = doorSettings(load(self.file(text), {}).listen[0])
        tls = door.tls
        assert tls is not None
        self.assertEqual((door.endpoint, door.proxies), ("tcp:1", ("10.0.0.0/8", "unix")))
        self.assertEqual(
            (tls.certificate, tls.key, tls.directory, tls.minimumVersion),
            ("c", "k", None, "1.3"),
        )
        self.assertEqual((tls.clientCA, tls.clientCertificates), ("a", "optional"))
        plain = doorSettings(load(None, {}).listen[0])
        self.assertEqual((plain.tls, plain.proxies), (None, None))

    def test_limits(self) -> None:
        """The limits of connections and of dials."""
        config = load(None, {}, ["http.head_timeout=3", "tunnel.max_pending_dials=4"])
        self.assertEqual(httpLimits(config.http, config.limits).headTimeout, 3)
        self.assertEqual(tunnelLimits(config.tunnel, config.limits, config.pool)["maxPending"], 4)

    def test_gateways(self) -> None:
        """Proxies that are none and domains that are none are refused by their setting's name."""
        check(load(None, {}, ["gateways.base_domain=apps.example"]))
        check(load(self.file('[gateways]\ntrusted_proxies = ["10.0.0.0/8", "unix"]\n'), {}))
        text = self.refused('[gateways]\ntrusted_proxies = ["lb.example"]\n')
        self.assertIn("gateways.trusted_proxies: 'lb.example' is no network", text)
        for name in ("Apps.example", "apps.example.", "*.example", "", "a b", "x" * 200):
            text = self.refused(f'[gateways]\nbase_domain = "{name}"\n')
            self.assertIn("gateways.base_domain: ", text, name)

    def test_check(self) -> None:
        """What a file's form does not tell: certificates, proxies, grants; nothing is opened."""
        check(load(None, {}))
        directory = Path(self.mktemp())
        pem = write(directory / "one.pem", whole(leaf("one.example")))
        clients = authorityFile(directory / "ca.pem")
        door = f'[[listen]]\nendpoint = "tcp:1"\ntls.certificate = "{pem}"\n'
        check(load(self.file(f'{door}tls.client_ca = "{clients}"\ntls.map_clients = true\n'), {}))
        for text, words in (
            ('[[listen]]\ntls.certificate = "nowhere.pem"\n', "nowhere.pem: No such file"),
            ("[[listen]]\nproxy_protocol = { from = [] }\n", "names no proxy"),
            (f"{door}tls.map_clients = true\n", "tls.map_clients needs tls.client_ca"),
            (
                '[[access.client_certificate]]\nsubject_alt_name = "dns:x"\n',
                "access.client_certificate: dns:x: a runner token has 1 to 64 patterns",
            ),
            ('[metrics]\nlisten = "foo"\n', "metrics.listen: Unknown endpoint type: 'foo'"),
            (
                '[server]\ndatabase = "mysql://u:hush@x/y"\n',
                "server.database: a database's URL is sqlite:///FILE or",
            ),
            ('[access]\nrunner_token_patterns = ["**"]\n', "'**' is no pattern"),
            ('[tunnel]\nrequire_features = ["echo", "magic"]\n', "no agent offers 'magic'"),
            ("[liveness]\nkeep_alive = 50\n", "liveness.silence must be longer"),
        ):
            self.assertIn(words, self.refused(text))

    def test_grants(self) -> None:
        """The tables of client certificates."""
        text = (
            '[[access.client_certificate]]\nsubject_alt_name = "dns:x"\npatterns = ["wolf-*"]\n'
            '[[access.client_certificate]]\nsubject_alt_name = "dns:y"\nkind = "user"\n'
            'user = "ann"\nrole = "viewer"\ntenant = "acme"\n'
        )
        grants = certificateGrants(load(self.file(text), {}))
        self.assertEqual(
            sorted(
                (one.kind, one.patterns, one.user, one.tenant) for one in grants.principals.values()
            ),
            [("runner", ("wolf-*",), None, "default"), ("user", (), "ann", "acme")],
        )

    def test_rates(self) -> None:
        """Somebody in particular may have a rate; whose it is has to be said in one way."""
        text = "[rate_limits]\nuser_burst = 7\n[[rate_limits.override]]\nburst = 3\n"
        path = Path(self.mktemp())
        path.write_text(text + 'user = "acme/ann"\nper_second = 2\n')
        config = load(path, {"HELIX_REVDIAL_RATE_LIMITS_USER_PER_SECOND": "5"})
        check(config)
        rates = rateSettings(config.rateLimits)
        self.assertEqual(rates.rates["user"], Rate(5, 7))
        self.assertEqual(rates.named, {("user", "acme/ann"): Rate(2, 3)})
        for wrong in ("", 'user = "ann"\n', 'user = "a/b"\ntenant = "a"\n'):
            path.write_text(text + wrong)
            error = self.assertRaises(ConfigError, check, load(path, {}))
            self.assertIn("rate_limits.override", str(error))

    def test_issuers(self) -> None:
        """An issuer has one algorithm, and what that one takes; what cannot be is said."""
        secret = Path(self.mktemp())
        secret.write_text("0123456789abcdef0123456789abcdef\n")
        path = Path(self.mktemp())
        begin = '[[access.issuer]]\nissuer = "https://id.example/"\naudience = "helix"\n'
        shared = f'algorithm = "HS256"\nsecret_file = "{secret}"\n'
        path.write_text(begin + shared)
        config = load(path, {})
        check(config)
        (found,) = issuers(config.access, Clock())
        self.assertEqual(found.secret, b"0123456789abcdef0123456789abcdef")
        path.write_text(begin + 'algorithm = "RS256"\njwks_url = "https://id.example/keys"\n')
        check(load(path, {}))
        for wrong, word in (
            (begin + shared + begin + shared, "twice"),
            (begin + 'algorithm = "HS256"\nsecret_file = "/nonexistent"\n', "No such file"),
            (begin + 'algorithm = "HS256"\n', "takes a secret"),
            (begin + 'algorithm = "none"\n', "none of the algorithms"),
            (begin + 'algorithm = "RS256"\njwks_url = "http://id.example/"\n', "https://"),
            (
                begin
                + 'algorithm = "RS256"\njwks_url = "https://id.example/"\n'
                + f'jwks_ca = "{secret}"\n',
                "no certificate",
            ),
        ):
            path.write_text(wrong)
            error = self.assertRaises(ConfigError, check, load(path, {}))
            self.assertIn(word, str(error))
            self.assertIn("access.issuer", str(error))
