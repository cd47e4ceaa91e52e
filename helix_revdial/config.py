# -*- test-case-name: tests.test_config -*-
"""
The server's settings: file, environment and flags into one typed value.

The later wins: defaults, then one TOML file, then environment variables, then
flags.  The names are the same everywhere: C{grace_period} in C{[tunnel]} of
the file is C{HELIX_REVDIAL_TUNNEL_GRACE_PERIOD} in the environment and
C{--set tunnel.grace_period=…} on the command line.

A key that is not known, or a value of the wrong kind, is refused with the
place where it stands.  Nothing here opens a socket, reads a secret or touches
the database; secrets are named by the files that hold them, never held.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

PREFIX = "HELIX_REVDIAL_"

RUNNER_TOKEN_VARIABLE = "RUNNER_TOKEN"  # noqa: S105 (the variable's name)
"""Where the existing Go control plane keeps its one runner token."""

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400 * 30)]
Count = Annotated[int, msgspec.Meta(ge=1, le=10_000_000)]
CallRate = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]
Size = Annotated[int, msgspec.Meta(ge=1, le=2**40)]
Days = Annotated[float, msgspec.Meta(ge=0, le=36_500)]


class ConfigError(Exception):
    """The settings cannot be used; the text says where and what to do."""


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower()


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename=_snake):
    """A table of the file: attributes in camelCase here, keys in snake_case there."""


class ServerSection(_Section, frozen=True, rename=_snake):
    """Where the server keeps what must outlive it."""

    stateDirectory: str = "/var/lib/helix-revdial"
    """Directory for the database (SQLite) and the first admin token."""

    database: str | None = None
    """SQLAlchemy URL; without it, C{helix.sqlite} in the state directory."""

    databaseThreads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 5
    """Threads of the database pool: queries at once."""


class TLSSection(_Section, frozen=True, rename=_snake):
    """TLS on one door; certificates are read again when the settings are."""

    certificate: str | None = None
    """PEM file: the certificate, then the chain; the key too, where C{key} is not given."""

    key: str | None = None
    """PEM file of the private key, without a passphrase."""

    directory: str | None = None
    """Directory of certificates, of which each caller gets the one that it names (SNI)."""

    minimumVersion: Literal["1.2", "1.3"] = "1.2"
    """The oldest version of TLS that is spoken."""

    clientCa: str | None = None
    """PEM file of the authorities whose client certificates are accepted."""

    clientCertificates: Literal["required", "optional"] = "required"
    """Whether a caller must have a certificate, where C{client_ca} is given."""

    mapClients: bool = False
    """Whether a certificate says who asks, as C{[[access.client_certificate]]} has it."""


class ProxySection(_Section, frozen=True, rename={"sources": "from"}):
    """A door behind proxies that begin each connection with a PROXY header (v1, v2)."""

    sources: tuple[str, ...]
    """Networks or addresses of the proxies, or C{"unix"}; nobody else is let in."""


class ListenSection(_Section, frozen=True, rename=_snake):
    """One door. Several may stand in the file, each under C{[[listen]]}."""

    endpoint: str = "tcp:8080:interface=127.0.0.1"
    """A Twisted server endpoint string: C{tcp:}, C{unix:}, C{systemd:}."""

    tls: TLSSection | None = None
    """TLS; without it, plain HTTP."""

    proxyProtocol: ProxySection | None = None
    """PROXY headers; without it, a connection's address is its caller's."""


class TunnelSection(_Section, frozen=True, rename=_snake):
    """The rules of control connections and dials."""

    gracePeriod: Seconds = 30.0
    """Seconds for which a lost runner keeps its name and its waiting dials."""

    maxPendingDials: Count = 100
    """Dials that may wait for one runner, connected or not."""

    dialTimeout: Seconds = 20.0
    """Seconds within which a connected agent must dial back."""

    maxRunners: Count = 10_000
    """Runner keys that may be connected or in grace at once."""

    requireFeatures: tuple[str, ...] = ()
    """Feature words without which an agent is refused, such as C{["tickets"]}."""

    zeroKey: bool = False
    """Whether agents that ask for it may mask what they send in bulk with a zero key."""


class HttpSection(_Section, frozen=True, rename=_snake):
    """What a peer may cost before and after it has shown who it is."""

    maxConnections: Count = 20_000
    """Open connections in all, tunnels included."""

    maxUnauthenticated: Count = 4096
    """Connections that have not yet shown a valid token, in all."""

    maxUnauthenticatedPerAddress: Count = 1024
    """The same for one address."""

    headTimeout: Seconds = 10.0
    """Seconds within which a whole request head must have arrived."""

    idleTimeout: Seconds = 75.0
    """Seconds that a kept-alive connection may be idle between requests."""


class DrainSection(_Section, frozen=True, rename=_snake):
    """How the server leaves when it is told to stop."""

    timeout: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 30.0
    """Seconds that requests and streams under way have to finish; 0 cuts them at once."""

    keepConnections: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 0
    """
    Control connections on plain sockets that systemd keeps over a restart; the unit's
    C{FileDescriptorStoreMax} has to be higher.
    """


class LivenessSection(_Section, frozen=True, rename=_snake):
    """How the server finds out that an agent is gone, and when it may say so."""

    keepAlive: Seconds = 15.0
    """Seconds between questions that an agent has to answer."""

    silence: Seconds = 40.0
    """Seconds without an answer after which an agent is given up."""

    kernelTimeout: Annotated[int, msgspec.Meta(ge=1, le=3600)] = 10
    """Seconds after which the kernel gives up a control connection whose path is gone."""

    settleTime: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 45.0
    """Seconds after a start for which the runners of before are awaited."""


class PoolSection(_Section, frozen=True, rename=_snake):
    """Data connections that agents park in advance."""

    spare: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 2
    """Idle ones kept to a runner that was dialled in the last ten minutes."""

    perRunner: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 128
    """To one runner, those that carry a short stream included; 0 parks none."""

    total: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 2000
    """To all runners together."""

    refresh: Annotated[float, msgspec.Meta(ge=10, le=86_400)] = 240.0
    """Seconds after which an idle one is replaced."""


class LimitsSection(_Section, frozen=True, rename=_snake):
    """What all callers and agents together may cost."""

    handshakesPerSecond: Annotated[float, msgspec.Meta(gt=0, le=1_000_000)] = 200.0
    """Control connections that are made in a second, over any longer time."""

    handshakeBurst: Count = 200
    """Control connections at once, after a quiet time."""

    connectionsPerAddress: Count = 10_000
    """Open connections from one address, tunnels included."""

    connectionsPerTenant: Count = 20_000
    """Control and data connections of one tenant's agents."""

    streamsPerRunner: Count = 4096
    """Streams open to one runner."""

    streamsPerUser: Count = 1000
    """Streams that one user may have open through the stream gateway, dials included."""

    dials: Count = 5000
    """Dials that wait, or are not answered yet, in all."""

    bufferedBytes: Size = 512 * 1024 * 1024
    """Bytes that wait for peers to read, over all connections."""

    descriptorReserve: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)] = 0
    """Descriptors kept for control connections; 0 for a tenth of all."""


