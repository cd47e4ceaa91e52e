# -*- test-case-name: tests.test_config -*-
"""
The server's settings: file, environment and flags into one typed value.

The later wins: defaults, then one TOML file, then environment variables, then
flags.  The names are the same everywhere: C{grace_period} in C{[tunnel]} of
the file is C{HELIX_REVDIAL_TUNNEL_GRACE_PERIOD} in the environment and
C{--set tunnel.grace_period=…} on the command line.

A key that is not known, or a value of the wrong kind, is refused with the
place where it stands.  Nothing here opens a socket, reads a secret or touches
the database; secrets are named by the files that hold them, never held.
"""

from __future__ import annotations

from .callers import (
    AccessSection,
    ClientCertificateSection,
    IssuerSection,
    RateLimitsSection,
    RateOverrideSection,
)
from .doors import HttpSection, LimitsSection, ListenSection, ProxySection, TLSSection
from .reading import PREFIX, ConfigError, load
from .server import (
    DrainSection,
    LoggingSection,
    MetricsSection,
    ServerConfig,
    ServerSection,
    TracingSection,
)
from .tunnels import (
    DesktopSection,
    ForwardSection,
    ForwardsSection,
    GatewaysSection,
    LivenessSection,
    PoolSection,
    TunnelSection,
)
from .work import (
    AgentSection,
    AgentsSection,
    EventsSection,
    GitSection,
    RetentionSection,
    SessionsSection,
    UploadsSection,
    WebhooksSection,
)

RUNNER_TOKEN_VARIABLE = "RUNNER_TOKEN"  # noqa: S105 (the variable's name)
"""Where the existing Go control plane keeps its one runner token."""

__all__ = [
    "PREFIX",
    "RUNNER_TOKEN_VARIABLE",
    "AccessSection",
    "AgentSection",
    "AgentsSection",
    "ClientCertificateSection",
    "ConfigError",
    "DesktopSection",
    "DrainSection",
    "EventsSection",
    "ForwardSection",
    "ForwardsSection",
    "GatewaysSection",
    "GitSection",
    "HttpSection",
    "IssuerSection",
    "LimitsSection",
    "ListenSection",
    "LivenessSection",
    "LoggingSection",
    "MetricsSection",
    "PoolSection",
    "ProxySection",
    "RateLimitsSection",
    "RateOverrideSection",
    "RetentionSection",
    "ServerConfig",
    "ServerSection",
    "SessionsSection",
    "TLSSection",
    "TracingSection",
    "TunnelSection",
    "UploadsSection",
    "WebhooksSection",
    "load",
]
