# -*- test-case-name: tests.executor.test_credentials -*-
"""
What opens a repository, handed to git so that nobody else reads it.

Never on a command line and never in a URL: for https in the environment of git
alone (C{GIT_CONFIG_KEY_n}, git-config(1)), for ssh as files that git's user alone reads.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from .record import Credential

_SCP = re.compile(r"(?:(?P<user>[^@/:]+)@)?(?P<host>[^@/:]+):(?P<path>(?!//).*)")


class CredentialUnusable(Exception):
    """What the settings name cannot be read; the text says what."""


def placeOf(url: str) -> tuple[str, str, str]:
    """
    Scheme, host with its port, and path of a repository's URL.

    @param url: A URL, or C{user@host:path} as ssh has it.
    """
    helper, colons, address = url.partition("::")
    if colons and helper.isalnum():
        # git-remote-ext and its like: a program of that name would be run.
        return helper.lower(), "", address
    if "://" not in url:
        matched = _SCP.fullmatch(url)
        if matched is not None:
            return "ssh", matched["host"].lower(), "/" + matched["path"].lstrip("/")
        return "file", "", url
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    return parts.scheme.lower(), f"{host}:{parts.port}" if parts.port else host, parts.path or "/"


def credentialFor(url: str, credentials: Sequence[Credential]) -> Credential | None:
    """The credential whose URL is the longest beginning of a repository's."""
    scheme, host, path = placeOf(url)
    fitting = []
    for credential in credentials:
        ofScheme, ofHost, below = placeOf(credential.url)
        folder = below if below.endswith("/") else below + "/"
        if (scheme, host) == (ofScheme, ofHost) and (path == below or path.startswith(folder)):
            fitting.append((len(below), credential))
    return max(fitting, key=lambda each: each[0])[1] if fitting else None


def gitEnvironment(
    url: str, credential: Credential | None, directory: Path, user: int | None
) -> dict[str, str]:
    """
    What git finds in its environment to reach C{url}.

    @param directory: Where it finds the files, which are written here.
    @param user: Whose they are; C{None} for our own.
    @raise CredentialUnusable: The files of the settings cannot be read.
    """
    scheme, _, _ = placeOf(url)
    environment: dict[str, str] = {}
    ssh = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20"]
    if credential is not None and credential.keyFile is not None:
        key = _copy(credential.keyFile, directory / "key", user)
        ssh += ["-o", "IdentitiesOnly=yes", "-i", str(key)]
    if credential is not None and credential.knownHostsFile is not None:
        hosts = _copy(credential.knownHostsFile, directory / "known_hosts", user)
        ssh += ["-o", f"UserKnownHostsFile={hosts}"]
    ssh += ["-o", "StrictHostKeyChecking=yes"]
    if scheme == "ssh":
        environment["GIT_SSH_COMMAND"] = " ".join(ssh)
    if credential is not None and credential.passwordFile is not None and scheme == "https":
        secret = f"{credential.username}:{_read(credential.passwordFile).strip()}".encode()
        said = base64.b64encode(secret).decode("ascii")
        environment |= {
            "GIT_CONFIG_COUNT": "2",
            "GIT_CONFIG_KEY_0": f"http.{credential.url}.extraHeader",
            "GIT_CONFIG_VALUE_0": f"Authorization: Basic {said}",
            # Where a server sends us is not where the password belongs.
            "GIT_CONFIG_KEY_1": "http.followRedirects",
            "GIT_CONFIG_VALUE_1": "false",
        }
    return environment


def removeFiles(directory: Path) -> None:
    """Take away what L{gitEnvironment} has written."""
    for name in ("key", "known_hosts"):
        (directory / name).unlink(missing_ok=True)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no text"
        raise CredentialUnusable(f"a credential of the host cannot be read: {reason}") from None


def _copy(source: str, target: Path, user: int | None) -> Path:
    text = _read(source)
    target.unlink(missing_ok=True)
    with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    if user is not None:
        os.chown(target, user, user)
    return target
