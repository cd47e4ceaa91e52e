"""What the operations work with: one value, made by the control plane."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from twisted.internet.interfaces import IReactorTime

from helix_revdial.access.audit import AuditLog
from helix_revdial.access.certificates import CERTIFICATE_FAMILY, CertificateGrants
from helix_revdial.access.idempotency import Idempotency
from helix_revdial.access.jwt import JWT_FAMILY, JWTs
from helix_revdial.access.policy import runnerFor, sessionOwner
from helix_revdial.access.principals import Principal
from helix_revdial.access.rate_limits import RateExceeded, RateLimits
from helix_revdial.access.tokens import Tokens
from helix_revdial.api.event_document import documentOf
from helix_revdial.api.kept_forwards import KeptForwards
from helix_revdial.api.launching import Launching
from helix_revdial.api.load import Load
from helix_revdial.api.observation import Observation
from helix_revdial.api.replays import Replays
from helix_revdial.config import GatewaysSection, ServerConfig, SessionsSection
from helix_revdial.gateways.proxy import HTTPProxy, ProxyLimits
from helix_revdial.gateways.stream import StreamGateway
from helix_revdial.gateways.tcp_forward import Forwards
from helix_revdial.http.events import EventStreams
from helix_revdial.http.operations import Call
from helix_revdial.http.problem import Problem
from helix_revdial.reload import Reloaded, Unreloadable
from helix_revdial.revdial.connections import Connections
from helix_revdial.revdial.sockets import SocketRelays
from helix_revdial.sessions.agents import Agents
from helix_revdial.sessions.catalogue import Catalogue
from helix_revdial.sessions.drafts import Drafts
from helix_revdial.sessions.driver import Driver
from helix_revdial.sessions.events import EventLog
from helix_revdial.sessions.executors import Executors
from helix_revdial.sessions.git_refs import GitRefs
from helix_revdial.sessions.known_executors import KnownExecutors
from helix_revdial.sessions.patch_copies import PatchCopies
from helix_revdial.sessions.patches import Patches, PatchLimits
from helix_revdial.sessions.records import Session
from helix_revdial.sessions.redaction import secretProperties
from helix_revdial.sessions.run import DriverSettings
from helix_revdial.sessions.sessions import Sessions
from helix_revdial.sessions.timeline import Timeline
from helix_revdial.sessions.uploads import Uploads
from helix_revdial.sessions.webhook_outbox import Outbox
from helix_revdial.sessions.webhook_secrets import WebhookSecrets
from helix_revdial.settings import declaredAgents, forwardBounds, rateSettings, uploadSettings
from helix_revdial.storage.database import Database
from helix_revdial.storage.ids import newId
from helix_revdial.storage.threads import SameThread, Workers
from helix_revdial.telemetry.timestamps import timestamp


async def _noReload(by: str) -> Reloaded:
    raise Unreloadable("this server cannot read its settings again")


@dataclass
class Services:
    """
    @ivar config: The settings of now: a reload replaces them, so nobody keeps
        what was read of them.
    @ivar certificates: Whose client certificates are; replaced likewise.
    @ivar observation: What watches the server.
    @ivar load: The limits over everything.
    @ivar reload: Reads the settings again, in somebody's name.
    @ivar sockets: Moves bytes between plain sockets, for every way in.
    @ivar streams: The way in for streams.
    @ivar proxy: The way in for HTTP.
    @ivar forwards: Ports that lead to targets.
    @ivar keptForwards: Those of them that outlive the server.
    @ivar eventStreams: Answers that are server-sent events.
    @ivar jwts: JSON web tokens of issuers that are believed; the control plane, or a
        test, says which.
    @ivar rates: How often users may call.
    @ivar idempotency: What calls that are made again were answered with.
    @ivar events: What happened to sessions.
    @ivar executors: Who runs tasks.
    @ivar driver: Has them run.
    @ivar timeline: What there is to see of a session's time.
    @ivar patches: The server's own copies of patches, and C{patchCopies}, who makes them.
    @ivar agents: What tasks may ask for; replaced by a reload.
    @ivar catalogue: The projects and repositories that tasks have named.
    @ivar gitRefs: Asks repositories for their branches.
    @ivar fileWorkers: Read and write the files of uploads.
    @ivar drafts: Tasks that are not handed in yet.
    @ivar uploads: Archives for tasks.
    @ivar webhookSecrets: What tenants' webhooks are signed with.
    @ivar outbox: What webhooks are to be told.
    @ivar wallClock: Seconds since 1970.
    @ivar ready: Why the server should get no requests now; empty when it should.
    """

    clock: IReactorTime
    wallClock: Callable[[], float]
    config: ServerConfig
    database: Database
    tokens: Tokens
    audit: AuditLog
    sessions: Sessions
    connections: Connections
    observation: Observation
    load: Load
    ready: Callable[[], str] = field(default=lambda: "")
    certificates: CertificateGrants = field(default_factory=CertificateGrants)
    reload: Callable[[str], Awaitable[Reloaded]] = _noReload
    sockets: SocketRelays | None = None
    gitRefs: GitRefs | None = None
    fileWorkers: Workers = field(default_factory=SameThread)
    events: EventLog = field(init=False)
    executors: Executors = field(init=False)
    knownExecutors: KnownExecutors = field(init=False)
    driver: Driver = field(init=False)
    timeline: Timeline = field(init=False)
    patches: Patches = field(init=False)
    patchCopies: PatchCopies = field(init=False)
    agents: Agents = field(init=False)
    catalogue: Catalogue = field(init=False)
    drafts: Drafts = field(init=False)
    uploads: Uploads = field(init=False)
    webhookSecrets: WebhookSecrets = field(init=False)
    outbox: Outbox = field(init=False)
    streams: StreamGateway = field(init=False)
    proxy: HTTPProxy = field(init=False)
    forwards: Forwards = field(init=False)
    keptForwards: KeptForwards = field(init=False)
    eventStreams: EventStreams = field(init=False)
    jwts: JWTs = field(init=False)
    rates: RateLimits = field(init=False)
    idempotency: Idempotency = field(init=False)
    replays: Replays = field(init=False)

    def __post_init__(self) -> None:
        self.agents = declaredAgents(self.config.agents)
        self.catalogue = Catalogue(self.database)
        self.drafts = Drafts(self.database, self.wallClock)
        section = self.config.sessions
        self.events = self.sessions.events
        self.events.secretSettings = self.secretSettings
        self.timeline = Timeline(self.database, self.events, self.wallClock)
        self.executors = Executors(self.clock, self.wallClock, heartbeat=section.heartbeat)
        self.knownExecutors = KnownExecutors(self.database, self.wallClock, self.executors)
        self.webhookSecrets = WebhookSecrets(self.database, self.wallClock)
        self.outbox = Outbox(self.database, self.wallClock, self.events, documentOf)
        self.uploads = Uploads(
            self.database,
            self.wallClock,
            self.fileWorkers,
            self.config.uploadsPath,
            uploadSettings(self.config.uploads),
        )
        launching = Launching(
            self.tokens,
            lambda: self.agents,
            lambda: self.config.sessions.serverUrl,
            self.uploads,
            self.executors,
        )
        self.driver = Driver(
            self.clock,
            self.wallClock,
            self.sessions,
            self.executors,
            launching.prepare,
            settings=DriverSettings(
                stopDeadline=section.stopDeadline, unreachableLimit=section.unreachableLimit
            ),
            onEnded=launching.ended,
        )
        self.streams = StreamGateway(
            self.clock,
            self.connections,
            limit=self.config.limits.streamsPerUser,
            sockets=self.sockets,
            onLimit=lambda: self.load.refused("streams_per_user"),
        )
        self.tokens.onRevoked(self.streams.end)
        self.patches = Patches(
            self.config.patchesPath,
            self.fileWorkers,
            self.wallClock,
            **patchLimits(section),
        )
        self.patchCopies = PatchCopies(
            self.clock, self.wallClock, self.database, self.sessions, self.executors, self.patches
        )
        self.proxy = HTTPProxy(
            self.clock,
            self.connections,
            proxyLimits(self.config.gateways),
            sockets=self.sockets,
            onLimit=lambda: self.load.refused("http_requests"),
            count=self.observation.metrics.backends.add,
        )
        self.tokens.onRevoked(self.proxy.end)
        self.keptForwards = KeptForwards(self.database, self.wallClock)
        self.forwards = Forwards(
            self.clock,
            self.connections,
            lambda: newId("fwd", self.wallClock()),
            sockets=self.sockets,
            scarce=self.load.scarce,
            onRefused=lambda forward, peer: self.audit.record(
                "forward-refused", subject=forward.id, peer=peer
            ),
            onDeleted=lambda forward: self.keptForwards.forget(forward.id),
            count=self.observation.metrics.forwarded.add,
        )
        self.observation.gateways = lambda: {
            "http_exchanges": len(self.proxy),
            "http_backends_idle": len(self.proxy.backends.idle),
            "gateway_streams": len(self.streams),
            "forwards": len(self.forwards.list()),
            "forward_connections": self.forwards.connectionCount,
        }
        self.forwards.bounds = forwardBounds(self.config.forwards)
        self.tokens.onRevoked(self.forwards.end)
        self.eventStreams = EventStreams(
            self.clock,
            lambda: timestamp(self.wallClock()),
            heartbeat=self.config.events.heartbeat,
            queueBytes=self.config.events.queueBytes,
            onOverflow=lambda: self.load.refused("event_queue"),
        )
        self.tokens.onRevoked(self.eventStreams.end)
        self.jwts = JWTs(self.clock, self.wallClock, self.tokens.tell)
        self.rates = RateLimits(self.clock, rateSettings(self.config.rateLimits))
        self.idempotency = Idempotency(self.database, self.clock, self.wallClock)
        self.replays = Replays(self.idempotency)

    def admit(self, call: Call) -> None:
        """
        Count a call of whoever was authenticated.

        @raise Problem: (429) when there were too many.
        """
        if call.operation.rate is None or not isinstance(call.principal, Principal):
            return
        try:
            self.rates.take(call.principal)
        except RateExceeded as error:
            self.load.refused(f"calls_per_{error.scope}")
            raise Problem(
                429,
                f"This {error.scope} has made too many calls; try again in "
                f"{error.retryAfter} s (rate_limits.{error.scope}_per_second).",
                headers=[(b"Retry-After", b"%d" % error.retryAfter)],
                code="too-many-calls",
            ) from None

    def stillValid(self, principal: Principal) -> bool:
        """Whether who was authenticated a moment ago has not lost that since."""
        if principal.family.startswith(CERTIFICATE_FAMILY):
            return self.certificates.stillValid(principal)
        if principal.family.startswith(JWT_FAMILY):
            return self.jwts.stillValid(principal)
        return self.tokens.stillValid(principal)

    async def outlives(self, principal: Principal) -> bool:
        """
        Whether what somebody made before the server was restarted may still be there.

        @raise DatabaseUnavailable: It cannot be told.
        """
        if principal.family.startswith(CERTIFICATE_FAMILY):
            return self.certificates.stillValid(principal)
        if principal.family.startswith(JWT_FAMILY):
            return self.jwts.resume(principal)
        return await self.tokens.isLive(principal.family)

    def secretSettings(self, agent: str) -> frozenset[str]:
        """The names of an agent's settings that are secret by its schema."""
        declared = self.agents.get(agent)
        return frozenset() if declared is None else secretProperties(declared.schema)

    def runnerOf(self, session: str) -> str:
        """
        The runner that a session's desktop is reached by, now: one that is connected
        if there is one, else one that is awaited.
        """

        def has(word: str) -> Callable[[str], bool]:
            return lambda key: self.connections.status(key) == word

        runner = runnerFor(session, has("connected"))
        return runner if has("connected")(runner) else runnerFor(session, has("grace"))


def proxyLimits(section: GatewaysSection) -> ProxyLimits:
    """The C{[gateways]} section."""
    return ProxyLimits(
        perCaller=section.requestsPerUser,
        perRunner=section.requestsPerRunner,
        answerTimeout=section.answerTimeout,
    )


def patchLimits(section: SessionsSection) -> PatchLimits:
    """What the C{[sessions]} section says of kept patches."""
    return PatchLimits(
        maxBytes=section.patchBytes,
        quota=section.patchQuota,
        retention=section.patchRetention * 86_400,
    )


def cutWhatEnds(tokens: Tokens, sessions: Sessions, connections: Connections) -> None:
    """
    Tie the ends together: a token family that is revoked or expires, and a
    session that is deleted, lose their tunnels at once.
    """

    def tokenEnded(family: str) -> None:
        connections.revoke(credential=family)

    def sessionDeleted(session: Session) -> None:
        connections.revoke(owner=sessionOwner(session.id))

    tokens.onRevoked(tokenEnded)
    sessions.onDeleted(sessionDeleted)
