# -*- test-case-name: tests.agent.test_settings -*-
"""
What an agent is told: flags and environment made into one value.

Owns which of two ways to say a thing wins, the defaults and every complaint.
The names stand in L{helix_revdial.agent.vocabulary}.  Opens nothing but the
files that settings name.

Rules:

  - A flag wins over the environment.  An empty value counts as none, since
    start scripts pass C{-token "$TOKEN"} whether or not it is set.
  - The names come in two families, from the two programs that came before:
    C{HELIX_API_URL}, C{WOLF_ID}, C{RUNNER_TOKEN} for a host, and
    C{HELIX_API_BASE_URL}, C{HELIX_SESSION_ID}, C{USER_API_TOKEN} for a
    session.  An agent prefers the family that its identity comes from and
    falls back to the other.
  - What is missing is named: every flag and every variable that would do.
  - The token itself is never in a value, a complaint or a description.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from ..revdial.client import ServerURL
from ..revdial.listener import MAX_DIALS, MAX_PARKED, MAX_STREAMS
from ..revdial.offered import Expose, OfferedTarget
from ..systemd.credentials import credentialPath
from .network import NetworkSettings
from .network_settings import networkWarnings, readNetwork
from .reconnect import FIRST_DELAY
from .targets import TargetAddress, parseTarget
from .token import NoToken, Secret, TokenFile, TokenSource, TokenText, TokenUnusable
from .vocabulary import DRAIN, HOST_LOCAL, SESSION_LOCAL, TWISTD, Offered, Setting

RUNNER_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""What a runner may be called."""

TARGET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What a target may be called."""

MAX_TARGETS = 64
"""Targets of one agent."""

MAX_FIRST_DELAY = 3600.0
"""The longest C{--reconnect}, in seconds."""

CREDENTIAL = "token"
"""The credential of the service manager that holds the token where no other is named."""

MAX_DRAIN = 3600.0
"""The longest C{--drain}, in seconds."""

DEFAULT_TARGET = "default"
"""The name of the target that C{--local} gives."""


class SettingsError(ValueError):
    """The settings make no agent; the text says what to change."""


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """
    All that an agent needs to know.

    @ivar network: The control plane's addresses and the way there.
    @ivar key: The runner key to register.
    @ivar token: Gives the token for each connection.
    @ivar targets: The local services by name.
    @ivar default: The name of the one that a dial without a target reaches.
    @ivar reconnect: The ceiling of the first delay, in seconds.
    @ivar expose: Whom each target is for, by name; the session's owner, where it
        does not say.
    @ivar maxDials: Dials that may be under way at a time.
    @ivar maxStreams: Streams that may be open at a time.
    @ivar maxParked: Data connections that may wait for dials at a time.
    @ivar drain: Seconds that streams get to finish when the agent stops.
    @ivar warnings: What works but should be changed, one line each.
    """

    network: NetworkSettings
    key: str
    token: TokenSource
    targets: Mapping[str, TargetAddress]
    default: str
    reconnect: float = FIRST_DELAY
    drain: float = DRAIN
    warnings: tuple[str, ...] = ()
    expose: Mapping[str, Expose] = field(default_factory=dict)
    maxDials: int = MAX_DIALS
    maxStreams: int = MAX_STREAMS
    maxParked: int = MAX_PARKED

    @property
    def server(self) -> ServerURL:
        """The control plane's preferred address."""
        return self.network.servers[0]

    @property
    def offered(self) -> tuple[OfferedTarget, ...]:
        """What the server is told of the targets."""
        return tuple(
            OfferedTarget(name, self.expose.get(name, "owner"), name == self.default)
            for name in self.targets
        )

    def describe(self) -> str:
        """
        The settings for people, without secrets, as C{--check-config} prints them.
        """
        rows = [
            *self.network.describe(),
            ("runner", self.key),
            ("token", f"from {self.token.origin}"),
        ]
        for name, address in self.targets.items():
            notes = ["default"] if name == self.default else []
            if name in self.expose:
                notes.append(f"for {self.expose[name]}")
            note = f" ({', '.join(notes)})" if notes else ""
            rows.append(("target", f"{name} = {address}{note}"))
        rows.append(("reconnect", f"first after up to {self.reconnect:g} s"))
        return "".join(f"{name:<10} {value}\n" for name, value in rows)

    def checkToken(self) -> None:
        """
        Look whether there is a token now, as C{--check-config} does.

        An agent that runs keeps trying instead, since the file may come later.

        @raise SettingsError: There is none that could be used.
        """
        try:
            self.token()
        except TokenUnusable as error:
            raise SettingsError(str(error)) from None


