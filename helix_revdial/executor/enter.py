# -*- test-case-name: tests.executor.test_enter -*-
"""
Becomes a session's own: the short program between the executor and whatever runs
in a session.

Run as C{python -I -S enter.py TERMS PROGRAM ARGUMENT...}, it takes the terms (JSON, see
L{Terms <helix_revdial.executor.record.Terms>}), gives up in this order all that it
has, and replaces itself by the program: it joins the control group, takes a mount
namespace of its own, takes on limits, drops its groups, its user and every way back
(C{no_new_privs}), and enters the directory.

A program and not a function that runs after a fork, so that whoever starts it may
be a process with a reactor.  It imports little, since each start pays for it, and
nothing of ours.  What it cannot do ends it, with C{CANNOT_ENTER}: a program never runs
with more than it was meant to have.

Where the terms name a descriptor (C{told}), why is written there as well, and the program
does not get it: its own exit code may be the same.

The environment is handed on as it came: nothing secret is in the terms, which
everybody can read while this runs.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any

CANNOT_ENTER = 125
"""The exit code of what could not be confined, as it has no output of its own."""

CANNOT_RUN = 126
"""The exit code where the program is there and cannot be run."""

NOT_FOUND = 127
"""The exit code where there is no such program, as in shells."""

_NO_NEW_PRIVS = 38
_NEW_MOUNTS = 0x00020000
_NEW_IPC = 0x08000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MS_RDONLY, _MS_REMOUNT = 1, 32
_MS_BIND, _MS_REC, _MS_SLAVE = 4096, 16384, 1 << 19

_TEMPORARY = ("/tmp", "/var/tmp")  # noqa: S108 - where they are is what is meant

_SHARED = ("/dev/shm", "/run/lock")  # noqa: S108
"""What everybody may write, and in which nothing is to be left, or read by others."""

_LIMITS = {
    "processes": resource.RLIMIT_NPROC,
    "files": resource.RLIMIT_NOFILE,
    "fileSize": resource.RLIMIT_FSIZE,
    "core": resource.RLIMIT_CORE,
    "addressSpace": resource.RLIMIT_AS,
}


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _mount(libc: Any, source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    arguments = (source.encode(), target.encode(), kind.encode(), flags, data.encode())
    if libc.mount(*arguments[:3], ctypes.c_ulong(flags), arguments[4]) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount {target}: {os.strerror(number)}")


def _separateMounts(libc: Any, terms: dict[str, Any]) -> None:
    """
    Other sessions' processes, their files in /tmp and their shared memory are not to be
    seen, and what is left of that goes with the last process; the users that the host does
    not know have names, without which ssh, and much else, does not run.
    """
    if libc.unshare(_NEW_MOUNTS | (_NEW_IPC if terms.get("mounts") else 0)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"unshare: {os.strerror(number)}")
    # What is mounted later outside (a workspace) is seen; nothing goes the other way.
    _mount(libc, "none", "/", "", _MS_REC | _MS_SLAVE)
    if terms.get("mounts"):
        flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
        _mount(libc, "proc", "/proc", "proc", flags, "hidepid=invisible")
        for place in _SHARED:
            # But for a host whose sessions are there themselves.
            if os.path.isdir(place) and not os.environ.get("HOME", "").startswith(f"{place}/"):
                _mount(libc, "none", place, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=1777")
    if terms.get("temporary") is not None:
        for place in _TEMPORARY:
            _mount(libc, terms["temporary"], place, "", _MS_BIND)
    if terms.get("accounts") is not None:
        _mount(libc, terms["accounts"], "/etc/passwd", "", _MS_BIND)
    for closed, paths in terms.get("shown", {}).items():
        _show(libc, closed, paths)


def _show(libc: Any, closed: str, paths: list[str]) -> None:
    """Have an empty directory in the place of a closed one, and some of what was in it."""
    kept = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in paths]
    flags = _MS_NOSUID | _MS_NODEV
    _mount(libc, "none", closed, "tmpfs", flags, "mode=711,size=1m")
    before = os.umask(0o022)
    try:
        for path, descriptor in kept:
            if os.path.isdir(f"/proc/self/fd/{descriptor}"):
                os.makedirs(path, exist_ok=True)
            else:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644))
            _mount(libc, f"/proc/self/fd/{descriptor}", path, "", _MS_BIND)
            _mount(libc, "none", path, "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY | flags)
            os.close(descriptor)
    finally:
        os.umask(before)


def enter(terms: dict[str, Any]) -> None:
    """
    Take on C{terms}.

    @raise OSError: One of them cannot be had.
    """
    libc = _libc()
    if terms.get("newSession"):
        os.setsid()
    group = terms.get("group")
    if group is not None:
        with open(os.path.join(group, "cgroup.procs"), "w") as processes:
            processes.write("0")
    if terms.get("oomScore") is not None:
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write(str(terms["oomScore"]))
    if terms.get("mounts") or terms.get("accounts") is not None or terms.get("shown"):
        _separateMounts(libc, terms)
    for name, value in terms.get("limits", {}).items():
        hard = resource.getrlimit(_LIMITS[name])[1]
        if hard != resource.RLIM_INFINITY and os.geteuid() != 0:
            value = min(value, hard)
        resource.setrlimit(_LIMITS[name], (value, value))
    if terms.get("user") is not None:
        user, own = terms["user"], terms["userGroup"]
        os.setgroups([])
        os.setresgid(own, own, own)
        os.setresuid(user, user, user)
    if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs")
    os.umask(terms.get("umask", 0o022))
    # The interpreter ignores these two; a program expects them to end it.
    # What is ignored stays ignored in a new program: by Python (SIGPIPE, SIGXFSZ), by
    # nohup, by a shell that put us in the background.
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    if terms.get("directory") is not None:
        os.chdir(terms["directory"])
        os.environ["PWD"] = terms["directory"]


def main(arguments: list[str]) -> int:
    """
    Enter, and become the program.

    @return: Only when that did not succeed: the exit code.
    """
    terms = json.loads(arguments[0])
    told = terms.get("told")
    if told is not None:
        os.set_inheritable(told, False)
    try:
        enter(terms)
    except OSError as error:
        sys.stderr.write(f"cannot confine the program: {error}\n")
        if told is not None:
            os.write(told, str(error).encode())
        return CANNOT_ENTER
    program = arguments[1]
    try:
        os.execvp(program, arguments[1:])  # noqa: S606
    except OSError as error:
        sys.stderr.write(f"cannot run {program}: {error.strerror}\n")
        missing = isinstance(error, FileNotFoundError)
        return NOT_FOUND if missing else CANNOT_RUN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
