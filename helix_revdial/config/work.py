# -*- test-case-name: tests.test_config -*-
"""Tasks and sessions, and what is told and kept of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from .kinds import Count, Days, Seconds, Section, Size, snake


class AgentSection(Section, frozen=True, rename=snake):
    """An agent that tasks may ask for."""

    type: str
    """What tasks call it."""

    command: tuple[str, ...]
    """Its command line; C{{prompt}}, C{{workspace}} and the like are filled in on the host."""

    versions: tuple[str, ...] = ("latest",)
    """Those that may be asked for, the newest first."""

    environment: dict[str, str] = {}
    """What is added to its environment."""

    schema: dict[str, Any] = msgspec.field(
        default_factory=lambda: {"type": "object", "properties": {}}
    )
    """JSON Schema of its settings."""

    prompts: Literal["none", "input", "files"] = "none"
    """
    How it takes prompts while it runs: not at all, as lines on standard input, or as new
    files in the directory that C{HELIX_PROMPTS} names.
    """


class AgentsSection(Section, frozen=True, rename=snake):
    """The agents that tasks may ask for."""

    demonstration: bool = True
    """Whether the scripted agent that comes with the project is among them."""

    agent: tuple[AgentSection, ...] = ()
    """The others."""


class SessionsSection(Section, frozen=True, rename=snake):
    """Tasks, and who runs them."""

    serverUrl: str | None = None
    """Where a task's own sandbox reaches this server; without it none has a tunnel."""

    allowDisabledRuntime: bool = False
    """Whether an agent may run on a host without any sandbox."""

    stopDeadline: Seconds = 10.0
    """Seconds from the wish that a task stops to its end by force."""

    unreachableLimit: Seconds = 900.0
    """Seconds that a host may be away before its tasks have failed."""

    heartbeat: Seconds = 5.0
    """Seconds between two questions to a host how it is."""

    patchBytes: Size = 256 * 1024**2
    """Bytes of a patch of which the server keeps a copy."""

    patchQuota: Size = 10 * 1024**3
    """Bytes of all copies of patches; the oldest make room."""

    patchRetention: Annotated[float, msgspec.Meta(gt=0, le=3650)] = 30.0
    """Days for which they are kept."""

    recordingBytes: Size = 64 * 1024**2
    """Bytes of a session's output as a recording; what is beyond is left out of it."""

    synthetic: bool = False
    """Whether there is a host that only pretends to run tasks."""

    syntheticSpeed: Annotated[float, msgspec.Meta(gt=0, le=10_000)] = 1.0
    """How many times faster than life it does."""


class GitSection(Section, frozen=True, rename=snake):
    """How the server itself looks at repositories."""

    allow: tuple[str, ...] = ()
    """Networks and addresses that are not public and may be reached."""

    sshKey: str | None = None
    """File of the private key for ssh."""

    knownHosts: str | None = None
    """File of the hosts' keys for ssh; without it any key is taken."""

    caFile: str | None = None
    """PEM file of the authorities for https, instead of the system's."""


class UploadsSection(Section, frozen=True, rename=snake):
    """Archives that users send for their tasks."""

    directory: str | None = None
    """Where they are kept; C{uploads} in the state directory. One server's own."""

    maxBytes: Size = 1024**3
    """Of one archive."""

    tenantBytes: Size = 10 * 1024**3
    """Of all archives of a tenant that are promised or here."""

    lifetime: Seconds = 3600.0
    """Seconds in which one has to be sent, and then again in which it has to be used."""

    atOnce: Count = 16
    """Archives that are received at one time."""


class EventsSection(Section, frozen=True, rename=snake):
    """Server-sent events."""

    heartbeat: Annotated[float, msgspec.Meta(ge=0.1, le=3600)] = 15.0
    """Seconds between two signs of life on a stream of events."""

    queueBytes: Annotated[int, msgspec.Meta(ge=4096, le=2**30)] = 1024 * 1024
    """Bytes that wait for one client; one that would have more is closed, and resumes."""


class WebhooksSection(Section, frozen=True, rename=snake):
    """Telling other servers what happens to sessions."""

    allow: tuple[str, ...] = ()
    """Networks and addresses that are not public and may be told."""

    caFile: str | None = None
    """PEM file of the authorities for https, instead of the system's."""

    timeout: Annotated[float, msgspec.Meta(gt=0, le=60)] = 10.0
    """Seconds for one attempt, from the name to the answer."""

    giveUpAfter: Seconds = 86_400.0
    """Seconds after which nobody is told any more what he could not be told."""

    atOnce: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 32
    """Attempts at one time; a quarter of them for one tenant."""

    perTarget: Annotated[int, msgspec.Meta(ge=1, le=100)] = 4
    """Attempts at one time to one server; one while it does not answer as it should."""


class RetentionSection(Section, frozen=True, rename=snake):
    """How long is kept what is over. 0: for ever."""

    eventDays: Days = 90.0
    """Days for which the events and the log of a session are kept after its end."""

    eventsPerSession: Annotated[int, msgspec.Meta(ge=0, le=100_000_000)] = 100_000
    """Events that are kept of a session that has ended: the last ones."""

    sessionDays: Days = 0.0
    """Days after its end, or its deletion, at which a session is removed with all it left."""

    deliveryDays: Days = 30.0
    """Days for which it is kept what webhooks were told, or could not be told."""

    interval: Seconds = 300.0
    """Seconds between two looks for what is over its time."""
