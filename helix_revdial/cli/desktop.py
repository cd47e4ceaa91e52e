# -*- test-case-name: tests.cli.test_desktop -*-
"""
C{helix desktop}: the service inside a sandbox.

It asks no server: it listens for what the agent beside it brings.
"""

from __future__ import annotations

import click


@click.group()
def desktop() -> None:
    """The service inside a sandbox: screenshot, clipboard."""
