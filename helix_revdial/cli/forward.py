# -*- test-case-name: tests.cli.test_forward,tests.integration.test_forward -*-
"""
C{helix forward}: ports and unix sockets of this machine that lead to targets.

Each connection that is accepted is a dial of its own: nothing is kept open between
them, so that an agent or a server that goes away and returns is noticed by the
connections of that time only.  A connection is not read before its target is connected.

Invariants:

  - What listens at the end is what listened at the beginning: no failure of a
    connection ends the command.
  - When it ends, nothing is left: no port, no socket file, no connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from helix_revdial.cli.connecting import TIMEOUT, gatewayOf
from helix_revdial.cli.edge import CommandError, ReaderGone, plain
from helix_revdial.cli.invocation import (
    CLOSE_TIMEOUT,
    Identifier,
    Invocation,
    Timeout,
    jsonFlag,
    passInvocation,
)
from helix_revdial.cli.local_end import Local

if TYPE_CHECKING:
    from helix_revdial.cli.forwarding import Report
    from helix_revdial.cli.profile import Settings


class _LocalParameter(click.ParamType[Any]):
    name = "forward"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Local:
        if isinstance(value, Local):
            return value
        try:
            return Local.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command("forward")
@click.argument("runner", type=Identifier())
@click.argument(
    "forwards", type=_LocalParameter(), metavar="[LOCAL:]TARGET...", nargs=-1, required=True
)
@click.option(
    "--timeout", type=Timeout(), default=TIMEOUT, show_default=True, help="Seconds for each dial."
)
@jsonFlag
@passInvocation
def forward(
    invocation: Invocation, runner: str, forwards: tuple[Local, ...], timeout: float, asJSON: bool
) -> int:
    """
    Listen here, and lead each connection to a target beside RUNNER.

    LOCAL is PORT (on 127.0.0.1), HOST:PORT or unix:///PATH; without it, a free port.
    RUNNER is a runner's key or a session's id. It goes on until Ctrl-C. With --json, each
    line is an event.

    \b
      helix forward wolf-1 5432:db 127.0.0.1:8080:web unix:///tmp/wolf.sock:wolf
    """

    async def command(reactor: Any, settings: Settings) -> int:
        from helix_revdial.cli.forwarding import Forwarding, Report
        from helix_revdial.revdial.sockets import SocketRelays

        report = Report(invocation.output, runner, asJSON)
        forwarding = Forwarding(reactor, report, SocketRelays(reactor))
        ways = [gatewayOf(reactor, settings, runner, each.target, timeout) for each in forwards]
        await _greet(reactor, settings, report)
        try:
            for each, endpoint in zip(forwards, ways, strict=True):
                forwarding.listen(each, endpoint)
            await report.readerGone
        finally:
            await forwarding.stop()
        raise ReaderGone

    return invocation.withSettings(command)


async def _greet(reactor: Any, settings: Settings, report: Report) -> None:
    """
    Ask the server before anything listens: a token that it does not take is no better
    later.  A server that is not there may come.

    @raise Refused: It knows no such token, or no such session, or the token may not.
    """
    from helix_revdial.cli.client import connect, segment
    from helix_revdial.cli.failures import Refused

    client, pool = connect(reactor, settings)
    kind = "sessions" if report.runner.startswith("ses_") else "runners"
    try:
        await client.exchange.request("GET", f"/api/v1/{kind}/{segment(report.runner)}/stream")
    except Refused as refused:
        # Whoever may have a stream is told how to ask for one (426).
        if refused.status in (401, 403, 404):
            raise
    except CommandError as error:
        text = plain(error)
        report.say("unreachable", f"{text}; connections fail until it answers", detail=text)
    finally:
        closing = pool.closeCachedConnections()
        await closing.addTimeout(CLOSE_TIMEOUT, reactor).addErrback(lambda failure: None)


__all__ = ["forward"]
