# -*- test-case-name: tests.cli.test_task_request -*-
"""
What C{helix task} asks for, as the API takes it, from what its flags say.

Nothing is sent and no file is read here, except a setting's C{@FILE}.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import click

from helix_revdial.cli.checkout import Checkout
from helix_revdial.cli.edge import plain
from helix_revdial.cli.exit_codes import RepositoryError
from helix_revdial.cli.profile import secretFromFile

BRANCH = re.compile(r"[A-Za-z0-9._-]+")
"""What the C{BRANCH} of a task can be."""

MAX_INSTANCES = 100
"""Tasks that one command makes at most."""

Agents = Sequence[tuple[str, int]]
"""Each C{TYPE} or C{TYPE@VERSION}, and how many tasks it gets."""


def pairs(texts: Sequence[str], flag: str) -> dict[str, str]:
    """
    What was given as C{name=value}; the last one of a name holds.

    @raise click.UsageError: One is none.
    """
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise click.UsageError(f"{flag}: expected NAME=VALUE, not {plain(text, 60)!r}")
        found[name.strip()] = value
    return found


def settingsOf(given: Mapping[str, str], schema: Mapping[str, Any]) -> dict[str, Any]:
    """
    An agent's settings.

    C{@FILE} is the file's one line, for what is secret; C{@@} begins a value with an C{@}.
    What the schema says is a string is one; otherwise what is JSON is read as that.

    @param schema: Of the agent's settings (JSON Schema).
    @raise SettingsError: A file cannot be read.
    """
    known = schema.get("properties")
    properties: Mapping[str, Any] = known if isinstance(known, dict) else {}
    return {name: _setting(name, text, properties.get(name)) for name, text in given.items()}


def _setting(name: str, text: str, schema: Any) -> Any:
    if text.startswith("@@"):
        return text[1:]
    if text.startswith("@"):
        return secretFromFile(text[1:], f"--setting {name}")
    kind = schema.get("type") if isinstance(schema, dict) else None
    if kind == "string":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def webhooksOf(given: Sequence[str]) -> list[dict[str, str]]:
    """
    Webhooks: C{URL}, which is told that the session is completed, or C{EVENT=URL}.
    """
    found = []
    for text in given:
        match = re.match(r"([a-z.*]+)=(?=https?://)", text)
        event = match[1] if match else "session.completed"
        found.append({"event": event, "url": text[match.end() :] if match else text})
    return found


def pushed(delivery: str | None, push: bool | None) -> str | None:
    """
    What becomes of the work, by C{--delivery} and C{--push-to-remote}.

    @raise click.UsageError: They contradict each other.
    """
    if push is None:
        return delivery
    if delivery is not None and push is (delivery == "patch"):
        raise click.UsageError(
            f"--delivery {delivery} {'pushes nothing' if push else 'pushes the work'}: "
            "--push-to-remote says otherwise"
        )
    return delivery or ("branch" if push else "patch")


def taskRequest(
    *,
    prompt: str,
    repository: Checkout,
    branch: str | None,
    agent: str,
    settings: Mapping[str, Any],
    labels: Mapping[str, str],
    delivery: str | None,
    workBranch: str | None,
    targetBranch: str | None,
    runtime: str | None,
    devcontainer: str | None,
    cpu: int | None,
    memory: int | None,
    host: str | None,
    snapshots: Sequence[str],
    project: str | None,
    webhooks: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
    """
    The body of C{POST /api/v1/tasks}.

    @param branch: What is worked on, instead of the checkout's branch.
    @param workBranch: The branch that the work is pushed to.
    @raise click.UsageError: The flags contradict each other.
    @raise RepositoryError: The work is to go to a repository, and there is none.
    """
    if workBranch is not None:
        if BRANCH.fullmatch(workBranch) is None:
            raise click.UsageError(
                f"BRANCH: {plain(workBranch, 60)!r} has more than letters, digits, '.', '_' and '-'"
            )
        if delivery not in (None, "branch"):
            raise click.UsageError(
                f"BRANCH is where the work is pushed with --delivery branch, not with {delivery}"
            )
        if targetBranch not in (None, workBranch):
            raise click.UsageError("BRANCH and --target-branch name different branches")
        delivery, targetBranch = "branch", workBranch
    if delivery is None:
        delivery = "patch" if targetBranch is None else "pr"
    if delivery == "patch" and targetBranch is not None:
        raise click.UsageError("--target-branch is for --delivery pr and branch")
    if runtime is None:
        runtime = "local" if devcontainer is None else "devcontainer"
    resources = _without(cpu=cpu, memoryMiB=memory)
    kind, _, version = agent.partition("@")
    repo: dict[str, Any] = {"mode": "none"}
    if repository.url is not None:
        repo = _without(
            mode="git",
            url=repository.url,
            branch=branch or repository.branch,
            commit=None if branch else repository.commit,
        )
    elif branch is not None:
        raise click.UsageError("--branch is of a repository: give --repo")
    elif delivery != "patch":
        raise RepositoryError(
            "the work is to be pushed, and there is no repository: run this in a checkout, or "
            "give --repo"
        )
    return _without(
        prompt=prompt,
        projectId=project,
        repo=repo,
        runtime=_without(type=runtime, devcontainerPath=devcontainer, resources=resources or None),
        workspace=_without(snapshotPreference=list(snapshots) or None, executionHostId=host)
        or None,
        agent=_without(type=kind, version=version or None, settings=dict(settings) or None),
        delivery=_without(mode=delivery, targetBranch=targetBranch),
        labels=dict(labels) or None,
        webhooks=[dict(one) for one in webhooks] or None,
    )


def _without(**fields: Any) -> dict[str, Any]:
    """The fields that there are."""
    return {name: value for name, value in fields.items() if value is not None}


__all__ = [
    "BRANCH",
    "MAX_INSTANCES",
    "Agents",
    "pairs",
    "pushed",
    "settingsOf",
    "taskRequest",
    "webhooksOf",
]
