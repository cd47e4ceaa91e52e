# -*- test-case-name: tests.sessions.test_synthetic -*-
"""
What runs a session: the interface between the control plane and a runner host.

This module owns the words that both ends speak: what is launched
(L{LaunchSpec}), what comes back (L{Report}), and what a host says of itself
(L{HostHealth}).  It does nothing itself.  The driver
(L{helix_revdial.sessions.driver}) is the one caller of an L{Executor}.

What every executor promises:

  - the session's id is the key: launching the same session twice runs it once;
  - reports are numbered densely from 1 for each session and kept until
    L{Executor.forget}, so that whoever lost the connection goes on where it
    was and sees each report once;
  - the last report of a session is of kind C{"exit"}; nothing follows it;
  - a verb says what is wanted.  That it happened is a report.

JSON has the attributes' own names; fields that a peer does not know are
ignored.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal, Protocol

import msgspec
from twisted.web.iweb import IBodyProducer

Verb = Literal["pause", "resume", "stop", "cancel", "prompt"]
"""
C{pause} freezes every process of the session, C{resume} lets them go on, C{stop}
asks them to end and kills what is left at the deadline, C{cancel} kills at once,
C{prompt} hands the agent more to do.
"""

HostState = Literal["provisioning", "running", "paused", "stopping", "ended"]
"""Where a session is on its host."""

ReportKind = Literal[
    "state", "log", "moment", "snapshot", "delivery", "workspace", "prompt", "exit"
]

Level = Literal["debug", "info", "warn", "error"]

MAX_MESSAGE = 64 * 1024
"""Bytes of UTF-8 of one log message; a host cuts longer lines into several reports."""

MAX_REPORT = 256 * 1024
"""Bytes of one report as JSON."""


class ExecutorRefused(Exception):
    """
    The executor cannot or will not do this, now or later: trying again does
    not help.  The text is for the session's owner.
    """


class ExecutorUnreachable(Exception):
    """
    Nothing is known of whether it was done: the host cannot be reached now.
    Trying again may help.
    """


class AgentSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    The agent that is run.

    @ivar type: its name in the configuration.
    @ivar command: what is executed, with places (see
        L{helix_revdial.sessions.agents}) that the host fills in.  A command without
        C{{prompt}} and C{{promptFile}} reads its prompt from standard input.
    @ivar env: what is added to its environment.
    @ivar settings: what the caller set, by the agent's schema.
    @ivar prompts: how the agent takes prompts while it runs: C{none}; C{input}, as
        lines on standard input, which stays open; C{files}, as new files in the
        directory that C{HELIX_PROMPTS} names.
    """

    type: str
    version: str = "latest"
    command: list[str] = msgspec.field(default_factory=list)
    env: dict[str, str] = msgspec.field(default_factory=dict)
    settings: dict[str, Any] = msgspec.field(default_factory=dict)
    prompts: Literal["none", "input", "files"] = "none"


class RepoSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    What the workspace starts with.

    @ivar url: for C{git}.
    @ivar uploadPath: for C{upload}: where the host finds the archive.
    """

    mode: Literal["git", "upload", "none"]
    url: str | None = None
    branch: str | None = None
    commit: str | None = None
    uploadPath: str | None = None


class SnapshotSource(msgspec.Struct, frozen=True):
    """
    What a workspace begins with instead of a repository: another session's files as they
    were.

    @ivar session: whose, on the same host.
    @ivar snapshot: what the host calls it (L{SnapshotMade.snapshot}).
    """

    session: str
    snapshot: str


class Resources(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    How much of the host a session may use.

    @ivar cpu: processors.
    @ivar memoryMiB: memory, in MiB.
    """

    cpu: int | None = None
    memoryMiB: int | None = None


class RuntimeSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where the agent runs."""

    type: Literal["devcontainer", "local", "disabled"]
    devcontainerPath: str | None = None
    resources: Resources | None = None


class DeliverySpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """What becomes of the work."""

    mode: Literal["pr", "branch", "patch"]
    targetBranch: str | None = None


class SandboxSpec(msgspec.Struct, frozen=True):
    """
    How the session's own tunnel agent reaches the server.

    @ivar serverUrl: the server's address.
    @ivar token: the session's token: a secret, to be kept off command lines
        and out of logs.
    """

    serverUrl: str
    token: str

    def __repr__(self) -> str:
        return f"SandboxSpec(serverUrl={self.serverUrl!r}, token=...)"


class Limits(msgspec.Struct, frozen=True):
    """
    Where a host ends a session on its own.

    @ivar runSeconds: how long it may run, pauses included; C{None} for ever.
    @ivar logBytes: how much it may log; what is beyond is left out, and said so.
    @ivar stopSeconds: from SIGTERM to SIGKILL, when the server says no deadline.
    """

    runSeconds: float | None = None
    logBytes: int = 256 * 1024 * 1024
    stopSeconds: float = 10.0


class LaunchSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    All that a host needs to run a session.

    @ivar session: its id, C{ses_...}.
    @ivar snapshotPreference: of C{zfs}, C{btrfs}, C{overlay}, C{copy}, C{git},
        best first; empty for what the host can do best.
    @ivar sandbox: C{None} for a session without a tunnel of its own.
    @ivar fromSnapshot: what the workspace begins with; C{repo} says then where its work
        is delivered, and a patch is of all that is different from what that session's
        workspace began with.
    """

    session: str
    prompt: str
    agent: AgentSpec
    repo: RepoSpec
    runtime: RuntimeSpec
    snapshotPreference: list[str] = msgspec.field(default_factory=list)
    delivery: DeliverySpec | None = None
    sandbox: SandboxSpec | None = None
    limits: Limits = Limits()
    fromSnapshot: SnapshotSource | None = None