class _Given:
    """What was told, by what: finds values for the readers below."""

    def __init__(
        self,
        flags: Mapping[str, str | Secret | Sequence[str] | None],
        environment: Mapping[str, str],
        offered: Offered,
    ) -> None:
        self._flags = flags
        self._environment = environment
        self._offered = offered

    def rows(self, about: str) -> Iterator[Setting]:
        return (row for row in self._offered.settings if row.about == about)

    def flagName(self, row: Setting) -> str:
        return self._offered.spelled.get(row.flag or "") or f"{self._offered.dashes}{row.flag}"

    def byFlag(self, about: str) -> list[tuple[Setting, str]]:
        found = []
        for row in self.rows(about):
            value = self._flags.get(row.flag) if row.flag else None
            text = value.reveal() if isinstance(value, Secret) else value
            if text and row.repeatable and not isinstance(text, str):
                text = ",".join(text)
            if isinstance(text, str) and text:
                found.append((row, text))
        if len(found) > 1:
            names = " and ".join(self.flagName(row) for row, _ in found)
            raise SettingsError(f"{names} say the same thing: give one of them")
        return found

    def byVariable(self, about: str) -> list[tuple[Setting, str]]:
        found = []
        for row in self.rows(about):
            value = self._environment.get(row.variable, "") if row.variable else ""
            if value:
                found.append((row, value))
        return found

    def one(self, about: str) -> tuple[str, str] | None:
        """The value and where it was given, for what has one flag and one variable."""
        for row, text in self.byFlag(about):
            return text, self.flagName(row)
        for row, text in self.byVariable(about):
            return text, str(row.variable)
        return None

    def severally(self, about: str) -> tuple[Sequence[str], str]:
        """The same for a flag that may be repeated."""
        for row in self.rows(about):
            values = self._flags.get(row.flag) if row.flag else None
            if values and not isinstance(values, str | Secret):
                return values, self.flagName(row)
        for row, text in self.byVariable(about):
            return text.split(), str(row.variable)
        return (), ""

    def switch(self, about: str) -> tuple[str, str] | None:
        """The word for a flag without a value, or for its variable."""
        for row in self.rows(about):
            value = self._flags.get(row.flag) if row.flag else None
            if value:
                return (value if isinstance(value, str) else "1"), self.flagName(row)
        for row, text in self.byVariable(about):
            return text, str(row.variable)
        return None

    def missing(self, about: str, what: str) -> str:
        flags = [self.flagName(row) for row in self.rows(about) if row.flag]
        variables = [row.variable for row in self.rows(about) if row.variable]
        ways = []
        if flags:
            ways.append(f"give {_alternatives(flags)}")
        if variables:
            ways.append(f"set {_alternatives(variables)}")
        return f"no {what}: {', or '.join(ways)}"


