# -*- test-case-name: tests.sessions.test_tasks -*-
"""
What a caller asks for with C{POST /api/v1/tasks}, and whether it can be.

The structs are the body as JSON.  That a field is missing or of another type is
told by whoever decodes them; L{validateTask} says what else is wrong: all of it at
once, by the field's dotted path.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

from helix_revdial.sessions.branch_names import branchProblem
from helix_revdial.sessions.lifecycle import STATES
from helix_revdial.sessions.redaction import MARK

MAX_PROMPT: Final = 64 * 1024
"""Characters of a prompt."""

MAX_LABELS: Final = 64

MAX_WEBHOOKS: Final = 10

WEBHOOK_EVENTS: Final = (
    "*",
    "session.*",
    *(f"session.{state}" for state in STATES),
    "session.delivery",
    "session.moment",
)
"""What webhooks may be told of."""

SNAPSHOT_PROVIDERS: Final = ("zfs", "btrfs", "overlay", "copy", "git", "agentfs")

_NAME = msgspec.Meta(min_length=1, max_length=128)
_PROJECT = msgspec.Meta(
    min_length=1,
    max_length=128,
    extra_json_schema={"pattern": r"^[^\u0000-\u001f\u007f-\u009f]*$"},
)
_URL = msgspec.Meta(max_length=2048)


class TaskRepo(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What the workspace starts with."""

    mode: Literal["git", "upload", "none"]
    url: Annotated[str, _URL] | None = None
    branch: Annotated[str, msgspec.Meta(max_length=255)] | None = None
    commit: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    uploadToken: Annotated[str, msgspec.Meta(max_length=200)] | None = None

    @staticmethod
    def needed(members: Mapping[str, object]) -> tuple[str, ...]:
        """What its mode needs, so that it is told with whatever else is wrong."""
        match members.get("mode"):
            case "git":
                return ("url",)
            case "upload":
                return ("uploadToken",)
            case _:
                return ()


