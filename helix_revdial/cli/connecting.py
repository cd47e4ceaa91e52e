# -*- test-case-name: tests.integration.test_forward -*-
"""
C{helix connect}: standard input and output are a stream to a target.

Each direction's end is passed on by itself, so that it serves as the C{ProxyCommand}
of ssh.  Nothing is read from standard input before the target is connected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from helix_revdial.cli.edge import PASSED, CommandError, ReaderGone, SettingsError, plain
from helix_revdial.cli.invocation import Identifier, Invocation, Timeout, passInvocation

if TYPE_CHECKING:
    from helix_revdial.cli.profile import Settings
    from helix_revdial.revdial.gateway import GatewayEndpoint

TIMEOUT = 30.0
"""Seconds for a dial."""


@click.command("connect")
@click.argument("runner", type=Identifier())
@click.argument("target", type=Identifier(), required=False)
@click.option(
    "--timeout", type=Timeout(), default=TIMEOUT, show_default=True, help="Seconds for the dial."
)
@passInvocation
def connect(invocation: Invocation, runner: str, target: str | None, timeout: float) -> int:
    """
    Connect standard input and output to TARGET beside RUNNER.

    RUNNER is a runner's key or a session's id. Without TARGET it is the agent's default.

    \b
      ssh -o ProxyCommand='helix connect %h ssh' wolf-1
    """
    if invocation.flags.tokenFile == "-":
        raise SettingsError("--token-file -: standard input is the stream here")

    async def command(reactor: Any, settings: Settings) -> int:
        return await through(reactor, gatewayOf(reactor, settings, runner, target, timeout))

    return invocation.withSettings(command)


def gatewayOf(
    reactor: Any, settings: Settings, runner: str, target: str | None, timeout: float
) -> GatewayEndpoint:
    """
    The way to a target.

    @raise SettingsError: There is no key.
    """
    from helix_revdial.cli.profile import KEY_VARIABLE
    from helix_revdial.revdial.gateway import GatewayEndpoint
    from helix_revdial.revdial.server_url import ServerURL

    key = settings.apiKey
    if key is None:
        hint = settings.keyHint or "no API key"
        raise SettingsError(f"{hint}: set {KEY_VARIABLE} or give --token-file")
    try:
        server = ServerURL.parse(str(settings.url))
    except ValueError as error:
        raise SettingsError(str(error)) from None
    return GatewayEndpoint(reactor, server, lambda: key, runner, target, timeout=timeout)


def whyNoStream(url: str, error: Exception) -> str:
    """Why a dial failed, and what to do, in one sentence."""
    from helix_revdial.cli.failures import whyNoAnswer
    from helix_revdial.cli.profile import KEY_VARIABLE
    from helix_revdial.revdial.errors import DialError
    from helix_revdial.revdial.exchange import MalformedAnswer
    from helix_revdial.revdial.gateway import GatewayRefused

    match error:
        case DialError():
            again = "" if error.retryAfter is None else f"; try again in {error.retryAfter:.0f} s"
            return f"{error.status} {error.word} - {plain(error).rstrip('.')}{again}"
        case GatewayRefused():
            hint = "" if error.status != 401 else f"; check {KEY_VARIABLE} or --token-file"
            return f"{error.status} - {plain(error).rstrip('.')}{hint}"
        case MalformedAnswer():
            return f"{url}: {plain(error)}"
    return whyNoAnswer(url, error)


async def through(reactor: Any, endpoint: GatewayEndpoint) -> int:
    """
    Join standard input and output with what C{endpoint} leads to, to the end of both.

    @raise CommandError: There is no stream, or it broke.
    @raise ReaderGone: Nobody reads standard output.
    """
    from twisted.internet.defer import CancelledError, Deferred
    from twisted.internet.protocol import Factory

    from helix_revdial.cli.stdio import StandardStreams
    from helix_revdial.revdial.errors import wordsOf
    from helix_revdial.revdial.relay import RelayEnd, relayPair

    ended: Deferred[RelayEnd] = Deferred()
    left, right = relayPair(reactor, onEnd=ended.callback)
    factory = Factory.forProtocol(lambda: right)
    factory.noisy = False
    try:
        await endpoint.connect(factory)
    except CancelledError:
        raise
    except Exception as error:
        raise CommandError(whyNoStream(endpoint.server, error)) from None
    streams = StandardStreams(reactor)
    streams.start(left)
    try:
        end = await ended
    except CancelledError:
        streams.abortConnection()
        raise
    if streams.deaf:
        raise ReaderGone
    if streams.cutOff:
        raise CommandError("the stream was given up: nobody took the rest of standard output")
    if end.why == "done" or (end.why == "lingered" and end.first == "right"):
        return PASSED
    if end.why == "lingered":
        raise CommandError("the stream was given up: nothing came after the end of standard input")
    reason = "" if end.failure is None else f": {plain(wordsOf(end.failure))}"
    raise CommandError(f"the stream broke off{reason}")


__all__ = ["connect", "gatewayOf", "through", "whyNoStream"]
