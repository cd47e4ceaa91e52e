# -*- test-case-name: tests.integration.test_agent -*-
"""
The plugin C{twistd helix-revdial-agent}: options in, a service out.

The only module of the agent, besides the two older commands, that meets the
real reactor, and only when a service is asked for.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Coroutine
from typing import Any, NoReturn, cast

from twisted.application.service import IService
from twisted.internet.defer import Deferred
from twisted.internet.task import react

from ..revdial.collecting import collectLess
from ..revdial.descriptors import raiseDescriptorLimit
from ..revdial.monotonic import useMonotonicTime
from ..revdial.socket_loop import useSocketLoop
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
    if options["check"]:
        # twistd makes the service before it goes into the background and runs the
        # reactor: this ends the process instead.
        from .checking import check

        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")
        react(lambda reactor: _exiting(check(reactor, options.runners, sys.stdout)))
    useMonotonicTime(reactor)
    useSocketLoop(reactor)
    raiseDescriptorLimit()
    collectLess(reactor)
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


def _exiting(checking: Coroutine[Any, Any, int]) -> Deferred[NoReturn]:
    """What ends C{react} with the status that a check comes to."""

    async def main() -> NoReturn:
        raise SystemExit(await checking)

    return Deferred.fromCoroutine(main())


__all__ = ["Options", "makeService"]
