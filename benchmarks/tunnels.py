"""
What is compared: each tunnel is a port that leads to the target, and two ends.

A L{Tunnel} is started once and stays up for the whole run; what is not measured at
the moment costs next to nothing.  All of them have the same number of hops: caller,
near end, far end, target.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from .processes import Failed, Program, freePort, untilListening


class Missing(Exception):
    """A program that is needed is not here; says which, and where it comes from."""


@dataclass
class Surroundings:
    """
    What all tunnels share.

    @ivar directory: Where each may have a directory of its own.
    @ivar target: The target's port.
    @ivar delay: Seconds that each direction between the two ends takes.
    @ivar tls: Whether there is TLS between the two ends.
    """

    directory: Path
    target: int
    delay: float = 0.0
    tls: bool = False
    certificate: Path | None = None


@dataclass
class Tunnel:
    """
    One of them, running.

    @ivar port: Where callers come in.
    @ivar near: The programs of the end where callers are.
    @ivar far: Those of the end where the target is.
    @ivar between: What stands between the two, and is not counted.
    """

    name: str
    port: int
    near: list[Program] = field(default_factory=list)
    far: list[Program] = field(default_factory=list)
    between: list[Program] = field(default_factory=list)

    def nearPids(self) -> list[int]:
        """The near end's processes."""
        return [each.pid for each in self.near]

    def farPids(self) -> list[int]:
        """The far end's processes."""
        return [each.pid for each in self.far]

    def stop(self) -> None:
        """End it."""
        for each in (*self.far, *self.between, *self.near):
            each.stop()


def _through(name: str, around: Surroundings, port: int, made: list[Program]) -> int:
    """The port by which the far end reaches C{port}, with the delay that is wanted."""
    if not around.delay:
        return port
    through = freePort()
    command = [sys.executable, "-m", "benchmarks.delay", str(through), str(port)]
    program = Program(f"{name}-delay", [*command, str(around.delay)], around.directory)
    made.append(program)
    untilListening(through, program)
    return through


CONFIG = """
[[listen]]
endpoint = "tcp:{port}:interface=127.0.0.1:backlog=1024"
{tls}
[forwards]
ports = "{door}"

[[forwards.forward]]
listen = "tcp:{door}"
runner = "{runner}"
"""


def program(end: str, carrier: str, path: str) -> list[str]:
    """
    The command of an end: the real program, and nothing else where it is to do as it does.
    """
    if (carrier, path) == ("raw", "sockets"):
        flags = ("-n", "--pidfile=", "--logfile=-")
        return [sys.executable, "-c", _TWISTD, *flags, f"helix-revdial-{end}"]
    return [sys.executable, "-m", "benchmarks.variant", end, carrier, path]


_TWISTD = "from twisted.scripts.twistd import run; run()"


class HelixServer:
    """This project's server, running, with one token for all runners."""

    RUNNER = "bench-1"

    def __init__(self, name: str, around: Surroundings, path: str, zeroKey: bool = False) -> None:
        self.port, self.door = freePort(), freePort()
        self.tls = around.tls
        state = around.directory / f"{name}-state"
        config = around.directory / f"{name}.toml"
        tls = f'tls.certificate = "{around.certificate}"\n' if around.tls else ""
        config.write_text(
            CONFIG.format(port=self.port, door=self.door, runner=self.RUNNER, tls=tls)
        )
        self.program = Program(
            f"{name}-server",
            [
                *program("server", "raw", path),
                f"--state-directory={state}",
                *(["--set=tunnel.zero_key=true"] if zeroKey else []),
                f"--config={config}",
            ],
            around.directory,
        )
        try:
            untilListening(self.door, self.program)
            untilListening(self.port, self.program)
            self.tokenFile = state / "runner.token"
            self.tokenFile.touch(mode=0o600)
            self.tokenFile.write_text(self._token((state / "admin.token").read_text().strip()))
        except BaseException:
            self.program.stop()
            raise

    def url(self, port: int) -> str:
        """The address of the server, at a port that leads to it."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{port}"

    def _ask(self, path: str, admin: str, body: object = None) -> dict[str, object]:
        import ssl

        request = urllib.request.Request(
            self.url(self.port) + path,
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"Bearer {admin}", "Content-Type": "application/json"},
        )
        # Our own server, started a moment ago on this host.
        context = ssl._create_unverified_context() if self.tls else None
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            found: dict[str, object] = json.load(answer)
            return found

    def _token(self, admin: str) -> str:
        wanted = {"kind": "runner", "name": "bench", "patterns": ["bench-*", "idle-*"]}
        return str(self._ask("/api/v1/tokens", admin, wanted)["token"])


def helix(
    name: str, around: Surroundings, *, carrier: str, path: str, zeroKey: bool = False
) -> Tunnel:
    """
    This project.

    @param carrier: C{raw} or C{websocket}.
    @param path: C{sockets}, C{copied} or C{portable}.
    @param zeroKey: Whether both ends allow the zero masking key.
    """
    server = HelixServer(name, around, path, zeroKey)
    tunnel = Tunnel(name, server.door, [server.program])
    try:
        through = _through(name, around, server.port, tunnel.between)
        trust = [f"--ca-file={around.certificate}"] if around.tls else []
        agent = Program(
            f"{name}-agent",
            [
                *program("agent", carrier, path),
                f"--server={server.url(through)}",
                f"--runner-id={server.RUNNER}",
                f"--token-file={server.tokenFile}",
                f"--local=127.0.0.1:{around.target}",
                *trust,
                *(["--zero-key"] if zeroKey else []),
            ],
            around.directory,
        )
        tunnel.far.append(agent)
        until = time.monotonic() + 20
        while "connected as" not in agent.tail():
            agent.check()
            if time.monotonic() > until:
                raise Failed(f"the agent does not connect:\n{agent.tail()}")
            time.sleep(0.05)
    except BaseException:
        tunnel.stop()
        raise
    return tunnel


HAPROXY = """
global
    maxconn 4000
    nbthread 1
