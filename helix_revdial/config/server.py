# -*- test-case-name: tests.test_config -*-
"""
The process: where its state is, how it leaves, what it tells of itself.

And L{ServerConfig}, all sections together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from .callers import AccessSection, RateLimitsSection
from .doors import HttpSection, LimitsSection, ListenSection
from .kinds import Section, snake
from .tunnels import (
    DesktopSection,
    ForwardsSection,
    GatewaysSection,
    LivenessSection,
    PoolSection,
    TunnelSection,
)
from .work import (
    AgentsSection,
    EventsSection,
    GitSection,
    RetentionSection,
    SessionsSection,
    UploadsSection,
    WebhooksSection,
)


class ServerSection(Section, frozen=True, rename=snake):
    """Where the server keeps what must outlive it."""

    stateDirectory: str = "/var/lib/helix-revdial"
    """Directory for the database (SQLite) and the first admin token."""

    database: str | None = None
    """SQLAlchemy URL; without it, C{helix.sqlite} in the state directory."""

    databaseThreads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 5
    """Threads of the database pool: queries at once."""


class DrainSection(Section, frozen=True, rename=snake):
    """How the server leaves when it is told to stop."""

    timeout: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 30.0
    """Seconds that requests and streams under way have to finish; 0 cuts them at once."""

    keepConnections: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 0
    """
    Control connections on plain sockets that systemd keeps over a restart; the unit's
    C{FileDescriptorStoreMax} has to be higher.
    """


class MetricsSection(Section, frozen=True, rename=snake):
    """Metrics for Prometheus, on a door of their own that asks nobody who he is."""

    listen: str | None = None
    """A Twisted server endpoint string; without it there is no such door."""

    runnerLabels: bool = False
    """Whether runners have metrics of their own, with their keys for labels."""


class LoggingSection(Section, frozen=True, rename=snake):
    """The log on standard output."""

    format: Literal["text", "json"] = "text"
    """C{json}: one JSON object a line."""

    level: Literal["debug", "info", "warn", "error", "critical"] = "info"
    """What is below it is left out."""

    streams: bool = True
    """Whether each dial gets a line when it, and its stream, are over."""


class TracingSection(Section, frozen=True, rename=snake):
    """Spans for OpenTelemetry."""

    otlp: bool = False
    """Whether they are sent (by OTLP over HTTP; the C{OTEL_} variables say where to)."""


class ServerConfig(Section, frozen=True, rename=snake):
    """All the settings of C{twistd helix-revdial-server}."""

    server: ServerSection = ServerSection()
    listen: tuple[ListenSection, ...] = (ListenSection(),)
    tunnel: TunnelSection = TunnelSection()
    http: HttpSection = HttpSection()
    liveness: LivenessSection = LivenessSection()
    pool: PoolSection = PoolSection()
    limits: LimitsSection = LimitsSection()
    gateways: GatewaysSection = GatewaysSection()
    events: EventsSection = EventsSection()
    rateLimits: RateLimitsSection = RateLimitsSection()
    forwards: ForwardsSection = ForwardsSection()
    desktop: DesktopSection = DesktopSection()
    agents: AgentsSection = AgentsSection()
    sessions: SessionsSection = SessionsSection()
    git: GitSection = GitSection()
    uploads: UploadsSection = UploadsSection()
    webhooks: WebhooksSection = WebhooksSection()
    retention: RetentionSection = RetentionSection()
    drain: DrainSection = DrainSection()
    access: AccessSection = AccessSection()
    metrics: MetricsSection = MetricsSection()
    logging: LoggingSection = LoggingSection()
    tracing: TracingSection = TracingSection()

    @property
    def databaseURL(self) -> str:
        """The database to use, with the default made from the state directory."""
        if self.server.database is not None:
            return self.server.database
        return "sqlite:///" + str(Path(self.server.stateDirectory, "helix.sqlite").absolute())

    @property
    def uploadsPath(self) -> Path:
        """Where uploads are kept."""
        if self.uploads.directory is not None:
            return Path(self.uploads.directory)
        return Path(self.server.stateDirectory, "uploads")

    @property
    def patchesPath(self) -> Path:
        """Where copies of patches are kept."""
        return Path(self.server.stateDirectory, "patches")

    @property
    def adminTokenPath(self) -> Path:
        """Where the first admin token is written."""
        if self.access.adminTokenFile is not None:
            return Path(self.access.adminTokenFile)
        return Path(self.server.stateDirectory, "admin.token")
