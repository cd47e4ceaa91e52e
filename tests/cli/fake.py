"""A stand-in for the API, and C{helix} run against it without a socket or a process."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from treq.testing import StubTreq
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from helix_revdial.cli.client import Client
from helix_revdial.cli.exchange import Exchange
from helix_revdial.cli.invocation import Invocation
from helix_revdial.cli.main import run
from helix_revdial.cli.profile import ServerURL, Settings

KEY = "hl-test-key"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(125_432 - 8)
JPEG = b"\xff\xd8\xff\xe0" + bytes(1000)
WEBP = b"RIFF\x10\x00\x00\x00WEBPVP8 " + bytes(16)


@dataclass
class Given:
    """One answer of the API."""

    body: object = b""
    status: int = 200
    contentType: str | None = "application/json"
    headers: dict[str, str] = field(default_factory=dict)

    def content(self) -> bytes:
        """The body as it is sent."""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


def problem(status: int, detail: str, code: str | None = None, **headers: str) -> Given:
    """A Problem+JSON answer."""
    body = {"type": "about:blank", "title": "t", "status": status, "detail": detail}
    if code is not None:
        body["code"] = code
    return Given(body, status, "application/problem+json", headers)


def picture(data: bytes = PNG, contentType: str = "image/png", **headers: str) -> Given:
    """A screenshot's answer."""
    return Given(data, 200, contentType, {k.replace("_", "-"): v for k, v in headers.items()})


HANG = object()
"""In an answer's place: no answer, ever."""


@dataclass
class Asked:
    """One request as the API saw it."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


class FakeAPI(Resource):
    """
    Answers what it was told to.

    @ivar asked: Every request, in order.
    @ivar answering: Answers what nothing else was said of, by its method and path.
    """

    isLeaf = True

    def __init__(self, key: str = KEY) -> None:
        super().__init__()
        self._key = key
        self._answers: dict[tuple[str, str], list[Any]] = {}
        self.asked: list[Asked] = []
        self.answering: Callable[[str, str], Given] | None = None

    def on(self, method: str, path: str, *answers: Any) -> None:
        """
        Answer so, one after the other; the last one answers everything that follows.

        @param answers: L{Given}s, L{HANG}, or functions that return one.
        """
        self._answers[method, path] = list(answers)

    def paths(self) -> list[str]:
        """What was asked: C{"GET /path"} each."""
        return [f"{asked.method} {asked.path}" for asked in self.asked]

    def render(self, request: Request) -> Any:
        """Answer one request."""
        path = request.path.decode()
        assert request.content is not None
        content = request.content.read()
        self.asked.append(
            Asked(
                request.method.decode(),
                path,
                {k.decode(): v[0].decode() for k, v in request.args.items()},
                {
                    k.decode().lower(): v[0].decode()
                    for k, v in request.requestHeaders.getAllRawHeaders()
                },
                json.loads(content) if content else None,
            )
        )
        if self.asked[-1].headers.get("authorization") != f"Bearer {self._key}":
            return self._send(request, problem(401, "no valid credential"))
        answers = self._answers.get((request.method.decode(), path))
        if not answers and self.answering is not None:
            answers = [self.answering(request.method.decode(), path)]
        if not answers:
            return self._send(request, problem(404, f"nothing at {path}"))
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if callable(answer):
            answer = answer()
        if answer is HANG:
            return NOT_DONE_YET
        return self._send(request, answer)

    def _send(self, request: Request, given: Given) -> bytes:
        request.setResponseCode(given.status)
        # Request has a default of its own.
        request.defaultContentType = b""
        if given.contentType is not None:
            request.setHeader("content-type", given.contentType)
        for name, value in given.headers.items():
            request.setHeader(name, value)
        return given.content()


def connection(
    session: str = "ses_1",
    status: str = "connected",
    runner: str | None = None,
    *,
    left: float | None = None,
    detail: dict[str, Any] | None = None,
) -> Given:
    """The answer of C{…/connection}."""
    return Given(
        {
            "session_id": session,
            "runner": runner or f"sandbox-{session}",
            "status": status,
            "detail": detail,
            "grace_seconds_left": left,
        }
    )


DETAIL: dict[str, Any] = {
    "key": "sandbox-ses_1",
    "generation": 7,
    "carrier": "raw",
    "features": ["raw", "targets"],
    "remote_address": "192.0.2.7:40000",
    "connected_since": "1970-01-01T00:00:00Z",
    "last_heard_seconds": 1.25,
    "round_trip_ms": 3.5,
    "open_streams": 2,
    "bytes_in": 2048,
    "bytes_out": 10,
    "pending_dials": 1,
}


@dataclass
class Ran:
    """What one run of C{helix} left behind."""

    code: int
    out: str
    err: str
    outBytes: bytes


class Terminal(io.TextIOWrapper):
    """A standard output that says it is a terminal."""

    def isatty(self) -> bool:
        """Yes."""
        return True


class CommandTestCase(SynchronousTestCase):
    """
    Runs command lines in this process, against L{FakeAPI}, on a clock that is pumped.

    @ivar environment: The process's environment during a run.
    """

    settings = Settings(ServerURL.parse("http://api.example:8080"), KEY)

    def setUp(self) -> None:
        """An API that knows nothing, and a clock at 1,000 s."""
        self.api = FakeAPI()
        self.clock = Clock()
        self.clock.advance(1000)
        self.client = self.clientWith(self.settings)
        self.environment: dict[str, str] = {}
        self.cancelAfter: float | None = None

    def clientWith(self, settings: Settings) -> Client:
        """A client of the fake API."""
        self.treq = StubTreq(self.api)
        http: Any = self.treq
        return Client(Exchange(self.clock, http, settings, self.clock.seconds))

    def settle(self, running: Deferred[Any]) -> Any:
        """Pump the clock until C{running} has a result, for at most 200 s of its time."""
        results: list[Any] = []
        running.addBoth(results.append)
        spent = 0.0
        while not results and spent < 200:
            self.treq.flush()
            if self.cancelAfter is not None and spent >= self.cancelAfter:
                running.cancel()
            elif not results:
                self.clock.advance(0.25)
                spent += 0.25
        self.assertTrue(results, f"still running; asked so far: {self.api.paths()}")
        self.assertEqual(self.clock.getDelayedCalls(), [], "a timer was left behind")
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return results[0]

    def helix(self, *arguments: str, stdin: bytes = b"", terminal: bool = False) -> Ran:
        """Run C{helix} with these arguments."""

        def ask(invocation: Invocation, command: Callable[[Any, Client], Any]) -> int:
            code = self.settle(Deferred.fromCoroutine(command(self.clock, self.client)))
            assert isinstance(code, int)
            return code

        raw, errors = io.BytesIO(), io.StringIO()
        kind = Terminal if terminal else io.TextIOWrapper
        out = kind(raw, encoding="utf-8", write_through=True)
        with (
            patch.object(Invocation, "ask", ask),
            patch.object(sys, "stdout", out),
            patch.object(sys, "stderr", errors),
            patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin))),
            patch.dict("os.environ", self.environment),
        ):
            code = run(list(arguments))
            out.flush()
        data = raw.getvalue()
        return Ran(code, data.decode("utf-8", "replace"), errors.getvalue(), data)
