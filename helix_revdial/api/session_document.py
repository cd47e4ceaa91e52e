# -*- test-case-name: tests.api.test_tasks -*-
"""
A session as callers see it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from helix_revdial.sessions.records import Session
from helix_revdial.sessions.redaction import MARK, Redactor, secretsOf
from helix_revdial.sessions.tasks import TaskRequest, withoutPassword
from helix_revdial.telemetry.timestamps import timestamp

PATH = "/api/v1/sessions"


class Links(msgspec.Struct, omit_defaults=True):
    """Where there is more; C{delivery} where a branch or a pull request was made."""

    self: str
    events: str
    logs: str
    timeline: str | None = None
    recording: str | None = None
    patch: str | None = None
    delivery: str | None = None


class RecordingPart(msgspec.Struct):
    """A session's output as it appeared on a terminal."""

    format: str
    uri: str


class TaskPart(msgspec.Struct):
    """What is to be done."""

    prompt: str
    labels: dict[str, str]
    attachments: list[dict[str, Any]] = msgspec.field(default_factory=list)


class AgentPart(msgspec.Struct):
    """Who does it; of secret settings only that they are set."""

    type: str
    version: str
    settings: dict[str, Any]


class WorkspaceDocument(msgspec.Struct, omit_defaults=True):
    """Where its files are."""

    snapshotProvider: str
    mountPath: str
    host: str | None = None
    hostPath: str | None = None
    devcontainerDetails: dict[str, Any] | None = None
    executionHostId: str | None = None


class VcsPart(msgspec.Struct, omit_defaults=True):
    """What it works on."""

    repoUrl: str | None = None
    branch: str | None = None
    commit: str | None = None
    delivery: dict[str, Any] | None = None


class SessionDocument(msgspec.Struct, omit_defaults=True):
    """One session: a task, or a sandbox that somebody else runs."""

    id: str
    kind: str
    tenant: str
    tenantId: str
    owner: str
    name: str
    status: str
    created: str
    createdAt: str
    updatedAt: str
    links: Links
    projectId: str | None = None
    task: TaskPart | None = None
    agent: AgentPart | None = None
    runtime: dict[str, Any] | None = None
    workspace: WorkspaceDocument | None = None
    vcs: VcsPart | None = None
    prompt: str | None = None
    repo: dict[str, Any] | None = None
    delivery: dict[str, Any] | None = None
    startedAt: str | None = None
    endedAt: str | None = None
    exitCode: int | None = None
    error: str | None = None
    lastSeq: int | None = None
    sessionBranchOf: str | None = None
    recording: RecordingPart | None = None
    sessionTimeline: str | None = None


def linksOf(session: str) -> Links:
    """Where a session's own pages are."""
    path = f"{PATH}/{session}"
    return Links(path, f"{path}/events", f"{path}/logs")


def recordingOf(session: str) -> RecordingPart:
    """Where a session's recording is."""
    return RecordingPart("cast", f"{PATH}/{session}/recording")


def workspaceOf(session: Session) -> WorkspaceDocument | None:
    """A session's workspace, once it has one."""
    if session.workspace is None:
        return None
    return msgspec.convert(
        {**session.workspace, "executionHostId": session.executor}, WorkspaceDocument
    )


def documentOf(session: Session, secretSettings: Collection[str] = ()) -> SessionDocument:
    """
    Write a session.

    @param secretSettings: The names of its agent's settings that are secret.
    """
    created = timestamp(session.created)
    same = session.updated in (None, session.created)
    document = SessionDocument(
        id=session.id,
        kind=session.kind,
        tenant=session.tenant,
        tenantId=session.tenant,
        owner=session.owner,
        name=session.name,
        status=session.status,
        created=created,
        createdAt=created,
        updatedAt=created if same else timestamp(session.updated or session.created),
        links=linksOf(session.id),
        projectId=session.project,
    )
    if session.kind == "task":
        _addTask(document, session, session.request, secretSettings)
    return document


def _addTask(
    document: SessionDocument,
    session: Session,
    request: TaskRequest,
    secretSettings: Collection[str],
) -> None:
    redactor = Redactor(secretsOf(session.spec or {}, secretSettings))
    settings = redactor.value(
        {
            name: MARK if name in secretSettings else value
            for name, value in request.agent.settings.items()
        }
    )
    labels = {redactor.text(name): redactor.text(one) for name, one in request.labels.items()}
    document.task = TaskPart(redactor.text(request.prompt), labels)
    document.prompt = document.task.prompt
    document.agent = AgentPart(request.agent.type, request.agent.version, settings)
    document.runtime = msgspec.to_builtins(request.runtime)
    document.workspace = workspaceOf(session)
    url = request.repo.url and withoutPassword(request.repo.url)
    # What was asked for, and then what was done.
    asked = {} if request.delivery is None else msgspec.to_builtins(request.delivery)
    document.delivery = {**asked, **(session.delivery or {})} or None
    document.vcs = VcsPart(url, request.repo.branch, request.repo.commit, document.delivery)
    document.repo = {
        name: value
        for name, value in (
            ("mode", request.repo.mode),
            ("url", url),
            ("branch", request.repo.branch),
            ("commit", request.repo.commit),
        )
        if value is not None
    }
    document.startedAt = None if session.started is None else timestamp(session.started)
    document.endedAt = None if session.ended is None else timestamp(session.ended)
    document.exitCode = session.exitCode
    document.error = None if session.error is None else redactor.text(session.error)
    document.lastSeq = session.lastSeq
    document.sessionBranchOf = session.branchOf
    document.recording = recordingOf(session.id)
    document.sessionTimeline = f"{PATH}/{session.id}/timeline"
    document.links.timeline = document.sessionTimeline
    document.links.recording = document.recording.uri
    if session.delivery is not None:
        url = session.delivery.get("url")
        if session.delivery.get("mode") == "patch":
            document.links.patch = url
        else:
            document.links.delivery = url