class GatewaysSection(_Section, frozen=True, rename=_snake):
    """HTTP to services beside agents."""

    requestsPerUser: Count = 256
    """HTTP requests of one user that may be under way, upgraded ones included."""

    requestsPerRunner: Count = 512
    """The same to one runner."""

    answerTimeout: Seconds = 300.0
    """Seconds from the end of a request until its service must begin to answer."""

    trustedProxies: tuple[str, ...] = ()
    """Networks, addresses or C{"unix"}: whose C{X-Forwarded-} fields are passed on."""

    baseDomain: str | None = None
    """The domain of C{TARGET--RUNNER} host names; without it there are none."""


class EventsSection(_Section, frozen=True, rename=_snake):
    """Server-sent events."""

    heartbeat: Annotated[float, msgspec.Meta(ge=0.1, le=3600)] = 15.0
    """Seconds between two signs of life on a stream of events."""

    queueBytes: Annotated[int, msgspec.Meta(ge=4096, le=2**30)] = 1024 * 1024
    """Bytes that wait for one client; one that would have more is closed, and resumes."""


class RateOverrideSection(_Section, frozen=True, rename=_snake):
    """What somebody in particular may; exactly one of the first three keys."""

    tenant: str | None = None
    project: str | None = None
    """C{TENANT/PROJECT}."""

    user: str | None = None
    """C{TENANT/USER}."""

    perSecond: CallRate = 0.0
    burst: Count = 1


