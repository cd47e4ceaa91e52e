"""The server as a process: TLS by name, client certificates, reloads, PROXY headers, systemd."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from twisted.trial.unittest import SynchronousTestCase

from tests.directories import shortDirectory
from tests.integration.fleet import freePort
from tests.integration.forked import PLAIN, Forked, Running
from tests.integration.test_server import DEADLINE, TWISTD
from tests.listening.pems import authority, authorityFile, chain, key, leaf, whole, write
from tests.needs import needsProgram

HELIX = str(Path(sys.executable).with_name("helix"))
HEADER = b"PROXY TCP4 203.0.113.7 198.51.100.1 50000 443\r\n"
SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
BLOCK = (
    SIGNATURE
    + struct.pack("!BBH", 0x21, 0x11, 12)
    + socket.inet_aton("203.0.113.8")
    + socket.inet_aton("198.51.100.1")
    + struct.pack("!HH", 50000, 443)
)


class Quiet(SimpleHTTPRequestHandler):
    """A service beside an agent."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing."""


class ServerProcess(SynchronousTestCase):
    """Starts a server with a file of settings, and talks to it over sockets."""

    def setUp(self) -> None:
        self.directory = shortDirectory(self)
        self.state = self.directory / "state"
        self.config = self.directory / "server.toml"
        self.log = self.directory / "log"
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if name != "RUNNER_TOKEN" and not name.startswith(("HELIX", "LISTEN_"))
        }

    def settings(self, doors: str, rest: str = "") -> None:
        """Write the file."""
        self.config.write_text(
            f'[server]\nstate_directory = "{self.state}"\n{rest}\n{doors}\n', encoding="utf-8"
        )

    def argv(self, *flags: str) -> list[str]:
        return [
            TWISTD, "--nodaemon", "--pidfile=", "--logfile=-", "helix-revdial-server",
            "--config", str(self.config), *flags,
        ]  # fmt: skip

    def start(self, *flags: str, **popen: Any) -> Running:
        """Start it and wait until it listens."""
        with self.log.open("ab") as log:
            if popen:
                process: Running = subprocess.Popen(
                    popen.pop("argv", None) or self.argv(*flags),
                    stdout=log,
                    stderr=log,
                    env=self.environment,
                    **popen,
                )
            else:
                process = Forked(
                    PLAIN, self.argv(*flags)[1:], output=log, environment=self.environment
                )
        self.addCleanup(self.end, process)
        self.says("Listening on", process)
        return process

    def says(self, words: str, process: Running | None = None, times: int = 1) -> str:
        """Wait for words in the log; all of it."""
        end = time.monotonic() + DEADLINE
        while True:
            text = self.log.read_text()
            if text.count(words) >= times:
                return text
            if time.monotonic() > end or (process is not None and process.poll() is not None):
                self.fail(f"the server did not say {words!r}:\n{text}")
            time.sleep(0.02)

    def end(self, process: Running) -> None:
        """SIGTERM, then SIGKILL."""
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                self.fail(f"the server did not stop:\n{self.log.read_text()}")
        self.assertNotIn("Traceback", self.log.read_text())

    @property
    def token(self) -> str:
        return (self.state / "admin.token").read_text().strip()

    def client(self, certificate: trustme.LeafCert | None = None) -> ssl.SSLContext:
        """A caller's TLS."""
        context = ssl.create_default_context()
        authority().configure_trust(context)
        if certificate is not None:
            certificate.configure_cert(context)
        context.set_alpn_protocols(["h2", "http/1.1"])
        return context

    def secure(
        self,
        port: int,
        name: str = "one.example",
        certificate: trustme.LeafCert | None = None,
        header: bytes = b"",
    ) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", port), timeout=5)
        self.addCleanup(plain.close)
        plain.sendall(header)
        made = self.client(certificate).wrap_socket(plain, server_hostname=name)
        self.addCleanup(made.close)
        return made

    def names(self, connection: ssl.SSLSocket) -> list[str]:
        """The names in the server's certificate."""
        found: Any = connection.getpeercert()
        return [value for _, value in found["subjectAltName"]]

    def ask(
        self, connection: socket.socket, path: str = "/healthz", method: str = "GET", **headers: str
    ) -> tuple[int, Any]:
        """One exchange on a connection that lives on: status, and the JSON of the answer."""
        lines = [f"{method} {path} HTTP/1.1", "Host: one.example", "Content-Length: 0"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        data = b""
        while b"\r\n\r\n" not in data:
            more = connection.recv(65536)
            if not more:
                return 0, data
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
        while len(body) < length:
            body += connection.recv(65536)
        return int(head.split(b" ")[1]), json.loads(body or b"null")

    def refused(self, call: Callable[[], Any]) -> None:
        """The server does not let that in."""
        try:
            status, answer = call()
        except (ssl.SSLError, OSError):
            return
        self.assertEqual((status, answer), (0, b""), "it was let in")


class TLSTests(ServerProcess):
    """Certificates by name, replaced while connections live."""

    def setUp(self) -> None:
        super().setUp()
        self.port = freePort()
        self.certificates = self.directory / "certificates"
        write(self.certificates / "one.pem", whole(leaf("one.example")))
        write(self.certificates / "two.crt", chain(leaf("two.example")))
        write(self.certificates / "two.key", key(leaf("two.example")))

    def doors(self, more: str = "") -> str:
        return (
            f'[[listen]]\nendpoint = "tcp:{self.port}:interface=127.0.0.1"\n'
            f'tls.directory = "{self.certificates}"\n{more}\n'
        )

    def helix(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        bundle = authorityFile(self.directory / "ca.pem")
        return subprocess.run(
            [HELIX, "--url", f"https://localhost:{self.port}", *arguments],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            env={**self.environment, "HELIX_API_KEY": self.token, "SSL_CERT_FILE": str(bundle)},
        )

    def test_namesAndReload(self) -> None:
        """
        Each name has its certificate.  SIGHUP puts another in place and changes a
        limit: kept-alive connections go on, new ones get the new certificate.  A
        reload that is wrong in one thing changes nothing, and says what.
        """
        self.settings(self.doors(), "[tunnel]\ngrace_period = 5\n")
        process = self.start()
        kept = self.secure(self.port)
        self.assertEqual(self.names(kept), ["one.example"])
        self.assertEqual(kept.selected_alpn_protocol(), "http/1.1")
        self.assertEqual(self.names(self.secure(self.port, "two.example")), ["two.example"])
        self.assertEqual(self.ask(kept)[0], 200)

        write(self.certificates / "one.pem", whole(leaf("one.example", "new.example")))
        self.settings(self.doors(), "[tunnel]\ngrace_period = 6\n")
        process.send_signal(signal.SIGHUP)
        self.says("The settings were reloaded; changed: tunnel.grace_period", process)
        self.assertEqual(self.ask(kept)[0], 200)
        self.assertEqual(self.names(self.secure(self.port)), ["one.example", "new.example"])

        (self.certificates / "two.key").write_text("broken")
        self.settings(self.doors(), "[tunnel]\ngrace_period = 7\n")
        process.send_signal(signal.SIGHUP)
        log = self.says("The settings were not reloaded, nothing has changed", process)
        self.assertIn("two.key: there must be one private key in it", log)
        write(self.certificates / "two.key", key(leaf("two.example")))
        self.settings(self.doors(), "[tunnel]\ngrace = 7\n")
        process.send_signal(signal.SIGHUP)
        self.says("unknown key 'grace'", process)

        authorization = f"Bearer {self.token}"
        self.settings(self.doors(), "database_threads = 7\n[tunnel]\ngrace_period = 8\n")
        status, answer = self.ask(kept, "/api/v1/admin/reload", "POST", Authorization=authorization)
        self.assertEqual((status, answer["code"]), (409, "needs-restart"))
        self.assertIn("server.database_threads cannot change while", answer["detail"])
        self.settings("[[listen]]\n", "[tunnel\n")
        status, answer = self.ask(kept, "/api/v1/admin/reload", "POST", Authorization=authorization)
        self.assertEqual((status, answer["code"]), (400, "bad-settings"))
        self.assertIn("line", answer["detail"])
        self.assertEqual(self.ask(kept, "/api/v1/admin/reload", "POST")[0], 401)

        self.settings(self.doors(), "[tunnel]\ngrace_period = 9\n")
        status, answer = self.ask(kept, "/api/v1/admin/reload", "POST", Authorization=authorization)
        # From 6 to 9: what was refused in between has left nothing.
        self.assertEqual((status, answer), (200, {"changed": ["tunnel.grace_period"]}))
        self.assertEqual(
            self.ask(kept, "/api/v1/admin/reload", "POST", Authorization=authorization)[1],
            {"changed": []},
        )

    def test_limitsAreTakenOn(self) -> None:
        """Limits hold for what comes after the reload: deadlines, features, tokens' patterns."""
        self.environment["RUNNER_TOKEN"] = "a-shared-runner-token"
        self.settings(self.doors())
        process = self.start()

        def register() -> bytes:
            connection = self.secure(self.port)
            connection.sendall(
                b"GET /api/v1/revdial?runnerid=wolf-1 HTTP/1.1\r\nHost: x\r\n"
                b"Authorization: Bearer a-shared-runner-token\r\n"
                b"Connection: Upgrade\r\nUpgrade: revdial\r\n\r\n"
            )
            answer: bytes = connection.recv(4096)
            return answer

        self.assertIn(b"HTTP/1.1 101", register())
        self.settings(
            self.doors(), '[http]\nhead_timeout = 2\n[tunnel]\nrequire_features = ["tickets"]\n'
        )
        process.send_signal(signal.SIGHUP)
        self.says("changed: tunnel.require_features, http.head_timeout", process)
        self.assertIn(b"HTTP/1.1 403", register())
        silent = self.secure(self.port)
        began = time.monotonic()
        self.assertEqual(silent.recv(1), b"")
        self.assertLess(time.monotonic() - began, 8)
        # The token was imported for other patterns: nothing of this is taken on.
        self.settings(
            self.doors(),
            '[access]\nrunner_token_patterns = ["other-*"]\n[http]\nhead_timeout = 20\n',
        )
        process.send_signal(signal.SIGHUP)
        log = self.says("The settings were not reloaded", process)
        self.assertIn("is known for another purpose", log)
        self.assertNotIn("a-shared-runner-token", log)
        self.assertEqual(self.secure(self.port).recv(1), b"")

    def test_workIsTakenOn(self) -> None:
        """Agents, and what else tasks depend on, are others after a reload; nothing half."""
        self.settings(self.doors())
        process = self.start()
        more = (
            '[git]\nallow = ["10.0.0.0/8"]\n[webhooks]\ntimeout = 3\n'
            "[retention]\nevent_days = 3\n[uploads]\nmax_bytes = 1_000\n"
        )

        def agents(*types: str) -> str:
            return "".join(
                f'[[agents.agent]]\ntype = "{each}"\ncommand = ["echo", "{{prompt}}"]\n'
                for each in types
            )

        def known() -> list[str]:
            caller = self.secure(self.port)
            authorization = f"Bearer {self.token}"
            status, answer = self.ask(caller, "/api/v1/agents", Authorization=authorization)
            self.assertEqual(status, 200)
            return sorted(each["type"] for each in answer["items"])

        self.settings(self.doors(), more + agents("one", "two"))
        process.send_signal(signal.SIGHUP)
        self.says(
            "changed: agents.agent, git.allow, uploads.max_bytes, webhooks.timeout, "
            "retention.event_days",
            process,
        )
        both = known()
        self.assertTrue({"one", "two"} <= {*both}, both)
        self.settings(self.doors(), agents("two", "two"))
        process.send_signal(signal.SIGHUP)
        self.says("The settings were not reloaded", process)
        self.assertEqual(known(), both)

    def test_commandLine(self) -> None:
        """C{helix server reload} says what has changed, or what is in the way."""
        write(self.certificates / "localhost.pem", whole(leaf("localhost")))
        self.settings(self.doors(), "[http]\nidle_timeout = 60\n")
        self.start()
        self.settings(self.doors(), "[http]\nidle_timeout = 61\n")
        done = self.helix("server", "reload")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("Changed: http.idle_timeout", done.stdout)
        self.settings(f'{self.doors()}\n[[listen]]\nendpoint = "unix:/x"\n')
        done = self.helix("server", "reload")
        self.assertEqual(done.returncode, 1)
        self.assertIn("http.idle_timeout", self.log.read_text())
        self.assertIn("Nothing was changed. listen cannot change while", done.stderr)

    def test_clientCertificates(self) -> None:
        """
        A certificate that the settings grant is a principal: a runner registers what
        its patterns say and nothing else, an operator asks; a header goes before it;
        a granted one that is taken away is nobody's after a reload.
        """
        clients = authorityFile(self.directory / "clients.pem")
        runner, operator, unknown = (
            leaf("wolf-1.example"),
            leaf("ann@example.org"),
            leaf("nobody.example"),
        )
        der = x509.load_pem_x509_certificate(chain(operator)).public_bytes(Encoding.DER)
        fingerprint = hashlib.sha256(der).hexdigest()
        doors = self.doors(
            f'tls.client_ca = "{clients}"\ntls.client_certificates = "optional"\n'
            "tls.map_clients = true\n"
        )
        grants = (
            '[[access.client_certificate]]\nsubject_alt_name = "dns:wolf-1.example"\n'
            'patterns = ["wolf-1"]\n'
            f'[[access.client_certificate]]\nfingerprint = "sha256:{fingerprint}"\n'
            'kind = "user"\nuser = "ann"\nrole = "operator"\n'
        )
        self.settings(doors, grants)
        process = self.start()

        def register(name: str, certificate: trustme.LeafCert | None, **headers: str) -> bytes:
            connection = self.secure(self.port, certificate=certificate)
            connection.sendall(
                f"GET /api/v1/revdial?runnerid={name} HTTP/1.1\r\nHost: x\r\n"
                "Connection: Upgrade\r\nUpgrade: revdial\r\n".encode()
                + "".join(f"{k}: {v}\r\n" for k, v in headers.items()).encode()
                + b"\r\n"
            )
            self.held.append(connection)
            return connection.recv(12)

        self.held: list[ssl.SSLSocket] = []
        self.assertEqual(register("wolf-1", runner), b"HTTP/1.1 101")
        self.assertEqual(register("wolf-2", runner), b"HTTP/1.1 403")
        self.assertEqual(register("wolf-1", unknown), b"HTTP/1.1 401")
        self.assertEqual(register("wolf-1", None), b"HTTP/1.1 401")
        self.assertEqual(register("wolf-1", runner, Authorization="Bearer x"), b"HTTP/1.1 401")
        ann = self.secure(self.port, certificate=operator)
        self.assertEqual(self.ask(ann, "/api/v1/sessions")[0], 200)
        self.assertEqual(self.ask(ann, "/api/v1/admin/reload", "POST")[0], 403)
        self.assertEqual(self.ask(ann, "/api/v1/sessions", Origin="https://evil.example")[0], 401)
        self.assertEqual(self.ask(ann, "/api/v1/sessions", Sec_Fetch_Site="cross-site")[0], 401)
        self.assertEqual(self.ask(ann, "/api/v1/sessions", Origin="https://one.example")[0], 200)

        self.settings(doors)
        process.send_signal(signal.SIGHUP)
        self.says("changed: access.client_certificate", process)
        # F3: what it held is cut.
        self.held[0].settimeout(5)
        while self.held[0].recv(65536):
            pass
        self.assertEqual(self.ask(ann, "/api/v1/sessions")[0], 401)

    def test_agentWithoutToken(self) -> None:
        """An agent is known by its certificate: for its control connection and for each stream."""
        write(self.certificates / "localhost.pem", whole(leaf("localhost")))
        clients = authorityFile(self.directory / "clients.pem")
        own = write(self.directory / "own.pem", whole(leaf("wolf-1.example")))
        self.settings(
            self.doors(
                f'tls.client_ca = "{clients}"\ntls.client_certificates = "optional"\n'
                "tls.map_clients = true\n"
            ),
            '[[access.client_certificate]]\nsubject_alt_name = "dns:wolf-1.example"\n'
            'patterns = ["wolf-1"]\n',
        )
        process = self.start()
        service = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
        serving = threading.Thread(target=service.serve_forever)
        serving.start()
        self.addCleanup(serving.join)
        self.addCleanup(service.server_close)
        self.addCleanup(service.shutdown)
        target = f"127.0.0.1:{service.server_port}"
        url = f"https://localhost:{self.port}"
        (self.directory / "agent.toml").write_text(
            f'[[runner]]\nkey = "wolf-1"\nserver = "{url}"\nca_file = "{clients}"\n'
            f'client_certificate = "{own}"\nlimits.max_parked = 0\n'
            f'targets = [{{ name = "default", address = "{target}" }}]\n'
        )
        flags = [
            "--server", url, "--runner-id", "wolf-1", "--ca-file", str(clients),
            "--client-certificate", str(own), "--local", target,
        ]  # fmt: skip
        for count, how in enumerate((flags, ["--config", str(self.directory / "agent.toml")]), 1):
            with self.log.open("ab") as log:
                agent = Forked(
                    PLAIN,
                    ["--nodaemon", "--pidfile=", "--logfile=-", "helix-revdial-agent", *how],
                    output=log,
                    environment=self.environment,
                )
            self.addCleanup(self.end, agent)
            self.says("connected as wolf-1", agent, times=count)
            for _ in range(3):
                caller = self.secure(self.port)
                caller.sendall(
                    b"HEAD /api/v1/runners/wolf-1/http/default/ HTTP/1.1\r\nHost: one.example\r\n"
                    b"Authorization: Bearer " + self.token.encode() + b"\r\n\r\n"
                )
                self.assertTrue(
                    caller.recv(4096).startswith(b"HTTP/1.1 200 "), self.log.read_text()
                )
            self.end(agent)
        self.assertIsNone(process.poll())

    def test_required(self) -> None:
        """Where a client certificate is required, nobody else gets as far as HTTP."""
        clients = authorityFile(self.directory / "clients.pem")
        self.settings(self.doors(f'tls.client_ca = "{clients}"\n'))
        self.start()
        self.assertEqual(self.ask(self.secure(self.port, certificate=leaf("x.example")))[0], 200)
        self.refused(lambda: self.ask(self.secure(self.port)))

    def test_oldVersions(self) -> None:
        """With TLS 1.3 as the least, openssl's client with 1.2 is refused; none is compressed."""
        self.settings(self.doors('tls.minimum_version = "1.3"\n'))
        self.start()
        for flag, expected in (("-tls1_3", True), ("-tls1_2", False)):
            done = subprocess.run(
                ["openssl", "s_client", "-connect", f"127.0.0.1:{self.port}", flag,
                 "-servername", "two.example"],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE,
            )  # fmt: skip
            self.assertEqual("BEGIN CERTIFICATE" in done.stdout, expected, done.stdout)
            if expected:
                self.assertIn("Compression: NONE", done.stdout, "F11")

    def test_checkConfig(self) -> None:
        """C{--check-config} reads the certificates, and names the file that is wrong."""
        self.settings(self.doors())
        done = subprocess.run(self.argv("--check-config"), capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout.strip()), (0, f"{self.config}: ok"))
        (self.certificates / "one.pem").write_text("x")
        done = subprocess.run(self.argv("--check-config"), capture_output=True, text=True)
        self.assertEqual(done.returncode, 1)
        self.assertIn("one.pem: there is no certificate in it", done.stdout + done.stderr)
        self.assertNotIn("Traceback", done.stdout + done.stderr)


class ProxyTests(ServerProcess):
    """PROXY headers in front of TLS."""

    def visit(self, port: int, header: bytes) -> tuple[int, Any]:
        return self.ask(self.secure(port, header=header))

    def test_versions(self) -> None:
        """
        Both versions, the real address in the log; what has no header, a broken one
        or one too late is cut off; who is no proxy is not even read.
        """
        port, elsewhere = freePort(), freePort()
        write(self.directory / "one.pem", whole(leaf("one.example")))
        tls = f'tls.certificate = "{self.directory}/one.pem"\n'
        self.settings(
            f'[[listen]]\nendpoint = "tcp:{port}:interface=127.0.0.1"\n{tls}'
            'proxy_protocol = { from = ["127.0.0.0/8"] }\n'
            f'[[listen]]\nendpoint = "tcp:{elsewhere}:interface=127.0.0.1"\n'
            'proxy_protocol = { from = ["10.0.0.0/8"] }\n',
            "[http]\nhead_timeout = 2\n",
        )
        self.start()
        self.assertEqual(self.ask(self.secure(port, header=HEADER))[0], 200)
        self.assertEqual(self.ask(self.secure(port, header=BLOCK))[0], 200)
        log = self.says("GET /healthz 200", times=2)
        self.assertIn("203.0.113.7 GET /healthz 200", log)
        self.assertIn("203.0.113.8 GET /healthz 200", log)
        for header in (b"", b"PROXY TCP4 1.2.3.999 1.2.3.4 1 2\r\n", BLOCK[:14] + b"\xff\xff"):
            self.refused(partial(self.visit, port, header))
        with socket.create_connection(("127.0.0.1", port), timeout=5) as slow:
            slow.sendall(HEADER[:8])
            began = time.monotonic()
            try:
                self.assertEqual(slow.recv(1), b"")
            except ConnectionResetError:
                pass
            self.assertLess(time.monotonic() - began, 8)
        self.says("no PROXY header within 2 s")
        with socket.create_connection(("127.0.0.1", elsewhere), timeout=5) as forged:

            def forge() -> tuple[int, Any]:
                forged.sendall(HEADER)
                return self.ask(forged)

            self.refused(forge)
        self.says("A connection from 127.0.0.1 was refused: not one of the proxies")
        self.assertNotIn("/healthz", self.log.read_text()[len(log) :])


HAPROXY = """
global
    maxconn 64
defaults
    mode tcp
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend one
    bind 127.0.0.1:{one}
    default_backend first
frontend two
    bind 127.0.0.1:{two}
    default_backend second
backend first
    server s 127.0.0.1:{port} send-proxy check inter 100ms
backend second
    server s 127.0.0.1:{port} send-proxy-v2 check inter 100ms
"""


class HAProxyTests(ServerProcess):
    """A real proxy that passes TLS on, and sends PROXY headers of either version."""

    @needsProgram("haproxy", package="haproxy")
    def test_behindHAProxy(self) -> None:
        """
        The caller's address is in the log, TLS and its name come through; the proxy's
        own health checks are served and disturb nothing.
        """
        port, one, two = freePort(), freePort(), freePort()
        write(self.directory / "certificates" / "one.pem", whole(leaf("one.example")))
        write(self.directory / "certificates" / "two.pem", whole(leaf("two.example")))
        self.settings(
            f'[[listen]]\nendpoint = "tcp:{port}:interface=127.0.0.1"\n'
            f'tls.directory = "{self.directory}/certificates"\n'
            'proxy_protocol = { from = ["127.0.0.1"] }\n'
        )
        self.start()
        configuration = self.directory / "haproxy.cfg"
        configuration.write_text(HAPROXY.format(port=port, one=one, two=two))
        with (self.directory / "haproxy.log").open("wb") as log:
            proxy = subprocess.Popen(
                ["haproxy", "-db", "-f", str(configuration)],
                stdout=log,
                stderr=log,
                env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"},
            )
        self.addCleanup(proxy.wait)
        self.addCleanup(proxy.terminate)
        for number, address in ((one, "127.0.0.2"), (two, "127.0.0.3")):
            end = time.monotonic() + DEADLINE
            while True:
                try:
                    plain = socket.create_connection(
                        ("127.0.0.1", number), timeout=5, source_address=(address, 0)
                    )
                    break
                except ConnectionRefusedError:
                    self.assertLess(time.monotonic(), end, "HAProxy does not listen")
                    time.sleep(0.05)
            self.addCleanup(plain.close)
            caller = self.client().wrap_socket(plain, server_hostname="two.example")
            self.addCleanup(caller.close)
            self.assertEqual(self.names(caller), ["two.example"])
            self.assertEqual(self.ask(caller)[0], 200)
            self.says(f"{address} GET /healthz 200")
        time.sleep(0.5)  # Several health checks in each of the two ways.
        said = (self.directory / "haproxy.log").read_text()
        self.assertNotIn("DOWN", said)
        self.assertNotIn("was refused", self.log.read_text())


class InheritedTests(ServerProcess):
    """Sockets that are there before the server, or are left by one."""

    def test_systemd(self) -> None:
        """
        A socket that systemd opened, by its index and by its name: the queue that
        formed before the server was there is served.
        """
        for door in ("index=0", "name=web"):
            self.settings(f'[[listen]]\nendpoint = "systemd:domain=INET:{door}"\n')
            with socket.socket() as opened:
                opened.bind(("127.0.0.1", 0))
                opened.listen()
                early = socket.create_connection(opened.getsockname(), timeout=DEADLINE)
                self.addCleanup(early.close)
                number = opened.fileno()
                self.log.write_text("")
                process = self.start(
                    argv=[
                        "/bin/sh", "-c",
                        'LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web exec "$@"', "sh",
                        *self.argv(),
                    ],
                    preexec_fn=lambda number=number: os.dup2(number, 3),
                    pass_fds=(3,),
                )  # fmt: skip
            self.assertEqual(self.ask(early)[0], 200)
            self.end(process)

    def test_noSuchSocket(self) -> None:
        """Without systemd the server says what it misses, and ends."""
        self.settings('[[listen]]\nendpoint = "systemd:domain=INET:name=web"\n')
        done = subprocess.run(
            self.argv(), capture_output=True, text=True, env=self.environment, timeout=DEADLINE
        )
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("systemd passed no such socket", done.stdout + done.stderr)
        self.assertNotIn("Traceback", done.stdout + done.stderr)

    def test_staleSocket(self) -> None:
        """A unix socket that a killed server left is no obstacle to the next."""
        path = self.directory / "s"
        self.settings(f'[[listen]]\nendpoint = "unix:{path}:mode=600"\n')
        process = self.start()
        process.kill()
        process.wait()
        self.assertTrue(path.exists())
        self.log.write_text("")
        self.start()
        self.assertIn("Removed", self.log.read_text())
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(path))
            self.assertEqual(self.ask(caller)[0], 200)
