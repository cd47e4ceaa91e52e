# -*- test-case-name: tests.revdial.test_endpoint_strings -*-
"""
C{revdial:} in a Twisted endpoint string::

    clientFromString(
        reactor,
        r"revdial:https\\://cp.example:wolf-1:target=api:tokenFile=/run/secrets/token",
    )

The parts: the server's URL (its colons behind backslashes), the runner's key or a
session's id; then C{target} (the agent's default without it), C{tokenFile} (read for
each connection, so that a rotated token is taken up), C{caFile} (authorities to
trust in place of the platform's) and C{timeout} (seconds for a dial).

A token is in a file, never in the string: strings stand in settings and in argv.

Twisted may import this module for any endpoint string that it parses, so it imports
what it needs when it is used.
"""

from __future__ import annotations

import math
from typing import Any

from twisted.internet.interfaces import (
    IStreamClientEndpoint,
    IStreamClientEndpointStringParserWithReactor,
)
from twisted.plugin import IPlugin
from zope.interface import implementer

FORM = r"revdial:https\://SERVER:RUNNER:target=NAME:tokenFile=PATH[:caFile=PATH][:timeout=SECONDS]"
"""What is expected."""


@implementer(IPlugin, IStreamClientEndpointStringParserWithReactor)
class RevdialParser:
    """
    Parses client endpoint strings.

    @ivar prefix: What they begin with.
    """

    prefix = "revdial"

    def parseStreamClient(self, reactor: Any, *args: Any, **kwargs: Any) -> IStreamClientEndpoint:
        """
        @return: The endpoint; its C{connect} reads the token's file.
        @raise ValueError: The string is not of the L{FORM}; no text repeats a value that
            may be a secret.
        """
        from .gateway import DIAL_TIMEOUT, GatewayEndpoint, tokenFromFile, trustedBy
        from .offered import TARGET_NAME
        from .requests import RUNNER_KEY
        from .server_url import ServerURL

        unknown = sorted(kwargs.keys() - {"target", "tokenFile", "caFile", "timeout"})
        if "token" in unknown:
            raise ValueError(f"a token does not belong in an endpoint string; expected {FORM}")
        if unknown or len(args) != 2:
            raise ValueError(f"expected {FORM}" + (f"; {unknown[0]} is unknown" if unknown else ""))
        url, runner = args
        server = ServerURL.parse(url)
        if RUNNER_KEY.fullmatch(runner) is None:
            raise ValueError(f"the second part is no runner's key; expected {FORM}")
        target = kwargs.get("target") or None
        if target is not None and TARGET_NAME.fullmatch(target) is None:
            raise ValueError(f"target: no target's name; expected {FORM}")
        tokenFile = kwargs.get("tokenFile")
        if not tokenFile:
            raise ValueError(f"tokenFile is missing; expected {FORM}")
        try:
            timeout = float(kwargs.get("timeout", DIAL_TIMEOUT))
        except ValueError:
            timeout = math.nan
        if not 0 < timeout <= 3600:
            raise ValueError("timeout: expected seconds, at most 3600")
        caFile = kwargs.get("caFile")
        if caFile is not None and not server.secure:
            raise ValueError("caFile: there is no TLS with an http:// server")
        endpoint: IStreamClientEndpoint = GatewayEndpoint(
            reactor,
            server,
            lambda: tokenFromFile(tokenFile),
            runner,
            target,
            timeout=timeout,
            tlsOptions=None if caFile is None else trustedBy(server.host, caFile),
        )
        return endpoint


__all__ = ["FORM", "RevdialParser"]
