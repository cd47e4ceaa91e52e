# -*- test-case-name: tests.api.test_replays -*-
"""
C{Idempotency-Key}: a call that is made again gets the answer of the first time.

The header goes with any POST.  The key is the caller's, for one method and path; it
stands for one query and body, in whatever order their members are written.  What a
repetition gets:

  - while the first is carried out: 409, C{Retry-After: 1};
  - after it: its answer, with C{Idempotency-Replayed: true}, and 200 instead of 201,
    since nothing was created this time;
  - with another query or body: 422;
  - after a call that failed, whatever the status: it is carried out anew, for a failure
    had no effect;
  - after one whose answer held a secret: 409, C{secret-not-kept}, with the C{Location}
    of what was made, for the secret was told once and is nowhere.

A call with a key is carried out to its end although its caller goes away: who goes
away is who asks again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from helix_revdial.access.idempotency import (
    Attempt,
    Idempotency,
    KeyReused,
    Replay,
    StillRunning,
    digestOf,
    scopeOf,
)
from helix_revdial.access.principals import Principal
from helix_revdial.http.operations import Call
from helix_revdial.http.problem import Problem, validationProblem
from helix_revdial.http.response import HandedOver, Response
from helix_revdial.storage.failures import DatabaseUnavailable

KEY: Final = b"idempotency-key"

MAX_KEY: Final = 255

_REPLAYED: Final = (b"Idempotency-Replayed", b"true")


class Replays:
    """
    Carries calls out once.
    """

    _log = Logger()

    def __init__(self, keys: Idempotency) -> None:
        self._keys = keys

    async def once(
        self, call: Call, run: Callable[[], Awaitable[Response | HandedOver]]
    ) -> Response | HandedOver:
        """
        Answer a call.

        @param run: Carries it out.
        @raise Problem: (400) for a key that is none; (409, 422) as this module says;
            what C{run} raises.
        @raise DatabaseUnavailable: It cannot be told what became of the first.
        """
        given = call.request.headers.getAll(KEY)
        if not given or not isinstance(call.principal, Principal):
            return await run()
        scope = scopeOf(
            _identity(call.principal), call.request.method, call.request.path, _key(given)
        )
        work = Deferred.fromCoroutine(self._once(call, run, scope))
        try:
            return await _shielded(work)
        except CancelledError:
            work.addErrback(self._unheard, call.request.requestId)
            raise

    def _unheard(self, failure: Any, requestId: str) -> None:
        if failure.check(Problem, DatabaseUnavailable) is None:
            self._log.failure(
                "A call that nobody waits for any more failed, {requestId}",
                failure,
                requestId=requestId,
            )

    async def _once(
        self,
        call: Call,
        run: Callable[[], Awaitable[Response | HandedOver]],
        scope: str,
    ) -> Response | HandedOver:
        try:
            found = await self._keys.begin(scope, _digest(call))
        except KeyReused:
            raise Problem(
                422, "This Idempotency-Key was used for a call with another query or body."
            ) from None
        except StillRunning:
            raise Problem(
                409,
                "The first call with this Idempotency-Key is still being carried out.",
                headers=[(b"Retry-After", b"1")],
                code="still-running",
            ) from None
        if isinstance(found, Replay):
            return _replayed(found)
        secret = call.operation.secret
        call.remember = _rememberer(found, secret)
        try:
            answer = await run()
        except BaseException:
            await self._release(found)
            raise
        body = answer.body if isinstance(answer, Response) else None
        if not isinstance(answer, Response) or answer.status >= 400:
            await self._release(found)
        else:
            kept = None if secret or not isinstance(body, bytes) else body
            try:
                await self._keys.finish(found, answer.status, _kept(answer, secret), kept)
            except DatabaseUnavailable as error:
                # It has been done, and the caller is to hear of it.
                self._log.warn("An answer is not kept: {reason}", reason=str(error))
        return answer

    async def _release(self, attempt: Attempt) -> None:
        try:
            await self._keys.release(attempt)
        except DatabaseUnavailable as error:
            self._log.warn("A key is free only in a minute: {reason}", reason=str(error))


async def _shielded(work: Deferred[Response | HandedOver]) -> Response | HandedOver:
    """Wait for C{work}; giving up the wait does not give up the work."""
    waiting: Deferred[Response | HandedOver] = Deferred()

    def done(result: Any) -> Any:
        if waiting.called:
            # Nobody waits: what it came to is the work's own business.
            return result
        waiting.callback(result)
        return None

    work.addBoth(done)
    return await waiting


def _rememberer(attempt: Attempt, secret: bool) -> Callable[[Response], Callable[[Any], None]]:
    def remember(answer: Response) -> Callable[[Any], None]:
        assert isinstance(answer.body, bytes)
        body = None if secret else answer.body

        def write(connection: Any) -> None:
            attempt.write(connection, answer.status, _kept(answer, secret), body)

        return write

    return remember


def _kept(answer: Response, secret: bool) -> list[tuple[bytes, bytes]]:
    return [pair for pair in answer.headers if not secret or pair[0].lower() == b"location"]


def _replayed(found: Replay) -> Response:
    if found.body is None:
        location = [pair for pair in found.headers if pair[0].lower() == b"location"]
        raise Problem(
            409,
            "The call was carried out, and its answer, which was told once, is not kept: look "
            "for what it made, or make the call with another Idempotency-Key.",
            headers=[*location, _REPLAYED],
            code="secret-not-kept",
        )
    status = 200 if found.status == 201 else found.status
    return Response(status, [*found.headers, _REPLAYED], found.body)


def _key(given: list[bytes]) -> str:
    key = given[0]
    if len(given) > 1 or not 1 <= len(key) <= MAX_KEY or not all(33 <= c <= 126 for c in key):
        raise validationProblem(
            {"Idempotency-Key": [f"is one value of 1 to {MAX_KEY} visible ASCII characters"]}
        )
    return key.decode("ascii")


def _identity(principal: Principal) -> tuple[str, ...]:
    """Who it is, whichever token is shown."""
    match principal.kind:
        case "user":
            return ("user", principal.tenant, principal.project or "", principal.user or "")
        case "session":
            return ("session", principal.tenant, principal.session or "")
        case _:
            return (principal.kind, principal.tenant, principal.family)


def _digest(call: Call) -> str:
    """Of query and body, whatever the order of their members."""
    query = msgspec.json.encode(sorted(call.request.query))
    body = call.content
    if call.body is not None and body.strip():
        body = msgspec.json.encode(msgspec.json.decode(body), order="sorted")
    return digestOf(query, body)


__all__ = ["Replays"]
