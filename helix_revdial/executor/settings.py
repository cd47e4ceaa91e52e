# -*- test-case-name: tests.executor.test_settings -*-
"""
What the executor is told, from one TOML file.

Every complaint begins with the file and the line; all are said at once.  Secrets stand in
files of their own, which are only named here.
"""

from __future__ import annotations

import os
import sys
import typing
from pathlib import Path
from typing import Annotated, Any

import msgspec

from helix_revdial.toml_settings import Document, TOMLUnusable, readDocument

from .identities import knownUsers
from .layout import MAX_STATE_DIRECTORY
from .record import Credential, Terms

DEFAULT_FILE = Path("/etc/helix-revdial/executor.toml")


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


class SettingsError(ValueError):
    """The settings make no executor; the text says what to change."""


_Count = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
_Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
_Size = Annotated[int, msgspec.Meta(ge=1)]


class CredentialSection(msgspec.Struct, frozen=True, rename=_snake, forbid_unknown_fields=True):
    """What opens the repositories below a URL."""

    url: str
    username: str = "git"
    passwordFile: str | None = None
    keyFile: str | None = None
    knownHostsFile: str | None = None


class ExecutorSettings(msgspec.Struct, frozen=True, rename=_snake, forbid_unknown_fields=True):
    """
    All that the executor is told.
    """

    listen: str = "/run/helix-revdial-executor/executor.sock"
    """The unix socket that the agent beside it connects to."""

    socketGroup: str | int | None = None
    """The group that may connect to it, besides the executor's own user."""

    stateDirectory: str = "/var/lib/helix-revdial-executor"
    """Where the sessions have what is theirs."""

    slots: _Count = 4
    """Sessions that run at one time."""

    maxSessions: _Count = 64
    """Sessions that there are at one time, those included that have ended and whose
    work is still kept.  The one that ended first goes where another needs its room."""

    firstUser: Annotated[int, msgspec.Meta(ge=1, le=4_294_900_000)] = 80_000
    """The first of the users that sessions run as; each takes two numbers."""

    separateUsers: bool = True
    """Whether each session runs as a user of its own, where the executor is root."""

    controlGroup: str | None = None
    """The control group below which the sessions have theirs; by default our own."""

    mounts: bool = True
    """Whether a session has a mount namespace of its own, in which it sees no other's
    processes and has its own /tmp; where that can be."""

    processes: _Count = 1024
    """Processes and threads of one session."""

    files: _Count = 4096
    """Open files of each of its processes."""

    python: str = sys.executable
    """The Python, with helix_revdial, that sessions' users can run: for {python} in an agent's
    command, for the desktop service and for the tunnel agent."""

    agents: tuple[str, ...] = ()
    """The agents that may run here; empty for whatever the server declares."""

    environment: dict[str, str] = {}
    """What every task finds in its environment."""

    protocols: tuple[str, ...] = ("https", "ssh")
    """By which repositories may be reached."""

    cloneSeconds: _Seconds = 600.0
    """How long a repository may take to arrive."""

    outputAheadBytes: _Size = 32 * 1024 * 1024
    """Reports of one session that nobody has fetched, from which on its output is held back."""

    patchBytes: _Size = 1024 * 1024 * 1024
    """How large a patch may be."""

    uploadBytes: _Size = 1024 * 1024 * 1024
    """How large an archive may be that becomes a workspace."""

    display: str = "1280x720x24"
    """The size and depth of a session's display; empty for none."""

    serverUrl: str | None = None
    """Where the sessions' tunnel agents find the server, instead of where it says."""

    caFile: str | None = None
    """Certificates (PEM) of the authorities that they trust, instead of the system's."""

    credential: tuple[CredentialSection, ...] = ()
    """What opens repositories: [[credential]] tables."""

    @property
    def users(self) -> range:
        """Every number that a session's user may have."""
        return range(self.firstUser, self.firstUser + 2 * self.maxSessions)

    def terms(self) -> Terms:
        """What of this holds for a session from its launch to its end."""
        return Terms(
            cloneSeconds=self.cloneSeconds,
            protocols=self.protocols,
            credentials=tuple(
                Credential(
                    each.url, each.username, each.passwordFile, each.keyFile, each.knownHostsFile
                )
                for each in self.credential
            ),
            outputAhead=self.outputAheadBytes,
            patchBytes=self.patchBytes,
            display=self.display or None,
            caFile=self.caFile,
            serverUrl=self.serverUrl,
            uploads=str(Path(self.stateDirectory, "uploads")),
            environment=self.environment,
            python=self.python,
        )


NAMES = tuple(field.encode_name for field in msgspec.structs.fields(ExecutorSettings))
"""Every key of the file."""


def readSettings(path: str | Path | None) -> ExecutorSettings:
    """
    Read the settings.

    @param path: The file; C{None} for the defaults alone.
    @raise SettingsError: They make no executor; one line for each complaint.
    """
    if path is None:
        settings = ExecutorSettings()
        _check(settings, None)
        return settings
    try:
        document = readDocument(path)
    except TOMLUnusable as error:
        raise SettingsError(str(error)) from None
    complaints = []
    values: dict[str, Any] = {}
    kinds = typing.get_type_hints(ExecutorSettings, include_extras=True)
    attributes = {
        field.encode_name: field.name for field in msgspec.structs.fields(ExecutorSettings)
    }
    for name, value in document.values.items():
        if name not in attributes:
            complaints.append(f"{document.where(name)}: unknown key {name[:60]!r}")
            continue
        try:
            values[attributes[name]] = msgspec.convert(value, kinds[attributes[name]])
        except msgspec.ValidationError as error:
            said, _, where = str(error).partition(" - at `$")
            place = f"{name}{where.rstrip('`')}"
            complaints.append(f"{document.where(name)}: {place}: {said[:1].lower()}{said[1:]}")
    if complaints:
        raise SettingsError("\n".join(complaints))
    settings = ExecutorSettings(**values)
    _check(settings, document)
    return settings


def _check(settings: ExecutorSettings, document: Document | None) -> None:
    complaints = []

    def about(name: str, text: str) -> None:
        where = "" if document is None else f"{document.where(name)}: "
        complaints.append(f"{where}{name}: {text}")

    for name, path in (
        ("listen", settings.listen),
        ("state_directory", settings.stateDirectory),
        ("python", settings.python),
    ):
        if not os.path.isabs(path):
            about(name, "write an absolute path")
    if len(os.fsencode(settings.stateDirectory)) > MAX_STATE_DIRECTORY:
        about(
            "state_directory",
            f"longer than {MAX_STATE_DIRECTORY} bytes: a unix socket below it could not be",
        )
    if len(os.fsencode(settings.listen)) > 107:
        about("listen", "longer than 107 bytes, which is as much as the system takes")
    if settings.slots > settings.maxSessions:
        about("slots", "more than max_sessions")
    known = knownUsers(settings.users) if settings.separateUsers and os.geteuid() == 0 else []
    if known:
        about(
            "first_user",
            f"{known[0]} has a number from {settings.users.start} to {settings.users.stop - 1}:"
            " those are to be nobody's",
        )
    for number, each in enumerate(settings.credential):
        ways = (each.passwordFile is not None, each.keyFile is not None)
        if sum(ways) != 1:
            about("credential", f"number {number + 1} has password_file or key_file, one of them")
    if complaints:
        raise SettingsError("\n".join(complaints))
