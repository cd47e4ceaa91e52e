# -*- test-case-name: tests.integration.test_diagnosis -*-
"""
C{twistd helix-revdial-agent --check}: look at the way of each runner, print what is
found, and say in the exit status whether all is well.

The same looking as C{helix diag}, with the agent's own settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import time
from typing import Any, TextIO

from .diagnosis import Subject, diagnose
from .settings import AgentSettings


def subjectOf(settings: AgentSettings) -> Subject:
    """What there is to look at for one runner."""
    return Subject(settings.network, settings.key, settings.token, settings.targets)


async def check(reactor: Any, runners: Sequence[AgentSettings], output: TextIO) -> int:
    """
    Look at everything, and print it as it is found.

    @param runners: The settings of each.
    @param output: Where to.
    @return: The exit status: 0 for nothing that failed, 1 otherwise.
    """
    failed = False
    for number, settings in enumerate(runners):
        if number:
            output.write("\n")
        output.write(f"{settings.key} to {settings.server}\n")
        for warning in settings.warnings:
            output.write(f"⚠️ {warning}\n")
        output.flush()
        async for finding in diagnose(reactor, subjectOf(settings), wallClock=time):
            failed = failed or finding.outcome == "failed"
            output.write("".join(f"{line}\n" for line in finding.lines()))
            output.flush()
    return 1 if failed else 0


__all__ = ["check", "subjectOf"]
