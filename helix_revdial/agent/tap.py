# -*- test-case-name: tests.agent.test_tap -*-
"""
The plugin C{twistd helix-revdial-agent}: options in, a service out.

The only module of the agent, besides the two older commands, that meets the
real reactor, and only when a service is asked for.
"""

from __future__ import annotations

import os
from typing import cast

from twisted.application.service import IService

from ..revdial.descriptors import raiseDescriptorLimit
from ..revdial.monotonic import useMonotonicTime
from ..telemetry.logs import LoggingService
from .options import Options
from .process import agentsService


def makeService(options: Options) -> IService:
    """
    Make the agent that C{twistd} runs.

    @param options: Parsed options.
    """
    from twisted.internet import reactor

    assert options.runners, "options were not parsed"
    useMonotonicTime(reactor)
    raiseDescriptorLimit()
    service: LoggingService
    if options.metricsListen is None:
        service = agentsService(reactor, options.runners, os.environ)
        service.logObserver = options.logObserver
    else:
        from .observation import observedAgents

        service = observedAgents(
            reactor, options.runners, os.environ, options.metricsListen, options.logObserver
        )
    return cast(IService, service)


__all__ = ["Options", "makeService"]
