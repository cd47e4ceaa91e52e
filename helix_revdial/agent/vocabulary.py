# -*- test-case-name: tests.agent.test_settings -*-
"""
The names by which an agent is told things.

One table: the options of C{twistd helix-revdial-agent}, the flags of the two
older programs, the sentences about what is missing and the table of
C{docs/agent.md} are made from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .reconnect import FIRST_DELAY, MAX_DELAY

DRAIN = 30.0
"""Seconds that streams get to finish when the agent stops."""

SESSION_LOCAL = "localhost:9876"
"""The desktop service of a session."""

HOST_LOCAL = "localhost:8080"
"""Wolf's API."""


@dataclass(frozen=True, slots=True)
class Setting:
    """
    One way to tell an agent something.

    @ivar about: What it sets; rows about the same thing stand in for each other.
    @ivar flag: The flag's name without dashes, if there is a flag.
    @ivar variable: The environment variable, if there is one.
    @ivar value: What the value is called in a usage text.
    @ivar meaning: One sentence, for the usage text and the documentation.
    @ivar repeatable: Whether the flag may be given more than once.
    @ivar switch: Whether the flag has no value; the variable then says 1 or 0.
    @ivar ofProcess: Whether it is about the process, however many runners that has.
    """

    about: str
    flag: str | None
    variable: str | None
    value: str
    meaning: str
    repeatable: bool = False
    switch: bool = False
    ofProcess: bool = False


METRICS = "HELIX_AGENT_METRICS_LISTEN"
"""The variable that says where metrics are."""

