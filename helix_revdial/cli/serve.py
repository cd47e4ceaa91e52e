# -*- test-case-name: tests.cli.test_serve,tests.integration.test_serve -*-
"""
C{helix serve}: run a server on this machine, in the foreground.

The server is C{twistd helix-revdial-server}, as a child of this process: it ends
with it.  With C{--mock} it needs nothing and leaves nothing: its state is in a
temporary directory, and its tasks are run by an executor that only pretends.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import click

from helix_revdial.cli.edge import PASSED, CommandError
from helix_revdial.cli.invocation import Invocation, passInvocation

MOCK_AGENTS = ("claude-code", "codex", "gemini", "openhands", "swe-agent", "mock")
"""The agents that a server of C{--mock} knows, beside the demonstration."""


@click.command("serve")
@click.option("--mock", is_flag=True, help="Only pretend to run tasks; leave nothing behind.")
@click.option(
    "--speed",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0.001, 10_000),
    help="With --mock: how many times faster than life.",
)
@click.option("--bind", default="127.0.0.1", show_default=True, metavar="ADDRESS")
@click.option(
    "--port",
    default=8080,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="0 for any that is free.",
)
@click.option("--db", "database", metavar="URL", help="The database, instead of the settings'.")
@click.option("--config", metavar="FILE", type=click.Path(exists=True), help="The settings.")
@passInvocation
def serve(
    invocation: Invocation,
    mock: bool,
    speed: float,
    bind: str,
    port: int,
    database: str | None,
    config: str | None,
) -> int:
    """
    Run a server here, until it is interrupted.

    With --mock nothing else is needed: tasks are run by an executor that only
    pretends, and the state goes when the server ends.
    """
    output = invocation.output
    port = _listenable(bind, port)
    host = f"[{bind}]" if ":" in bind else bind
    command = [
        sys.executable,
        "-c",
        _TWISTD.format(parent=os.getpid()),
        "--nodaemon",
        "--pidfile=",
        "--logfile=-",
    ]
    command += ["helix-revdial-server", "--listen", f"tcp:{port}:interface={_quoted(bind)}"]
    if config is not None:
        command += ["--config", config]
    if database is not None:
        command += ["--database", database]
    with ExitStack() as stack:
        if mock:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="helix-")))
            if config is None:
                settings = directory / "server.toml"
                settings.write_text(_mockSettings())
                command += ["--config", str(settings)]
            state = directory / "state"
            command += ["--state-directory", str(state)]
            command += ["--set", "sessions.synthetic=true"]
            command += ["--set", f"sessions.synthetic_speed={speed}"]
            output.line(f"URL: http://{host}:{port}")
            output.line(f"Token file: {state / 'admin.token'}")
            sys.stdout.flush()
        return _run(command)


def _run(command: list[str]) -> int:
    """Run the server; what ends this process ends it."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def end(number: int, frame: FrameType | None) -> None:
        child.send_signal(signal.SIGTERM)

    # A terminal that is closed would have the server read its settings again.
    ends = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {each: signal.signal(each, end) for each in ends}
    try:
        code = child.wait()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    return PASSED if code in (0, -signal.SIGTERM) else 1


def _listenable(bind: str, port: int) -> int:
    """
    A port on which the server can listen: nothing is said of one on which it cannot.

    @raise CommandError: There is none.
    """
    try:
        found = socket.getaddrinfo(bind, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, _, _, address = found[0]
        with socket.socket(family, kind) as probe:
            # As the server does it: connections that have ended are not in its way.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
            return int(probe.getsockname()[1])
    except (OSError, UnicodeError) as error:
        # A name that is none is a UnicodeError.
        why = getattr(error, "strerror", None) or "this is no address"
        raise CommandError(
            f"cannot listen on {bind}, port {port}: {why}; "
            "--port names another one (0: any that is free), --bind another address"
        ) from None


def _quoted(bind: str) -> str:
    """An address within an endpoint's description."""
    return bind.replace(":", "\\:")


def _mockSettings() -> str:
    return "".join(
        f'[[agents.agent]]\ntype = "{name}"\ncommand = ["true"]\n\n' for name in MOCK_AGENTS
    )


_TWISTD = """\
import ctypes, os, signal, sys
if sys.platform == "linux":
    # PR_SET_PDEATHSIG (prctl(2)): should the parent be killed, nobody is left to end us.
    ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))
    if os.getppid() != {parent}:
        sys.exit(1)
from twisted.scripts.twistd import run; run()
"""