defaults
    mode tcp
    option splice-auto
    timeout connect 10s
    timeout client 1h
    timeout server 1h
listen hop
    bind 127.0.0.1:{port}{bindTLS} backlog 1024
    server next 127.0.0.1:{to}{serverTLS}
"""


def haproxy(name: str, around: Surroundings) -> Tunnel:
    """Two chained haproxy TCP relays: no tunnel, and the limit at this number of hops."""
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if program is None:
        raise Missing("haproxy is not here: apt-get install haproxy")
    tunnel = Tunnel(name, freePort())
    try:
        port = freePort()
        crt = f" ssl crt {around.certificate}" if around.tls else ""
        verify = " ssl verify none" if around.tls else ""
        tunnel.far.append(_hop(program, f"{name}-far", around, port, around.target, crt, ""))
        through = _through(name, around, port, tunnel.between)
        near = _hop(program, f"{name}-near", around, tunnel.port, through, "", verify)
        tunnel.near.append(near)
    except BaseException:
        tunnel.stop()
        raise
    return tunnel


def _hop(
    program: str,
    name: str,
    around: Surroundings,
    port: int,
    to: int,
    bindTLS: str,
    serverTLS: str,
) -> Program:
    config = around.directory / f"{name}.cfg"
    config.write_text(HAPROXY.format(port=port, to=to, bindTLS=bindTLS, serverTLS=serverTLS))
    hop = Program(name, [program, "-db", "-f", str(config)], around.directory)
    try:
        untilListening(port, hop)
    except BaseException:
        hop.stop()
        raise
    return hop


SSHD = """
ListenAddress 127.0.0.1:{port}
HostKey {directory}/host
AuthorizedKeysFile {directory}/client.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
AllowTcpForwarding yes
"""


def ssh(name: str, around: Surroundings) -> Tunnel:
    """C{ssh -R} to an sshd of our own."""
    sshd = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin")
    client = shutil.which("ssh")
    if sshd is None or client is None:
        raise Missing("ssh and sshd are not both here: apt-get install openssh-server")
    if os.getuid() == 0:
        # Where sshd wants its unprivileged part to live.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    own = around.directory / name
    own.mkdir()
    for key in ("host", "client"):
        made = Program(
            f"{name}-keygen-{key}",
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(own / key)],
            own,
        )
        while not (own / f"{key}.pub").exists():
            time.sleep(0.02)
        made.stop()
    port = freePort()
    (own / "sshd.conf").write_text(SSHD.format(port=port, directory=own))
    tunnel = Tunnel(name, freePort())
    try:
        near = Program(f"{name}-sshd", [sshd, "-D", "-e", "-f", str(own / "sshd.conf")], own)
        tunnel.near.append(near)
        untilListening(port, near)
        through = _through(name, around, port, tunnel.between)
        far = Program(
            f"{name}-client",
            [
                *(client, "-N", "-i", str(own / "client"), "-p", str(through)),
                *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
                *("-o", "ExitOnForwardFailure=yes", "-o", "BatchMode=yes", "-F", "none"),
                *("-R", f"127.0.0.1:{tunnel.port}:127.0.0.1:{around.target}", "127.0.0.1"),
            ],
            own,
        )
        tunnel.far.append(far)
        untilListening(tunnel.port, far)
    except BaseException:
        tunnel.stop()
        raise
    return tunnel


@dataclass(frozen=True)
class Named:
    """
    Any tunnel that a command line starts.

    @ivar port: Where it listens.
    @ivar command: For the shell; C{{target}} in it is the target's port.  It stays in the
        foreground, and all that it starts is counted as one end.
    """

    name: str
    port: int
    command: str

    @classmethod
    def parse(cls, text: str) -> Named:
        """
        Read C{NAME=PORT:COMMAND}.

        @raise ValueError: It is no such text.
        """
        name, equals, rest = text.partition("=")
        port, colon, command = rest.partition(":")
        if not (name and equals and colon and port.isdigit() and command):
            raise ValueError(f"not NAME=PORT:COMMAND: {text!r}")
        return cls(name, int(port), command)

    def start(self, around: Surroundings) -> Tunnel:
        """Start it, and wait for its port."""
        filled = self.command.replace("{target}", str(around.target))
        program = Program(self.name, ["sh", "-c", filled], around.directory)
        tunnel = Tunnel(self.name, self.port, [program])
        try:
            untilListening(self.port, program)
            # Its far end may need a moment more than its port.
            time.sleep(1.0)
        except BaseException:
            tunnel.stop()
            raise
        return tunnel