class RateLimitsSection(_Section, frozen=True, rename=_snake):
    """How often users may call the API; rates of 0 are no limit."""

    userPerSecond: CallRate = 1000.0
    """Calls of one user in a second, over any longer time."""

    userBurst: Count = 2000
    """Calls of one user at once, after a quiet time."""

    projectPerSecond: CallRate = 0.0
    projectBurst: Count = 2000
    tenantPerSecond: CallRate = 0.0
    tenantBurst: Count = 2000

    override: tuple[RateOverrideSection, ...] = ()
    """Who has a rate of its own."""


class ForwardSection(_Section, frozen=True, rename=_snake):
    """A port of the server that leads to a target."""

    listen: str
    """C{tcp:PORT} on 127.0.0.1, or C{tcp:PORT:interface=ADDRESS}."""

    runner: str
    """The runner's key."""

    target: str | None = None
    """The target's name; without it, the agent's default."""

    allow: tuple[str, ...] = ()
    """Networks and addresses that may connect; needed beyond loopback."""

    proxyProtocol: bool = False
    """Whether the target gets a PROXY header (version 2) that says who connected."""


class ForwardsSection(_Section, frozen=True, rename=_snake):
    """Ports of the server that lead to targets, without a token."""

    ports: str | None = None
    """The ports that forwards may have, C{"20000-20100"}; without it there are none."""

    interfaces: tuple[str, ...] = ("127.0.0.1",)
    """The addresses that forwards may listen on."""

    maxForwards: Count = 100
    """Forwards at once."""

    maxConnections: Count = 1000
    """Connections of one forward at once."""

    forward: tuple[ForwardSection, ...] = ()
    """Those that are there from the start."""


class AgentSection(_Section, frozen=True, rename=_snake):
    """An agent that tasks may ask for."""

    type: str
    """What tasks call it."""

    command: tuple[str, ...]
    """Its command line; C{{prompt}}, C{{workspace}} and the like are filled in on the host."""

    versions: tuple[str, ...] = ("latest",)
    """Those that may be asked for, the newest first."""

    environment: dict[str, str] = {}
    """What is added to its environment."""

    schema: dict[str, Any] = msgspec.field(
        default_factory=lambda: {"type": "object", "properties": {}}
    )
    """JSON Schema of its settings."""

    prompts: Literal["none", "input", "files"] = "none"
    """
    How it takes prompts while it runs: not at all, as lines on standard input, or as new
    files in the directory that C{HELIX_PROMPTS} names.
    """


class AgentsSection(_Section, frozen=True, rename=_snake):
    """The agents that tasks may ask for."""

    demonstration: bool = True
    """Whether the scripted agent that comes with the project is among them."""

    agent: tuple[AgentSection, ...] = ()
    """The others."""


class SessionsSection(_Section, frozen=True, rename=_snake):
    """Tasks, and who runs them."""

    serverUrl: str | None = None
    """Where a task's own sandbox reaches this server; without it none has a tunnel."""

    allowDisabledRuntime: bool = False
    """Whether an agent may run on a host without any sandbox."""

    stopDeadline: Seconds = 10.0
    """Seconds from the wish that a task stops to its end by force."""

    unreachableLimit: Seconds = 900.0
    """Seconds that a host may be away before its tasks have failed."""

    heartbeat: Seconds = 5.0
    """Seconds between two questions to a host how it is."""

    patchBytes: Size = 256 * 1024**2
    """Bytes of a patch of which the server keeps a copy."""

    patchQuota: Size = 10 * 1024**3
    """Bytes of all copies of patches; the oldest make room."""

    patchRetention: Annotated[float, msgspec.Meta(gt=0, le=3650)] = 30.0
    """Days for which they are kept."""

    recordingBytes: Size = 64 * 1024**2
    """Bytes of a session's output as a recording; what is beyond is left out of it."""

    synthetic: bool = False
    """Whether there is a host that only pretends to run tasks."""

    syntheticSpeed: Annotated[float, msgspec.Meta(gt=0, le=10_000)] = 1.0
    """How many times faster than life it does."""


class GitSection(_Section, frozen=True, rename=_snake):
    """How the server itself looks at repositories."""

    allow: tuple[str, ...] = ()
    """Networks and addresses that are not public and may be reached."""

    sshKey: str | None = None
    """File of the private key for ssh."""

    knownHosts: str | None = None
    """File of the hosts' keys for ssh; without it any key is taken."""

    caFile: str | None = None
    """PEM file of the authorities for https, instead of the system's."""


