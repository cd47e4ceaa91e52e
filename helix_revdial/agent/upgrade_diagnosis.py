# -*- test-case-name: tests.integration.test_diagnosis -*-
"""
Whether a server takes the agent's token, whether upgrades come through in both forms, and
whether the path lets a connection be idle.

A runner that is connected is not disturbed: upgrades are tried by a check
(L{helix_revdial.revdial.checks}), which registers nobody and which servers that do not know
it refuse.  The token is in no finding.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, cast

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.task import LoopingCall

from ..revdial.checks import CHECK_QUERY, Check, connectCheck
from ..revdial.client import ServerURL
from ..revdial.exchange import UpgradeRefused
from .findings import Finding, Heard, Outcome, judgeToken, judgeUpgrade, milliseconds
from .probes import ANSWER, STEP, noAnswer
from .token import TokenSource, TokenUnusable

KEEP_ALIVE = 15.0
"""Seconds between an agent's signs of life."""


@dataclass(frozen=True, slots=True)
class _Upgrade:
    """How an upgrade came out."""

    finding: Finding
    check: Check | None = None
    heard: Heard | None = None


@dataclass(frozen=True, slots=True)
class _Held:
    """How long a connection lived."""

    seconds: float
    survived: bool


_STATES = {
    "connected": ", which is connected now",
    "grace": ", which was lost a moment ago and is awaited",
    "free": ", which is not connected now",
}


