# -*- test-case-name: tests.sessions.test_remote -*-
"""
A runner host's executor, reached over an endpoint.

L{RemoteExecutor} speaks HTTP to the program beside the agent (C{twistd
helix-revdial-executor}, C{docs/executors.md}) and knows nothing of how the endpoint
leads there.  Each call is one connection.

  - Whatever fails before the answer is L{ExecutorUnreachable}: nothing is known of
    whether it was done, and every call may be made again.  What the host answers with
    a 4xx is L{ExecutorRefused}, in the host's own words.
  - A stream of reports that breaks, or says nothing for too long, is opened again
    where it was; that is the stream's own business until it has not succeeded for
    L{PATIENCE}.  Each report is given out once, in order.
  - A stream is opened anew after L{REOPEN} bytes: asking for the reports after one says
    that those before it are here, and lets the host remove them.
  - Buffers are bounded: a reader that takes its time holds the host back.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, ClassVar, Final, TypeVar
from urllib.parse import quote

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.defer import TimeoutError as TookTooLong
from twisted.internet.interfaces import IConsumer, IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import Agent, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from helix_revdial.sessions.executor import (
    MAX_REPORT,
    ExecutorRefused,
    ExecutorUnreachable,
    HostHealth,
    HostSession,
    LaunchSpec,
    Prompt,
    Report,
    SnapshotMade,
    Verb,
)

ANSWER: Final = 30.0
"""Seconds until the head of an answer has to be there."""

LONG_ANSWER: Final = 660.0
"""The same for a snapshot, a patch and a removal, which copy files."""

SILENCE: Final = 45.0
"""Seconds after which a stream of reports that says nothing is broken: three of the
host's heartbeats."""

PATIENCE: Final = 30.0
"""Seconds for which a stream of reports tries again without success."""

AGAIN: Final = (0.1, 0.5, 1.0, 2.0, 5.0)
"""Seconds between two tries, the last one for ever."""

REOPEN: Final = 8 * 1024 * 1024
"""Bytes of reports after which the stream is opened anew."""

MAX_ANSWER: Final = 4 * 1024 * 1024
"""Bytes of an answer that is one document."""

BUFFER: Final = 512 * 1024
"""Bytes that wait for their reader, before the host is held back."""

_PATH: Final = b"http://executor.internal/v1/"

T = TypeVar("T")


@implementer(IAgentEndpointFactory)
class _OneEndpoint:
    """Whatever the URI says, it leads here."""

    def __init__(self, endpoint: IStreamClientEndpoint) -> None:
        self._endpoint = endpoint

    def endpointForURI(self, uri: object) -> IStreamClientEndpoint:
        return self._endpoint


@implementer(IBodyProducer)
class _Document:
    """
    A body that is here already.

    Twisted's own producer for files writes by a clock of its own.
    """

    def __init__(self, content: bytes) -> None:
        self.length = len(content)
        self._content = content

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._content)
        return succeed(None)

    def pauseProducing(self) -> None:
        """It is written already."""

    def resumeProducing(self) -> None:
        """It is written already."""

    def stopProducing(self) -> None:
        """It is written already."""


class _Problem(msgspec.Struct):
    """What the host says of an error."""

    detail: str = ""
    title: str = ""
    code: str | None = None


class _Sessions(msgspec.Struct):
    """Every session of the host."""

    items: list[HostSession]


class _Pieces(Protocol):
    """
    The body of an answer, for a reader who takes it piece by piece.
    """

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self._paused = False
        self._ended: Failure | None = None
        self._waiting: Deferred[None] | None = None

    def dataReceived(self, data: bytes) -> None:
        self._pieces.append(data)
        self._held += len(data)
        if self._held > BUFFER and not self._paused:
            self._paused = True
            self._producer.pauseProducing()
        self._wake()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._ended = reason
        self._wake()

    @property
    def _producer(self) -> Any:
        return self.transport

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.called:
            waiting.callback(None)

    async def take(self, reactor: Any, seconds: float) -> bytes:
        """
        The next piece.

        @param seconds: How long it may take.
        @return: Nothing at the end of the body.
        @raise ExecutorUnreachable: It breaks off, or takes too long.
        """
        while not self._pieces:
            if self._ended is not None:
                if self._ended.check(ResponseDone, PotentialDataLoss):
                    return b""
                raise ExecutorUnreachable(f"the answer broke off: {_why(self._ended)}")
            self._waiting = Deferred()
            self._waiting.addTimeout(seconds, reactor)
            try:
                await self._waiting
            except TookTooLong:
                raise ExecutorUnreachable("the answer broke off: nothing came any more") from None
        piece = self._pieces.popleft()
        self._held -= len(piece)
        if self._paused and self._held < BUFFER // 2:
            self._paused = False
            self._producer.resumeProducing()
        return piece

    def close(self) -> None:
        """No more is wanted."""
        if self._ended is None and self.transport is not None:
            self.transport.loseConnection()


