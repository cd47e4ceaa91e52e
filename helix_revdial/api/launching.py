# -*- test-case-name: tests.api.test_tasks -*-
"""
What a runner host is told of a session, and what ends with it.

A session gets a token of its own when it is launched: by it its desktop and its
tunnel agent register.  The token ends with the session.
"""

from __future__ import annotations

from collections.abc import Callable

from helix_revdial.access.tokens import Tokens
from helix_revdial.sessions.agents import Agents
from helix_revdial.sessions.executor import (
    DeliverySpec,
    LaunchSpec,
    RepoSpec,
    Resources,
    RuntimeSpec,
    SandboxSpec,
    SnapshotSource,
)
from helix_revdial.sessions.executors import Executors
from helix_revdial.sessions.records import Session
from helix_revdial.sessions.run import LaunchImpossible
from helix_revdial.sessions.uploads import ArchiveGone, Uploads


class Launching:
    """
    Prepares launches.
    """

    def __init__(
        self,
        tokens: Tokens,
        agents: Callable[[], Agents],
        serverURL: Callable[[], str | None],
        uploads: Uploads,
        executors: Executors,
    ) -> None:
        """
        @param agents: The agents of now.
        @param serverURL: Where a session's own agent reaches the server; C{None}:
            sessions get no tunnel.
        @param uploads: Where their archives are.
        @param executors: Where their archives go.
        """
        self._tokens = tokens
        self._agents = agents
        self._serverURL = serverURL
        self._uploads = uploads
        self._executors = executors

    async def prepare(self, session: Session) -> LaunchSpec:
        """
        Make what a host is told.

        @raise LaunchImpossible: The agent is not declared any more, or the archive of
            its upload is not there.
        """
        request = session.request
        try:
            agent = self._agents().spec(
                request.agent.type, request.agent.version, request.agent.settings
            )
        except KeyError:
            raise LaunchImpossible(
                f"the agent {request.agent.type} is not declared on this server any more"
            ) from None
        resources = request.runtime.resources
        delivery = request.delivery
        return LaunchSpec(
            session=session.id,
            prompt=request.prompt,
            agent=agent,
            repo=RepoSpec(
                request.repo.mode,
                request.repo.url,
                request.repo.branch,
                request.repo.commit,
                await self._archive(session),
            ),
            runtime=RuntimeSpec(
                request.runtime.type,
                request.runtime.devcontainerPath,
                None if resources is None else Resources(resources.cpu, resources.memoryMiB),
            ),
            snapshotPreference=(
                [] if request.workspace is None else request.workspace.snapshotPreference
            ),
            delivery=(
                None if delivery is None else DeliverySpec(delivery.mode, delivery.targetBranch)
            ),
            sandbox=await self._sandbox(session),
            fromSnapshot=_beginning(session),
        )

    async def _archive(self, session: Session) -> str | None:
        """Have the archive that a session begins with on its host: where it is there."""
        if session.request.repo.mode != "upload" or session.branchSnapshot is not None:
            return None
        try:
            archive = await self._uploads.open(session.id)
        except ArchiveGone as error:
            raise LaunchImpossible(str(error)) from None
        return await self._executors.reach(session.executor).upload(archive.name, archive)

    async def _sandbox(self, session: Session) -> SandboxSpec | None:
        server = self._serverURL()
        if server is None:
            return None
        # What an earlier try to launch it was given is worth nothing any more.
        await self._tokens.revokeSession(session.id)
        _, secret = await self._tokens.create(
            "session",
            name=f"launch of {session.id}",
            tenant=session.tenant,
            user=session.owner,
            session=session.id,
        )
        return SandboxSpec(server, secret)

    async def ended(self, session: Session) -> None:
        """A session has ended: so does what it was given."""
        await self._tokens.revokeSession(session.id)
        if session.request.repo.mode == "upload":
            await self._uploads.release(session.id)


def _beginning(session: Session) -> SnapshotSource | None:
    """What a branch begins with."""
    if session.branchOf is None or session.branchSnapshot is None:
        return None
    return SnapshotSource(session.branchOf, session.branchSnapshot["name"])