class UpgradeDiagnosis:
    """
    Of one server.
    """

    def __init__(
        self,
        reactor: Any,
        server: ServerURL,
        way: Callable[[], IStreamClientEndpoint],
        *,
        key: str,
        token: TokenSource | None,
        idle: float,
    ) -> None:
        """
        @param way: Leads to it.
        @param key: The runner's key, or nothing.
        @param token: Gives the token, if there is one.
        @param idle: Seconds to hold a connection idle; 0 for not at all.
        """
        self._reactor = reactor
        self._clock = cast(IReactorTime, reactor)
        self._server = server
        self._open = way
        self._key = key
        self._token = token
        self._idle = idle

    async def findings(self) -> AsyncIterator[Finding]:
        """The token, the upgrades, and being idle, as far as wanted."""
        source, key = self._token, self._key
        if source is None:
            yield Finding("token", "skipped", "none was given", "give --token-file")
            yield Finding("upgrade", "skipped", "it needs a token")
            return
        try:
            token = source()
        except TokenUnusable as unusable:
            yield Finding("token", "failed", str(unusable), "put the token there, mode 0600")
            yield Finding("upgrade", "skipped", "it needs a token")
            return
        raw = await self._check("upgrade raw", token, webSocket=False)
        webSocket = await self._check("upgrade websocket", token, webSocket=True)
        try:
            yield self._tokenFinding(key, bool(token), raw, webSocket)
            for finding in self._weighed(raw, webSocket):
                yield finding
            if self._idle > 0:
                async for finding in self._idles(token, raw, webSocket):
                    yield finding
        finally:
            for each in (raw, webSocket):
                if each.check is not None:
                    await each.check.leave()

    async def _check(self, what: str, token: str, *, webSocket: bool) -> _Upgrade:
        url = self._server.carrierURL(f"?{CHECK_QUERY}={self._key}")
        headers = []
        if token:
            headers.append((b"Authorization", b"Bearer " + token.encode("ascii")))
        try:
            check = await connectCheck(
                self._reactor, self._open(), url, headers, webSocket=webSocket, timeout=ANSWER
            )
        except UpgradeRefused as refused:
            heard = Heard(refused.status, refused.reason, refused.headers, refused.body)
            return _Upgrade(judgeUpgrade(heard, what), heard=heard)
        except Exception as failed:
            return _Upgrade(noAnswer(what, failed))
        try:
            roundTrip = await check.ask().addTimeout(STEP, self._clock)
        except Exception:
            await check.leave()
            return _Upgrade(
                Finding(
                    what,
                    "failed",
                    "it is answered, and then nothing comes through",
                    "something in between holds bytes back after the upgrade: have it pass "
                    "upgraded connections on as they are, without buffering (nginx: "
                    "proxy_buffering off)",
                )
            )
        if not check.isCheck:
            await check.leave()
            seen = "something other than a helix_revdial server took it"
            return _Upgrade(Finding(what, "failed", seen, "correct the server URL"))
        seen = f"passes; an answer takes {milliseconds(roundTrip)}"
        return _Upgrade(Finding(what, "ok", seen), check=check)

    def _tokenFinding(self, key: str, sent: bool, *upgrades: _Upgrade) -> Finding:
        for upgrade in upgrades:
            if upgrade.check is not None:
                if not key:
                    seen = "the server knows it; for which runners was not asked"
                    return Finding("token", "ok", seen, "")
                state = _STATES.get(upgrade.check.state, "")
                return Finding("token", "ok", f"may register {key}{state}")
            if upgrade.heard is not None:
                finding = judgeToken(upgrade.heard, key, sent=sent)
                if finding is not None:
                    return finding
        return Finding("token", "skipped", "the server was not asked: no upgrade came through")

    def _weighed(self, raw: _Upgrade, webSocket: _Upgrade) -> tuple[Finding, Finding]:
        """An upgrade that fails is no harm where the other does its work."""
        first, second = raw.finding, webSocket.finding
        if first.outcome == "failed" and second.outcome == "ok":
            advice = "agents use WebSocket here by themselves"
            first = Finding(first.check, "warning", first.seen, advice)
        if second.outcome == "failed" and first.outcome == "ok" and not self._server.secure:
            second = Finding(second.check, "warning", second.seen, "agents use raw bytes here")
        return first, second

    # Being idle

    async def _idles(
        self, token: str, raw: _Upgrade, webSocket: _Upgrade
    ) -> AsyncIterator[Finding]:
        """One connection says nothing; another, as an agent does, a word now and then."""
        silent = raw.check or webSocket.check
        if silent is None:
            yield Finding("idle", "skipped", "no connection came through")
            return
        other = await self._check("idle", token, webSocket=silent is webSocket.check)
        results = await gatherResults(
            [
                Deferred.fromCoroutine(self._hold(silent, None)),
                Deferred.fromCoroutine(self._hold(other.check, KEEP_ALIVE)),
            ]
        )
        if other.check is not None:
            await other.check.leave()
        for name, held, outcome, advice in (
            (
                "idle kept alive",
                results[1],
                "failed",
                "agents send a sign of life as often, and would be cut all the same: raise the "
                "limits of what stands in between (nginx: proxy_read_timeout 1h; HAProxy: "
                "timeout tunnel 1h)",
            ),
            (
                "idle silent",
                results[0],
                "warning",
                "control connections are kept alive, but a stream that is silent for as long is "
                "cut: raise the limits of what stands in between (nginx: proxy_read_timeout "
                "1h; HAProxy: timeout tunnel 1h)",
            ),
        ):
            if held is None:
                yield Finding(name, "skipped", "no connection came through")
            elif held.survived:
                yield Finding(name, "ok", f"held for {held.seconds:.0f} s")
            else:
                seen = f"cut after {held.seconds:.0f} s"
                yield Finding(name, cast(Outcome, outcome), seen, advice)

    async def _hold(self, check: Check | None, interval: float | None) -> _Held | None:
        if check is None:
            return None
        began = self._clock.seconds()
        loop: LoopingCall | None = None
        if interval is not None:
            loop = LoopingCall(check.askForLife)
            loop.clock = self._clock
            loop.start(interval).addErrback(lambda _: None)
        try:
            await check.whenLost().addTimeout(self._idle, self._clock)
        except DeferredTimeoutError:
            pass
        except Exception:
            return _Held(self._clock.seconds() - began, survived=False)
        finally:
            if loop is not None and loop.running:
                loop.stop()
        try:
            # A middlebox may have forgotten the connection and told nobody.
            await check.ask().addTimeout(STEP, self._clock)
        except Exception:
            return _Held(self._clock.seconds() - began, survived=False)
        return _Held(self._clock.seconds() - began, survived=True)
