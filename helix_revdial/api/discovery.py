# -*- test-case-name: tests.api.test_discovery -*-
"""
What there is to ask for: agents and their settings, projects, repositories,
and the branches of a repository.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from helix_revdial.api.authority import asking
from helix_revdial.api.services import Services
from helix_revdial.http.operations import Call, Operation
from helix_revdial.http.problem import Problem, validationProblem
from helix_revdial.programs import ProgramError, ProgramTimedOut, TooBusy
from helix_revdial.sessions.agents import Agent
from helix_revdial.sessions.git_refs import MAX_URL, RemoteFailed, RemoteRefused
from helix_revdial.telemetry.timestamps import timestamp

SCHEMAS = "/api/v1/schemas/agents"


class AgentDocument(msgspec.Struct, rename="camel"):
    """An agent that tasks may ask for; its settings keep to the schema."""

    type: str
    versions: list[str]
    settingsSchemaRef: str


class AgentList(msgspec.Struct):
    """Every agent, by type."""

    items: list[AgentDocument]
    total: int


class ProjectDocument(msgspec.Struct, rename="camel", omit_defaults=True):
    """A project that tasks have named."""

    id: str
    displayName: str
    lastUsedAt: str | None = None


class ProjectList(msgspec.Struct):
    """The tenant's projects, a thousand at most, the one that was used last first."""

    items: list[ProjectDocument]
    total: int


class RepositoryDocument(msgspec.Struct, rename="camel", omit_defaults=True):
    """A repository that tasks have named."""

    id: str
    displayName: str
    scmProvider: str
    remoteUrl: str
    defaultBranch: str | None = None
    projectId: str | None = None
    lastUsedAt: str | None = None


class RepositoryList(msgspec.Struct):
    """The tenant's repositories, a thousand at most, the one that was used last first."""

    items: list[RepositoryDocument]
    total: int


class OfProject(msgspec.Struct, rename="camel"):
    """Which repositories."""

    projectId: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None


class Repository(msgspec.Struct):
    """Whose branches."""

    url: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_URL)]


class RefDocument(msgspec.Struct):
    """A branch or a tag, and its commit."""

    name: str
    type: str
    sha: str


class RefsDocument(msgspec.Struct, rename="camel", omit_defaults=True):
    """What a repository has, as of C{cachedAt}."""

    url: str
    refs: list[RefDocument]
    cachedAt: str
    defaultBranch: str | None = None


def operations(services: Services) -> list[Operation]:
    """Agents, their schemas, projects, repositories, and references."""

    async def listAgents(call: Call) -> AgentList:
        items = [_agent(agent) for agent in services.agents]
        return AgentList(items, len(items))

    async def getSchema(call: Call) -> dict[str, Any]:
        name = call.params["agent"]
        agent = services.agents.get(name.removesuffix(".json"))
        if agent is None:
            raise Problem(404, f"There is no agent {name}.", code="unknown-agent")
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": f"Settings of {agent.type}",
            **agent.schema,
        }

    async def listProjects(call: Call) -> ProjectList:
        principal = asking(call)
        found = await services.catalogue.projects(tenant=principal.tenant, only=principal.project)
        return ProjectList(
            [ProjectDocument(one.id, one.name, _time(one.lastUsed)) for one in found], len(found)
        )

    async def listRepositories(call: Call) -> RepositoryList:
        principal = asking(call)
        project = call.query.projectId
        if principal.project is not None:
            if project not in (None, principal.project):
                return RepositoryList([], 0)
            project = principal.project
        found = await services.catalogue.repositories(tenant=principal.tenant, project=project)
        return RepositoryList(
            [
                RepositoryDocument(
                    one.id,
                    one.name,
                    one.provider,
                    one.url,
                    one.branch,
                    one.project,
                    _time(one.lastUsed),
                )
                for one in found
            ],
            len(found),
        )

    async def listRefs(call: Call) -> RefsDocument:
        if services.gitRefs is None:
            raise Problem(501, "This server does not look at repositories.")
        try:
            found = await services.gitRefs.of(call.query.url)
        except RemoteRefused as refused:
            raise validationProblem({"url": [str(refused)]}) from None
        except RemoteFailed as failed:
            raise Problem(502, f"{_sentence(failed)}.", code="repository-failed") from None
        except ProgramTimedOut as late:
            raise Problem(504, f"{_sentence(late)}.", code="repository-timed-out") from None
        except TooBusy as busy:
            retry = (b"Retry-After", str(busy.retryAfter).encode("ascii"))
            raise Problem(503, f"{_sentence(busy)}.", headers=[retry]) from None
        except ProgramError as error:
            raise Problem(501, f"{_sentence(error)}.") from None
        return RefsDocument(
            found.url,
            [RefDocument(ref.name, ref.type, ref.sha) for ref in found.refs],
            timestamp(found.at),
            found.default,
        )

    return [
        Operation(
            name="listAgents",
            method="GET",
            path="/api/v1/agents",
            run=listAgents,
            access="viewer",
            response=AgentList,
            errors=(401, 403),
            summary="The agents that tasks may ask for.",
            tags=("discovery",),
        ),
        Operation(
            name="getAgentSchema",
            method="GET",
            path=SCHEMAS + "/{agent}",
            run=getSchema,
            access="viewer",
            response=dict[str, Any],
            errors=(401, 403, 404),
            summary="The JSON Schema of an agent's settings; the name may end in .json.",
            tags=("discovery",),
        ),
        Operation(
            name="listProjects",
            method="GET",
            path="/api/v1/projects",
            run=listProjects,
            access="viewer",
            response=ProjectList,
            errors=(401, 403),
            summary="The projects that the tenant's tasks have named.",
            tags=("discovery",),
        ),
        Operation(
            name="listRepositories",
            method="GET",
            path="/api/v1/repos",
            run=listRepositories,
            access="viewer",
            query=OfProject,
            response=RepositoryList,
            errors=(400, 401, 403),
            summary="The repositories that the tenant's tasks have named.",
            tags=("discovery",),
        ),
        Operation(
            name="listRefs",
            method="GET",
            path="/api/v1/git/refs",
            run=listRefs,
            access="operator",
            query=Repository,
            response=RefsDocument,
            errors=(400, 401, 403, 501, 502, 503, 504),
            summary="The branches and tags of a repository, asked at most once a minute.",
            tags=("discovery",),
        ),
    ]


def _agent(agent: Agent) -> AgentDocument:
    return AgentDocument(agent.type, list(agent.versions), f"{SCHEMAS}/{agent.type}.json")


def _time(at: float | None) -> str | None:
    return None if at is None else timestamp(at)


def _sentence(error: Exception) -> str:
    text = str(error)
    return text[:1].upper() + text[1:]