class UploadsSection(_Section, frozen=True, rename=_snake):
    """Archives that users send for their tasks."""

    directory: str | None = None
    """Where they are kept; C{uploads} in the state directory. One server's own."""

    maxBytes: Size = 1024**3
    """Of one archive."""

    tenantBytes: Size = 10 * 1024**3
    """Of all archives of a tenant that are promised or here."""

    lifetime: Seconds = 3600.0
    """Seconds in which one has to be sent, and then again in which it has to be used."""

    atOnce: Count = 16
    """Archives that are received at one time."""


class WebhooksSection(_Section, frozen=True, rename=_snake):
    """Telling other servers what happens to sessions."""

    allow: tuple[str, ...] = ()
    """Networks and addresses that are not public and may be told."""

    caFile: str | None = None
    """PEM file of the authorities for https, instead of the system's."""

    timeout: Annotated[float, msgspec.Meta(gt=0, le=60)] = 10.0
    """Seconds for one attempt, from the name to the answer."""

    giveUpAfter: Seconds = 86_400.0
    """Seconds after which nobody is told any more what he could not be told."""

    atOnce: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 32
    """Attempts at one time; a quarter of them for one tenant."""

    perTarget: Annotated[int, msgspec.Meta(ge=1, le=100)] = 4
    """Attempts at one time to one server; one while it does not answer as it should."""


class RetentionSection(_Section, frozen=True, rename=_snake):
    """How long is kept what is over. 0: for ever."""

    eventDays: Days = 90.0
    """Days for which the events and the log of a session are kept after its end."""

    eventsPerSession: Annotated[int, msgspec.Meta(ge=0, le=100_000_000)] = 100_000
    """Events that are kept of a session that has ended: the last ones."""

    sessionDays: Days = 0.0
    """Days after its end, or its deletion, at which a session is removed with all it left."""

    deliveryDays: Days = 30.0
    """Days for which it is kept what webhooks were told, or could not be told."""

    interval: Seconds = 300.0
    """Seconds between two looks for what is over its time."""


class DesktopSection(_Section, frozen=True, rename=_snake):
    """Screenshots and clipboards of sessions."""

    requestTimeout: Seconds = 30.0
    """Seconds for a whole exchange with a desktop, the dial included."""

    maxScreenshotBytes: Size = 32 * 1024 * 1024
    maxClipboardBytes: Size = 16 * 1024 * 1024


class ClientCertificateSection(_Section, frozen=True, rename=_snake):
    """Whose a client certificate is: exactly one of the first two keys says which."""

    fingerprint: str | None = None
    """C{sha256:…}, of the whole certificate."""

    subjectAltName: str | None = None
    """C{dns:…}, C{uri:…}, C{email:…} or C{ip:…}: a name that the certificate is for."""

    kind: Literal["runner", "user"] = "runner"
    patterns: tuple[str, ...] = ()
    """For a runner: the keys that it may register."""

    user: str | None = None
    role: Literal["admin", "operator", "viewer"] | None = None
    tenant: str = "default"


class IssuerSection(_Section, frozen=True, rename=_snake):
    """An issuer of JSON web tokens that are taken in the place of our own."""

    issuer: str
    """The C{iss} of its tokens."""

    audience: str
    """What its tokens have as C{aud}."""

    algorithm: str
    """The one algorithm that it signs with: C{HS256}, C{RS256}, C{ES256}, C{EdDSA}…"""

    secretFile: str | None = None
    """For HS algorithms: the file that holds the secret."""

    jwksUrl: str | None = None
    """For the others: C{https://…}, where its public keys are."""

    jwksCa: str | None = None
    """PEM file of the authorities that are believed there, instead of the platform's."""

    tenants: tuple[str, ...] = ()
    """The tenants that its tokens may name; any, if there are none."""

    defaultRole: Literal["admin", "operator", "viewer"] | None = None
    """For tokens that name no role that is known here; without it they are refused."""

    clockSkew: Annotated[float, msgspec.Meta(ge=0, le=300)] = 30.0
    """Seconds by which its clock may be ahead. An expiry is exact."""