class Prompt(msgspec.Struct, frozen=True):
    """
    More for an agent to do.

    @ivar number: from 1 within its session; a host takes each once.
    """

    number: int
    text: str


class WorkspaceFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    Where a session's files are.

    @ivar snapshotProvider: C{btrfs}, C{overlay}, C{copy}, C{git}, C{none}...
    @ivar mountPath: as the agent sees it.
    @ivar host: the runner host's name.
    @ivar hostPath: as the host sees it.
    """

    snapshotProvider: str
    mountPath: str
    host: str | None = None
    hostPath: str | None = None


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    One thing that happened to a session on its host.

    @ivar seq: from 1, without gaps.
    @ivar at: seconds since the epoch, by the host's clock.
    @ivar kind: says which of the fields below it has:
      - C{state}: C{state} (C{running} once the agent's process runs,
        C{paused}, C{running} again, C{stopping});
      - C{log}: C{level}, C{stream} (C{stdout}, C{stderr} or C{system}), C{message};
      - C{moment}: C{label}, C{note}, C{snapshot} if one belongs to it;
      - C{snapshot}: C{label}, C{provider}, C{snapshot}, C{mount};
      - C{delivery}: C{mode}, C{url} (what the host pushed to; none for a
        patch, which the server serves), C{size} and C{sha256} of a patch;
      - C{workspace}: C{workspace};
      - C{prompt}: C{accepted}, after a verb C{prompt} (C{message} says why not);
      - C{exit}: C{exitCode}, or C{signal}, or C{error} when it was the host
        that failed.  The last one.
    """

    seq: int
    at: float
    kind: ReportKind
    state: HostState | None = None
    level: Level | None = None
    stream: str | None = None
    message: str | None = None
    label: str | None = None
    note: str | None = None
    provider: str | None = None
    snapshot: str | None = None
    mount: str | None = None
    mode: str | None = None
    url: str | None = None
    size: int | None = None
    sha256: str | None = None
    workspace: WorkspaceFacts | None = None
    accepted: bool | None = None
    exitCode: int | None = None
    signal: str | None = None
    error: str | None = None


class HostSession(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    What the host knows of a session: the truth.

    @ivar lastSeq: of its newest report, 0 before the first.
    """

    session: str
    state: HostState
    lastSeq: int
    exitCode: int | None = None
    signal: str | None = None
    error: str | None = None
    workspace: WorkspaceFacts | None = None


class SnapshotMade(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    A snapshot of a session's workspace.

    @ivar snapshot: what the provider calls it.
    @ivar mount: where it can be read on the host, if it can.
    """

    snapshot: str
    provider: str
    at: float
    mount: str | None = None


class HostHealth(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    What a runner host says of itself.

    @ivar slots: how many sessions it runs at once.
    @ivar running: how many it has now.
    @ivar agents: the types it can run; empty for whatever is asked.
    """

    os: str
    arch: str
    snapshotCapabilities: list[str]
    agents: list[str]
    runtimes: list[str]
    slots: int
    running: int
    version: str = ""
    host: str | None = None
    load: float | None = None
    reflink: bool | None = None


class Executor(Protocol):
    """
    One host that runs sessions.

    Each method may raise L{ExecutorUnreachable}; those that ask for something
    L{ExecutorRefused}.

    @ivar kind: C{"local"} or C{"synthetic"}.
    """

    kind: str

    async def launch(self, session: str, spec: LaunchSpec) -> None:
        """
        Have the session run.  The same spec again changes nothing.

        @raise ExecutorRefused: when this host cannot run it.
        """

    async def control(
        self, session: str, verb: Verb, *, deadline: float, prompt: Prompt | None = None
    ) -> None:
        """
        Ask for something; a report says when it happened.  Asking for what is
        under way or done already changes nothing.

        @param deadline: seconds until the host does it by force.
        @param prompt: for C{prompt}; one of a number that the host has taken changes
            nothing.
        @raise ExecutorRefused: for a session that is not there or has ended,
            and for what its state forbids.
        """

    def reports(self, session: str, after: int) -> AsyncIterator[Report]:
        """
        The reports from C{after + 1} on: those that are there, and then each
        as it happens.  Ends after the last one.
        """

    async def describe(self, session: str) -> HostSession | None:
        """The host's truth; C{None} for a session that it does not know."""

    async def sessions(self) -> list[HostSession]:
        """The same of every session that the host has."""

    async def acknowledge(self, session: str, seq: int) -> None:
        """
        Say that the reports up to C{seq} are stored.  A session whose last one is may be
        forgotten by a host that needs its room.
        """

    async def snapshot(self, session: str, label: str) -> SnapshotMade:
        """Keep the workspace as it is now."""

    async def upload(self, name: str, archive: IBodyProducer) -> str:
        """
        Have an archive on the host, for the workspace of a session to come.  The same
        name again replaces it.

        @return: what the spec's C{repo.uploadPath} says.
        @raise ExecutorRefused: when the host does not take it.
        """

    def patch(self, session: str) -> AsyncIterator[bytes]:
        """The work as a patch that C{git apply} takes, in pieces."""

    async def forget(self, session: str) -> None:
        """
        Kill what runs and remove all that is left, reports included.  Nothing
        happens for a session that is not there.
        """

    async def host(self) -> HostHealth:
        """How the host is."""
