# -*- test-case-name: tests.agent.test_network_settings -*-
"""
What an operator says about the way to the servers, read and checked.

Part of L{helix_revdial.agent.settings}, whose rules hold here too.  The files that
are named are read once, so that what is wrong with them is said at the start.

Invariant: neither a proxy's URL nor its credentials are in a complaint.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from typing import Protocol

from ..revdial.client import ServerURL
from .network import NetworkSettings
from .proxies import (
    CredentialsFile,
    CredentialsUnusable,
    Exceptions,
    ProxyChoice,
    ProxyURL,
    environmentExceptions,
    environmentProxies,
)
from .servers import MAX_SERVERS
from .trust import Trust, TrustPolicy, TrustUnusable, parsePin

MAX_PINS = 16
"""Pins of one agent."""

_FILES = ("trust", "ca-directory", "client-certificate", "client-key")

_ON = ("1", "true", "yes", "on")
_OFF = ("0", "false", "no", "off")


class Told(Protocol):
    """What was told, and by which flag or variable."""

    def one(self, about: str) -> tuple[str, str] | None:
        """A value and its origin."""

    def severally(self, about: str) -> tuple[Sequence[str], str]:
        """Values and their origin."""

    def switch(self, about: str) -> tuple[str, str] | None:
        """The word for a switch, and its origin."""


def readNetwork(
    told: Told, servers: Sequence[ServerURL], environment: Mapping[str, str]
) -> NetworkSettings:
    """
    Read everything that is about the way to the servers.

    @param told: Finds values.
    @param servers: The addresses.
    @param environment: Where other programs look for proxies.
    @raise ValueError: Something cannot be; one line for each complaint.
    """
    complaints: list[str] = []
    if not 1 <= len(servers) <= MAX_SERVERS:
        complaints.append(f"an agent has from one to {MAX_SERVERS} servers")
    trust = TrustPolicy()
    try:
        trust = _readTrust(told)
    except ValueError as error:
        complaints.append(str(error))
    proxies = ProxyChoice()
    try:
        proxies = _readProxies(told, environment)
        for server in servers:
            proxies.forServer(server.host, server.port, server.secure)
    except ValueError as error:
        complaints.append(str(error))
    credentials = told.one("proxy-credentials")
    if credentials is not None:
        try:
            CredentialsFile(credentials[0])()
        except CredentialsUnusable as error:
            complaints.append(f"{credentials[1]}: {error}")
    proxyTrust = TrustPolicy()
    own = told.one("proxy-ca-file")
    if own is not None:
        proxyTrust = TrustPolicy(caFile=own[0])
        try:
            Trust(proxyTrust)
        except TrustUnusable as unusable:
            complaints.append(f"{own[1]}: {unusable}")
    zeroKey = None
    try:
        zeroKey = _readSwitch(told, "zero-key")
    except ValueError as error:
        complaints.append(str(error))
    if complaints:
        raise ValueError("\n".join(complaints))
    return NetworkSettings(
        servers=tuple(servers),
        trust=trust,
        proxies=proxies,
        proxyCredentials=credentials[0] if credentials else None,
        proxyTrust=proxyTrust,
        zeroKey=bool(zeroKey),
    )


def networkWarnings(settings: NetworkSettings, credentials: str | None = None) -> list[str]:
    """
    What an operator should change, one line each.

    @param credentials: The service manager's directory of credentials.
    """
    found = settings.trust.warnings(credentials)
    path = settings.proxyCredentials
    if path is not None:
        mode = stat.S_IMODE(os.stat(path).st_mode)
        directory = os.path.dirname(os.path.realpath(path))
        guarded = credentials and directory == os.path.realpath(credentials)
        if mode & 0o077 and not guarded:
            found.append(
                f"the proxy's credentials {path}: mode {mode:04o} lets others read them; "
                f"chmod 0600 {path}"
            )
    named = settings.proxies.named
    if named is not None and named.credentials is not None and settings.proxies.visible:
        found.append(
            "--proxy: every user of this host can read the arguments of a process; put the "
            "user and password into a file (--proxy-credentials) or into HELIX_AGENT_PROXY"
        )
    return found


def _readTrust(told: Told) -> TrustPolicy:
    files = [told.one(about) for about in _FILES]
    caFile, caDirectory, certificate, key = (each[0] if each else None for each in files)
    texts, origin = told.severally("pin")
    if len(texts) > MAX_PINS:
        raise ValueError(f"{origin}: an agent has at most {MAX_PINS} pins")
    pins = []
    for text in texts:
        try:
            pins.append(parsePin(text))
        except ValueError as error:
            raise ValueError(f"{origin}: {error}") from None
    insecure = _readSwitch(told, "insecure")
    if insecure and (caFile or caDirectory or pins):
        raise ValueError(
            f"{insecure}: trusts everybody, and something else says whom to trust: give one of them"
        )
    if files[3] is not None and certificate is None:
        raise ValueError(f"{files[3][1]}: a key without a certificate (--client-certificate)")
    policy = TrustPolicy(caFile, caDirectory, tuple(pins), certificate, key, bool(insecure))
    try:
        Trust(policy)
    except TrustUnusable as unusable:
        # A complaint begins with the file; which flag or variable named it?
        named = (each[1] for each in files if each and str(unusable).startswith(each[0]))
        raise ValueError(f"{next(named, 'TLS')}: {unusable}") from None
    return policy


def _readSwitch(told: Told, about: str) -> str | None:
    """The origin of a switch that is on."""
    found = told.switch(about)
    if found is None:
        return None
    word, origin = found
    if word.lower() in _OFF:
        return None
    if word.lower() not in _ON:
        raise ValueError(f"{origin}: write 1 or 0")
    return origin


def _readProxies(told: Told, environment: Mapping[str, str]) -> ProxyChoice:
    own, exceptions = told.one("proxy"), told.one("no-proxy")
    if own is None:
        listed = exceptions[0] if exceptions else environmentExceptions(environment)
        return ProxyChoice(None, Exceptions(listed), environmentProxies(environment))
    text, origin = own
    try:
        named = ProxyURL.parse(text)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from None
    return ProxyChoice(
        named, Exceptions(exceptions[0] if exceptions else ""), visible=origin.startswith("-")
    )


__all__ = ["MAX_PINS", "networkWarnings", "readNetwork"]