def readSettings(
    flags: Mapping[str, str | Secret | Sequence[str] | None],
    environment: Mapping[str, str],
    offered: Offered = TWISTD,
) -> AgentSettings:
    """
    Make the settings of an agent.

    @param flags: Values by flag name, without dashes; a L{Secret} for the token, a
        list for a flag that may be repeated.
    @param environment: The environment variables.
    @param offered: What the program takes.
    @raise SettingsError: Something is missing or cannot be; the text has one line
        for each complaint.
    """
    given = _Given(flags, environment, offered)
    complaints: list[str] = []
    warnings: list[str] = []

    key, family = None, "HELIX_API_URL"
    try:
        key, family = _readKey(given, warnings)
    except SettingsError as error:
        complaints.append(str(error))
    network = None
    try:
        network = readNetwork(given, _readServers(given, family), environment)
        warnings.extend(networkWarnings(network, environment.get("CREDENTIALS_DIRECTORY")))
    except ValueError as error:
        complaints.append(str(error))
    token = None
    try:
        token = _readToken(given, family, environment.get("CREDENTIALS_DIRECTORY"))
        warnings.extend(token.warnings())
    except SettingsError as error:
        complaints.append(str(error))
    targets: dict[str, TargetAddress] = {}
    try:
        targets = _readTargets(given, offered.local, key or "")
    except SettingsError as error:
        complaints.append(str(error))
    reconnect, drain = offered.reconnect, offered.drain
    try:
        reconnect = _readSeconds(given, "reconnect", offered.reconnect, MAX_FIRST_DELAY)
        drain = _readSeconds(given, "drain", offered.drain, MAX_DRAIN, zero=True)
    except SettingsError as error:
        complaints.append(str(error))

    if complaints or key is None or network is None or token is None:
        raise SettingsError("\n".join(complaints))
    return AgentSettings(
        network=network,
        key=key,
        token=token,
        targets=MappingProxyType(targets),
        default=next(iter(targets)),
        reconnect=reconnect,
        drain=drain,
        warnings=tuple(warnings),
    )


def readWay(
    flags: Mapping[str, str | Secret | Sequence[str] | None], environment: Mapping[str, str]
) -> NetworkSettings:
    """
    Read no more than what is about the way to the servers: addresses, proxy, TLS.

    @param flags: As for L{readSettings}.
    @param environment: Where proxies are looked for; the agent's own variables are not.
    @raise SettingsError: Something cannot be.
    """
    given = _Given(flags, {}, TWISTD)
    try:
        return readNetwork(given, _readServers(given, "HELIX_API_URL"), environment)
    except ValueError as error:
        raise SettingsError(str(error)) from None


