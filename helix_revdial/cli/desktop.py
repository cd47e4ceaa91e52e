# -*- test-case-name: tests.integration.test_cli -*-
"""
C{helix desktop}: the service inside a sandbox.

It asks no server: it listens for what the agent beside it brings.  It runs
until it is told to stop (Ctrl-C, SIGTERM), logs to standard error, and then
exits with 0: being stopped is how a service ends well.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from helix_revdial.cli.edge import PASSED, CommandError, SettingsError, plain, runCommand
from helix_revdial.cli.invocation import Invocation, passInvocation


@click.group()
def desktop() -> None:
    """The service inside a sandbox: screenshot, clipboard."""


@desktop.command("serve")
@click.option(
    "--listen", metavar="ADDRESS", help="HOST:PORT or unix:/PATH.  [default: 127.0.0.1:9876]"
)
@click.option("--display", metavar="NAME", help="An X11 display or a Wayland socket.")
@click.option(
    "--test-card", "testCard", is_flag=True, help="Show a drawn card instead of a screen."
)
@click.option("--size", metavar="WIDTHxHEIGHT", help="Of the test card.  [default: 1280x720]")
@click.option("--session", metavar="ID", help="Whose desktop it is, for the test card.")
@passInvocation
def serveCommand(
    invocation: Invocation,
    listen: str | None,
    display: str | None,
    testCard: bool,
    size: str | None,
    session: str | None,
) -> int:
    """Serve screenshots and the clipboard of this machine's display."""
    from helix_revdial.desktop.errors import CannotServe
    from helix_revdial.desktop.options import (
        DEFAULT_LISTEN,
        DEFAULT_SIZE,
        DesktopOptions,
        parseListen,
        parseSize,
    )

    try:
        options = DesktopOptions(
            listen=listen or DEFAULT_LISTEN,
            testCard=testCard,
            size=parseSize(size) if size else DEFAULT_SIZE,
            display=display,
            session=session,
            environment=os.environ,
        )
        parseListen(options.listen)
    except ValueError as error:
        raise SettingsError(plain(error)) from None

    def ready(address: str) -> None:
        invocation.output.line(f"Desktop service listening on {address}")

    async def serve(reactor: Any) -> int:
        from twisted.logger import globalLogBeginner, textFileLogObserver

        from helix_revdial.desktop.service import serveDesktop

        globalLogBeginner.beginLoggingTo(
            [textFileLogObserver(sys.stderr)], redirectStandardIO=False
        )
        try:
            await serveDesktop(reactor, options, ready)
        except CannotServe as error:
            raise CommandError(plain(error)) from None
        return PASSED

    return runCommand(serve, endsByItself=True)


__all__ = ["desktop"]
