# -*- test-case-name: tests.test_config -*-
"""Tunnels to agents, and the ways through them."""

from __future__ import annotations

from typing import Annotated

import msgspec

from .kinds import Count, Seconds, Section, Size, snake


class TunnelSection(Section, frozen=True, rename=snake):
    """The rules of control connections and dials."""

    gracePeriod: Seconds = 30.0
    """Seconds for which a lost runner keeps its name and its waiting dials."""

    maxPendingDials: Count = 100
    """Dials that may wait for one runner, connected or not."""

    dialTimeout: Seconds = 20.0
    """Seconds within which a connected agent must dial back."""

    maxRunners: Count = 10_000
    """Runner keys that may be connected or in grace at once."""

    requireFeatures: tuple[str, ...] = ()
    """Feature words without which an agent is refused, such as C{["tickets"]}."""

    zeroKey: bool = False
    """Whether agents that ask for it may mask what they send in bulk with a zero key."""


class LivenessSection(Section, frozen=True, rename=snake):
    """How the server finds out that an agent is gone, and when it may say so."""

    keepAlive: Seconds = 15.0
    """Seconds between questions that an agent has to answer."""

    silence: Seconds = 40.0
    """Seconds without an answer after which an agent is given up."""

    kernelTimeout: Annotated[int, msgspec.Meta(ge=1, le=3600)] = 10
    """Seconds after which the kernel gives up a control connection whose path is gone."""

    settleTime: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 45.0
    """Seconds after a start for which the runners of before are awaited."""


class PoolSection(Section, frozen=True, rename=snake):
    """Data connections that agents park in advance."""

    spare: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 2
    """Idle ones kept to a runner that was dialled in the last ten minutes."""

    perRunner: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 128
    """To one runner, those that carry a short stream included; 0 parks none."""

    total: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 2000
    """To all runners together."""

    refresh: Annotated[float, msgspec.Meta(ge=10, le=86_400)] = 240.0
    """Seconds after which an idle one is replaced."""


class GatewaysSection(Section, frozen=True, rename=snake):
    """HTTP to services beside agents."""

    requestsPerUser: Count = 256
    """HTTP requests of one user that may be under way, upgraded ones included."""

    requestsPerRunner: Count = 512
    """The same to one runner."""

    answerTimeout: Seconds = 300.0
    """Seconds from the end of a request until its service must begin to answer."""

    trustedProxies: tuple[str, ...] = ()
    """Networks, addresses or C{"unix"}: whose C{X-Forwarded-} fields are passed on."""

    baseDomain: str | None = None
    """The domain of C{TARGET--RUNNER} host names; without it there are none."""


class ForwardSection(Section, frozen=True, rename=snake):
    """A port of the server that leads to a target."""

    listen: str
    """C{tcp:PORT} on 127.0.0.1, or C{tcp:PORT:interface=ADDRESS}."""

    runner: str
    """The runner's key."""

    target: str | None = None
    """The target's name; without it, the agent's default."""

    allow: tuple[str, ...] = ()
    """Networks and addresses that may connect; needed beyond loopback."""

    proxyProtocol: bool = False
    """Whether the target gets a PROXY header (version 2) that says who connected."""


class ForwardsSection(Section, frozen=True, rename=snake):
    """Ports of the server that lead to targets, without a token."""

    ports: str | None = None
    """The ports that forwards may have, C{"20000-20100"}; without it there are none."""

    interfaces: tuple[str, ...] = ("127.0.0.1",)
    """The addresses that forwards may listen on."""

    maxForwards: Count = 100
    """Forwards at once."""

    maxConnections: Count = 1000
    """Connections of one forward at once."""

    forward: tuple[ForwardSection, ...] = ()
    """Those that are there from the start."""


class DesktopSection(Section, frozen=True, rename=snake):
    """Screenshots and clipboards of sessions."""

    requestTimeout: Seconds = 30.0
    """Seconds for a whole exchange with a desktop, the dial included."""

    maxScreenshotBytes: Size = 32 * 1024 * 1024
    maxClipboardBytes: Size = 16 * 1024 * 1024
