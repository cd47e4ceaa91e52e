"""
The main job, end to end, on this machine: `make demo`.

Starts a server on an SQLite file, a desktop service (on Xvfb where there is
one, otherwise with a test card) and an agent; asks `helix spectask revdial`
whether the tunnel works; saves a screenshot through it; stops everything.
What it leaves is under demo/ in the current directory.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PYTHON = sys.executable
TWISTD = (str(Path(sys.executable).with_name("twistd")), "--nodaemon", "--pidfile=", "--logfile=-")
DEADLINE = 30.0


def freePort() -> int:
    """A TCP port on loopback that nothing uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(name: str, directory: Path, *argv: str, **environment: str) -> Iterator[None]:
    """Run a program for the length of the block; its output goes to NAME.log."""
    log = directory / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    try:
        yield
        if process.poll() is not None:
            sys.exit(f"{name} ended by itself:\n{log.read_text()}")
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def helix(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the `helix` command and take its output."""
    return subprocess.run(
        [PYTHON, "-m", "helix_revdial.cli", *argv],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def must(done: subprocess.CompletedProcess[str]) -> str:
    """What a command printed; its failure ends the demonstration."""
    if done.returncode != 0:
        sys.exit(f"{' '.join(done.args[3:])}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def waitFor(what: str, ready: object, directory: Path) -> None:
    """Ask every 100 ms until ready() holds, for at most DEADLINE seconds."""
    assert callable(ready)
    end = time.monotonic() + DEADLINE
    while not ready():
        if time.monotonic() > end:
            logs = "\n".join(
                f"--- {log.name}\n{log.read_text()}" for log in directory.glob("*.log")
            )
            sys.exit(f"{what} took longer than {DEADLINE:.0f} s\n{logs}")
        time.sleep(0.1)


def answers(port: int) -> bool:
    """Whether something accepts on a port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def display(stack: ExitStack, state: Path) -> list[str]:
    """Start a virtual screen with something on it; the desktop's flags."""
    if shutil.which("Xvfb") is None:
        print("Desktop:  a test card (for a real screen: apt-get install xvfb imagemagick xclip)")
        return ["--test-card"]
    number = next(n for n in range(90, 200) if not Path(f"/tmp/.X11-unix/X{n}").exists())
    name = f":{number}"
    stack.enter_context(
        running(
            "xvfb",
            state,
            "Xvfb",
            name,
            "-screen",
            "0",
            "1280x720x24",
            "-noreset",
            "-nolisten",
            "tcp",
        )
    )
    waitFor("Xvfb", Path(f"/tmp/.X11-unix/X{number}").exists, state)
    for painter in (
        ("xsetroot", "-display", name, "-solid", "#1d3f72"),
        ("xlogo", "-display", name, "-geometry", "400x400+440+160"),
    ):
        if shutil.which(painter[0]) is not None:
            stack.enter_context(painting(painter, state))
    print(f"Desktop:  Xvfb on display {name}", flush=True)
    return ["--display", name]


@contextmanager
def painting(argv: tuple[str, ...], state: Path) -> Iterator[None]:
    """Run a program that draws; it may end by itself."""
    with (state / f"{argv[0]}.log").open("wb") as output:
        process = subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Run the demonstration."""
    directory = Path("demo").absolute()
    shutil.rmtree(directory, ignore_errors=True)
    state = directory / "state"
    state.mkdir(parents=True, mode=0o700)
    port, desktopPort = freePort(), freePort()
    url = f"http://127.0.0.1:{port}"
    with ExitStack() as stack:
        stack.enter_context(
            running(
                "server",
                state,
                *TWISTD,
                "helix-revdial-server",
                "--listen",
                f"tcp:{port}:interface=127.0.0.1",
                "--state-directory",
                str(state),
            )
        )
        adminToken = state / "admin.token"
        waitFor("the server", lambda: adminToken.exists() and answers(port), state)
        print(f"Server:   {url}, SQLite under {state}")
        environment = {"HELIX_URL": url, "HELIX_API_KEY": adminToken.read_text().strip()}

        flags = display(stack, state)
        stack.enter_context(
            running(
                "desktop",
                state,
                PYTHON,
                "-m",
                "helix_revdial.cli",
                "desktop",
                "serve",
                "--listen",
                f"127.0.0.1:{desktopPort}",
                *flags,
            )
        )
        waitFor("the desktop service", lambda: answers(desktopPort), state)

        session = json.loads(must(helix("sessions", "create", "demo", "--json", **environment)))[
            "id"
        ]
        token = state / "session.token"
        must(
            helix(
                "tokens",
                "create",
                "--kind",
                "session",
                "--session",
                session,
                "--name",
                "demo",
                "--output-file",
                str(token),
                **environment,
            )
        )
        stack.enter_context(
            running(
                "agent",
                state,
                *TWISTD,
                "helix-revdial-agent",
                "--server",
                url,
                "--runner-id",
                f"sandbox-{session}",
                "--token-file",
                str(token),
                "--local",
                f"127.0.0.1:{desktopPort}",
            )
        )
        print(f"Agent:    sandbox-{session}, which dialled out to the server\n")
        connected = f"sandbox-{session}"
        waitFor(
            "the agent",
            lambda: connected in must(helix("revdial", "status", "--json", **environment)),
            state,
        )

        print(f"$ helix spectask revdial {session}")
        tested = helix("spectask", "revdial", session, **environment)
        print(tested.stdout, end="")
        if tested.returncode != 0:
            sys.exit(tested.stderr.strip() or tested.returncode)
        picture = directory / "screenshot.png"
        must(helix("spectask", "screenshot", session, "-o", str(picture), **environment))
        print(f"\nScreenshot through the tunnel: {picture} ({picture.stat().st_size:,} bytes)")
    print("Stopped cleanly.")


if __name__ == "__main__":
    main()
