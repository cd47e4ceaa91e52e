# -*- test-case-name: tests.agent.test_tap -*-
"""
The plugin C{twistd helix-revdial-agent}: options in, a service out.

The only module of the agent, besides the two older commands, that meets the
real reactor, and only when a service is asked for.
"""

from __future__ import annotations

import os

from twisted.application.service import IService

from .options import Options
from .process import agentsService


def makeService(options: Options) -> IService:
    """
    Make the agent that C{twistd} runs.

    @param options: Parsed options.
    """
    from twisted.internet import reactor

    assert options.runners, "options were not parsed"
    return agentsService(reactor, options.runners, os.environ)


__all__ = ["Options", "makeService"]