def _alternatives(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _readKey(given: _Given, warnings: list[str]) -> tuple[str, str]:
    """The runner key, and which variable's family of names the agent belongs to."""
    found = given.byFlag("runner")
    if found:
        row, text = found[0]
        origin = given.flagName(row)
    else:
        found = given.byVariable("runner")
        if not found:
            raise SettingsError(given.missing("runner", "runner"))
        if len(found) > 1:
            names = " and ".join(str(row.variable) for row, _ in found)
            flags = [given.flagName(row) for row in given.rows("runner") if row.flag]
            raise SettingsError(
                f"{names} are both set: say which runner this is with {_alternatives(flags)}"
            )
        row, text = found[0]
        origin = str(row.variable)
    if row.variable == "WOLF_ID":
        key = f"wolf-{text}"
        if text.startswith("wolf-"):
            warnings.append(f"{origin} {text} registers the runner {key}; was {text} meant?")
    elif row.variable == "HELIX_SESSION_ID":
        key = f"sandbox-{text}"
    else:
        key = text
    if RUNNER_KEY.fullmatch(key) is None:
        raise SettingsError(
            f"{origin}: {key[:200]!r} is no runner key: letters, digits, '.', '_' and '-', "
            "the first one a letter or digit, at most 128"
        )
    if key in ("sandbox-", "desktop-", "wolf-"):
        raise SettingsError(f"{origin}: nothing follows {key!r}; is a variable empty?")
    ofSession = row.variable == "HELIX_SESSION_ID" or key.startswith(("sandbox-", "desktop-"))
    return key, "HELIX_API_BASE_URL" if ofSession else "HELIX_API_URL"


def _readServers(given: _Given, family: str) -> tuple[ServerURL, ...]:
    found = given.byFlag("server")
    if found:
        row, text = found[0]
        origin = given.flagName(row)
    else:
        found = given.byVariable("server")
        if not found:
            raise SettingsError(given.missing("server", "server"))
        found.sort(key=lambda each: each[0].variable != family)
        row, text = found[0]
        origin = str(row.variable)
    if "@" in text:
        # What stands before the @ may be a password: it is not repeated.
        raise SettingsError(f"{origin}: a user name in the URL is not used; take it out")
    try:
        servers = [ServerURL.parse(each) for each in text.split(",") if each.strip()]
    except ValueError as error:
        raise SettingsError(f"{origin}: {error}") from None
    # The same address twice would be tried twice.
    return tuple(dict.fromkeys(servers))


def _readToken(given: _Given, family: str, credentials: str | None) -> TokenSource:
    found = given.byFlag("token")
    if found:
        row, text = found[0]
        origin = given.flagName(row)
    else:
        found = given.byVariable("token")
        if not found:
            handed = credentialPath({"CREDENTIALS_DIRECTORY": credentials or ""}, CREDENTIAL)
            if handed is not None:
                return TokenFile(str(handed), f"credential {CREDENTIAL}", credentials)
            if given.one("client-certificate") is not None:
                # The server judges whether it may stand in a token's place.
                return NoToken()
            raise SettingsError(given.missing("token", "token"))
        # The file first; then the token of the agent's own kind, so that a session
        # does not use the runners' token that its host happens to have set.
        own = "USER_API_TOKEN" if family == "HELIX_API_BASE_URL" else "RUNNER_TOKEN"
        order = ("HELIX_AGENT_TOKEN_FILE", own)
        found.sort(
            key=lambda each: (
                order.index(str(each[0].variable)) if each[0].variable in order else len(order)
            )
        )
        row, text = found[0]
        origin = str(row.variable)
    if row.flag == "token-file":
        return TokenFile(text, f"{origin} {text}", credentials)
    return TokenText(origin, Secret(text), visible=origin.startswith("-"))


def _readTargets(given: _Given, local: str | None, key: str) -> dict[str, TargetAddress]:
    targets: dict[str, TargetAddress] = {}
    named, origin = given.severally("targets")
    own = given.one("local")
    if own is not None:
        targets[DEFAULT_TARGET] = _readTarget(*own)
    elif not named:
        fallback = local or (HOST_LOCAL if key.startswith("wolf-") else SESSION_LOCAL)
        targets[DEFAULT_TARGET] = parseTarget(fallback)
    for each in named:
        name, equals, address = each.partition("=")
        if not equals or TARGET_NAME.fullmatch(name) is None:
            raise SettingsError(
                f"{origin}: {each[:200]!r}: write NAME=ADDRESS, the name of letters, digits, "
                "'.', '_' and '-', at most 64"
            )
        if name in targets:
            raise SettingsError(f"{origin}: there are two targets {name!r}")
        targets[name] = _readTarget(address, origin)
    if len(targets) > MAX_TARGETS:
        raise SettingsError(f"{origin}: an agent has at most {MAX_TARGETS} targets")
    return targets


def _readTarget(text: str, origin: str) -> TargetAddress:
    try:
        return parseTarget(text)
    except ValueError as error:
        raise SettingsError(f"{origin}: {error}") from None


def _readSeconds(
    given: _Given, about: str, default: float, most: float, *, zero: bool = False
) -> float:
    own = given.one(about)
    if own is None:
        return default
    text, origin = own
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not (0 < seconds <= most or (zero and seconds == 0)):
        least = "from 0" if zero else "above 0"
        raise SettingsError(
            f"{origin}: {text[:50]!r}: a number of seconds {least}, at most {most:g}"
        )
    return seconds


__all__ = [
    "RUNNER_KEY",
    "AgentSettings",
    "SettingsError",
    "readSettings",
    "readWay",
]