class AccessSection(_Section, frozen=True, rename=_snake):
    """The first tokens."""

    adminTokenFile: str | None = None
    """Where the first admin token goes (mode 0600); C{admin.token} in the state directory."""

    importRunnerToken: bool = True
    """
    Whether the C{RUNNER_TOKEN} of the environment, where there is one, is
    imported as a runner token, so that existing hosts keep working.
    """

    runnerTokenPatterns: tuple[str, ...] = ("wolf-*", "moonlight-*", "hydra-*")
    """What an imported C{RUNNER_TOKEN} may register."""

    clientCertificate: tuple[ClientCertificateSection, ...] = ()
    """Who asks with a client certificate and no token."""

    issuer: tuple[IssuerSection, ...] = ()
    """Whose JSON web tokens are taken."""


class MetricsSection(_Section, frozen=True, rename=_snake):
    """Metrics for Prometheus, on a door of their own that asks nobody who he is."""

    listen: str | None = None
    """A Twisted server endpoint string; without it there is no such door."""

    runnerLabels: bool = False
    """Whether runners have metrics of their own, with their keys for labels."""


class LoggingSection(_Section, frozen=True, rename=_snake):
    """The log on standard output."""

    format: Literal["text", "json"] = "text"
    """C{json}: one JSON object a line."""

    level: Literal["debug", "info", "warn", "error", "critical"] = "info"
    """What is below it is left out."""

    streams: bool = True
    """Whether each dial gets a line when it, and its stream, are over."""


class TracingSection(_Section, frozen=True, rename=_snake):
    """Spans for OpenTelemetry."""

    otlp: bool = False
    """Whether they are sent (by OTLP over HTTP; the C{OTEL_} variables say where to)."""


class ServerConfig(_Section, frozen=True, rename=_snake):
    """All the settings of C{twistd helix-revdial-server}."""

    server: ServerSection = ServerSection()
    listen: tuple[ListenSection, ...] = (ListenSection(),)
    tunnel: TunnelSection = TunnelSection()
    http: HttpSection = HttpSection()
    liveness: LivenessSection = LivenessSection()
    pool: PoolSection = PoolSection()
    limits: LimitsSection = LimitsSection()
    gateways: GatewaysSection = GatewaysSection()
    events: EventsSection = EventsSection()
    rateLimits: RateLimitsSection = RateLimitsSection()
    forwards: ForwardsSection = ForwardsSection()
    desktop: DesktopSection = DesktopSection()
    agents: AgentsSection = AgentsSection()
    sessions: SessionsSection = SessionsSection()
    git: GitSection = GitSection()
    uploads: UploadsSection = UploadsSection()
    webhooks: WebhooksSection = WebhooksSection()
    retention: RetentionSection = RetentionSection()
    drain: DrainSection = DrainSection()
    access: AccessSection = AccessSection()
    metrics: MetricsSection = MetricsSection()
    logging: LoggingSection = LoggingSection()
    tracing: TracingSection = TracingSection()

    @property
    def databaseURL(self) -> str:
        """The database to use, with the default made from the state directory."""
        if self.server.database is not None:
            return self.server.database
        return "sqlite:///" + str(Path(self.server.stateDirectory, "helix.sqlite").absolute())

    @property
    def uploadsPath(self) -> Path:
        """Where uploads are kept."""
        if self.uploads.directory is not None:
            return Path(self.uploads.directory)
        return Path(self.server.stateDirectory, "uploads")

    @property
    def patchesPath(self) -> Path:
        """Where copies of patches are kept."""
        return Path(self.server.stateDirectory, "patches")

    @property
    def adminTokenPath(self) -> Path:
        """Where the first admin token is written."""
        if self.access.adminTokenFile is not None:
            return Path(self.access.adminTokenFile)
        return Path(self.server.stateDirectory, "admin.token")


