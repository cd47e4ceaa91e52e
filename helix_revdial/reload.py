# -*- test-case-name: tests.test_reload -*-
"""
Reading the settings again while the server runs: all of it or nothing.

A reload has two halves.  First everything that can fail: file, environment and
flags are read, what cannot change is compared, and each L{Part} reads its
files and checks them.  Then what cannot fail: each part puts in place what it
has prepared.  A refusal leaves the server exactly as it was.

What is not in L{RELOADABLE} cannot change while the server runs, so a setting
that somebody adds is refused until somebody has thought about it.
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger

from helix_revdial.config import ServerConfig

RELOADABLE = frozenset(
    {
        "tunnel.grace_period",
        "tunnel.max_pending_dials",
        "tunnel.dial_timeout",
        "tunnel.max_runners",
        "tunnel.require_features",
        "tunnel.zero_key",
        "http.max_connections",
        "http.max_unauthenticated",
        "http.max_unauthenticated_per_address",
        "http.head_timeout",
        "http.idle_timeout",
        "pool.spare",
        "pool.per_runner",
        "pool.total",
        "pool.refresh",
        "limits.handshakes_per_second",
        "limits.handshake_burst",
        "limits.connections_per_address",
        "limits.connections_per_tenant",
        "limits.streams_per_runner",
        "limits.streams_per_user",
        "limits.dials",
        "limits.buffered_bytes",
        "gateways.requests_per_user",
        "gateways.requests_per_runner",
        "gateways.answer_timeout",
        "gateways.trusted_proxies",
        "gateways.base_domain",
        "events.heartbeat",
        "events.queue_bytes",
        "rate_limits.user_per_second",
        "rate_limits.user_burst",
        "rate_limits.project_per_second",
        "rate_limits.project_burst",
        "rate_limits.tenant_per_second",
        "rate_limits.tenant_burst",
        "rate_limits.override",
        "agents.agent",
        "agents.demonstration",
        "git.allow",
        "git.ssh_key",
        "git.known_hosts",
        "git.ca_file",
        "uploads.max_bytes",
        "uploads.tenant_bytes",
        "uploads.lifetime",
        "uploads.at_once",
        "webhooks.allow",
        "webhooks.ca_file",
        "webhooks.timeout",
        "webhooks.give_up_after",
        "webhooks.at_once",
        "webhooks.per_target",
        "retention.event_days",
        "retention.events_per_session",
        "retention.session_days",
        "retention.delivery_days",
        "retention.interval",
        "sessions.patch_bytes",
        "sessions.patch_quota",
        "sessions.patch_retention",
        "sessions.recording_bytes",
        "desktop.request_timeout",
        "desktop.max_screenshot_bytes",
        "desktop.max_clipboard_bytes",
        "drain.timeout",
        "drain.keep_connections",
        "access.import_runner_token",
        "access.runner_token_patterns",
        "access.client_certificate",
        "access.issuer",
        # Of a door: what its own check lets pass.
        "listen.tls",
        "listen.proxy_protocol",
    }
)
"""The settings that a reload may change."""

Part = Callable[[ServerConfig], Awaitable[Callable[[], None]]]
"""
Prepares what the settings mean to one room, and gives what puts it in place.

Fails with L{ConfigError} or L{Unreloadable}; what it gives cannot fail.
"""


class Unreloadable(Exception):
    """The settings are in order, but the running server cannot take them on."""


@dataclass(frozen=True)
class Reloaded:
    """
    What a reload did.

    @ivar changed: The settings that are others now, such as
        C{"tunnel.grace_period"}; certificates are always read again.
    """

    changed: tuple[str, ...]


def changedSettings(old: ServerConfig, new: ServerConfig) -> Iterator[str]:
    """The settings in which two differ: C{section.key}, for doors C{listen.key}."""
    for section in msgspec.structs.fields(ServerConfig):
        before, after = getattr(old, section.name), getattr(new, section.name)
        if before == after:
            continue
        if section.name != "listen":
            for key in _differing(before, after):
                yield f"{section.encode_name}.{key}"
        elif len(before) != len(after):
            yield "listen"
        else:
            keys = dict.fromkeys(
                key for pair in zip(before, after, strict=True) for key in _differing(*pair)
            )
            for key in keys:
                yield f"listen.{key}"


def _differing(before: msgspec.Struct, after: msgspec.Struct) -> Iterator[str]:
    for field in msgspec.structs.fields(type(before)):
        if getattr(before, field.name) != getattr(after, field.name):
            yield field.encode_name


class Reload:
    """
    Does reloads, one after another.

    @ivar current: The settings in force.
    """

    _log = Logger()

    def __init__(
        self, current: ServerConfig, reread: Callable[[], ServerConfig], parts: Sequence[Part]
    ) -> None:
        """
        @param reread: Reads file, environment and flags as the start did; raises
            L{ConfigError}.
        @param parts: The rooms that settings matter to.
        """
        self.current = current
        self._reread = reread
        self._parts = parts
        self._lock = DeferredLock()

    async def run(self, by: str) -> Reloaded:
        """
        Read the settings and take them on.

        @param by: Who wants it, for the log.
        @raise ConfigError: They are wrong.
        @raise Unreloadable: They cannot be taken on by a running server.
        """
        await self._lock.acquire()
        try:
            done = await self._run()
        except Exception as error:
            self._log.warn(
                "The settings were not reloaded, nothing has changed: {why}", why=str(error), by=by
            )
            raise
        finally:
            self._lock.release()
        self._log.info(
            "The settings were reloaded; changed: {what}",
            what=", ".join(done.changed) or "none",
            by=by,
        )
        return done

    async def _run(self) -> Reloaded:
        wanted = self._reread()
        changed = tuple(changedSettings(self.current, wanted))
        fixed = [name for name in changed if name not in RELOADABLE]
        if fixed:
            raise Unreloadable(
                f"{', '.join(fixed)} cannot change while the server runs: restart it, or put back "
                "what was there"
            )
        puts = [await part(wanted) for part in self._parts]
        for put in puts:
            put()
        self.current = wanted
        return Reloaded(changed)


class HangupSignal:
    """
    SIGHUP: the wish that the settings be read again.

    Without it the signal would end the process.
    """

    def __init__(
        self,
        reactor: Any,
        call: Callable[[], Deferred[Any]],
        *,
        install: Callable[[int, Any], object] = signal.signal,
    ) -> None:
        """
        @param reactor: In whose turn it is called.
        @param install: As L{signal.signal}, which works in the main thread only.
        """
        self._reactor = reactor
        self._call = call
        self._install = install

    def arm(self) -> None:
        """From now on."""
        self._install(signal.SIGHUP, self._received)

    def disarm(self) -> None:
        """No more; a late one is ignored rather than ending a process that is stopping."""
        self._install(signal.SIGHUP, signal.SIG_IGN)

    def _received(self, number: int, frame: Any) -> None:
        self._reactor.callFromThread(self._call)


__all__ = [
    "RELOADABLE",
    "HangupSignal",
    "Part",
    "Reload",
    "Reloaded",
    "Unreloadable",
    "changedSettings",
]
