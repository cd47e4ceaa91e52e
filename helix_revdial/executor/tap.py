# -*- test-case-name: tests.integration.test_executor -*-
"""
The plugin C{twistd helix-revdial-executor}: options in, a service out.
"""

from __future__ import annotations

import os

from twisted.application.service import IService

from .options import Options


def makeService(options: Options) -> IService:
    """Make the executor that C{twistd} runs."""
    from twisted.internet import reactor

    from .service import ExecutorService

    service: IService = ExecutorService(reactor, options.settings, os.environ)
    return service


__all__ = ["Options", "makeService"]