def load(
    path: Path | None,
    environment: Mapping[str, str],
    settings: Sequence[str] = (),
    listen: Sequence[str] = (),
) -> ServerConfig:
    """
    Read the settings.

    @param path: The TOML file, or L{None} for none.
    @param environment: The process's environment; only names that begin with
        L{PREFIX} are looked at.
    @param settings: Flags of the form C{section.key=value}.
    @param listen: Endpoint strings that replace those of the file.

    @raise ConfigError: With the file and line, the variable or the flag that
        is wrong.
    """
    text = ""
    raw: dict[str, Any] = {}
    if path is not None:
        try:
            text = path.read_text(encoding="utf-8")
            raw = tomllib.loads(text)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{path}: not UTF-8 text") from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: {error}") from None
    # The file is checked on its own first, so that what is wrong in it is
    # reported with its line, whatever overrides it.
    _convert(raw, lambda place: _where(path, text, place))
    for name, value in environment.items():
        if name.startswith(PREFIX):
            _override(raw, name, _split(name), value)
    for setting in settings:
        name, equals, value = setting.partition("=")
        place = tuple(name.strip().split("."))
        if not equals or len(place) != 2:
            raise ConfigError(f"--set {setting}: expected SECTION.KEY=VALUE")
        _override(raw, f"--set {name}", (place[0], place[1]), value)
    if listen:
        raw["listen"] = [{"endpoint": endpoint} for endpoint in listen]
    config = _convert(raw, lambda place: "settings")
    if not config.listen:
        raise ConfigError("no [[listen]] endpoint: the server would be reachable by nobody")
    return config


def _convert(raw: dict[str, Any], where: Any) -> ServerConfig:
    try:
        return msgspec.convert(raw, ServerConfig)
    except msgspec.ValidationError as error:
        message, _, tail = str(error).partition(" - at `$")
        place = tail.rstrip("`").lstrip(".")
        unknown = re.match(r"Object contains unknown field `(.*)`", message)
        if unknown:
            field = unknown.group(1)
            place = f"{place}.{field}" if place else field
            message = f"unknown key {field!r}"
        raise ConfigError(f"{where(place)}: {place}: {message}") from None


def _where(path: Path | None, text: str, place: str) -> str:
    """The file and line in which the key C{place} (C{section.key}) stands."""
    names = [re.sub(r"\[[0-9.]*\]", "", name) for name in place.split(".")]
    while names:
        found = _lineOf(text, names)
        if found is not None:
            return f"{path}, line {found}"
        # In an inline table, a key has no line of its own.
        names.pop()
    return f"{path}"


def _lineOf(text: str, names: list[str]) -> int | None:
    """The line of a key, or the first of a table of that name."""
    table: list[str] = []
    found: int | None = None
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[\[?\s*([^\]]+?)\s*\]\]?", line)
        key = re.match(r"\s*([A-Za-z0-9_.\"'-]+)\s*=", line)
        if header:
            table = [part.strip().strip("\"'") for part in header.group(1).split(".")]
            if table == names and found is None:
                found = number
        elif key:
            parts = [part.strip("\"'") for part in key.group(1).split(".")]
            if table + parts == names:
                return number
    return found


def _split(variable: str) -> tuple[str, str]:
    name = variable.removeprefix(PREFIX).lower()
    for field in msgspec.structs.fields(ServerConfig):
        # A section's own name may have the sign that stands between it and a key.
        if "_" in field.encode_name and name.startswith(field.encode_name + "_"):
            return field.encode_name, name[len(field.encode_name) + 1 :]
    section, _, key = name.partition("_")
    return section, key


def _override(raw: dict[str, Any], source: str, place: tuple[str, str], value: str) -> None:
    """Put one value from outside the file into C{raw}, read as TOML where it can be."""
    section, key = place
    if (section, key) == ("listen", ""):
        raw["listen"] = [{"endpoint": part} for part in value.split()]
        return
    known = {field.encode_name: field for field in msgspec.structs.fields(ServerConfig)}
    kind = known[section].type if section in known and section != "listen" else None
    if kind is None or key not in {f.encode_name for f in msgspec.structs.fields(kind)}:
        raise ConfigError(f"{source}: unknown setting (no key {key!r} in [{section}])")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value  # a bare word: a string that needs no quotes here
    candidate = {**raw.get(section, {}), key: parsed}
    try:
        msgspec.convert(candidate, kind)
    except msgspec.ValidationError as error:
        if isinstance(parsed, str):
            raise ConfigError(f"{source}: {str(error).partition(' - at')[0]}") from None
        # A number or a date where a string is wanted, such as a bare token.
        candidate[key] = value
        try:
            msgspec.convert(candidate, kind)
        except msgspec.ValidationError:
            raise ConfigError(f"{source}: {str(error).partition(' - at')[0]}") from None
    raw[section] = candidate
