# -*- test-case-name: tests.integration.test_diagnosis -*-
"""
C{helix diag}: why an agent on this host does not get through to its server, or that
it would.

The looking itself is the agent's (L{helix_revdial.agent.diagnosis}); this is what
people type and read.  It disturbs no runner that is connected.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from helix_revdial.cli.edge import FAILED, PASSED, SettingsError, runCommand
from helix_revdial.cli.invocation import Duration, Invocation, jsonFlag, passInvocation
from helix_revdial.cli.profile import resolve

if TYPE_CHECKING:
    from helix_revdial.agent.diagnosis import Subject


@click.command("diag")
@click.option("--server", metavar="URL", help="The server, as an agent names it.  [default: --url]")
@click.option("--runner", metavar="KEY", default="", help="The runner that is to be registered.")
@click.option("--token-file", "tokenFile", metavar="FILE", help="A file with the runner's token.")
@click.option(
    "--target",
    "targets",
    metavar="ADDRESS",
    multiple=True,
    help="A local service: host:port, unix:///path.",
)
@click.option(
    "--config", metavar="FILE", help="The runners of an agent's file, instead of all these."
)
@click.option(
    "--idle", type=Duration(), default=0.0, metavar="S", help="Hold a connection idle for so long."
)
@click.option(
    "--ca-file", "caFile", metavar="FILE", help="Authorities to trust instead of the system's."
)
@click.option("--pin", "pins", metavar="PIN", multiple=True, help="sha256/BASE64: a key to trust.")
@click.option("--insecure", is_flag=True, help="Do not verify the server.")
@click.option("--proxy", metavar="URL", help="The HTTP proxy.  [default: HTTPS_PROXY and its kin]")
@click.option(
    "--proxy-credentials", "credentials", metavar="FILE", help="A file with USER:PASSWORD."
)
@jsonFlag
@passInvocation
def diag(
    invocation: Invocation,
    server: str | None,
    runner: str,
    tokenFile: str | None,
    targets: Sequence[str],
    config: str | None,
    idle: float,
    caFile: str | None,
    pins: Sequence[str],
    insecure: bool,
    proxy: str | None,
    credentials: str | None,
    asJSON: bool,
) -> int:
    """
    Try out the way from this host to a server: name, connection, proxy, TLS, HTTP, clock,
    token, upgrades; and local services.

    Each line says what was seen, and what to do where it is not well.  A runner that is
    connected is not disturbed.
    """
    from helix_revdial.agent.settings import SettingsError as Unusable

    way = {
        "ca-file": caFile,
        "pin": list(pins),
        "insecure": "1" if insecure else None,
        "proxy": proxy,
        "proxy-credentials": credentials,
    }
    try:
        if config is not None:
            if server or runner or tokenFile or targets or any(way.values()):
                raise click.UsageError("--config says everything: give no other setting with it")
            subjects = _ofFile(config)
        else:
            subjects = {runner: _subject(invocation, server, runner, tokenFile, targets, way)}
    except Unusable as error:
        raise SettingsError(f"diag: {error}") from None

    async def main(reactor: Any) -> int:
        from helix_revdial.agent.diagnosis import diagnose

        report = []
        failed = False
        for key, subject in subjects.items():
            said = f"{key or 'this host'} to {subject.network.servers[0]}"
            findings = []
            if not asJSON:
                invocation.output.line(said)
            async for finding in diagnose(reactor, subject, wallClock=time.time, idle=idle):
                failed = failed or finding.outcome == "failed"
                findings.append(finding.asJSON())
                if not asJSON:
                    for line in finding.lines():
                        invocation.output.line(line)
            servers = [str(each) for each in subject.network.servers]
            report.append({"runner": key or None, "servers": servers, "findings": findings})
        if asJSON:
            invocation.output.json({"ok": not failed, "runners": report})
        return FAILED if failed else PASSED

    return runCommand(main)


def _ofFile(path: str) -> dict[str, Subject]:
    from helix_revdial.agent.checking import subjectOf
    from helix_revdial.agent.runners import readRunners

    return {each.key: subjectOf(each) for each in readRunners(path, os.environ)}


def _subject(
    invocation: Invocation,
    server: str | None,
    runner: str,
    tokenFile: str | None,
    targets: Sequence[str],
    way: dict[str, Any],
) -> Subject:
    from helix_revdial.agent.diagnosis import Subject
    from helix_revdial.agent.settings import RUNNER_KEY, readWay
    from helix_revdial.agent.targets import parseTarget
    from helix_revdial.agent.token import NoToken, Secret, TokenFile, TokenSource, TokenText

    if runner and RUNNER_KEY.fullmatch(runner) is None:
        raise click.UsageError("--runner: letters, digits, '.', '_' and '-', at most 128")
    token: TokenSource | None = None
    if tokenFile is not None:
        token = TokenFile(tokenFile, f"--token-file {tokenFile}")
    if server is None:
        settings = resolve(invocation.flags, os.environ)
        server = str(settings.url)
        if token is None and settings.apiKey is not None:
            token = TokenText("the API key of helix", Secret(settings.apiKey))
    try:
        local = {each: parseTarget(each.partition("=")[2] or each) for each in targets}
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    network = readWay({**way, "server": [server]}, os.environ)
    if token is None and network.trust.clientCertificate is not None:
        token = NoToken()
    return Subject(network, runner, token, local)


__all__ = ["diag"]