LOG_FORMAT = "HELIX_AGENT_LOG_FORMAT"
"""The variable that says what the log is like."""


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "server",
        "api-url",
        "HELIX_API_URL",
        "URL",
        "The control plane: http, https, ws or wss, with or without /api/v1/revdial. Several "
        "addresses, separated by commas or given one by one, are tried in turn.",
        repeatable=True,
    ),
    Setting(
        "server",
        "server",
        "HELIX_API_BASE_URL",
        "URL",
        "The same, as sandboxes name it.",
        repeatable=True,
    ),
    Setting("runner", "wolf-id", "WOLF_ID", "ID", "Registers the runner wolf-ID."),
    Setting("runner", None, "HELIX_SESSION_ID", "ID", "Registers the runner sandbox-ID."),
    Setting(
        "runner",
        "runner-id",
        "HELIX_AGENT_RUNNER_ID",
        "KEY",
        "Registers exactly this runner key.",
    ),
    Setting(
        "token",
        "token-file",
        "HELIX_AGENT_TOKEN_FILE",
        "PATH",
        "A file that holds the token, mode 0600; read anew at each connection.",
    ),
    Setting(
        "token",
        "token",
        "RUNNER_TOKEN",
        "TOKEN",
        "The token. As a flag every user of the host can read it: prefer --token-file.",
    ),
    Setting("token", None, "USER_API_TOKEN", "TOKEN", "The token of a session's user."),
    Setting(
        "local",
        "local",
        "HELIX_AGENT_LOCAL",
        "ADDRESS",
        "The local service, host:port or unix:///path. By default "
        f"{HOST_LOCAL} for a wolf- runner, {SESSION_LOCAL} for others.",
    ),
    Setting(
        "targets",
        "target",
        "HELIX_AGENT_TARGETS",
        "NAME=ADDRESS",
        "A named local service; may be given several times (the variable separates them by "
        "spaces). The first one is the default where --local is not given.",
        repeatable=True,
    ),
    Setting(
        "reconnect",
        "reconnect",
        "HELIX_AGENT_RECONNECT",
        "SECONDS",
        f"The first delay before connecting again, {FIRST_DELAY:g} by default; "
        f"it grows to {MAX_DELAY:g}.",
    ),
    Setting(
        "drain",
        "drain",
        "HELIX_AGENT_DRAIN",
        "SECONDS",
        f"How long streams may take to finish when the agent stops, {DRAIN:g} by default.",
    ),
    Setting(
        "trust",
        "ca-file",
        "HELIX_AGENT_CA_FILE",
        "PATH",
        "Certificates (PEM) of the authorities to trust instead of the system's.",
    ),
    Setting(
        "ca-directory",
        "ca-directory",
        "HELIX_AGENT_CA_DIRECTORY",
        "PATH",
        "The same from the .pem and .crt files of a directory.",
    ),
    Setting(
        "pin",
        "pin",
        "HELIX_AGENT_PINS",
        "sha256/BASE64",
        "A public key that the server may have; may be given several times (the variable "
        "separates them by spaces). Alone it stands in for an authority and the name; with "
        "--ca-file or --ca-directory both must fit.",
        repeatable=True,
    ),
    Setting(
        "client-certificate",
        "client-certificate",
        "HELIX_AGENT_CLIENT_CERTIFICATE",
        "PATH",
        "The agent's own certificate (PEM), which it shows to the server.",
    ),
    Setting(
        "client-key",
        "client-key",
        "HELIX_AGENT_CLIENT_KEY",
        "PATH",
        "Its key, mode 0600, where that is not in the same file.",
    ),
    Setting(
        "insecure",
        "insecure",
        "HELIX_AGENT_INSECURE",
        "",
        "Do NOT verify the server: whoever stands in between can read the token and answer in "
        "the server's place.",
        switch=True,
    ),
    Setting(
        "zero-key",
        "zero-key",
        "HELIX_AGENT_ZERO_KEY",
        "",
        "Mask what is sent in bulk over WebSocket with a zero key, so that it is moved without a "
        "copy, where the server allows it too. Only where nothing in between looks at plain HTTP.",
        switch=True,
    ),
    Setting(
        "proxy",
        "proxy",
        "HELIX_AGENT_PROXY",
        "URL",
        "The HTTP proxy to go through, http://host:port or https://host:port. By default what "
        "HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY say.",
    ),
    Setting(
        "no-proxy",
        "no-proxy",
        "HELIX_AGENT_NO_PROXY",
        "LIST",
        "Servers that are reached without the proxy: names, addresses and ranges, separated by "
        "commas.",
    ),
    Setting(
        "proxy-credentials",
        "proxy-credentials",
        "HELIX_AGENT_PROXY_CREDENTIALS_FILE",
        "PATH",
        "A file with USER:PASSWORD for the proxy, mode 0600; read anew at each connection.",
    ),
    Setting(
        "proxy-ca-file",
        "proxy-ca-file",
        "HELIX_AGENT_PROXY_CA_FILE",
        "PATH",
        "Certificates (PEM) of the authorities to trust for a proxy over TLS.",
    ),
    Setting(
        "metrics",
        "metrics-listen",
        METRICS,
        "ENDPOINT",
        "Serve /metrics, /healthz and /readyz there, to everybody who comes: a Twisted endpoint "
        "such as tcp:9465:interface=127.0.0.1. Without it there is no such port.",
        ofProcess=True,
    ),
    Setting(
        "log",
        "log-format",
        LOG_FORMAT,
        "FORMAT",
        "The log on standard output: text, the default, or json, one object a line.",
        ofProcess=True,
    ),
)
"""Every setting of C{twistd helix-revdial-agent}."""


SECRETS = ("token", "proxy")
"""Flags whose value may be or hold a secret."""


@dataclass(frozen=True, slots=True)
class Offered:
    """
    Which settings a program takes and how its flags are written.

    @ivar settings: The rows.
    @ivar dashes: What stands before a flag.
    @ivar spelled: Flags that the program writes in another way altogether.
    @ivar local: The default of C{--local} whatever the runner, if the program
        has one.
    @ivar reconnect: The default of C{--reconnect}, in seconds.
    @ivar drain: The default of C{--drain}, in seconds.
    """

    settings: tuple[Setting, ...] = SETTINGS
    dashes: str = "--"
    spelled: Mapping[str, str] = field(default_factory=dict)
    local: str | None = None
    reconnect: float = FIRST_DELAY
    drain: float = DRAIN


TWISTD = Offered()
"""C{twistd helix-revdial-agent} takes everything."""


__all__ = [
    "DRAIN",
    "HOST_LOCAL",
    "SECRETS",
    "SESSION_LOCAL",
    "SETTINGS",
    "TWISTD",
    "Offered",
    "Setting",
]