def _why(failure: Failure) -> str:
    """A failure of the connection in a few words."""
    reasons = getattr(failure.value, "reasons", None)
    if reasons:
        return _why(reasons[0])
    return failure.getErrorMessage() or type(failure.value).__name__


class RemoteExecutor:
    """
    One runner host.

    @ivar kind: C{"local"}: sessions run on the host itself.
    """

    kind: str = "local"
    _log: ClassVar[Logger] = Logger()

    def __init__(self, reactor: Any, endpoint: IStreamClientEndpoint) -> None:
        """
        @param reactor: For the time, and for the connections' timers.
        @param endpoint: Leads to the host's executor.
        """
        self._reactor = reactor
        self._agent = Agent.usingEndpointFactory(reactor, _OneEndpoint(endpoint))

    # The interface

    async def launch(self, session: str, spec: LaunchSpec) -> None:
        """As L{Executor.launch<helix_revdial.sessions.executor.Executor.launch>}."""
        await self._document("PUT", f"sessions/{_named(session)}", HostSession, spec)

    async def control(
        self, session: str, verb: Verb, *, deadline: float, prompt: Prompt | None = None
    ) -> None:
        """As L{Executor.control<helix_revdial.sessions.executor.Executor.control>}."""
        body: dict[str, Any] = {"deadline": deadline}
        if prompt is not None:
            body |= {"prompt": prompt.text, "number": prompt.number}
        path = f"sessions/{_named(session)}/{verb}"
        await self._answered("POST", path, body, seconds=ANSWER + deadline)

    async def describe(self, session: str) -> HostSession | None:
        """As L{Executor.describe<helix_revdial.sessions.executor.Executor.describe>}."""
        try:
            return await self._document("GET", f"sessions/{_named(session)}", HostSession)
        except _NotThere:
            return None

    async def sessions(self) -> list[HostSession]:
        """As L{Executor.sessions<helix_revdial.sessions.executor.Executor.sessions>}."""
        found: list[HostSession] = (await self._document("GET", "sessions", _Sessions)).items
        return found

    async def acknowledge(self, session: str, seq: int) -> None:
        """As L{Executor.acknowledge<helix_revdial.sessions.executor.Executor.acknowledge>}."""
        # Who asks for what follows says that he has all before it.
        path = f"sessions/{_named(session)}/reports?after={seq}"
        body = _Pieces()
        (await self._request("GET", path)).deliverBody(body)
        body.close()

    async def snapshot(self, session: str, label: str) -> SnapshotMade:
        """As L{Executor.snapshot<helix_revdial.sessions.executor.Executor.snapshot>}."""
        path = f"sessions/{_named(session)}/snapshots"
        return await self._document(
            "POST", path, SnapshotMade, {"label": label}, seconds=LONG_ANSWER
        )

    async def forget(self, session: str) -> None:
        """As L{Executor.forget<helix_revdial.sessions.executor.Executor.forget>}."""
        path = f"sessions/{_named(session)}"
        await self._answered("DELETE", path, seconds=LONG_ANSWER)

    async def host(self) -> HostHealth:
        """As L{Executor.host<helix_revdial.sessions.executor.Executor.host>}."""
        return await self._document("GET", "host", HostHealth)

    async def patch(self, session: str) -> AsyncIterator[bytes]:
        """As L{Executor.patch<helix_revdial.sessions.executor.Executor.patch>}."""
        path = f"sessions/{_named(session)}/patch"
        response = await self._request("GET", path, seconds=LONG_ANSWER)
        [said] = response.headers.getRawHeaders("digest") or [""]
        digest = hashlib.sha256()
        body = _Pieces()
        response.deliverBody(body)
        try:
            while piece := await body.take(self._reactor, ANSWER):
                digest.update(piece)
                yield piece
        finally:
            body.close()
        if said and said != f"sha-256={digest.hexdigest()}":
            raise ExecutorUnreachable("the patch that came is not the one that was sent")

    async def reports(self, session: str, after: int) -> AsyncIterator[Report]:
        """As L{Executor.reports<helix_revdial.sessions.executor.Executor.reports>}."""
        since: float | None = None
        tries = 0
        while True:
            stream = self._reports(session, after)
            try:
                async for report in stream:
                    if report is None:
                        # The host lives, and has nothing to say.
                        since, tries = None, 0
                        continue
                    since, tries = None, 0
                    after = report.seq
                    yield report
                    if report.kind == "exit":
                        return
            except ExecutorUnreachable as error:
                now = self._reactor.seconds()
                since = now if since is None else since
                if now - since >= PATIENCE:
                    raise
                self._log.debug("{session}: {error}", session=session, error=error)
            finally:
                await stream.aclose()
            if since is not None:
                await deferLater(self._reactor, AGAIN[min(tries, len(AGAIN) - 1)])
                tries += 1

    async def _reports(self, session: str, after: int) -> Any:
        """One stream of reports, C{None} where it shows that it lives."""
        path = f"sessions/{_named(session)}/reports?after={after}"
        response = await self._request("GET", path)
        body = _Pieces()
        response.deliverBody(body)
        read = 0
        rest = b""
        try:
            while piece := await body.take(self._reactor, SILENCE):
                read += len(piece)
                *lines, rest = (rest + piece).split(b"\n")
                if len(rest) > MAX_REPORT:
                    raise ExecutorRefused("the host sends a report that is too long")
                for line in lines:
                    if not line:
                        yield None
                        continue
                    report = _decoded(line, Report)
                    if report.seq != after + 1:
                        raise ExecutorUnreachable("the host leaves a report out")
                    after = report.seq
                    yield report
                if read > REOPEN:
                    return
        finally:
            body.close()
        raise ExecutorUnreachable("the stream of reports ended before the session")

    async def upload(self, name: str, archive: Any) -> str:
        """
        Have an archive on the host, for a workspace.

        @param name: What it is called.
        @param archive: An L{IBodyProducer}.
        @return: What a specification's C{repo.uploadPath} says.
        """
        response = await self._request(
            "PUT",
            f"uploads/{_named(name)}",
            producer=archive,
            contentType=b"application/octet-stream",
            seconds=LONG_ANSWER,
        )
        found = _decoded(await self._read(response), dict[str, Any])
        return str(found["uploadPath"])

    # HTTP

    async def _document(
        self,
        method: str,
        path: str,
        kind: type[T],
        body: Any = None,
        *,
        seconds: float = ANSWER,
    ) -> T:
        response = await self._request(method, path, body, seconds=seconds)
        found: T = _decoded(await self._read(response), kind)
        return found

    async def _answered(
        self, method: str, path: str, body: Any = None, *, seconds: float = ANSWER
    ) -> None:
        await self._read(await self._request(method, path, body, seconds=seconds))

    async def _request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        producer: Any = None,
        contentType: bytes = b"application/json",
        seconds: float = ANSWER,
    ) -> IResponse:
        """
        Make a request.

        @return: An answer of 2xx.
        @raise ExecutorRefused: The host refuses it.
        @raise ExecutorUnreachable: There is no answer, or one that says that it is the
            host that fails.
        """
        headers = Headers({b"user-agent": [b"helix_revdial"]})
        if body is not None:
            producer = _Document(msgspec.json.encode(body))
        if producer is not None:
            headers.setRawHeaders(b"content-type", [contentType])
        asked = self._agent.request(
            method.encode("ascii"), _PATH + path.encode(), headers, producer
        )
        asked.addTimeout(seconds, self._reactor)
        try:
            response: IResponse = await asked
        except TookTooLong:
            raise ExecutorUnreachable(f"the host did not answer within {seconds:g} s") from None
        except Exception:
            raise ExecutorUnreachable(f"the host cannot be reached: {_why(Failure())}") from None
        if response.code >= 300:
            await self._refuse(response)
        return response

    async def _refuse(self, response: IResponse) -> None:
        content = await self._read(response)
        try:
            problem = msgspec.json.decode(content, type=_Problem)
        except msgspec.DecodeError:
            problem = _Problem()
        text = problem.detail or problem.title or f"the host answers with {response.code}"
        if response.code == 404 and problem.code == "no-session":
            raise _NotThere(text)
        if response.code in (400, 403, 404, 405, 409, 410, 413, 415, 422):
            raise ExecutorRefused(text)
        raise ExecutorUnreachable(text)

    async def _read(self, response: IResponse) -> bytes:
        body = _Pieces()
        response.deliverBody(body)
        pieces: list[bytes] = []
        size = 0
        try:
            while piece := await body.take(self._reactor, ANSWER):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_ANSWER:
                    raise ExecutorUnreachable("the host's answer is too long")
        finally:
            body.close()
        return b"".join(pieces)


class _NotThere(ExecutorRefused):
    """The host does not know the session."""


def _named(name: str) -> str:
    return quote(name, safe="")


def _decoded(content: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.DecodeError as error:
        raise ExecutorUnreachable(f"the host's answer cannot be read: {error}") from None


__all__ = ["RemoteExecutor"]
