# -*- test-case-name: tests.integration.test_executor -*-
"""
The demonstration agent: does what its prompt says, line by line, so that everything can
be tried, and tested, without a vendor's program.

C{python -m helix_revdial.executor.demonstration [--file PATH] [PROMPT]}, in the
workspace.  A line that is no command of this language is said and done with, so that any
prompt makes a session that ends well::

    say TEXT               print TEXT
    warn TEXT              print TEXT on standard error
    write PATH TEXT        write TEXT and a newline to a file of the workspace
    append PATH TEXT       the same, at the end of the file
    remove PATH            remove a file
    binary PATH SIZE       write SIZE bytes that are no text
    run COMMAND ARGUMENT   run a program, and wait for it
    commit MESSAGE         commit all changes to the workspace's repository
    count N SECONDS        print 1 to N, with so many seconds between
    sleep SECONDS          wait
    flood BYTES            print that many bytes, in lines of 100
    daemon SECONDS         leave a process behind, as daemons do
    read                   wait for one more prompt on standard input, and do what it says
    exit CODE              end

It stays alive at SIGTERM for as long as C{HELIX_DEMONSTRATION_LINGER} says, in seconds.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

MAX_FILE = 64 * 1024 * 1024
"""Bytes of a file that C{binary} writes."""


class Demonstration:
    """
    Carries a script out.

    @param workspace: Where its files are.
    """

    def __init__(self, workspace: Path) -> None:
        self._workspace = workspace.resolve()

    def carryOut(self, script: str) -> None:
        """
        Do what each line says.

        @raise SystemExit: It says C{exit}, or a line cannot be done (code 2).
        """
        for line in script.splitlines():
            if line.strip():
                self._line(line.strip())

    def _line(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        do = getattr(self, f"do_{word}", None)
        if do is None:
            say(line)
            return
        try:
            do(rest)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            self.do_warn(f"cannot {line}: {error}")
            raise SystemExit(2) from None

    def _path(self, name: str) -> Path:
        path = (self._workspace / name).resolve()
        if self._workspace not in path.parents:
            raise ValueError("it is outside of the workspace")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def do_say(self, text: str) -> None:
        say(text)

    def do_warn(self, text: str) -> None:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def do_write(self, rest: str) -> None:
        name, _, text = rest.partition(" ")
        self._path(name).write_text(text + "\n")

    def do_append(self, rest: str) -> None:
        name, _, text = rest.partition(" ")
        with self._path(name).open("a") as file:
            file.write(text + "\n")

    def do_remove(self, name: str) -> None:
        self._path(name).unlink()

    def do_binary(self, rest: str) -> None:
        name, _, size = rest.partition(" ")
        piece = bytes(range(256))
        count = min(int(size), MAX_FILE)
        self._path(name).write_bytes((piece * (count // 256 + 1))[:count])

    def do_run(self, rest: str) -> None:
        sys.stdout.flush()
        subprocess.run(shlex.split(rest), cwd=self._workspace, check=True)

    def do_commit(self, message: str) -> None:
        own = ["-c", "user.name=demonstration", "-c", "user.email=demonstration@localhost"]
        for argv in (["git", "add", "-A"], ["git", *own, "commit", "-qm", message or "Changes"]):
            subprocess.run(argv, cwd=self._workspace, check=True)

    def do_count(self, rest: str) -> None:
        most, _, seconds = rest.partition(" ")
        for number in range(1, int(most) + 1):
            say(str(number))
            time.sleep(float(seconds or 0))

    def do_sleep(self, seconds: str) -> None:
        time.sleep(float(seconds))

    def do_flood(self, size: str) -> None:
        for number in range(int(size) // 100):
            sys.stdout.write(f"{number:099}\n")
        sys.stdout.flush()

    def do_daemon(self, seconds: str) -> None:
        self._fork(lambda: self._fork(lambda: self._linger(float(seconds))))

    @staticmethod
    def _fork(do: object) -> None:
        child = os.fork()
        if child == 0:
            os.setsid()
            assert callable(do)
            do()
            os._exit(0)

    @staticmethod
    def _linger(seconds: float) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        say(f"daemon {os.getpid()}")
        time.sleep(seconds)

    def do_read(self, rest: str) -> None:
        line = sys.stdin.readline()
        if line:
            self.carryOut(line)

    def do_exit(self, code: str) -> NoReturn:
        raise SystemExit(int(code or 0))


def say(text: str) -> None:
    """Print a line, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _linger(seconds: float) -> None:
    def asked(*_: object) -> None:
        say("asked to end")
        time.sleep(seconds)
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, asked)


def main(arguments: list[str]) -> int:
    """
    Run.

    @return: The exit code.
    """
    linger = os.environ.get("HELIX_DEMONSTRATION_LINGER")
    if linger:
        _linger(float(linger))
    if arguments[:1] == ["--file"]:
        script = Path(arguments[1]).read_text()
    elif arguments:
        script = " ".join(arguments)
    else:
        script = sys.stdin.read()
    Demonstration(Path.cwd()).carryOut(script)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
