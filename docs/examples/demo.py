"""
The main job, end to end, on this machine: `make demo`.

The tunnel: starts a server on an SQLite file, a desktop service (on Xvfb where there is one,
otherwise with a test card) and an agent; asks `helix spectask revdial` whether the tunnel works;
saves a screenshot through it.

Tasks: starts an executor beside another agent, makes a git repository, and hands in a task over
HTTP; follows its events, fetches its patch and applies it.

Stops everything.  What it leaves is under demo/ in the current directory.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

PYTHON = sys.executable
TWISTD = (str(Path(sys.executable).with_name("twistd")), "--nodaemon", "--pidfile=", "--logfile=-")
DEADLINE = 30.0
HOST = "demo-host"

PROMPT = """\
say This agent needs no model: it does what its prompt says, line by line.
append greeting.txt Hello from a task.
write notes/done.txt Everything that was asked for.
run git status --short
"""


def freePort() -> int:
    """A TCP port on loopback that nothing uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(
    name: str, directory: Path, *argv: str, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
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
        yield process
        if process.poll() is not None:
            sys.exit(f"{name} ended by itself:\n{log.read_text()}")
    finally:
        # The whole group: `git daemon` is a program that starts another.
        kill(process, signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            kill(process, signal.SIGKILL)
            process.wait()


def kill(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal a program that `running` has started, and what it has started."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


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
        sys.exit(f"{' '.join(done.args)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def waitFor(
    what: str,
    ready: Callable[[], object],
    directory: Path,
    program: subprocess.Popen[bytes] | None = None,
) -> None:
    """Ask every 100 ms until ready() holds, for at most DEADLINE seconds."""
    end = time.monotonic() + DEADLINE
    while not ready():
        why = ""
        if program is not None and program.poll() is not None:
            why = f"{what} ended by itself"
        elif time.monotonic() > end:
            why = f"{what} took longer than {DEADLINE:.0f} s"
        if why:
            logs = (f"--- {log.name}\n{log.read_text()}" for log in directory.glob("*.log"))
            sys.exit("\n".join((why, *logs)))
        time.sleep(0.1)


def answers(port: int) -> bool:
    """Whether something accepts on a port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Server:
    """
    The server, and the administrator's token.

    @ivar environment: what the `helix` command needs to reach it.
    """

    def __init__(self, stack: ExitStack, state: Path) -> None:
        self._state = state
        self._port = port = freePort()
        self.url = f"http://127.0.0.1:{port}"
        self._program = stack.enter_context(
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

    def ready(self) -> None:
        """Wait until it answers."""
        token = self._state / "admin.token"
        waitFor(
            "the server",
            lambda: token.exists() and answers(self._port),
            self._state,
            self._program,
        )
        self._token = token.read_text().strip()
        self.environment = {"HELIX_URL": self.url, "HELIX_API_KEY": self._token}
        print(f"Server:   {self.url}, SQLite under {self._state}", flush=True)

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """The answer to a request, to be read; a refusal ends the demonstration."""
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            return urllib.request.urlopen(request, timeout=DEADLINE)
        except urllib.error.HTTPError as error:
            with error:
                sys.exit(f"{method} {path}: {error.code} {error.read().decode()}")

    def make(self, path: str, body: object) -> Any:
        """Make something; the document that says what it became."""
        with self.ask("POST", path, body) as answer:
            return json.load(answer)

    def token(self, path: Path, **what: object) -> None:
        """Put a new token into a file that nobody else reads."""
        secret = self.make("/api/v1/tokens", {"name": "demo", **what})["token"]
        path.touch(mode=0o600)
        path.write_text(secret)

    def reaches(self, runner: str) -> bool:
        """Whether a runner is connected."""
        with self.ask("GET", "/api/v1/admin/revdial/status") as answer:
            return runner.encode() in answer.read()


def display(stack: ExitStack, state: Path) -> list[str]:
    """Start a virtual screen with something on it; the desktop's flags."""
    if shutil.which("Xvfb") is None:
        print("Desktop:  a test card (for a real screen: apt-get install xvfb imagemagick xclip)")
        return ["--test-card"]
    number = next(n for n in range(90, 200) if not Path(f"/tmp/.X11-unix/X{n}").exists())
    name = f":{number}"
    screen = ("Xvfb", name, "-screen", "0", "1280x720x24", "-noreset", "-nolisten", "tcp")
    program = stack.enter_context(running("xvfb", state, *screen))
    waitFor("Xvfb", Path(f"/tmp/.X11-unix/X{number}").exists, state, program)
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


class Desktop:
    """The service that an agent offers in a sandbox, and a screen for it."""

    def __init__(self, stack: ExitStack, state: Path) -> None:
        self._state = state
        self.port = freePort()
        flags = ["--listen", f"127.0.0.1:{self.port}", *display(stack, state)]
        command = (PYTHON, "-m", "helix_revdial.cli", "desktop", "serve", *flags)
        self._program = stack.enter_context(running("desktop", state, *command))

    def ready(self) -> None:
        """Wait until it answers."""
        waitFor("the desktop service", lambda: answers(self.port), self._state, self._program)


def tunnel(
    stack: ExitStack, server: Server, desktop: Desktop, directory: Path, state: Path
) -> None:
    """A sandbox dials out, and is seen through its tunnel."""
    session = server.make("/api/v1/sessions", {"name": "demo"})["id"]
    server.token(state / "session.token", kind="session", session=session)
    name = f"sandbox-{session}"
    desktop.ready()
    agent = (
        *(*TWISTD, "helix-revdial-agent", "--server", server.url, "--runner-id", name),
        *("--token-file", str(state / "session.token"), "--local", f"127.0.0.1:{desktop.port}"),
        # The connection to the desktop is kept for the next request, which will not come.
        *("--drain", "1"),
    )
    program = stack.enter_context(running("agent", state, *agent))
    print(f"Agent:    {name}, which dialled out to the server\n", flush=True)
    waitFor("the agent", lambda: server.reaches(name), state, program)

    print(f"$ helix spectask revdial {session}", flush=True)
    tested = helix("spectask", "revdial", session, **server.environment)
    print(tested.stdout, end="")
    if tested.returncode != 0:
        sys.exit(tested.stderr.strip() or tested.returncode)
    picture = directory / "screenshot.png"
    must(helix("spectask", "screenshot", session, "-o", str(picture), **server.environment))
    print(f"\nScreenshot through the tunnel: {picture} ({picture.stat().st_size:,} bytes)\n")


def git(directory: Path, *argv: str) -> str:
    """Run git, without what its user has configured."""
    own = ("-c", "user.name=demo", "-c", "user.email=demo@localhost")
    nothing = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    command = ["git", "-C", str(directory), *own, *argv]
    return must(
        subprocess.run(command, env={**os.environ, **nothing}, capture_output=True, text=True)
    )


def repository(stack: ExitStack, directory: Path, state: Path) -> str:
    """Make a small repository and serve it; its URL."""
    project = directory / "project"
    project.mkdir()
    git(project, "init", "--quiet", "--initial-branch=main")
    (project / "greeting.txt").write_text("Hello.\n")
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message=A greeting")
    port = freePort()
    served = (f"--base-path={directory}", "--export-all", str(project))
    daemon = ("git", "daemon", "--reuseaddr", "--listen=127.0.0.1", f"--port={port}", *served)
    program = stack.enter_context(running("git-daemon", state, *daemon))
    waitFor("git daemon", lambda: answers(port), state, program)
    return f"git://127.0.0.1:{port}/project"


class Executor:
    """
    What runs sessions, beside an agent of its own.

    @ivar sessions: where it keeps them.
    """

    def __init__(self, stack: ExitStack, state: Path) -> None:
        # Neither in a home that is nobody else's business nor below a long path: the sessions'
        # users pass through it, and there are unix sockets in it.
        place = Path(tempfile.mkdtemp(prefix="helix-demo-", dir="/tmp"))
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        place.chmod(0o711)
        self._state = state
        self._stack = stack
        self._socket = place / "executor.sock"
        self.sessions = place / "state" / "sessions"
        settings = {
            "listen": str(self._socket),
            "state_directory": str(place / "state"),
            "slots": 1,
            "max_sessions": 4,
            "protocols": ["git"],
            "display": "",
            "separate_users": separateUsers(),
        }
        lines = [f"{key} = {json.dumps(value)}\n" for key, value in settings.items()]
        config = state / "executor.toml"
        config.write_text("".join(lines))
        command = (*TWISTD, "helix-revdial-executor", "--config", str(config))
        self._program = stack.enter_context(running("executor", state, *command))

    def join(self, server: Server) -> None:
        """Have an agent offer it to the server."""
        state = self._state
        server.token(state / "host.token", kind="runner", patterns=[HOST])
        waitFor("the executor", self._socket.exists, state, self._program)
        config = state / "agent.toml"
        config.write_text(
            f'[[runner]]\nkey = "{HOST}"\nserver = "{server.url}"\n'
            f"token_file = {json.dumps(str(state / 'host.token'))}\n"
            f'targets = [{{ name = "executor", address = "unix://{self._socket}",'
            ' expose = "internal" }]\n'
        )
        command = (*TWISTD, "helix-revdial-agent", "--config", str(config))
        program = self._stack.enter_context(running("host-agent", state, *command))
        waitFor("the host's agent", lambda: server.reaches(HOST), state, program)
        print(f"Executor: on a unix socket that only the agent {HOST} reaches\n", flush=True)


def separateUsers() -> bool:
    """Whether each session can have a user of its own."""
    from helix_revdial.executor.host import canRunPython, canSeparateMounts
    from helix_revdial.executor.passage import needed, shownBelow
    from helix_revdial.executor.settings import ExecutorSettings

    if os.geteuid() != 0:
        return False
    # As the executor finds it out for itself.
    shown = shownBelow(needed(PYTHON)) if canSeparateMounts() else {}
    if canRunPython(ExecutorSettings().firstUser, PYTHON, shown):
        return True
    print(f"Executor: its sessions run as root, since other users cannot run {PYTHON}")
    return False


def tasks(
    stack: ExitStack, server: Server, executor: Executor, directory: Path, state: Path
) -> None:
    """A task is done on the host, in a clone of a repository; its work comes back."""
    executor.join(server)
    task = {
        "prompt": PROMPT,
        "repo": {"mode": "git", "url": repository(stack, directory, state), "branch": "main"},
        "runtime": {"type": "local"},
        "agent": {"type": "demonstration"},
        "delivery": {"mode": "patch"},
    }
    print('Each of the following with -H "Authorization: Bearer $HELIX_API_KEY":\n')
    print(
        f"$ curl {server.url}/api/v1/tasks -H 'Content-Type: application/json' "
        f"-d '{json.dumps(task)}'"
    )
    session = server.make("/api/v1/tasks", task)["id"]
    path = f"/api/v1/sessions/{session}"
    stack.callback(forget, server, path, executor.sessions / session, state)
    print(f"\n$ curl --no-buffer {server.url}{path}/events", flush=True)
    follow(server, path)

    print(f"\n$ curl {server.url}{path}/patch | git apply")
    with server.ask("GET", f"{path}/patch") as answer:
        patch = answer.read()
    (directory / "task.patch").write_bytes(patch)
    print(patch.decode())
    project = directory / "project"
    git(project, "apply", str(directory / "task.patch"))
    print(f"Applied to {project}:\n{git(project, 'status', '--short')}")


def follow(server: Server, path: str) -> None:
    """Print a session's events as they come; it must end well."""
    status = None
    end = time.monotonic() + DEADLINE
    with server.ask("GET", f"{path}/events") as stream:
        for line in stream:
            name, _, data = line.decode().partition(": ")
            if time.monotonic() > end:
                sys.exit(f"the task took longer than {DEADLINE:.0f} s")
            if name != "data":
                continue
            event = json.loads(data)
            status = event.get("status", status)
            shown = event.get("message") or event.get("status") or f"{event.get('size')} bytes"
            print(f"{event['seq']:3} {event['type']:9} {shown}", flush=True)
    if status != "completed":
        sys.exit(f"the task ended as {status}")


def forget(server: Server, path: str, place: Path, state: Path) -> None:
    """Remove a session, and wait until its host has nothing left of it."""
    server.ask("DELETE", path).close()
    waitFor("removing the session", lambda: not place.exists(), state)


def main() -> None:
    """Run the demonstration."""
    directory = Path("demo").absolute()
    shutil.rmtree(directory, ignore_errors=True)
    state = directory / "state"
    state.mkdir(parents=True, mode=0o700)
    try:
        with ExitStack() as stack:
            server = Server(stack, state)
            executor = Executor(stack, state) if shutil.which("git") is not None else None
            desktop = Desktop(stack, state)
            server.ready()
            tunnel(stack, server, desktop, directory, state)
            if executor is not None:
                tasks(stack, server, executor, directory, state)
            else:
                print("Tasks:    left out, since git is missing (apt-get install git)\n")
    except KeyboardInterrupt:
        sys.exit("interrupted: everything is stopped")
    print("Stopped cleanly.")


if __name__ == "__main__":
    main()
