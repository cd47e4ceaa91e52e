"""
The REST service that this project's is measured against: FastAPI, uvicorn, SQLAlchemy,
SQLite, as one would write it, doing the same work.

    python -m benchmarks.rest_fastapi PORT DATABASE TOKEN

A token is checked by its hash, and remembered for a few seconds; a task is validated; a
key is carried out once, and its answer is kept; a task, the event that tells of it and
the kept answer are one transaction, as durable as ours (WAL, C{synchronous=FULL}); the
answers are the same JSON; each request is logged.
"""

import asyncio
import hashlib
import json
import secrets
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, field_validator
from sqlalchemy import (
    JSON,
    Column,
    Connection,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

FRESH = 5.0

metadata = MetaData()
tokens = Table(
    "tokens", metadata, Column("digest", String, primary_key=True), Column("user", String)
)
sessions = Table(
    "sessions",
    metadata,
    Column("id", String, primary_key=True),
    Column("tenant", String),
    Column("owner", String),
    Column("name", String),
    Column("status", String),
    Column("created", Double),
    Column("spec", JSON),
    Column("agent_type", String),
    Column("last_seq", Integer),
    Index("sessions_tenant_created", "tenant", "created"),
    Index("sessions_tenant_status", "tenant", "status", "created"),
)
events = Table(
    "session_events",
    metadata,
    Column("session", String, primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("at", Double),
    Column("type", String),
    Column("data", JSON),
)
keys = Table(
    "idempotency",
    metadata,
    Column("scope", String, primary_key=True),
    Column("request_digest", String),
    Column("status", Integer),
    Column("body", LargeBinary),
    Column("expires", Double),
)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Repo(Strict):
    mode: Literal["git", "upload", "none"]
    url: str | None = None
    branch: str | None = None
    commit: str | None = None

    @field_validator("url")
    @classmethod
    def known(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("https://", "ssh://", "git@")):
            raise ValueError("is no URL of a repository")
        return value


class Resources(Strict):
    cpu: int | None = None
    memoryMiB: int | None = None


class Runtime(Strict):
    type: Literal["devcontainer", "local", "disabled"]
    devcontainerPath: str | None = None
    resources: Resources | None = None


class Agent(Strict):
    type: Annotated[str, Field(min_length=1, max_length=64)]
    version: str = "latest"
    settings: dict[str, Any] = {}


class Delivery(Strict):
    mode: Literal["pr", "branch", "patch"]
    targetBranch: str | None = None


class Task(Strict):
    prompt: Annotated[str, Field(min_length=1, max_length=65536)]
    repo: Repo
    runtime: Runtime
    agent: Agent
    tenantId: str | None = None
    projectId: str | None = None
    delivery: Delivery | None = None
    labels: dict[str, str] = {}


class Links(BaseModel):
    self: str
    events: str
    logs: str


class Accepted(BaseModel):
    id: str
    sessionId: str
    taskId: str
    status: str
    links: Links


class TaskPart(BaseModel):
    prompt: str
    labels: dict[str, str]
    attachments: list[dict[str, Any]] = []


class Vcs(BaseModel):
    repoUrl: str | None
    branch: str | None
    commit: str | None = None
    delivery: dict[str, Any] | None


class SessionDocument(BaseModel):
    id: str
    kind: str
    tenant: str
    tenantId: str
    owner: str
    name: str
    status: str
    created: str
    createdAt: str
    updatedAt: str
    links: Links
    task: TaskPart
    agent: Agent
    runtime: dict[str, Any]
    vcs: Vcs
    prompt: str
    repo: dict[str, Any]
    delivery: dict[str, Any] | None
    lastSeq: int


class SessionList(BaseModel):
    items: list[SessionDocument]
    total: int
    nextPage: str | None = None


def linksOf(session: str) -> Links:
    path = f"/api/v1/sessions/{session}"
    return Links(self=path, events=f"{path}/events", logs=f"{path}/logs")


def stamp(at: float) -> str:
    text = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def documentOf(row: Any) -> SessionDocument:
    spec = row.spec
    repo = {name: value for name, value in spec["repo"].items() if value is not None}
    created = stamp(row.created)
    return SessionDocument(
        id=row.id,
        kind="task",
        tenant=row.tenant,
        tenantId=row.tenant,
        owner=row.owner,
        name=row.name,
        status=row.status,
        created=created,
        createdAt=created,
        updatedAt=created,
        links=linksOf(row.id),
        task=TaskPart(prompt=spec["prompt"], labels=spec["labels"]),
        agent=Agent(**spec["agent"]),
        runtime=spec["runtime"],
        vcs=Vcs(repoUrl=repo.get("url"), branch=repo.get("branch"), delivery=spec["delivery"]),
        prompt=spec["prompt"],
        repo=repo,
        delivery=spec["delivery"],
        lastSeq=row.last_seq,
    )


def application(url: str, token: str) -> FastAPI:
    """The service, with one token that is good."""
    engine = create_engine(url, pool_size=5, max_overflow=0)

    @event.listens_for(engine, "connect")
    def connected(connection: Any, record: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA busy_timeout=5000")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        writing = connection.get_execution_options().get("writing")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    metadata.create_all(engine)
    writer = engine.execution_options(writing=True)
    with writer.begin() as first:
        digest = hashlib.sha256(token.encode()).hexdigest()
        first.execute(insert(tokens).values(digest=digest, user="admin"))

    known: dict[str, tuple[float, str]] = {}
    listeners: dict[str, list[asyncio.Queue[bytes]]] = {}

    def user(authorization: Annotated[str, Header()] = "") -> str:
        digest = hashlib.sha256(authorization.removeprefix("Bearer ").encode()).hexdigest()
        found = known.get(digest)
        if found is not None and found[0] > time.monotonic():
            return found[1]
        with engine.connect() as connection:
            name = connection.execute(
                select(tokens.c.user).where(tokens.c.digest == digest)
            ).scalar()
        if name is None:
            raise HTTPException(401, "The token is unknown, revoked or expired.")
        known[digest] = (time.monotonic() + FRESH, name)
        return str(name)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        engine.dispose()

    app = FastAPI(lifespan=lifespan)

    @app.post("/api/v1/tasks", status_code=201)
    def create(
        task: Task,
        response: Response,
        name: Annotated[str, Depends(user)],
        key: Annotated[str | None, Header(alias="Idempotency-Key")] = None,
    ) -> Any:
        if task.repo.mode == "git" and not task.repo.url:
            raise HTTPException(400, {"repo.url": ["is required"]})
        now = time.time()
        session = "ses_" + secrets.token_hex(13)
        spec = task.model_dump()
        accepted = Accepted(
            id=session, sessionId=session, taskId=session, status="queued", links=linksOf(session)
        )
        with writer.begin() as connection:
            scope = ""
            if key is not None:
                scope = hashlib.sha256(f"{name} POST /api/v1/tasks {key}".encode()).hexdigest()
                asked = json.dumps(spec, sort_keys=True).encode()
                digest = hashlib.sha256(asked).hexdigest()
                try:
                    with connection.begin_nested():
                        connection.execute(
                            insert(keys).values(
                                scope=scope, request_digest=digest, expires=now + 86400
                            )
                        )
                except IntegrityError:
                    kept = connection.execute(select(keys).where(keys.c.scope == scope)).one()
                    if kept.request_digest != digest:
                        raise HTTPException(422, "The key was used for another call.") from None
                    again = {"Idempotency-Replayed": "true"}
                    return Response(kept.body, 200, again, "application/json")
            connection.execute(
                insert(sessions).values(
                    id=session,
                    tenant="default",
                    owner=name,
                    name=task.prompt[:200],
                    status="queued",
                    created=now,
                    spec=spec,
                    agent_type=task.agent.type,
                    last_seq=1,
                )
            )
            connection.execute(
                insert(events).values(
                    session=session, seq=1, at=now, type="status", data={"status": "queued"}
                )
            )
            if key is not None:
                connection.execute(
                    update(keys)
                    .where(keys.c.scope == scope)
                    .values(status=201, body=accepted.model_dump_json().encode())
                )
        response.headers["Location"] = accepted.links.self
        return accepted

    @app.get("/api/v1/sessions", response_model_exclude_none=True)
    def listAll(
        name: Annotated[str, Depends(user)],
        page: Annotated[int, Query(ge=1)] = 1,
        perPage: Annotated[int, Query(ge=1, le=200)] = 20,
    ) -> SessionList:
        where = sessions.c.tenant == "default"
        with engine.connect() as connection:
            total = connection.execute(
                select(func.count()).select_from(sessions).where(where)
            ).scalar_one()
            rows = connection.execute(
                select(sessions)
                .where(where)
                .order_by(sessions.c.created.desc(), sessions.c.id.desc())
                .limit(perPage)
                .offset((page - 1) * perPage)
            )
            items = [documentOf(row) for row in rows]
        more = str(page + 1) if page * perPage < total else None
        return SessionList(items=items, total=total, nextPage=more)

    @app.get("/api/v1/sessions/{session}/events")
    async def stream(
        session: str, request: Request, name: Annotated[str, Depends(user)]
    ) -> StreamingResponse:
        queue: asyncio.Queue[bytes] = asyncio.Queue(10_000)
        listeners.setdefault(session, []).append(queue)

        async def frames() -> AsyncIterator[bytes]:
            try:
                yield b"retry: 3000\n\n"
                while True:
                    yield await queue.get()
            finally:
                listeners[session].remove(queue)

        return StreamingResponse(frames(), media_type="text/event-stream")

    def store(session: str, lines: list[str]) -> list[bytes]:
        now = time.time()
        with writer.begin() as connection:
            last = connection.execute(
                update(sessions)
                .where(sessions.c.id == session)
                .values(last_seq=sessions.c.last_seq + len(lines))
                .returning(sessions.c.last_seq)
            ).scalar_one()
            rows = [
                {
                    "session": session,
                    "seq": last - len(lines) + 1 + index,
                    "at": now,
                    "type": "log",
                    "data": {"level": "info", "message": line, "stream": "stdout"},
                }
                for index, line in enumerate(lines)
            ]
            connection.execute(insert(events), rows)
        found = []
        for row in rows:
            document = {
                "type": "log",
                "ts": stamp(now),
                "seq": row["seq"],
                "sessionId": session,
                **row["data"],
            }
            found.append(f"id: {row['seq']}\nevent: log\ndata: {json.dumps(document)}\n\n".encode())
        return found

    @app.post("/bench/sessions/{session}/lines")
    async def lines(session: str, request: Request) -> JSONResponse:
        """What an executor would report: lines of a log."""
        frames = await asyncio.to_thread(store, session, await request.json())
        for queue in listeners.get(session, []):
            for frame in frames:
                queue.put_nowait(frame)
        return JSONResponse({})

    return app


def main() -> None:
    """Serve."""
    port, database, token = sys.argv[1:]
    uvicorn.run(
        application(f"sqlite:///{database}", token), host="127.0.0.1", port=int(port), backlog=4096
    )


if __name__ == "__main__":
    main()
