"""The operations of the server in memory: HTTP bytes in, HTTP bytes out, no reactor."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from helix_revdial.access.audit import AuditEntry, AuditLog
from helix_revdial.access.tokens import Tokens
from helix_revdial.api.authority import Authority
from helix_revdial.api.document import operationTable
from helix_revdial.api.load import Load
from helix_revdial.api.observation import Observation
from helix_revdial.api.services import Services, cutWhatEnds
from helix_revdial.api.tracing import traced
from helix_revdial.config import ServerConfig
from helix_revdial.http.factory import HTTPFactory
from helix_revdial.revdial.connections import Connections
from helix_revdial.sessions.records import Session
from helix_revdial.sessions.sessions import Sessions
from helix_revdial.sessions.synthetic import SyntheticExecutor
from helix_revdial.storage.database import Database
from helix_revdial.storage.threads import SameThread

NOW = 1_800_000_000.0


@dataclass
class Answer:
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes
    raw: bytes = field(repr=False)

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def detail(self) -> str:
        return str(self.json()["detail"])


def now(result: Deferred[Any]) -> Any:
    """The result of what is done already."""
    results: list[Any] = []
    result.addBoth(results.append)
    assert results, "it is not done yet"
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]


def await_(coroutine: Any) -> Any:
    """Run a coroutine that waits for nothing outside."""
    return now(Deferred.fromCoroutine(coroutine))


class Wire(StringTransport):
    """A transport that, as the real ones do, takes an unregistration without a producer."""

    aborted = False

    def unregisterProducer(self) -> None:
        if self.producer is not None:
            super().unregisterProducer()

    def abortConnection(self) -> None:
        self.aborted = True
        super().abortConnection()


class Server:
    """Everything behind the port, over an SQLite database in memory."""

    def __init__(
        self, config: ServerConfig | None = None, *, database: Database | None = None
    ) -> None:
        """
        @param database: That of a server before.
        """
        self.clock = Clock()
        self.clock.advance(1000)
        if database is None:
            database = Database("sqlite://", SameThread())
            await_(database.upgrade())
        self.database = database
        self.tokens = Tokens(database, self.clock, self.wallClock)
        self.sessions = Sessions(database, self.clock, self.wallClock)
        self.audit = AuditLog(database, self.clock, self.wallClock)
        generations = count(1)
        self.observation = Observation(self.clock, self.wallClock, "1.2.3")
        self.connections = Connections(
            self.clock,
            lambda: succeed(next(generations)),
            wallClock=self.wallClock,
            audit=lambda event, fields: self.audit.record(event, **fields),
            watching=self.observation,
        )
        cutWhatEnds(self.tokens, self.sessions, self.connections)
        self.notReady = ""
        self.load = Load(self.clock, (config or ServerConfig()).limits)
        self.services = Services(
            self.clock,
            self.wallClock,
            config or ServerConfig(),
            database,
            self.tokens,
            self.audit,
            self.sessions,
            self.connections,
            self.observation,
            self.load,
            ready=lambda: self.notReady,
        )
        self.table = operationTable(
            self.services,
            Authority(
                self.tokens,
                self.sessions,
                self.audit,
                admit=self.services.admit,
                jwts=self.services.jwts,
            ),
        )
        self.factory = HTTPFactory(
            lambda request: traced(request, self.table), self.clock, wallClock=self.wallClock
        )
        self.observation.watch(self.connections, self.factory, lambda: self.notReady)

    def wallClock(self) -> float:
        return NOW + self.clock.seconds() - 1000

    def host(self, name: str = "host-1", **settings: Any) -> SyntheticExecutor:
        """A host that pretends to run tasks; from the first on they are driven."""
        executor = SyntheticExecutor(self.clock, self.wallClock, **settings)
        self.services.executors.add(name, executor)
        await_(self.services.driver.start())
        return executor

    # Somebody to ask

    def user(self, name: str = "ann", role: str = "operator", tenant: str = "default") -> str:
        """A user's token."""
        _, secret = await_(
            self.tokens.create("user", name=name, user=name, role=role, tenant=tenant)
        )
        return str(secret)

    def runner(self, *patterns: str) -> str:
        """A runner token."""
        _, secret = await_(self.tokens.create("runner", name="r", patterns=patterns or ("wolf-*",)))
        return str(secret)

    def sessionToken(self, session: Session) -> str:
        """A session's token."""
        _, secret = await_(
            self.tokens.create("session", name="s", session=session.id, tenant=session.tenant)
        )
        return str(secret)

    def session(self, owner: str = "ann", tenant: str = "default") -> Session:
        """A session."""
        found: Session = await_(self.sessions.create(name="x", tenant=tenant, owner=owner))
        return found

    def events(self) -> list[AuditEntry]:
        """What the audit log holds, oldest first."""
        await_(self.audit.flush())
        return list(reversed(await_(self.audit.list())))

    # Asking

    def connect(self) -> tuple[Any, Wire]:
        """A connection to the port."""
        protocol = self.factory.buildProtocol(IPv4Address("TCP", "192.0.2.7", 4000))
        assert protocol is not None
        transport = Wire(peerAddress=IPv4Address("TCP", "192.0.2.7", 4000))
        protocol.makeConnection(transport)
        return protocol, transport

    def ask(
        self,
        method: str,
        path: str,
        token: str | None = None,
        body: object = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """One request on a connection of its own."""
        protocol, transport = self.connect()
        protocol.dataReceived(request(method, path, token, body, headers))
        return parse(transport.value())

    def get(self, path: str, token: str | None = None, **headers: str) -> Answer:
        return self.ask("GET", path, token, headers=headers)

    def post(self, path: str, token: str | None, body: object) -> Answer:
        return self.ask("POST", path, token, body)

    def delete(self, path: str, token: str | None) -> Answer:
        return self.ask("DELETE", path, token)


def request(
    method: str,
    path: str,
    token: str | None = None,
    body: object = None,
    headers: dict[str, str] | None = None,
) -> bytes:
    """The bytes of a request; a C{body} that is no bytes goes as JSON."""
    fields = {"Host": "cp.example", **(headers or {})}
    if token is not None:
        fields["Authorization"] = f"Bearer {token}"
    content = b""
    if body is not None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        fields.setdefault("Content-Type", "application/json")
        fields["Content-Length"] = str(len(content))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + content


def parse(raw: bytes) -> Answer:
    """One answer; fails with the bytes where there is none."""
    head, separator, body = raw.partition(b"\r\n\r\n")
    assert separator, f"no answer: {raw!r}"
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(": ")
        headers[name.lower()] = value
    return Answer(int(status.split(" ")[1]), headers, body, raw)
