# -*- test-case-name: tests.listening.test_unix_socket -*-
"""
Unix sockets that a server left behind.

A server that was killed leaves its socket, and the next cannot bind.  Twisted's
own remedy, a lock file that holds a process id, fails where ids are used again:
in a container the server is process 1 each time, and finds itself alive.  So
the socket is asked: if nobody answers there, it is removed.
"""

from __future__ import annotations

import os
import re
import socket
import stat

from helix_revdial.listening.errors import ListenError

MAX_PATH = 107
"""The bytes of a socket's path (unix(7): C{sun_path} has 108, with the zero at its end)."""

_PART = re.compile(r"(?:[^:\\]|\\.)*")


def addressOf(description: str) -> str | None:
    """
    The path of a C{unix:} endpoint description; L{None} for any other.
    """
    kind, *arguments = _parts(description)
    if kind != "unix":
        return None
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals:
            return _unquoted(argument)
        if name == "address":
            return _unquoted(value)
    return None


def checkPath(path: str) -> None:
    """
    @raise ListenError: No socket can have the path C{path}.
    """
    length = len(os.fsencode(path))
    if length > MAX_PATH:
        raise ListenError(
            f"unix:{path}: the path of a unix socket has at most {MAX_PATH} bytes, and this one "
            f"has {length}: choose a shorter one, such as /run/helix-revdial.sock"
        )


def withoutLock(description: str) -> str:
    """The description, so that Twisted makes no lock file unless it says so."""
    if any(argument.startswith("lockfile=") for argument in _parts(description)):
        return description
    return f"{description}:lockfile=0"


def clearStale(path: str) -> bool:
    """
    Remove the socket at C{path} if nobody listens on it.

    @return: Whether there was one.
    @raise ListenError: Somebody listens, it cannot be told, or what stands there
        is no socket.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ListenError(f"{path}: {error.strerror or error}") from None
    if not stat.S_ISSOCK(found.st_mode):
        raise ListenError(f"{path}: something that is no socket is in its place; move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # A listener whose queue is full does not make us wait.
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            try:
                os.unlink(path)
            except OSError as error:
                raise ListenError(
                    f"{path}: a socket that nobody listens on cannot be removed: {error.strerror}"
                ) from None
            return True
        except FileNotFoundError:
            return False
        except BlockingIOError:
            pass
        except OSError as error:
            raise ListenError(f"{path}: {error.strerror or error}") from None
    raise ListenError(f"{path}: another process listens there")


def _parts(description: str) -> list[str]:
    """What stands between the colons that are not quoted."""
    parts, position = [], 0
    while True:
        match = _PART.match(description, position)
        assert match is not None
        parts.append(match[0])
        position = match.end() + 1
        if position > len(description):
            return parts


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)