class TaskResources(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """How much of the host it may use."""

    cpu: Annotated[int, msgspec.Meta(ge=1, le=4096)] | None = None
    memoryMiB: Annotated[int, msgspec.Meta(ge=16, le=64 * 1024 * 1024)] | None = None


class TaskRuntime(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Where the agent runs."""

    type: Literal["devcontainer", "local", "disabled"]
    devcontainerPath: Annotated[str, msgspec.Meta(max_length=1024)] | None = None
    resources: TaskResources | None = None


class TaskWorkspace(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """How and where its files are kept."""

    snapshotPreference: Annotated[list[str], msgspec.Meta(max_length=16)] = msgspec.field(
        default_factory=list
    )
    executionHostId: Annotated[str, _NAME] | None = None


class TaskAgent(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Who does it."""

    type: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    version: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] = "latest"
    settings: dict[str, Any] = msgspec.field(default_factory=dict)


class TaskDelivery(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What becomes of the work."""

    mode: Literal["pr", "branch", "patch"]
    targetBranch: Annotated[str, msgspec.Meta(max_length=255)] | None = None


class TaskWebhook(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Whom to tell of what."""

    event: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    url: Annotated[str, _URL]


class TaskRequest(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """
    A task.
    """

    prompt: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_PROMPT)]
    repo: TaskRepo
    runtime: TaskRuntime
    agent: TaskAgent
    tenantId: Annotated[str, _NAME] | None = None
    projectId: Annotated[str, _PROJECT] | None = None
    workspace: TaskWorkspace | None = None
    delivery: TaskDelivery | None = None
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    webhooks: list[TaskWebhook] = msgspec.field(default_factory=list)
    draftId: Annotated[str, msgspec.Meta(max_length=40)] | None = None


class TaskInvalid(ValueError):
    """
    The task cannot be.  HTTP answers 400.

    @ivar errors: per field, a dotted path, what is wrong with it.
    """

    def __init__(self, errors: Mapping[str, list[str]]) -> None:
        self.errors = dict(errors)
        super().__init__("; ".join(f"{name} {texts[0]}" for name, texts in self.errors.items()))


class TaskForbidden(Exception):
    """The task could be, and this server does not allow it.  HTTP answers 403."""


@dataclass(frozen=True, slots=True)
class TaskPolicy:
    """
    What this server takes.

    @ivar tenant: whose task it is.
    @ivar disabledRuntime: whether an agent may run without any sandbox.
    @ivar agentFaults: what is wrong with an agent, by field
        (L{Agents.faults<helix_revdial.sessions.agents.Agents.faults>}).
    @ivar hasExecutor: whether there is an executor of that id.
    @ivar webhookURL: what is wrong with a webhook's address; empty if nothing is.
    """

    tenant: str
    disabledRuntime: bool = False
    agentFaults: Callable[[TaskAgent], Mapping[str, list[str]]] = field(default=lambda agent: {})
    hasExecutor: Callable[[str], bool] = field(default=lambda executor: True)
    webhookURL: Callable[[str], str] = field(default=lambda url: "")


def validateTask(request: TaskRequest, policy: TaskPolicy) -> None:
    """
    Make sure that a task can be run here.

    @raise TaskInvalid: when it cannot; it says everything that is wrong.
    @raise TaskForbidden: when it is not allowed here.
    """
    errors: dict[str, list[str]] = {}

    def wrong(name: str, text: str) -> None:
        errors.setdefault(name, []).append(text)

    if not request.prompt.strip():
        wrong("prompt", "is empty")
    if request.tenantId is not None and request.tenantId != policy.tenant:
        wrong("tenantId", "is not the tenant of the token")
    for name, value in (("projectId", request.projectId), ("agent.version", request.agent.version)):
        if value is not None and _LINE.fullmatch(value) is None:
            wrong(name, "has control characters")
    _checkRepo(request, wrong)
    _checkRuntime(request, wrong)
    for name, texts in policy.agentFaults(request.agent).items():
        errors.setdefault(name, []).extend(texts)
    workspace = request.workspace or TaskWorkspace()
    for index, provider in enumerate(workspace.snapshotPreference):
        if provider not in SNAPSHOT_PROVIDERS:
            wrong(
                f"workspace.snapshotPreference[{index}]",
                f"is none of {', '.join(SNAPSHOT_PROVIDERS)}",
            )
    host = workspace.executionHostId
    if host is not None and not policy.hasExecutor(host):
        wrong("workspace.executionHostId", "names no runner of this server")
    if request.delivery is not None and request.delivery.targetBranch is not None:
        problem = branchProblem(request.delivery.targetBranch)
        if problem:
            wrong("delivery.targetBranch", problem)
    _checkLabels(request.labels, wrong)
    _checkWebhooks(request.webhooks, policy, wrong)
    if errors:
        raise TaskInvalid(errors)
    if request.runtime.type == "disabled" and not policy.disabledRuntime:
        raise TaskForbidden("This server runs no agent without a sandbox (runtime disabled).")


def gitURLProblem(url: str) -> str:
    """
    What is wrong with a repository's address; empty if nothing is.

    C{https}, C{http}, C{ssh} and C{git} addresses, and the form of scp:
    C{git@github.com:acme/x.git}.  What git would take for an option or for a
    command to run is none.
    """
    if _LINE.fullmatch(url) is None or " " in url:
        return "has spaces or control characters"
    if url.startswith("-"):
        return "begins with a dash"
    if "://" in url:
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError:
            return "is not a URL"
        if parts.scheme.lower() not in ("https", "http", "ssh", "git"):
            return "is no https, ssh or git address"
        host = parts.hostname or ""
        if not host or host.startswith("-") or _HOST.fullmatch(host) is None:
            return "has no host"
        if (parts.username or "").startswith("-"):
            return "has a user that begins with a dash"
        return "" if parts.path.strip("/") else "names no repository"
    # A remote helper ("ext::sh -c ...") runs what stands behind it.
    if "::" in url:
        return "is no https, ssh or git address"
    if _SCP.fullmatch(url) is None:
        return "is no https, ssh or git address, nor user@host:path"
    return ""


def withoutPassword(url: str) -> str:
    """A repository's address as it may be shown."""

    def hide(found: re.Match[str]) -> str:
        user, colon, _ = found[2].partition(":")
        if colon:
            return f"{found[1]}{user}:{MARK}@"
        # A name alone is a token in a web address, and a plain user in any other.
        return f"{found[1]}{MARK}@" if found[1].lower().startswith("http") else found[0]

    return _USERINFO.sub(hide, url)


def nameOf(prompt: str) -> str:
    """What a task is called: the first line of its prompt."""
    line = next((line for line in prompt.splitlines() if line.strip()), "task")
    line = CONTROL.sub(" ", line).strip() or "task"
    return line if len(line) <= 100 else line[:99] + "…"


CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""What no name has that is shown in a line."""

_LINE = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]*")
_HOST = re.compile(r"[A-Za-z0-9._\-]+|[0-9a-fA-F:.]+")
_SCP = re.compile(r"(?:[A-Za-z0-9_.][\w.\-]*@)?[A-Za-z0-9][A-Za-z0-9.\-]*:(?!-)[^:\s][^\s]*")
_COMMIT = re.compile(r"[0-9a-fA-F]{4,64}")
_USERINFO = re.compile(r"^([a-z][a-z0-9+.\-]*://)([^/@]*)@", re.IGNORECASE)

_Wrong = Callable[[str, str], None]


def _checkRepo(request: TaskRequest, wrong: _Wrong) -> None:
    repo = request.repo
    if repo.mode == "git":
        if not repo.url:
            wrong("repo.url", "is required")
        else:
            problem = gitURLProblem(repo.url)
            if problem:
                wrong("repo.url", problem)
    elif repo.url:
        wrong("repo.url", f"is not used with mode {repo.mode}")
    if repo.mode == "upload" and not repo.uploadToken:
        wrong("repo.uploadToken", "is required")
    if repo.branch:
        problem = branchProblem(repo.branch)
        if problem:
            wrong("repo.branch", problem)
    if repo.commit and _COMMIT.fullmatch(repo.commit) is None:
        wrong("repo.commit", "is no commit id: 4 to 64 hexadecimal digits")
    if request.delivery is not None and repo.mode == "none" and request.delivery.mode != "patch":
        wrong("delivery.mode", f"{request.delivery.mode} needs a git repository")


def _checkRuntime(request: TaskRequest, wrong: _Wrong) -> None:
    path = request.runtime.devcontainerPath
    if path is not None:
        if request.runtime.type != "devcontainer":
            wrong("runtime.devcontainerPath", "is for the runtime devcontainer")
        elif path.startswith("/") or ".." in path.split("/") or _LINE.fullmatch(path) is None:
            wrong("runtime.devcontainerPath", "is no path within the repository")


def _checkLabels(labels: Mapping[str, str], wrong: _Wrong) -> None:
    if len(labels) > MAX_LABELS:
        wrong("labels", f"are more than {MAX_LABELS}")
        return
    for name, value in labels.items():
        if not 1 <= len(name) <= 63 or _LINE.fullmatch(name) is None:
            wrong("labels", "have names of 1 to 63 characters without control characters")
        elif len(value) > 256 or _LINE.fullmatch(value) is None:
            wrong(f"labels.{name}", "has more than 256 characters, or control characters")


def _checkWebhooks(webhooks: list[TaskWebhook], policy: TaskPolicy, wrong: _Wrong) -> None:
    if len(webhooks) > MAX_WEBHOOKS:
        wrong("webhooks", f"are more than {MAX_WEBHOOKS}")
        return
    for index, webhook in enumerate(webhooks):
        if webhook.event not in WEBHOOK_EVENTS:
            wrong(f"webhooks[{index}].event", f"is none of {', '.join(WEBHOOK_EVENTS)}")
        try:
            parts = urlsplit(webhook.url)
            plain = parts.scheme in ("http", "https") and bool(parts.hostname)
            plain = plain and _LINE.fullmatch(webhook.url) is not None
            named = parts.username is not None or parts.password is not None
        except ValueError:
            plain = named = False
        if not plain:
            problem = "is no http or https address"
        elif named:
            # Where it is shown it would be a secret in a URL.
            problem = "has a user or a password"
        else:
            problem = policy.webhookURL(webhook.url)
        if problem:
            wrong(f"webhooks[{index}].url", problem)
